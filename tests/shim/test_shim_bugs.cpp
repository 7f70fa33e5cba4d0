/* Seeded bugs: each must be caught where the table says so, so that the checkers are known to bite.
 * A bug runs in a process of its own, in all three orders of threads; it is caught by an abort with
 * the words of the table, by a sanitizer's report, or by a wrong result ("wrong"). */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/shim/kernels_bad.cuh"
#include "tests/shim/shim_test.h"

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
enum { EMUL, ASAN, RACE };
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
static const int this_build = ASAN;
extern "C" const char *__asan_default_options(void);
extern "C" const char *__asan_default_options(void) {
    return "symbolize=0:detect_leaks=0";
}
#elif defined(__SANITIZE_THREAD__) || HAS_FEATURE(thread_sanitizer)
static const int this_build = RACE;
#else
static const int this_build = EMUL;
#endif
static const char *const build_names[] = {"emul", "asan", "race"};
static const char *const order_names[] = {"forward", "reverse", "random"};

/* Each bug returns whether the result is what a correct program would give. */

enum { N = 64 };

static void ok(cudaError_t error, int line) {
    if (error != cudaSuccess) {
        fprintf(stderr, "line %d: %s\n", line, cudaGetErrorString(error));
        exit(3);
    }
}
#define OK(call) ok(call, __LINE__)

template <typename T> static T *device(size_t n) {
    T *at;
    OK(cudaMalloc(&at, n * sizeof(T)));
    return at;
}

template <typename T> static void get(T *to, const T *from, size_t n) {
    OK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost));
}

