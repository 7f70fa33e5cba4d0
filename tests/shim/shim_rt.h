/* The CUDA runtime calls that gpu/ops_cuda.cu may use, on the host. Included by shim.h.
 *
 * Streams are lazy: work is queued and runs when a call waits for it (or asks for its state: each
 * query runs one step), so a forgotten synchronise gives a wrong answer every time. Pageable host
 * memory is read at the call; pinned memory when the work runs, as on a device. A graph is what was
 * captured, arguments by value; capture is linear in the order of the calls. Device memory can be
 * touched only by work that runs; it is filled with 0xff and ends at a guard page. Values of the
 * errors and flags are CUDA's own. */
#ifndef DT_SHIM_RT_H
#define DT_SHIM_RT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorStubLibrary = 34,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorDeviceUninitialized = 201,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureImplicit = 906,
    cudaErrorCapturedEvent = 907,
    cudaErrorGraphExecUpdateFailure = 910,
    cudaErrorUnknown = 999,
};
typedef cudaError cudaError_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2,
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
    cudaStreamCaptureStatusInvalidated = 2,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrIntegrated = 18,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaGraphExecUpdateResult {
    cudaGraphExecUpdateSuccess = 0,
    cudaGraphExecUpdateError = 1,
    cudaGraphExecUpdateErrorTopologyChanged = 2,
    cudaGraphExecUpdateErrorNodeTypeChanged = 3,
    cudaGraphExecUpdateErrorFunctionChanged = 4,
};

static const unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
static const unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
static const unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2,
                      cudaHostAllocWriteCombined = 4;
static const unsigned cudaDeviceScheduleAuto = 0, cudaDeviceScheduleSpin = 1,
                      cudaDeviceScheduleYield = 2, cudaDeviceScheduleBlockingSync = 4,
                      cudaDeviceMapHost = 8;
static const int cudaSharedmemCarveoutMaxShared = 100;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
    int warpSize, l2CacheSize, memoryBusWidth, integrated, unifiedAddressing, canMapHostMemory;
    int regsPerBlock, pciBusID, pciDeviceID, pciDomainID;
};
struct cudaGraphNode;
typedef cudaGraphNode *cudaGraphNode_t;
struct cudaGraphExecUpdateResultInfo {
    cudaGraphExecUpdateResult result;
    cudaGraphNode_t errorNode, errorFromNode;
};
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef void (*cudaHostFn_t)(void *data);

/* ---- devices */
cudaError_t cudaGetDeviceCount(int *n_devices);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDeviceFlags(unsigned flags);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaDeviceGetPCIBusId(char *id, int size_bytes, int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);

/* ---- memory */
cudaError_t cudaMalloc(void **device, size_t size_bytes);
cudaError_t cudaFree(void *device);
cudaError_t cudaMallocHost(void **host, size_t size_bytes);
cudaError_t cudaHostAlloc(void **host, size_t size_bytes, unsigned flags);
cudaError_t cudaFreeHost(void *host);
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags);
cudaError_t cudaMemcpy(void *to, const void *from, size_t size_bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size_bytes, cudaMemcpyKind kind,
    cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void *device, int value, size_t size_bytes);
cudaError_t cudaMemsetAsync(
    void *device, int value, size_t size_bytes, cudaStream_t stream = nullptr);

template <typename T> static inline cudaError_t cudaMalloc(T **device, size_t size_bytes) {
    return cudaMalloc(reinterpret_cast<void **>(device), size_bytes);
}
template <typename T> static inline cudaError_t cudaMallocHost(T **host, size_t size_bytes) {
    return cudaMallocHost(reinterpret_cast<void **>(host), size_bytes);
}
template <typename T>
static inline cudaError_t cudaHostAlloc(T **host, size_t size_bytes, unsigned flags) {
    return cudaHostAlloc(reinterpret_cast<void **>(host), size_bytes, flags);
}
template <typename T>
static inline cudaError_t cudaHostGetDevicePointer(T **device, void *host, unsigned flags) {
    return cudaHostGetDevicePointer(reinterpret_cast<void **>(device), host, flags);
}

/* ---- streams, events */
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);

/* ---- graphs */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes);
cudaError_t cudaGraphInstantiate(
    cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphExecUpdate(
    cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* ---- kernels */

/* A launch as it waits in a stream: `call` unpacks the copied arguments. */
struct shim_launch {
    const void *kernel;
    const char *name;
    void (*call)(const void *kernel, const void *args);
    dim3 grid, block;
    size_t smem_bytes, args_bytes;
};
cudaError_t shim_enqueue(const shim_launch *launch, const void *args, cudaStream_t stream);
/* An argument that is a pointer must be one the device can follow; says so and aborts. */
void shim_check_pointer(const char *kernel, int i_arg, const volatile void *pointer);
cudaError_t shim_func_attribute(const void *kernel, cudaFuncAttribute attribute, int value);

template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute attribute, int value) {
    return shim_func_attribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

/* Arguments side by side, without the library's tuple (whose layout is nobody's business). */
template <typename... P> struct shim_args;
template <> struct shim_args<> {
    template <typename... Q> void call(void (*kernel)(Q...), const Q &...before) const {
        kernel(before...);
    }
    void check(const char *, int) const {
    }
};
template <typename T> struct shim_is_pointer {
    static void check(const char *, int, const T &) {
    }
};
template <typename T> struct shim_is_pointer<T *> {
    static void check(const char *kernel, int i_arg, T *pointer) {
        shim_check_pointer(kernel, i_arg, pointer);
    }
};
template <typename First, typename... Rest> struct shim_args<First, Rest...> {
    First first;
    shim_args<Rest...> rest;
    explicit shim_args(const First &f, const Rest &...r) : first(f), rest{r...} {
    }
    template <typename... Q, typename... Before>
    void call(void (*kernel)(Q...), const Before &...before) const {
        rest.call(kernel, before..., first);
    }
    void check(const char *kernel, int i_arg) const {
        shim_is_pointer<First>::check(kernel, i_arg, first);
        rest.check(kernel, i_arg + 1);
    }
};

template <typename T> struct gpu_as { typedef T type; };

template <typename... P> struct shim_caller {
    static void call(const void *kernel, const void *args) {
        static_cast<const shim_args<P...> *>(args)->call(
            reinterpret_cast<void (*)(P...)>(const_cast<void *>(kernel)));
    }
};

template <typename... P>
static inline cudaError_t shim_start(const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
    size_t smem_bytes, cudaStream_t stream, typename gpu_as<P>::type... args) {
    const shim_args<P...> packed{args...};
    packed.check(name, 0);
    const shim_launch launch = {reinterpret_cast<const void *>(kernel), name,
        shim_caller<P...>::call, grid, block, smem_bytes, sizeof(packed)};
    return shim_enqueue(&launch, &packed, stream);
}

#define GPU_LAUNCH(kernel, grid, block, smem, stream, ...)                                         \
    shim_start(#kernel, kernel, grid, block, smem, stream, ##__VA_ARGS__)

#endif
