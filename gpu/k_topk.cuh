/* The best tokens of a row of logits: the candidates that dt_topk_finish asks for (models/topk.h),
 * found as dt_topk_row finds them. Three launches: the largest of each block of logits; the sum of
 * the softmax; then one block of threads a row picks. */
#ifndef DT_GPU_K_TOPK_CUH
#define DT_GPU_K_TOPK_CUH

#include "gpu/k_base.cuh"
#include "models/scan.h"
#include "models/topk.h"
#include "src/base/fmath_log.h"

enum { GPU_SUM_BLOCKS = 32 };

static inline gpu_shape gpu_topk_max_shape(const dt_gpu_topk *a) {
    return gpu_shape_of(
        gpu_ceil(gpu_ceil(a->n_vocab, DT_SCAN_BLOCK), GPU_WARPS), a->m_max, 1, GPU_THREADS, 0);
}
static inline gpu_shape gpu_topk_sum_shape(const dt_gpu_topk *a) {
    return gpu_shape_of(GPU_SUM_BLOCKS, a->m_max, 1, GPU_THREADS, 0);
}
static inline gpu_shape gpu_topk_pick_shape(const dt_gpu_topk *a) {
    return gpu_shape_of(a->m_max, 1, 1, GPU_THREADS, 0);
}

static __device__ inline float gpu_larger(float a, float b) {
    return b > a ? b : a;
}

static __device__ inline float gpu_warp_larger(float v) {
    GPU_UNROLL
    for (int by = 16; by > 0; by /= 2)
        v = gpu_larger(v, __shfl_xor_sync(GPU_ALL, v, by));
    return v;
}

static __device__ inline int gpu_scan_blocks(const dt_gpu_step *step) {
    return (step->n_allowed + step->scan_block - 1) / step->scan_block;
}

GPU_KERNEL k_topk_max(dt_gpu_topk a) {
    const dt_gpu_step *step = a.d_step;
    int r = (int)blockIdx.y, lane = (int)threadIdx.x % GPU_LANES;
    int b = (int)blockIdx.x * GPU_WARPS + (int)threadIdx.x / GPU_LANES;
    if (step->topk_mode == DT_GPU_TOPK_NONE || r >= step->n_out)
        return;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        a.best[r].n = 0;
        a.best[r].sum = 0;
    }
    if (b >= gpu_scan_blocks(step))
        return;
    const float *logits = a.logits + (size_t)r * a.n_vocab;
    int end = min((b + 1) * step->scan_block, step->n_allowed);
    float best = -__builtin_inff();
    for (int i = b * step->scan_block + lane; i < end; i += GPU_LANES)
        best = gpu_larger(best, logits[i]);
    best = gpu_warp_larger(best);
    if (lane == 0)
        a.block_max[(size_t)r * DT_GPU_SCAN_BLOCKS + b] = best;
}

/* The largest logit of the row, in every thread; `shared` [GPU_WARPS]. */
static __device__ inline float gpu_row_best(const float *block_max, int n_blocks, float *shared) {
    float best = -__builtin_inff();
    for (int b = (int)threadIdx.x; b < n_blocks; b += GPU_THREADS)
        best = gpu_larger(best, block_max[b]);
    best = gpu_warp_larger(best);
    if (threadIdx.x % GPU_LANES == 0)
        shared[threadIdx.x / GPU_LANES] = best;
    __syncthreads();
    best = shared[0];
    GPU_UNROLL
    for (int i = 1; i < GPU_WARPS; i++)
        best = gpu_larger(best, shared[i]);
    return best;
}

static __device__ inline bool gpu_finite(float v) {
    return v > -__builtin_inff() && v < __builtin_inff();
}

