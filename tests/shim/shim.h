/* CUDA's device language on the host: keywords, vector types, built-in variables, barriers, warp
 * operations, atomics and arithmetic, so that gpu/ *.cuh compile as C++17 and run on this CPU.
 * The runtime calls are in shim_rt.h, the switches of tests in shim_test.h.
 *
 * Every CUDA thread is a fiber on its own small stack, started when its turn comes; a barrier or
 * warp operation hands over to the next thread that can run, the same warp first. What is wrong
 * (shim_fault) is told with kernel, block and thread, and aborts. Fibers switch only at barriers
 * and warp operations: this finds no fault of the memory model, and memory is sequentially
 * consistent. Some device intrinsics are missing on purpose: what is not bit-exact on a GPU. */
#ifndef DT_SHIM_H
#define DT_SHIM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- keywords */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* ---- vector types */

#define SHIM_VECTORS(type, name, align2, align4)                                                   \
    struct name##1 {                                                                               \
        type x;                                                                                    \
    };                                                                                             \
    struct alignas(align2) name##2 {                                                               \
        type x, y;                                                                                 \
    };                                                                                             \
    struct name##3 {                                                                               \
        type x, y, z;                                                                              \
    };                                                                                             \
    struct alignas(align4) name##4 {                                                               \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name##2 make_##name##2(type x, type y) {                                         \
        return name##2 {x, y};                                                                     \
    }                                                                                              \
    static inline name##3 make_##name##3(type x, type y, type z) {                                 \
        return name##3 {x, y, z};                                                                  \
    }                                                                                              \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                         \
        return name##4 {x, y, z, w};                                                               \
    }
SHIM_VECTORS(signed char, char, 2, 4)
SHIM_VECTORS(unsigned char, uchar, 2, 4)
SHIM_VECTORS(short, short, 4, 8)
SHIM_VECTORS(unsigned short, ushort, 4, 8)
SHIM_VECTORS(int, int, 8, 16)
SHIM_VECTORS(unsigned, uint, 8, 16)
SHIM_VECTORS(float, float, 8, 16)
SHIM_VECTORS(long long, longlong, 16, 16)
SHIM_VECTORS(unsigned long long, ulonglong, 16, 16)
SHIM_VECTORS(double, double, 16, 16)
#undef SHIM_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

/* ---- where a thread is */

struct shim_place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern shim_place shim_now;

#define threadIdx (static_cast<const uint3 &>(shim_now.thread))
#define blockIdx (static_cast<const uint3 &>(shim_now.block))
#define blockDim (static_cast<const dim3 &>(shim_now.block_dim))
#define gridDim (static_cast<const dim3 &>(shim_now.grid_dim))
static constexpr int warpSize = 32;

/* Tells what the running kernel did wrong and aborts. */
[[noreturn]] void shim_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define SHIM_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* ---- barriers and warp operations */

enum shim_vote { SHIM_COUNT, SHIM_AND, SHIM_OR };
int shim_barrier(int value, shim_vote vote, const char *file, int line);

enum shim_warp_op {
    SHIM_SYNC,
    SHIM_SHUFFLE,
    SHIM_BALLOT,
    SHIM_ADD,
    SHIM_MIN,
    SHIM_MAX,
    SHIM_UMIN,
    SHIM_UMAX,
    SHIM_BIT_AND,
    SHIM_BIT_OR,
    SHIM_BIT_XOR,
};
/* Waits for the lanes of the mask, all in this operation; `source` is the lane a shuffle reads. */
uint64_t shim_warp(
    shim_warp_op op, unsigned mask, uint64_t value, int source, const char *file, int line);
int shim_lane(void);

