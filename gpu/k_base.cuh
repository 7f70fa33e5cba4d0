/* What the kernels share: sizes, the activations' quantisation and the sums of a norm. Formulas and
 * orders are those of doc/numerics.md. Kernels have external linkage, so one translation unit of a
 * program includes them. */
#ifndef DT_GPU_K_BASE_CUH
#define DT_GPU_K_BASE_CUH

#include "gpu/ops.h"
#include "gpu/port.h"
#include "src/base/fmath.h"

#ifdef __CUDACC__
#define GPU_UNROLL _Pragma("unroll")
#else
#define GPU_UNROLL
#endif

enum {
    GPU_LANES = 32,
    GPU_THREADS = 256, /* of most kernels */
    GPU_WARPS = GPU_THREADS / GPU_LANES,
    GPU_COLUMNS = 1024, /* columns of a row that one block works on: a multiple of 256 */
};
static const unsigned GPU_ALL = 0xffffffffu;

/* Launch shape: data that every build computes the same way. */
typedef struct gpu_shape {
    dim3 grid, block;
    size_t shared_bytes;
} gpu_shape;

static inline gpu_shape gpu_shape_of(int x, int y, int z, int n_threads, size_t shared_bytes) {
    gpu_shape s;
    s.grid = dim3((unsigned)x, (unsigned)y, (unsigned)z);
    s.block = dim3((unsigned)n_threads);
    s.shared_bytes = shared_bytes;
    return s;
}

static inline int gpu_ceil(int a, int b) {
    return (a + b - 1) / b;
}

static __device__ inline float gpu_half_to_f32(uint16_t h) {
    return __half2float(__ushort_as_half(h));
}

