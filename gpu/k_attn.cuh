/* Attention of one query head and row over one range of positions, and the ranges put together. */
#ifndef DT_GPU_K_ATTN_CUH
#define DT_GPU_K_ATTN_CUH

#include "gpu/k_rows.cuh"

enum { GPU_TILE_HALVES = 8192, GPU_HEAD_MAX = 1024 };

/* Shared: the query, 512 scores, and a tile of values. */
static inline gpu_shape gpu_attn_shape(const dt_gpu_attend *a) {
    int n_query = gpu_ceil(a->head_dim, 4) * 4; /* the tile is read in pieces of 16 bytes */
    return gpu_shape_of(a->n_head, a->m_max, a->n_ranges_max, GPU_THREADS,
        (size_t)(n_query + DT_GPU_RANGE) * sizeof(float) + GPU_TILE_HALVES * sizeof(uint16_t));
}

/* The largest of scores [begin, end) as the reference finds it: by 16 lanes, which matters only
 * where some are NaN. */
static __device__ inline float gpu_max_with_nan(const float *scores, int begin, int end) {
    float top = 0.0f;
    for (int l = 0; l < 16; l++) {
        int start = begin / 16 * 16;
        float best = -__builtin_inff();
        for (int i = start + l; i < (end + 15) / 16 * 16; i += 16) {
            float s = i >= begin && i < end ? scores[i] : -__builtin_inff();
            best = i < start + 16 || s > best ? s : best;
        }
        top = l == 0 || best > top ? best : top;
    }
    return top;
}

GPU_KERNEL k_attn_range(dt_gpu_attend a) {
    GPU_DYN_SHARED(float, query);
    GPU_SHARED(float, result, [GPU_WARPS + 2]);
    float *scores = query + (a.head_dim + 3) / 4 * 4;
    uint16_t *tile = reinterpret_cast<uint16_t *>(scores + DT_GPU_RANGE);
    const dt_gpu_step *step = a.d_step;
    int head = (int)blockIdx.x, r = (int)blockIdx.y, range = (int)blockIdx.z;
    int tid = (int)threadIdx.x, lane = tid % GPU_LANES, warp = tid / GPU_LANES;
    if (r >= step->n_rows || range >= step->n_ranges)
        return;
    int position0 = range * DT_GPU_RANGE, n_positions = step->n_positions[r];
    int first = a.window > 0 ? max(n_positions - a.window, 0) : 0;
    int begin = max(first - position0, 0), end = min(n_positions - position0, (int)DT_GPU_RANGE);
    float *part = a.part + (((size_t)range * DT_GPU_ROWS_MAX + r) * a.n_head + head) *
                               (size_t)(a.v_stride + 16);
    if (begin >= end) {
        for (int d = tid; d < a.head_dim; d += GPU_THREADS)
            part[16 + d] = 0.0f;
        if (tid == 0) {
            part[0] = -__builtin_inff();
            part[1] = 0.0f;
        }
        return;
    }
    const float *q = a.q + ((size_t)r * a.n_head + head) * a.head_dim;
    int kv = head / (a.n_head / a.n_head_kv);
    const uint16_t *keys = a.keys + (size_t)kv * a.head_keys;
    const uint16_t *values = a.values + (size_t)kv * a.head_values;
    const int32_t *ancestors = a.ancestors + (size_t)r * a.depth;
    int n_committed = step->n_committed;
    for (int d = tid; d < a.head_dim; d += GPU_THREADS)
        query[d] = q[d];
    __syncthreads();

    bool any_nan = false;
    float top = -__builtin_inff();
    for (int p = begin + tid; p < end; p += GPU_THREADS) {
        int at = position0 + p, row = at < n_committed ? at : ancestors[at - n_committed];
        const int4 *key = reinterpret_cast<const int4 *>(keys + gpu_key_row(row, a.head_dim));
        float s = 0.0f;
        for (int d = 0; d < a.head_dim; d += DT_GPU_KEY_GROUP, key += 32) {
            int4 eight = *key;
            GPU_UNROLL
            for (int i = 0; i < DT_GPU_KEY_GROUP; i++) {
                unsigned bits = (unsigned)gpu_word(eight, i / 2) >> (16 * (i % 2)) & 0xffff;
                if (d + i < a.head_dim)
                    s = __fmaf_rn(query[d + i], gpu_half_to_f32((uint16_t)bits), s);
            }
        }
        s = __fmul_rn(s, a.scale);
        scores[p] = s;
        any_nan = any_nan || s != s;
        top = s > top ? s : top;
    }
    GPU_UNROLL
    for (int by = 16; by > 0; by /= 2) {
        float other = __shfl_xor_sync(GPU_ALL, top, by);
        top = other > top ? other : top;
    }
    if (lane == 0)
        result[warp] = top;
    if (__syncthreads_or(any_nan)) {
        top = gpu_max_with_nan(scores, begin, end);
    } else {
        GPU_UNROLL
        for (int i = 0; i < GPU_WARPS; i++)
            top = result[i] > top ? result[i] : top;
    }
    __syncthreads();
    for (int p = begin + tid; p < end; p += GPU_THREADS)
        scores[p] = dt_exp_f32(__fsub_rn(scores[p], top));
    __syncthreads();
    if (warp == 0) {
        float s = 0.0f;
        if (lane < 16) {
            for (int p = begin / 16 * 16 + lane; p < end; p += 16)
                if (p >= begin)
                    s = __fadd_rn(s, scores[p]);
        }
        s = gpu_sum16(s);
        if (lane == 0) {
            part[0] = top;
            part[1] = s;
        }
    }

    /* Values: tiles of rows through shared memory, one chain for each element. */
    int n_tile = GPU_TILE_HALVES / a.v_stride, n_pieces = a.v_stride / 8;
    float sum[GPU_HEAD_MAX / GPU_THREADS];
    GPU_UNROLL
    for (int i = 0; i < GPU_HEAD_MAX / GPU_THREADS; i++)
        sum[i] = 0.0f;
    for (int p0 = begin; p0 < end; p0 += n_tile) {
        int n = min(n_tile, end - p0);
        for (int i = tid; i < n * n_pieces; i += GPU_THREADS) {
            int at = position0 + p0 + i / n_pieces;
            int row = at < n_committed ? at : ancestors[at - n_committed];
            reinterpret_cast<int4 *>(tile)[i] =
                reinterpret_cast<const int4 *>(values + (size_t)row * a.v_stride)[i % n_pieces];
        }
        __syncthreads();
        GPU_UNROLL
        for (int i = 0; i < GPU_HEAD_MAX / GPU_THREADS; i++) {
            int d = tid + i * GPU_THREADS;
            if (d >= a.head_dim)
                break;
            for (int j = 0; j < n; j++)
                sum[i] =
                    __fmaf_rn(scores[p0 + j], gpu_half_to_f32(tile[j * a.v_stride + d]), sum[i]);
        }
        __syncthreads();
    }
    GPU_UNROLL
    for (int i = 0; i < GPU_HEAD_MAX / GPU_THREADS; i++)
        if (tid + i * GPU_THREADS < a.head_dim)
            part[16 + tid + i * GPU_THREADS] = sum[i];
}

