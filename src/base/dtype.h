/* The block formats of GGUF tensors: names, sizes, and scalar dequantisation, which is the
 * reference that every other reader of weights is compared with.
 * Source: GGUF specification, tensor types; the formulas are in doc/numerics.md. */
#ifndef DT_BASE_DTYPE_H
#define DT_BASE_DTYPE_H

#include "src/base/common.h"

/* Values are the type ids of the GGUF file format. */
typedef enum dt_type {
    DT_TYPE_F32 = 0,
    DT_TYPE_F16 = 1,
    DT_TYPE_Q4_0 = 2,
    DT_TYPE_Q4_1 = 3,
    DT_TYPE_Q5_0 = 6,
    DT_TYPE_Q5_1 = 7,
    DT_TYPE_Q8_0 = 8,
    DT_TYPE_Q3_K = 11,
    DT_TYPE_Q4_K = 12,
    DT_TYPE_Q5_K = 13,
    DT_TYPE_Q6_K = 14,
    DT_TYPE_IQ4_NL = 20,
    DT_TYPE_IQ4_XS = 23,
    DT_TYPE_BF16 = 30,
    DT_TYPE_COUNT = 31,
} dt_type;

/* "Q4_K"; for an id this program does not read, the name the format gives it ("IQ2_XXS"), or
 * "type 99". The string is static or belongs to this thread until its next call. */
const char *dt_type_name(uint32_t type);

/* Whether this program reads the type. */
bool dt_type_known(uint32_t type);

/* The 16 levels of IQ4_NL and IQ4_XS, ascending: what a nibble stands for. */
extern const int8_t dt_iq4_levels[16];

/* Weights per block (1 for the float types, 32 or 256) and bytes per block. */
int dt_type_block(dt_type type);
int dt_type_block_bytes(dt_type type);

/* Bytes of a row of `n` weights; n must be a multiple of the block. */
static inline size_t dt_type_row_bytes(dt_type type, int64_t n) {
    return (size_t)(n / dt_type_block(type)) * (size_t)dt_type_block_bytes(type);
}

/* out[n] = the weights of one row, exactly as the format defines them, in float32. */
void dt_dequantise(float *out, const void *row, dt_type type, int64_t n);

/* IEEE half and bfloat16; from float: round to nearest even, NaN stays NaN. */
float dt_f16_to_f32(uint16_t h);
uint16_t dt_f32_to_f16(float f);
static inline float dt_bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

/* A view of a tensor: ne[0] runs fastest ([ne[1] rows, ne[0] columns] row-major). Plain data; the
 * mapped file owns `data` and `name`. */
typedef struct dt_tensor {
    const char *name;
    dt_type type;
    int n_dims;
    int64_t ne[4]; /* 1 beyond n_dims */
    const void *data;
    size_t n_bytes;
} dt_tensor;

#endif
