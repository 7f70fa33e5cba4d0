/* Kernels with one seeded bug each (test_shim_bugs.cpp); `s` of 64 threads where nothing else is
 * said. Nothing here is an example to follow. */
#ifndef DT_TESTS_SHIM_KERNELS_BAD_CUH
#define DT_TESTS_SHIM_KERNELS_BAD_CUH

#include "gpu/port.h"

GPU_KERNEL k_bad_index(float *x, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i <= n) { /* should be < */
        x[i] = 1.0f;
    }
}

GPU_KERNEL k_bad_static_overrun(float *out) {
    GPU_SHARED(float, s, [64]);
    GPU_SHARED(float, other, [64]);
    int t = (int)threadIdx.x;
    s[t + 1] = (float)t; /* the last one writes s[64] */
    other[t] = 0.0f;
    __syncthreads();
    out[t] = t ? s[t] + other[t] : 0.0f;
}

GPU_KERNEL k_bad_dyn_overrun(float *out, int n) {
    GPU_DYN_SHARED(float, s);
    int t = (int)threadIdx.x;
    s[t] = (float)t;
    if (t == 0) {
        s[n] = 7.0f; /* the launch gives n */
    }
    __syncthreads();
    out[t] = s[t];
}

GPU_KERNEL k_bad_first_barrier(int *out) {
    GPU_SHARED(int, s, [64]);
    int t = (int)threadIdx.x;
    s[t] = t;
    out[t] = s[63 - t]; /* no barrier before */
}

GPU_KERNEL k_bad_second_barrier(int *out, int n_rounds) {
    GPU_SHARED(int, s, [64]);
    int t = (int)threadIdx.x, sum = 0;
    for (int round = 0; round < n_rounds; round++) {
        s[t] = t + round;
        __syncthreads();
        sum += s[63 - t];
        /* none before the next round writes */
    }
    out[t] = sum;
}

GPU_KERNEL k_bad_two_barriers(int *out) {
    GPU_SHARED(int, s, [64]);
    int t = (int)threadIdx.x;
    s[t] = t;
    if (t < 32) {
        __syncthreads();
        out[t] = s[63 - t];
    } else {
        __syncthreads();
        out[t] = s[63 - t];
    }
}

GPU_KERNEL k_bad_missed_barrier(int *out, int n) {
    GPU_SHARED(int, s, [64]);
    int t = (int)threadIdx.x;
    if (t >= n) {
        return;
    }
    s[t] = t;
    __syncthreads();
    out[t] = s[n - 1 - t];
}

GPU_KERNEL k_bad_mask(int *out, int n) {
    int t = (int)threadIdx.x;
    if (t < n) {
        int v = t;
        for (int step = 16; step; step /= 2) {
            v += __shfl_xor_sync(0xffffffffu, v, step); /* lanes from n on are not here */
        }
        out[t] = v;
    }
}

GPU_KERNEL k_bad_increment(int *out) {
    GPU_SHARED(int, count, [1]);
    if (threadIdx.x == 0) {
        count[0] = 0;
    }
    __syncthreads();
    count[0]++; /* should be an atomicAdd */
    __syncthreads();
    if (threadIdx.x == 0) {
        out[0] = count[0];
    }
}

GPU_KERNEL k_bad_uninitialised(float *out) {
    GPU_SHARED(float, s, [64]);
    int t = (int)threadIdx.x;
    s[t] += 1.0f; /* never set */
    __syncthreads();
    out[t] = s[63 - t];
}

GPU_KERNEL k_bad_syncwarp(int *out) {
    GPU_SHARED(int, s, [64]);
    int t = (int)threadIdx.x, lane = t % 32;
    s[t] = t;
    out[t] = s[t - lane + 31 - lane]; /* no __syncwarp before */
}

GPU_KERNEL k_bad_blocks(int *total, const int *x) {
    if (threadIdx.x == 0) {
        total[0] += x[blockIdx.x]; /* should be an atomicAdd */
    }
}

GPU_KERNEL k_bad_misaligned(float4 *out, const float *x) {
    int t = (int)threadIdx.x;
    out[t] = reinterpret_cast<const float4 *>(x + 1)[t];
}

struct bad_args {
    const float *from;
    float *to;
};
GPU_KERNEL k_bad_struct(bad_args args) {
    args.to[threadIdx.x] = args.from[threadIdx.x];
}

GPU_KERNEL k_bad_fill(int *out, int value) {
    out[threadIdx.x] = value;
}

GPU_KERNEL k_bad_dyn(int *out) {
    GPU_DYN_SHARED(int, s);
    s[threadIdx.x] = 1;
    out[threadIdx.x] = s[threadIdx.x];
}

/* A width of 16 keeps lanes apart, the mask names half of the warp: lane 15 asks for 16. */
GPU_KERNEL k_bad_source(int *out) {
    int t = (int)threadIdx.x;
    if (t < 16) {
        out[t] = __shfl_down_sync(0x0000ffffu, t, 1);
    }
}

GPU_KERNEL k_bad_vote(int *out) {
    int t = (int)threadIdx.x;
    if (t % 2) {
        out[t] = __any_sync(0xffffffffu, t == 3);
    } else {
        out[t] = __shfl_sync(0xffffffffu, t, 0);
    }
}

#endif
