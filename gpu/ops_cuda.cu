/* The table of gpu/ops.h over CUDA's runtime. nvcc compiles this file for the program; a C++
 * compiler compiles the same lines against the host shim for the tests. */
#include <stdlib.h>

#include "gpu/k_attn.cuh"
#include "gpu/k_matmul.cuh"
#include "gpu/k_rows.cuh"
#include "gpu/k_topk.cuh"

/* dp4a came with 6.1. */
enum { CAPABILITY_MIN = 61 };

struct dt_gpu_device {
    int index;
    cudaStream_t stream;
    cudaEvent_t done;
};

struct dt_gpu_graph {
    cudaGraphExec_t exec;
};

static dt_err fail(cudaError_t code, const char *what) {
    (void)cudaGetLastError(); /* so that the next call does not report it again */
    return DT_ERROR(code == cudaErrorMemoryAllocation ? DT_ERR_MEMORY : DT_ERR_DEVICE,
        "the GPU failed: %s: %s", what, cudaGetErrorString(code));
}

#define TRY(call)                                                                                  \
    do {                                                                                           \
        cudaError_t code_ = (call);                                                                \
        if (code_ != cudaSuccess)                                                                  \
            return fail(code_, #call);                                                             \
    } while (0)

/* ---- devices ---- */

static dt_err count_devices(int *n_out) {
    *n_out = 0;
    cudaError_t code = cudaGetDeviceCount(n_out);
    if (code == cudaSuccess && *n_out > 0)
        return DT_OK;
    (void)cudaGetLastError();
    return DT_ERROR(DT_ERR_DEVICE, "no GPU can be used: %s",
        code == cudaSuccess ? "the driver shows none" : cudaGetErrorString(code));
}

static dt_err describe(dt_gpu_info *out, int index) {
    cudaDeviceProp properties;
    TRY(cudaGetDeviceProperties(&properties, index));
    out->index = index;
    size_t n = 0;
    for (; n + 1 < sizeof out->name && properties.name[n]; n++)
        out->name[n] = properties.name[n];
    out->name[n] = '\0';
    out->major = properties.major;
    out->minor = properties.minor;
    TRY(cudaSetDevice(index));
    TRY(cudaMemGetInfo(&out->free_bytes, &out->total_bytes));
    return DT_OK;
}

static void close_device(dt_gpu_device *device) {
    if (!device)
        return;
    (void)cudaSetDevice(device->index);
    if (device->done)
        (void)cudaEventDestroy(device->done);
    if (device->stream)
        (void)cudaStreamDestroy(device->stream);
    free(device);
}

static dt_err wait_device(dt_gpu_device *device) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaEventRecord(device->done, device->stream));
    TRY(cudaEventSynchronize(device->done));
    return DT_OK;
}

static dt_err open_parts(dt_gpu_device *device) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking));
    TRY(cudaEventCreateWithFlags(&device->done, cudaEventBlockingSync | cudaEventDisableTiming));
    /* A kernel that does nothing shows whether this build has code for the card. */
    dt_gpu_kv_move nothing = {};
    nothing.head_dim = 1;
    TRY(GPU_LAUNCH(k_kv_move, dim3(1), dim3(GPU_THREADS), 0, device->stream, nothing));
    return wait_device(device);
}

static dt_err open_device(dt_gpu_device **out, int index) {
    *out = NULL;
    dt_gpu_info info;
    DT_TRY(describe(&info, index));
    if (10 * info.major + info.minor < CAPABILITY_MIN)
        return DT_ERROR(DT_ERR_UNSUPPORTED,
            "GPU %d (%s) has compute capability %d.%d, %d.%d is the least that is supported",
            info.index, info.name, info.major, info.minor, CAPABILITY_MIN / 10,
            CAPABILITY_MIN % 10);
    dt_gpu_device *device = static_cast<dt_gpu_device *>(calloc(1, sizeof *device));
    if (!device)
        return DT_ERROR(DT_ERR_MEMORY, "no memory for a device");
    device->index = index;
    dt_err err = open_parts(device);
    if (err != DT_OK) {
        close_device(device);
        return err;
    }
    *out = device;
    return DT_OK;
}

/* ---- memory ---- */

static dt_err alloc(void *out, dt_gpu_device *device, size_t n_bytes) {
    void **to = static_cast<void **>(out);
    *to = NULL;
    TRY(cudaSetDevice(device->index));
    cudaError_t code = cudaMalloc(to, n_bytes);
    if (code != cudaSuccess)
        *to = NULL;
    if (code == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return DT_ERROR(DT_ERR_MEMORY, "the GPU's memory is full: %.1f MiB more were needed",
            (double)n_bytes / (1024.0 * 1024.0));
    }
    TRY(code);
    return DT_OK;
}

