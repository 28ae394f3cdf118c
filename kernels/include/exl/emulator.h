// What only the emulator's library exports: its invented devices, the order of threads, injected faults.
#pragma once

#include "exl/runtime.h"

// Replaces the devices: "2x512MiB", or a list such as "512MiB,1GiB" (KiB, MiB, GiB); their names are invented. At
// the start there is one of 1 GiB. exl_bad_argument when the text is not of this form, exl_not_permitted while memory,
// streams or events of the old devices exist.
EXL_API exl_status exl_emulator_devices(const char* description);

typedef struct exl_emulator_options {
    int32_t order;     // of threads and blocks: 0 forward, 1 reverse, 2 random
    uint64_t seed;     // of the random order
    int32_t workers;   // OS threads that run blocks; 0: one for each processor
    int32_t deferred;  // 1: work on a stream runs when something waits for it, so that a missing wait shows
} exl_emulator_options;

// For all launches from now on, in this process.
EXL_API exl_status exl_emulator_configure(const exl_emulator_options* options);

// After `operations` more copies, sets and launches the device answers everything with exl_device_lost, until
// exl_emulator_devices is called. 0: at once.
EXL_API exl_status exl_emulator_lose_device(int32_t device, int64_t operations);
// The allocation after `allocations` more of them on the device fails with exl_out_of_memory, once.
EXL_API exl_status exl_emulator_fail_allocation(int32_t device, int64_t allocations);
