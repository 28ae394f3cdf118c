#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace exl::cpu {

namespace {

constexpr uint32_t draw_stream = 0, xtc_stream = 1;

// Memory of one thread, as large as the largest vocabulary so far.
struct Scratch {
    std::vector<float> logits, weights, strength;  // strength: of a token's occurrences, added up
    std::vector<uint8_t> seen;                     // all 0 between two rows
    std::vector<int32_t> ids;
    explicit Scratch(size_t vocab) : logits(vocab), weights(vocab), strength(vocab), seen(vocab), ids(vocab) {}
};

struct Candidate {
    float logit, weight;  // weight: proportional to the probability
    int32_t id;
    bool operator<(const Candidate& other) const { return logit != other.logit ? logit > other.logit : id < other.id; }
};

// The tokens by (-logit, id), sorted only as far as somebody looks: one more pass over the vocabulary for each band of
// weights below the heaviest token, whose weight is 1. A band spans a factor of 16, less where tokens lie dense, so that
// a band doubles what is sorted at most.
class SortedTokens {
 public:
    SortedTokens(const Kernels& kernels, const float* logits, Scratch& scratch, int32_t vocab)
        : kernels_(kernels), logits_(logits), scratch_(scratch), vocab_(vocab) {}
    bool has(size_t i) {
        while (i >= sorted_.size() && lowest_ > 0.0f) extend();
        return i < sorted_.size();
    }
    Candidate& operator[](size_t i) { return sorted_[i]; }

 private:
    static constexpr size_t few = 512;
    static constexpr float smallest = std::numeric_limits<float>::min();  // below every weight: exp stops at e^-87
    static constexpr int narrowings = 6;  // after these a band spans 4 %, and what it holds are mostly ties

    void extend() {
        const float upper = lowest_, least = upper > 1e-9f ? std::min(upper, 1.0f) / 16 : 0.0f;
        const int32_t limit = int32_t(std::max(few, sorted_.size()));
        int32_t* ids = scratch_.ids.data();
        lowest_ = least;
        int32_t count = between(upper, limit);
        for (int i = 0; i < narrowings && count >= limit; ++i) {
            lowest_ = std::sqrt(std::max(lowest_, smallest)) * std::sqrt(std::min(upper, 1.0f));
            count = between(upper, limit);
        }
        if (count >= limit) count = between(upper, vocab_);
        const size_t start = sorted_.size();
        for (int32_t i = 0; i < count; ++i)
            if (logits_[ids[i]] > -INFINITY)
                sorted_.push_back({logits_[ids[i]], scratch_.weights[size_t(ids[i])], ids[i]});
        std::sort(sorted_.begin() + ptrdiff_t(start), sorted_.end());
    }

    int32_t between(float upper, int32_t limit) {
        return kernels_.between(scratch_.weights.data(), vocab_, lowest_, upper, limit, scratch_.ids.data());
    }

