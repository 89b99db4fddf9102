// Streams, events and graphs: queues of operations that run at once, or (streams=deferred) only when somebody waits for
// them, streams taking turns at random.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace cuemu {

/// Does an operation's work and gives its error.
using Work = std::function<int()>;

struct Graph {
    std::vector<Work> work;
};

struct Operation {
    std::function<bool()> ready;  // null: whenever it's at the head of its stream
    Work run;
};

struct Stream {
    std::deque<Operation> queue;
    uint64_t enqueued = 0, done = 0;
    bool blocking = true;  // ordered with the default stream
    std::shared_ptr<Graph> capture;
    bool capture_origin = false;
};

struct Event {
    uint64_t recorded = 0, done = 0;
    double seconds = 0;
    bool timing = true;
    std::shared_ptr<Graph> capture;
};

using StreamPtr = std::shared_ptr<Stream>;
using EventPtr = std::shared_ptr<Event>;

/// The stream of a handle (null and 1: the default stream; 2: the per-thread one); null: there is none.
StreamPtr find_stream(void* handle);
bool is_default_stream(void* handle);
void* create_stream(bool blocking);
void destroy_stream(void* handle);

EventPtr find_event(void* handle);
void* create_event(bool timing);
void destroy_event(void* handle);

/// Queues work on a stream, or records it if the stream is being captured.
int enqueue(const StreamPtr& stream, Work work);
int record_event(const EventPtr& event, const StreamPtr& stream);
int wait_event(const StreamPtr& stream, const EventPtr& event);
int synchronize(const StreamPtr& stream);
int synchronize(const EventPtr& event);
int synchronize_all();
/// Lets one queued operation run, for those who ask again and again whether something is done.
void make_progress();

int begin_capture(const StreamPtr& stream);
int end_capture(const StreamPtr& stream, std::shared_ptr<Graph>& graph);

/// The error that every call gives from the first failed operation to the context's reset.
int sticky_error();
/// Drops what is queued, and the error.
void reset_streams();

}  // namespace cuemu
