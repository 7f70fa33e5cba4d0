/* The element-wise steps of a row: norms, biases and rotation, the gate, and the cache's rows. */
#ifndef DT_GPU_K_ROWS_CUH
#define DT_GPU_K_ROWS_CUH

#include "gpu/k_base.cuh"

/* ---- x += delta, h = norm(x), quantised: a block a row ---- */

static inline gpu_shape gpu_norm_shape(const dt_gpu_norm *a) {
    return gpu_shape_of(a->m_max, 1, 1, GPU_THREADS, 0);
}

GPU_KERNEL k_norm(dt_gpu_norm a) {
    GPU_SHARED(float, scale, [2]);
    int i = (int)blockIdx.x, tid = (int)threadIdx.x;
    if (i >= (a.gather ? a.d_step->n_out : a.d_step->n_rows))
        return;
    int r = a.gather ? a.d_step->out_rows[i] : i;
    float *x = a.x + (size_t)r * a.n, *h = a.h + (size_t)i * a.n;
    if (a.delta) {
        float *delta = a.delta + (size_t)r * a.n;
        if (a.delta_rest) {
            for (int c = tid; c < a.n; c += GPU_THREADS)
                delta[c] = __fadd_rn(delta[c], a.delta_rest[(size_t)r * a.n + c]);
            __syncthreads();
        }
        if (a.delta_norm) {
            if (tid < GPU_LANES) {
                float s = gpu_norm_scale(delta, a.n, a.eps);
                if (tid == 0)
                    scale[0] = s;
            }
            __syncthreads();
        }
        for (int c = tid; c < a.n; c += GPU_THREADS) {
            float d = delta[c];
            if (a.delta_norm)
                d = __fmul_rn(__fmul_rn(d, scale[0]), a.delta_norm[c]);
            x[c] = __fadd_rn(x[c], d);
        }
        __syncthreads();
    }
    if (tid < GPU_LANES) {
        float s = gpu_norm_scale(x, a.n, a.eps);
        if (tid == 0)
            scale[1] = s;
    }
    __syncthreads();
    for (int c = tid; c < a.n; c += GPU_THREADS)
        h[c] = __fmul_rn(__fmul_rn(x[c], scale[1]), a.w[c]);
    __syncthreads();
    gpu_quantise(&a.out, i, a.n, h, 0, a.n);
}

/* ---- biases, normalised heads, rotation, the cache: a block a row, a warp a head ---- */

static inline gpu_shape gpu_rotate_shape(const dt_gpu_rotate *a) {
    return gpu_shape_of(a->m_max, 1, 1, GPU_THREADS, 0);
}

/* Element 0 of a row's key; element d lies at gpu_key_at(d). */
static __device__ inline size_t gpu_key_row(int row, int head_dim) {
    int n_groups = (head_dim + DT_GPU_KEY_GROUP - 1) / DT_GPU_KEY_GROUP;
    return ((size_t)(row / 32) * n_groups * 32 + row % 32) * DT_GPU_KEY_GROUP;
}
static __device__ inline size_t gpu_key_at(int d) {
    return (size_t)(d / DT_GPU_KEY_GROUP) * 32 * DT_GPU_KEY_GROUP + d % DT_GPU_KEY_GROUP;
}

static __device__ inline uint16_t gpu_to_half(float x) {
    return __half_as_ushort(__float2half_rn(x));
}

/* One head: bias, norm, rotation. All lanes; ends with a barrier of the warp. */
static __device__ inline void gpu_turn_head(const dt_gpu_rotate &a, float *p, const float *bias,
    const float *norm, const float *cos_sin, int lane) {
    if (bias) {
        for (int d = lane; d < a.head_dim; d += GPU_LANES)
            p[d] = __fadd_rn(p[d], bias[d]);
        __syncwarp();
    }
    if (norm) {
        float scale = gpu_norm_scale(p, a.head_dim, a.eps);
        for (int d = lane; d < a.head_dim; d += GPU_LANES)
            p[d] = __fmul_rn(__fmul_rn(p[d], scale), norm[d]);
        __syncwarp();
    }
    int n_pairs = a.n_rot / 2, step = a.halves ? 1 : 2, other = a.halves ? n_pairs : 1;
    for (int i = lane; i < n_pairs; i += GPU_LANES) {
        float u = p[i * step], v = p[i * step + other];
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        p[i * step] = __fmaf_rn(-v, s, __fmul_rn(u, c));
        p[i * step + other] = __fmaf_rn(v, c, __fmul_rn(u, s));
    }
    __syncwarp();
}

