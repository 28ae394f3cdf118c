// Chooses the best level that this processor and operating system support.
#include <cstring>

#include "exl_cpu.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace generic {
extern const exl::cpu::Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const exl::cpu::Kernels kernels;
}
namespace avx512 {
extern const exl::cpu::Kernels kernels;
}
namespace avx512_bf16 {
extern const exl::cpu::Kernels kernels;
}
namespace amx {
extern const exl::cpu::Kernels kernels;
}
#endif

namespace exl::cpu {

namespace {

struct Level {
    const Kernels* kernels;
    bool (*supported)();
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2");
}
// Tile registers are enabled per process: Linux grants them on request.
bool has_amx() {
    constexpr long request_permission = 0x1023, tile_data = 18;
#if defined(__linux__)
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const bool present = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);  // AMX-BF16, AMX-TILE, AMX-INT8
    return present && has_avx512_bf16() && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

const Level levels[] = {
    {&::generic::kernels, always},
#if defined(__x86_64__)
    {&::avx2::kernels, has_avx2},  {&::avx512::kernels, has_avx512}, {&::avx512_bf16::kernels, has_avx512_bf16},
    {&::amx::kernels, has_amx},
#endif
};

}  // namespace

const Kernels* kernels_for(const char* level) {
    for (const Level& l : levels)
        if (std::strcmp(l.kernels->name, level) == 0) return l.supported() ? l.kernels : nullptr;
    return nullptr;
}

const char* best_level() {
    const char* best = levels[0].kernels->name;
    for (const Level& l : levels)
        if (l.supported()) best = l.kernels->name;
    return best;
}

}  // namespace exl::cpu
