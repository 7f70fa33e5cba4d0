/* Reading memory with the team, as fast as these threads can: what a pass over the weights cannot
 * beat. */
#include <string.h>

#include "cpu/device.h"
#include "src/base/mem.h"

/* A chunk is what a thread takes from the counter at a time; small buffers still give every thread
 * some. Prefetching ends in the second level: the first is too small to run ahead in. */
enum {
    CHUNK_BYTES = 4 << 20,
    CHUNKS_A_THREAD = 16,
    LINE_BYTES = 64,
    AHEAD_BYTES = 4096,
    STREAMS_MAX = 16,
    CHUNK_UNIT = STREAMS_MAX * LINE_BYTES,
};

typedef uint64_t vector __attribute__((vector_size(16)));

struct dt_cpu_reader {
    dt_cpu *cpu;
    uint8_t *data;
    size_t n_bytes, chunk_bytes;
    int n_chunks, n_streams; /* streams of a chunk, side by side */
    _Atomic int next;
    _Atomic uint64_t sum; /* keeps the compiler from leaving the reading out */
};

static inline __attribute__((always_inline)) vector read_streams(
    const uint8_t *data, size_t n_bytes, int n_streams) {
    size_t stream_bytes = n_bytes / (size_t)n_streams;
    vector sums[4] = {{0}};
    for (size_t at = 0; at < stream_bytes; at += LINE_BYTES)
        for (int i = 0; i < n_streams; i++) {
            const uint8_t *line = data + (size_t)i * stream_bytes + at;
            /* May name what lies behind the buffer: a prefetch never faults. */
            __builtin_prefetch((const void *)((uintptr_t)line + AHEAD_BYTES), 0, 2);
            for (int j = 0; j < 4; j++)
                sums[j] += *(const vector *)(line + 16 * j);
        }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

static vector read_chunk(const uint8_t *data, size_t n_bytes, int n_streams) {
    switch (n_streams) {
    case 1:
        return read_streams(data, n_bytes, 1);
    case 2:
        return read_streams(data, n_bytes, 2);
    case 4:
        return read_streams(data, n_bytes, 4);
    case 8:
        return read_streams(data, n_bytes, 8);
    default:
        return read_streams(data, n_bytes, STREAMS_MAX);
    }
}

static void read_work(void *arg, int i_thread, int n_threads) {
    (void)i_thread;
    (void)n_threads;
    dt_cpu_reader *r = arg;
    vector sum = {0};
    int i;
    while ((i = dt_pool_next(&r->next)) < r->n_chunks)
        sum += read_chunk(r->data + (size_t)i * r->chunk_bytes, r->chunk_bytes, r->n_streams);
    atomic_fetch_add_explicit(&r->sum, sum[0] + sum[1], memory_order_relaxed); /* orders nothing */
}

/* Every page is written by a thread of the team, so that it lies near one of them as packed weights
 * do, and is no page of zeros that all share. */
static void fill_work(void *arg, int i_thread, int n_threads) {
    (void)i_thread;
    (void)n_threads;
    dt_cpu_reader *r = arg;
    int i;
    while ((i = dt_pool_next(&r->next)) < r->n_chunks)
        memset(r->data + (size_t)i * r->chunk_bytes, i % 255 + 1, r->chunk_bytes);
}

dt_err dt_cpu_reader_open(dt_cpu_reader **out, dt_cpu *cpu, size_t n_bytes) {
    *out = NULL;
    dt_cpu_reader *r;
    DT_TRY(dt_mem_alloc(&r, sizeof *r));
    size_t share = n_bytes / ((size_t)dt_pool_n_threads(cpu->pool) * CHUNKS_A_THREAD);
    r->cpu = cpu;
    r->chunk_bytes = dt_round_up(DT_MAX(DT_MIN(share, (size_t)CHUNK_BYTES), 1), CHUNK_UNIT);
    r->n_bytes = dt_round_up(DT_MAX(n_bytes, 1), r->chunk_bytes);
    r->n_chunks = (int)(r->n_bytes / r->chunk_bytes);
    dt_err err = dt_mem_map_huge(&r->data, r->n_bytes);
    if (err != DT_OK) {
        dt_cpu_reader_close(r);
        return err;
    }
    dt_pool_run(cpu->pool, fill_work, r);
    *out = r;
    return DT_OK;
}

void dt_cpu_reader_close(dt_cpu_reader *r) {
    if (!r)
        return;
    dt_mem_unmap(r->data, r->n_bytes);
    dt_mem_free(r);
}

dt_err dt_cpu_reader_rate(double *out, dt_cpu_reader *r, int n_streams) {
    if (n_streams < 1 || n_streams > STREAMS_MAX || (n_streams & (n_streams - 1)))
        DT_FAIL(DT_ERR_INPUT, "%d streams: want a power of two up to %d", n_streams, STREAMS_MAX);
    r->n_streams = n_streams;
    atomic_store_explicit(&r->next, 0, memory_order_relaxed); /* dt_pool_run publishes it */
    int64_t start = dt_time_ns();
    dt_pool_run(r->cpu->pool, read_work, r);
    *out = (double)r->n_bytes / ((double)(dt_time_ns() - start) * 1e-9);
    return DT_OK;
}
