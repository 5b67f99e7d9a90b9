/* Memory and copies, which are real: a device's memory is host memory of this process.

   Kernels do nothing, so most of what is read back was never computed. A copy to the host gives
   - what an earlier copy or memset of exactly this place and length has put there; of a scalar (1, 4 or 8 bytes), only
     if no kernel was launched since, which may have computed another;
   - otherwise the integer one, if it is a scalar: a flag reads as true, a count as a small one, and a floating-point
     number as the least above zero, so finite;
   - otherwise zeros: finite as numbers of every type, and no flag of a vector of them is set.
   Memory that an allocator hands out again is so not taken for what lay there before, unless a vector's length is the
   same. */
#include "fake.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* torch's allocator hands out multiples of this, so whole tensors begin here. */
#define GRANULE 512

struct Range {
    char *start;
    size_t bytes;
    enum Place place;
    int device;
    struct Note *notes; /* of a device's memory, for each granule: the last copy that began there */
};

struct Note {
    size_t bytes; /* 0: unknown */
    long kernels_before;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct Range *ranges; /* by address */
static int n_ranges, room;
static size_t used[64]; /* of each device */

/* ---- ranges; to be called with the lock */

static int first_after(const void *address) {
    int low = 0, high = n_ranges;
    while (low < high) {
        int middle = (low + high) / 2;
        if (ranges[middle].start <= (char *)address) low = middle + 1;
        else high = middle;
    }
    return low;
}

static struct Range *range_of(const void *address) {
    int i = first_after(address) - 1;
    return i >= 0 && (char *)address < ranges[i].start + ranges[i].bytes ? &ranges[i] : NULL;
}

static void add_range(struct Range range) {
    int i = first_after(range.start);
    if (n_ranges == room) ranges = realloc(ranges, (room = room ? 2 * room : 256) * sizeof *ranges);
    memmove(ranges + i + 1, ranges + i, (n_ranges++ - i) * sizeof *ranges);
    ranges[i] = range;
}

static void remove_range(struct Range *range) {
    n_ranges--;
    memmove(range, range + 1, (ranges + n_ranges - range) * sizeof *range);
}

/* Zeroed, and no page of it is there before it is written. */
static void *map(size_t bytes) {
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return mapped == MAP_FAILED ? NULL : mapped;
}

static size_t note_bytes(size_t bytes) { return (bytes / GRANULE + 1) * sizeof(struct Note); }

/* ---- memory of a device */

EXPORT cudaError_t cudaMalloc(void **address, size_t bytes) {
    cudaError_t error = unsafe_call();
    if (error != cudaSuccess) return fail(error);
    int device = current_device();
    if (!bytes) return *address = NULL, cudaSuccess;
    pthread_mutex_lock(&lock);
    if (used[device] + bytes > device_memory_bytes() || !(*address = map(bytes))) error = cudaErrorMemoryAllocation;
    else {
        used[device] += bytes;
        add_range((struct Range){*address, bytes, on_device, device, map(note_bytes(bytes))});
        count(allocations, 1);
    }
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaFree(void *address) {
    if (!address) return cudaSuccess;
    cudaError_t error = unsafe_call();
    if (error != cudaSuccess) return fail(error);
    pthread_mutex_lock(&lock);
    struct Range *range = range_of(address);
    if (!range || range->start != address || range->place != on_device) error = cudaErrorInvalidValue;
    else {
        used[range->device] -= range->bytes;
        munmap(range->notes, note_bytes(range->bytes));
        munmap(range->start, range->bytes); /* whoever still uses it is ended by a signal */
        remove_range(range);
        count(frees, 1);
    }
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *total = device_memory_bytes();
    pthread_mutex_lock(&lock);
    *free = *total - used[current_device()];
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* ---- pinned memory of the host */

static cudaError_t pin(void *address, size_t bytes) {
    pthread_mutex_lock(&lock);
    add_range((struct Range){address, bytes, pinned_host, current_device(), NULL});
    pthread_mutex_unlock(&lock);
    count(pinned_allocations, 1);
    return cudaSuccess;
}

static cudaError_t unpin(void *address, bool unmaps) {
    cudaError_t error = unsafe_call();
    if (error != cudaSuccess) return fail(error);
    pthread_mutex_lock(&lock);
    struct Range *range = range_of(address);
    if (!range || range->start != address || range->place != pinned_host) error = cudaErrorInvalidValue;
    else {
        if (unmaps) munmap(range->start, range->bytes);
        remove_range(range);
    }
    pthread_mutex_unlock(&lock);
    return fail(error);
}

EXPORT cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    cudaError_t error = unsafe_call();
    if (error != cudaSuccess) return fail(error);
    if (!(*address = map(bytes ? bytes : 1))) return fail(cudaErrorMemoryAllocation);
    return pin(*address, bytes);
}

EXPORT cudaError_t cudaMallocHost(void **address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }
EXPORT cudaError_t cudaFreeHost(void *address) { return address ? unpin(address, true) : cudaSuccess; }

EXPORT cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) {
    cudaError_t error = unsafe_call();
    return error != cudaSuccess ? fail(error) : pin(address, bytes);
}

EXPORT cudaError_t cudaHostUnregister(void *address) { return unpin(address, false); }

EXPORT cudaError_t cudaHostGetDevicePointer(void **there, void *here, unsigned flags) {
    return *there = here, cudaSuccess;
}

/* ---- places */

enum Place place_of(const void *address) {
    pthread_mutex_lock(&lock);
    struct Range *range = range_of(address);
    enum Place place = range ? range->place : pageable_host;
    pthread_mutex_unlock(&lock);
    return place;
}

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    pthread_mutex_lock(&lock);
    struct Range *range = range_of(address);
    *attributes = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered, .device = -2};
    if (range) {
        attributes->type = range->place == on_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
        attributes->device = range->device;
        attributes->devicePointer = (void *)address;
        attributes->hostPointer = range->place == on_device ? NULL : (void *)address;
    } else attributes->hostPointer = (void *)address;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* ---- what is known of a device's memory */

/* NULL if it does not begin at a granule of a device's memory. */
static struct Note *note_of(const void *address) {
    struct Range *range = range_of(address);
    if (!range || range->place != on_device || ((uintptr_t)address % GRANULE)) return NULL;
    return &range->notes[((char *)address - range->start) / GRANULE];
}

static bool is_scalar(size_t bytes) { return bytes == 1 || bytes == 4 || bytes == 8; }

static bool is_known(const void *address, size_t bytes) {
    struct Note *note = note_of(address);
    return note && note->bytes == bytes && (!is_scalar(bytes) || note->kernels_before == kernels_so_far());
}

static void set_known(const void *address, size_t bytes) {
    struct Note *note = note_of(address);
    if (note) *note = (struct Note){bytes, kernels_so_far()};
}

static void read_uncomputed(void *to, size_t bytes) {
    memset(to, 0, bytes);
    if (is_scalar(bytes)) *(char *)to = 1;
}

void copy_now(void *to, const void *from, size_t bytes) {
    enum Place source = place_of(from), target = place_of(to);
    pthread_mutex_lock(&lock);
    bool known = source != on_device || is_known(from, bytes);
    if (target == on_device) set_known(to, known ? bytes : 0);
    pthread_mutex_unlock(&lock);
    if (known || target == on_device) memmove(to, from, bytes);
    else read_uncomputed(to, bytes);
}

void set_now(void *to, int value, size_t bytes) {
    pthread_mutex_lock(&lock);
    set_known(to, bytes);
    pthread_mutex_unlock(&lock);
    memset(to, value, bytes);
}