static void release(dt_gpu_device *device, void *d_memory) {
    if (!d_memory)
        return;
    (void)cudaSetDevice(device->index);
    (void)cudaFree(d_memory);
}

static dt_err alloc_pinned(void *out, dt_gpu_device *device, size_t n_bytes) {
    void **to = static_cast<void **>(out);
    *to = NULL;
    TRY(cudaSetDevice(device->index));
    cudaError_t code = cudaHostAlloc(to, n_bytes, cudaHostAllocDefault);
    if (code != cudaSuccess) {
        *to = NULL;
        return fail(code, "cudaHostAlloc");
    }
    return DT_OK;
}

static void release_pinned(dt_gpu_device *device, void *memory) {
    if (!memory)
        return;
    (void)cudaSetDevice(device->index);
    (void)cudaFreeHost(memory);
}

static dt_err copy_in(dt_gpu_device *device, void *d_to, const void *from, size_t n_bytes) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaMemcpyAsync(d_to, from, n_bytes, cudaMemcpyHostToDevice, device->stream));
    return DT_OK;
}

static dt_err copy_out(dt_gpu_device *device, void *to, const void *d_from, size_t n_bytes) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaMemcpyAsync(to, d_from, n_bytes, cudaMemcpyDeviceToHost, device->stream));
    return DT_OK;
}

static dt_err copy_within(dt_gpu_device *device, void *d_to, const void *d_from, size_t n_bytes) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaMemcpyAsync(d_to, d_from, n_bytes, cudaMemcpyDeviceToDevice, device->stream));
    return DT_OK;
}

/* ---- graphs ---- */

static dt_err graph_begin(dt_gpu_device *device) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal));
    return DT_OK;
}

static cudaError_t instantiate(cudaGraphExec_t *out, cudaGraph_t graph) {
#if defined(CUDART_VERSION) && CUDART_VERSION < 12000
    return cudaGraphInstantiateWithFlags(out, graph, 0);
#else
    return cudaGraphInstantiate(out, graph, 0);
#endif
}

static dt_err graph_end(dt_gpu_graph **out, dt_gpu_device *device) {
    *out = NULL;
    cudaGraph_t graph = NULL;
    TRY(cudaStreamEndCapture(device->stream, &graph));
    cudaGraphExec_t exec = NULL;
    cudaError_t code = instantiate(&exec, graph);
    (void)cudaGraphDestroy(graph);
    TRY(code);
    *out = static_cast<dt_gpu_graph *>(calloc(1, sizeof **out));
    if (!*out) {
        (void)cudaGraphExecDestroy(exec);
        return DT_ERROR(DT_ERR_MEMORY, "no memory for a graph");
    }
    (*out)->exec = exec;
    return DT_OK;
}

static dt_err graph_launch(dt_gpu_device *device, dt_gpu_graph *graph) {
    TRY(cudaSetDevice(device->index));
    TRY(cudaGraphLaunch(graph->exec, device->stream));
    return DT_OK;
}

static void graph_free(dt_gpu_device *device, dt_gpu_graph *graph) {
    if (!graph)
        return;
    (void)cudaSetDevice(device->index);
    (void)cudaGraphExecDestroy(graph->exec);
    free(graph);
}

/* ---- kernels ---- */

