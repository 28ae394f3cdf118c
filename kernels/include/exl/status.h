// How a call into the library says that it could not be done: a status, and for this thread a text and an argument.
//
// A launcher checks its arguments before it launches anything:
//     EXL_REQUIRE(args->k % 32 == 0, exl_bad_shape, "k", "found %d, expected a multiple of 32", args->k);
//     EXL_REQUIRE_ALIGNED(args->x, 16);
//     return EXL_LAUNCH(gemv, grid, block, 0, stream, *args);
#pragma once

#include <stdint.h>

#ifdef _WIN32
#define EXL_API extern "C" __declspec(dllexport)
#else
#define EXL_API extern "C" __attribute__((visibility("default")))
#endif

typedef enum exl_status {
    exl_ok = 0,
    exl_bad_argument = 1,        // a value that cannot mean anything: null pointer, negative count, unknown option
    exl_bad_shape = 2,           // a size that the kernel does not support
    exl_bad_dtype = 3,           // a type or a number of bits that the kernel does not support
    exl_misaligned = 4,          // a pointer or a stride
    exl_unsupported_device = 5,  // the device lacks what the operation needs, or the library has no code for it
    exl_out_of_memory = 6,
    exl_device_lost = 7,         // nothing on this device can succeed any more
    exl_launch_failed = 8,       // the device refused the launch or the kernel failed; emulator: a defect was found
    exl_no_driver = 9,           // there is no usable driver on this machine
    exl_not_permitted = 10,      // the call is not allowed now, for instance a synchronization during graph capture
} exl_status;

// The name of a status as it stands above, without its prefix; "unknown" for other numbers.
EXL_API const char* exl_status_name(int32_t status);
// What the last failed call of this thread found, expected and suggests; "" if none failed. Valid until the next failure.
EXL_API const char* exl_last_error(void);
// The argument that the last failed call of this thread complained about, "" if it was none in particular.
EXL_API const char* exl_last_error_argument(void);

namespace exl {

// Records a failure for exl_last_error and returns its status; `format` is printf's.
exl_status refuse(exl_status status, const char* argument, const char* format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

}  // namespace exl

#define EXL_REQUIRE(condition, status, argument, ...)                              \
    do {                                                                           \
        if (!(condition)) return ::exl::refuse((status), (argument), __VA_ARGS__); \
    } while (0)

// A pointer argument named as it is written, `args->` included: not null and a multiple of `bytes`.
#define EXL_REQUIRE_ALIGNED(pointer, bytes)                                                                     \
    do {                                                                                                        \
        EXL_REQUIRE((pointer) != nullptr, exl_bad_argument, #pointer, "found a null pointer");                  \
        EXL_REQUIRE(reinterpret_cast<uintptr_t>(pointer) % (bytes) == 0, exl_misaligned, #pointer,              \
                    "found address %p, expected a multiple of %d bytes", (const void*)(pointer), (int)(bytes)); \
    } while (0)

// Passes a failure on.
#define EXL_TRY(call)                                              \
    do {                                                           \
        if (const exl_status exl_tried = (call)) return exl_tried; \
    } while (0)