/* Word i of a 16-byte piece; the index is known when compiling, so nothing goes to memory. */
static __device__ inline int gpu_word(int4 v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

static __device__ inline int gpu_count(const dt_gpu_step *step, int count) {
    return count == DT_GPU_COUNT_OUT ? step->n_out : step->n_rows;
}

/* ---- activations ----------------------------------------------------------------------------- */

/* Scale and reciprocal of a block whose largest magnitude has these bits; false: all q are 0. */
static __device__ inline bool gpu_act_scale(float *d, float *r, unsigned largest) {
    float a = __uint_as_float(largest);
    bool finite = largest < 0x7f800000u, counts = finite && a >= 0x1p-100f;
    *d = counts ? __fdiv_rn(a, 127.0f) : finite ? 0.0f : __uint_as_float(0x7fc00000u);
    *r = counts ? __fdiv_rn(127.0f, a) : 0.0f;
    return counts;
}

static __device__ inline int gpu_act_round(float x, float r) {
    return __float2int_rz(dt_rint_f32(__fmul_rn(x, r)));
}

static __device__ inline unsigned gpu_warp_max(unsigned v) {
    GPU_UNROLL
    for (int by = 16; by > 0; by /= 2)
        v = max(v, __shfl_xor_sync(GPU_ALL, v, by));
    return v;
}

/* Blocks [first, end) of 32 columns of a row of k, one a warp. */
static __device__ inline void gpu_quantise_32(
    const dt_gpu_act *act, int row, int k, const float *x, int first, int end) {
    int warp = (int)threadIdx.x / GPU_LANES, lane = (int)threadIdx.x % GPU_LANES;
    for (int b = first + warp; b < end; b += GPU_WARPS) {
        float v = x[(size_t)b * 32 + lane], d, r;
        bool counts = gpu_act_scale(&d, &r, gpu_warp_max(__float_as_uint(v) & 0x7fffffffu));
        int q = counts ? gpu_act_round(v, r) : 0;
        act->q[(size_t)row * k + (size_t)b * 32 + lane] = (int8_t)q;
        GPU_UNROLL
        for (int by = 16; by > 0; by /= 2)
            q += __shfl_xor_sync(GPU_ALL, q, by);
        if (lane == 0) {
            act->d[(size_t)row * (k / 32) + b] = d;
            act->sum32[(size_t)row * (k / 32) + b] = (int16_t)q;
        }
    }
}

/* A block of 256 columns by a warp, eight columns a lane. */
static __device__ inline void gpu_quantise_block(
    const dt_gpu_act *act, int row, int k, const float v[8], int b, int q_out[8], float *d_out) {
    int lane = (int)threadIdx.x % GPU_LANES;
    unsigned largest = 0;
    GPU_UNROLL
    for (int i = 0; i < 8; i++)
        largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
    float d, r;
    bool counts = gpu_act_scale(&d, &r, gpu_warp_max(largest));
    unsigned word[2] = {0, 0};
    int sum = 0;
    GPU_UNROLL
    for (int i = 0; i < 8; i++) {
        int q = counts ? gpu_act_round(v[i], r) : 0;
        word[i / 4] |= ((unsigned)q & 0xff) << (8 * (i % 4));
        sum += q;
        q_out[i] = q;
    }
    *d_out = d;
    size_t at = (size_t)row * k + (size_t)b * 256 + (size_t)lane * 8;
    *reinterpret_cast<uint2 *>(act->q + at) = make_uint2(word[0], word[1]);
    sum += __shfl_xor_sync(GPU_ALL, sum, 1);
    if (lane % 2 == 0)
        act->sum16[at / 16] = (int16_t)sum;
    sum += __shfl_xor_sync(GPU_ALL, sum, 2);
    if (lane % 4 == 0)
        act->sum32[at / 32] = (int16_t)sum;
    if (lane == 0)
        act->d[(size_t)row * (k / 256) + b] = d;
}

/* Blocks [first, end) of 256 columns, one a warp; what is left of them into `rest` if it is not
 * NULL. */
static __device__ inline void gpu_quantise_256(const dt_gpu_act *act, const dt_gpu_act *rest,
    int row, int k, const float *x, int first, int end) {
    int warp = (int)threadIdx.x / GPU_LANES, lane = (int)threadIdx.x % GPU_LANES;
    for (int b = first + warp; b < end; b += GPU_WARPS) {
        size_t at = (size_t)b * 256 + (size_t)lane * 8;
        float4 low = *reinterpret_cast<const float4 *>(x + at);
        float4 high = *reinterpret_cast<const float4 *>(x + at + 4);
        float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, d;
        int q[8];
        gpu_quantise_block(act, row, k, v, b, q, &d);
        if (!rest)
            continue;
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            v[i] = __fmaf_rn(-d, __int2float_rn(q[i]), v[i]);
        gpu_quantise_block(rest, row, k, v, b, q, &d);
    }
}

/* Columns [first, end) of a row, both multiples of every block asked for; by a whole block, after
 * its barrier. */
static __device__ inline void gpu_quantise(
    const dt_gpu_forms *out, int row, int k, const float *x, int first, int end) {
    if (out->forms & DT_GPU_FORM_32)
        gpu_quantise_32(&out->by32, row, k, x, first / 32, end / 32);
    if (out->forms & DT_GPU_FORM_256)
        gpu_quantise_256(&out->by256, out->forms & DT_GPU_FORM_TWICE ? &out->rest : NULL, row, k, x,
            first / 256, end / 256);
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* Lanes 0 .. 15 added as halves; the result is lane 0's. All lanes of the warp take part. */
static __device__ inline float gpu_sum16(float s) {
    GPU_UNROLL
    for (int by = 8; by > 0; by /= 2)
        s = __fadd_rn(s, __shfl_down_sync(GPU_ALL, s, (unsigned)by));
    return s;
}

/* 1 / sqrt(mean(x^2) + eps) by one warp, in every lane. */
static __device__ inline float gpu_norm_scale(const float *x, int n, float eps) {
    int lane = (int)threadIdx.x % GPU_LANES;
    float s = 0.0f;
    if (lane < 16) {
        for (int i = lane; i < n; i += 16)
            s = __fmaf_rn(x[i], x[i], s);
    }
    s = __shfl_sync(GPU_ALL, gpu_sum16(s), 0);
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(s, (float)n), eps)));
}

#endif
