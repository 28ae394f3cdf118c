// Linear layers, embedding, cache pages and attention under AddressSanitizer and UBSan, every buffer exactly as large as
// its contract says.
//
//   compute [linear|attention]     the named input of the named kernel lacks its last number, which is a read out of bounds
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "cpu/attention.h"
#include "cpu/embedding.h"
#include "cpu/linear.h"
#include "cpu/pack.h"
#include "cpu/rope.h"

using namespace exl::cpu;

// Trellis kernels have so many instances that compiling them would take longer than all the rest; no case here has any.
void exl::cpu::trellis_dequantize(const Weight&, int32_t, int32_t, float*) { std::abort(); }
void EXL_ISA::trellis_linear(const LinearArgs&, const Run&, Worker&) { std::abort(); }
int64_t EXL_ISA::trellis_scratch(const LinearArgs&, int32_t) { std::abort(); }

namespace {

std::mt19937 generator(7);

// Buffers of a plan have room for one more group of 16 (Plan::buffer).
constexpr size_t slack = 64;

std::vector<float> random_floats(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

void on_team(Team& team, const std::function<void(Worker&)>& work) {
    team.run([](void* opaque, Worker& worker) { (*static_cast<const std::function<void(Worker&)>*>(opaque))(worker); },
             const_cast<std::function<void(Worker&)>*>(&work));
}

void expect_finite(const float* values, size_t count, const char* what) {
    for (size_t i = 0; i < count; ++i)
        if (!std::isfinite(values[i])) std::printf("%s: value %zu is %g\n", what, i, double(values[i])), std::exit(1);
}

// Rows of a file whose 16-bit floats are small and finite: every byte is 0x2a, which is 0.051 in fp16 and 2e-13 in bf16.
void fill(PackedWeight& weight) {
    const std::vector<uint8_t> raw(size_t(weight.weight().rows * weight.row_bytes()), 0x2a);
    weight.add_rows(0, raw.data(), weight.weight().rows);
}

// 37 outputs: two full blocks of rows and a part of one. Two projections, with and without everything that is optional.
void multiply(const char* type, int64_t cols, int rows, bool gated, Team& team, bool cut) {
    constexpr int outputs = 37;
    PackedWeight first(type, outputs, cols, ""), second(type, outputs, cols, "");
    fill(first), fill(second);
    std::vector<float> x = random_floats(size_t(rows) * size_t(cols) + slack), norm = random_floats(size_t(cols)),
                       bias = random_floats(outputs);
    if (cut) x.resize(size_t(rows) * size_t(cols) - 1), x.shrink_to_fit();
    std::vector<float> out(size_t(rows * outputs) + slack), other(size_t(rows * outputs) + slack);
    std::vector<int32_t> reversed(static_cast<size_t>(rows));
    for (int r = 0; r < rows; ++r) reversed[size_t(r)] = rows - 1 - r;
    LinearArgs args{};
    args.x = x.data(), args.x_stride = cols, args.cols = int32_t(cols);
    args.norm = norm.data(), args.eps = 1e-6f, args.num_projections = 2;
    args.activation = gated ? Activation::silu : Activation::none;
    args.projection[0] = {&first.weight(), out.data(), outputs, bias.data(), !gated};
    args.projection[1] = {&second.weight(), gated ? nullptr : other.data(), outputs, nullptr, 0};
    args.residual_above = gated ? 6e-5f : 0.0f;
    args.row_index = reversed.data();
    const Memory shared{size_t(EXL_ISA::linear_scratch(args, rows))};
    const Run run{rows, nullptr, nullptr, nullptr, nullptr, 0, shared.data(), nullptr};
    on_team(team, [&](Worker& worker) { EXL_ISA::linear(args, run, worker); });
    expect_finite(out.data(), size_t(rows * outputs), type);
    std::vector<float> row(static_cast<size_t>(cols));
    EXL_ISA::dequantize(first.weight(), outputs - 1, row.data());
    expect_finite(row.data(), size_t(cols), type);
    const std::vector<int32_t> ids(size_t(rows), outputs - 1);
    std::vector<float> embedded(size_t(rows) * size_t(cols) + slack);
    const EmbedArgs embed{&first.weight(), embedded.data(), cols, 2.0f};
    const Run lookup{rows, ids.data(), nullptr, nullptr, nullptr, 0, nullptr, nullptr};
    on_team(team, [&](Worker& worker) { EXL_ISA::embed(embed, lookup, worker); });
}

void multiply_all(Team& team, bool cut) {
    const struct {
        const char* type;
        int64_t cols;
    } cases[] = {{"Q4_0", 96},  {"Q4_1", 96},  {"Q5_0", 96},  {"Q5_1", 96}, {"Q8_0", 96}, {"Q2_K", 256}, {"Q3_K", 256},
                 {"Q4_K", 256}, {"Q5_K", 256}, {"Q6_K", 256}, {"f32", 45},  {"f16", 45},  {"bf16", 45}};
    for (const auto& c : cases)
        for (int rows : {1, 2, 3, 7, 33})
            for (bool gated : {false, true}) multiply(c.type, c.cols, rows, gated, team, cut);
}

// Two sequences of 5 rows over a page's end, in pages that are no neighbours; stored, then attended to.
void attend(int key_bits, int value_bits, int head_dim, int window, Team& team, bool cut) {
    constexpr int kv_heads = 2, heads = 6, rows = 10, pages = 5;
    const int width = heads * head_dim, kv_width = kv_heads * head_dim;
    std::vector<float> q = random_floats(size_t(rows * width) + slack),
                       k = random_floats(size_t(rows * kv_width) + slack),
                       v = random_floats(size_t(rows * kv_width) + slack), out(size_t(rows * width) + slack);
    const std::vector<float> norm(size_t(head_dim), 1.0f), inv_freq(size_t(head_dim / 2), 0.01f);
    std::vector<float> table(size_t(rows * head_dim) + slack);
    LayerCache cache{nullptr, nullptr, 0, 0, kv_heads, head_dim, key_bits, value_bits};
    const EXL_ISA::PageLayout layout = EXL_ISA::page_layout(cache);
    cache.key_page_bytes = kv_heads * layout.key_head, cache.value_page_bytes = kv_heads * layout.value_head;
    const Memory keys{size_t(pages * cache.key_page_bytes)};
    const Memory values{size_t(pages * cache.value_page_bytes)};
    cache.keys = keys.data(), cache.values = values.data();
    const int32_t positions[] = {253, 254, 255, 256, 257, 0, 1, 2, 3, 4}, sequences[] = {0, 0, 0, 0, 0, 1, 1, 1, 1, 1};
    const int32_t page_table[] = {4, 1, 3, 0};
    int32_t faults[rows];
    std::fill(faults, faults + rows, -1);
    const RopeTableArgs rope{inv_freq.data(), head_dim, 1.0f, table.data()};
    const RopeArgs store{q.data(),    k.data(), v.data(), width,        kv_width, kv_width, heads, norm.data(),
                         norm.data(), 1e-6f,    1e-6f,    table.data(), head_dim, 0,        cache};
    std::vector<float> queries(q);
    if (cut) queries.resize(size_t(rows * width) - 1), queries.shrink_to_fit();
    const AttentionArgs args{queries.data(),        out.data(), width, width, heads, 0.1f, window,
                             window ? 20.0f : 0.0f, cache};
    const Memory shared{size_t(EXL_ISA::attention_scratch(args, 2, team.count()))};
    const Run run{rows, nullptr, positions, sequences, page_table, 2, shared.data(), faults};
    on_team(team, [&](Worker& worker) {
        EXL_ISA::rope_table(rope, run, worker);
        worker.barrier();
        EXL_ISA::rope_and_store(store, run, worker);
        worker.barrier();
        EXL_ISA::attention(args, run, worker);
    });
    expect_finite(out.data(), size_t(rows * width), "attention");
}

void attend_all(Team& team, bool cut) {
    for (const auto& [key_bits, value_bits] :
         {std::pair{16, 16}, {8, 8}, {6, 6}, {4, 4}, {3, 5}, {2, 7}, {5, 2}, {7, 3}, {16, 4}, {4, 16}})
        for (int head_dim : {16, 64, 80})
            for (int window : {0, 3}) attend(key_bits, value_bits, head_dim, window, team, cut);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string broken = argc > 1 ? argv[1] : "";
    for (int workers : {1, 3}) {
        Team team(workers);
        multiply_all(team, broken == "linear");
        attend_all(team, broken == "attention");
    }
    std::puts("all is within bounds");
    return 0;
}