static inline void __syncthreads(SHIM_AT) {
    shim_barrier(0, SHIM_COUNT, file, line);
}
static inline int __syncthreads_count(int predicate, SHIM_AT) {
    return shim_barrier(predicate, SHIM_COUNT, file, line);
}
static inline int __syncthreads_and(int predicate, SHIM_AT) {
    return shim_barrier(predicate, SHIM_AND, file, line);
}
static inline int __syncthreads_or(int predicate, SHIM_AT) {
    return shim_barrier(predicate, SHIM_OR, file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_AT) {
    shim_warp(SHIM_SYNC, mask, 0, 0, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_BALLOT, mask, predicate != 0, 0, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, SHIM_AT) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, SHIM_AT) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

template <typename T>
static inline T shim_shuffle(unsigned mask, T value, int source, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = shim_warp(SHIM_SHUFFLE, mask, bits, source, file, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, SHIM_AT) {
    int first = shim_lane() & ~(width - 1);
    return shim_shuffle(mask, value, first + (from & (width - 1)), file, line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SHIM_AT) {
    int lane = shim_lane(), from = lane ^ lane_mask;
    bool inside = from < (lane & ~(width - 1)) + width;
    return shim_shuffle(mask, value, inside ? from : lane, file, line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, SHIM_AT) {
    int lane = shim_lane(), from = lane + (int)by;
    bool inside = from < (lane & ~(width - 1)) + width;
    return shim_shuffle(mask, value, inside ? from : lane, file, line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, SHIM_AT) {
    int lane = shim_lane(), from = lane - (int)by;
    bool inside = from >= (lane & ~(width - 1));
    return shim_shuffle(mask, value, inside ? from : lane, file, line);
}

/* Compute capability 8.0 and later. */
static inline int __reduce_add_sync(unsigned mask, int value, SHIM_AT) {
    return (int)shim_warp(SHIM_ADD, mask, (uint32_t)value, 0, file, line);
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_ADD, mask, value, 0, file, line);
}
static inline int __reduce_min_sync(unsigned mask, int value, SHIM_AT) {
    return (int)shim_warp(SHIM_MIN, mask, (uint32_t)value, 0, file, line);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_UMIN, mask, value, 0, file, line);
}
static inline int __reduce_max_sync(unsigned mask, int value, SHIM_AT) {
    return (int)shim_warp(SHIM_MAX, mask, (uint32_t)value, 0, file, line);
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_UMAX, mask, value, 0, file, line);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned value, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_BIT_AND, mask, value, 0, file, line);
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_BIT_OR, mask, value, 0, file, line);
}
static inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, SHIM_AT) {
    return (unsigned)shim_warp(SHIM_BIT_XOR, mask, value, 0, file, line);
}
static inline void __threadfence(void) {
}
static inline void __threadfence_block(void) {
}

/* ---- shared memory */

/* A shared array of a kernel: where it lies in the block that runs. */
struct shim_site {
    uint64_t serial; /* of the block */
    void *at;
};
void *shim_shared(shim_site *site, size_t size_bytes, size_t align);
void *shim_dyn_shared(void);

