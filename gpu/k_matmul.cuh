/* Matrix products of packed weights, and rows of the embedding table.
 *
 * A lane is an output row; the warps of a block take blocks of weights in turn and leave their
 * integers in shared memory, where one warp for each row of activations adds them up in the order
 * of doc/numerics.md. So the weights are read once, in whole lines, by many warps, and each output
 * is one chain of fused multiply-adds. */
#ifndef DT_GPU_K_MATMUL_CUH
#define DT_GPU_K_MATMUL_CUH

#include "gpu/k_weights.cuh"

/* Rows of activations that share one reading of the weights: one, or up to eight. */
enum { GPU_TILE = 8 };

/* Blocks of weights that a warp takes at a time. */
template <typename W, int MT> struct gpu_turn {
    static const int BLOCKS = MT == 1 && W::BLOCK == 32 ? 4 : 1;
    static const int UNITS = GPU_WARPS * BLOCKS;
    static const int INTS = (W::MIN == 2 ? 2 : 1) * MT * 32, FLOATS = (W::MIN ? 2 : 1) * 32;
    static const int WORDS = UNITS * (INTS + FLOATS); /* of one of the two buffers */
};

template <typename W, int MT> static inline gpu_shape gpu_matmul_shape(const dt_gpu_matmul *a) {
    int n_panels = 0;
    for (int i = 0; i < a->n_products; i++)
        n_panels += a->products[i].n_panels;
    return gpu_shape_of(
        n_panels, gpu_ceil(a->m_max, MT), 1, GPU_THREADS, 2 * sizeof(int) * gpu_turn<W, MT>::WORDS);
}

/* The integers of one block of a lane's row against rows [row0, row0 + n) of the activations. */
template <typename W, int MT>
static __device__ inline void gpu_block_ints(int p[MT], int mins[MT], const W &weights,
    const dt_gpu_act &act, int k, int row0, int n, int b) {
    GPU_UNROLL
    for (int t = 0; t < MT; t++)
        p[t] = mins[t] = 0;
    GPU_UNROLL
    for (int j = 0; j < W::RUNS; j++) {
        int w[8], scale = 1, second = 1, min = 0;
        weights.run(w, j);
        weights.scales(&scale, &second, &min, j);
        GPU_UNROLL
        for (int t = 0; t < MT; t++) {
            if (MT > 1 && t >= n)
                break;
            size_t at = (size_t)(row0 + t) * k + (size_t)b * W::BLOCK + 32 * j;
            const int4 *q = reinterpret_cast<const int4 *>(act.q + at);
            int4 q0 = q[0], q1 = q[1];
            int low = 0, high = 0;
            GPU_UNROLL
            for (int i = 0; i < 4; i++) {
                low = __dp4a(w[i], gpu_word(q0, i), low);
                high = __dp4a(w[4 + i], gpu_word(q1, i), high);
            }
            if (W::SCALES == 2) {
                const int16_t *sum = act.sum16 + at / 16;
                p[t] += scale * (low - W::ZERO * sum[0]) + second * (high - W::ZERO * sum[1]);
                continue;
            }
            int sum = W::ZERO || W::MIN == 2 ? act.sum32[at / 32] : 0;
            p[t] += scale * (low + high - W::ZERO * sum);
            if (W::MIN == 2)
                mins[t] += min * sum;
        }
    }
}

