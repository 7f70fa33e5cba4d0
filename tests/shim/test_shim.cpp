/* Correct programs on the shim, and the runtime's own rules: streams, graphs, failures on order. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/shim/kernels_good.cuh"
#include "tests/shim/shim_test.h"

static int n_checks, n_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        n_checks++;                                                                                \
        if (!(condition)) {                                                                        \
            n_failed++;                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
        }                                                                                          \
    } while (0)
#define OK(call) CHECK((call) == cudaSuccess)

template <typename T> struct on_device {
    T *at;
    size_t n;
    explicit on_device(size_t n_) : at(nullptr), n(n_) {
        OK(cudaMalloc(&at, n * sizeof(T)));
    }
    on_device(const T *from, size_t n_) : on_device(n_) {
        OK(cudaMemcpy(at, from, n * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~on_device() {
        OK(cudaFree(at));
    }
    void get(T *to) const {
        OK(cudaMemcpy(to, at, n * sizeof(T), cudaMemcpyDeviceToHost));
    }
    on_device(const on_device &) = delete;
    on_device &operator=(const on_device &) = delete;
};

static void test_kernels(void) {
    enum { N = 1000, ROWS = 7, COLS = 333 };
    static float x[ROWS * COLS], y[N];
    for (int i = 0; i < ROWS * COLS; i++) {
        x[i] = (float)(i % 17) * 0.25f - 1.0f;
    }
    {
        on_device<float> src(x, N), dst(N);
        OK(GPU_LAUNCH(k_good_copy, (N + 127) / 128, 128, 0, nullptr, dst.at, src.at, N));
        dst.get(y);
        CHECK(memcmp(x, y, sizeof(y)) == 0);
    }
    {
        on_device<float> in(x, ROWS * COLS), out(ROWS);
        OK(GPU_LAUNCH(k_good_row_sum, ROWS, 128, 0, nullptr, out.at, in.at, COLS));
        out.get(y);
        for (int r = 0; r < ROWS; r++) {
            float sum = 0.0f; /* quarters: exact in any order */
            for (int i = 0; i < COLS; i++) {
                sum += x[r * COLS + i];
            }
            CHECK(y[r] == sum);
        }
    }
    {
        int v[3 * 96], w[3 * 96];
        for (int i = 0; i < 3 * 96; i++) {
            v[i] = i;
        }
        on_device<int> d(v, 3 * 96);
        OK(GPU_LAUNCH(k_good_turn, 3, 96, 96 * sizeof(int), nullptr, d.at, 3));
        d.get(w);
        for (int i = 0; i < 3 * 96; i++) {
            CHECK(w[i] == i / 96 * 96 + 95 - i % 96 + 3);
        }
    }
    {
        unsigned v[N], bins[16] = {0}, want[16] = {0};
        for (unsigned i = 0; i < N; i++) {
            v[i] = i * 2654435761u >> 13;
            want[v[i] & 15]++;
        }
        on_device<unsigned> in(v, N), out(16);
        OK(cudaMemset(out.at, 0, sizeof(bins)));
        OK(GPU_LAUNCH(k_good_histogram, 3, 64, 0, nullptr, out.at, in.at, N));
        out.get(bins);
        CHECK(memcmp(bins, want, sizeof(bins)) == 0);
    }
    {
        int v[64], w[64];
        for (int i = 0; i < 64; i++) {
            v[i] = i * i;
        }
        on_device<int> in(v, 64), out(64);
        OK(GPU_LAUNCH(k_good_warp, 1, 64, 0, nullptr, out.at, in.at));
        out.get(w);
        for (int i = 0; i < 64; i++) {
            int lane = i % 32, first = i - lane, from = i / 16 * 16, sum = 0;
            for (int j = from; j < from + 16; j++) {
                sum += 2 * v[first + j % 32];
            }
            int up = lane ? lane - 1 : 0, down = lane % 8 < 6 ? lane + 2 : lane;
            CHECK(w[i] == sum + 11 + 1 + 1 + up + down + (lane < 16 ? 3 : 19));
        }
    }
    {
        float q[128];
        int dots[32];
        for (int i = 0; i < 128; i++) {
            q[i] = (float)(i % 23 - 11);
        }
        on_device<float4> in(reinterpret_cast<const float4 *>(q), 32);
        on_device<signed char> bytes(128);
        on_device<int> out(32);
        OK(GPU_LAUNCH(k_good_bytes, 1, 32, 0, nullptr, bytes.at, out.at, in.at));
        out.get(dots);
        for (int i = 0; i < 32; i++) {
            const float *f = &q[4 * i];
            CHECK(dots[i] == 100 + (int)(f[0] * 4 + f[1] * 3 + f[2] * 2 + f[3]));
        }
    }
    {
        unsigned got[2 * 3 * 2 * 30];
        on_device<unsigned> out(360);
        OK(GPU_LAUNCH(k_good_index, dim3(2, 3, 2), dim3(5, 3, 2), 0, nullptr, out.at));
        out.get(got);
        for (unsigned i = 0; i < 360; i++) {
            CHECK(got[i] == i + 15);
        }
    }
}

