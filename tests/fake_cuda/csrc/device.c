/* Devices, versions, errors. The environment says what machine this is:
   FAKE_CUDA_DEVICES (1), FAKE_CUDA_MEMORY_MIB of each (144384), FAKE_CUDA_DRIVER (13020, as cudaDriverGetVersion says
   it; 0 where there is no driver). CUDA_VISIBLE_DEVICES is heeded, for Ray sets it for its actors. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value && *value ? atol(value) : otherwise;
}

/* ---- errors */

static __thread cudaError_t last_error;

cudaError_t fail(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

/* In CUDA's words, which torch passes on and tests look for. */
#define ERRORS(X) \
    X(cudaSuccess, "no error") \
    X(cudaErrorInvalidValue, "invalid argument") \
    X(cudaErrorMemoryAllocation, "out of memory") \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version") \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected") \
    X(cudaErrorInvalidDevice, "invalid device ordinal") \
    X(cudaErrorIllegalState, "the operation cannot be performed in the present state") \
    X(cudaErrorNotReady, "device not ready") \
    X(cudaErrorNotSupported, "operation not supported") \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing") \
    X(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture") \
    X(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences") \
    X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began") \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work") \
    X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream") \
    X(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream") \
    X(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream") \
    X(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread")

EXPORT const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define ENTRY(code, words) case code: return words;
        ERRORS(ENTRY)
#undef ENTRY
        default: return "unrecognized error code";
    }
}

EXPORT const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define ENTRY(code, words) case code: return #code;
        ERRORS(ENTRY)
#undef ENTRY
        default: return "unrecognized error code";
    }
}

/* ---- versions */

static int driver_version(void) { return setting("FAKE_CUDA_DRIVER", CUDART_VERSION); }

EXPORT cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int *version) { return *version = driver_version(), cudaSuccess; }

/* ---- how many, and which */

static __thread int device;

int current_device(void) { return device; }
size_t device_memory_bytes(void) { return (size_t)setting("FAKE_CUDA_MEMORY_MIB", 141 * 1024) << 20; }

/* As CUDA reads the variable: up to the first entry that is no device. It counts once, when first asked. */
static int visible[64], n_visible;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_visible(void) {
    int devices = setting("FAKE_CUDA_DEVICES", 1);
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list) {
        for (; n_visible < devices && n_visible < 64; n_visible++) visible[n_visible] = n_visible;
        return;
    }
    while (*list && n_visible < 64) {
        char *end;
        long index = strtol(list, &end, 10);
        if (end == list || index < 0 || index >= devices) return;
        visible[n_visible++] = index;
        if (*end != ',') return;
        list = end + 1;
    }
}

EXPORT int fake_cuda_devices(void) {
    pthread_once(&once, find_visible);
    return n_visible;
}

EXPORT cudaError_t cudaGetDeviceCount(int *devices) {
    /* Drivers of the runtime's own major version serve it. */
    *devices = 0;
    if (driver_version() / 1000 < CUDART_VERSION / 1000) return fail(cudaErrorInsufficientDriver);
    *devices = fake_cuda_devices();
    return *devices ? cudaSuccess : fail(cudaErrorNoDevice);
}

static cudaError_t check_device(int index) {
    int devices;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess) return error;
    return index >= 0 && index < devices ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

EXPORT cudaError_t cudaGetDevice(int *index) {
    *index = device;
    return check_device(device);
}

EXPORT cudaError_t cudaSetDevice(int index) {
    cudaError_t error = check_device(index);
    if (error == cudaSuccess) device = index;
    return error;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to) { return *can = 0, cudaSuccess; }

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int index) {
    snprintf(id, length, "0000:%02x:00.0", visible[index] + 1);
    return check_device(index);
}

/* ---- what each is: an H200 */

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int index) {
    *properties = (struct cudaDeviceProp){
        .name = "Fake H200", .totalGlobalMem = device_memory_bytes(), .major = 9, .minor = 0,
        .multiProcessorCount = 132, .maxBlocksPerMultiProcessor = 32, .maxThreadsPerMultiProcessor = 2048,
        .maxThreadsPerBlock = 1024, .maxThreadsDim = {1024, 1024, 64}, .maxGridSize = {2147483647, 65535, 65535},
        .warpSize = 32, .regsPerBlock = 65536, .regsPerMultiprocessor = 65536, .sharedMemPerBlock = 49152,
        .sharedMemPerBlockOptin = 232448, .sharedMemPerMultiprocessor = 233472, .l2CacheSize = 60 << 20,
        .textureAlignment = 512, .unifiedAddressing = 1, .concurrentKernels = 1, .pciBusID = visible[index] + 1,
    };
    memcpy(properties->uuid.bytes, "fake device 0000", 16);
    properties->uuid.bytes[15] += visible[index];
    return check_device(index);
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY: *value = 65535; break;
        default: *value = 1; /* mostly whether it can */
    }
    return check_device(index);
}
