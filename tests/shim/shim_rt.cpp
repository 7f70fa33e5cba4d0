/* The runtime calls: streams, events, graphs, memory counts, and failures on order. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "tests/shim/shim_in.h"

cudaError_t shim_launch_check(const shim_launch *launch);
cudaError_t shim_func_attribute_set(const void *kernel, int value);

enum { MAX_DEVICES = 8 };

enum op_kind { OP_LAUNCH, OP_COPY, OP_FILL, OP_RECORD, OP_WAIT, OP_GRAPH, OP_HOST };

struct work {
    work *next;
    op_kind kind;
    shim_launch launch; /* its arguments follow the struct, as staged host memory does */
    void *to;
    const void *from; /* NULL: what follows the struct */
    size_t size_bytes;
    int value;
    cudaEvent_t event;
    cudaStream_t stream; /* to wait for, up to `until` */
    uint64_t until;
    struct graph_work *graph;
    cudaHostFn_t call;
    void *data;
    size_t n_tail_bytes;
};

struct graph_work { /* immutable once captured; shared by graphs and launches */
    int n_refs, n_ops;
    work *first, **last;
};

struct CUgraph_st {
    graph_work *ops;
    cudaStream_t origin;
    bool spoilt;
};
struct CUgraphExec_st {
    graph_work *ops;
};
struct CUstream_st {
    CUstream_st *next; /* all of them, also the destroyed: others may wait for what they did */
    bool live, blocking;
    int device, priority;
    work *first, **last;
    uint64_t n_queued, n_done;
    cudaGraph_t capture;
    int n_captured, n_joined; /* operations captured here, and how many of them a wait has joined */
};
struct CUevent_st {
    CUevent_st *next;
    bool live, timing, ran;
    cudaStream_t stream; /* NULL: never recorded */
    uint64_t until;
    double time_ms;
    cudaGraph_t capture;
    int n_captured;
};

struct trigger {
    long fail, lose, hang; /* the count at which, 0: never */
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t released;
    bool is_open, lost;
    int driver_error, n_devices, capability;
    size_t vram[MAX_DEVICES], in_use[MAX_DEVICES], device_bytes, peak_bytes, pinned_bytes;
    long n_calls[SHIM_N_KINDS], n_kernels, n_copies;
    trigger triggers[SHIM_N_KINDS];
    int n_hanging, n_objects;
    bool no_hang;
    CUstream_st *streams, legacy[MAX_DEVICES];
    CUevent_st *events;
    int n_capturing;
} rt = {.lock = PTHREAD_MUTEX_INITIALIZER, .released = PTHREAD_COND_INITIALIZER};

static thread_local int current_device;
static thread_local cudaError_t last_error;

/* ---- set-up, failures on order */

static const char *const kind_names[] = {
    "alloc", "copy", "launch", "event", "sync", "graph", "stream", "other", "any"};

static void arm(shim_kind kind, char how, long n) {
    trigger *t = &rt.triggers[kind];
    long at = n ? rt.n_calls[kind] + n : 0;
    *(how == 'f' ? &t->fail : how == 'l' ? &t->lose : &t->hang) = at;
}

static void read_failures(const char *text) {
    while (*text) {
        char how = 'f';
        if (strncmp(text, "lose@", 5) == 0 || strncmp(text, "hang@", 5) == 0) {
            how = *text;
            text += 5;
        }
        int kind = 0;
        size_t length = strcspn(text, ":");
        while (kind < SHIM_N_KINDS && (strlen(kind_names[kind]) != length ||
                                          strncmp(text, kind_names[kind], length) != 0)) {
            kind++;
        }
        if (kind == SHIM_N_KINDS || text[length] != ':') {
            shim_fault("SHIM_FAIL: cannot read '%s'", text);
        }
        char *end;
        arm((shim_kind)kind, how, strtol(text + length + 1, &end, 10));
        text = *end == ',' ? end + 1 : end;
        if (*end && *end != ',') {
            shim_fault("SHIM_FAIL: cannot read '%s'", end);
        }
    }
}

static void read_order(const char *text) {
    if (strcmp(text, "forward") == 0) {
        shim_set_order_now(SHIM_ORDER_FORWARD, 0);
    } else if (strcmp(text, "reverse") == 0) {
        shim_set_order_now(SHIM_ORDER_REVERSE, 0);
    } else if (strncmp(text, "random", 6) == 0) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t seed = text[6] == ':' ? strtoull(text + 7, nullptr, 0)
                                       : (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 32;
        fprintf(stderr, "shim: SHIM_ORDER=random:%llu\n", (unsigned long long)seed);
        shim_set_order_now(SHIM_ORDER_RANDOM, seed);
    } else {
        shim_fault("SHIM_ORDER: cannot read '%s'", text);
    }
}

