// A flow of control with a stack of its own, to switch to and away from. The emulator gives one to each CUDA thread.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(EXL_EMU_UCONTEXT)
#define EXL_EMU_UCONTEXT 1
#endif
#if defined(EXL_EMU_UCONTEXT)
#include <ucontext.h>
#endif

namespace exl::emulator {

class Context {
 public:
    // The flow of the OS thread that makes it; needs no stack.
    Context() = default;
    Context(const Context&) = delete;
    ~Context();

    // Makes it a flow that starts in `entry`, on a fresh or a used stack of its own. `entry` never returns.
    void start(void (*entry)());
    // Leaves the running flow `from` for `to`. `ends`: `from` is never switched to again before another start().
    static void change(Context& from, Context& to, bool ends = false);
    // First call in `entry`: completes the change that led here, `from` being the flow that was left.
    static void arrived(Context& from);
    // Says that the flow was left for good in the middle of something.
    void abandon();

    static constexpr size_t stack_bytes = 128 * 1024;

 private:
    void map_stack();
    void remember_tsan();

#if defined(EXL_EMU_UCONTEXT)
    ucontext_t machine_{};
#else
    void* stack_pointer_ = nullptr;
#endif
    char* stack_ = nullptr;
    // For AddressSanitizer: the frames that it keeps elsewhere, and the bounds of the stack.
    void* fake_stack_ = nullptr;
    const void* bottom_ = nullptr;
    size_t size_ = 0;
    void* tsan_ = nullptr;
};

}  // namespace exl::emulator
