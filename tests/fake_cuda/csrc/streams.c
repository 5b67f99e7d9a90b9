/* Streams, events, stream capture, graphs.

   Work is done, or counted, when it is asked for: every stream is idle at all times. What a stream captures is not
   done but recorded; a launch of the graph does the copies, memsets and host functions again.

   What CUDA forbids during a capture fails as it does there, and breaks the capture:
   - to synchronise or query a stream or an event that takes part, or the device;
   - calls that may synchronise (allocation, events elsewhere), unless the thread has relaxed its mode;
   - a copy from or to host memory that is not pinned;
   - to depend on work outside of the capture, or to end it with work that its first stream does not wait for;
   - the legacy stream. Stricter than CUDA, which lets it run beside a capture of non-blocking streams: the work would
     be missing in the graph, so the thread that captures may not ask for it. */
#include "fake.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_LANES 16 /* streams in one capture */

/* How far into each lane of a capture something has waited, in pieces of work. */
struct Progress {
    long of_lane[MAX_LANES];
};

struct CUgraph_st {
    struct CUgraphNode_st *nodes;
    int n_nodes, room;
};

struct CUgraphExec_st {
    struct CUgraph_st graph;
};

struct Capture {
    unsigned long long id;
    enum cudaStreamCaptureMode mode;
    pthread_t thread;
    struct CUgraph_st *graph;
    bool is_broken, has_blocking_stream;
    struct CUstream_st *lanes[MAX_LANES]; /* the first began it */
    int n_lanes;
    struct Capture *next;
};

struct CUstream_st {
    unsigned flags;
    int priority, device;
    struct Capture *capture;
    int lane;
    struct Progress progress;
};

struct CUevent_st {
    bool was_recorded;
    struct timespec when;
    unsigned long long capture_id; /* 0 unless it was last recorded in a capture */
    struct Progress progress;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct Capture *captures;
static unsigned long long captures_begun;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

/* ---- streams */

static struct CUstream_st legacy_stream;
static __thread struct CUstream_st per_thread_stream;

static struct CUstream_st *resolve(cudaStream_t stream) {
    if (!stream || stream == cudaStreamLegacy) return &legacy_stream;
    return stream == cudaStreamPerThread ? &per_thread_stream : stream;
}

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = calloc(1, sizeof **stream);
    **stream = (struct CUstream_st){.flags = flags, .priority = priority, .device = current_device()};
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    return *priority = resolve(stream)->priority, cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
    return *flags = resolve(stream)->flags, cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *device) {
    return *device = resolve(stream)->device, cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}

/* ---- what a capture forbids; to be called with the lock */

static cudaError_t break_capture(struct Capture *capture, cudaError_t error) {
    capture->is_broken = true;
    return error;
}

/* Whether this thread has begun it, and has not asked to be less restricted: torch does, where it knows better. */
static bool restricts_this_thread(const struct Capture *capture) {
    return pthread_equal(capture->thread, pthread_self()) && capture->mode != cudaStreamCaptureModeRelaxed
           && thread_mode != cudaStreamCaptureModeRelaxed;
}