/* Half a warp sums one block of logits in its 16 lanes. */
GPU_KERNEL k_topk_sum(dt_gpu_topk a) {
    GPU_SHARED(float, shared, [GPU_WARPS]);
    const dt_gpu_step *step = a.d_step;
    int r = (int)blockIdx.y;
    if (step->topk_mode != DT_GPU_TOPK_PLAIN || r >= step->n_out)
        return;
    const float *logits = a.logits + (size_t)r * a.n_vocab;
    const float *block_max = a.block_max + (size_t)r * DT_GPU_SCAN_BLOCKS;
    int n_blocks = gpu_scan_blocks(step);
    float best = gpu_row_best(block_max, n_blocks, shared);
    long long sum = 0;
    int j = (int)threadIdx.x % DT_SCAN_LANES;
    int b = ((int)blockIdx.x * GPU_THREADS + (int)threadIdx.x) / DT_SCAN_LANES;
    for (; gpu_finite(best) && b < n_blocks; b += GPU_SUM_BLOCKS * GPU_THREADS / DT_SCAN_LANES) {
        if (!(__fmul_rn(__fsub_rn(block_max[b], best), step->scale) >= -DT_TOPK_SUM_REACH))
            continue;
        int end = min((b + 1) * step->scan_block, step->n_allowed);
        float lane = 0.0f;
        for (int i = b * step->scan_block + j; i < end; i += DT_SCAN_LANES)
            lane = __fadd_rn(lane, dt_scan_exp(__fmul_rn(__fsub_rn(logits[i], best), step->scale)));
        sum += (long long)__fmul_rn(lane, 0x1p32f);
    }
    GPU_UNROLL
    for (int by = 16; by > 0; by /= 2)
        sum += __shfl_xor_sync(GPU_ALL, sum, by);
    if (threadIdx.x % GPU_LANES == 0 && sum != 0)
        atomicAdd(reinterpret_cast<unsigned long long *>(&a.best[r].sum), (unsigned long long)sum);
}

/* ---- picking ---- */

static __device__ inline bool gpu_before(double a, int a_id, double b, int b_id) {
    return a > b || (a == b && a_id < b_id);
}

/* What a whole block picks with. */
typedef struct gpu_picker {
    double values[2][GPU_WARPS];
    int ids[2][GPU_WARPS];
} gpu_picker;

/* The thread's best of keys[0 .. n-1] behind (after, after_id); -infinity is no candidate. */
static __device__ inline void gpu_own_best(double *value, int *id, const double *keys,
    const int32_t *ids, int n, double after, int after_id) {
    *value = -(double)__builtin_inff();
    *id = 0x7fffffff;
    for (int i = (int)threadIdx.x; i < n; i += GPU_THREADS) {
        if (gpu_before(after, after_id, keys[i], ids[i]) &&
            gpu_before(keys[i], ids[i], *value, *id)) {
            *value = keys[i];
            *id = ids[i];
        }
    }
}

/* The n_best best of keys, descending, ties by ascending id; returns how many there are. Called by
 * all threads after a barrier; out may be read after the next one. */
static __device__ inline int gpu_pick(double *out, int32_t *out_ids, const double *keys,
    const int32_t *ids, int n, int n_best, gpu_picker *shared) {
    double nothing = -(double)__builtin_inff(), value;
    int id, lane = (int)threadIdx.x % GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
    gpu_own_best(&value, &id, keys, ids, n, -nothing, -1);
    for (int round = 0; round < n_best; round++) {
        double v = value;
        int v_id = id;
        GPU_UNROLL
        for (int by = 16; by > 0; by /= 2) {
            double other = __shfl_xor_sync(GPU_ALL, v, by);
            int other_id = __shfl_xor_sync(GPU_ALL, v_id, by);
            if (gpu_before(other, other_id, v, v_id)) {
                v = other;
                v_id = other_id;
            }
        }
        if (lane == 0) {
            shared->values[round & 1][warp] = v;
            shared->ids[round & 1][warp] = v_id;
        }
        __syncthreads();
        v = shared->values[round & 1][0];
        v_id = shared->ids[round & 1][0];
        GPU_UNROLL
        for (int i = 1; i < GPU_WARPS; i++) {
            if (gpu_before(shared->values[round & 1][i], shared->ids[round & 1][i], v, v_id)) {
                v = shared->values[round & 1][i];
                v_id = shared->ids[round & 1][i];
            }
        }
        if (!(v > nothing))
            return round;
        if (threadIdx.x == 0) {
            out[round] = v;
            out_ids[round] = v_id;
        }
        if (v_id == id)
            gpu_own_best(&value, &id, keys, ids, n, v, v_id);
    }
    return n_best;
}

