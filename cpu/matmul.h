/* Matrix products over the team: several tensors that share one input, cut into chunks that the
 * workers take from a counter. */
#ifndef DT_CPU_MATMUL_H
#define DT_CPU_MATMUL_H

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

/* A weight as the device holds it: packed for the fused way, else a view of the mapped file. */
typedef struct dt_weight {
    const dt_tensor *tensor;
    dt_packed packed; /* data NULL on the other ways */
} dt_weight;

/* out[r * out_stride + i] = row i of the weight times row r of the activations. */
typedef struct dt_product {
    const dt_weight *weight;
    const dt_act *act; /* in the form that dt_act_block asks for the weight */
    float *out;
    size_t out_stride; /* >= n_out */
    /* Panels of the weight to multiply, NULL for all: only their columns of `out` are written. */
    const int32_t *panels;
    int n_panels;
} dt_product;

/* The block of activations that a weight is multiplied with: 256, 32, or 0 for plain float32. */
int dt_act_block(dt_type type, dt_matmul_way way);

/* Bytes of scratch that one worker needs. */
size_t dt_matmul_scratch_bytes(dt_matmul_way way, int k_max);

/* Takes chunks from `next` until none are left. Rows [row0, row0 + n_rows) of the activations; row
 * r goes to out row r. Called by every worker with the same arguments and a scratch of its own; the
 * caller puts a barrier after it. `way` is never DT_MATMUL_AUTO. */
void dt_matmul_work(const dt_kernels *kernels, const dt_product *products, int n_products, int row0,
    int n_rows, _Atomic int *next, int n_threads, dt_matmul_way way, void *scratch);

#endif