    const Kernels& kernels_;
    const float* logits_;
    Scratch& scratch_;
    int32_t vocab_;
    float lowest_ = 2.0f;
    std::vector<Candidate> sorted_;
};

bool has_penalties(const SampleSettings& s) {
    return s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0;
}

// From the last token backwards, so that the first occurrence met is the nearest; the others only add to the frequency.
void penalize(float* logits, int32_t vocab, const SampleRow& row, Scratch& scratch) {
    const SampleSettings& s = row.settings;
    int32_t* ids = scratch.ids.data();
    int32_t count = 0;
    for (int64_t distance = 1; distance <= row.history_length; ++distance) {
        const int32_t id = row.history[row.history_length - distance];
        double strength = 1.0;
        if (s.repetition_range && distance > s.repetition_range)
            strength -= double(distance - s.repetition_range) / (double(s.repetition_decay) + 1.0);
        if (strength <= 0.0) break;
        if (id < 0 || id >= vocab) continue;
        if (!scratch.seen[size_t(id)]) {
            scratch.seen[size_t(id)] = 1;
            scratch.strength[size_t(id)] = 0.0f;
            ids[count++] = id;
            const double x = logits[id], factor = 1.0 + strength * (s.repetition_penalty - 1.0);
            logits[id] = float((x > 0 ? x / factor : x * factor) - s.presence_penalty * strength);
        }
        scratch.strength[size_t(id)] += float(strength);
    }
    for (int32_t i = 0; i < count; ++i) {
        const size_t id = size_t(ids[i]);
        logits[id] = float(logits[id] - s.frequency_penalty * double(scratch.strength[id]));
        scratch.seen[id] = 0;
    }
}

void mask_out(float* logits, int32_t vocab, const uint32_t* mask) {
    for (int32_t begin = 0; begin < vocab; begin += 32) {
        const uint32_t word = mask[begin / 32];
        const int32_t end = std::min(begin + 32, vocab);
        if (word == ~0u) continue;
        if (word == 0) {  // nearly always with a grammar
            std::fill(logits + begin, logits + end, -INFINITY);
            continue;
        }
        for (int32_t id = begin; id < end; ++id)
            if (!(word >> (id - begin) & 1)) logits[id] = -INFINITY;
    }
}

// The logits after penalties, bias and mask: the row itself if it has none of these.
const float* adjust(const float* logits, int32_t vocab, const SampleRow& row, Scratch& scratch) {
    if (!has_penalties(row.settings) && row.num_biases == 0 && !row.mask) return logits;
    float* changed = scratch.logits.data();
    std::copy(logits, logits + vocab, changed);
    if (has_penalties(row.settings)) penalize(changed, vocab, row, scratch);
    for (int64_t i = 0; i < row.num_biases; ++i)
        if (const int32_t id = row.bias_ids[i]; id >= 0 && id < vocab) changed[id] = float(changed[id] + row.biases[i]);
    if (row.mask) mask_out(changed, vocab, row.mask);
    return changed;
}

// weights[i] = exp of the smoothed logit over its temperature; returns their sum. count: how many logits are finite.
double temper(const Kernels& kernels, const float* logits, int32_t n, float peak, int64_t count,
              const SampleSettings& s, float* weights) {
    if (s.smoothing_factor != 0.0) {
        kernels.smooth(logits, n, peak, float(s.smoothing_factor), float(s.smoothing_curve), weights);
        logits = weights;
        peak = 0.0f;
    }
    double temperature = s.temperature;
    if (s.max_temp != 0.0) {
        const double most = std::log(double(count));
        const double share = count > 1 ? std::clamp(kernels.entropy(logits, n, peak) / most, 0.0, 1.0) : 0.0;
        temperature = s.min_temp + (s.max_temp - s.min_temp) * std::pow(share, s.temp_exponent);
    }
    return kernels.exponentials(logits, n, peak, float(1.0 / std::max(temperature, 1e-30)), weights);
}

// A range [first, count) of the sorted tokens and the sum of their weights.
class Kept {
 public:
    Kept(SortedTokens& tokens, int32_t vocab, double total) : tokens_(tokens), count_(size_t(vocab)), total_(total) {}

    void filter(const SampleSettings& s) {
        if (s.top_k > 0) {
            count_ = std::min(count_, size_t(s.top_k));
            shorten([](const Candidate&, double) { return true; });
        }
        if (s.top_p < 1.0) {
            const double limit = s.top_p * total_;
            shorten([&](const Candidate&, double sum) { return sum < limit; });
        }
        if (s.top_a > 0.0) {
            const double limit = s.top_a * double(tokens_[0].weight) * double(tokens_[0].weight) / total_;
            shorten([&](const Candidate& token, double) { return double(token.weight) >= limit; });
        }
        if (s.min_p > 0.0) {
            const double limit = s.min_p * double(tokens_[0].weight);
            shorten([&](const Candidate& token, double) { return double(token.weight) >= limit; });
        }
        if (s.xtc_probability > 0.0 && uniform(s.seed, s.position, xtc_stream) < s.xtc_probability)
            exclude_top(s.xtc_threshold * total_);
    }

