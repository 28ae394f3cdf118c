// The failure that a thread saw last.
#include "exl/status.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

namespace {

// Small on purpose: a library opened at run time has little room for thread-local data.
thread_local std::string last_text, last_argument;

const char* const names[] = {
    "ok",          "bad_argument",  "bad_shape", "bad_dtype",    "misaligned", "unsupported_device", "out_of_memory",
    "device_lost", "launch_failed", "no_driver", "not_permitted"};

}  // namespace

namespace exl {

exl_status refuse(exl_status status, const char* argument, const char* format, ...) {
    char found[2048];
    va_list values;
    va_start(values, format);
    std::vsnprintf(found, sizeof found, format, values);
    va_end(values);
    last_argument = std::strncmp(argument, "args->", 6) == 0 ? argument + 6 : argument;
    last_text = last_argument.empty() ? found : last_argument + ": " + found;
    return status;
}

}  // namespace exl

EXL_API const char* exl_status_name(int32_t status) {
    const int32_t count = static_cast<int32_t>(sizeof names / sizeof *names);
    return status >= 0 && status < count ? names[status] : "unknown";
}

EXL_API const char* exl_last_error() { return last_text.c_str(); }

EXL_API const char* exl_last_error_argument() { return last_argument.c_str(); }