GPU_KERNEL k_rotate(dt_gpu_rotate a) {
    int r = (int)blockIdx.x;
    if (r >= a.d_step->n_rows)
        return;
    int lane = (int)threadIdx.x % GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
    const float *cos_sin = a.cos_sin + (size_t)r * a.n_rot;
    int row = a.d_step->row0 + r;
    for (int i = warp; i < a.n_head + 2 * a.n_head_kv; i += GPU_WARPS) {
        if (i < a.n_head) {
            float *p = a.q + ((size_t)r * a.n_head + i) * a.head_dim;
            gpu_turn_head(a, p, a.bq ? a.bq + i * a.head_dim : NULL, a.q_norm, cos_sin, lane);
            continue;
        }
        int g = (i - a.n_head) % a.n_head_kv;
        size_t at = ((size_t)r * a.n_head_kv + g) * a.head_dim;
        if (i < a.n_head + a.n_head_kv) {
            float *p = a.k + at;
            gpu_turn_head(a, p, a.bk ? a.bk + g * a.head_dim : NULL, a.k_norm, cos_sin, lane);
            uint16_t *key = a.keys + (size_t)g * a.head_keys + gpu_key_row(row, a.head_dim);
            for (int d = lane; d < a.head_dim; d += GPU_LANES)
                key[gpu_key_at(d)] = gpu_to_half(p[d]);
        } else {
            const float *p = a.v + at;
            uint16_t *value = a.values + (size_t)g * a.head_values + (size_t)row * a.v_stride;
            for (int d = lane; d < a.head_dim; d += GPU_LANES)
                value[d] = gpu_to_half(a.bv ? __fadd_rn(p[d], a.bv[g * a.head_dim + d]) : p[d]);
        }
    }
}

/* ---- the gate: a block works on GPU_COLUMNS of a row ---- */

static inline gpu_shape gpu_gate_shape(const dt_gpu_gate *a) {
    return gpu_shape_of(gpu_ceil(a->n, GPU_COLUMNS), a->m_max, 1, GPU_THREADS, 0);
}

GPU_KERNEL k_gate(dt_gpu_gate a) {
    int r = (int)blockIdx.y;
    if (r >= a.d_step->n_rows)
        return;
    int first = (int)blockIdx.x * GPU_COLUMNS, end = min(first + GPU_COLUMNS, a.n);
    float *gate = a.gate + (size_t)r * a.n;
    const float *up = a.up + (size_t)r * a.n;
    for (int c = first + (int)threadIdx.x; c < end; c += GPU_THREADS) {
        gate[c] = __fmul_rn(a.gelu ? dt_gelu_f32(gate[c]) : dt_silu_f32(gate[c]), up[c]);
    }
    __syncthreads();
    gpu_quantise(&a.out, r, a.n, gate, first, end);
}

/* ---- moving rows of the cache: a thread owns one element of all rows and moves in order ---- */

static inline gpu_shape gpu_kv_move_shape(const dt_gpu_kv_move *a) {
    return gpu_shape_of(gpu_ceil(a->n_heads * 2 * a->head_dim, GPU_THREADS), 1, 1, GPU_THREADS, 0);
}

GPU_KERNEL k_kv_move(dt_gpu_kv_move a) {
    int i = (int)(blockIdx.x * GPU_THREADS + threadIdx.x);
    int head = i / (2 * a.head_dim), d = i % (2 * a.head_dim);
    if (head >= a.n_heads)
        return;
    bool is_key = d < a.head_dim;
    uint16_t *base = is_key ? a.keys + (size_t)head * a.head_keys + gpu_key_at(d)
                            : a.values + (size_t)head * a.head_values + (d - a.head_dim);
    for (int j = 0; j < a.n_moves; j++) {
        int from = a.d_moves[j].from, to = a.d_moves[j].to;
        size_t source = is_key ? gpu_key_row(from, a.head_dim) : (size_t)from * a.v_stride;
        size_t target = is_key ? gpu_key_row(to, a.head_dim) : (size_t)to * a.v_stride;
        base[target] = base[source];
    }
}

#endif
