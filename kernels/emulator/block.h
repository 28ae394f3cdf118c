// One CUDA block: its threads, run one at a time by one OS thread, and what they share.
//
// A thread runs until it meets a barrier or a collective that others have not reached; then the next thread that can go
// on runs. Whatever order the threads are taken in, a correct kernel gives the same result.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator/async.h"
#include "emulator/context.h"
#include "emulator/device.h"

namespace exl::emulator {

enum class Order : int32_t { forward = 0, reverse = 1, random = 2 };

struct Limits {
    size_t static_shared_bytes = 48 * 1024;
    size_t shared_bytes = warp_size_of_build == 64 ? 64 * 1024 : 227 * 1024;
    uint32_t threads = 1024;
};

// Where a thread waits.
struct Place {
    const char* name = "";
    const char* file = nullptr;
    int line = 0;
    bool operator==(const Place& other) const;
    std::string text() const;
};

struct Thread {
    Context context;
    Position position{};
    int number = 0;
    bool done = false;
    const uint32_t* waits_for = nullptr;  // it may go on when this generation is no longer `seen`
    uint32_t seen = 0;
    Place place;
    AsyncCopies copies;
};

// Lanes that meet: a group of 32, or a wave.
struct Meeting {
    uint64_t members = 0, arrived = 0, exited = 0;
    uint32_t generation = 0;
    const char* name = "";
    void* token = nullptr;  // what ThreadSanitizer orders by
    alignas(16) unsigned char deposits[2][group_lanes][slot_bytes];
};

class Block {
 public:
    Block(const Launch& launch, const Limits& limits, Order order, uint64_t seed);
    ~Block();

    // Runs the block to its end; false: it failed, and failure() says how. Nothing can run after that.
    bool run(uint3 index);
    const std::string& failure() const { return failure_; }

    int barrier(int predicate, const Place& place);
    Deposits rendezvous(const char* name, const void* deposit, int bytes, bool memory_order, Finish finish);
    void converge(const char* name);
    void* shared(const void* key, size_t bytes);
    void* dynamic_shared() { return dynamic_; }
    Thread& thread() { return *current_; }
    [[noreturn]] void fail(const char* format, va_list values);

 private:
    struct SharedArray {
        const void* key;
        void* memory;
    };
    void describe_failure(const char* format, va_list values);
    void prepare(uint3 index);
    void make_meetings();
    void clean_up();
    void order_threads(uint64_t block_number);
    Thread* next_thread();
    void meet(Meeting& meeting, uint64_t bit, const char* name, bool memory_order);
    void wait(const uint32_t& generation, uint32_t seen, const Place& place);
    void finish_barrier();
    void run_thread();
    static void thread_entry();
    std::string waiting_threads() const;

    const Launch& launch_;
    const Limits& limits_;
    const Order order_;
    const uint64_t seed_;
    const int size_;
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Thread*> ring_;
    std::vector<Meeting> groups_, waves_;
    std::unique_ptr<char[]> tokens_;
    Context host_;
    Context* left_ = nullptr;  // the flow that was left last
    Thread* current_ = nullptr;
    int cursor_ = -1, live_ = 0;

    struct Barrier {
        uint32_t generation = 0;
        int arrived = 0, predicates = 0, results[2] = {};
        Place place;
    } barrier_;
    void* barrier_token_ = nullptr;

    std::vector<SharedArray> arrays_;
    void* dynamic_ = nullptr;
    size_t static_bytes_ = 0;
    std::string failure_;
};

}  // namespace exl::emulator
