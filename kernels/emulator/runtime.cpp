// The C ABI of exl/runtime.h and exl/emulator.h on invented devices.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/device_state.h"

using namespace exl::emulator;
using Hold = std::lock_guard<std::recursive_mutex>;

namespace {

// Parses "2x512MiB" or "512MiB,1GiB" into sizes; false if it is neither.
bool parse_sizes(const char* text, std::vector<int64_t>* sizes) {
    for (const char* at = text; *at;) {
        long long count = 1, size = 0;
        char unit[4] = "";
        int used = 0;
        if (std::sscanf(at, "%4lldx%7lld%3[KMGiB]%n", &count, &size, unit, &used) != 3) {
            count = 1;
            if (std::sscanf(at, "%7lld%3[KMGiB]%n", &size, unit, &used) != 2) return false;
        }
        const int shift = !std::strcmp(unit, "KiB")   ? 10
                          : !std::strcmp(unit, "MiB") ? 20
                          : !std::strcmp(unit, "GiB") ? 30
                                                      : 0;
        if (!shift || count < 1 || count > 64 || size < 1) return false;
        sizes->insert(sizes->end(), static_cast<size_t>(count), int64_t(size) << shift);
        at += used;
        if (*at == ',' && at[1])
            at++;
        else if (*at)
            return false;
    }
    return !sizes->empty() && sizes->size() <= 64;
}

exl_status check_ranges(const void* address, int64_t bytes, const char* argument) {
    for (const auto& device : world().devices) {
        const std::string complaint = device->memory.check_range(address, bytes);
        EXL_REQUIRE(complaint.empty(), exl_bad_argument, argument, "%s", complaint.c_str());
    }
    return exl_ok;
}

}  // namespace

EXL_API const char* exl_backend() { return "emu"; }

EXL_API exl_status exl_emulator_devices(const char* description) {
    const Hold hold(world().lock);
    std::vector<int64_t> sizes;
    EXL_REQUIRE(description && parse_sizes(description, &sizes), exl_bad_argument, "description",
                "found '%s', expected a form like 2x512MiB or 512MiB,1GiB, at most 64 devices",
                description ? description : "null");
    EXL_TRY(refuse_during_capture("exl_emulator_devices"));
    for (const auto& device : world().devices)
        EXL_REQUIRE(device->memory.empty() && !device->objects, exl_not_permitted, "",
                    "memory, streams or events of the devices before still exist");
    world().devices.clear();
    for (const int64_t bytes : sizes) {
        world().devices.push_back(std::make_unique<Device>(bytes));
        world().devices.back()->default_stream.device = static_cast<int>(world().devices.size()) - 1;
    }
    return exl_ok;
}

EXL_API exl_status exl_emulator_configure(const exl_emulator_options* options) {
    const Hold hold(world().lock);
    EXL_REQUIRE(options, exl_bad_argument, "options", "found a null pointer");
    EXL_REQUIRE(options->order >= 0 && options->order <= 2, exl_bad_argument, "order",
                "found %d, expected 0 forward, 1 reverse or 2 random", options->order);
    EXL_REQUIRE(options->workers >= 0 && options->workers <= 1024, exl_bad_argument, "workers",
                "found %d, expected 0 to 1024", options->workers);
    world().launch_options = {static_cast<Order>(options->order), options->seed, options->workers};
    world().deferred = options->deferred != 0;
    return exl_ok;
}

EXL_API exl_status exl_emulator_lose_device(int32_t number, int64_t operations) {
    const Hold hold(world().lock);
    Device* device;
    EXL_TRY(find_device(number, &device));
    EXL_REQUIRE(operations >= 0, exl_bad_argument, "operations", "found %lld", static_cast<long long>(operations));
    // The operation that finds the count at one is the first that fails.
    device->operations_left = operations ? operations + 1 : 0;
    return exl_ok;
}

EXL_API exl_status exl_emulator_fail_allocation(int32_t number, int64_t allocations) {
    const Hold hold(world().lock);
    Device* device;
    EXL_TRY(find_device(number, &device));
    device->allocations_left = allocations;
    return exl_ok;
}

EXL_API exl_status exl_device_count(int32_t* count) {
    const Hold hold(world().lock);
    *count = static_cast<int32_t>(world().devices.size());
    return exl_ok;
}

