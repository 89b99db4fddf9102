#include "stream.h"

#include <time.h>

#include <map>

#include "config.h"
#include "launch.h"
#include "report.h"

namespace cuemu {

namespace {
StreamPtr default_stream = std::make_shared<Stream>(), per_thread_stream = std::make_shared<Stream>();
std::map<void*, StreamPtr> streams;
std::map<void*, EventPtr> events;
int sticky = SUCCESS;

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

std::vector<Stream*> all_streams() {
    std::vector<Stream*> all{default_stream.get(), per_thread_stream.get()};
    for (auto& [handle, stream] : streams) all.push_back(stream.get());
    return all;
}

bool capturing() {
    for (const Stream* s : all_streams()) {
        if (s->capture) return true;
    }
    return false;
}

/// Runs the operation at a stream's head, if it's ready.
bool step(Stream* s) {
    if (s->queue.empty() || (s->queue.front().ready && !s->queue.front().ready())) return false;
    const Operation operation = std::move(s->queue.front());
    s->queue.pop_front();
    // After an error the device does nothing more.
    if (operation.run && !sticky) sticky = operation.run();
    s->done++;
    return true;
}

bool step_any() {
    std::vector<Stream*> waiting;
    for (Stream* s : all_streams()) {
        if (!s->queue.empty()) waiting.push_back(s);
    }
    while (!waiting.empty()) {
        const size_t i = driver_random() % waiting.size();
        if (step(waiting[i])) return true;
        waiting.erase(waiting.begin() + i);
    }
    return false;
}

template <class Done>
int run_until(Done done) {
    while (!done()) {
        if (sticky) return sticky;
        if (step_any()) continue;
        return sticky = fail(LAUNCH_TIMEOUT, "the streams wait for each other's events: deadlock");
    }
    return sticky;
}

/// What the default stream and the blocking ones owe each other.
std::function<bool()> implicit_order(const StreamPtr& stream) {
    std::vector<std::pair<StreamPtr, uint64_t>> before;
    auto add = [&](const StreamPtr& s) {
        if (!s->queue.empty()) before.emplace_back(s, s->enqueued);
    };
    if (stream == default_stream) {
        for (auto& [handle, s] : streams) {
            if (s->blocking) add(s);
        }
    } else if (stream->blocking) {
        add(default_stream);
    }
    if (before.empty()) return nullptr;
    return [before] {
        for (auto& [s, n] : before) {
            if (s->done < n) return false;
        }
        return true;
    };
}

int push(const StreamPtr& stream, Operation operation) {
    stream->queue.push_back(std::move(operation));
    stream->enqueued++;
    return config.deferred ? sticky : synchronize(stream);
}
}  // namespace

bool is_default_stream(void* handle) { return reinterpret_cast<uintptr_t>(handle) <= 2; }

StreamPtr find_stream(void* handle) {
    const auto value = reinterpret_cast<uintptr_t>(handle);
    if (value <= 1) return default_stream;
    if (value == 2) return per_thread_stream;
    auto it = streams.find(handle);
    return it == streams.end() ? nullptr : it->second;
}

void* create_stream(bool blocking) {
    auto stream = std::make_shared<Stream>();
    stream->blocking = blocking;
    return (streams[stream.get()] = stream).get();
}

void destroy_stream(void* handle) {
    synchronize(find_stream(handle));
    streams.erase(handle);
}

EventPtr find_event(void* handle) {
    auto it = events.find(handle);
    return it == events.end() ? nullptr : it->second;
}

void* create_event(bool timing) {
    auto event = std::make_shared<Event>();
    event->timing = timing;
    return (events[event.get()] = event).get();
}

void destroy_event(void* handle) { events.erase(handle); }

int enqueue(const StreamPtr& stream, Work work) {
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
        return SUCCESS;
    }
    return push(stream, {implicit_order(stream), std::move(work)});
}

int record_event(const EventPtr& event, const StreamPtr& stream) {
    event->capture = stream->capture;
    if (stream->capture) return SUCCESS;
    const uint64_t generation = ++event->recorded;
    return enqueue(stream, [event, generation] {
        event->done = generation;
        event->seconds = now();
        return SUCCESS;
    });
}

int wait_event(const StreamPtr& stream, const EventPtr& event) {
    if (event->capture) stream->capture = event->capture;  // the stream joins the capture
    if (stream->capture || event->recorded == 0) return SUCCESS;
    const uint64_t generation = event->recorded;
    return push(stream, {[event, generation] { return event->done >= generation; }, nullptr});
}

int synchronize(const StreamPtr& stream) {
    if (stream->capture) return fail(STREAM_CAPTURE_UNSUPPORTED, "the stream is being captured");
    return run_until([&] { return stream->queue.empty(); });
}

int synchronize(const EventPtr& event) {
    return run_until([&] { return event->done >= event->recorded; });
}

int synchronize_all() {
    if (capturing()) return fail(STREAM_CAPTURE_UNSUPPORTED, "a stream is being captured");
    return run_until([] {
        for (const Stream* s : all_streams()) {
            if (!s->queue.empty()) return false;
        }
        return true;
    });
}

void make_progress() { step_any(); }

int begin_capture(const StreamPtr& stream) {
    if (stream == default_stream) return fail(STREAM_CAPTURE_UNSUPPORTED, "the default stream can't be captured");
    if (stream->capture) return fail(INVALID_VALUE, "the stream is being captured already");
    stream->capture = std::make_shared<Graph>();
    stream->capture_origin = true;
    return SUCCESS;
}

int end_capture(const StreamPtr& stream, std::shared_ptr<Graph>& graph) {
    if (!stream->capture) return fail(INVALID_VALUE, "the stream isn't being captured");
    if (!stream->capture_origin) return fail(STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
    graph = stream->capture;
    for (Stream* s : all_streams()) {
        if (s->capture != graph) continue;
        s->capture = nullptr;
        s->capture_origin = false;
    }
    return SUCCESS;
}

int sticky_error() { return sticky; }

void reset_streams() {
    for (Stream* s : all_streams()) {
        s->queue.clear();
        s->done = s->enqueued;
        s->capture = nullptr;
        s->capture_origin = false;
    }
    for (auto& [handle, event] : events) event->done = event->recorded;
    sticky = SUCCESS;
}

}  // namespace cuemu
