#include "team.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace exl::cpu {

namespace {

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#endif
}

// Spins until done() or until the time is up. The clock is read every 64 rounds only.
template <typename Done> bool spin(Done done, std::chrono::microseconds limit) {
    for (int i = 0; i < 64; ++i) {
        if (done()) return true;
        relax();
    }
    const auto end = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            relax();
        }
    }
    return false;
}

constexpr std::chrono::microseconds barrier_spin{50};  // stages of a decode step last 5 to 50 us
constexpr std::chrono::microseconds idle_spin{150};    // the host needs about this long between two decode steps

}  // namespace

int Worker::count() const { return team_.count_; }
void Worker::barrier() { team_.arrive_and_wait(); }

void Worker::begin_stage() {
    ++stage_;
    // The counter of the next stage was last used num_counters - 1 stages ago; barriers lie between.
    if (id_ == 0) team_.counters_[(stage_ + 1) % Team::num_counters].value.store(0, std::memory_order_relaxed);
}

int64_t Worker::next(int64_t step) {
    return team_.counters_[stage_ % Team::num_counters].value.fetch_add(step, std::memory_order_relaxed);
}

uint8_t* Worker::scratch(size_t bytes) {
    if (bytes > capacity_) {
        capacity_ = bytes + bytes / 4;
        storage_ = std::make_unique<uint8_t[]>(capacity_ + 64);
        aligned_ = storage_.get() + (64 - reinterpret_cast<uintptr_t>(storage_.get()) % 64) % 64;
    }
    return aligned_;
}

Team::Team(int workers) : count_(std::max(1, workers)) {
    for (int id = 0; id < count_; ++id) workers_.push_back(std::make_unique<Worker>(*this, id));
    for (int id = 1; id < count_; ++id) threads_.emplace_back([this, id] { loop(id); });
}

Team::~Team() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Team::run(void (*body)(void*, Worker&), void* context) {
    body_ = body;
    context_ = context;
    generation_.fetch_add(1);
    if (idle_.load() > 0) generation_.notify_all();
    body(context, *workers_[0]);
    arrive_and_wait();
}

void Team::loop(int id) {
    uint32_t seen = 0;
    for (;;) {
        const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
        if (!spin(changed, idle_spin)) {
            idle_.fetch_add(1);
            generation_.wait(seen);
            idle_.fetch_sub(1);
        }
        seen = generation_.load();
        if (stop_.load()) return;
        body_(context_, *workers_[id]);
        arrive_and_wait();
    }
}

void Team::arrive_and_wait() {
    if (count_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1);
        if (sleeping_.load() > 0) phase_.notify_all();
        return;
    }
    const auto released = [&] { return phase_.load(std::memory_order_acquire) != phase; };
    if (spin(released, barrier_spin)) return;
    sleeping_.fetch_add(1);
    phase_.wait(phase);
    sleeping_.fetch_sub(1);
}

}  // namespace exl::cpu
