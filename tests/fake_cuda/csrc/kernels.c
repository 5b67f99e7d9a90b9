/* Kernels: registered by name as the compiler arranges it, counted when launched, never run. */
#include "fake.h"

#include <stdint.h>
#include <stdlib.h>

struct Kernel {
    const void *host_function; /* what stands for it in the program */
    struct Tally tally;
};

/* By address, open addressing, never more than half full. Libraries register from their constructors, one at a time. */
static struct Kernel **slots;
static size_t n_slots, n_kernels;

static struct Kernel **slot_of(const void *host_function) {
    size_t i = ((uintptr_t)host_function >> 4) * 2654435761u & (n_slots - 1);
    while (slots[i] && slots[i]->host_function != host_function) i = (i + 1) & (n_slots - 1);
    return &slots[i];
}

static void make_room(void) {
    struct Kernel **old = slots;
    size_t n_old = n_slots;
    n_slots = n_old ? 2 * n_old : 1 << 16;
    slots = calloc(n_slots, sizeof *slots);
    for (size_t i = 0; i < n_old; i++)
        if (old[i]) *slot_of(old[i]->host_function) = old[i];
    free(old);
}

void **__cudaRegisterFatBinary(void *binary);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external, size_t bytes,
                       int constant, int global);
void __cudaRegisterFunction(void **handle, const char *host_function, char *device_function, const char *name,
                            int thread_limit, uint3 *thread_id, uint3 *block_id, dim3 *block, dim3 *grid, int *warp);
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream);
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host_function);
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                               cudaStream_t stream);

EXPORT void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[1];
    return handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) {}
EXPORT void __cudaUnregisterFatBinary(void **handle) {}
EXPORT void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external,
                              size_t bytes, int constant, int global) {}

EXPORT void __cudaRegisterFunction(void **handle, const char *host_function, char *device_function, const char *name,
                                   int thread_limit, uint3 *thread_id, uint3 *block_id, dim3 *block, dim3 *grid,
                                   int *warp) {
    if (2 * n_kernels >= n_slots) make_room();
    struct Kernel **slot = slot_of(host_function);
    if (*slot) return;
    *slot = calloc(1, sizeof **slot);
    **slot = (struct Kernel){host_function, {.name = name}};
    n_kernels++;
}

/* ---- launches */

static cudaError_t launch(const void *host_function, cudaStream_t stream) {
    static struct Tally unknown = {.name = "a kernel that was not registered"};
    struct Kernel *kernel = slots ? *slot_of(host_function) : NULL;
    return enqueue(stream, (struct CUgraphNode_st){.kind = kernel_node, .tally = kernel ? &kernel->tally : &unknown});
}

EXPORT cudaError_t cudaLaunchKernel(
    const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_bytes, cudaStream_t stream) {
    return launch(function, stream);
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                                      size_t shared_bytes, cudaStream_t stream) {
    return launch(kernel, stream);
}

EXPORT cudaError_t cudaLaunchKernelExC(
    const cudaLaunchConfig_t *configuration, const void *function, void **arguments) {
    return launch(function, configuration->stream);
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host_function) {
    return *kernel = (cudaKernel_t)host_function, cudaSuccess;
}

/* What kernel<<<...>>> hands from the place of the call to the stub, which launches. */
static __thread struct {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
} configurations[8];
static __thread int n_configurations;

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
    if (n_configurations == 8) return 1;
    configurations[n_configurations].grid = grid;
    configurations[n_configurations].block = block;
    configurations[n_configurations].shared_bytes = shared_bytes;
    configurations[n_configurations++].stream = stream;
    return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
    if (!n_configurations) return fail(cudaErrorInvalidValue);
    n_configurations--;
    *grid = configurations[n_configurations].grid;
    *block = configurations[n_configurations].block;
    *shared_bytes = configurations[n_configurations].shared_bytes;
    *(cudaStream_t *)stream = configurations[n_configurations].stream;
    return cudaSuccess;
}

/* ---- what torch asks about kernels, to choose a size */

EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    *attributes = (struct cudaFuncAttributes){
        .maxThreadsPerBlock = 1024, .numRegs = 32, .ptxVersion = 90, .binaryVersion = 90};
    return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int block, size_t shared_bytes, unsigned flags) {
    return *blocks = 2, cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(
    int *blocks, const void *function, int block, size_t shared_bytes) {
    return *blocks = 2, cudaSuccess;
}

EXPORT cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char variable[1 << 20];
    return *address = variable, cudaSuccess;
}

/* None: torch then does without the driver's newer functions. */
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
    *function = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
