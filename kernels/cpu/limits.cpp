#include "limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "memory.h"

namespace exl::cpu {

namespace {

struct Context {
    const Kernels& kernels;
    const uint8_t* data;
    int64_t bytes;
    std::atomic<uint32_t> sink{0};
};

void read_share(void* opaque, Worker& worker) {
    Context& c = *static_cast<Context*>(opaque);
    constexpr int64_t chunk = 1 << 18;
    uint32_t sum = 0;
    worker.begin_stage();
    for (int64_t start; (start = worker.next(chunk)) < c.bytes;)
        sum += uint32_t(c.kernels.read_all(c.data + start, chunk));
    c.sink += sum;
}

}  // namespace

double read_bandwidth(Team& team, const Kernels& kernels, size_t bytes, int repeats) {
    Memory memory(bytes / (1 << 18) * (1 << 18));
    std::memset(memory.data(), 1, memory.size());
    Context context{kernels, memory.data(), int64_t(memory.size())};
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        team.run(read_share, &context);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, double(memory.size()) / seconds.count());
    }
    return best;
}

double int8_peak(Team& team, const Kernels& kernels) {
    struct Sum {
        const Kernels& kernels;
        std::atomic<double> total{0};
    } sum{kernels};
    team.run(
        [](void* opaque, Worker& worker) {
            Sum& s = *static_cast<Sum*>(opaque);
            worker.tile_rows = 0;
            s.total += s.kernels.int8_peak(worker);
        },
        &sum);
    return sum.total;
}

}  // namespace exl::cpu
