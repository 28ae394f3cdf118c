// Which sanitizer this is built with, and the words of it that the emulator needs.
//
// Under ThreadSanitizer every CUDA thread is a TSan fiber. Orders that the hardware gives (a barrier, __syncwarp, the
// start and the end of a launch) are told to it by acquire and release; everything else that the emulator does for its
// own book-keeping happens inside `Unseen`, so that it neither hides a race of the kernel nor reports one of its own.
#pragma once

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EXL_TSAN 1
#endif
#if __has_feature(address_sanitizer)
#define EXL_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define EXL_TSAN 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EXL_ASAN 1
#endif

#if defined(EXL_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(EXL_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace exl::emulator {

#if defined(EXL_TSAN)
inline void acquire(void* address) { __tsan_acquire(address); }
inline void release(void* address) { __tsan_release(address); }

struct Unseen {
    Unseen() {
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
    }
    ~Unseen() {
        AnnotateIgnoreWritesEnd("", 0);
        AnnotateIgnoreReadsEnd("", 0);
    }
    Unseen(const Unseen&) = delete;
};
#else
inline void acquire(void*) {}
inline void release(void*) {}
struct Unseen {
    Unseen() {}
    ~Unseen() {}
    Unseen(const Unseen&) = delete;
};
#endif

}  // namespace exl::emulator
