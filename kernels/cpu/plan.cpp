#include "plan.h"

#include <algorithm>

namespace exl::cpu {

Plan::Plan(std::shared_ptr<Team> team, const Kernels& kernels, int32_t max_rows, int32_t max_pages)
    : team_(std::move(team)), kernels_(kernels), max_rows_(max_rows), max_pages_(max_pages) {}

float* Plan::buffer(int64_t width) {
    // Vector code reads and writes whole groups of 16, so a row of odd width may touch what follows it.
    buffers_.push_back(std::make_unique<Memory>((size_t(max_rows_) * size_t(width) + 64) * sizeof(float)));
    return reinterpret_cast<float*>(buffers_.back()->data());
}

void Plan::reserve(int64_t bytes) { shared_bytes_ = std::max(shared_bytes_, bytes); }

void Plan::add(const EmbedArgs& args) { operations_.emplace_back(args); }
void Plan::add(const RopeTableArgs& args) { operations_.emplace_back(args); }
void Plan::add(const RopeArgs& args) { operations_.emplace_back(args); }

void Plan::add(const LinearArgs& args) {
    reserve(kernels_.linear_scratch(args, max_rows_));
    operations_.emplace_back(args);
}

void Plan::add(const AttentionArgs& args) {
    reserve(kernels_.attention_scratch(args, max_pages_, team_->count()));
    operations_.emplace_back(args);
}

void Plan::add_logits(const LinearArgs& args) {
    reserve(kernels_.linear_scratch(args, max_rows_));
    logits_ = args;
}

void Plan::execute(const Run& run, const Run& last, const LinearArgs& logits, Worker& worker) const {
    worker.tile_rows = 0;  // whoever ran on this thread in between may have changed the tile registers
    for (const Operation& operation : operations_) {
        std::visit(
            [&](const auto& args) {
                using Args = std::decay_t<decltype(args)>;
                if constexpr (std::is_same_v<Args, EmbedArgs>)
                    kernels_.embed(args, run, worker);
                else if constexpr (std::is_same_v<Args, LinearArgs>)
                    kernels_.linear(args, run, worker);
                else if constexpr (std::is_same_v<Args, RopeTableArgs>)
                    kernels_.rope_table(args, run, worker);
                else if constexpr (std::is_same_v<Args, RopeArgs>)
                    kernels_.rope_and_store(args, run, worker);
                else
                    kernels_.attention(args, run, worker);
            },
            operation);
        worker.barrier();
    }
    if (logits.num_projections) kernels_.linear(logits, last, worker);
}

void Plan::run(const Run& run, const int32_t* logit_rows, int32_t num_logit_rows, float* logits) {
    if (!shared_ || shared_->size() < size_t(shared_bytes_)) shared_ = std::make_unique<Memory>(size_t(shared_bytes_));
    struct Context {
        const Plan& plan;
        Run run, last;
        LinearArgs logits;
    } context{*this, run, run, logits_};
    context.run.shared = context.last.shared = shared_->data();
    context.last.rows = num_logit_rows;
    context.logits.row_index = logit_rows;
    context.logits.projection[0].out = logits;
    if (num_logit_rows == 0) context.logits.num_projections = 0;
    team_->run(
        [](void* opaque, Worker& worker) {
            const Context& c = *static_cast<Context*>(opaque);
            c.plan.execute(c.run, c.last, c.logits, worker);
        },
        &context);
}

}  // namespace exl::cpu
