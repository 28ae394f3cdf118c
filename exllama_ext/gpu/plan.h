// A recorded forward pass on one GPU: launches over static buffers, replayed for any number of rows.
//
// Small batches run as one graph per bucket of rows; token ids, positions and page tables lie in device memory, so a
// graph serves every step of its bucket. Rows that fill a bucket up have position -1 and do nothing.
//
// The residual stream is fp32, what runs between kernels fp16: a buffer takes its type from the operation that first
// writes it.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <tuple>
#include <variant>
#include <vector>

#include "library.h"

namespace exl::gpu {

// A matrix (rows, cols) in the layout of its family's kernels.
struct Weight {
    std::shared_ptr<Memory> memory;
    int32_t rows, cols;
    std::variant<exl_group_affine, exl_dense, exl_trellis> matrix;
    const void* suh = nullptr;  // of a trellis
};

struct Projection {
    const Weight* weight;
    int out;
    std::shared_ptr<Memory> bias;  // (rows,) fp32 or null
    bool add;
};

struct Norm {
    std::shared_ptr<Memory> weight;  // null: none
    float eps;
};

// What one run brings; every array belongs to the caller.
struct Inputs {
    std::span<const int32_t> token_ids, positions, sequences, logit_rows;
    std::span<const int32_t> page_table;  // (S, pages_per_sequence)
    int32_t pages_per_sequence;
};

class Plan {
 public:
    Plan(std::shared_ptr<const Library> library, int32_t device, int32_t max_rows);
    ~Plan();

    int buffer(int64_t width);
    void embed(const Weight& table, int out, float multiplier);
    void linear(int x, std::vector<Projection> projections, const Norm& norm, exl_activation activation);
    int rope_table(std::shared_ptr<Memory> inv_freq, int32_t rotary_dim, float scale);
    void rope_and_store(int q, int k, int v, const exl_kv_cache& cache, int table, const Norm& q_norm,
                        const Norm& k_norm);
    void attention(int q, int out, const exl_kv_cache& cache, float scale, int32_t window, float softcap);
    void logits(int x, const Weight& head, const Norm& norm, float softcap);

    // out: (logit_rows, vocab). faults: per row the number of the rope_and_store that met a value its cache cannot
    // hold, or -1. Throws Failure.
    void run(const Inputs& inputs, float* out, int32_t* faults);

    int64_t vocab() const { return vocab_; }
    int32_t max_rows() const { return max_rows_; }
    int64_t width(int buffer) const { return buffers_.at(size_t(buffer)).width; }

 private:
    struct Buffer {
        int64_t width, stride;  // in elements
        std::optional<exl_dtype> dtype;
        std::unique_ptr<Memory> memory;
        void* data() const { return memory ? memory->data() : nullptr; }
    };
    struct Sizes {
        int64_t partial_bytes = 0, num_tickets = 0;
    };
    // One pass through the steps: to launch them, or to learn what scratch they need.
    struct Launch {
        int32_t rows, logit_rows, pages_per_sequence;
        const int32_t *token_ids, *positions, *sequences, *logit_index, *page_table;
        int32_t* faults;
        float* logits;
        Sizes* measure;
    };
    using Step = std::function<void(const Launch&)>;
    using GraphKey = std::tuple<int32_t, int32_t>;

    Buffer& written(int index, exl_dtype dtype);
    const Buffer& read(int index, exl_dtype dtype) const;
    // Rows of x that go into matrices: all of the launch, or those that `index` names.
    struct Input {
        const Buffer& x;
        const Norm& norm;
        const int32_t* index;
        int32_t rows;
    };
    void admit(const Norm& norm, const Buffer& input, std::span<const Projection> projections);
    void normalize(const Input& input, std::span<const void* const> suh);
    const void* prepare(const Input& input, std::span<const Projection> projections);
    void products(const Launch& launch, const Input& input, std::span<const Projection> projections,
                  std::span<const exl_output> outputs, exl_activation activation);
    exl_output output(const Projection& projection, exl_dtype dtype);
    exl_rows rows_of(const Launch& launch) const;
    exl_workspace workspace() const;

    void reserve();
    void ensure(int32_t logit_rows, const Inputs& inputs);
    Launch upload(const Inputs& inputs, int32_t rows, int32_t logit_rows);
    void launch(const Launch& launch);
    exl_graph graph_of(const Launch& launch);
    void drop_graphs();

    std::shared_ptr<const Library> library_;
    int32_t device_, max_rows_, processors_;
    Stream stream_;
    std::vector<Buffer> buffers_;
    std::vector<Step> steps_;
    std::vector<std::shared_ptr<Memory>> kept_;
    int64_t widest_norm_ = 0, widest_rotation_ = 0, vocab_ = 0;
    int32_t num_caches_ = 0;
    std::unique_ptr<Memory> normed_, rotated_, partials_, tickets_, inputs_, logits_, rotated_q_;
    int64_t rotated_width_ = 0;
    std::unique_ptr<PinnedMemory> pinned_inputs_, pinned_outputs_;
    int32_t table_width_ = 0, logits_capacity_ = 0;
    bool reserved_ = false;
    std::map<GraphKey, exl_graph> graphs_;
    std::mutex mutex_;
};

}  // namespace exl::gpu
