// The C ABI of exl/runtime.h on CUDA and HIP, whose runtimes differ in a prefix. EXL_GPU(Malloc) is cudaMalloc or hipMalloc.
#include "exl/runtime.h"

#include "exl/portability.h"

#include <cstdio>
#include <cstring>

namespace {

using Native = exl_native_stream;

Native native(exl_stream stream) { return static_cast<Native>(stream); }
EXL_GPU(Event_t) native_event(exl_event event) { return static_cast<EXL_GPU(Event_t)>(event); }

#if defined(EXL_HIP)
const char* const backend = "hip";
using DeviceProperties = hipDeviceProp_t;
constexpr int no_device = hipErrorNoDevice, old_driver = hipErrorInsufficientDriver;
constexpr int no_memory = hipErrorOutOfMemory, no_code = hipErrorNoBinaryForGpu;
constexpr int capturing = hipErrorStreamCaptureUnsupported;
bool is_lost(int code) {
    return code == hipErrorIllegalAddress || code == hipErrorLaunchFailure || code == hipErrorUnknown;
}
#else
const char* const backend = "cuda";
using DeviceProperties = cudaDeviceProp;
constexpr int no_device = cudaErrorNoDevice, old_driver = cudaErrorInsufficientDriver;
constexpr int no_memory = cudaErrorMemoryAllocation, no_code = cudaErrorNoKernelImageForDevice;
constexpr int capturing = cudaErrorStreamCaptureUnsupported;
// After these the process cannot use the device any more.
bool is_lost(int code) {
    switch (code) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchFailure:
        case cudaErrorLaunchTimeout:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorAssert:
        case cudaErrorECCUncorrectable:
        case cudaErrorDevicesUnavailable: return true;
        default: return false;
    }
}
#endif

exl_status status_of(int code) {
    if (code == no_device || code == old_driver) return exl_no_driver;
    if (code == no_memory) return exl_out_of_memory;
    if (code == no_code) return exl_unsupported_device;
    if (code == capturing) return exl_not_permitted;
    return is_lost(code) ? exl_device_lost : exl_launch_failed;
}

// Makes a device current for this thread while it lives, and the one before again after that.
class Use {
 public:
    explicit Use(int device) {
        before_known_ = EXL_GPU(GetDevice)(&before_) == EXL_GPU(Success);
        code_ = EXL_GPU(SetDevice)(device);
    }
    ~Use() {
        if (before_known_) (void)EXL_GPU(SetDevice)(before_);
    }
    Use(const Use&) = delete;
    int code() const { return code_; }

 private:
    int before_ = 0, code_ = 0;
    bool before_known_ = false;
};

#define EXL_USE(device)    \
    const Use use(device); \
    EXL_TRY(exl::vendor_status(use.code(), "choosing the device"))
#define EXL_VENDOR(name, ...) EXL_TRY(exl::vendor_status(EXL_GPU(name)(__VA_ARGS__), #name))

}  // namespace

namespace exl {

exl_status vendor_status(int code, const char* what) {
    if (code == EXL_GPU(Success)) return exl_ok;
    (void)EXL_GPU(GetLastError)();  // an error that stays behind would be blamed on the next launch
    const auto error = static_cast<EXL_GPU(Error_t)>(code);
    return refuse(status_of(code), "", "%s: %s (%s, %d)", what, EXL_GPU(GetErrorString)(error),
                  EXL_GPU(GetErrorName)(error), code);
}

namespace {

// Runs nowhere: asking for its attributes tells whether the library holds code for the current device.
EXL_KERNEL(32) probe(int* out) { *out = static_cast<int>(threadIdx.x); }

bool has_code() {
    EXL_GPU(FuncAttributes) attributes;
    const bool found =
        EXL_GPU(FuncGetAttributes)(&attributes, reinterpret_cast<const void*>(probe)) == EXL_GPU(Success);
    if (!found) (void)EXL_GPU(GetLastError)();
    return found;
}

}  // namespace
}  // namespace exl

