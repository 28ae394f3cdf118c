// A team of threads that runs one function together (SPMD), with a barrier and a shared work counter.
//
// Waiting spins for a bounded time and then sleeps on a futex (std::atomic::wait), so that a machine with
// fewer free cores than workers loses little.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace exl::cpu {

class Team;

// One member of a team during a run.
class Worker {
 public:
    Worker(Team& team, int id) : team_(team), id_(id) {}
    int id() const { return id_; }
    int count() const;
    // Everybody has to arrive before anybody goes on.
    void barrier();
    // Starts a stage of dynamically shared work; all workers must call it, with a barrier between two stages.
    void begin_stage();
    // The next item of this stage, or a number >= num_items when none is left.
    int64_t next(int64_t step = 1);
    // Scratch of this worker alone, 64-byte aligned; grows as asked, contents undefined.
    uint8_t* scratch(size_t bytes);
    int tile_rows = 0;  // AMX: rows that the tile registers are configured for, 0 = not configured

 private:
    Team& team_;
    int id_;
    uint64_t stage_ = 0;
    std::unique_ptr<uint8_t[]> storage_;
    uint8_t* aligned_ = nullptr;
    size_t capacity_ = 0;
    friend class Team;
};

class Team {
 public:
    explicit Team(int workers);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;
    int count() const { return count_; }

    // Calls body(context, worker) on every worker and returns when all are done. Worker 0 is the calling thread.
    void run(void (*body)(void*, Worker&), void* context);

 private:
    static constexpr int num_counters = 4;
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };
    void loop(int id);
    void arrive_and_wait();

    int count_;
    std::vector<std::unique_ptr<Worker>> workers_;
    std::vector<std::thread> threads_;
    Counter counters_[num_counters];
    alignas(64) std::atomic<uint32_t> generation_{0};  // of jobs
    alignas(64) std::atomic<int32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};       // of barriers
    alignas(64) std::atomic<int32_t> sleeping_{0};     // workers asleep in a barrier
    alignas(64) std::atomic<int32_t> idle_{0};         // workers asleep between jobs
    std::atomic<bool> stop_{false};
    void (*body_)(void*, Worker&) = nullptr;
    void* context_ = nullptr;
    friend class Worker;
};

}  // namespace exl::cpu