static inline gpu_shape gpu_combine_shape(const dt_gpu_attend *a) {
    return gpu_shape_of(
        gpu_ceil(a->n_head * a->head_dim, GPU_COLUMNS), a->m_max, 1, GPU_THREADS, 0);
}

GPU_KERNEL k_attn_combine(dt_gpu_attend a) {
    int r = (int)blockIdx.y, n = a.n_head * a.head_dim, n_ranges = a.d_step->n_ranges;
    if (r >= a.d_step->n_rows)
        return;
    int first = (int)blockIdx.x * GPU_COLUMNS, end = min(first + GPU_COLUMNS, n);
    size_t stride = (size_t)a.v_stride + 16, range_stride = DT_GPU_ROWS_MAX * a.n_head * stride;
    float *out = a.out + (size_t)r * n;
    for (int c = first + (int)threadIdx.x; c < end; c += GPU_THREADS) {
        const float *part = a.part + ((size_t)r * a.n_head + c / a.head_dim) * stride;
        float top = part[0];
        for (int i = 1; i < n_ranges; i++) {
            float m = part[i * range_stride];
            top = m > top ? m : top;
        }
        float sum = 0.0f, o = 0.0f;
        for (int i = 0; i < n_ranges; i++) {
            const float *range = part + i * range_stride;
            float weight = dt_exp_f32(__fsub_rn(range[0], top));
            sum = __fmaf_rn(weight, range[1], sum);
            o = __fmaf_rn(weight, range[16 + c % a.head_dim], o);
        }
        out[c] = __fmul_rn(o, __fdiv_rn(1.0f, sum));
    }
    __syncthreads();
    gpu_quantise(&a.forms, r, n, out, first, end);
}

#endif
