// The invented devices and what lives on them: streams, events, graphs.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/launch.h"
#include "emulator/memory.h"
#include "exl/emulator.h"

namespace exl::emulator {

// Work on a device. Runs more than once if a graph holds it; captures its arguments by value.
using Operation = std::function<exl_status()>;

struct Graph {
    int device;
    std::vector<Operation> operations;
};

struct Stream {
    int device;
    std::deque<Operation> queue;     // what has not run yet
    std::shared_ptr<Graph> capture;  // set while work is recorded
};

struct Event {
    int device;
    Stream* stream = nullptr;        // where it was recorded last
    std::shared_ptr<Graph> capture;  // the graph it was recorded in, if any
    uint64_t recorded = 0, passed = 0;
    std::chrono::steady_clock::time_point time;
};

struct Device {
    explicit Device(int64_t bytes) : memory(bytes) {}
    Memory memory;
    Limits limits;
    int64_t operations_left = -1;   // until it is lost; -1: never
    int64_t allocations_left = -1;  // until one fails; -1: none
    Stream default_stream{0, {}, nullptr};
    int objects = 0;                // streams and events that were not destroyed

    bool lost() const { return operations_left == 0; }
};

// All state of the emulated runtime. One lock guards it and is held while kernels run.
struct World {
    std::recursive_mutex lock;
    std::vector<std::unique_ptr<Device>> devices;
    LaunchOptions launch_options;
    bool deferred = false;
    int captures = 0;
    std::vector<std::shared_ptr<void>> host_memory;
};
World& world();

// The device, or exl_bad_argument, or exl_device_lost.
exl_status find_device(int32_t number, Device** device);
Stream& stream_of(exl_stream handle);
// Records or queues; what is queued runs now unless it is deferred.
exl_status submit(Stream& stream, Operation operation);
// Runs what is queued on a stream, or its oldest operation.
exl_status drain(Stream& stream);
exl_status step(Stream& stream);
// One launch, copy or set on a device: counts towards its loss, and is blamed for what it wrote where it must not.
exl_status perform(int number, const char* name, const std::function<exl_status()>& work);
// exl_not_permitted while any stream records.
exl_status refuse_during_capture(const char* call);

}  // namespace exl::emulator
