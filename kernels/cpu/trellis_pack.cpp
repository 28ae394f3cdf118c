#include "trellis_pack.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "half.h"

namespace exl::cpu {

namespace {

int64_t padded(int64_t features) { return (features + trellis_block - 1) / trellis_block * trellis_block; }

bool known_rate(int32_t rate2) { return (rate2 >= 2 && rate2 <= 8) || (rate2 <= 16 && rate2 >= 10 && rate2 % 2 == 0); }

// Where word t of the stream of a tile lies inside its band, in words; tiles are counted along the whole matrix.
int64_t place(int32_t rate2, int64_t tile_row, int64_t tile_column, int t) {
    const int64_t group = tile_row / 8, quad = tile_row / 4 % 2;
    return group * trellis_group_bytes(rate2) / 2 + 64 * t + 32 * quad + 4 * (tile_column % 8) + tile_row % 4;
}

void hadamard(double* x, int stride) {
    for (int step = 1; step < trellis_block; step *= 2)
        for (int i = 0; i < trellis_block; ++i)
            if (!(i & step)) {
                const double a = x[i * stride], b = x[(i + step) * stride];
                x[i * stride] = a + b;
                x[(i + step) * stride] = a - b;
            }
}

// Weights of 128 inputs x 128 outputs, rotated on both sides: values[input][output], times 128.
void decode_block(const Weight& w, int64_t band, int64_t group, const std::vector<float>& table, double* values) {
    const uint16_t* words = reinterpret_cast<const uint16_t*>(w.data + w.block_bytes * band);
    for (int64_t row = 0; row < 8; ++row)
        for (int64_t column = 0; column < 8; ++column)
            for (int i = 0; i < 256; ++i) {
                const uint32_t state = layouts::exl3_state(
                    w.rate2, i, [&](int t) { return words[place(w.rate2, 8 * group + row, column, t)]; });
                values[(16 * row + layouts::exl3_row(i)) * trellis_block + 16 * column + layouts::exl3_column(i)] =
                    double(table[state]);
            }
    for (int i = 0; i < trellis_block; ++i) hadamard(values + i, trellis_block);
    for (int i = 0; i < trellis_block; ++i) hadamard(values + i * trellis_block, 1);
}

}  // namespace

PackedTrellis::PackedTrellis(int64_t rows, int64_t cols, int32_t rate2, layouts::Codebook codebook, const uint16_t* suh,
                             const uint16_t* svh) {
    if (rows < 1 || cols < 1 || rows > (1 << 30) || cols > (1 << 24))
        throw std::invalid_argument("weight shape out of range");
    if (!known_rate(rate2)) throw std::invalid_argument("unknown rate");
    const int64_t down = padded(cols), across = padded(rows);
    tiles_across_ = across / 16;
    weight_.family = Family::trellis;
    weight_.rows = int32_t(rows);
    weight_.cols = int32_t(cols);
    weight_.cols_padded = int32_t(down);
    weight_.rate2 = rate2;
    weight_.codebook = codebook;
    weight_.block_bytes = down / trellis_block * trellis_group_bytes(rate2);
    const int64_t bands = across / trellis_block * weight_.block_bytes;
    memory_ = std::make_unique<Memory>(size_t(bands + 2 * (down + across)));
    weight_.data = memory_->data();
    uint16_t* scales = reinterpret_cast<uint16_t*>(memory_->data() + bands);
    std::memcpy(scales, suh, size_t(2 * down));
    std::memcpy(scales + down, svh, size_t(2 * across));
    weight_.suh = scales;
    weight_.svh = scales + down;
}

void PackedTrellis::add_tiles(int64_t start, const uint16_t* raw, int64_t count) {
    if (start < 0 || count < 0 || start + count > weight_.cols_padded / 16)
        throw std::invalid_argument("rows of tiles outside the weight");
    const int words = 8 * weight_.rate2;
    for (int64_t row = start; row < start + count; ++row)
        for (int64_t column = 0; column < tiles_across_; ++column) {
            const uint16_t* tile = raw + ((row - start) * tiles_across_ + column) * words;
            uint8_t* band = memory_->data() + column / 8 * weight_.block_bytes;
            uint16_t* out = reinterpret_cast<uint16_t*>(band) + place(weight_.rate2, row, column, 0);
            for (int t = 0; t < words; ++t) out[64 * t] = tile[t ^ 1];
        }
}

void trellis_dequantize(const Weight& w, int32_t first, int32_t last, float* out) {
    std::vector<float> table(1 << 16);
    for (uint32_t state = 0; state < table.size(); ++state) table[state] = layouts::exl3_value(w.codebook, state);
    std::vector<double> values(trellis_block * trellis_block);
    for (int64_t band = first / trellis_block; band * trellis_block < last; ++band)
        for (int64_t group = 0; group < w.cols_padded / trellis_block; ++group) {
            decode_block(w, band, group, table, values.data());
            for (int64_t n = std::max<int64_t>(first, band * trellis_block);
                 n < std::min<int64_t>(last, (band + 1) * trellis_block); ++n)
                for (int64_t k = group * trellis_block; k < std::min<int64_t>(w.cols, (group + 1) * trellis_block);
                     ++k) {
                    const double value = values[size_t(k % trellis_block * trellis_block + n % trellis_block)];
                    const double scale = double(half_to_float(w.suh[k])) * double(half_to_float(w.svh[n])) / 128;
                    out[(n - first) * w.cols + k] = float(value * scale);
                }
        }
}

}  // namespace exl::cpu
