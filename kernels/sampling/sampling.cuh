#pragma once

#include "sampling/block.cuh"
#include "sampling/sampling.h"

#include <math.h>

namespace exl {
namespace sampling {

// 53 bits of Philox4x32-10 (Salmon et al. 2011), key = seed, counter = position.
EXL_DEVICE uint64_t random_bits(uint64_t seed, uint64_t position) {
    uint32_t x[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * x[0], b = static_cast<uint64_t>(0xCD9E8D57u) * x[2];
        const uint32_t x1 = x[1], x3 = x[3];
        x[0] = static_cast<uint32_t>(b >> 32) ^ x1 ^ key[0];
        x[1] = static_cast<uint32_t>(b);
        x[2] = static_cast<uint32_t>(a >> 32) ^ x3 ^ key[1];
        x[3] = static_cast<uint32_t>(a);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return static_cast<uint64_t>(x[0] >> 5) << 26 | x[1] >> 6;
}

// One row after penalty, biases and mask, and its tokens in their order.
class Row {
 public:
    EXL_DEVICE Row(const exl_sample_args& args, int row)
        : vocab_(args.vocab),
          row_(row),
          args_(args),
          parameters_(args.row[row]),
          x_(args.scratch + static_cast<int64_t>(row) * args.vocab) {}

    EXL_DEVICE const exl_sample_row& parameters() const { return parameters_; }

    // Fills the scratch. Returns the largest number of it, NaN where a logit is no number or +infinity.
    EXL_DEVICE float prepare() {
        const float* logits = args_.logits + row_ * args_.logits_stride;
        const uint32_t* mask = args_.mask ? args_.mask + row_ * args_.mask_stride : nullptr;
        float bad = 0.0f;
        each(vocab_, [&](int i) {
            x_[i] = logits[i];
            if (!(logits[i] < INFINITY)) bad = 1.0f;
        });
        __syncthreads();
        penalize(logits);
        __syncthreads();
        add_biases();
        __syncthreads();
        float peak = -INFINITY;
        each(vocab_, [&](int i) {
            if (mask && !(mask[i / 32] >> i % 32 & 1)) x_[i] = -INFINITY;
            peak = fmaxf(peak, x_[i]);
        });
        peak_ = block_max(peak);
        scale_ = static_cast<float>(1.0 / parameters_.temperature);
        return block_max(bad) > 0.0f ? NAN : peak_;
    }

    // The first token with the largest number.
    EXL_DEVICE int first_of_peak() const {
        uint64_t first = vocab_;
        each(vocab_, [&](int i) {
            if (x_[i] == peak_ && static_cast<uint64_t>(i) < first) first = i;
        });
        return static_cast<int>(block_reduce(first, [](uint64_t a, uint64_t b) { return a < b ? a : b; }));
    }

    EXL_DEVICE float weight(int i) const { return expf((x_[i] - peak_) * scale_); }

    // The weight of all tokens of at least `least` of the largest's.
    EXL_DEVICE uint64_t weight_from(double least) const {
        uint64_t sum = 0;
        each(vocab_, [&](int i) {
            const float w = weight(i);
            if (w >= least) sum += whole(w);
        });
        return block_sum(sum);
    }

    // A place in the order: the `rank`-th, from 1, of the tokens with this key.
    struct Place {
        uint32_t key;
        uint64_t rank;
        uint64_t until;  // weight of all tokens up to it
    };

    // The first place at which reached(amount up to it) holds; ranks_before(amount before its key, weight of each of
    // the key's tokens) says how many of these do not reach it.
    template <class Reached, class RanksBefore> EXL_DEVICE Place find(Reached reached, RanksBefore ranks_before) const {
        EXL_SHARED(Bins, bins, [1]);
        uint32_t key = 0;
        Amount before = {0, 0};
        for (int shift = 24; shift >= 0; shift -= 8) {
            bins[0].clear();
            __syncthreads();
            each(vocab_, [&](int i) {
                const uint32_t k = key_of(x_[i]);
                if (x_[i] > -INFINITY && (shift == 24 || k >> (shift + 8) == key))
                    bins[0].add(k >> shift & 255, whole(weight(i)));
            });
            __syncthreads();
            const Digit found = find_digit(bins[0], before, reached);
            key = key << 8 | found.digit;
            before = found.before;
        }
        const Amount same = bins[0][static_cast<int>(key & 255)];
        const uint64_t each_weight = same.count ? same.weight / same.count : 0;
        uint64_t rank = ranks_before(before, each_weight) + 1;
        if (rank > same.count) rank = same.count;
        __syncthreads();  // the bins have been read
        return {key, rank, before.weight + rank * each_weight};
    }

    EXL_DEVICE Place find_count(uint64_t count) const {
        return find([&](Amount until) { return until.count >= count; },
                    [&](Amount before, uint64_t) { return count - before.count - 1; });
    }
    // Where the sum of weights is at least `limit`, which is above 0.
    EXL_DEVICE Place find_weight(uint64_t limit) const {
        return find([&](Amount until) { return until.weight >= limit; },
                    [&](Amount before, uint64_t each) { return each ? (limit - before.weight - 1) / each : 0; });
    }

    // The id of a place: groups of lanes count in consecutive parts of the row, then one finds it in its own.
    EXL_DEVICE int id_of(Place place) const {
        EXL_SHARED(int, counts, [num_groups]);
        EXL_SHARED(int, result, [1]);
        const int part = (vocab_ + num_groups - 1) / num_groups, begin = group() * part;
        const auto same = [&](int at) {
            const int i = begin + at + lane();
            return ballot(at + lane() < part && i < vocab_ && key_of(x_[i]) == place.key);
        };
        int mine = 0;
        for (int at = 0; at < part; at += group_size) mine += popcount(same(at));
        if (lane() == 0) counts[group()] = mine;
        __syncthreads();
        int before = 0;
        for (int i = 0; i < group(); i++) before += counts[i];
        const int wanted = static_cast<int>(place.rank) - before;  // from 1
        if (wanted >= 1 && wanted <= mine) {
            int seen = 0;
            for (int at = 0; at < part; at += group_size) {
                const uint32_t lanes = same(at);
                const int number = seen + popcount(lanes & ((2u << lane()) - 1));
                if ((lanes >> lane() & 1) && number == wanted) result[0] = begin + at + lane();
                seen += popcount(lanes);
            }
        }
        __syncthreads();
        return result[0];
    }

    // Sums up to 2^18 weights of at most 1.
    static constexpr int weight_bits = 44;

 private:
    EXL_DEVICE static uint64_t whole(float weight) { return static_cast<uint64_t>(weight * 0x1p44f); }

    // A token that stands in the history several times is changed once: only what still is the logit is replaced.
    EXL_DEVICE void penalize(const float* logits) {
        const double penalty = parameters_.repetition_penalty;
        if (!args_.history || penalty == 1.0) return;
        const int32_t* history = args_.history + row_ * args_.history_stride;
        each(parameters_.history_length, [&](int j) {
            const int32_t id = history[j];
            if (id < 0 || id >= vocab_) return;
            const float x = logits[id];
            const float penalized = static_cast<float>(x > 0.0f ? x / penalty : x * penalty);
            atomic_compare_and_swap(reinterpret_cast<uint32_t*>(x_) + id, bit_cast<uint32_t>(x),
                                    bit_cast<uint32_t>(penalized));
        });
    }

    EXL_DEVICE void add_biases() {
        if (!args_.bias_ids) return;
        each(parameters_.bias_count, [&](int j) {
            const int32_t id = args_.bias_ids[row_ * args_.bias_stride + j];
            if (id >= 0 && id < vocab_) x_[id] += args_.biases[row_ * args_.bias_stride + j];
        });
    }

    const int vocab_, row_;
    const exl_sample_args& args_;
    const exl_sample_row& parameters_;
    float* x_;
    float peak_ = 0.0f, scale_ = 0.0f;
};

EXL_DEVICE int draw(const Row& row) {
    const exl_sample_row& p = row.parameters();
    uint64_t total = row.weight_from(0.0);
    if (p.top_k > 0) {
        const uint64_t kept = row.find_count(static_cast<uint64_t>(p.top_k)).until;
        total = kept < total ? kept : total;
    }
    if (p.top_p < 1.0) {
        const uint64_t limit = static_cast<uint64_t>(ceil(p.top_p * static_cast<double>(total)));
        const uint64_t kept = row.find_weight(limit > 0 ? limit : 1).until;
        total = kept < total ? kept : total;
    }
    if (p.min_p > 0.0) {
        const uint64_t kept = row.weight_from(p.min_p);
        total = kept < total ? kept : total;
    }
    const double u = static_cast<double>(random_bits(p.seed, p.position)) * 0x1p-53;
    uint64_t target = static_cast<uint64_t>(u * static_cast<double>(total));
    target = target < total ? target + 1 : total;  // more than u times the total
    return row.id_of(row.find_weight(target));
}

EXL_KERNEL(threads) sample_rows(exl_sample_args args) {
    Row row(args, static_cast<int>(blockIdx.x));
    const float peak = row.prepare();
    int token = peak == -INFINITY ? -2 : -1;
    if (peak > -INFINITY && peak < INFINITY)
        token = row.parameters().temperature == 0.0 ? row.first_of_peak() : draw(row);
    if (threadIdx.x == 0) args.tokens[blockIdx.x] = token;
}

}  // namespace sampling
}  // namespace exl