static cudaError_t unsafe(void) {
    for (struct Capture *capture = captures; capture; capture = capture->next) {
        bool is_global = capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
        if (!capture->is_broken && (is_global || restricts_this_thread(capture)))
            return break_capture(capture, cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

static cudaError_t legacy_use(void) {
    for (struct Capture *capture = captures; capture; capture = capture->next)
        if (!capture->is_broken && (capture->has_blocking_stream || restricts_this_thread(capture)))
            return break_capture(capture, cudaErrorStreamCaptureImplicit);
    return cudaSuccess;
}

/* Whether work may be put into a stream now. */
static cudaError_t check_use(struct CUstream_st *stream) {
    if (stream == &legacy_stream) return legacy_use();
    return stream->capture && stream->capture->is_broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

/* Whether the host may wait for a stream, or ask about it, now. */
static cudaError_t check_wait(struct CUstream_st *stream) {
    cudaError_t error = check_use(stream);
    if (error != cudaSuccess) return error;
    return stream->capture ? break_capture(stream->capture, cudaErrorStreamCaptureUnsupported) : unsafe();
}

static struct Capture *find_capture(unsigned long long id) {
    struct Capture *capture = captures;
    while (capture && capture->id != id) capture = capture->next;
    return capture;
}

/* Likewise an event. */
static cudaError_t check_event(struct CUevent_st *event) {
    if (!event->capture_id) return unsafe();
    struct Capture *capture = find_capture(event->capture_id);
    return capture ? break_capture(capture, cudaErrorCapturedEvent) : cudaErrorCapturedEvent;
}

cudaError_t unsafe_call(void) {
    pthread_mutex_lock(&lock);
    cudaError_t error = unsafe();
    pthread_mutex_unlock(&lock);
    return error;
}

/* ---- work */

/* torch copies in two calls: a copy into the stream, and waiting for the stream. */
static __thread struct {
    struct CUstream_st *stream; /* NULL unless the thread's last work was a copy that did not block */
    enum Counter blocking;
} last_copy;

void forget_last_copy(void) { last_copy.stream = NULL; }

static void count_copy(const struct CUgraphNode_st *work, struct CUstream_st *stream) {
    enum Place source = place_of(work->from), target = place_of(work->to);
    if (source == on_device && target == on_device) return count(copies_on_device, 1);
    bool goes_up = target == on_device;
    enum Counter blocking = goes_up ? blocking_copies_to_device : blocking_copies_to_host;
    count(goes_up ? copies_to_device : copies_to_host, 1);
    count(goes_up ? bytes_to_device : bytes_to_host, work->bytes);
    if (source == pageable_host || target == pageable_host) count(blocking, 1);
    else last_copy.stream = stream, last_copy.blocking = blocking;
}

static void count_work(const struct CUgraphNode_st *work, struct CUstream_st *stream) {
    switch (work->kind) {
        case kernel_node: count(kernels, 1), tally(work->tally, false); break;
        case library_node: count(library_calls, 1), tally(work->tally, false); break;
        case memset_node: count(memsets, 1); break;
        case copy_node: count_copy(work, stream); break;
        case host_node: break;
    }
}

static void count_captured(const struct CUgraphNode_st *work) {
    switch (work->kind) {
        case kernel_node: count(captured_kernels, 1), tally(work->tally, true); break;
        case library_node: count(captured_library_calls, 1), tally(work->tally, true); break;
        case memset_node: count(captured_memsets, 1); break;
        case copy_node: count(captured_copies, 1); break;
        case host_node: break;
    }
}

static void perform(const struct CUgraphNode_st *work) {
    if (work->kind == copy_node) copy_now(work->to, work->from, work->bytes);
    if (work->kind == memset_node) set_now(work->to, work->value, work->bytes);
    if (work->kind == host_node) work->function(work->argument);
}

static cudaError_t record(struct CUstream_st *stream, struct CUgraphNode_st work) {
    struct CUgraph_st *graph = stream->capture->graph;
    bool is_pageable =
        work.kind == copy_node && (place_of(work.from) == pageable_host || place_of(work.to) == pageable_host);
    if (is_pageable) return break_capture(stream->capture, cudaErrorStreamCaptureUnsupported);
    if (graph->n_nodes == graph->room)
        graph->nodes = realloc(graph->nodes, (graph->room = graph->room ? 2 * graph->room : 256) * sizeof work);
    graph->nodes[graph->n_nodes++] = work;
    stream->progress.of_lane[stream->lane]++;
    count_captured(&work);
    return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t handle, struct CUgraphNode_st work) {
    struct CUstream_st *stream = resolve(handle);
    forget_last_copy();
    pthread_mutex_lock(&lock);
    cudaError_t error = check_use(stream);
    bool captures_it = error == cudaSuccess && stream->capture;
    if (captures_it) error = record(stream, work);
    pthread_mutex_unlock(&lock);
    if (error != cudaSuccess || captures_it) return fail(error);
    count_work(&work, stream);
    perform(&work);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return enqueue(stream, (struct CUgraphNode_st){.kind = copy_node, .to = to, .from = from, .bytes = bytes});
}

EXPORT cudaError_t cudaMemcpyPeerAsync(
    void *to, int to_device, const void *from, int from_device, size_t bytes, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}

EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return enqueue(stream, (struct CUgraphNode_st){.kind = memset_node, .to = to, .bytes = bytes, .value = value});
}

EXPORT cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, NULL); }

EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    return enqueue(stream, (struct CUgraphNode_st){.kind = host_node, .function = function, .argument = argument});
}

EXPORT cudaError_t cudaStreamAddCallback(
    cudaStream_t handle, cudaStreamCallback_t function, void *argument, unsigned flags) {
    pthread_mutex_lock(&lock);
    cudaError_t error = check_wait(resolve(handle));
    pthread_mutex_unlock(&lock);
    if (error == cudaSuccess) function(handle, cudaSuccess, argument);
    return fail(error);
}

