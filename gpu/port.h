/* What device code is written in: CUDA under nvcc, the host shim (tests/shim) under a C++ compiler.
 * Kernels (gpu/k_*.cuh) include this header and plain ones; nothing else in the tree sees CUDA's.
 *
 *   GPU_KERNEL k_copy(float *dst, const float *src, int n) { ... }     neither static nor in a
 * namespace GPU_LAUNCH(k_copy, grid, block, smem, stream, dst, src, n)         a cudaError_t; a
 * kernel whose name has a comma goes in (...) GPU_SHARED(float, part, [32]);       float part[32]
 * in shared memory, 0xff.. under the shim GPU_DYN_SHARED(float, s);            float *s: the `smem`
 * bytes of the launch, 16-byte aligned
 *
 * The shim holds kernels to rules that a GPU lets pass at times: every thread of a block reaches
 * every barrier (no thread returns before one), the lanes of a mask all execute the operation that
 * names it, arrays are used at the alignment of their element type. No kernel waits for another
 * block. Inline PTX stands in this header only, with its host form beside it. */
#ifndef DT_GPU_PORT_H
#define DT_GPU_PORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GPU_SHARED(type, name, dims) __shared__ type name dims
/* One extern array for all types: its alignment is that of the widest loads. */
#define GPU_DYN_SHARED(type, name)                                                                 \
    extern __shared__ int4 gpu_dyn_shared[];                                                       \
    type *name = reinterpret_cast<type *>(gpu_dyn_shared)

#define GPU_LAUNCH(kernel, grid, block, smem, stream, ...)                                         \
    gpu_launch(kernel, grid, block, smem, stream, ##__VA_ARGS__)

template <typename T> struct gpu_as { typedef T type; };

/* Arguments are converted to the kernel's own parameter types, as a call would. */
template <typename... P>
static inline cudaError_t gpu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem,
    cudaStream_t stream, typename gpu_as<P>::type... args) {
    void *list[] = {const_cast<void *>(static_cast<const void *>(&args))..., nullptr};
    return cudaLaunchKernel(
        reinterpret_cast<const void *>(kernel), grid, block, list, smem, stream);
}

/* A read of constant memory that will not be read again soon (weights): past the first cache. */
static __device__ inline int4 gpu_load_once(const int4 *from) {
#if __CUDA_ARCH__ >= 700
    int4 v;
    asm("ld.global.nc.L1::no_allocate.v4.s32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(from));
    return v;
#else /* has no such hint */
    return __ldg(from);
#endif
}

#else

#include "tests/shim/shim.h"

static __device__ inline int4 gpu_load_once(const int4 *from) {
    return *from;
}

#endif

#define GPU_KERNEL __global__ void

#endif
