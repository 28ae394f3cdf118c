#include "limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "memory.h"

namespace exl::cpu {

namespace {

struct Context {
    uint8_t* data;
    size_t bytes;
    std::atomic<uint64_t> sink{0};
};

using Vector = uint64_t __attribute__((vector_size(64)));

void read_all(void* opaque, Worker& worker) {
    Context& c = *static_cast<Context*>(opaque);
    constexpr int64_t chunk = 1 << 18;
    Vector sums[4] = {};
    worker.begin_stage();
    for (int64_t start; (start = worker.next(chunk)) < int64_t(c.bytes);)
        for (int64_t i = start; i < std::min<int64_t>(start + chunk, int64_t(c.bytes)); i += 256)
            for (int j = 0; j < 4; ++j) sums[j] ^= *reinterpret_cast<const Vector*>(c.data + i + 64 * j);
    const Vector sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    c.sink += sum[0] ^ sum[7];
}

}  // namespace

double read_bandwidth(Team& team, size_t bytes, int repeats) {
    Memory memory(bytes / (1 << 18) * (1 << 18));
    std::memset(memory.data(), 1, memory.size());
    Context context{memory.data(), memory.size()};
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        team.run(read_all, &context);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, double(memory.size()) / seconds.count());
    }
    return best;
}

}  // namespace exl::cpu