EXL_API exl_status exl_device_describe(int32_t number, exl_device_info* info) {
    const Hold hold(world().lock);
    Device* device;
    EXL_TRY(find_device(number, &device));
    *info = {};
    std::snprintf(info->name, sizeof info->name, "Emulated GPU %d", number);
    std::snprintf(info->arch, sizeof info->arch, "emu%d", warp_size_of_build);
    info->total_bytes = device->memory.total();
    info->free_bytes = device->memory.free();
    info->processors = 4;
    info->warp_size = warp_size_of_build;
    info->shared_bytes = static_cast<int32_t>(device->limits.shared_bytes);
    info->compiled = 1;
    return exl_ok;
}

EXL_API exl_status exl_memory_allocate(int32_t number, int64_t bytes, void** memory) {
    const Hold hold(world().lock);
    Device* device;
    EXL_REQUIRE(memory && bytes > 0, exl_bad_argument, "bytes", "found %lld, expected at least 1",
                static_cast<long long>(bytes));
    EXL_TRY(find_device(number, &device));
    EXL_TRY(refuse_during_capture("exl_memory_allocate"));
    const bool fails = device->allocations_left == 0;
    if (device->allocations_left >= 0) device->allocations_left--;
    *memory = fails ? nullptr : device->memory.allocate(bytes);
    EXL_REQUIRE(*memory, exl_out_of_memory, "", "emu:%d has %lld bytes free of %lld, %lld were asked for", number,
                static_cast<long long>(device->memory.free()), static_cast<long long>(device->memory.total()),
                static_cast<long long>(bytes));
    return exl_ok;
}

EXL_API exl_status exl_memory_free(int32_t number, void* memory) {
    const Hold hold(world().lock);
    // Memory of a lost device can be given back: its owner closes in good order.
    const auto count = static_cast<int32_t>(world().devices.size());
    EXL_REQUIRE(number >= 0 && number < count, exl_bad_argument, "device", "found %d, there are %d", number, count);
    EXL_TRY(refuse_during_capture("exl_memory_free"));
    EXL_REQUIRE(world().devices[static_cast<size_t>(number)]->memory.release(memory), exl_bad_argument, "memory",
                "%p is not an allocation of emu:%d, or was freed before", memory, number);
    return exl_ok;
}

EXL_API exl_status exl_memory_allocate_host(int64_t bytes, void** memory) {
    EXL_REQUIRE(memory && bytes > 0, exl_bad_argument, "bytes", "found %lld, expected at least 1",
                static_cast<long long>(bytes));
    const int failed = posix_memalign(memory, Memory::alignment, static_cast<size_t>(bytes));
    EXL_REQUIRE(!failed, exl_out_of_memory, "", "the host has no %lld bytes", static_cast<long long>(bytes));
    std::memset(*memory, 0xff, static_cast<size_t>(bytes));
    return exl_ok;
}

EXL_API exl_status exl_memory_free_host(void* memory) {
    std::free(memory);
    return exl_ok;
}

EXL_API exl_status exl_memory_copy(void* to, const void* from, int64_t bytes, exl_stream handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(bytes >= 0 && (bytes == 0 || (to && from)), exl_bad_argument, "bytes", "found %lld from %p to %p",
                static_cast<long long>(bytes), from, to);
    EXL_TRY(check_ranges(from, bytes, "from"));
    EXL_TRY(check_ranges(to, bytes, "to"));
    Stream& stream = stream_of(handle);
    return submit(stream, [=, number = stream.device] {
        return perform(number, "exl_memory_copy", [=] {
            std::memmove(to, from, static_cast<size_t>(bytes));
            return exl_ok;
        });
    });
}

EXL_API exl_status exl_memory_set(void* memory, int32_t byte, int64_t bytes, exl_stream handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(bytes >= 0 && (bytes == 0 || memory), exl_bad_argument, "bytes", "found %lld at %p",
                static_cast<long long>(bytes), memory);
    EXL_TRY(check_ranges(memory, bytes, "memory"));
    Stream& stream = stream_of(handle);
    return submit(stream, [=, number = stream.device] {
        return perform(number, "exl_memory_set", [=] {
            std::memset(memory, byte, static_cast<size_t>(bytes));
            return exl_ok;
        });
    });
}
