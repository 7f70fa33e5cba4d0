/* How a lane reads one block of its output row out of a packed panel, by type: the raw pieces, then
 * runs of 32 weights as eight words of four signed bytes. Pieces are the file's own bytes in the
 * order of gpu/gpu_pack.c.
 *
 * A type has: BLOCK weights in RUNS runs; ZERO, taken off every weight; SCALES integer scales of a
 * run (0, 1, or 2: one of 16 weights each); MIN: 0 none, 1 a float for each block, 2 an integer for
 * each run and a float for all. */
#ifndef DT_GPU_K_WEIGHTS_CUH
#define DT_GPU_K_WEIGHTS_CUH

#include "gpu/k_base.cuh"

/* Where the pieces of a block of one row lie: piece i of each kind at [32 i]. */
typedef struct gpu_pieces {
    const int4 *vec;
    const uint32_t *word;
    const uint16_t *half;
} gpu_pieces;

template <typename W>
static __device__ inline gpu_pieces gpu_pieces_of(
    const void *panel, int n_blocks, int i_block, int row) {
    const uint8_t *base = static_cast<const uint8_t *>(panel);
    const uint8_t *words = base + (size_t)n_blocks * (W::VECS * 512);
    const uint8_t *halves = words + (size_t)n_blocks * (W::WORDS * 128);
    gpu_pieces p;
    p.vec = reinterpret_cast<const int4 *>(base) + (size_t)i_block * (W::VECS * 32) + row;
    p.word = reinterpret_cast<const uint32_t *>(words) + (size_t)i_block * (W::WORDS * 32) + row;
    p.half = reinterpret_cast<const uint16_t *>(halves) + (size_t)i_block * (W::HALVES * 32) + row;
    return p;
}

static __device__ inline int gpu_low(int word) {
    return word & 0x0f0f0f0f;
}
static __device__ inline int gpu_high(int word) {
    return (word >> 4) & 0x0f0f0f0f;
}

/* Four bits to bit 0 of four bytes. */
static __device__ inline int gpu_spread(unsigned bits) {
    return (int)(((bits & 15u) * 0x00204081u) & 0x01010101u);
}

/* 32 weights of which the first 16 are low nibbles. */
static __device__ inline void gpu_nibbles(int w[8], int4 q) {
    GPU_UNROLL
    for (int i = 0; i < 4; i++) {
        w[i] = gpu_low(gpu_word(q, i));
        w[4 + i] = gpu_high(gpu_word(q, i));
    }
}

/* The fifth bits of 32 weights, bit i of weight i. */
static __device__ inline void gpu_fifths(int w[8], unsigned bits) {
    GPU_UNROLL
    for (int i = 0; i < 8; i++)
        w[i] |= gpu_spread(bits >> (4 * i)) << 4;
}

/* Nibbles to the sixteen levels of the IQ4 types. */
static __device__ inline int gpu_levels(int nibbles) {
    unsigned n = (unsigned)nibbles;
    unsigned pairs = (n | n >> 4) & 0x00ff00ffu;
    unsigned four = (pairs | pairs >> 8) & 0xffffu; /* nibble i of byte i */
    unsigned pick = four & 0x7777u;
    unsigned below = __byte_perm(0xbfad9881u, 0xf6eaddcfu, pick);
    unsigned above = __byte_perm(0x26190d01u, 0x71594535u, pick);
    unsigned upper = ((n >> 3) & 0x01010101u) * 0xffu;
    return (int)((below & ~upper) | (above & upper));
}

/* The 6-bit scale and minimum of run j of Q4_K and Q5_K, out of the header's last 12 bytes. */
static __device__ inline void gpu_scale_min(int *scale, int *min, int4 header, int j) {
    unsigned a = (unsigned)header.y, b = (unsigned)header.z, c = (unsigned)header.w;
    int shift = 8 * (j % 4);
    if (j < 4) {
        *scale = (int)(a >> shift & 63u);
        *min = (int)(b >> shift & 63u);
    } else {
        *scale = (int)((c >> shift & 15u) | (a >> shift >> 6 & 3u) << 4);
        *min = (int)((c >> shift >> 4 & 15u) | (b >> shift >> 6 & 3u) << 4);
    }
}

static __device__ inline int gpu_byte(int4 v, int i) {
    return (int)(int8_t)(uint8_t)((unsigned)gpu_word(v, i / 4) >> (8 * (i % 4)));
}

struct gpu_q4_0 {
    static const int BLOCK = 32, RUNS = 1, VECS = 1, WORDS = 0, HALVES = 1;
    static const int ZERO = 8, SCALES = 0, MIN = 0;
    int4 q;
    uint16_t d16;
    __device__ inline void load(gpu_pieces p) {
        q = gpu_load_once(p.vec);
        d16 = *p.half;
    }
    __device__ inline void run(int w[8], int) const {
        gpu_nibbles(w, q);
    }
    __device__ inline float d() const {
        return gpu_half_to_f32(d16);
    }
    __device__ inline float m() const {
        return 0.0f;
    }
    __device__ inline void scales(int *, int *, int *, int) const {
    }
};

