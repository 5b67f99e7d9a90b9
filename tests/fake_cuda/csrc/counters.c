/* Counters and tallies, and how Python reads them (tests/fake_cuda/counts.py). */
#include "fake.h"

#include <stdlib.h>

static const char *const names[] = {
#define ENTRY(name) #name,
    COUNTERS(ENTRY)
#undef ENTRY
};
static atomic_long counters[n_counters];

void count(enum Counter counter, long by) { atomic_fetch_add(&counters[counter], by); }

long kernels_so_far(void) {
    return atomic_load(&counters[kernels]) + atomic_load(&counters[library_calls]) + atomic_load(&counters[graph_launches]);
}

/* Only what was ever launched is listed: torch registers more than a hundred thousand kernels. */
static pthread_mutex_t listing = PTHREAD_MUTEX_INITIALIZER;
static struct Tally **listed;
static int n_listed, room;

void tally(struct Tally *tally, bool is_captured) {
    pthread_mutex_lock(&listing);
    if (!tally->is_listed) {
        if (n_listed == room) listed = realloc(listed, (room = room ? 2 * room : 1024) * sizeof *listed);
        listed[n_listed++] = tally;
        tally->is_listed = true;
    }
    pthread_mutex_unlock(&listing);
    atomic_fetch_add(is_captured ? &tally->captured : &tally->launched, 1);
}

EXPORT int fake_cuda_counters(void) { return n_counters; }
EXPORT const char *fake_cuda_counter(int i, long *value) {
    *value = atomic_load(&counters[i]);
    return names[i];
}
EXPORT int fake_cuda_tallies(void) { return n_listed; }
EXPORT const char *fake_cuda_tally(int i, long *launched, long *captured) {
    *launched = atomic_load(&listed[i]->launched);
    *captured = atomic_load(&listed[i]->captured);
    return listed[i]->name;
}
