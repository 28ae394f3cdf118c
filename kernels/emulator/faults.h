// A kernel that touches memory out of reach fails its launch instead of ending the process.
#pragma once

#include <signal.h>

#include <memory>

namespace exl::emulator {

// While it lives, SIGSEGV, SIGBUS and SIGFPE of a kernel on this OS thread become a failure of the running block; those
// of other code go to whoever had them before. Sanitizer builds leave the signals to the sanitizer.
class FaultHandler {
 public:
    FaultHandler();
    ~FaultHandler();
    FaultHandler(const FaultHandler&) = delete;

 private:
    std::unique_ptr<char[]> stack_;
    stack_t before_{};
};

}  // namespace exl::emulator