struct gpu_iq4_nl : gpu_q4_0 {
    static const int ZERO = 0;
    __device__ inline void run(int w[8], int) const {
        gpu_nibbles(w, q);
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            w[i] = gpu_levels(w[i]);
    }
};

/* word 0: d and m. */
struct gpu_q4_1 {
    static const int BLOCK = 32, RUNS = 1, VECS = 1, WORDS = 1, HALVES = 0;
    static const int ZERO = 0, SCALES = 0, MIN = 1;
    int4 q;
    uint32_t dm;
    __device__ inline void load(gpu_pieces p) {
        q = gpu_load_once(p.vec);
        dm = p.word[0];
    }
    __device__ inline void run(int w[8], int) const {
        gpu_nibbles(w, q);
    }
    __device__ inline float d() const {
        return gpu_half_to_f32((uint16_t)(dm & 0xffff));
    }
    __device__ inline float m() const {
        return gpu_half_to_f32((uint16_t)(dm >> 16));
    }
    __device__ inline void scales(int *, int *, int *, int) const {
    }
};

/* word 0: fifth bits. */
struct gpu_q5_0 {
    static const int BLOCK = 32, RUNS = 1, VECS = 1, WORDS = 1, HALVES = 1;
    static const int ZERO = 16, SCALES = 0, MIN = 0;
    int4 q;
    uint32_t fifths;
    uint16_t d16;
    __device__ inline void load(gpu_pieces p) {
        q = gpu_load_once(p.vec);
        fifths = p.word[0];
        d16 = *p.half;
    }
    __device__ inline void run(int w[8], int) const {
        gpu_nibbles(w, q);
        gpu_fifths(w, fifths);
    }
    __device__ inline float d() const {
        return gpu_half_to_f32(d16);
    }
    __device__ inline float m() const {
        return 0.0f;
    }
    __device__ inline void scales(int *, int *, int *, int) const {
    }
};

/* word 0: d and m, word 1: fifth bits. */
struct gpu_q5_1 : gpu_q4_1 {
    static const int WORDS = 2;
    uint32_t fifths;
    __device__ inline void load(gpu_pieces p) {
        gpu_q4_1::load(p);
        fifths = p.word[32];
    }
    __device__ inline void run(int w[8], int) const {
        gpu_nibbles(w, q);
        gpu_fifths(w, fifths);
    }
};

struct gpu_q8_0 {
    static const int BLOCK = 32, RUNS = 1, VECS = 2, WORDS = 0, HALVES = 1;
    static const int ZERO = 0, SCALES = 0, MIN = 0;
    int4 q[2];
    uint16_t d16;
    __device__ inline void load(gpu_pieces p) {
        q[0] = gpu_load_once(p.vec);
        q[1] = gpu_load_once(p.vec + 32);
        d16 = *p.half;
    }
    __device__ inline void run(int w[8], int) const {
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            w[i] = gpu_word(q[i / 4], i % 4);
    }
    __device__ inline float d() const {
        return gpu_half_to_f32(d16);
    }
    __device__ inline float m() const {
        return 0.0f;
    }
    __device__ inline void scales(int *, int *, int *, int) const {
    }
};

/* vec 0: d, dmin, scales[12]; then q[128]. */
struct gpu_q4_K {
    static const int BLOCK = 256, RUNS = 8, VECS = 9, WORDS = 0, HALVES = 0;
    static const int ZERO = 0, SCALES = 1, MIN = 2;
    int4 header, q[8];
    __device__ inline void load(gpu_pieces p) {
        header = gpu_load_once(p.vec);
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            q[i] = gpu_load_once(p.vec + 32 * (1 + i));
    }
    __device__ inline void run(int w[8], int j) const {
        GPU_UNROLL
        for (int i = 0; i < 8; i++) {
            int word = gpu_word(q[j / 2 * 2 + i / 4], i % 4);
            w[i] = j % 2 ? gpu_high(word) : gpu_low(word);
        }
    }
    __device__ inline float d() const {
        return gpu_half_to_f32((uint16_t)((unsigned)header.x & 0xffff));
    }
    __device__ inline float m() const {
        return gpu_half_to_f32((uint16_t)((unsigned)header.x >> 16));
    }
    __device__ inline void scales(int *scale, int *, int *min, int j) const {
        gpu_scale_min(scale, min, header, j);
    }
};

/* The same with high[32] before q. */
struct gpu_q5_K : gpu_q4_K {
    static const int VECS = 11;
    int4 high[2];
    __device__ inline void load(gpu_pieces p) {
        header = gpu_load_once(p.vec);
        GPU_UNROLL
        for (int i = 0; i < 2; i++)
            high[i] = gpu_load_once(p.vec + 32 * (1 + i));
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            q[i] = gpu_load_once(p.vec + 32 * (3 + i));
    }
    __device__ inline void run(int w[8], int j) const {
        gpu_q4_K::run(w, j);
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            w[i] |= (gpu_word(high[i / 4], i % 4) >> j & 0x01010101) << 4;
    }
};