/* ---- waiting */

static cudaError_t wait_for(struct CUstream_st *stream) {
    pthread_mutex_lock(&lock);
    cudaError_t error = check_wait(stream);
    pthread_mutex_unlock(&lock);
    if (error != cudaSuccess) return fail(error);
    count(synchronisations, 1);
    if (last_copy.stream == stream) count(last_copy.blocking, 1);
    forget_last_copy();
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for(resolve(stream)); }

EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
    pthread_mutex_lock(&lock);
    cudaError_t error = check_wait(resolve(stream));
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaDeviceSynchronize(void) {
    pthread_mutex_lock(&lock);
    cudaError_t error = cudaSuccess;
    /* No mode of a thread allows it: the device is that of the capture. */
    for (struct Capture *capture = captures; capture; capture = capture->next)
        if (!capture->is_broken) error = break_capture(capture, cudaErrorStreamCaptureUnsupported);
    pthread_mutex_unlock(&lock);
    if (error == cudaSuccess) count(synchronisations, 1);
    forget_last_copy();
    return fail(error);
}

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    cudaError_t error = unsafe_call();
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, kind, NULL);
    return error == cudaSuccess ? wait_for(&legacy_stream) : fail(error);
}

/* ---- events */

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags) {
    struct CUstream_st *stream = resolve(handle);
    pthread_mutex_lock(&lock);
    cudaError_t error = check_use(stream);
    if (error == cudaSuccess) {
        bool is_captured = stream->capture && !(flags & cudaEventRecordExternal);
        event->was_recorded = true;
        event->capture_id = is_captured ? stream->capture->id : 0;
        event->progress = stream->progress;
        clock_gettime(CLOCK_MONOTONIC, &event->when);
        if (!stream->capture) count(event_records, 1);
    }
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}

EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
    pthread_mutex_lock(&lock);
    cudaError_t error = check_event(event);
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    cudaError_t error = cudaEventQuery(event);
    if (error == cudaSuccess) count(synchronisations, 1);
    return error;
}

EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    if (!start->was_recorded || !end->was_recorded) return fail(cudaErrorInvalidResourceHandle);
    if (start->capture_id || end->capture_id) return fail(cudaErrorCapturedEvent);
    *ms = (end->when.tv_sec - start->when.tv_sec) * 1e3f + (end->when.tv_nsec - start->when.tv_nsec) / 1e6f;
    return cudaSuccess;
}

static cudaError_t join(struct CUstream_st *stream, struct Capture *capture) {
    if (stream == &legacy_stream) return break_capture(capture, cudaErrorStreamCaptureImplicit);
    if (capture->n_lanes == MAX_LANES) return break_capture(capture, cudaErrorNotSupported);
    stream->lane = capture->n_lanes;
    stream->capture = capture;
    stream->progress = (struct Progress){{0}};
    capture->lanes[capture->n_lanes++] = stream;
    capture->has_blocking_stream |= !(stream->flags & cudaStreamNonBlocking);
    return cudaSuccess;
}

static cudaError_t wait_in_stream(struct CUstream_st *stream, struct CUevent_st *event, unsigned flags) {
    cudaError_t error = check_use(stream);
    if (error != cudaSuccess || !event->was_recorded) return error;
    if (!event->capture_id) {
        bool is_foreign = stream->capture && !(flags & cudaEventWaitExternal);
        return is_foreign ? break_capture(stream->capture, cudaErrorStreamCaptureIsolation) : cudaSuccess;
    }
    struct Capture *capture = find_capture(event->capture_id);
    if (!capture) return cudaErrorCapturedEvent;
    if (stream->capture && stream->capture != capture) return break_capture(capture, cudaErrorStreamCaptureMerge);
    if (!stream->capture) error = join(stream, capture);
    for (int lane = 0; error == cudaSuccess && lane < MAX_LANES; lane++)
        if (stream->progress.of_lane[lane] < event->progress.of_lane[lane])
            stream->progress.of_lane[lane] = event->progress.of_lane[lane];
    return error;
}

EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    pthread_mutex_lock(&lock);
    cudaError_t error = wait_in_stream(resolve(stream), event, flags);
    pthread_mutex_unlock(&lock);
    return fail(error);
}