EXL_API const char* exl_backend() { return backend; }

EXL_API exl_status exl_device_count(int32_t* count) {
    int found = 0;
    *count = 0;
    EXL_VENDOR(GetDeviceCount, &found);
    *count = found;
    return exl_ok;
}

EXL_API exl_status exl_device_describe(int32_t device, exl_device_info* info) {
    EXL_USE(device);
    DeviceProperties properties;
    EXL_VENDOR(GetDeviceProperties, &properties, device);
    size_t free_bytes = 0, total_bytes = 0;
    EXL_VENDOR(MemGetInfo, &free_bytes, &total_bytes);
    *info = {};
    std::snprintf(info->name, sizeof info->name, "%s", properties.name);
#if defined(EXL_HIP)
    const int length = static_cast<int>(std::strcspn(properties.gcnArchName, ":"));  // "gfx90a:sramecc+:xnack-"
    std::snprintf(info->arch, sizeof info->arch, "%.*s", length, properties.gcnArchName);
    info->shared_bytes = static_cast<int32_t>(properties.sharedMemPerBlock);
#else
    std::snprintf(info->arch, sizeof info->arch, "sm_%d%d", properties.major, properties.minor);
    info->shared_bytes = static_cast<int32_t>(properties.sharedMemPerBlockOptin);
#endif
    info->total_bytes = static_cast<int64_t>(total_bytes);
    info->free_bytes = static_cast<int64_t>(free_bytes);
    info->processors = properties.multiProcessorCount;
    info->warp_size = properties.warpSize;
    info->compiled = exl::has_code();
    return exl_ok;
}

EXL_API exl_status exl_device_synchronize(int32_t device) {
    EXL_USE(device);
    EXL_VENDOR(DeviceSynchronize);
    return exl_ok;
}

EXL_API exl_status exl_memory_allocate(int32_t device, int64_t bytes, void** memory) {
    EXL_REQUIRE(memory && bytes > 0, exl_bad_argument, "bytes", "found %lld, expected at least 1",
                static_cast<long long>(bytes));
    EXL_USE(device);
    *memory = nullptr;
    const int code = EXL_GPU(Malloc)(memory, static_cast<size_t>(bytes));
    if (code != no_memory) return exl::vendor_status(code, "allocating device memory");
    (void)EXL_GPU(GetLastError)();
    size_t free_bytes = 0, total_bytes = 0;
    (void)EXL_GPU(MemGetInfo)(&free_bytes, &total_bytes);
    return exl::refuse(exl_out_of_memory, "", "%s:%d has %zu bytes free of %zu, %lld were asked for", backend, device,
                       free_bytes, total_bytes, static_cast<long long>(bytes));
}

EXL_API exl_status exl_memory_free(int32_t device, void* memory) {
    EXL_USE(device);
    EXL_VENDOR(Free, memory);
    return exl_ok;
}

EXL_API exl_status exl_memory_allocate_host(int64_t bytes, void** memory) {
    EXL_REQUIRE(memory && bytes > 0, exl_bad_argument, "bytes", "found %lld, expected at least 1",
                static_cast<long long>(bytes));
#if defined(EXL_HIP)
    EXL_VENDOR(HostMalloc, memory, static_cast<size_t>(bytes), 0);
#else
    EXL_VENDOR(MallocHost, memory, static_cast<size_t>(bytes));
#endif
    return exl_ok;
}

EXL_API exl_status exl_memory_free_host(void* memory) {
#if defined(EXL_HIP)
    EXL_VENDOR(HostFree, memory);
#else
    EXL_VENDOR(FreeHost, memory);
#endif
    return exl_ok;
}

EXL_API exl_status exl_memory_copy(void* to, const void* from, int64_t bytes, exl_stream stream) {
    EXL_REQUIRE(bytes >= 0, exl_bad_argument, "bytes", "found %lld", static_cast<long long>(bytes));
    EXL_VENDOR(MemcpyAsync, to, from, static_cast<size_t>(bytes), EXL_GPU(MemcpyDefault), native(stream));
    return exl_ok;
}