/* low[128], high[64], scales[16]; half 0: d. */
struct gpu_q6_K {
    static const int BLOCK = 256, RUNS = 8, VECS = 13, WORDS = 0, HALVES = 1;
    static const int ZERO = 32, SCALES = 2, MIN = 0;
    int4 low[8], high[4], scale16;
    uint16_t d16;
    __device__ inline void load(gpu_pieces p) {
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            low[i] = gpu_load_once(p.vec + 32 * i);
        GPU_UNROLL
        for (int i = 0; i < 4; i++)
            high[i] = gpu_load_once(p.vec + 32 * (8 + i));
        scale16 = gpu_load_once(p.vec + 32 * 12);
        d16 = *p.half;
    }
    __device__ inline void run(int w[8], int j) const {
        int part = j / 4, g = j % 4;
        GPU_UNROLL
        for (int i = 0; i < 8; i++) {
            int word = gpu_word(low[4 * part + 2 * (g % 2) + i / 4], i % 4);
            int two = gpu_word(high[2 * part + i / 4], i % 4) >> (2 * g) & 0x03030303;
            w[i] = (g / 2 ? gpu_high(word) : gpu_low(word)) | two << 4;
        }
    }
    __device__ inline float d() const {
        return gpu_half_to_f32(d16);
    }
    __device__ inline float m() const {
        return 0.0f;
    }
    __device__ inline void scales(int *first, int *second, int *, int j) const {
        *first = gpu_byte(scale16, 2 * j);
        *second = gpu_byte(scale16, 2 * j + 1);
    }
};

/* third[32], low[64], scales[16] as bytes less 32; half 0: d. */
struct gpu_q3_K {
    static const int BLOCK = 256, RUNS = 8, VECS = 7, WORDS = 0, HALVES = 1;
    static const int ZERO = 4, SCALES = 2, MIN = 0;
    int4 third[2], low[4], scale16;
    uint16_t d16;
    __device__ inline void load(gpu_pieces p) {
        GPU_UNROLL
        for (int i = 0; i < 2; i++)
            third[i] = gpu_load_once(p.vec + 32 * i);
        GPU_UNROLL
        for (int i = 0; i < 4; i++)
            low[i] = gpu_load_once(p.vec + 32 * (2 + i));
        scale16 = gpu_load_once(p.vec + 32 * 6);
        d16 = *p.half;
    }
    __device__ inline void run(int w[8], int j) const {
        GPU_UNROLL
        for (int i = 0; i < 8; i++) {
            int two = gpu_word(low[j / 4 * 2 + i / 4], i % 4) >> (2 * (j % 4)) & 0x03030303;
            w[i] = two | (gpu_word(third[i / 4], i % 4) >> j & 0x01010101) << 2;
        }
    }
    __device__ inline float d() const {
        return gpu_half_to_f32(d16);
    }
    __device__ inline float m() const {
        return 0.0f;
    }
    __device__ inline void scales(int *first, int *second, int *, int j) const {
        *first = gpu_byte(scale16, 2 * j);
        *second = gpu_byte(scale16, 2 * j + 1);
    }
};

/* q[128]; word 0: d and the scales' upper bits, word 1: their low nibbles. */
struct gpu_iq4_xs {
    static const int BLOCK = 256, RUNS = 8, VECS = 8, WORDS = 2, HALVES = 0;
    static const int ZERO = 0, SCALES = 1, MIN = 0;
    int4 q[8];
    uint32_t head, low4;
    __device__ inline void load(gpu_pieces p) {
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            q[i] = gpu_load_once(p.vec + 32 * i);
        head = p.word[0];
        low4 = p.word[32];
    }
    __device__ inline void run(int w[8], int j) const {
        gpu_nibbles(w, q[j]);
        GPU_UNROLL
        for (int i = 0; i < 8; i++)
            w[i] = gpu_levels(w[i]);
    }
    __device__ inline float d() const {
        return gpu_half_to_f32((uint16_t)(head & 0xffff));
    }
    __device__ inline float m() const {
        return 0.0f;
    }
    __device__ inline void scales(int *scale, int *, int *, int j) const {
        *scale = (int)((low4 >> (4 * j) & 15u) | (head >> 16 >> (2 * j) & 3u) << 4) - 32;
    }
};

/* Float weights: a block is one piece. */
struct gpu_f32 {
    static const int BLOCK = 4, VECS = 1, WORDS = 0, HALVES = 0;
    static __device__ inline float weight(int4 v, int i) {
        return __int_as_float(gpu_word(v, i));
    }
};

struct gpu_f16 {
    static const int BLOCK = 8, VECS = 1, WORDS = 0, HALVES = 0;
    static __device__ inline float weight(int4 v, int i) {
        return gpu_half_to_f32((uint16_t)((unsigned)gpu_word(v, i / 2) >> (16 * (i % 2)) & 0xffff));
    }
};

struct gpu_bf16 {
    static const int BLOCK = 8, VECS = 1, WORDS = 0, HALVES = 0;
    static __device__ inline float weight(int4 v, int i) {
        unsigned word = (unsigned)gpu_word(v, i / 2);
        return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
    }
};

#endif
