#include "pack.h"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../layouts/gguf.h"
#include "codes.h"
#include "half.h"

namespace exl::cpu {

namespace {

using layouts::Decoded;
using PackRow = void (*)(const PackedWeight&, uint8_t*, int, const uint8_t*);

void put_half(uint8_t* base, int64_t index, uint16_t value) { std::memcpy(base + 2 * index, &value, 2); }

// The scales of one decoded block; `block` counts the file's blocks along the row.
void put_scales(const Weight& w, uint8_t* scales, int64_t block, int lane, const Decoded& d) {
    const auto super = [&](int64_t bytes) { return scales + block * bytes; };
    switch (w.scheme) {
        case Scheme::symmetric: put_half(scales, 16 * block + lane, d.d); break;
        case Scheme::affine:
            put_half(scales, 32 * block + lane, d.d);
            put_half(scales, 32 * block + 16 + lane, d.m);
            break;
        case Scheme::super32:
            put_half(super(320), lane, d.d);
            put_half(super(320), 16 + lane, d.m);
            for (int g = 0; g < 8; ++g) {
                super(320)[64 + 32 * g + lane] = d.small_scale[g];
                super(320)[64 + 32 * g + 16 + lane] = d.small_min[g];
            }
            break;
        case Scheme::super16:
            put_half(super(320), lane, d.d);
            put_half(super(320), 16 + lane, d.m);
            for (int g = 0; g < 16; ++g) super(320)[64 + 16 * g + lane] = d.small_scale[g];
            break;
        case Scheme::super16_signed:
            put_half(super(288), lane, d.d);
            for (int g = 0; g < 16; ++g) super(288)[32 + 16 * g + lane] = d.small_scale[g];
            break;
    }
}

int64_t scale_bytes(Scheme scheme, int64_t cols) {
    switch (scheme) {
        case Scheme::symmetric: return cols / 32 * 32;
        case Scheme::affine: return cols / 32 * 64;
        case Scheme::super16_signed: return cols / 256 * 288;
        default: return cols / 256 * 320;
    }
}

template <typename Block, int elements>
void pack_blocks(const PackedWeight& packed, uint8_t* out, int lane, const uint8_t* row) {
    const Weight& w = packed.weight();
    for (int64_t b = 0; b < w.cols / elements; ++b) {
        Block block;
        Decoded decoded;
        std::memcpy(&block, row + b * int64_t(sizeof block), sizeof block);
        layouts::decode(block, decoded);
        for (int g = 0; g < elements / 32; ++g)
            put_row(out + (b * (elements / 32) + g) * 64 * w.bits, w.bits, lane, decoded.codes + 32 * g);
        put_scales(w, out + w.scales_offset, b, lane, decoded);
    }
}

float read_value(DenseType from, const uint8_t* row, int64_t k) {
    uint16_t half;
    float value;
    if (from == DenseType::f32) {
        std::memcpy(&value, row + 4 * k, 4);
        return value;
    }
    std::memcpy(&half, row + 2 * k, 2);
    return from == DenseType::f16 ? half_to_float(half) : bf16_to_float(half);
}

template <DenseType from> void pack_dense(const PackedWeight& packed, uint8_t* out, int lane, const uint8_t* row) {
    const Weight& w = packed.weight();
    for (int64_t k = 0; k < w.cols; ++k) {
        if (w.dense_type == DenseType::f32) {
            const float value = read_value(from, row, k);
            std::memcpy(out + 4 * (16 * k + lane), &value, 4);
        } else if (w.dense_type == DenseType::f16) {
            put_half(out, 16 * k + lane, float_to_half(read_value(from, row, k)));
        } else {
            put_half(out, 32 * (k / 2) + 2 * lane + k % 2, float_to_bf16(read_value(from, row, k)));
        }
    }
}

struct Format {
    const char* name;
    int elements, bytes, bits;
    Scheme scheme;
    int zero;
    PackRow pack;
};

using namespace layouts;
const Format formats[] = {
    {"Q4_0", 32, sizeof(Q4_0), 4, Scheme::symmetric, 8, pack_blocks<Q4_0, 32>},
    {"Q4_1", 32, sizeof(Q4_1), 4, Scheme::affine, 0, pack_blocks<Q4_1, 32>},
    {"Q5_0", 32, sizeof(Q5_0), 5, Scheme::symmetric, 16, pack_blocks<Q5_0, 32>},
    {"Q5_1", 32, sizeof(Q5_1), 5, Scheme::affine, 0, pack_blocks<Q5_1, 32>},
    {"Q8_0", 32, sizeof(Q8_0), 8, Scheme::symmetric, 128, pack_blocks<Q8_0, 32>},
    {"Q2_K", 256, sizeof(Q2_K), 2, Scheme::super16, 0, pack_blocks<Q2_K, 256>},
    {"Q3_K", 256, sizeof(Q3_K), 3, Scheme::super16_signed, 4, pack_blocks<Q3_K, 256>},
    {"Q4_K", 256, sizeof(Q4_K), 4, Scheme::super32, 0, pack_blocks<Q4_K, 256>},
    {"Q5_K", 256, sizeof(Q5_K), 5, Scheme::super32, 0, pack_blocks<Q5_K, 256>},
    {"Q6_K", 256, sizeof(Q6_K), 6, Scheme::super16_signed, 32, pack_blocks<Q6_K, 256>},
};

DenseType dense_type(const std::string& name) {
    if (name == "f32") return DenseType::f32;
    if (name == "f16") return DenseType::f16;
    if (name == "bf16") return DenseType::bf16;
    throw std::invalid_argument("unknown weight type " + name);
}

}  // namespace

PackedWeight::PackedWeight(const std::string& type, int64_t rows, int64_t cols, const std::string& as) {
    if (rows < 1 || cols < 1 || rows > (1 << 30) || cols > (1 << 24))
        throw std::invalid_argument("weight shape out of range");
    weight_.rows = int32_t(rows);
    weight_.cols = int32_t(cols);
    weight_.cols_padded = int32_t((cols + 31) / 32 * 32);
    const Format* format =
        std::find_if(std::begin(formats), std::end(formats), [&](const Format& f) { return type == f.name; });
    if (format != std::end(formats)) {
        if (cols % format->elements) throw std::invalid_argument("in_features is not a multiple of the block size");
        weight_.family = Family::group_affine;
        weight_.bits = format->bits;
        weight_.scheme = format->scheme;
        weight_.zero = format->zero;
        weight_.scales_offset = cols * 2 * format->bits;
        weight_.block_bytes = weight_.scales_offset + scale_bytes(format->scheme, cols);
        row_bytes_ = cols / format->elements * format->bytes;
        pack_ = format->pack;
    } else {
        const DenseType from = dense_type(type);
        weight_.family = Family::dense;
        weight_.dense_type = as.empty() ? from : dense_type(as);
        weight_.block_bytes = int64_t(weight_.cols_padded) * 16 * (weight_.dense_type == DenseType::f32 ? 4 : 2);
        row_bytes_ = cols * (from == DenseType::f32 ? 4 : 2);
        pack_ = from == DenseType::f32   ? pack_dense<DenseType::f32>
                : from == DenseType::f16 ? pack_dense<DenseType::f16>
                                         : pack_dense<DenseType::bf16>;
    }
    memory_ = std::make_unique<Memory>(size_t((rows + 15) / 16 * weight_.block_bytes));
    weight_.data = memory_->data();
}

void PackedWeight::add_rows(int64_t start, const uint8_t* raw, int64_t count) {
    if (!pack_ || start % 16 || start < 0 || count < 0 || start + count > weight_.rows)
        throw std::invalid_argument("rows outside the weight");
    const auto pack_range = [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r)
            pack_(*this, memory_->data() + (start + r) / 16 * weight_.block_bytes, int((start + r) % 16),
                  raw + r * row_bytes_);
    };
    constexpr int64_t worth_a_thread = 1 << 18;
    const int64_t most = std::min<int64_t>(std::thread::hardware_concurrency(), 8);
    const int64_t parts = std::clamp<int64_t>(count * row_bytes_ / worth_a_thread, 1, std::max<int64_t>(most, 1));
    const int64_t step = ((count + parts - 1) / parts + 15) / 16 * 16;
    std::vector<std::thread> threads;
    for (int64_t first = step; first < count; first += step)
        threads.emplace_back(pack_range, first, std::min(first + step, count));
    pack_range(0, std::min(step, count));
    for (auto& thread : threads) thread.join();
}

}  // namespace exl::cpu
