#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>
#include <vector>

namespace exl::cpu {

namespace {

struct Candidate {
    float weight;  // proportional to the probability
    int32_t id;
    bool operator<(const Candidate& other) const {
        return weight != other.weight ? weight > other.weight : id < other.id;
    }
};

// The tokens by (-weight, id), sorted only as far as somebody looks: one more pass over the vocabulary for each factor
// of 16 below the heaviest token, whose weight is 1.
class SortedTokens {
 public:
    SortedTokens(const float* weights, const float* logits, int32_t vocab)
        : weights_(weights), logits_(logits), vocab_(vocab) {}
    bool has(size_t i) {
        while (i >= sorted_.size() && lowest_ > 0.0f) extend();
        return i < sorted_.size();
    }
    const Candidate& operator[](size_t i) const { return sorted_[i]; }

 private:
    void extend() {
        const float upper = lowest_;
        lowest_ = upper > 1e-9f ? std::min(upper, 1.0f) / 16 : 0.0f;
        const size_t start = sorted_.size();
        for (int32_t id = 0; id < vocab_; ++id)
            if (weights_[id] >= lowest_ && weights_[id] < upper && logits_[id] > -INFINITY)
                sorted_.push_back({weights_[id], id});
        std::sort(sorted_.begin() + ptrdiff_t(start), sorted_.end());
    }

    const float *weights_, *logits_;
    int32_t vocab_;
    float lowest_ = 2.0f;
    std::vector<Candidate> sorted_;
};

void penalize(float* logits, int32_t vocab, const SampleRow& row) {
    std::unordered_set<int32_t> seen;
    for (int32_t i = 0; i < row.history_length; ++i) {
        const int32_t id = row.history[i];
        if (id < 0 || id >= vocab || !seen.insert(id).second) continue;
        logits[id] = float(logits[id] > 0 ? logits[id] / row.repetition_penalty : logits[id] * row.repetition_penalty);
    }
}

int32_t first_of(const float* logits, int32_t vocab, float peak) {
    return int32_t(std::find(logits, logits + vocab, peak) - logits);
}

}  // namespace

double uniform(uint64_t seed, uint64_t position) {
    uint32_t x[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
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

int32_t sample(const Kernels& kernels, const float* logits, float* scratch, int32_t vocab, const SampleRow& row) {
    if (row.repetition_penalty != 1.0) {
        std::copy(logits, logits + vocab, scratch);
        penalize(scratch, vocab, row);
        logits = scratch;
    }
    const float peak = kernels.logits_peak(logits, vocab);
    if (!std::isfinite(peak)) return -1;
    if (row.temperature == 0.0) return first_of(logits, vocab, peak);

    thread_local std::vector<float> weights;
    weights.resize(size_t(vocab));
    double total = kernels.exponentials(logits, vocab, peak, float(1.0 / row.temperature), weights.data());
    SortedTokens tokens(weights.data(), logits, vocab);
    // Keeps tokens [0, count) while keep(token) holds; their weights become the new total.
    size_t count = size_t(vocab);
    const auto shorten = [&](auto keep) {
        double sum = 0;
        size_t kept = 0;
        while (kept < count && tokens.has(kept) && keep(tokens[kept], kept, sum)) sum += double(tokens[kept++].weight);
        count = kept;
        total = sum;
    };
    if (row.top_k > 0) shorten([&](const Candidate&, size_t kept, double) { return kept < size_t(row.top_k); });
    if (row.top_p < 1.0) {
        const double limit = row.top_p * total;
        shorten([&](const Candidate&, size_t kept, double sum) { return kept == 0 || sum < limit; });
    }
    if (row.min_p > 0.0)
        shorten([&](const Candidate& token, size_t, double) { return double(token.weight) >= row.min_p; });
    const double target = uniform(row.seed, row.position) * total;
    double sum = 0;
    size_t chosen = 0;
    for (; chosen < count && tokens.has(chosen); ++chosen) {
        sum += double(tokens[chosen].weight);
        if (sum > target) return tokens[chosen].id;
    }
    return tokens[chosen - 1].id;  // rounding left the sum a little short
}

}  // namespace exl::cpu