/* The best logits: the blocks that hold them are those with the largest maxima (earlier ones
 * first), as many as logits are wanted. */
static __device__ inline void gpu_pick_logits(
    const dt_gpu_topk &a, int r, int n_blocks, gpu_picker *shared, int32_t *chosen) {
    const dt_gpu_step *step = a.d_step;
    const float *logits = a.logits + (size_t)r * a.n_vocab;
    const float *block_max = a.block_max + (size_t)r * DT_GPU_SCAN_BLOCKS;
    double *keys = a.keys + (size_t)r * DT_GPU_NOISY_MAX;
    int32_t *ids = a.ids + (size_t)r * DT_GPU_NOISY_MAX;
    dt_gpu_best *best = &a.best[r];
    for (int b = (int)threadIdx.x; b < n_blocks; b += GPU_THREADS) {
        keys[b] = (double)block_max[b];
        ids[b] = b;
    }
    __syncthreads();
    int n_chosen = gpu_pick(best->values, chosen, keys, ids, n_blocks, step->n_ranked, shared);
    __syncthreads();
    int n = n_chosen * step->scan_block;
    for (int i = (int)threadIdx.x; i < n; i += GPU_THREADS) {
        int at = chosen[i / step->scan_block] * step->scan_block + i % step->scan_block;
        float v = at < step->n_allowed ? logits[at] : -__builtin_inff();
        keys[i] = v == v ? (double)v : -(double)__builtin_inff();
        ids[i] = at;
    }
    __syncthreads();
    n = gpu_pick(best->values, best->tokens, keys, ids, n, step->n_ranked, shared);
    if (threadIdx.x == 0)
        best->n = n;
}

/* dt_noise_bits of src/base/noise.c. */
static __device__ inline uint32_t gpu_noise_bits(uint64_t seed, int64_t position, int32_t token) {
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)((uint64_t)position >> 32);
    uint32_t c2 = (uint32_t)token, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c0;
}

static __device__ inline double gpu_gumbel(uint32_t bits) {
    double u = __dmul_rn(__dadd_rn((double)bits, 0.5), 0x1p-32);
    return -log_f64(-log_f64(__dsub_rn(1.0, u)));
}

/* Below this no token gets noise. All threads; `shared` is summed up in. */
static __device__ inline float gpu_noise_limit(
    const float *block_max, int n_blocks, float best, const dt_gpu_step *step) {
    const float reaches[] = DT_TOPK_REACHES;
    float reach = reaches[0];
    GPU_UNROLL
    for (int i = 0; i < (int)(sizeof reaches / sizeof *reaches); i++) {
        int n = 0;
        reach = reaches[i];
        for (int b0 = 0; b0 < n_blocks; b0 += GPU_THREADS) {
            int b = b0 + (int)threadIdx.x;
            bool inside = b < n_blocks && __fmul_rn(__fsub_rn(best, block_max[b]),
                                              step->inverse_temperature) <= reach;
            n += __syncthreads_count(inside);
        }
        if (n <= DT_TOPK_NOISE_BLOCKS)
            break;
    }
    return __fsub_rn(best, __fmul_rn(reach, step->temperature));
}

/* Turns counts of blocks into where each begins in the list; returns the list's length, which ends
 * before the first block that begins at DT_TOPK_NOISE_TOKENS or later. `sums` [GPU_THREADS + 1]. */