static void tell_leaks(void) {
    if (rt.device_bytes || rt.pinned_bytes || rt.n_objects) {
        fprintf(stderr, "shim: at exit %zu bytes of device memory, %zu pinned, %d objects\n",
            rt.device_bytes, rt.pinned_bytes, rt.n_objects);
        fflush(stdout);
        _exit(70);
    }
}

static void open_once(void) {
    if (rt.is_open) {
        return;
    }
    rt.is_open = true;
    const char *text;
    rt.n_devices = (text = getenv("SHIM_DEVICES")) ? atoi(text) : 1;
    if (rt.n_devices < 0 || rt.n_devices > MAX_DEVICES) {
        shim_fault("SHIM_DEVICES is not in 0..%d", MAX_DEVICES);
    }
    text = getenv("SHIM_VRAM_MB");
    size_t vram = (size_t)8192 << 20;
    for (int i = 0; i < MAX_DEVICES; i++) {
        if (text && *text) {
            char *end;
            vram = (size_t)strtoull(text, &end, 10) << 20;
            text = *end == ',' ? end + 1 : end;
        }
        rt.vram[i] = vram;
        rt.legacy[i].live = rt.legacy[i].blocking = true;
        rt.legacy[i].device = i;
        rt.legacy[i].last = &rt.legacy[i].first;
    }
    rt.capability = (text = getenv("SHIM_CC")) ? atoi(text) : 89;
    rt.driver_error = (text = getenv("SHIM_DRIVER")) ? atoi(text) : 0;
    if ((text = getenv("SHIM_FAIL"))) {
        read_failures(text);
    }
    if ((text = getenv("SHIM_ORDER"))) {
        read_order(text);
    }
    if ((text = getenv("SHIM_LEAKS")) && atoi(text)) {
        atexit(tell_leaks);
    }
}

/* What the n-th call of a kind returns when it is told to fail. */
static cudaError_t failure_of(shim_kind kind) {
    switch (kind) {
    case SHIM_KIND_ALLOC:
        return cudaErrorMemoryAllocation;
    case SHIM_KIND_LAUNCH:
    case SHIM_KIND_SYNC:
        return cudaErrorLaunchFailure;
    default:
        return cudaErrorUnknown;
    }
}

static cudaError_t leave(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) {
        last_error = error;
    }
    pthread_mutex_unlock(&rt.lock);
    return error;
}

/* Takes the lock; every call that can fail begins so. */
static cudaError_t enter(shim_kind kind) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    const shim_kind counted[2] = {kind, SHIM_KIND_ANY};
    bool fails = false, hangs = false;
    for (int i = 0; i < 2; i++) {
        const trigger *t = &rt.triggers[counted[i]];
        long n = ++rt.n_calls[counted[i]];
        fails |= n == t->fail;
        rt.lost |= t->lose && n >= t->lose;
        hangs |= n == t->hang;
    }
    if (hangs && !rt.no_hang) {
        rt.n_hanging++;
        while (!rt.no_hang) {
            pthread_cond_wait(&rt.released, &rt.lock);
        }
        rt.n_hanging--;
        return cudaErrorUnknown;
    }
    if (rt.driver_error) {
        return (cudaError_t)rt.driver_error;
    }
    if (rt.lost) {
        return cudaErrorIllegalAddress;
    }
    return fails ? failure_of(kind) : cudaSuccess;
}

#define ENTER(kind)                                                                                \
    do {                                                                                           \
        cudaError_t enter_error_ = enter(kind);                                                    \
        if (enter_error_ != cudaSuccess) {                                                         \
            return leave(enter_error_);                                                            \
        }                                                                                          \
    } while (0)

/* ---- work */

static work *work_new(op_kind kind, const void *tail, size_t n_tail_bytes) {
    work *w = static_cast<work *>(calloc(1, sizeof(*w) + n_tail_bytes));
    if (!w) {
        shim_fault("out of host memory");
    }
    w->kind = kind;
    w->n_tail_bytes = n_tail_bytes;
    if (n_tail_bytes) {
        memcpy(reinterpret_cast<void *>(w + 1), tail, n_tail_bytes);
    }
    return w;
}

static void graph_work_free(graph_work *ops) {
    if (!ops || --ops->n_refs) {
        return;
    }
    while (ops->first) {
        work *w = ops->first;
        ops->first = w->next;
        free(w);
    }
    free(ops);
}

static void work_free(work *w) {
    graph_work_free(w->graph);
    free(w);
}

static CUstream_st *stream_of(cudaStream_t stream) {
    if (!stream) {
        return &rt.legacy[current_device];
    }
    CUstream_st *s = rt.streams;
    while (s && s != stream) {
        s = s->next;
    }
    if (!s || !s->live) {
        shim_fault("a stream that was destroyed, or none, is used");
    }
    return s;
}