static bool bug_index(void) {
    float *x = device<float>(1024);
    OK(GPU_LAUNCH(k_bad_index, 9, 128, 0, nullptr, x, 1024));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_index_odd(void) {
    float *x = device<float>(1001);
    OK(GPU_LAUNCH(k_bad_index, 9, 128, 0, nullptr, x, 1001));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_static_overrun(void) {
    float *out = device<float>(N), got[N];
    OK(GPU_LAUNCH(k_bad_static_overrun, 1, N, 0, nullptr, out));
    get(got, out, N);
    return got[1] == 0.0f && got[63] == 62.0f;
}

static bool bug_dyn_overrun(void) {
    float *out = device<float>(N), got[N];
    OK(GPU_LAUNCH(k_bad_dyn_overrun, 1, N, N * sizeof(float), nullptr, out, N));
    get(got, out, N);
    return got[5] == 5.0f;
}

static bool bug_first_barrier(void) {
    int *out = device<int>(N), got[N];
    OK(GPU_LAUNCH(k_bad_first_barrier, 1, N, 0, nullptr, out));
    get(got, out, N);
    for (int i = 0; i < N; i++) {
        if (got[i] != N - 1 - i) {
            return false;
        }
    }
    return true;
}

static bool bug_second_barrier(void) {
    int *out = device<int>(N), got[N];
    OK(GPU_LAUNCH(k_bad_second_barrier, 1, N, 0, nullptr, out, 3));
    get(got, out, N);
    for (int i = 0; i < N; i++) {
        if (got[i] != 3 * (N - 1 - i) + 3) {
            return false;
        }
    }
    return true;
}

static bool bug_two_barriers(void) {
    int *out = device<int>(N), got[N];
    OK(GPU_LAUNCH(k_bad_two_barriers, 1, N, 0, nullptr, out));
    get(got, out, N);
    return got[0] == N - 1;
}

static bool bug_missed_barrier(void) {
    int *out = device<int>(N), got[N];
    OK(GPU_LAUNCH(k_bad_missed_barrier, 1, N, 0, nullptr, out, 40));
    get(got, out, N);
    return got[0] == 39;
}

static bool bug_mask(void) {
    int *out = device<int>(N), got[N];
    OK(GPU_LAUNCH(k_bad_mask, 1, 32, 0, nullptr, out, 20));
    get(got, out, N);
    return got[0] >= 0;
}

static bool bug_increment(void) {
    int *out = device<int>(1), got[1];
    OK(GPU_LAUNCH(k_bad_increment, 1, N, 0, nullptr, out));
    get(got, out, 1);
    return got[0] == N;
}

static bool bug_uninitialised(void) {
    float *out = device<float>(N), got[N];
    OK(GPU_LAUNCH(k_bad_uninitialised, 1, N, 0, nullptr, out));
    get(got, out, N);
    return got[0] == 1.0f;
}

static bool bug_syncwarp(void) {
    int *out = device<int>(N), got[N];
    OK(GPU_LAUNCH(k_bad_syncwarp, 1, N, 0, nullptr, out));
    get(got, out, N);
    for (int i = 0; i < N; i++) {
        if (got[i] != i / 32 * 32 + 31 - i % 32) {
            return false;
        }
    }
    return true;
}

static bool bug_blocks(void) {
    int *x = device<int>(8), *total = device<int>(1), got[1];
    OK(cudaMemset(x, 0, 8 * sizeof(int)));
    OK(cudaMemset(total, 0, sizeof(int)));
    OK(GPU_LAUNCH(k_bad_blocks, 8, 32, 0, nullptr, total, x));
    get(got, total, 1);
    return got[0] == 0;
}

static bool bug_misaligned(void) {
    float *x = device<float>(36);
    float4 *out = device<float4>(8);
    OK(cudaMemset(x, 0, 36 * sizeof(float)));
    OK(GPU_LAUNCH(k_bad_misaligned, 1, 8, 0, nullptr, out, x));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_host_pointer(void) {
    static int *heap = static_cast<int *>(calloc(N, sizeof(int)));
    OK(GPU_LAUNCH(k_bad_fill, 1, N, 0, nullptr, heap, 3));
    OK(cudaDeviceSynchronize());
    return heap[0] == 3;
}

static bool bug_host_pointer_in_struct(void) {
    static float *heap = static_cast<float *>(calloc(N, sizeof(float)));
    float *out = device<float>(N);
    const bad_args args = {heap, out};
    OK(GPU_LAUNCH(k_bad_struct, 1, N, 0, nullptr, args));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_host_reads_device(void) {
    int *out = device<int>(N);
    OK(GPU_LAUNCH(k_bad_fill, 1, N, 0, nullptr, out, 3));
    OK(cudaDeviceSynchronize());
    return *const_cast<volatile int *>(out) == 3;
}

static bool bug_no_synchronise(void) {
    cudaStream_t stream;
    int *out = device<int>(N), *got;
    OK(cudaStreamCreate(&stream));
    OK(cudaMallocHost(&got, N * sizeof(int)));
    OK(GPU_LAUNCH(k_bad_fill, 1, N, 0, stream, out, 3));
    OK(cudaMemcpyAsync(got, out, N * sizeof(int), cudaMemcpyDeviceToHost, stream));
    return got[0] == 3; /* no cudaStreamSynchronize before */
}

static bool bug_no_opt_in(void) {
    int *out = device<int>(N);
    OK(GPU_LAUNCH(k_bad_dyn, 1, N, 64 * 1024, nullptr, out));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_many_threads(void) {
    int *out = device<int>(2048);
    OK(GPU_LAUNCH(k_bad_fill, 1, 2048, 0, nullptr, out, 1));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_freed(void) {
    int *out = device<int>(N);
    OK(cudaFree(out));
    OK(GPU_LAUNCH(k_bad_fill, 1, N, 0, nullptr, out, 1));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_freed_in_struct(void) {
    float *from = device<float>(N), *out = device<float>(N);
    OK(cudaFree(from));
    const bad_args args = {from, out};
    OK(GPU_LAUNCH(k_bad_struct, 1, N, 0, nullptr, args));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_streams(void) {
    cudaStream_t a, b;
    int *out = device<int>(N), *got;
    OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    OK(cudaMallocHost(&got, N * sizeof(int)));
    OK(GPU_LAUNCH(k_bad_fill, 1, N, 0, a, out, 3));
    OK(cudaMemcpyAsync(got, out, N * sizeof(int), cudaMemcpyDeviceToHost, b)); /* b does not wait */
    OK(cudaStreamSynchronize(b));
    return got[0] == 3;
}

static bool bug_pinned_reused(void) {
    cudaStream_t stream;
    int *out = device<int>(1), *record, got[1];
    OK(cudaStreamCreate(&stream));
    OK(cudaMallocHost(&record, sizeof(int)));
    record[0] = 1;
    OK(cudaMemcpyAsync(out, record, sizeof(int), cudaMemcpyHostToDevice, stream));
    record[0] = 2; /* before the copy is known to be over */
    OK(cudaStreamSynchronize(stream));
    get(got, out, 1);
    return got[0] == 1;
}

static bool bug_copy_overrun(void) {
    int *out = device<int>(N), from[N + 1] = {0};
    OK(cudaMemcpy(out, from, sizeof(from), cudaMemcpyHostToDevice));
    return true;
}

static bool bug_source(void) {
    int *out = device<int>(N);
    OK(GPU_LAUNCH(k_bad_source, 1, 32, 0, nullptr, out));
    OK(cudaDeviceSynchronize());
    return true;
}

static bool bug_vote(void) {
    int *out = device<int>(N);
    OK(GPU_LAUNCH(k_bad_vote, 1, 32, 0, nullptr, out));
    OK(cudaDeviceSynchronize());
    return true;
}

/* Where it must be caught: for each build (plain, sanitizers, race) the orders, by their first
 * letters f, r (random: a seed may miss what depends on the order), and the words that say so. */
#define ALL                                                                                        \
    { "fr", "fr", "fr" }
/* clang copies a struct without a look at its alignment. */
#ifdef __clang__
#define MISALIGNED                                                                                 \
    { "", "", "" }
#else
#define MISALIGNED                                                                                 \
    { "", "fr", "fr" }
#endif
#define SAME(words)                                                                                \
    { words, words, words }
static const struct {
    const char *name;
    bool (*run)(void);
    const char *orders[3];
    const char *words[3];
} bugs[] = {
    {"index past the end, at a page", bug_index, ALL, SAME("past the end of an allocation")},
    {"index past the end, inside a page", bug_index_odd, ALL,
        {"past the end of an allocation", "AddressSanitizer", "past the end of an allocation"}},
    {"static shared overrun", bug_static_overrun, ALL,
        {"past the end of shared memory", "out of bounds", "past the end of shared memory"}},
    {"dynamic shared overrun", bug_dyn_overrun, ALL, SAME("past what the launch gave")},
    {"first barrier missing", bug_first_barrier, ALL,
        {"wrong result", "wrong result", "never wrote"}},
    {"second barrier missing", bug_second_barrier, ALL, {"wrong result", "wrong result", "race: "}},
    {"two barriers in two arms", bug_two_barriers, ALL, SAME("is in the one at")},
    {"barrier not reached by all", bug_missed_barrier, ALL, SAME("__syncthreads at")},
    {"mask names absent lanes", bug_mask, ALL, SAME("mask ffffffff")},
    {"increment not atomic", bug_increment, {"", "", "fr"}, SAME("race: ")},
    {"shared memory not initialised", bug_uninitialised, ALL,
        {"wrong result", "wrong result", "never wrote"}},
    {"__syncwarp missing", bug_syncwarp, ALL, {"wrong result", "wrong result", "never wrote"}},
    {"blocks race on one word", bug_blocks, {"", "", "fr"}, SAME("race: ")},
    {"misaligned float4", bug_misaligned, MISALIGNED, {"", "misaligned", "not a multiple"}},
    {"host pointer handed over", bug_host_pointer, ALL, SAME("points to host memory")},
    {"host reads device memory", bug_host_reads_device, ALL,
        SAME("host code touches device memory")},
    {"host reads before it waits", bug_no_synchronise, ALL, SAME("wrong result")},
    {"shared memory without opt-in", bug_no_opt_in, ALL, SAME("invalid argument")},
    {"too many threads", bug_many_threads, ALL, SAME("invalid configuration")},
    /* and some more */
    {"host pointer in a struct", bug_host_pointer_in_struct, {"", "", "fr"},
        SAME("reads host memory")},
    {"freed memory handed over", bug_freed, ALL, SAME("memory that was freed")},
    {"freed memory in a struct", bug_freed_in_struct, ALL, SAME("memory that was freed")},
    {"stream does not wait for another", bug_streams, ALL, SAME("wrong result")},
    {"pinned memory reused too early", bug_pinned_reused, ALL, SAME("wrong result")},
    {"copy leaves its allocation", bug_copy_overrun, ALL, SAME("leaves its allocation")},
    {"shuffle reads an absent lane", bug_source, ALL, SAME("which the mask")},
    {"two warp operations in two arms", bug_vote, ALL, SAME("but lane")},
};

struct outcome {
    bool caught;
    char text[4096];
};

static void run_bug(outcome *out, bool (*run)(void), shim_order order) {
    int ends[2];
    memset(out, 0, sizeof(*out));
    if (pipe(ends)) {
        perror("pipe");
        exit(1);
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        dup2(ends[1], 2);
        close(ends[0]);
        shim_set_order(order, 7);
        bool right = run();
        if (!right) {
            fprintf(stderr, "wrong result\n");
        }
        _exit(right ? 0 : 1);
    }
    close(ends[1]);
    size_t n = 0;
    for (;;) {
        char rest[512];
        bool room = n + 1 < sizeof(out->text);
        ssize_t n_read = read(
            ends[0], room ? out->text + n : rest, room ? sizeof(out->text) - 1 - n : sizeof(rest));
        if (n_read <= 0) {
            break;
        }
        n += room ? (size_t)n_read : 0;
    }
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    out->caught = status != 0;
}

int main(void) {
    int n_failed = 0;
    printf("%-33s forward reverse random   (%s)\n", "bug", build_names[this_build]);
    for (const auto &bug : bugs) {
        printf("%-33s", bug.name);
        char said[3][4096];
        for (int order = 0; order < 3; order++) {
            static outcome out;
            run_bug(&out, bug.run, (shim_order)order);
            snprintf(said[order], sizeof(said[order]), "%s", out.text);
            bool must = order < 2 && strchr(bug.orders[this_build], order_names[order][0]);
            const char *words = bug.words[this_build];
            bool right = !must || (out.caught && strstr(out.text, words));
            printf(" %-7s", out.caught ? "caught" : "-");
            n_failed += !right;
            if (!right) {
                printf("\n  %s: must be caught by '%s', it said: %s\n", order_names[order], words,
                    out.text);
            }
        }
        char *line = strstr(said[0][0] ? said[0] : said[1], "\n");
        if (line) {
            *line = 0;
        }
        printf("  %s\n", getenv("SHIM_SHOW") ? (said[0][0] ? said[0] : said[1]) : "");
    }
    printf("%zu bugs, %d failed\n", sizeof(bugs) / sizeof(bugs[0]), n_failed);
    return n_failed ? 1 : 0;
}
