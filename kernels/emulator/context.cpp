#include "emulator/context.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "emulator/sanitizer.h"

#if !defined(EXL_EMU_UCONTEXT)
// Saves the registers that a call preserves (System V ABI, x86-64) on this stack, and continues on the other.
extern "C" __attribute__((visibility("hidden"))) void exl_change_stack(void** save, void* to);
asm(R"(
.text
.globl exl_change_stack
.hidden exl_change_stack
.type exl_change_stack,@function
exl_change_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size exl_change_stack, .-exl_change_stack
)");
#endif

namespace exl::emulator {

namespace {

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

Context::~Context() {
#if defined(EXL_TSAN)
    if (stack_ && tsan_) __tsan_destroy_fiber(tsan_);
#endif
    if (stack_) munmap(stack_ - page_bytes(), stack_bytes + page_bytes());
}

// A page below the stack stays out of reach, so that a kernel with too large local arrays stops there.
void Context::map_stack() {
    const size_t guard = page_bytes();
    void* memory =
        mmap(nullptr, stack_bytes + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard, PROT_NONE);
    stack_ = static_cast<char*>(memory) + guard;
    bottom_ = stack_;
    size_ = stack_bytes;
}

void Context::start(void (*entry)()) {
    if (!stack_) map_stack();
#if defined(EXL_ASAN)
    __asan_unpoison_memory_region(stack_, stack_bytes);
#endif
    fake_stack_ = nullptr;
#if defined(EXL_TSAN)
    if (!tsan_) tsan_ = __tsan_create_fiber(0);
#endif
#if defined(EXL_EMU_UCONTEXT)
    getcontext(&machine_);
    machine_.uc_stack.ss_sp = stack_;
    machine_.uc_stack.ss_size = stack_bytes;
    machine_.uc_link = nullptr;
    makecontext(&machine_, entry, 0);
#else
    constexpr int saved_registers = 6;
    void** top = reinterpret_cast<void**>(stack_ + stack_bytes - 64);
    *--top = nullptr;  // where a return address would stand: entry sees an aligned stack
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < saved_registers; i++) *--top = nullptr;
    stack_pointer_ = top;
#endif
}

void Context::change(Context& from, Context& to, bool ends) {
    (void)ends;
#if defined(EXL_ASAN)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
#if defined(EXL_TSAN)
    from.remember_tsan();
    constexpr unsigned no_order = 1;
    __tsan_switch_to_fiber(to.tsan_, no_order);
#endif
#if defined(EXL_EMU_UCONTEXT)
    swapcontext(&from.machine_, &to.machine_);
#else
    exl_change_stack(&from.stack_pointer_, to.stack_pointer_);
#endif
#if defined(EXL_ASAN)
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Context::remember_tsan() {
#if defined(EXL_TSAN)
    if (!stack_) tsan_ = __tsan_get_current_fiber();
#endif
}

void Context::arrived(Context& from) {
    (void)from;
#if defined(EXL_ASAN)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!from.stack_) from.bottom_ = bottom, from.size_ = size;
#endif
}

void Context::abandon() {
#if defined(EXL_TSAN)
    // Its record of calls is out of step for good.
    if (tsan_) __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
#endif
}

}  // namespace exl::emulator