#define GPU_SHARED(type, name, dims)                                                               \
    typedef type name##_shape dims;                                                                \
    static_assert(sizeof(name##_shape) <= 48 * 1024, "static shared memory ends at 48 KB");        \
    static shim_site name##_site;                                                                  \
    name##_shape &name = *static_cast<name##_shape *>(                                             \
        shim_shared(&name##_site, sizeof(name##_shape), alignof(type)))
#define GPU_DYN_SHARED(type, name) type *name = static_cast<type *>(shim_dyn_shared())

/* ---- atomics: the race build must know them, so they are calls */

void shim_atomic(const void *at, size_t size_bytes);

#define SHIM_ATOMIC(name, change)                                                                  \
    template <typename T>                                                                          \
    static __attribute__((noinline, no_sanitize("thread"))) T name(T *at, T value) {               \
        shim_atomic(at, sizeof(T));                                                                \
        T old = *at;                                                                               \
        *at = change;                                                                              \
        return old;                                                                                \
    }
template <typename T> struct shim_as { typedef T type; };
SHIM_ATOMIC(shim_atomic_add, (T)(old + value))
SHIM_ATOMIC(shim_atomic_exch, value)
SHIM_ATOMIC(shim_atomic_min, old < value ? old : value)
SHIM_ATOMIC(shim_atomic_max, old > value ? old : value)
SHIM_ATOMIC(shim_atomic_and, old &value)
SHIM_ATOMIC(shim_atomic_or, old | value)
SHIM_ATOMIC(shim_atomic_xor, old ^ value)
#undef SHIM_ATOMIC

#define SHIM_ATOMIC_AS(name, inner)                                                                \
    template <typename T> static inline T name(T *at, typename shim_as<T>::type value) {           \
        return inner(at, value);                                                                   \
    }
SHIM_ATOMIC_AS(atomicExch, shim_atomic_exch)
SHIM_ATOMIC_AS(atomicMin, shim_atomic_min)
SHIM_ATOMIC_AS(atomicMax, shim_atomic_max)
SHIM_ATOMIC_AS(atomicAnd, shim_atomic_and)
SHIM_ATOMIC_AS(atomicOr, shim_atomic_or)
SHIM_ATOMIC_AS(atomicXor, shim_atomic_xor)
#undef SHIM_ATOMIC_AS
/* Integers wrap, as on the device. */
static inline int atomicAdd(int *at, int value) {
    return (int)shim_atomic_add(reinterpret_cast<unsigned *>(at), (unsigned)value);
}
static inline unsigned atomicAdd(unsigned *at, unsigned value) {
    return shim_atomic_add(at, value);
}
static inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
    return shim_atomic_add(at, value);
}
static inline float atomicAdd(float *at, float value) {
    return shim_atomic_add(at, value);
}
static inline int atomicSub(int *at, int value) {
    return (int)shim_atomic_add(reinterpret_cast<unsigned *>(at), 0u - (unsigned)value);
}
static inline unsigned atomicSub(unsigned *at, unsigned value) {
    return shim_atomic_add(at, 0u - value);
}
template <typename T>
static __attribute__((noinline, no_sanitize("thread"))) T atomicCAS(
    T *at, typename shim_as<T>::type compare, typename shim_as<T>::type value) {
    shim_atomic(at, sizeof(T));
    T old = *at;
    *at = old == compare ? value : old;
    return old;
}

/* ---- memory reads */

template <typename T> static inline T __ldg(const T *from) {
    return *from;
}
template <typename T> static inline T __ldcs(const T *from) {
    return *from;
}
template <typename T> static inline T __ldcg(const T *from) {
    return *from;
}
template <typename T> static inline void __stcs(T *to, T value) {
    *to = value;
}

/* ---- integers */

static inline int __dp4a(int a, int b, int c) {
    uint32_t sum = (uint32_t)c;
    for (int i = 0; i < 4; i++) {
        sum += (uint32_t)((int8_t)((uint32_t)a >> 8 * i) * (int8_t)((uint32_t)b >> 8 * i));
    }
    return (int)sum;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) {
        c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    }
    return c;
}
static inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
static inline int __popcll(unsigned long long v) {
    return __builtin_popcountll(v);
}
static inline int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
static inline int __clzll(long long v) {
    return v ? __builtin_clzll((unsigned long long)v) : 64;
}
static inline int __ffs(int v) {
    return __builtin_ffs(v);
}
static inline int __ffsll(long long v) {
    return __builtin_ffsll(v);
}
static inline unsigned __brev(unsigned v) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) {
        reversed |= (v >> i & 1) << (31 - i);
    }
    return reversed;
}
static inline int __mulhi(int a, int b) {
    return (int)((int64_t)a * b >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = select >> 4 * i & 0xf;
        unsigned byte = (unsigned)(both >> 8 * (pick & 7)) & 0xff;
        if (pick & 8) {
            byte = byte & 0x80 ? 0xff : 0;
        }
        out |= byte << 8 * i;
    }
    return out;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) << (by & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31));
}
/* By bytes, as in CUDA's SIMD-in-a-word functions. */
static inline unsigned __vsub4(unsigned a, unsigned b) {
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (((a >> 8 * i) - (b >> 8 * i)) & 0xff) << 8 * i;
    }
    return out;
}
static inline unsigned __vadd4(unsigned a, unsigned b) {
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (((a >> 8 * i) + (b >> 8 * i)) & 0xff) << 8 * i;
    }
    return out;
}
static inline unsigned __vsubss4(unsigned a, unsigned b) {
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        int d = (int8_t)(a >> 8 * i) - (int8_t)(b >> 8 * i);
        d = d < -128 ? -128 : d > 127 ? 127 : d;
        out |= ((unsigned)d & 0xff) << 8 * i;
    }
    return out;
}
static inline unsigned __vcmpeq4(unsigned a, unsigned b) {
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (((a ^ b) >> 8 * i & 0xff) == 0 ? 0xffu : 0) << 8 * i;
    }
    return out;
}
static inline unsigned __vcmpne4(unsigned a, unsigned b) {
    return ~__vcmpeq4(a, b);
}
/* CUDA has these overloaded in the global namespace. */
#define SHIM_MIN_MAX(type)                                                                         \
    static inline type min(type a, type b) {                                                       \
        return a < b ? a : b;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b) {                                                       \
        return a > b ? a : b;                                                                      \
    }