/* ---- capture */

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
    struct CUstream_st *stream = resolve(handle);
    if (stream == &legacy_stream) return fail(cudaErrorStreamCaptureUnsupported);
    pthread_mutex_lock(&lock);
    cudaError_t error = stream->capture ? cudaErrorIllegalState : cudaSuccess;
    if (error == cudaSuccess) {
        struct Capture *capture = calloc(1, sizeof *capture);
        capture->id = ++captures_begun;
        capture->mode = mode;
        capture->thread = pthread_self();
        capture->graph = calloc(1, sizeof *capture->graph);
        capture->next = captures;
        captures = capture;
        join(stream, capture);
    }
    pthread_mutex_unlock(&lock);
    return fail(error);
}

static bool is_joined(const struct Capture *capture) {
    for (int lane = 1; lane < capture->n_lanes; lane++)
        if (capture->lanes[0]->progress.of_lane[lane] < capture->lanes[lane]->progress.of_lane[lane]) return false;
    return true;
}

static void forget_capture(struct Capture *capture) {
    for (int lane = 0; lane < capture->n_lanes; lane++) capture->lanes[lane]->capture = NULL;
    struct Capture **link = &captures;
    while (*link != capture) link = &(*link)->next;
    *link = capture->next;
    free(capture);
}

static cudaError_t end_capture(struct CUstream_st *stream, cudaGraph_t *graph) {
    struct Capture *capture = stream->capture;
    if (!capture) return cudaErrorIllegalState;
    if (stream != capture->lanes[0]) return break_capture(capture, cudaErrorStreamCaptureUnmatched);
    bool is_other_thread = !pthread_equal(capture->thread, pthread_self());
    if (is_other_thread && capture->mode != cudaStreamCaptureModeRelaxed) return cudaErrorStreamCaptureWrongThread;
    cudaError_t error = cudaSuccess;
    if (capture->is_broken) error = cudaErrorStreamCaptureInvalidated;
    else if (!is_joined(capture)) error = cudaErrorStreamCaptureUnjoined;
    if (error == cudaSuccess) *graph = capture->graph;
    else cudaGraphDestroy(capture->graph);
    forget_capture(capture);
    return error;
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = NULL;
    pthread_mutex_lock(&lock);
    cudaError_t error = end_capture(resolve(stream), graph);
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t handle, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges, size_t *n_dependencies) {
    struct CUstream_st *stream = resolve(handle);
    pthread_mutex_lock(&lock);
    struct Capture *capture = stream->capture;
    *status = !capture               ? cudaStreamCaptureStatusNone
              : capture->is_broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    if (id) *id = capture ? capture->id : 0;
    if (graph) *graph = capture ? capture->graph : NULL;
    if (dependencies) *dependencies = NULL;
    if (edges) *edges = NULL;
    if (n_dependencies) *n_dependencies = 0;
    /* Merely to ask about the legacy stream is an error in CUDA while a blocking stream captures. */
    bool is_implicit = false;
    for (struct Capture *other = captures; stream == &legacy_stream && other; other = other->next)
        is_implicit |= other->has_blocking_stream && !other->is_broken;
    pthread_mutex_unlock(&lock);
    return is_implicit ? fail(cudaErrorStreamCaptureImplicit) : cudaSuccess;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    return cudaStreamGetCaptureInfo(stream, status, NULL, NULL, NULL, NULL, NULL);
}

/* ---- graphs */

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes) {
    for (int i = 0; nodes && i < graph->n_nodes && i < (int)*n_nodes; i++) nodes[i] = &graph->nodes[i];
    *n_nodes = graph->n_nodes;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    free(graph->nodes);
    free(graph);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    size_t bytes = graph->n_nodes * sizeof *graph->nodes;
    *executable = calloc(1, sizeof **executable);
    (*executable)->graph = (struct CUgraph_st){.nodes = malloc(bytes), .n_nodes = graph->n_nodes};
    if (bytes) memcpy((*executable)->graph.nodes, graph->nodes, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(
    cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(executable, graph, flags);
}

EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    free(executable->graph.nodes);
    free(executable);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream) { return cudaSuccess; }

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
    struct CUstream_st *stream = resolve(handle);
    forget_last_copy();
    pthread_mutex_lock(&lock);
    cudaError_t error = check_use(stream);
    /* CUDA would make it a child of the graph that is captured; nobody here wants that. */
    if (error == cudaSuccess && stream->capture) error = break_capture(stream->capture, cudaErrorNotSupported);
    pthread_mutex_unlock(&lock);
    if (error != cudaSuccess) return fail(error);
    count(graph_launches, 1);
    for (int i = 0; i < executable->graph.n_nodes; i++) perform(&executable->graph.nodes[i]);
    return cudaSuccess;
}
