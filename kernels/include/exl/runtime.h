// The C ABI of the GPU library's runtime: devices, memory, streams, events, graphs. The CUDA, HIP and emulator libraries
// export the same functions; each numbers its own devices from 0.
//
// A stream belongs to the device it was made on. Work on one stream runs in order; work on two runs in any order unless
// an event orders it. Every function returns a status, and exl_last_error() of the same thread explains a failure. A
// failure inside a kernel may show at any later call on its device.
#pragma once

#include "exl/status.h"

typedef void* exl_stream;
typedef void* exl_event;
typedef void* exl_graph;

typedef struct exl_device_info {
    char name[128];  // "NVIDIA H200"
    char arch[32];  // "sm_90", "gfx942", "emu"
    int64_t total_bytes;
    int64_t free_bytes;  // now, other processes counted
    int32_t processors;  // SMs or compute units
    int32_t warp_size;  // lanes that the hardware runs in step, 32 or 64
    int32_t shared_bytes;  // most shared memory of one block
    int32_t compiled;  // 1 if this library holds code that the device can run
} exl_device_info;

// "cuda", "hip" or "emu".
EXL_API const char* exl_backend(void);

// How many devices there are. exl_no_driver, and 0, where no usable driver is installed.
EXL_API exl_status exl_device_count(int32_t* count);
EXL_API exl_status exl_device_describe(int32_t device, exl_device_info* info);
// Waits for all work of a device.
EXL_API exl_status exl_device_synchronize(int32_t device);

// Device memory, aligned to 256 bytes, with arbitrary content. exl_out_of_memory says how much was free.
EXL_API exl_status exl_memory_allocate(int32_t device, int64_t bytes, void** memory);
EXL_API exl_status exl_memory_free(int32_t device, void* memory);
// Host memory that copies to and from devices run from at full speed and without stopping the host.
EXL_API exl_status exl_memory_allocate_host(int64_t bytes, void** memory);
EXL_API exl_status exl_memory_free_host(void* memory);
// Between host and device or two places of one device, either direction; host memory must stay as it is until the
// stream has passed the copy. Both return before the work is done.
EXL_API exl_status exl_memory_copy(void* to, const void* from, int64_t bytes, exl_stream stream);
EXL_API exl_status exl_memory_set(void* memory, int32_t byte, int64_t bytes, exl_stream stream);

EXL_API exl_status exl_stream_create(int32_t device, exl_stream* stream);
EXL_API exl_status exl_stream_destroy(exl_stream stream);
EXL_API exl_status exl_stream_synchronize(exl_stream stream);
// What comes later on the stream waits for the event as it was recorded last.
EXL_API exl_status exl_stream_wait(exl_stream stream, exl_event event);

EXL_API exl_status exl_event_create(int32_t device, exl_event* event);
EXL_API exl_status exl_event_destroy(exl_event event);
EXL_API exl_status exl_event_record(exl_event event, exl_stream stream);
EXL_API exl_status exl_event_synchronize(exl_event event);
// Milliseconds between two recorded and passed events.
EXL_API exl_status exl_event_elapsed(exl_event start, exl_event end, float* milliseconds);

// Between begin and end, work on the stream is recorded, not run; allocating and synchronizing are not permitted.
EXL_API exl_status exl_graph_begin(exl_stream stream);
EXL_API exl_status exl_graph_end(exl_stream stream, exl_graph* graph);
EXL_API exl_status exl_graph_launch(exl_graph graph, exl_stream stream);
EXL_API exl_status exl_graph_destroy(exl_graph graph);
