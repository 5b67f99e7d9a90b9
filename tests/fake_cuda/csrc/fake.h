/* Shared by the sources of the fake CUDA runtime: counters, errors, memory, streams. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* The libraries are built with -fvisibility=hidden: what stands in for CUDA, or is read from Python, says so. */
#define EXPORT __attribute__((visibility("default")))

/* ---- counters.c */

/* Copies to and from the device count all of them, the blocking ones among them; what a capture records is counted as
   captured and not again when the graph is launched. */
#define COUNTERS(X) \
    X(kernels) X(library_calls) X(memsets) X(graph_launches) \
    X(captured_kernels) X(captured_library_calls) X(captured_memsets) X(captured_copies) \
    X(copies_to_device) X(copies_to_host) X(copies_on_device) \
    X(blocking_copies_to_device) X(blocking_copies_to_host) \
    X(bytes_to_device) X(bytes_to_host) \
    X(synchronisations) X(event_records) X(allocations) X(frees) X(pinned_allocations)

enum Counter {
#define ENTRY(name) name,
    COUNTERS(ENTRY)
#undef ENTRY
    n_counters
};

void count(enum Counter counter, long by);
long kernels_so_far(void); /* of which any may have computed something */

/* How often a kernel or a function of a library was launched and captured. */
struct Tally {
    const char *name;
    atomic_long launched, captured;
    bool is_listed;
};

void tally(struct Tally *tally, bool is_captured);

/* ---- device.c */

cudaError_t fail(cudaError_t error); /* remembers it for cudaGetLastError; success passes through */
int current_device(void);
size_t device_memory_bytes(void);

/* ---- memory.c */

enum Place { pageable_host, pinned_host, on_device };

enum Place place_of(const void *address);
void copy_now(void *to, const void *from, size_t bytes);
void set_now(void *to, int value, size_t bytes);

/* ---- streams.c */

/* One piece of device work: at once, or recorded into the graph that the stream captures. */
struct CUgraphNode_st {
    enum { kernel_node, library_node, copy_node, memset_node, host_node } kind;
    struct Tally *tally;
    void *to;
    const void *from;
    size_t bytes;
    int value;
    cudaHostFn_t function;
    void *argument;
};

cudaError_t enqueue(cudaStream_t stream, struct CUgraphNode_st work);
cudaError_t unsafe_call(void); /* to be asked before what CUDA forbids while a stream is captured */
void forget_last_copy(void);

#endif
