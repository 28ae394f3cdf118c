#include "emulator/device_state.h"

namespace exl::emulator {

namespace {

constexpr int64_t default_bytes = int64_t(1) << 30;

}  // namespace

World& world() {
    static World& only = *[] {
        auto* made = new World;  // never destroyed: threads may outlive the end of main
        made->devices.push_back(std::make_unique<Device>(default_bytes));
        return made;
    }();
    return only;
}

exl_status find_device(int32_t number, Device** device) {
    const auto count = static_cast<int32_t>(world().devices.size());
    EXL_REQUIRE(number >= 0 && number < count, exl_bad_argument, "device", "found %d, there are %d", number, count);
    *device = world().devices[static_cast<size_t>(number)].get();
    EXL_REQUIRE(!(*device)->lost(), exl_device_lost, "", "emu:%d is lost", number);
    return exl_ok;
}

Stream& stream_of(exl_stream handle) {
    return handle ? *static_cast<Stream*>(handle) : world().devices.front()->default_stream;
}

exl_status refuse_during_capture(const char* call) {
    EXL_REQUIRE(world().captures == 0, exl_not_permitted, "", "%s while a stream is being captured into a graph", call);
    return exl_ok;
}

exl_status submit(Stream& stream, Operation operation) {
    Device* device;
    EXL_TRY(find_device(stream.device, &device));
    if (stream.capture) {
        stream.capture->operations.push_back(std::move(operation));
        return exl_ok;
    }
    stream.queue.push_back(std::move(operation));
    return world().deferred ? exl_ok : drain(stream);
}

exl_status step(Stream& stream) {
    const Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    return operation();
}

exl_status drain(Stream& stream) {
    while (!stream.queue.empty()) {
        const exl_status status = step(stream);
        if (status) stream.queue.clear();
        if (status) return status;
    }
    return exl_ok;
}

exl_status perform(int number, const char* name, const std::function<exl_status()>& work) {
    Device* device;
    EXL_TRY(find_device(number, &device));
    if (device->operations_left > 0) device->operations_left--;
    EXL_TRY(find_device(number, &device));
    EXL_TRY(work());
    const std::string damage = device->memory.check_red_zones();
    EXL_REQUIRE(damage.empty(), exl_launch_failed, "", "%s: %s", name, damage.c_str());
    return exl_ok;
}

exl_status enqueue(exl_stream handle, Launch launch) {
    const std::lock_guard<std::recursive_mutex> hold(world().lock);
    Stream& stream = stream_of(handle);
    const int number = stream.device;
    return submit(stream, [number, launch = std::move(launch)] {
        return perform(number, launch.kernel, [&] {
            const Limits& limits = world().devices[static_cast<size_t>(number)]->limits;
            const std::string failure = run(launch, limits, world().launch_options);
            EXL_REQUIRE(failure.empty(), exl_launch_failed, "", "%s", failure.c_str());
            return exl_ok;
        });
    });
}

}  // namespace exl::emulator
