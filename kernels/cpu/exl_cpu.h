// The contract of the CPU kernels: plain structs, raw pointers, no framework.
//
// Every kernel is SPMD: all workers of a team call it with the same arguments and share the work among themselves.
// What a row computes depends on that row alone: never on the number of rows, workers or chunks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../layouts/exl3.h"

namespace exl::cpu {

class Worker;
struct TrellisStep;

enum class Family : int32_t { group_affine, dense, trellis };
enum class DenseType : int32_t { f32, f16, bf16 };

// How scale and offset of a group are stored; see group_affine.h for the byte layouts.
enum class Scheme : int32_t {
    symmetric,       // fp16 scale per 32, constant zero point             Q4_0 Q5_0 Q8_0
    affine,          // fp16 scale and fp16 offset per 32                  Q4_1 Q5_1
    super32,         // fp16 d, dmin per 256; u8 scale, u8 min per 32      Q4_K Q5_K
    super16,         // fp16 d, dmin per 256; 4 + 4 bit scale, min per 16  Q2_K
    super16_signed,  // fp16 d per 256; int8 scale per 16, constant zero   Q3_K Q6_K
};

struct Weight {
    Family family;
    int32_t rows;             // N, out_features
    int32_t cols;             // K, in_features
    int32_t cols_padded;      // K rounded up to 32, of a trellis to 128
    int32_t bits;             // group_affine
    Scheme scheme;            // group_affine
    int32_t zero;             // constant zero point of the symmetric schemes
    DenseType dense_type;     // dense
    const uint8_t* data;      // ceil(N / 16) row blocks; of a trellis ceil(N / 128) bands, see trellis.h
    int64_t block_bytes;      // bytes of one row block or band
    int64_t scales_offset;    // where the scales of a row block start inside it
    int32_t rate2;                // trellis: twice the bits per weight
    layouts::Codebook codebook;   // trellis
    const uint16_t* suh;          // trellis: fp16 scales of inputs (cols_padded,) and outputs (ceil(N / 128) * 128,)
    const uint16_t* svh;
};

enum class Activation : int32_t { none, silu, gelu_tanh, gelu };

struct Projection {
    const Weight* weight;
    float* out;            // (R, out_stride)
    int64_t out_stride;
    const float* bias;     // (N,) or null
    int32_t add;           // out += instead of out =
};

constexpr int max_projections = 4;

struct LinearArgs {
    const float* x;        // (R, x_stride)
    int64_t x_stride;
    int32_t cols;
    const float* norm;     // (cols,) RMSNorm weight or null
    float eps;
    Activation activation; // not none: out0 = activation(x W0) * (x W1)
    int32_t num_projections;
    Projection projection[max_projections];
    // A row whose relative squared rounding error at 8 bits exceeds this keeps more: 12 bits for group_affine, a second int8
    // row for trellises. 0 = every row, infinity = none.
    float residual_above;
    const int32_t* row_index;  // gather: row r reads x[row_index[r]]; null = r
    float softcap;         // > 0: out = softcap * tanh(out / softcap)
};

struct EmbedArgs {
    const Weight* table;
    float* out;
    int64_t out_stride;
    float multiplier;
};

constexpr int half_bits = 16;  // of a cache that holds fp16

// Pages of one layer. Keys and values apart; layouts in kv_cache.h.
struct LayerCache {
    uint8_t* keys;
    uint8_t* values;
    int64_t key_page_bytes;
    int64_t value_page_bytes;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t key_bits;      // 16 = fp16, else 2..8
    int32_t value_bits;
};

// Features of a head as stored: where keys or values are packed, in groups of 32, the last group is filled with zeros.
inline int32_t padded_dim(const LayerCache& c) {
    return c.key_bits == half_bits && c.value_bits == half_bits ? c.head_dim : (c.head_dim + 31) / 32 * 32;
}

struct RopeTableArgs {
    const float* inv_freq; // (rotary_dim / 2,)
    int32_t rotary_dim;
    float scale;
    float* table;          // (R, rotary_dim)
};

struct RopeArgs {
    float* q;              // (R, num_heads * head_dim)
    float* k;              // (R, num_kv_heads * head_dim)
    const float* v;
    int64_t q_stride, k_stride, v_stride;
    int32_t num_heads;
    const float* q_norm;   // (head_dim,) or null
    const float* k_norm;
    float q_eps, k_eps;
    const float* table;    // (R, rotary_dim): cosines, then sines of the row's position; null: no rotary embedding
    int32_t rotary_dim;
    int32_t layer;         // what Run::faults says when a key or value cannot be stored
    LayerCache cache;
};

struct AttentionArgs {
    const float* q;
    float* out;
    int64_t q_stride, out_stride;
    int32_t num_heads;
    float scale;
    int32_t window;        // 0 = none
    float softcap;
    LayerCache cache;
};

// What changes from run to run; all arrays belong to the caller.
struct Run {
    int32_t rows;
    const int32_t* token_ids;
    const int32_t* positions;
    const int32_t* sequences;
    const int32_t* page_table;  // (S, pages_per_sequence)
    int32_t pages_per_sequence;
    uint8_t* shared;            // scratch seen by all workers, 64-byte aligned
    int32_t* faults;            // (rows,) -1, or the first layer whose cache cannot hold the row's key or value
};

// How one row is sampled; read from an array of ops.SAMPLE_SETTINGS, so all fields take 8 bytes.
struct SampleSettings {
    double temperature;                                    // 0 = greedy
    double min_temp, max_temp, temp_exponent;              // max_temp 0 = no dynamic temperature
    double smoothing_factor, smoothing_curve;              // 0 = off
    double top_p, top_a, min_p;                            // 1, 0, 0 = off
    double xtc_probability, xtc_threshold;                 // 0 = off
    double skew;                                           // 0 = off
    double repetition_penalty, presence_penalty, frequency_penalty;  // 1, 0, 0 = off
    int64_t repetition_range, repetition_decay;            // range 0 = the whole history, without decay
    int64_t top_k;                                         // 0 = off
    int64_t temperature_last;                              // 0 or 1
    uint64_t position;                                     // counter of the random numbers
    uint64_t seed;
};
static_assert(sizeof(SampleSettings) == 21 * 8);

struct SampleRow {
    SampleSettings settings;
    const int32_t* history;     // tokens that the penalties look at, the last one last
    int64_t history_length;
    const int32_t* bias_ids;    // added to logits, in this order
    const double* biases;
    int64_t num_biases;
    const uint32_t* mask;       // bit t % 32 of word t / 32: token t can be drawn; null = all can
};

constexpr int page_size = 256;

struct Kernels {
    const char* name;
    void (*linear)(const LinearArgs&, const Run&, Worker&);
    void (*embed)(const EmbedArgs&, const Run&, Worker&);
    void (*rope_table)(const RopeTableArgs&, const Run&, Worker&);
    void (*rope_and_store)(const RopeArgs&, const Run&, Worker&);
    void (*attention)(const AttentionArgs&, const Run&, Worker&);
    int64_t (*linear_scratch)(const LinearArgs&, int32_t max_rows);
    int64_t (*attention_scratch)(const AttentionArgs&, int32_t max_pages, int32_t workers);
    void (*dequantize)(const Weight&, int32_t row, float* out);  // one row, (cols,)
    float (*logits_peak)(const float* logits, int32_t n);
    void (*smooth)(const float* logits, int32_t n, float peak, float factor, float curve, float* out);
    double (*exponentials)(const float* logits, int32_t n, float peak, float scale, float* out);
    double (*entropy)(const float* logits, int32_t n, float peak);
    int32_t (*between)(const float* values, int32_t n, float low, float high, int32_t limit, int32_t* out);
    double (*int8_peak)(Worker&);
    int32_t (*read_all)(const uint8_t* data, int64_t bytes);
    void (*trellis_step)(int32_t k_in, int32_t k_out, TrellisStep&);
    void (*trellis_targets)(const float* feedback, int64_t stride, const float* errors, int64_t rows, float* targets);
    int32_t bf16_activations;   // dense bf16 rounds activations to bf16
};

// All levels compiled into this binary; null where this machine lacks the instructions.
const Kernels* kernels_for(const char* level);
const char* best_level();

}  // namespace exl::cpu