static __device__ inline int gpu_noise_places(int32_t *counts, int n_blocks, int32_t *sums) {
    int tid = (int)threadIdx.x, each = (n_blocks + GPU_THREADS - 1) / GPU_THREADS;
    int first = min(tid * each, n_blocks), end = min(first + each, n_blocks), sum = 0;
    for (int b = first; b < end; b++)
        sum += counts[b];
    sums[tid] = sum;
    if (tid == 0)
        sums[GPU_THREADS] = 0;
    __syncthreads();
    int place = 0;
    for (int i = 0; i < tid; i++)
        place += sums[i];
    for (int b = first; b < end; b++) {
        int n = counts[b];
        counts[b] = place;
        place += n;
        if (place - n < DT_TOPK_NOISE_TOKENS)
            atomicMax(&sums[GPU_THREADS], place);
    }
    __syncthreads();
    return sums[GPU_THREADS];
}

static __device__ inline void gpu_pick_noisy(
    const dt_gpu_topk &a, int r, int n_blocks, float best, gpu_picker *shared, int32_t *sums) {
    const dt_gpu_step *step = a.d_step;
    const float *logits = a.logits + (size_t)r * a.n_vocab;
    const float *block_max = a.block_max + (size_t)r * DT_GPU_SCAN_BLOCKS;
    int32_t *counts = a.counts + (size_t)r * DT_GPU_SCAN_BLOCKS;
    double *keys = a.keys + (size_t)r * DT_GPU_NOISY_MAX;
    int32_t *ids = a.ids + (size_t)r * DT_GPU_NOISY_MAX;
    int lane = (int)threadIdx.x % GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
    float limit = gpu_noise_limit(block_max, n_blocks, best, step);
    int64_t position = step->n_positions[step->out_rows[r]];
    for (int pass = 0; pass < 2; pass++) {
        for (int b = warp; b < n_blocks; b += GPU_WARPS) {
            bool inside = block_max[b] >= limit;
            int first = b * step->scan_block, place = pass ? counts[b] : 0;
            int end = inside ? min(first + step->scan_block, step->n_allowed) : first;
            if (pass && place >= DT_TOPK_NOISE_TOKENS)
                end = first;
            int n = 0;
            for (int i0 = first; i0 < end; i0 += GPU_LANES) {
                int i = i0 + lane;
                float l = i < end ? logits[i] : -__builtin_inff();
                bool near = i < end && l >= limit;
                unsigned votes = __ballot_sync(GPU_ALL, near);
                if (pass && near) {
                    int at = place + n + __popc(votes & ((1u << lane) - 1));
                    uint32_t bits = gpu_noise_bits(step->seed, position, i);
                    keys[at] = __dadd_rn(
                        __ddiv_rn((double)l, (double)step->temperature), gpu_gumbel(bits));
                    ids[at] = i;
                }
                n += __popc(votes);
            }
            if (!pass && lane == 0)
                counts[b] = n;
        }
        __syncthreads();
        if (!pass)
            gpu_noise_places(counts, n_blocks, sums);
    }
    int n_list = sums[GPU_THREADS];
    int n = gpu_pick(a.best[r].values, a.best[r].tokens, keys, ids, n_list, step->n_ranked, shared);
    if (threadIdx.x == 0)
        a.best[r].n = n;
}

GPU_KERNEL k_topk_pick(dt_gpu_topk a) {
    GPU_SHARED(float, shared, [GPU_WARPS]);
    GPU_SHARED(gpu_picker, picker, [1]);
    GPU_SHARED(int32_t, sums, [GPU_THREADS + 1]);
    GPU_SHARED(int32_t, chosen, [DT_GPU_RANKED]);
    const dt_gpu_step *step = a.d_step;
    int r = (int)blockIdx.x;
    if (step->topk_mode == DT_GPU_TOPK_NONE || r >= step->n_out)
        return;
    int n_blocks = gpu_scan_blocks(step);
    float best = gpu_row_best(a.block_max + (size_t)r * DT_GPU_SCAN_BLOCKS, n_blocks, shared);
    if (threadIdx.x == 0)
        a.best[r].best = best;
    if (!gpu_finite(best))
        return;
    if (step->topk_mode == DT_GPU_TOPK_NOISY)
        gpu_pick_noisy(a, r, n_blocks, best, picker, sums);
    else
        gpu_pick_logits(a, r, n_blocks, picker, chosen);
}

#endif
