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
    bool operator<(const Candidate& other) const { return weight != other.weight ? weight > other.weight : id < other.id; }
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

// Sorts further candidates to the front until `count` of them are in order.
class SortedPrefix {
  public:
    explicit SortedPrefix(std::vector<Candidate>& all) : all_(all) {}
    const Candidate& operator[](size_t i) {
        while (i >= sorted_) {
            const size_t next = std::min(all_.size(), std::max<size_t>(64, 8 * sorted_));
            if (next < all_.size()) std::nth_element(all_.begin() + sorted_, all_.begin() + next, all_.end());
            std::sort(all_.begin() + sorted_, all_.begin() + next);
            sorted_ = next;
        }
        return all_[i];
    }

  private:
    std::vector<Candidate>& all_;
    size_t sorted_ = 0;
};

}  // namespace

double uniform(uint64_t seed, uint64_t position) {
    uint32_t x[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xD2511F53u) * x[0], b = uint64_t(0xCD9E8D57u) * x[2];
        const uint32_t next[4] = {uint32_t(b >> 32) ^ x[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ key[1], uint32_t(a)};
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
    thread_local std::vector<Candidate> candidates;
    weights.resize(size_t(vocab));
    double total = kernels.exponentials(logits, vocab, peak, float(1.0 / row.temperature), weights.data());
    candidates.clear();
    // The heaviest token weighs 1, so min_p is a threshold that needs no order.
    for (int32_t id = 0; id < vocab; ++id)
        if (logits[id] > -INFINITY && (row.top_k > 0 || row.top_p < 1.0 || weights[id] >= row.min_p)) candidates.push_back({weights[id], id});
    size_t count = candidates.size();
    SortedPrefix sorted(candidates);
    if (row.top_k > 0 && size_t(row.top_k) < count) {
        count = size_t(row.top_k);
        total = 0;
        for (size_t i = 0; i < count; ++i) total += double(sorted[i].weight);
    }
    if (row.top_p < 1.0) {
        const double limit = double(row.top_p) * total;
        double sum = 0;
        size_t kept = 0;
        while (kept < count && (kept == 0 || sum < limit)) sum += double(sorted[kept++].weight);
        count = kept;
        total = sum;
    }
    if (row.min_p > 0.0) {
        if (row.top_k > 0 || row.top_p < 1.0)
            while (count > 1 && sorted[count - 1].weight < row.min_p) --count;
        total = 0;
        for (size_t i = 0; i < count; ++i) total += double(candidates[i].weight);
    }
    const double target = uniform(row.seed, row.position) * total;
    double sum = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
        sum += double(sorted[i].weight);
        if (sum > target) return sorted[i].id;
    }
    return sorted[count - 1].id;
}

}  // namespace exl::cpu