EXL_API exl_status exl_memory_set(void* memory, int32_t byte, int64_t bytes, exl_stream stream) {
    EXL_REQUIRE(bytes >= 0, exl_bad_argument, "bytes", "found %lld", static_cast<long long>(bytes));
    EXL_VENDOR(MemsetAsync, memory, byte, static_cast<size_t>(bytes), native(stream));
    return exl_ok;
}

// Streams do not wait for the default stream: what must be ordered is ordered by events.
EXL_API exl_status exl_stream_create(int32_t device, exl_stream* stream) {
    EXL_USE(device);
    Native made = nullptr;
    EXL_VENDOR(StreamCreateWithFlags, &made, EXL_GPU(StreamNonBlocking));
    *stream = made;
    return exl_ok;
}

EXL_API exl_status exl_stream_destroy(exl_stream stream) {
    EXL_REQUIRE(stream, exl_bad_argument, "stream", "found the default stream, which nobody made");
    EXL_VENDOR(StreamSynchronize, native(stream));
    EXL_VENDOR(StreamDestroy, native(stream));
    return exl_ok;
}

EXL_API exl_status exl_stream_synchronize(exl_stream stream) {
    EXL_VENDOR(StreamSynchronize, native(stream));
    return exl_ok;
}

EXL_API exl_status exl_stream_wait(exl_stream stream, exl_event event) {
    EXL_VENDOR(StreamWaitEvent, native(stream), native_event(event), 0);
    return exl_ok;
}

EXL_API exl_status exl_event_create(int32_t device, exl_event* event) {
    EXL_USE(device);
    EXL_GPU(Event_t) made = nullptr;
    EXL_VENDOR(EventCreate, &made);
    *event = made;
    return exl_ok;
}

EXL_API exl_status exl_event_destroy(exl_event event) {
    EXL_VENDOR(EventDestroy, native_event(event));
    return exl_ok;
}

EXL_API exl_status exl_event_record(exl_event event, exl_stream stream) {
    EXL_VENDOR(EventRecord, native_event(event), native(stream));
    return exl_ok;
}

EXL_API exl_status exl_event_synchronize(exl_event event) {
    EXL_VENDOR(EventSynchronize, native_event(event));
    return exl_ok;
}

EXL_API exl_status exl_event_elapsed(exl_event start, exl_event end, float* milliseconds) {
    EXL_VENDOR(EventElapsedTime, milliseconds, native_event(start), native_event(end));
    return exl_ok;
}

EXL_API exl_status exl_graph_begin(exl_stream stream) {
    EXL_VENDOR(StreamBeginCapture, native(stream), EXL_GPU(StreamCaptureModeThreadLocal));
    return exl_ok;
}

EXL_API exl_status exl_graph_end(exl_stream stream, exl_graph* graph) {
    EXL_GPU(Graph_t) recorded = nullptr;
    EXL_VENDOR(StreamEndCapture, native(stream), &recorded);
    EXL_GPU(GraphExec_t) made = nullptr;
#if defined(EXL_HIP)
    const int code = hipGraphInstantiate(&made, recorded, nullptr, nullptr, 0);
#else
    const int code = cudaGraphInstantiate(&made, recorded, 0);
#endif
    (void)EXL_GPU(GraphDestroy)(recorded);
    EXL_TRY(exl::vendor_status(code, "instantiating the graph"));
    *graph = made;
    return exl_ok;
}

EXL_API exl_status exl_graph_launch(exl_graph graph, exl_stream stream) {
    EXL_VENDOR(GraphLaunch, static_cast<EXL_GPU(GraphExec_t)>(graph), native(stream));
    return exl_ok;
}

EXL_API exl_status exl_graph_destroy(exl_graph graph) {
    EXL_VENDOR(GraphExecDestroy, static_cast<EXL_GPU(GraphExec_t)>(graph));
    return exl_ok;
}
