#include "emulator/faults.h"

#include <mutex>

#include "emulator/device.h"
#include "emulator/sanitizer.h"

namespace exl::emulator {

namespace {

#if !defined(EXL_ASAN) && !defined(EXL_TSAN)

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr size_t stack_bytes = 64 * 1024;

std::mutex lock;
int users = 0;
struct sigaction previous[3];

struct sigaction& previous_of(int signal) { return previous[signal == SIGSEGV ? 0 : signal == SIGBUS ? 1 : 2]; }

// Leaves the signal handler for good: the failing thread never goes on, and the flow that it leaves for has its own stack.
void handle(int signal, siginfo_t* info, void*) {
    if (!position) {
        sigaction(signal, &previous_of(signal), nullptr);  // not a kernel: the instruction runs again, for its owner
        return;
    }
    if (signal == SIGFPE) fail("an integer division by zero");
    fail("an access to memory out of reach (address %p), or of 16 bytes at an address that is not a multiple of 16",
         info->si_addr);
}

void install() {
    const std::lock_guard<std::mutex> hold(lock);
    if (users++) return;
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (const int signal : signals) sigaction(signal, &action, &previous_of(signal));
}

void uninstall() {
    const std::lock_guard<std::mutex> hold(lock);
    if (--users) return;
    for (const int signal : signals) sigaction(signal, &previous_of(signal), nullptr);
}

#endif

}  // namespace

#if defined(EXL_ASAN) || defined(EXL_TSAN)
FaultHandler::FaultHandler() = default;
FaultHandler::~FaultHandler() = default;
#else
FaultHandler::FaultHandler() : stack_(new char[stack_bytes]) {
    stack_t stack{};
    stack.ss_sp = stack_.get();
    stack.ss_size = stack_bytes;
    sigaltstack(&stack, &before_);
    install();
}

FaultHandler::~FaultHandler() {
    uninstall();
    sigaltstack(&before_, nullptr);
}
#endif

}  // namespace exl::emulator
