/* The kernel table: every inner loop of the CPU side, as function pointers filled with the C
 * reference first and overwritten by what the CPU has (dav1d's way). All variants of a kernel give
 * the same bits; formulas in doc/numerics.md. No kernel allocates, fails or keeps state. */
#ifndef DT_CPU_KERNELS_H
#define DT_CPU_KERNELS_H

#include "cpu/pack.h"

/* Rows of activations as the kernels read them. For one matrix input of k columns:
 * quantised (K-quants: block 256, 32-wide types: block 32) or plain float32 (float weights). */
typedef struct dt_act {
    int k;
    int block;      /* 256, 32, or 0 for plain */
    int8_t *q;      /* [n_rows][k], -127..127 */
    float *d;       /* [n_rows][k / block], one scale a block */
    int16_t *sum16; /* [n_rows][k / 16] sums of q, block 256 only */
    int16_t *sum32; /* [n_rows][k / 32] sums of q, either block */
    const float *x; /* [n_rows][x_stride], plain only */
    size_t x_stride;
} dt_act;

/* out[(r - row0) * out_stride + lane] = panel row `lane` times activation row r, for r in
 * [row0, row0 + n_rows). Writes 16 floats a row, whatever n_out. `panel` is 64-byte aligned for
 * panel 0 and 32-byte aligned for the others. */
typedef void (*dt_matmul_fn)(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows);

/* Quantises row i_row of act from x[act->k] (act->block 256 or 32). */
typedef void (*dt_quantise_fn)(dt_act *act, int i_row, const float *x);

/* Attention of one KV head over one range of positions; see cpu/attn.h. */
struct dt_attn_range;
typedef void (*dt_attn_range_fn)(const struct dt_attn_range *range);

typedef struct dt_kernels {
    const char *isa;
    dt_matmul_fn matmul[DT_TYPE_COUNT]; /* NULL for ids that are no weight type */
    /* For DT_MANY_ROWS and more, where that is another kernel; else NULL. */
    dt_matmul_fn matmul_many[DT_TYPE_COUNT];
    dt_quantise_fn quantise;
    dt_attn_range_fn attn_range;
    /* out[head_dim] = the n_ranges parts of one query combined, at part + i * range_stride. */
    void (*attn_combine)(
        float *out, int head_dim, const float *part, size_t range_stride, int n_ranges);
    /* y[n] = x * (1 / sqrt(mean(x^2) + eps)) * w; y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, int n, float eps);
    /* y[n] = silu(gate) * up; y may be either. */
    void (*swiglu)(float *y, const float *gate, const float *up, int n);
    /* y[n] = gelu(gate) * up; y may be either. */
    void (*geglu)(float *y, const float *gate, const float *up, int n);
    /* x[n] -= what n int8 in blocks of `block` with scales d stand for; block divides n. */
    void (*subtract_q8)(float *x, const int8_t *q, const float *d, int block, int n);
    /* y[n] += x[n] */
    void (*add)(float *y, const float *x, int n);
    /* Rotates pairs of a head in place by table cos_sin[n_rot / 2][2]; halves: (i, i + n_rot / 2),
     * else (2i, 2i + 1). */
    void (*rope)(float *head, const float *cos_sin, int n_rot, bool halves);
    /* out[n] = half(x), round to nearest even. */
    void (*to_f16)(uint16_t *out, const float *x, int n);
} dt_kernels;

/* From how many rows on a kernel for many rows pays: a guess from operation counts, AMX unmeasured.
 */
enum { DT_MANY_ROWS = 9 };

static inline dt_matmul_fn dt_kernels_matmul(const dt_kernels *table, dt_type type, int n_rows) {
    dt_matmul_fn many = table->matmul_many[type];
    return many && n_rows >= DT_MANY_ROWS ? many : table->matmul[type];
}

/* Instruction sets, in ascending order of preference. */
typedef enum dt_isa {
    DT_ISA_C,
    DT_ISA_AVX2,    /* AVX2, FMA, F16C */
    DT_ISA_AVXVNNI, /* and VNNI on 256 bits: AVX-VNNI, or what DT_ISA_AVX512 has */
    DT_ISA_AVX512,  /* AVX-512 F, BW, VL, DQ and VNNI */
    DT_ISA_AMX,     /* and AMX int8 */
    DT_ISA_COUNT,
} dt_isa;

/* "c", "avx2", "avxvnni", "avx512", "amx" and back (DT_ERR_INPUT lists the names). */
const char *dt_isa_name(dt_isa isa);
dt_err dt_isa_parse(dt_isa *out, const char *name);
/* Whether this CPU and operating system run it; the best that they run. Asks Linux for the use of
 * AMX tiles, which holds for threads started afterwards: called before the team is. */
bool dt_isa_runs(dt_isa isa);
dt_isa dt_isa_best(void);

/* The table of an instruction set: C, then everything up to `isa` written over it. */
void dt_kernels_get(dt_kernels *out, dt_isa isa);

/* One per instruction set, in its own library; each overwrites the slots it has. */
void dt_kernels_c(dt_kernels *table);
void dt_kernels_avx2(dt_kernels *table);
void dt_kernels_avxvnni(dt_kernels *table);
void dt_kernels_avxvnni_evex(dt_kernels *table);
void dt_kernels_avx512(dt_kernels *table);
void dt_kernels_amx(dt_kernels *table);
/* AMX in plain C, for tests/check. */
void dt_kernels_amx_emulated(dt_kernels *table);

#endif
