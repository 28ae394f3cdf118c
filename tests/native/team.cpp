// A team of threads under ThreadSanitizer: data that one stage writes and another reads without any lock but the barrier.
//
//   team [unguarded]     exits with 0 when every sum is right; "unguarded" leaves one barrier out, which is a race
#include "cpu/team.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

using namespace exl::cpu;

namespace {

struct Job {
    std::vector<int64_t> squares, sums;
    bool guarded;
};

void work(void* opaque, Worker& worker) {
    Job& job = *static_cast<Job*>(opaque);
    const int64_t n = int64_t(job.squares.size());
    for (int round = 0; round < 8; ++round) {  // more stages than the team has counters
        worker.begin_stage();
        for (int64_t i; (i = worker.next(3)) < n;)
            for (int64_t j = i; j < i + 3 && j < n; ++j) job.squares[size_t(j)] = j * j + round;
        if (job.guarded) worker.barrier();
        int64_t* scratch = reinterpret_cast<int64_t*>(worker.scratch(64));
        scratch[0] = 0;
        for (int64_t value : job.squares) scratch[0] += value;
        job.sums[size_t(worker.id())] = scratch[0];
        worker.barrier();
    }
}

bool run(int workers, int runs, bool guarded, std::chrono::microseconds pause) {
    Team team(workers);
    Job job{std::vector<int64_t>(100), std::vector<int64_t>(size_t(workers)), guarded};
    for (int i = 0; i < runs; ++i) {
        team.run(work, &job);
        for (int64_t sum : job.sums)
            if (sum != 328350 + 100 * 7) return false;
        std::this_thread::sleep_for(pause);  // long enough and the workers fall asleep
    }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const bool guarded = argc < 2 || std::strcmp(argv[1], "unguarded") != 0;
    bool right = true;
    for (int workers : {1, 2, 3, 8}) {
        right &= run(workers, 60, guarded, std::chrono::microseconds(0));
        right &= run(workers, 10, guarded, std::chrono::microseconds(2000));
    }
    std::puts(right ? "every sum is right" : "a sum is wrong");
    return right ? 0 : 1;
}
