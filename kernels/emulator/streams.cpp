// Streams, events and graphs of exl/runtime.h on invented devices.
#include "emulator/device_state.h"

using namespace exl::emulator;
using Hold = std::lock_guard<std::recursive_mutex>;

namespace {

// Streams that exist, for exl_device_synchronize and the end of a capture.
std::vector<Stream*> streams;

// Runs the event's stream until it has passed record number `recorded`.
exl_status pass(const std::shared_ptr<Event>& event, uint64_t recorded) {
    while (event->passed < recorded) {
        EXL_REQUIRE(event->stream && !event->stream->queue.empty(), exl_launch_failed, "event",
                    "what the event stands for failed or was never run");
        EXL_TRY(step(*event->stream));
    }
    return exl_ok;
}

std::shared_ptr<Event>& event_of(exl_event handle) { return *static_cast<std::shared_ptr<Event>*>(handle); }
std::shared_ptr<Graph>& graph_of(exl_graph handle) { return *static_cast<std::shared_ptr<Graph>*>(handle); }

exl_status synchronize(Stream& stream, const char* call) {
    Device* device;
    EXL_TRY(find_device(stream.device, &device));
    EXL_TRY(refuse_during_capture(call));
    return drain(stream);
}

}  // namespace

EXL_API exl_status exl_stream_create(int32_t number, exl_stream* handle) {
    const Hold hold(world().lock);
    Device* device;
    EXL_TRY(find_device(number, &device));
    auto* stream = new Stream{number, {}, nullptr};
    streams.push_back(stream);
    device->objects++;
    *handle = stream;
    return exl_ok;
}

EXL_API exl_status exl_stream_destroy(exl_stream handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "stream", "found the default stream, which nobody made");
    Stream* stream = &stream_of(handle);
    EXL_REQUIRE(!stream->capture, exl_not_permitted, "stream", "it is being captured into a graph");
    const exl_status status = drain(*stream);
    std::erase(streams, stream);
    world().devices[static_cast<size_t>(stream->device)]->objects--;
    delete stream;
    return status;
}

EXL_API exl_status exl_stream_synchronize(exl_stream handle) {
    const Hold hold(world().lock);
    return synchronize(stream_of(handle), "exl_stream_synchronize");
}

EXL_API exl_status exl_device_synchronize(int32_t number) {
    const Hold hold(world().lock);
    Device* device;
    EXL_TRY(find_device(number, &device));
    EXL_TRY(synchronize(device->default_stream, "exl_device_synchronize"));
    for (Stream* stream : streams)
        if (stream->device == number) EXL_TRY(drain(*stream));
    return exl_ok;
}

EXL_API exl_status exl_stream_wait(exl_stream handle, exl_event event_handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(event_handle, exl_bad_argument, "event", "found a null pointer");
    Stream& stream = stream_of(handle);
    const std::shared_ptr<Event> event = event_of(event_handle);
    if (event->capture) {
        // A stream that waits for captured work is captured too, into the same graph.
        EXL_REQUIRE(!stream.capture || stream.capture == event->capture, exl_not_permitted, "event",
                    "it belongs to another graph");
        stream.capture = event->capture;
        return exl_ok;
    }
    EXL_REQUIRE(!stream.capture, exl_not_permitted, "event", "the stream is being captured, the event is not");
    return submit(stream, [event, recorded = event->recorded] { return pass(event, recorded); });
}

EXL_API exl_status exl_event_create(int32_t number, exl_event* handle) {
    const Hold hold(world().lock);
    Device* device;
    EXL_TRY(find_device(number, &device));
    auto event = std::make_shared<Event>();
    event->device = number;
    device->objects++;
    *handle = new std::shared_ptr<Event>(std::move(event));
    return exl_ok;
}

EXL_API exl_status exl_event_destroy(exl_event handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "event", "found a null pointer");
    world().devices[static_cast<size_t>(event_of(handle)->device)]->objects--;
    delete &event_of(handle);
    return exl_ok;
}

EXL_API exl_status exl_event_record(exl_event handle, exl_stream stream_handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "event", "found a null pointer");
    Stream& stream = stream_of(stream_handle);
    const std::shared_ptr<Event> event = event_of(handle);
    event->stream = &stream;
    event->capture = stream.capture;
    if (stream.capture) return exl_ok;  // operations of a graph run in the order of their recording
    return submit(stream, [event, recorded = ++event->recorded] {
        event->passed = recorded;
        event->time = std::chrono::steady_clock::now();
        return exl_ok;
    });
}

EXL_API exl_status exl_event_synchronize(exl_event handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "event", "found a null pointer");
    EXL_TRY(refuse_during_capture("exl_event_synchronize"));
    const std::shared_ptr<Event> event = event_of(handle);
    Device* device;
    EXL_TRY(find_device(event->device, &device));
    return pass(event, event->recorded);
}

EXL_API exl_status exl_event_elapsed(exl_event start, exl_event end, float* milliseconds) {
    const Hold hold(world().lock);
    EXL_REQUIRE(start && end, exl_bad_argument, "event", "found a null pointer");
    for (const auto& event : {event_of(start), event_of(end)})
        EXL_REQUIRE(event->recorded && event->passed == event->recorded, exl_not_permitted, "event",
                    "it was not recorded, or not passed yet");
    *milliseconds = std::chrono::duration<float, std::milli>(event_of(end)->time - event_of(start)->time).count();
    return exl_ok;
}

EXL_API exl_status exl_graph_begin(exl_stream handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "stream", "found the default stream, which cannot be captured");
    Stream& stream = stream_of(handle);
    EXL_REQUIRE(!stream.capture, exl_not_permitted, "stream", "it is already being captured");
    Device* device;
    EXL_TRY(find_device(stream.device, &device));
    stream.capture = std::make_shared<Graph>(Graph{stream.device, {}});
    world().captures++;
    return exl_ok;
}

EXL_API exl_status exl_graph_end(exl_stream handle, exl_graph* graph) {
    const Hold hold(world().lock);
    Stream& stream = stream_of(handle);
    EXL_REQUIRE(stream.capture, exl_not_permitted, "stream", "it is not being captured");
    const std::shared_ptr<Graph> captured = stream.capture;
    for (Stream* other : streams)
        if (other->capture == captured) other->capture = nullptr;
    world().captures--;
    *graph = new std::shared_ptr<Graph>(captured);
    return exl_ok;
}

EXL_API exl_status exl_graph_launch(exl_graph handle, exl_stream stream_handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "graph", "found a null pointer");
    Stream& stream = stream_of(stream_handle);
    const std::shared_ptr<Graph> graph = graph_of(handle);
    EXL_REQUIRE(stream.device == graph->device, exl_bad_argument, "stream", "it is on emu:%d, the graph on emu:%d",
                stream.device, graph->device);
    return submit(stream, [graph] {
        for (const Operation& operation : graph->operations) EXL_TRY(operation());
        return exl_ok;
    });
}

EXL_API exl_status exl_graph_destroy(exl_graph handle) {
    const Hold hold(world().lock);
    EXL_REQUIRE(handle, exl_bad_argument, "graph", "found a null pointer");
    delete &graph_of(handle);
    return exl_ok;
}
