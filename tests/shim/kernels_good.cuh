/* Correct kernels that use what the shim offers: they must pass in every mode, without an alarm. */
#ifndef DT_TESTS_SHIM_KERNELS_GOOD_CUH
#define DT_TESTS_SHIM_KERNELS_GOOD_CUH

#include "gpu/port.h"

GPU_KERNEL k_good_copy(float *dst, const float *src, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        dst[i] = __ldg(src + i);
    }
}

/* y[row] = sum of x[row][0..n) in a fixed order: lanes, then warps. Blocks of 128. */
GPU_KERNEL k_good_row_sum(float *y, const float *x, int n) {
    GPU_SHARED(float, part, [4]);
    const float *row = x + (size_t)blockIdx.x * (size_t)n;
    float sum = 0.0f;
    for (int i = (int)threadIdx.x; i < n; i += 128) {
        sum = __fadd_rn(sum, row[i]);
    }
    for (int step = 16; step; step /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    }
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        y[blockIdx.x] = __fadd_rn(__fadd_rn(part[0], part[1]), __fadd_rn(part[2], part[3]));
    }
}

/* Turns the elements of each block around in dynamic shared memory, `n_rounds` times. */
GPU_KERNEL k_good_turn(int *x, int n_rounds) {
    GPU_DYN_SHARED(int, s);
    int n = (int)blockDim.x, i = (int)threadIdx.x;
    int *mine = x + (size_t)blockIdx.x * blockDim.x;
    for (int round = 0; round < n_rounds; round++) {
        s[i] = mine[i];
        __syncthreads();
        mine[i] = s[n - 1 - i] + 1;
        __syncthreads();
    }
}

/* Counts by values: one atomic counter for each of the 16 lowest nibbles; then one global total. */
GPU_KERNEL k_good_histogram(unsigned *bins, const unsigned *x, int n) {
    GPU_SHARED(unsigned, local, [16]);
    if (threadIdx.x < 16) {
        local[threadIdx.x] = 0;
    }
    __syncthreads();
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n;
         i += (int)(blockDim.x * gridDim.x)) {
        atomicAdd(&local[x[i] & 15], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 16) {
        atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
    }
}

/* Each warp hands values round through shared memory with __syncwarp only; half-warp masks too. */
GPU_KERNEL k_good_warp(int *out, const int *in) {
    GPU_SHARED(int, s, [64]);
    int t = (int)threadIdx.x, lane = t % 32, first = t - lane;
    s[t] = in[t];
    __syncwarp();
    int next = s[first + (lane + 1) % 32];
    __syncwarp();
    s[t] = next * 2;
    __syncwarp();
    int prev = s[first + (lane + 31) % 32];
    unsigned mates = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    for (int step = 8; step; step /= 2) {
        prev += __shfl_xor_sync(mates, prev, step, 16);
    }
    unsigned votes = __ballot_sync(0xffffffffu, lane % 3 == 0);
    int any = __any_sync(0xffffffffu, lane == 7), all = __all_sync(0xffffffffu, lane < 32);
    int up = __shfl_up_sync(0xffffffffu, lane, 1), down = __shfl_down_sync(0xffffffffu, lane, 2, 8);
    out[t] = prev + (int)__popc(votes) + any + all + up + down + __shfl_sync(mates, lane, 3, 16);
}

/* Bytes that neighbours write into one word, a float4 read, halves, dp4a. */
GPU_KERNEL k_good_bytes(signed char *bytes, int *dots, const float4 *x) {
    GPU_SHARED(float4, quad, [32]);
    int t = (int)threadIdx.x;
    quad[t] = x[t];
    __syncthreads();
    const float *flat = reinterpret_cast<const float *>(quad);
    for (int i = 0; i < 4; i++) {
        float v = __half2float(__float2half_rn(flat[i * 32 + t]));
        bytes[i * 32 + t] = (signed char)__float2int_rn(v);
    }
    __syncthreads();
    const int *words = reinterpret_cast<const int *>(bytes);
    dots[t] = __dp4a(words[t], 0x01020304, 100);
}

/* Threads of three dimensions, blocks of three. */
GPU_KERNEL k_good_index(unsigned *out) {
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned n = blockDim.x * blockDim.y * blockDim.z;
    out[block * n + thread] = block * n + thread + (unsigned)__syncthreads_count(thread % 2 == 0);
}

struct good_args { /* read from pinned memory, as a round's record is */
    int n_rows, value;
};
GPU_KERNEL k_good_fill(int *out, const good_args *args, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n && i < args->n_rows) {
        out[i] = args->value + i;
    }
}

template <int step> GPU_KERNEL k_good_step(int *x) {
    x[threadIdx.x] += step;
}

#endif
