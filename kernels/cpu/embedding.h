// out[r] = table[token_ids[r]] * multiplier, from dense or quantized rows; and single rows of any weight as floats.
#pragma once

#include "codes.h"
#include "dense.h"
#include "team.h"
#include "trellis.h"

namespace EXL_ISA {

inline void dequantize_dense(const Weight& w, int row, float* out) {
    const uint8_t* block = w.data + w.block_bytes * (row / 16);
    const int lane = row % 16;
    for (int k = 0; k < w.cols; ++k) {
        if (w.dense_type == DenseType::f32)
            out[k] = reinterpret_cast<const float*>(block)[16 * k + lane];
        else if (w.dense_type == DenseType::f16)
            out[k] = exl::half_to_float(reinterpret_cast<const uint16_t*>(block)[16 * k + lane]);
        else
            out[k] = exl::bf16_to_float(reinterpret_cast<const uint16_t*>(block)[32 * (k / 2) + 2 * lane + k % 2]);
    }
}

// code * scale is exact in fp32 and the addition rounds once, so this equals scale * (code - zero) and scale * code + offset of the file.
inline void dequantize_group_affine(const Weight& w, int row, float* out) {
    const uint8_t* block = w.data + w.block_bytes * (row / 16);
    const int lane = row % 16;
    dispatch_group_affine(w, [&](auto, auto scheme) {
        using S = Scales<scheme.value>;
        for (int g32 = 0; g32 < w.cols_padded / 32; ++g32) {
            uint8_t codes[32];
            get_row(block + int64_t(g32) * 64 * w.bits, w.bits, lane, codes);
            float scale[16], offset[16];
            for (int i = 0; i < 32; ++i) {
                f32v s = f_zero(), o = f_zero();
                if (i % S::size == 0) {
                    S::load(block + w.scales_offset, (32 * g32 + i) / S::size, s, o);
                    f_store(scale, s);
                    f_store(offset, o);
                }
                const int k = 32 * g32 + i;
                const float product = scale[lane] * float(int(codes[i]) - (S::has_offset ? 0 : w.zero));
                if (k < w.cols) out[k] = S::has_offset ? product + offset[lane] : product;
            }
        }
    });
}

void dequantize(const Weight& w, int32_t row, float* out) {
    if (w.family == Family::dense)
        dequantize_dense(w, row, out);
    else if (w.family == Family::trellis)
        exl::cpu::trellis_dequantize(w, row, row + 1, out);
    else
        dequantize_group_affine(w, row, out);
}

void embed(const EmbedArgs& args, const Run& run, Worker& worker) {
    worker.begin_stage();
    for (int64_t r; (r = worker.next()) < run.rows;) {
        float* out = args.out + r * args.out_stride;
        dequantize(*args.table, run.token_ids[r], out);
        if (args.multiplier != 1.0f)
            for (int i = 0; i < args.table->cols; ++i) out[i] *= args.multiplier;
    }
}

}  // namespace EXL_ISA