static CUevent_st *event_of(cudaEvent_t event) {
    CUevent_st *e = rt.events;
    while (e && e != event) {
        e = e->next;
    }
    if (!e || !e->live) {
        shim_fault("an event that was destroyed, or none, is used");
    }
    return e;
}

static void append(CUstream_st *s, work *w) {
    if (s->capture) {
        graph_work *ops = s->capture->ops;
        *ops->last = w;
        ops->last = &w->next;
        ops->n_ops++;
        s->n_captured++;
        return;
    }
    *s->last = w;
    s->last = &w->next;
    s->n_queued++;
}

static void wait_for(CUstream_st *s, CUstream_st *other, uint64_t until) {
    if (other->n_done < until) {
        work *w = work_new(OP_WAIT, nullptr, 0);
        w->stream = other;
        w->until = until;
        append(s, w);
    }
}

/* The default stream waits for the blocking streams of its device and they wait for it. */
static void append_in_order(CUstream_st *s, work *w) {
    CUstream_st *legacy = &rt.legacy[s->device];
    if (s->capture) {
        append(s, w);
        return;
    }
    if (s == legacy) {
        for (CUstream_st *o = rt.streams; o; o = o->next) {
            if (o->blocking && o->device == s->device) {
                wait_for(s, o, o->n_queued);
            }
        }
    } else if (s->blocking) {
        wait_for(s, legacy, legacy->n_queued);
    }
    append(s, w);
}

static void run_until(CUstream_st *s, uint64_t until);

static void run_work(work *w) {
    const void *tail = w + 1;
    switch (w->kind) {
    case OP_LAUNCH:
        rt.n_kernels++;
        shim_run(&w->launch, tail);
        break;
    case OP_COPY:
        memmove(w->to, w->from ? w->from : tail, w->size_bytes);
        break;
    case OP_FILL:
        memset(w->to, w->value, w->size_bytes);
        break;
    case OP_RECORD: {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        w->event->time_ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
        w->event->ran = true;
        break;
    }
    case OP_WAIT:
        run_until(w->stream, w->until);
        break;
    case OP_GRAPH:
        for (work *inner = w->graph->first; inner; inner = inner->next) {
            run_work(inner);
        }
        break;
    case OP_HOST:
        w->call(w->data);
        break;
    }
}

static void run_one(CUstream_st *s) {
    work *w = s->first;
    s->first = w->next;
    if (!s->first) {
        s->last = &s->first;
    }
    run_work(w);
    s->n_done++;
    work_free(w);
}

static void run_until(CUstream_st *s, uint64_t until) {
    if (s->n_done < until) {
        shim_mem_open();
        while (s->n_done < until) {
            run_one(s);
        }
        shim_mem_close();
    }
}

static void run_device(int device) {
    run_until(&rt.legacy[device], rt.legacy[device].n_queued);
    for (CUstream_st *s = rt.streams; s; s = s->next) {
        if (s->device == device) {
            run_until(s, s->n_queued);
        }
    }
}

/* Calls that wait for the device are not for streams that are captured. */
static cudaError_t refuse_capture(void) {
    if (rt.n_capturing == 0) {
        return cudaSuccess;
    }
    for (CUstream_st *s = rt.streams; s; s = s->next) {
        if (s->capture) {
            s->capture->spoilt = true;
        }
    }
    return cudaErrorStreamCaptureUnsupported;
}

/* ---- devices */