    // Gives the tokens new weights, by the temperature that was left for the end.
    void reweigh(const Kernels& kernels, const SampleSettings& s) {
        while (tokens_.has(end_) && end_ < count_) ++end_;
        count_ = end_;
        std::vector<float> logits, weights(count_ - first_);
        for (size_t i = first_; i < count_; ++i) logits.push_back(tokens_[i].logit);
        total_ = temper(kernels, logits.data(), int32_t(logits.size()), logits[0], int64_t(logits.size()), s,
                        weights.data());
        for (size_t i = first_; i < count_; ++i) tokens_[i].weight = weights[i - first_];
    }

    int32_t draw(double u) {
        const double target = u * total_;
        double sum = 0;
        size_t i = first_;
        for (; i < count_ && tokens_.has(i); ++i) {
            sum += double(tokens_[i].weight);
            if (sum > target) return tokens_[i].id;
        }
        return tokens_[i - 1].id;  // rounding left the sum a little short
    }

 private:
    // Keeps tokens while keep(token, sum of those before) holds, the first one always.
    template <typename Keep> void shorten(Keep keep) {
        double sum = 0;
        size_t kept = 0;
        while (kept < count_ && tokens_.has(kept) && (kept == 0 || keep(tokens_[kept], sum)))
            sum += double(tokens_[kept++].weight);
        count_ = kept;
        total_ = sum;
    }

    void exclude_top(double limit) {
        double sum = 0;
        size_t above = 0;
        while (above < count_ && tokens_.has(above) && double(tokens_[above].weight) >= limit)
            sum += double(tokens_[above++].weight);
        if (above < 2) return;
        first_ = end_ = above - 1;
        total_ -= sum - double(tokens_[first_].weight);
    }

    SortedTokens& tokens_;
    size_t first_ = 0, count_, end_ = 0;
    double total_;
};

}  // namespace

double uniform(uint64_t seed, uint64_t position, uint32_t stream) {
    uint32_t x[4] = {uint32_t(position), uint32_t(position >> 32), stream, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xD2511F53u) * x[0], b = uint64_t(0xCD9E8D57u) * x[2];
        const uint32_t next[4] = {uint32_t(b >> 32) ^ x[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ key[1],
                                  uint32_t(a)};
        std::copy(next, next + 4, x);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return (double(x[0] >> 5) * 67108864.0 + double(x[1] >> 6)) * 0x1p-53;
}

int32_t sample(const Kernels& kernels, const float* raw, int32_t vocab, const SampleRow& row) {
    const SampleSettings& s = row.settings;
    thread_local Scratch scratch(0);
    if (scratch.logits.size() < size_t(vocab)) scratch = Scratch(size_t(vocab));
    float peak = kernels.logits_peak(raw, vocab);
    if (std::isnan(peak)) return not_a_token;
    const float* logits = adjust(raw, vocab, row, scratch);
    if (logits != raw) peak = kernels.logits_peak(logits, vocab);
    if (!std::isfinite(peak)) return no_token_left;
    if (s.temperature == 0.0) return int32_t(std::find(logits, logits + vocab, peak) - logits);

    const bool last = s.temperature_last != 0;
    SampleSettings neutral{};
    neutral.temperature = 1.0;
    const int64_t finite = s.max_temp == 0.0 ? vocab : vocab - std::count(logits, logits + vocab, -INFINITY);
    const double total = temper(kernels, logits, vocab, peak, finite, last ? neutral : s, scratch.weights.data());
    SortedTokens tokens(kernels, logits, scratch, vocab);
    Kept kept(tokens, vocab, total);
    if (!tokens.has(0)) return no_token_left;
    kept.filter(s);
    if (last) kept.reweigh(kernels, s);
    const double u = uniform(s.seed, s.position, draw_stream);
    return kept.draw(s.skew == 0.0 ? u : std::pow(u, std::exp(-s.skew)));
}

}  // namespace exl::cpu