#define LAUNCH(kernel, shape)                                                                      \
    do {                                                                                           \
        gpu_shape shape_ = (shape);                                                                \
        cudaError_t code_ = GPU_LAUNCH(                                                            \
            kernel, shape_.grid, shape_.block, shape_.shared_bytes, device->stream, *args);        \
        if (code_ != cudaSuccess)                                                                  \
            return fail(code_, #kernel);                                                           \
    } while (0)

template <typename W> static dt_err matmul_of(dt_gpu_device *device, const dt_gpu_matmul *args) {
    if (args->m_max == 1)
        LAUNCH((k_matmul<W, 1>), (gpu_matmul_shape<W, 1>(args)));
    else
        LAUNCH((k_matmul<W, GPU_TILE>), (gpu_matmul_shape<W, GPU_TILE>(args)));
    return DT_OK;
}

template <typename W>
static dt_err matmul_float_of(dt_gpu_device *device, const dt_gpu_matmul *args) {
    if (args->m_max == 1)
        LAUNCH((k_matmul_float<W, 1>), gpu_matmul_float_shape(args, 1));
    else
        LAUNCH((k_matmul_float<W, GPU_TILE>), gpu_matmul_float_shape(args, GPU_TILE));
    return DT_OK;
}

template <typename W> static dt_err embed_of(dt_gpu_device *device, const dt_gpu_embed *args) {
    LAUNCH(k_embed<W>, gpu_embed_shape(args));
    return DT_OK;
}

template <typename W>
static dt_err embed_float_of(dt_gpu_device *device, const dt_gpu_embed *args) {
    LAUNCH(k_embed_float<W>, gpu_embed_shape(args));
    return DT_OK;
}

#define BY_TYPE(type, packed, plain)                                                               \
    switch (type) {                                                                                \
    case DT_TYPE_Q4_0:                                                                             \
        return packed<gpu_q4_0>(device, args);                                                     \
    case DT_TYPE_Q4_1:                                                                             \
        return packed<gpu_q4_1>(device, args);                                                     \
    case DT_TYPE_Q5_0:                                                                             \
        return packed<gpu_q5_0>(device, args);                                                     \
    case DT_TYPE_Q5_1:                                                                             \
        return packed<gpu_q5_1>(device, args);                                                     \
    case DT_TYPE_Q8_0:                                                                             \
        return packed<gpu_q8_0>(device, args);                                                     \
    case DT_TYPE_Q3_K:                                                                             \
        return packed<gpu_q3_K>(device, args);                                                     \
    case DT_TYPE_Q4_K:                                                                             \
        return packed<gpu_q4_K>(device, args);                                                     \
    case DT_TYPE_Q5_K:                                                                             \
        return packed<gpu_q5_K>(device, args);                                                     \
    case DT_TYPE_Q6_K:                                                                             \
        return packed<gpu_q6_K>(device, args);                                                     \
    case DT_TYPE_IQ4_NL:                                                                           \
        return packed<gpu_iq4_nl>(device, args);                                                   \
    case DT_TYPE_IQ4_XS:                                                                           \
        return packed<gpu_iq4_xs>(device, args);                                                   \
    case DT_TYPE_F32:                                                                              \
        return plain<gpu_f32>(device, args);                                                       \
    case DT_TYPE_F16:                                                                              \
        return plain<gpu_f16>(device, args);                                                       \
    case DT_TYPE_BF16:                                                                             \
        return plain<gpu_bf16>(device, args);                                                      \
    default:                                                                                       \
        return DT_ERROR(DT_ERR_INTERNAL, "no kernel for weights of type %d", (int)(type));         \
    }

static dt_err matmul(dt_gpu_device *device, const dt_gpu_matmul *args) {
    TRY(cudaSetDevice(device->index));
    BY_TYPE(args->type, matmul_of, matmul_float_of)
}

static dt_err embed(dt_gpu_device *device, const dt_gpu_embed *args) {
    TRY(cudaSetDevice(device->index));
    BY_TYPE(args->table.type, embed_of, embed_float_of)
}

static dt_err norm(dt_gpu_device *device, const dt_gpu_norm *args) {
    TRY(cudaSetDevice(device->index));
    LAUNCH(k_norm, gpu_norm_shape(args));
    return DT_OK;
}

static dt_err rotate(dt_gpu_device *device, const dt_gpu_rotate *args) {
    TRY(cudaSetDevice(device->index));
    LAUNCH(k_rotate, gpu_rotate_shape(args));
    return DT_OK;
}

static dt_err attend(dt_gpu_device *device, const dt_gpu_attend *args) {
    TRY(cudaSetDevice(device->index));
    LAUNCH(k_attn_range, gpu_attn_shape(args));
    LAUNCH(k_attn_combine, gpu_combine_shape(args));
    return DT_OK;
}

static dt_err gate(dt_gpu_device *device, const dt_gpu_gate *args) {
    TRY(cudaSetDevice(device->index));
    LAUNCH(k_gate, gpu_gate_shape(args));
    return DT_OK;
}

static dt_err kv_move(dt_gpu_device *device, const dt_gpu_kv_move *args) {
    TRY(cudaSetDevice(device->index));
    LAUNCH(k_kv_move, gpu_kv_move_shape(args));
    return DT_OK;
}

static dt_err topk(dt_gpu_device *device, const dt_gpu_topk *args) {
    TRY(cudaSetDevice(device->index));
    LAUNCH(k_topk_max, gpu_topk_max_shape(args));
    LAUNCH(k_topk_sum, gpu_topk_sum_shape(args));
    LAUNCH(k_topk_pick, gpu_topk_pick_shape(args));
    return DT_OK;
}

#ifdef __CUDACC__
#define TABLE_NAME "cuda"
#else
#define TABLE_NAME "emulated"
#endif

const dt_gpu_ops *dt_gpu_table(void) {
    static const dt_gpu_ops table = {TABLE_NAME, count_devices, describe, open_device, close_device,
        alloc, release, alloc_pinned, release_pinned, copy_in, copy_out, copy_within, graph_begin,
        graph_end, graph_launch, graph_free, wait_device, embed, norm, matmul, rotate, attend, gate,
        kv_move, topk};
    return &table;
}