SHIM_MIN_MAX(int)
SHIM_MIN_MAX(unsigned)
SHIM_MIN_MAX(long)
SHIM_MIN_MAX(unsigned long)
SHIM_MIN_MAX(long long)
SHIM_MIN_MAX(unsigned long long)
#undef SHIM_MIN_MAX

/* ---- floats: correctly rounded operations only; the compiler is told not to contract */

static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __frcp_rn(float a) {
    return 1.0f / a;
}
static inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
static inline double __dmul_rn(double a, double b) {
    return a * b;
}
static inline double __dadd_rn(double a, double b) {
    return a + b;
}
static inline double __dsub_rn(double a, double b) {
    return a - b;
}
static inline double __ddiv_rn(double a, double b) {
    return a / b;
}
static inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}
static inline double __dsqrt_rn(double a) {
    return sqrt(a);
}

template <typename To, typename From> static inline To shim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
static inline int __float_as_int(float v) {
    return shim_bits<int>(v);
}
static inline unsigned __float_as_uint(float v) {
    return shim_bits<unsigned>(v);
}
static inline float __int_as_float(int v) {
    return shim_bits<float>(v);
}
static inline float __uint_as_float(unsigned v) {
    return shim_bits<float>(v);
}
static inline long long __double_as_longlong(double v) {
    return shim_bits<long long>(v);
}
static inline double __longlong_as_double(long long v) {
    return shim_bits<double>(v);
}
static inline float __int2float_rn(int v) {
    return (float)v;
}
static inline float __uint2float_rn(unsigned v) {
    return (float)v;
}
/* Saturating, NaN to 0, as the device's cvt. */
int shim_float_to_int(float rounded);
unsigned shim_float_to_uint(float rounded);
static inline int __float2int_rn(float v) {
    return shim_float_to_int(rintf(v));
}
static inline int __float2int_rz(float v) {
    return shim_float_to_int(truncf(v));
}
static inline int __float2int_rd(float v) {
    return shim_float_to_int(floorf(v));
}
static inline int __float2int_ru(float v) {
    return shim_float_to_int(ceilf(v));
}
static inline unsigned __float2uint_rn(float v) {
    return shim_float_to_uint(rintf(v));
}
static inline unsigned __float2uint_rz(float v) {
    return shim_float_to_uint(truncf(v));
}

/* ---- half and bfloat16: storage and conversion */

struct alignas(2) __half {
    unsigned short bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(2) __nv_bfloat16 {
    unsigned short bits;
};
typedef __half half;
typedef __half2 half2;

float __half2float(__half h);
__half __float2half_rn(float v);
__nv_bfloat16 __float2bfloat16_rn(float v);
static inline __half __float2half(float v) {
    return __float2half_rn(v);
}
static inline float __low2float(__half2 h) {
    return __half2float(h.x);
}
static inline float __high2float(__half2 h) {
    return __half2float(h.y);
}
static inline float2 __half22float2(__half2 h) {
    return float2{__half2float(h.x), __half2float(h.y)};
}
static inline __half2 __floats2half2_rn(float x, float y) {
    return __half2{__float2half_rn(x), __float2half_rn(y)};
}
static inline __half2 __halves2half2(__half x, __half y) {
    return __half2{x, y};
}
static inline __half __low2half(__half2 h) {
    return h.x;
}
static inline __half __high2half(__half2 h) {
    return h.y;
}
static inline unsigned short __half_as_ushort(__half h) {
    return h.bits;
}
static inline __half __ushort_as_half(unsigned short bits) {
    return __half{bits};
}
static inline short __half_as_short(__half h) {
    return (short)h.bits;
}
static inline __half __short_as_half(short bits) {
    return __half{(unsigned short)bits};
}
static inline float __bfloat162float(__nv_bfloat16 v) {
    return __uint_as_float((unsigned)v.bits << 16);
}

#include "tests/shim/shim_rt.h"

#endif
