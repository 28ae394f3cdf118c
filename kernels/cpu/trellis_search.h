// The EXL3 encoder's inner half: the cheapest ring of states of a tile (Viterbi), and LDLQ around it.
//
// A tile is 256 targets w_i; position i takes the state s_i = (s_{i-1} << k_i | symbol) mod 2^16 and costs
// (w_i - value(s_i))^2. All states whose upper 16 - k_i bits agree have the same predecessors, so what is kept of a
// position are the cheapest ways into such groups:
//
//   state s       [ h: k' bits |        ...          | symbol: k bits ]        k = k_i, k' = k_(i+1)
//   read          [    group of position i: in       ]                         2^(16 - k) costs
//   written                    [ group of position i + 1: out          ]       2^(16 - k') costs
//
//   out[s mod 2^(16 - k')] = min over h of in[s >> k] + cost(s)
//
// Costs are 16-bit integers, so results are equal on every processor: values and targets are rounded to steps of
// 1 / scale, and cost = round(d^2 / 2^15) where d, the saturated difference, is doubled k - 5 times from 6 bits on. `out`
// is taken relative to the smallest `in` and held below `trellis_dear`, so sums stay below 2^16. One unit is a tenth of
// the mean squared error at 4 bits and less below, where finer steps gain nothing, and a third from 5 bits on (0.3 %).
//
// 65536 states a position, 32 to a vector: subtract, square, add, minimum, each from the 128 KB table of values, which
// is in the order in which it is read and shared by `search_tiles` tiles. A vector holds the 32 states that differ in
// their last 5 bits, turned so that `in` is a broadcast: lane p is the state with last bits p << k | p >> (5 - k).
// Nothing is kept of decisions; the way back finds the minima that it needs again.
//
// The ring is closed in two passes, as in exllamav3: a search with free ends, once around from the position opposite of
// the seam, gives the state of position 255, then the ring starts and ends there. Closing it once more elsewhere gains
// 0.1 %; half the first pass, on both sides of the seam, loses 0.6 %.
//
// Bounded by vector arithmetic: 4 operations for 32 states, two of them (difference, minimum) on one port only.
//
// Oracle: tests/conversion/viterbi.py, numpy.
#pragma once

#include <vector>

#include "exl_cpu.h"
#include "team.h"
#include "trellis_step.h"

namespace exl::cpu {

// A matrix (rows, columns) to quantize, both multiples of 16, row by row.
struct TrellisMatrix {
    const float* targets;
    const float* feedback;  // (rows, rows) or null, see TrellisSearch::quantize
    int64_t rows, columns;
    uint16_t* words;  // (rows / 16, columns / 16, 8 * rate2), as in the file
    float* values;  // (rows, columns), what the words decode to
};

// A rate, a codebook, and what follows from them. rate2: twice the bits per weight.
class TrellisSearch {
 public:
    // Throws std::invalid_argument for an unknown rate, or a half rate of a codebook other than mul1.
    TrellisSearch(int32_t rate2, layouts::Codebook codebook, const Kernels& kernels);

    // Block LDLQ from the last 16 rows to the first: before they are searched, row r of the targets gets
    // feedback[j][r] * (target - value of row j) added for every row j of later blocks. Columns do not see each other,
    // so a worker goes through the rows of `search_tiles` columns of tiles without waiting for anybody.
    void quantize(Team& team, const TrellisMatrix& matrix) const;

    int32_t rate2() const { return rate2_; }

 private:
    struct Group;  // tiles that are searched together, and their memory
    int bits(int position) const;
    int16_t rounded(float target) const;
    uint32_t cost(int position, int16_t target, uint32_t state) const;
    void fill_table(std::vector<int16_t>& table, int k_in, int k_out) const;
    void run_steps(Group& g, int first, int count) const;
    uint32_t predecessor(const Group& g, int tile, int position, uint32_t group, const uint16_t* in) const;
    void trace_back(Group& g, int tile, int first, int count, uint32_t group, int last) const;
    void find_seams(Group& g) const;
    void find_rings(Group& g) const;
    void read_targets(const TrellisMatrix& m, int64_t row, int64_t tile, Group& g) const;
    void write_tiles(const TrellisMatrix& m, int64_t row, int64_t tile, Group& g) const;
    void quantize_columns(const TrellisMatrix& m, int64_t tile, Worker& worker) const;

    int32_t rate2_;
    const Kernels& kernels_;
    float scale_, limit_;  // values to integers; targets are clamped to +- limit
    std::vector<float> values_;  // of all states
    std::vector<int16_t> integers_;  // the same, rounded
    std::vector<int16_t> tables_[2];  // by the parity of the position
};

}  // namespace exl::cpu