cudaError_t cudaGetDeviceCount(int *n_devices) {
    ENTER(SHIM_KIND_OTHER);
    *n_devices = rt.n_devices;
    return leave(rt.n_devices ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaDriverGetVersion(int *version) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    *version = rt.driver_error == cudaErrorInsufficientDriver ? 0 : 13000;
    return leave(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    ENTER(SHIM_KIND_OTHER);
    if (device < 0 || device >= rt.n_devices) {
        return leave(cudaErrorInvalidDevice);
    }
    current_device = device;
    return leave(cudaSuccess);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned) {
    ENTER(SHIM_KIND_OTHER);
    return leave(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    ENTER(SHIM_KIND_OTHER);
    if (device < 0 || device >= rt.n_devices) {
        return leave(cudaErrorInvalidDevice);
    }
    memset(properties, 0, sizeof(*properties));
    snprintf(properties->name, sizeof(properties->name), "Host shim %d", device);
    properties->totalGlobalMem = rt.vram[device];
    properties->sharedMemPerBlock = SHIM_STATIC_SHARED;
    properties->sharedMemPerBlockOptin = SHIM_OPTIN_SHARED;
    properties->sharedMemPerMultiprocessor = SHIM_OPTIN_SHARED + 1024;
    properties->major = rt.capability / 10;
    properties->minor = rt.capability % 10;
    properties->multiProcessorCount = 4;
    properties->maxThreadsPerBlock = SHIM_MAX_THREADS;
    properties->maxThreadsPerMultiProcessor = 1536;
    properties->warpSize = 32;
    properties->l2CacheSize = 1 << 20;
    properties->memoryBusWidth = 128;
    properties->regsPerBlock = 65536;
    properties->unifiedAddressing = properties->canMapHostMemory = 1;
    properties->pciBusID = device + 1;
    return leave(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    ENTER(SHIM_KIND_OTHER);
    if (device < 0 || device >= rt.n_devices) {
        return leave(cudaErrorInvalidDevice);
    }
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = SHIM_MAX_THREADS;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = SHIM_STATIC_SHARED;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = SHIM_OPTIN_SHARED;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrMemoryClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = 128;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = 4;
        break;
    case cudaDevAttrIntegrated:
        *value = 0;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 1 << 20;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = rt.capability / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = rt.capability % 10;
        break;
    default:
        return leave(cudaErrorInvalidValue);
    }
    return leave(cudaSuccess);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    ENTER(SHIM_KIND_OTHER);
    *least = 0;
    *greatest = -5;
    return leave(cudaSuccess);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size_bytes, int device) {
    ENTER(SHIM_KIND_OTHER);
    if (device < 0 || device >= rt.n_devices) {
        return leave(cudaErrorInvalidDevice);
    }
    snprintf(id, (size_t)size_bytes, "0000:%02X:00.0", device + 1);
    return leave(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    ENTER(SHIM_KIND_OTHER);
    *total_bytes = rt.vram[current_device];
    *free_bytes = rt.vram[current_device] - rt.in_use[current_device];
    return leave(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void) {
    ENTER(SHIM_KIND_SYNC);
    cudaError_t error = refuse_capture();
    if (error == cudaSuccess) {
        run_device(current_device);
    }
    return leave(error);
}

cudaError_t cudaDeviceReset(void) {
    return cudaDeviceSynchronize();
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    pthread_mutex_lock(&rt.lock);
    last_error = rt.lost ? cudaErrorIllegalAddress : cudaSuccess;
    pthread_mutex_unlock(&rt.lock);
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    return last_error;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
        "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
        "invalid copy direction for memcpy"},
    {cudaErrorStubLibrary, "cudaErrorStubLibrary", "CUDA driver is a stub library"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
        "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorDevicesUnavailable, "cudaErrorDevicesUnavailable",
        "CUDA-capable device(s) is/are busy or unavailable"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
        "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
        "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
        "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
        "capturing stream has unjoined work"},
    {cudaErrorGraphExecUpdateFailure, "cudaErrorGraphExecUpdateFailure",
        "the graph update was not performed because it included changes which violated "
        "constraints specific to instantiated graph update"},
};

const char *cudaGetErrorName(cudaError_t error) {
    for (const auto &e : errors) {
        if (e.error == error) {
            return e.name;
        }
    }
    return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error) {
    for (const auto &e : errors) {
        if (e.error == error) {
            return e.text;
        }
    }
    return "unknown error";
}

/* ---- memory */

cudaError_t cudaMalloc(void **device, size_t size_bytes) {
    ENTER(SHIM_KIND_ALLOC);
    cudaError_t error = refuse_capture();
    if (error != cudaSuccess) {
        return leave(error);
    }
    if (size_bytes == 0) {
        *device = nullptr;
        return leave(cudaSuccess);
    }
    /* The device gives memory in steps of 512 bytes. */
    size_t taken = (size_bytes + 511) / 512 * 512;
    if (taken < size_bytes || taken > rt.vram[current_device] - rt.in_use[current_device]) {
        return leave(cudaErrorMemoryAllocation);
    }
    *device = shim_mem_alloc(size_bytes, current_device);
    rt.in_use[current_device] += taken;
    rt.device_bytes += taken;
    rt.peak_bytes = rt.device_bytes > rt.peak_bytes ? rt.device_bytes : rt.peak_bytes;
    return leave(cudaSuccess);
}

/* What is freed is given back even where the call fails: a lost device keeps nothing. */
cudaError_t cudaFree(void *device) {
    cudaError_t error = enter(SHIM_KIND_OTHER);
    int owner;
    size_t size_bytes;
    if (!device) {
        return leave(error);
    }
    if (error == cudaSuccess) {
        for (int i = 0; i < rt.n_devices; i++) {
            run_device(i);
        }
    }
    if (!shim_mem_free(device, false, &owner, &size_bytes)) {
        shim_fault("cudaFree of what cudaMalloc did not give, or twice");
    }
    size_t taken = (size_bytes + 511) / 512 * 512;
    rt.in_use[owner] -= taken;
    rt.device_bytes -= taken;
    return leave(error);
}

static cudaError_t alloc_host(void **host, size_t size_bytes) {
    ENTER(SHIM_KIND_ALLOC);
    *host = nullptr;
    if (size_bytes) {
        *host = shim_mem_alloc(size_bytes, -1);
        rt.pinned_bytes += size_bytes;
    }
    return leave(cudaSuccess);
}

cudaError_t cudaMallocHost(void **host, size_t size_bytes) {
    return alloc_host(host, size_bytes);
}

cudaError_t cudaHostAlloc(void **host, size_t size_bytes, unsigned) {
    return alloc_host(host, size_bytes);
}

cudaError_t cudaFreeHost(void *host) {
    cudaError_t error = enter(SHIM_KIND_OTHER);
    int owner;
    size_t size_bytes;
    if (!host) {
        return leave(error);
    }
    if (error == cudaSuccess) {
        for (int i = 0; i < rt.n_devices; i++) {
            run_device(i);
        }
    }
    if (!shim_mem_free(host, true, &owner, &size_bytes)) {
        shim_fault("cudaFreeHost of what cudaMallocHost did not give, or twice");
    }
    rt.pinned_bytes -= size_bytes;
    return leave(error);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
    ENTER(SHIM_KIND_OTHER);
    *device = host;
    return leave(shim_mem_kind(host) == SHIM_PINNED ? cudaSuccess : cudaErrorInvalidValue);
}

/* Inside one live allocation, or host memory? Says what is wrong. */
static bool range_ok(const char *call, const void *at, size_t size_bytes) {
    if (shim_mem_kind(at) == SHIM_HOST) {
        return true;
    }
    const shim_block *block = shim_mem_find(at);
    const char *p = static_cast<const char *>(at);
    if (!block || !block->live || p < block->at || p > block->at + block->size_bytes ||
        size_bytes > (size_t)(block->at + block->size_bytes - p)) {
        fprintf(stderr, "shim: %s of %zu bytes leaves its allocation\n", call, size_bytes);
        return false;
    }
    return true;
}

static bool direction_ok(const void *to, const void *from, cudaMemcpyKind kind) {
    bool to_device = shim_mem_kind(to) == SHIM_DEVICE;
    bool from_device = shim_mem_kind(from) == SHIM_DEVICE;
    return kind == cudaMemcpyDefault ||
           (to_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
               from_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice));
}

static cudaError_t copy_check(
    const void *to, const void *from, size_t size_bytes, cudaMemcpyKind kind) {
    if (!range_ok("a copy", to, size_bytes) || !range_ok("a copy", from, size_bytes)) {
        return cudaErrorInvalidValue;
    }
    return direction_ok(to, from, kind) ? cudaSuccess : cudaErrorInvalidMemcpyDirection;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size_bytes, cudaMemcpyKind kind) {
    ENTER(SHIM_KIND_COPY);
    cudaError_t error = refuse_capture();
    if (error == cudaSuccess) {
        error = copy_check(to, from, size_bytes, kind);
    }
    if (error == cudaSuccess && size_bytes) {
        CUstream_st *legacy = &rt.legacy[current_device];
        work *w = work_new(OP_COPY, nullptr, 0);
        w->to = to;
        w->from = from;
        w->size_bytes = size_bytes;
        append_in_order(legacy, w);
        run_until(legacy, legacy->n_queued);
    }
    return leave(error);
}

cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t size_bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER(SHIM_KIND_COPY);
    CUstream_st *s = stream_of(stream);
    cudaError_t error = copy_check(to, from, size_bytes, kind);
    bool to_pageable = shim_mem_kind(to) == SHIM_HOST;
    bool from_pageable = shim_mem_kind(from) == SHIM_HOST;
    if (error == cudaSuccess && s->capture && (to_pageable || from_pageable)) {
        fprintf(stderr, "shim: a copy of pageable memory is captured\n");
        s->capture->spoilt = true;
        error = cudaErrorStreamCaptureUnsupported;
    }
    if (error == cudaSuccess && size_bytes) {
        work *w = work_new(OP_COPY, from_pageable ? from : nullptr, from_pageable ? size_bytes : 0);
        w->to = to;
        w->from = from_pageable ? nullptr : from;
        w->size_bytes = size_bytes;
        append_in_order(s, w);
        if (to_pageable) {
            run_until(s, s->n_queued);
        }
    }
    return leave(error);
}

static cudaError_t fill(void *device, int value, size_t size_bytes, CUstream_st *s) {
    if (shim_mem_kind(device) == SHIM_HOST || !range_ok("a fill", device, size_bytes)) {
        return cudaErrorInvalidValue;
    }
    if (size_bytes) {
        work *w = work_new(OP_FILL, nullptr, 0);
        w->to = device;
        w->value = value;
        w->size_bytes = size_bytes;
        append_in_order(s, w);
    }
    return cudaSuccess;
}

/* Asynchronous to the host, as CUDA's is for device memory. */
cudaError_t cudaMemset(void *device, int value, size_t size_bytes) {
    ENTER(SHIM_KIND_COPY);
    cudaError_t error = refuse_capture();
    return leave(error ? error : fill(device, value, size_bytes, &rt.legacy[current_device]));
}

cudaError_t cudaMemsetAsync(void *device, int value, size_t size_bytes, cudaStream_t stream) {
    ENTER(SHIM_KIND_COPY);
    return leave(fill(device, value, size_bytes, stream_of(stream)));
}

/* ---- streams */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    ENTER(SHIM_KIND_STREAM);
    CUstream_st *s = static_cast<CUstream_st *>(calloc(1, sizeof(*s)));
    s->live = true;
    s->blocking = !(flags & cudaStreamNonBlocking);
    s->device = current_device;
    s->priority = priority;
    s->last = &s->first;
    CUstream_st **end = &rt.streams;
    while (*end) {
        end = &(*end)->next;
    }
    *end = s;
    rt.n_objects++;
    *stream = s;
    return leave(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

static void drop_queue(CUstream_st *s) {
    while (s->first) {
        work *w = s->first;
        s->first = w->next;
        work_free(w);
    }
    s->last = &s->first;
    s->n_done = s->n_queued;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cudaError_t error = enter(SHIM_KIND_OTHER);
    CUstream_st *s = stream_of(stream);
    if (error == cudaSuccess) {
        run_until(s, s->n_queued);
    } else {
        drop_queue(s);
    }
    s->live = false;
    rt.n_objects--;
    return leave(error);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    ENTER(SHIM_KIND_SYNC);
    CUstream_st *s = stream_of(stream);
    if (s->capture) {
        s->capture->spoilt = true;
        return leave(cudaErrorStreamCaptureUnsupported);
    }
    run_until(s, s->n_queued);
    return leave(cudaSuccess);
}

/* A poller makes the device go on by one step each time. */
static cudaError_t step(CUstream_st *s, uint64_t until) {
    if (s->n_done < until) {
        run_until(s, s->n_done + 1);
        return cudaErrorNotReady;
    }
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    ENTER(SHIM_KIND_SYNC);
    CUstream_st *s = stream_of(stream);
    if (s->capture) {
        s->capture->spoilt = true;
        return leave(cudaErrorStreamCaptureUnsupported);
    }
    return leave(step(s, s->n_queued));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    ENTER(SHIM_KIND_EVENT);
    CUstream_st *s = stream_of(stream);
    CUevent_st *e = event_of(event);
    if (e->capture) {
        if (s->capture && s->capture != e->capture) {
            return leave(cudaErrorStreamCaptureUnsupported);
        }
        if (!s->capture) {
            s->capture = e->capture;
            s->n_captured = s->n_joined = 0;
        }
        if (e->stream != s && e->n_captured > e->stream->n_joined) {
            e->stream->n_joined = e->n_captured;
        }
    } else if (s->capture) {
        fprintf(stderr, "shim: a captured stream waits for an event from outside\n");
        s->capture->spoilt = true;
        return leave(cudaErrorStreamCaptureUnsupported);
    } else if (e->stream) {
        wait_for(s, e->stream, e->until);
    }
    return leave(cudaSuccess);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data) {
    ENTER(SHIM_KIND_LAUNCH);
    work *w = work_new(OP_HOST, nullptr, 0);
    w->call = call;
    w->data = data;
    append_in_order(stream_of(stream), w);
    return leave(cudaSuccess);
}

/* ---- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    ENTER(SHIM_KIND_EVENT);
    CUevent_st *e = static_cast<CUevent_st *>(calloc(1, sizeof(*e)));
    e->live = true;
    e->timing = !(flags & cudaEventDisableTiming);
    e->next = rt.events;
    rt.events = e;
    rt.n_objects++;
    *event = e;
    return leave(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    cudaError_t error = enter(SHIM_KIND_OTHER);
    event_of(event)->live = false;
    rt.n_objects--;
    return leave(error);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    ENTER(SHIM_KIND_EVENT);
    CUstream_st *s = stream_of(stream);
    CUevent_st *e = event_of(event);
    e->stream = s;
    e->capture = s->capture;
    if (s->capture) {
        e->n_captured = s->n_captured;
        return leave(cudaSuccess);
    }
    work *w = work_new(OP_RECORD, nullptr, 0);
    w->event = e;
    e->ran = false;
    append_in_order(s, w);
    e->until = s->n_queued;
    return leave(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    ENTER(SHIM_KIND_EVENT);
    CUevent_st *e = event_of(event);
    if (e->capture) {
        return leave(cudaErrorCapturedEvent);
    }
    if (e->stream) {
        run_until(e->stream, e->until);
    }
    return leave(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    ENTER(SHIM_KIND_EVENT);
    CUevent_st *e = event_of(event);
    if (e->capture) {
        return leave(cudaErrorCapturedEvent);
    }
    return leave(e->stream ? step(e->stream, e->until) : cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    ENTER(SHIM_KIND_EVENT);
    const CUevent_st *a = event_of(start), *b = event_of(end);
    if (!a->timing || !b->timing || !a->stream || !b->stream) {
        return leave(cudaErrorInvalidResourceHandle);
    }
    if (!a->ran || !b->ran) {
        return leave(cudaErrorNotReady);
    }
    *ms = (float)(b->time_ms - a->time_ms);
    return leave(cudaSuccess);
}

/* ---- graphs */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    ENTER(SHIM_KIND_GRAPH);
    CUstream_st *s = stream_of(stream);
    if (!stream || s->capture) {
        return leave(cudaErrorStreamCaptureUnsupported);
    }
    cudaGraph_t graph = static_cast<cudaGraph_t>(calloc(1, sizeof(*graph)));
    graph->ops = static_cast<graph_work *>(calloc(1, sizeof(*graph->ops)));
    graph->ops->n_refs = 1;
    graph->ops->last = &graph->ops->first;
    graph->origin = s;
    s->capture = graph;
    s->n_captured = s->n_joined = 0;
    rt.n_capturing++;
    rt.n_objects++;
    return leave(cudaSuccess);
}

static void graph_free(cudaGraph_t graph) {
    graph_work_free(graph->ops);
    free(graph);
    rt.n_objects--;
}

/* The capture ends in every case; *graph is NULL where it fails. */
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    cudaError_t error = enter(SHIM_KIND_GRAPH);
    CUstream_st *s = stream_of(stream);
    cudaGraph_t captured = s->capture;
    *graph = nullptr;
    if (!captured || captured->origin != s) {
        return leave(error ? error : cudaErrorStreamCaptureUnsupported);
    }
    bool joined = true;
    for (CUstream_st *o = rt.streams; o; o = o->next) {
        if (o->capture == captured) {
            joined &= o == s || o->n_joined == o->n_captured;
            o->capture = nullptr;
        }
    }
    for (CUevent_st *e = rt.events; e; e = e->next) {
        if (e->capture == captured) {
            e->capture = nullptr;
            e->stream = nullptr;
        }
    }
    rt.n_capturing--;
    if (error == cudaSuccess && captured->spoilt) {
        error = cudaErrorStreamCaptureInvalidated;
    } else if (error == cudaSuccess && !joined) {
        error = cudaErrorStreamCaptureUnjoined;
    }
    if (error != cudaSuccess) {
        graph_free(captured);
        return leave(error);
    }
    *graph = captured;
    return leave(cudaSuccess);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    ENTER(SHIM_KIND_OTHER);
    const CUstream_st *s = stream_of(stream);
    *status = !s->capture          ? cudaStreamCaptureStatusNone
              : s->capture->spoilt ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return leave(cudaSuccess);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes) {
    ENTER(SHIM_KIND_OTHER);
    if (nodes) {
        return leave(cudaErrorNotSupported);
    }
    *n_nodes = (size_t)graph->ops->n_ops;
    return leave(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    ENTER(SHIM_KIND_GRAPH);
    cudaGraphExec_t made = static_cast<cudaGraphExec_t>(calloc(1, sizeof(*made)));
    made->ops = graph->ops;
    made->ops->n_refs++;
    rt.n_objects++;
    *exec = made;
    return leave(cudaSuccess);
}

cudaError_t cudaGraphExecUpdate(
    cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info) {
    ENTER(SHIM_KIND_GRAPH);
    const work *a = exec->ops->first, *b = graph->ops->first;
    memset(info, 0, sizeof(*info));
    while (a && b && a->kind == b->kind) {
        if (a->kind == OP_LAUNCH && a->launch.kernel != b->launch.kernel) {
            info->result = cudaGraphExecUpdateErrorFunctionChanged;
            return leave(cudaErrorGraphExecUpdateFailure);
        }
        a = a->next;
        b = b->next;
    }
    if (a || b) {
        info->result = a && b ? cudaGraphExecUpdateErrorNodeTypeChanged
                              : cudaGraphExecUpdateErrorTopologyChanged;
        return leave(cudaErrorGraphExecUpdateFailure);
    }
    graph_work_free(exec->ops);
    exec->ops = graph->ops;
    exec->ops->n_refs++;
    return leave(cudaSuccess);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream) {
    ENTER(SHIM_KIND_GRAPH);
    stream_of(stream);
    return leave(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    ENTER(SHIM_KIND_LAUNCH);
    CUstream_st *s = stream_of(stream);
    if (s->capture) {
        return leave(cudaErrorNotSupported);
    }
    work *w = work_new(OP_GRAPH, nullptr, 0);
    w->graph = exec->ops;
    w->graph->n_refs++;
    append_in_order(s, w);
    return leave(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    cudaError_t error = enter(SHIM_KIND_OTHER);
    graph_free(graph);
    return leave(error);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    cudaError_t error = enter(SHIM_KIND_OTHER);
    graph_work_free(exec->ops);
    free(exec);
    rt.n_objects--;
    return leave(error);
}

/* ---- kernels */

cudaError_t shim_enqueue(const shim_launch *launch, const void *args, cudaStream_t stream) {
    ENTER(SHIM_KIND_LAUNCH);
    CUstream_st *s = stream_of(stream);
    cudaError_t error = shim_launch_check(launch);
    if (error == cudaSuccess) {
        work *w = work_new(OP_LAUNCH, args, launch->args_bytes);
        w->launch = *launch;
        append_in_order(s, w);
    }
    return leave(error);
}

/* Constants of the program itself may be pointed at: __constant__ and __device__ arrays. */
extern "C" char __executable_start, _end;

void shim_check_pointer(const char *kernel, int i_arg, const volatile void *pointer) {
    const void *at = const_cast<const void *>(pointer);
    if (!at || (at >= &__executable_start && at < &_end)) {
        return;
    }
    const shim_block *block = shim_mem_find(at);
    if (shim_mem_kind(at) == SHIM_HOST) {
        shim_fault("kernel %s: argument %d points to host memory", kernel, i_arg);
    } else if (!block || !block->live) {
        shim_fault("kernel %s: argument %d points to memory that was freed", kernel, i_arg);
    }
}

cudaError_t shim_func_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    ENTER(SHIM_KIND_OTHER);
    return leave(attribute == cudaFuncAttributeMaxDynamicSharedMemorySize
                     ? shim_func_attribute_set(kernel, value)
                     : cudaSuccess);
}

/* ---- what tests ask */

template <typename T> static T locked(T (*get)(void)) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    T value = get();
    pthread_mutex_unlock(&rt.lock);
    return value;
}

static void arm_locked(shim_kind kind, char how, long n) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    arm(kind, how, n);
    pthread_mutex_unlock(&rt.lock);
}

void shim_fail_nth(shim_kind kind, long n) {
    arm_locked(kind, 'f', n);
}

void shim_lose_nth(shim_kind kind, long n) {
    arm_locked(kind, 'l', n);
}

void shim_hang_nth(shim_kind kind, long n) {
    arm_locked(kind, 'h', n);
}

void shim_release(void) {
    pthread_mutex_lock(&rt.lock);
    rt.no_hang = true;
    pthread_cond_broadcast(&rt.released);
    pthread_mutex_unlock(&rt.lock);
}

int shim_n_hanging(void) {
    return locked<int>([] { return rt.n_hanging; });
}

long shim_n_calls(shim_kind kind) {
    pthread_mutex_lock(&rt.lock);
    long n = rt.n_calls[kind];
    pthread_mutex_unlock(&rt.lock);
    return n;
}

void shim_reset(void) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    memset(rt.triggers, 0, sizeof(rt.triggers));
    memset(rt.n_calls, 0, sizeof(rt.n_calls));
    rt.lost = rt.no_hang = false;
    rt.peak_bytes = rt.device_bytes;
    last_error = cudaSuccess;
    pthread_mutex_unlock(&rt.lock);
}

void shim_set_driver(int error) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    rt.driver_error = error;
    pthread_mutex_unlock(&rt.lock);
}

void shim_set_vram(int device, size_t size_bytes) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    rt.vram[device] = size_bytes;
    pthread_mutex_unlock(&rt.lock);
}

void shim_set_order(shim_order order, unsigned long long seed) {
    pthread_mutex_lock(&rt.lock);
    open_once();
    shim_set_order_now(order, seed);
    pthread_mutex_unlock(&rt.lock);
}

size_t shim_device_bytes(void) {
    return locked<size_t>([] { return rt.device_bytes; });
}

size_t shim_device_peak_bytes(void) {
    return locked<size_t>([] { return rt.peak_bytes; });
}

size_t shim_pinned_bytes(void) {
    return locked<size_t>([] { return rt.pinned_bytes; });
}

int shim_n_objects(void) {
    return locked<int>([] { return rt.n_objects; });
}

long shim_n_kernels_run(void) {
    return locked<long>([] { return rt.n_kernels; });
}