template <typename W, int MT> GPU_KERNEL k_matmul(dt_gpu_matmul a) {
    typedef gpu_turn<W, MT> turn;
    GPU_DYN_SHARED(int, shared);
    int lane = (int)threadIdx.x % GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
    int row0 = (int)blockIdx.y * MT;
    int n = min(gpu_count(a.d_step, a.count) - row0, MT);
    if (n <= 0)
        return;
    int panel = (int)blockIdx.x, i_product = 0;
    while (panel >= a.products[i_product].n_panels)
        panel -= a.products[i_product++].n_panels;
    const uint8_t *d_panel = static_cast<const uint8_t *>(a.products[i_product].d_panels) +
                             (size_t)panel * a.products[i_product].panel_bytes;
    float y = 0.0f;
    int buffer = 0;
    for (int b0 = 0; b0 < a.n_blocks; b0 += turn::UNITS, buffer ^= 1) {
        int *ints = shared + buffer * turn::WORDS;
        float *floats = reinterpret_cast<float *>(ints + turn::UNITS * turn::INTS);
        W weights[turn::BLOCKS];
        GPU_UNROLL
        for (int u = 0; u < turn::BLOCKS; u++) {
            /* Beyond the last block it is read again, and not used. */
            int b = min(b0 + warp * turn::BLOCKS + u, a.n_blocks - 1);
            weights[u].load(gpu_pieces_of<W>(d_panel, a.n_blocks, b, lane));
        }
        GPU_UNROLL
        for (int u = 0; u < turn::BLOCKS; u++) {
            int unit = warp * turn::BLOCKS + u, b = b0 + unit;
            if (b >= a.n_blocks)
                break;
            int p[MT], mins[MT];
            gpu_block_ints<W, MT>(p, mins, weights[u], a.act, a.k, row0, n, b);
            GPU_UNROLL
            for (int t = 0; t < MT; t++) {
                ints[unit * turn::INTS + t * 32 + lane] = p[t];
                if (W::MIN == 2)
                    ints[unit * turn::INTS + (MT + t) * 32 + lane] = mins[t];
            }
            floats[unit * turn::FLOATS + lane] = weights[u].d();
            if (W::MIN)
                floats[unit * turn::FLOATS + 32 + lane] = weights[u].m();
        }
        /* The buffer is written again two rounds on, after a barrier that its readers pass only
         * when they are done. */
        __syncthreads();
        if (warp < n) {
            const float *dx = a.act.d + (size_t)(row0 + warp) * a.n_blocks + b0;
            const int16_t *sum32 = a.act.sum32 + (size_t)(row0 + warp) * a.n_blocks + b0;
            int n_units = min(turn::UNITS, a.n_blocks - b0);
            for (int u = 0; u < n_units; u++) {
                float d = __fmul_rn(floats[u * turn::FLOATS + lane], dx[u]);
                y = __fmaf_rn(d, __int2float_rn(ints[u * turn::INTS + warp * 32 + lane]), y);
                if (W::MIN == 0)
                    continue;
                float m = __fmul_rn(floats[u * turn::FLOATS + 32 + lane], dx[u]);
                if (W::MIN == 1)
                    y = __fmaf_rn(m, __int2float_rn(sum32[u]), y);
                else
                    y = __fmaf_rn(
                        -m, __int2float_rn(ints[u * turn::INTS + (MT + warp) * 32 + lane]), y);
            }
        }
    }
    int i_out = panel * GPU_LANES + lane, n_out = a.products[i_product].n_out;
    if (warp < n && i_out < n_out)
        a.products[i_product].out[(size_t)(row0 + warp) * n_out + i_out] = y;
}

/* ---- float weights: one chain a lane, the columns ascending ---- */

enum { GPU_FLOAT_WARPS = 4 };

static inline gpu_shape gpu_matmul_float_shape(const dt_gpu_matmul *a, int mt) {
    int n_panels = 0;
    for (int i = 0; i < a->n_products; i++)
        n_panels += a->products[i].n_panels;
    return gpu_shape_of(gpu_ceil(n_panels, GPU_FLOAT_WARPS), gpu_ceil(a->m_max, mt), 1,
        GPU_FLOAT_WARPS * GPU_LANES, 0);
}

