#include "trellis_search.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace exl::cpu {

namespace {

constexpr int ring = 256, states = 1 << 16;

// See w_natural in trellis_lanes.h.
int turned(int k, int p) { return k >= 5 ? p : (p << k | p >> (5 - k)) & 31; }

template <int rate2> void pack(const uint16_t* path, uint16_t* words) {
    layouts::Exl3Tile<rate2> tile;
    layouts::encode(path, tile);
    std::memcpy(words, tile.words, sizeof tile);
}

void pack_tile(int32_t rate2, const uint16_t* path, uint16_t* words) {
    switch (rate2) {
        case 2: return pack<2>(path, words);
        case 3: return pack<3>(path, words);
        case 4: return pack<4>(path, words);
        case 5: return pack<5>(path, words);
        case 6: return pack<6>(path, words);
        case 7: return pack<7>(path, words);
        case 8: return pack<8>(path, words);
        case 10: return pack<10>(path, words);
        case 12: return pack<12>(path, words);
        case 14: return pack<14>(path, words);
        case 16: return pack<16>(path, words);
    }
    throw std::invalid_argument("unknown rate");
}

}  // namespace

// costs[t]: a row for what a pass starts with, then one for each of its steps.
struct TrellisSearch::Group {
    int64_t row;                          // costs of a row
    uint16_t* costs[search_tiles];
    int16_t targets[search_tiles][ring];
    uint16_t path[search_tiles][ring];    // the states
    uint16_t low[search_tiles];
    float* errors[search_tiles];          // (rows, 16) of the columns that are being quantized

    uint16_t* at(int tile, int step) { return costs[tile] + row * step; }
    const uint16_t* at(int tile, int step) const { return costs[tile] + row * step; }
};

TrellisSearch::TrellisSearch(int32_t rate2, layouts::Codebook codebook, const Kernels& kernels)
    : rate2_(rate2), kernels_(kernels) {
    const bool half = rate2 == 3 || rate2 == 5 || rate2 == 7;
    if (rate2 < 2 || rate2 > 16 || (rate2 % 2 && !half)) throw std::invalid_argument("unknown rate");
    if (half && codebook != layouts::Codebook::mul1) throw std::invalid_argument("half rates need the codebook mul1");
    values_.resize(states);
    integers_.resize(states);
    for (int s = 0; s < states; ++s) values_[size_t(s)] = layouts::exl3_value(codebook, uint32_t(s));
    float most = 0;
    for (float v : values_) most = std::max(most, std::fabs(v));
    limit_ = most + 0.1f;
    scale_ = 32767.0f / limit_;
    for (size_t s = 0; s < states; ++s) integers_[s] = int16_t(std::nearbyint(values_[s] * scale_));
    for (int parity = 0; parity < 2; ++parity) fill_table(tables_[parity], bits(parity), bits(parity + 1));
}

int TrellisSearch::bits(int position) const {
    return layouts::exl3_end(rate2_, position % ring) - position % ring * rate2_ / 2;
}

// A target beyond all values is moved to the edge, NaN to the lower one.
int16_t TrellisSearch::rounded(float target) const {
    return int16_t(std::nearbyint(std::min(limit_, std::max(-limit_, target)) * scale_));
}

uint32_t TrellisSearch::cost(int position, int16_t target, uint32_t state) const {
    int32_t d = std::min(std::max(integers_[state] - target, -0x8000), 0x7fff);
    for (int i = 5; i < bits(position); ++i) d = std::min(std::max(2 * d, -0x8000), 0x7fff);
    return uint32_t(d * d + (1 << 14)) >> 15;
}

void TrellisSearch::fill_table(std::vector<int16_t>& table, int k_in, int k_out) const {
    table.clear();
    for (int first = 0; first < states >> k_out; first += 32)
        for (int h = 0; h < 1 << k_out; ++h)
            for (int p = 0; p < 32; ++p)
                table.push_back(integers_[size_t(h << (16 - k_out) | first | turned(k_in, p))]);
}

// Positions first .. first + count - 1, around the ring, from the costs in row 0.
void TrellisSearch::run_steps(Group& g, int first, int count) const {
    TrellisStep step;
    std::copy(g.low, g.low + search_tiles, step.low);
    for (int i = 0; i < count; ++i) {
        const int position = (first + i) % ring;
        step.table = tables_[position % 2].data();
        for (int t = 0; t < search_tiles; ++t) {
            step.in[t] = g.at(t, i);
            step.out[t] = g.at(t, i + 1);
            step.target[t] = g.targets[t][position];
        }
        kernels_.trellis_step(bits(position), bits(position + 1), step);
    }
}

// The cheapest state at `position` that leads to `group`; `in`: costs before the position.
uint32_t TrellisSearch::predecessor(const Group& g, int tile, int position, uint32_t group, const uint16_t* in) const {
    const int after = bits(position + 1), before = bits(position);
    uint32_t best = 0, least = ~0u;
    for (uint32_t h = 0; h < 1u << after; ++h) {
        const uint32_t state = h << (16 - after) | group;
        const uint32_t total = in[state >> before] + cost(position, g.targets[tile][position], state);
        if (total < least) least = total, best = state;
    }
    return best;
}

