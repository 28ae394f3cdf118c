#include "library.h"

#include "exl/emulator.h"

#include <algorithm>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace exl::gpu {

namespace {

void* open_library(const std::string& path) {
#ifdef _WIN32
    if (void* handle = LoadLibraryA(path.c_str())) return handle;
    throw std::runtime_error("cannot open " + path + ": error " + std::to_string(GetLastError()));
#else
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    throw std::runtime_error("cannot open " + path + ": " + dlerror());
#endif
}

void* find_function(void* handle, const char* name) {
#ifdef _WIN32
    void* found = reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(handle), name));
#else
    void* found = dlsym(handle, name);
#endif
    if (!found) throw std::runtime_error(std::string("the GPU library has no function ") + name + ": build it again");
    return found;
}

}  // namespace

Library::Library(const std::string& path) : handle_(open_library(path)) {
#define EXL_FIND(name) name = reinterpret_cast<decltype(name)>(find_function(handle_, #name));
    EXL_GPU_FUNCTIONS(EXL_FIND)
#undef EXL_FIND
}

Library::~Library() {
    // Stays open: a driver's threads may still run code of it.
}

void Library::check(exl_status status) const {
    if (status != exl_ok) throw Failure(exl_status_name(status), exl_last_error());
}

void Library::emulate(const std::string& devices) const {
    const auto call = reinterpret_cast<decltype(&exl_emulator_devices)>(find_function(handle_, "exl_emulator_devices"));
    check(call(devices.c_str()));
}

Memory::Memory(std::shared_ptr<const Library> library, int32_t device, int64_t bytes)
    : library_(std::move(library)), device_(device), bytes_(std::max<int64_t>(bytes, 1)) {
    library_->check(library_->exl_memory_allocate(device_, bytes_, &data_));
}
Memory::~Memory() { library_->exl_memory_free(device_, data_); }

PinnedMemory::PinnedMemory(std::shared_ptr<const Library> library, int64_t bytes)
    : library_(std::move(library)), bytes_(std::max<int64_t>(bytes, 1)) {
    library_->check(library_->exl_memory_allocate_host(bytes_, &data_));
}
PinnedMemory::~PinnedMemory() { library_->exl_memory_free_host(data_); }

Stream::Stream(std::shared_ptr<const Library> library, int32_t device) : library_(std::move(library)) {
    library_->check(library_->exl_stream_create(device, &stream_));
}
Stream::~Stream() { library_->exl_stream_destroy(stream_); }
void Stream::synchronize() const { library_->check(library_->exl_stream_synchronize(stream_)); }

}  // namespace exl::gpu