static void test_streams(void) {
    cudaStream_t a, b;
    cudaEvent_t event;
    int *pinned, *device, plain[4] = {1, 2, 3, 4};
    OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithPriority(&b, cudaStreamNonBlocking, -1));
    OK(cudaEventCreateWithFlags(&event, cudaEventBlockingSync | cudaEventDisableTiming));
    OK(cudaMallocHost(&pinned, sizeof(plain)));
    OK(cudaMalloc(&device, sizeof(plain)));
    OK(cudaEventSynchronize(event)); /* never recorded: nothing to wait for */
    OK(cudaMemcpyAsync(device, plain, sizeof(plain), cudaMemcpyHostToDevice, a));
    plain[0] = 9; /* pageable memory was read at the call */
    OK(GPU_LAUNCH(k_good_step<10>, 1, 4, 0, a, device));
    OK(cudaEventRecord(event, a));
    OK(cudaStreamWaitEvent(b, event));
    OK(cudaMemcpyAsync(pinned, device, sizeof(plain), cudaMemcpyDeviceToHost, b));
    CHECK(pinned[0] == -1); /* lazy: nothing has run */
    CHECK(cudaEventQuery(event) == cudaErrorNotReady);
    OK(cudaStreamSynchronize(b));
    CHECK(pinned[0] == 11 && pinned[3] == 14);
    OK(cudaEventQuery(event));
    /* The default stream does not wait for streams that are not blocking. */
    OK(GPU_LAUNCH(k_good_step<1>, 1, 4, 0, a, device));
    OK(cudaMemcpy(plain, device, sizeof(plain), cudaMemcpyDeviceToHost));
    CHECK(plain[0] == 11);
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(plain, device, sizeof(plain), cudaMemcpyDeviceToHost));
    CHECK(plain[0] == 12);
    OK(cudaFree(device));
    OK(cudaFreeHost(pinned));
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
}