// States of the steps count - 1 down to `last` of a pass from position `first` on; the first of them leads to `group`.
void TrellisSearch::trace_back(Group& g, int tile, int first, int count, uint32_t group, int last) const {
    for (int i = count - 1; i >= last; --i) {
        const int position = (first + i) % ring;
        const uint32_t state = predecessor(g, tile, position, group, g.at(tile, i));
        g.path[tile][position] = uint16_t(state);
        group = state >> bits(position);
    }
}

// path[255]: of the best path that goes once around from the opposite position, with free ends.
void TrellisSearch::find_seams(Group& g) const {
    constexpr int first = ring / 2;
    for (int t = 0; t < search_tiles; ++t) {
        std::fill(g.at(t, 0), g.at(t, 1), uint16_t(0));
        g.low[t] = 0;
    }
    run_steps(g, first, ring);
    for (int t = 0; t < search_tiles; ++t) {
        const uint16_t* costs = g.at(t, ring);
        const auto best = std::min_element(costs, costs + (states >> bits(first))) - costs;
        trace_back(g, t, first, ring, uint32_t(best), ring - 1 - first);
    }
}

// The rest of the path, which starts and ends in path[255].
void TrellisSearch::find_rings(Group& g) const {
    for (int t = 0; t < search_tiles; ++t) {
        const uint32_t seam = g.path[t][ring - 1];
        std::fill(g.at(t, 0), g.at(t, 1), trellis_dear);
        g.at(t, 0)[seam & ((states >> bits(0)) - 1)] = 0;
        g.low[t] = 0;
    }
    run_steps(g, 0, ring - 2);
    for (int t = 0; t < search_tiles; ++t) trace_back(g, t, 0, ring - 1, g.path[t][ring - 1] >> bits(ring - 1), 0);
}

// Targets of the tiles in rows row .. row + 15 of columns 16 * tile .., with the errors of later rows fed back.
void TrellisSearch::read_targets(const TrellisMatrix& m, int64_t row, int64_t tile, Group& g) const {
    for (int t = 0; t < search_tiles; ++t) {
        const int64_t column = 16 * std::min(tile + t, m.columns / 16 - 1);  // one too many is searched twice
        float wanted[256];
        for (int r = 0; r < 16; ++r) std::copy_n(m.targets + (row + r) * m.columns + column, 16, wanted + 16 * r);
        const int64_t after = row + 16;
        if (m.feedback && after < m.rows)
            kernels_.trellis_targets(m.feedback + after * m.rows + row, m.rows, g.errors[t] + 16 * after,
                                     m.rows - after, wanted);
        for (int i = 0; i < ring; ++i)
            g.targets[t][i] = rounded(wanted[16 * layouts::exl3_row(i) + layouts::exl3_column(i)]);
    }
}

// The words of the paths, what they decode to, and the errors that leaves.
void TrellisSearch::write_tiles(const TrellisMatrix& m, int64_t row, int64_t tile, Group& g) const {
    for (int t = 0; t < search_tiles && tile + t < m.columns / 16; ++t) {
        uint16_t* words = m.words + (row / 16 * (m.columns / 16) + tile + t) * 8 * rate2_;
        pack_tile(rate2_, g.path[t], words);
        for (int i = 0; i < ring; ++i) {
            const uint32_t state = layouts::exl3_state(rate2_, i, [&](int w) { return words[w ^ 1]; });
            const int64_t r = row + layouts::exl3_row(i), c = layouts::exl3_column(i);
            const int64_t place = r * m.columns + 16 * (tile + t) + c;
            m.values[place] = values_[state];
            g.errors[t][16 * r + c] = m.targets[place] - values_[state];
        }
    }
}

// `search_tiles` columns of tiles from tile column `tile` on, from the last row of tiles to the first.
void TrellisSearch::quantize_columns(const TrellisMatrix& m, int64_t tile, Worker& worker) const {
    Group g;
    g.row = states >> bits(0);
    const int64_t cost_bytes = 2 * g.row * (ring + 1), error_bytes = 4 * 16 * m.rows;
    uint8_t* memory = worker.scratch(size_t(search_tiles * (cost_bytes + error_bytes)));
    for (int t = 0; t < search_tiles; ++t) {
        g.costs[t] = reinterpret_cast<uint16_t*>(memory + t * cost_bytes);
        g.errors[t] = reinterpret_cast<float*>(memory + search_tiles * cost_bytes + t * error_bytes);
    }
    for (int64_t row = m.rows - 16; row >= 0; row -= 16) {
        read_targets(m, row, tile, g);
        find_seams(g);
        find_rings(g);
        write_tiles(m, row, tile, g);
    }
}

void TrellisSearch::quantize(Team& team, const TrellisMatrix& matrix) const {
    struct Work {
        const TrellisSearch& search;
        const TrellisMatrix& matrix;
        void run(Worker& worker) const {
            worker.begin_stage();
            for (int64_t tile; (tile = worker.next(search_tiles)) < matrix.columns / 16;)
                search.quantize_columns(matrix, tile, worker);
        }
    } work{*this, matrix};
    team.run([](void* context, Worker& worker) { static_cast<const Work*>(context)->run(worker); }, &work);
}

}  // namespace exl::cpu
