// Packing of every weight type, cache pages of every width and sampling, under AddressSanitizer and UBSan.
//
//   storage [short]     "short" hands over a file's row that lacks its last byte, which is a read out of bounds
#define EXL_ISA generic
#define EXL_LEVEL 0
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "cpu/logits.h"
#include "cpu/pack.h"
#include "cpu/rope.h"
#include "cpu/sampling.h"

using namespace exl::cpu;

namespace {

std::mt19937 generator(7);

std::vector<uint8_t> random_bytes(size_t count) {
    std::vector<uint8_t> bytes(count);
    for (uint8_t& byte : bytes) byte = uint8_t(generator());
    return bytes;
}

std::vector<float> random_floats(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

// Every bit pattern may stand in a file, also scales that are NaN. 37 rows: two full row blocks and a part of one.
void pack_all(size_t missing) {
    const struct {
        const char *type, *as;
        int64_t cols;
    } cases[] = {{"Q4_0", "", 96},  {"Q4_1", "", 96},  {"Q5_0", "", 96},  {"Q5_1", "", 96},    {"Q8_0", "", 96},
                 {"Q2_K", "", 512}, {"Q3_K", "", 512}, {"Q4_K", "", 512}, {"Q5_K", "", 512},   {"Q6_K", "", 512},
                 {"f32", "", 45},   {"f16", "", 45},   {"bf16", "", 45},  {"f16", "bf16", 45}, {"f32", "f16", 45}};
    for (const auto& c : cases) {
        PackedWeight weight(c.type, 37, c.cols, c.as);
        const std::vector<uint8_t> first = random_bytes(size_t(32 * weight.row_bytes()));
        const std::vector<uint8_t> rest = random_bytes(size_t(5 * weight.row_bytes()) - missing);
        weight.add_rows(0, first.data(), 32);
        weight.add_rows(32, rest.data(), 5);
    }
}

// One token in each corner of a page, with values that no cache can hold among them.
void store_all() {
    Team team(2);
    for (int key_bits : {2, 3, 4, 5, 6, 7, 8, 16})
        for (int value_bits : {2, 3, 4, 5, 6, 7, 8, 16})
            for (int head_dim : {32, 80, 96}) {
                const int heads = 2, rows = 4, width = heads * head_dim;
                std::vector<float> q = random_floats(size_t(rows * width)), k = q, v = q,
                                   table(size_t(rows * head_dim));
                std::vector<float> inv_freq(size_t(head_dim / 2), 0.01f), norm(size_t(head_dim), 1.0f);
                k[5] = std::nanf(""), v[size_t(width)] = INFINITY, v[size_t(2 * width + 1)] = -3e38f;
                const int32_t positions[] = {0, 255, 256, 511}, ids[] = {0, 0, 0, 0}, sequences[] = {0, 0, 0, 0};
                const int32_t pages[] = {1, 0};
                int32_t faults[] = {-1, -1, -1, -1};
                LayerCache cache{nullptr, nullptr, 0, 0, heads, head_dim, key_bits, value_bits};
                const generic::PageLayout layout = generic::page_layout(cache);
                cache.key_page_bytes = heads * layout.key_head, cache.value_page_bytes = heads * layout.value_head;
                std::vector<uint8_t> keys(size_t(2 * cache.key_page_bytes)), values(size_t(2 * cache.value_page_bytes));
                cache.keys = keys.data(), cache.values = values.data();
                const Run run{rows, ids, positions, sequences, pages, 2, nullptr, faults};
                struct Job {
                    RopeTableArgs table;
                    RopeArgs store;
                    const Run& run;
                } job{{inv_freq.data(), head_dim, 1.0f, table.data()},
                      {q.data(), k.data(), v.data(), width, width, width, heads, norm.data(), nullptr, 1e-6f, 0.0f,
                       table.data(), head_dim, 3, cache},
                      run};
                team.run(
                    [](void* opaque, Worker& worker) {
                        const Job& j = *static_cast<Job*>(opaque);
                        generic::rope_table(j.table, j.run, worker);
                        worker.barrier();
                        generic::rope_and_store(j.store, j.run, worker);
                    },
                    &job);
                for (int r = 0; r < rows; ++r)
                    if (faults[r] != (r < 3 ? 3 : -1)) std::printf("row %d: fault %d\n", r, faults[r]), std::exit(1);
            }
}

// A bit per combination of what a row may have.
SampleRow sample_row(uint32_t bits, const int32_t* history, const double* biases, const uint32_t* mask) {
    const auto has = [&](int bit) { return (bits >> bit & 1) != 0; };
    SampleRow row{};
    SampleSettings& s = row.settings;
    s.temperature = has(0) ? 0.5 : 100.0, s.temperature_last = has(1);
    s.max_temp = has(2) ? 2.0 : 0.0, s.temp_exponent = 1.0;
    s.smoothing_factor = has(3) ? 0.3 : 0.0, s.smoothing_curve = 1.5;
    s.top_k = has(4) ? 5 : 0, s.top_p = has(5) ? 0.3 : 1.0, s.top_a = has(6) ? 0.2 : 0.0, s.min_p = has(7) ? 0.1 : 0.0;
    s.xtc_probability = has(8) ? 1.0 : 0.0, s.xtc_threshold = 0.05, s.skew = has(9) ? 1.0 : 0.0;
    s.repetition_penalty = has(10) ? 1.3 : 1.0, s.frequency_penalty = has(10) ? 0.5 : 0.0;
    s.repetition_range = has(9) ? 2 : 0, s.repetition_decay = 1;
    s.seed = s.position = ~0ull;
    row.history = history, row.history_length = 5;
    if (has(11)) row.bias_ids = history, row.biases = biases, row.num_biases = 5, row.mask = mask;
    if (bits == 1u << 12) s.temperature = 0.0;
    return row;
}

void sample_all() {
    Kernels kernels{};
    kernels.logits_peak = generic::logits_peak;
    kernels.smooth = generic::smooth;
    kernels.exponentials = generic::exponentials;
    kernels.entropy = generic::entropy;
    kernels.between = generic::between;
    for (int32_t vocab : {1, 15, 16, 17, 63, 64, 65, 1000}) {
        std::vector<float> logits = random_floats(size_t(vocab));
        logits[size_t(vocab / 2)] = -INFINITY;
        const int32_t history[] = {0, vocab - 1, -5, vocab, 0};
        const double biases[] = {1.0, -1.0, 2.0, 3.0, 1000.0};
        const std::vector<uint32_t> mask(size_t(vocab + 31) / 32, 0xffff0fff);
        for (uint32_t bits = 0; bits <= 1u << 12; ++bits) {
            const SampleRow row = sample_row(bits, history, biases, mask.data());
            const int32_t token = sample(kernels, logits.data(), vocab, row);
            if (token < (vocab == 1 ? no_token_left : 0) || token >= vocab) std::exit(1);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    pack_all(argc > 1 && std::strcmp(argv[1], "short") == 0 ? 1 : 0);
    store_all();
    sample_all();
    std::puts("all is within bounds");
    return 0;
}