template <typename W, int MT> GPU_KERNEL k_matmul_float(dt_gpu_matmul a) {
    int lane = (int)threadIdx.x % GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
    int row0 = (int)blockIdx.y * MT;
    int n = min(gpu_count(a.d_step, a.count) - row0, MT);
    int panel = (int)blockIdx.x * GPU_FLOAT_WARPS + warp, i_product = 0;
    while (i_product < a.n_products && panel >= a.products[i_product].n_panels)
        panel -= a.products[i_product++].n_panels;
    if (n <= 0 || i_product == a.n_products)
        return;
    const uint8_t *d_panel = static_cast<const uint8_t *>(a.products[i_product].d_panels) +
                             (size_t)panel * a.products[i_product].panel_bytes;
    const int4 *pieces = reinterpret_cast<const int4 *>(d_panel) + lane;
    const float *x = a.x + (size_t)row0 * a.k;
    float y[MT];
    GPU_UNROLL
    for (int t = 0; t < MT; t++)
        y[t] = 0.0f;
    int whole = a.k / W::BLOCK;
    for (int b = 0; b < whole; b++) {
        int4 v = gpu_load_once(pieces + (size_t)b * 32);
        GPU_UNROLL
        for (int i = 0; i < W::BLOCK; i++)
            GPU_UNROLL
        for (int t = 0; t < MT; t++)
            if (MT == 1 || t < n)
                y[t] = __fmaf_rn(W::weight(v, i), x[(size_t)t * a.k + b * W::BLOCK + i], y[t]);
    }
    if (a.k % W::BLOCK != 0) { /* padding is not even multiplied: x may hold an infinity */
        int4 v = pieces[(size_t)whole * 32];
        GPU_UNROLL
        for (int i = 0; i < W::BLOCK; i++)
            GPU_UNROLL
        for (int t = 0; t < MT; t++)
            if ((MT == 1 || t < n) && whole * W::BLOCK + i < a.k)
                y[t] = __fmaf_rn(W::weight(v, i), x[(size_t)t * a.k + whole * W::BLOCK + i], y[t]);
    }
    int i_out = panel * GPU_LANES + lane, n_out = a.products[i_product].n_out;
    GPU_UNROLL
    for (int t = 0; t < MT; t++)
        if ((MT == 1 || t < n) && i_out < n_out)
            a.products[i_product].out[(size_t)(row0 + t) * n_out + i_out] = y[t];
}

/* ---- embedding: a block a row, a thread a run of 32 weights ---- */

static inline gpu_shape gpu_embed_shape(const dt_gpu_embed *a) {
    return gpu_shape_of(a->m_max, 1, 1, 128, 0);
}

template <typename W> GPU_KERNEL k_embed(dt_gpu_embed a) {
    int r = (int)blockIdx.x;
    if (r >= a.d_step->n_rows)
        return;
    int token = a.d_step->tokens[r];
    const uint8_t *panel =
        static_cast<const uint8_t *>(a.table.d_panels) + (size_t)(token / 32) * a.table.panel_bytes;
    for (int i = (int)threadIdx.x; i < a.table.k / 32; i += (int)blockDim.x) {
        W weights;
        weights.load(gpu_pieces_of<W>(panel, a.table.n_blocks, i / W::RUNS, token % 32));
        float *x = a.x + (size_t)r * a.table.k + (size_t)i * 32;
        float d = weights.d(), m = weights.m();
        GPU_UNROLL
        for (int j = 0; j < W::RUNS; j++) {
            if (j != i % W::RUNS)
                continue;
            int w[8], first = 1, second = 1, min = 0;
            weights.run(w, j);
            weights.scales(&first, &second, &min, j);
            if (W::SCALES == 1)
                second = first;
            GPU_UNROLL
            for (int c = 0; c < 32; c++) {
                int q = (int)(int8_t)(uint8_t)((unsigned)w[c / 4] >> (8 * (c % 4))) - W::ZERO;
                int scale = c < 16 ? first : second;
                float s = W::SCALES ? __fmul_rn(d, __int2float_rn(scale)) : d;
                float v = __fmul_rn(s, __int2float_rn(q));
                if (W::MIN == 1)
                    v = __fadd_rn(v, m);
                if (W::MIN == 2)
                    v = __fsub_rn(v, __fmul_rn(m, __int2float_rn(min)));
                x[c] = a.scale != 0.0f ? __fmul_rn(v, a.scale) : v;
            }
        }
    }
}

template <typename W> GPU_KERNEL k_embed_float(dt_gpu_embed a) {
    int r = (int)blockIdx.x;
    if (r >= a.d_step->n_rows)
        return;
    int token = a.d_step->tokens[r];
    const uint8_t *panel =
        static_cast<const uint8_t *>(a.table.d_panels) + (size_t)(token / 32) * a.table.panel_bytes;
    const int4 *pieces = reinterpret_cast<const int4 *>(panel) + token % 32;
    for (int b = (int)threadIdx.x; b < a.table.n_blocks; b += (int)blockDim.x) {
        int4 v = pieces[(size_t)b * 32];
        GPU_UNROLL
        for (int i = 0; i < W::BLOCK; i++) {
            int c = b * W::BLOCK + i;
            float w = W::weight(v, i);
            if (c < a.table.k)
                a.x[(size_t)r * a.table.k + c] = a.scale != 0.0f ? __fmul_rn(w, a.scale) : w;
        }
    }
}

#endif