static void test_graphs(void) {
    cudaStream_t a, b;
    cudaEvent_t fork, join;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    good_args *args;
    int *device, *result;
    enum { N = 8 };
    OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    OK(cudaHostAlloc(&args, sizeof(*args), cudaHostAllocDefault));
    OK(cudaMallocHost(&result, N * sizeof(int)));
    OK(cudaMalloc(&device, N * sizeof(int)));
    OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    OK(cudaMemsetAsync(device, 0, N * sizeof(int), a));
    OK(cudaEventRecord(fork, a));
    OK(cudaStreamWaitEvent(b, fork));
    OK(GPU_LAUNCH(k_good_fill, 1, 32, 0, b, device, args, N));
    OK(cudaEventRecord(join, b));
    OK(cudaStreamWaitEvent(a, join));
    OK(cudaMemcpyAsync(result, device, N * sizeof(int), cudaMemcpyDeviceToHost, a));
    OK(cudaStreamEndCapture(a, &graph));
    size_t n_nodes;
    OK(cudaGraphGetNodes(graph, nullptr, &n_nodes));
    CHECK(n_nodes == 3);
    OK(cudaGraphInstantiate(&exec, graph));
    OK(cudaGraphDestroy(graph));
    for (int round = 1; round <= 3; round++) {
        args->n_rows = round;
        args->value = 100 * round;
        OK(cudaGraphLaunch(exec, a));
        CHECK(round == 1 ? result[0] == -1 : result[0] == 100 * (round - 1));
        OK(cudaStreamSynchronize(a));
        for (int i = 0; i < N; i++) {
            CHECK(result[i] == (i < round ? 100 * round + i : 0));
        }
    }
    /* The same shape with another argument updates; another shape does not. */
    cudaGraphExecUpdateResultInfo info;
    for (int extra = 0; extra < 2; extra++) {
        OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
        OK(cudaMemsetAsync(device, 0, N * sizeof(int), a));
        OK(GPU_LAUNCH(k_good_fill, 1, 32, 0, a, device, args, 1));
        OK(cudaMemcpyAsync(result, device, N * sizeof(int), cudaMemcpyDeviceToHost, a));
        if (extra) {
            OK(GPU_LAUNCH(k_good_step<1>, 1, N, 0, a, device));
        }
        OK(cudaStreamEndCapture(a, &graph));
        CHECK(cudaGraphExecUpdate(exec, graph, &info) ==
              (extra ? cudaErrorGraphExecUpdateFailure : cudaSuccess));
        OK(cudaGraphDestroy(graph));
    }
    OK(cudaGraphLaunch(exec, a));
    OK(cudaStreamSynchronize(a));
    CHECK(result[0] == 300 && result[1] == 0);
    /* What must not be captured. */
    OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    CHECK(cudaStreamSynchronize(a) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    OK(cudaEventRecord(fork, a));
    OK(cudaStreamWaitEvent(b, fork));
    OK(GPU_LAUNCH(k_good_step<1>, 1, N, 0, b, device));
    CHECK(cudaStreamEndCapture(a, &graph) == cudaErrorStreamCaptureUnjoined);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaFree(device));
    OK(cudaFreeHost(args));
    OK(cudaFreeHost(result));
    OK(cudaEventDestroy(fork));
    OK(cudaEventDestroy(join));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
}

static void test_limits(void) {
    int *device;
    size_t free_bytes, total_bytes;
    OK(cudaMalloc(&device, 4096));
    CHECK(GPU_LAUNCH(k_good_step<1>, 1, 1025, 0, nullptr, device) == cudaErrorInvalidConfiguration);
    CHECK(GPU_LAUNCH(k_good_step<1>, 0, 32, 0, nullptr, device) == cudaErrorInvalidConfiguration);
    CHECK(GPU_LAUNCH(k_good_turn, 1, 32, 49153, nullptr, device, 1) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaSuccess);
    OK(cudaFuncSetAttribute(k_good_turn, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536));
    OK(GPU_LAUNCH(k_good_turn, 1, 1024, 65536, nullptr, device, 2));
    OK(cudaDeviceSynchronize());
    OK(cudaFuncSetAttribute(k_good_turn, cudaFuncAttributeMaxDynamicSharedMemorySize, 49152));
    shim_set_vram(0, 1 << 20);
    OK(cudaMemGetInfo(&free_bytes, &total_bytes));
    CHECK(total_bytes == 1 << 20 && free_bytes == (1 << 20) - 4096);
    void *more;
    CHECK(cudaMalloc(&more, free_bytes + 1) == cudaErrorMemoryAllocation);
    OK(cudaMalloc(&more, free_bytes));
    CHECK(shim_device_bytes() == 1 << 20);
    OK(cudaFree(more));
    shim_set_vram(0, (size_t)8 << 30);
    OK(cudaFree(device));
    CHECK(shim_device_bytes() == 0 && shim_device_peak_bytes() == 1 << 20);
}

static void *hang(void *) {
    return cudaDeviceSynchronize() == cudaErrorUnknown ? nullptr : static_cast<void *>(&n_checks);
}

