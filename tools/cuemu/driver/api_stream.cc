// Entry points: streams, events, graphs.
#include <map>
#include <memory>

#include "api.h"
#include "stream.h"

namespace cuemu {
namespace {
std::map<void*, std::shared_ptr<Graph>> graphs;  // captured ones, and the executable copies
std::shared_ptr<Graph> find_graph(void* handle) {
    auto it = graphs.find(handle);
    return it == graphs.end() ? nullptr : it->second;
}
constexpr unsigned NON_BLOCKING = 1, DISABLE_TIMING = 2;
}  // namespace
}  // namespace cuemu

using namespace cuemu;

ENTRY(cuStreamCreate)(void** handle, unsigned flags) {
    ENTER_CONTEXT();
    *handle = create_stream(!(flags & NON_BLOCKING));
    return SUCCESS;
}
ENTRY(cuStreamCreateWithPriority)(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }
ENTRY(cuStreamDestroy_v2)(void* handle) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    STREAM(stream, handle);
    destroy_stream(handle);
    return sticky_error();
}
ENTRY(cuStreamSynchronize)(void* handle) {
    ENTER();
    STREAM(stream, handle);
    return synchronize(stream);
}
ENTRY(cuStreamQuery)(void* handle) {
    ENTER();
    STREAM(stream, handle);
    make_progress();
    if (sticky_error()) return sticky_error();
    return stream->queue.empty() ? SUCCESS : NOT_READY;
}
ENTRY(cuStreamWaitEvent)(void* stream_handle, void* event_handle, unsigned) {
    ENTER();
    STREAM(stream, stream_handle);
    OBJECT(event, find_event, event_handle);
    return wait_event(stream, event);
}
ENTRY(cuLaunchHostFunc)(void* handle, void (*function)(void*), void* data) {
    ENTER();
    STREAM(stream, handle);
    return enqueue(stream, [=] {
        function(data);
        return take_report_code();
    });
}

ENTRY(cuEventCreate)(void** handle, unsigned flags) {
    ENTER_CONTEXT();
    *handle = create_event(!(flags & DISABLE_TIMING));
    return SUCCESS;
}
ENTRY(cuEventDestroy_v2)(void* handle) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    OBJECT(event, find_event, handle);
    destroy_event(handle);
    return sticky_error();
}
ENTRY(cuEventRecord)(void* event_handle, void* stream_handle) {
    ENTER();
    OBJECT(event, find_event, event_handle);
    STREAM(stream, stream_handle);
    return record_event(event, stream);
}
ENTRY(cuEventQuery)(void* handle) {
    ENTER();
    OBJECT(event, find_event, handle);
    make_progress();
    if (sticky_error()) return sticky_error();
    return event->done >= event->recorded ? SUCCESS : NOT_READY;
}
ENTRY(cuEventSynchronize)(void* handle) {
    ENTER();
    OBJECT(event, find_event, handle);
    return synchronize(event);
}
ENTRY(cuEventElapsedTime_v2)(float* milliseconds, void* from_handle, void* to_handle) {
    ENTER();
    OBJECT(from, find_event, from_handle);
    OBJECT(to, find_event, to_handle);
    if (!from->timing || !to->timing || !from->recorded || !to->recorded) {
        return fail(INVALID_HANDLE, "cuEventElapsedTime: an event without timing, or never recorded");
    }
    if (from->done < from->recorded || to->done < to->recorded) return NOT_READY;
    *milliseconds = (to->seconds - from->seconds) * 1e3;
    return SUCCESS;
}
ENTRY(cuEventElapsedTime)(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

ENTRY(cuStreamBeginCapture_v2)(void* handle, int) {
    ENTER();
    STREAM(stream, handle);
    return begin_capture(stream);
}
ENTRY(cuStreamEndCapture)(void* handle, void** made) {
    ENTER();
    STREAM(stream, handle);
    std::shared_ptr<Graph> graph;
    if (int error = end_capture(stream, graph)) return error;
    graphs[graph.get()] = graph;
    *made = graph.get();
    return SUCCESS;
}
ENTRY(cuStreamIsCapturing)(void* handle, int* status) {
    ENTER();
    STREAM(stream, handle);
    *status = stream->capture ? 1 : 0;
    return SUCCESS;
}
ENTRY(cuGraphInstantiateWithFlags)(void** made, void* handle, unsigned long long) {
    ENTER();
    OBJECT(graph, find_graph, handle);
    auto executable = std::make_shared<Graph>(*graph);
    graphs[executable.get()] = executable;
    *made = executable.get();
    return SUCCESS;
}
ENTRY(cuGraphLaunch)(void* handle, void* stream_handle) {
    ENTER();
    OBJECT(graph, find_graph, handle);
    STREAM(stream, stream_handle);
    for (const Work& work : graph->work) {
        if (int error = enqueue(stream, work)) return error;
    }
    return SUCCESS;
}
ENTRY(cuGraphUpload)(void*, void*) { return SUCCESS; }
ENTRY(cuGraphDestroy)(void* handle) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    return graphs.erase(handle) ? SUCCESS : INVALID_HANDLE;
}
ENTRY(cuGraphExecDestroy)(void* handle) { return cuGraphDestroy(handle); }
