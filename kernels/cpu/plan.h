// A recorded forward pass: operations over static buffers, replayed by one call on a team of threads.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "exl_cpu.h"
#include "memory.h"
#include "team.h"

namespace exl::cpu {

class Plan {
 public:
    Plan(std::shared_ptr<Team> team, const Kernels& kernels, int32_t max_rows, int32_t max_pages);

    // A new buffer of (max_rows, width) floats; its address stays valid as long as the plan.
    float* buffer(int64_t width);
    void add(const EmbedArgs& args);
    void add(const LinearArgs& args);
    void add(const RopeTableArgs& args);
    void add(const RopeArgs& args);
    void add(const AttentionArgs& args);
    // The end of the pass: runs on the rows asked for only.
    void add_logits(const LinearArgs& args);

    int32_t max_rows() const { return max_rows_; }
    int32_t max_pages() const { return max_pages_; }
    // Checks nothing: the caller has made sure that rows, pages and ids are in range.
    void run(const Run& run, const int32_t* logit_rows, int32_t num_logit_rows, float* logits);

 private:
    using Operation = std::variant<EmbedArgs, LinearArgs, RopeTableArgs, RopeArgs, AttentionArgs>;
    void reserve(int64_t bytes);
    void execute(const Run& run, const Run& last, const LinearArgs& logits, Worker& worker) const;

    std::shared_ptr<Team> team_;
    const Kernels& kernels_;
    int32_t max_rows_, max_pages_;
    std::vector<Operation> operations_;
    LinearArgs logits_{};
    std::vector<std::unique_ptr<Memory>> buffers_;
    int64_t shared_bytes_ = 0;
    std::unique_ptr<Memory> shared_;
};

}  // namespace exl::cpu