static void test_failures(void) {
    int *device = nullptr;
    cudaEvent_t event;
    shim_reset();
    shim_fail_nth(SHIM_KIND_ALLOC, 2);
    OK(cudaMalloc(&device, 64));
    void *second;
    CHECK(cudaMalloc(&second, 64) == cudaErrorMemoryAllocation);
    CHECK(shim_n_calls(SHIM_KIND_ALLOC) == 2);
    shim_fail_nth(SHIM_KIND_LAUNCH, 1);
    CHECK(GPU_LAUNCH(k_good_step<1>, 1, 4, 0, nullptr, device) == cudaErrorLaunchFailure);
    OK(GPU_LAUNCH(k_good_step<1>, 1, 4, 0, nullptr, device));
    OK(cudaEventCreate(&event));
    pthread_t thread;
    shim_hang_nth(SHIM_KIND_SYNC, 1);
    CHECK(pthread_create(&thread, nullptr, hang, nullptr) == 0);
    while (shim_n_hanging() == 0) {
    }
    shim_release();
    void *wrong;
    pthread_join(thread, &wrong);
    CHECK(wrong == nullptr);
    shim_lose_nth(SHIM_KIND_COPY, 1);
    OK(cudaDeviceSynchronize());
    CHECK(cudaMemset(device, 0, 64) == cudaErrorIllegalAddress);
    CHECK(cudaEventRecord(event) == cudaErrorIllegalAddress);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaPeekAtLastError() == cudaErrorIllegalAddress);
    CHECK(cudaEventDestroy(event) == cudaErrorIllegalAddress);
    CHECK(cudaFree(device) == cudaErrorIllegalAddress);
    CHECK(shim_device_bytes() == 0 && shim_n_objects() == 0);
    shim_reset();
    shim_set_driver(35);
    int n_devices;
    CHECK(cudaGetDeviceCount(&n_devices) == cudaErrorInsufficientDriver);
    shim_set_driver(0);
    OK(cudaGetDeviceCount(&n_devices));
    CHECK(n_devices >= 1);
}

/* Every half there and back, and the roundings between neighbours. */
static void test_halves(void) {
    for (unsigned bits = 0; bits < 65536; bits++) {
        float v = __half2float(__ushort_as_half((unsigned short)bits));
        bool nan = (bits & 0x7c00) == 0x7c00 && (bits & 0x3ff);
        CHECK(__half_as_ushort(__float2half_rn(v)) == (nan ? 0x7fff : bits));
        if ((bits & 0x7fff) < 0x7bff) {
            float next = __half2float(__ushort_as_half((unsigned short)(bits + 1)));
            float middle = (v + next) * 0.5f;
            unsigned even = bits % 2 ? bits + 1 : bits;
            CHECK(__half_as_ushort(__float2half_rn(middle)) == even);
            CHECK(__half_as_ushort(__float2half_rn(nextafterf(middle, v))) == bits);
            CHECK(__half_as_ushort(__float2half_rn(nextafterf(middle, next))) == bits + 1);
        }
    }
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(-3e9f) == INT32_MIN);
    CHECK(__float2int_rz(NAN) == 0 && __float2uint_rz(-1.0f) == 0);
    CHECK(__dp4a(0x7f80ff01, 0x7f80ff02, -5) == 127 * 127 + 128 * 128 + 1 + 2 - 5);
    CHECK(__byte_perm(0x33221100, 0x77665544, 0x7140) == 0x77114400);
    CHECK(__funnelshift_r(0x89abcdef, 0x01234567, 8) == 0x6789abcd);
    CHECK(__vsubss4(0x80017f00, 0x01020120) == 0x80ff7ee0);
}

int main(void) {
    test_halves();
    test_kernels();
    test_streams();
    test_graphs();
    test_limits();
    test_failures();
    CHECK(shim_device_bytes() == 0 && shim_pinned_bytes() == 0 && shim_n_objects() == 0);
    printf("%d checks, %d failed\n", n_checks, n_failed);
    return n_failed ? 1 : 0;
}
