/* What cpu_device.c and cpu_forward.c share; nobody else includes it. */
#ifndef DT_CPU_DEVICE_H
#define DT_CPU_DEVICE_H

#include "cpu/cpu.h"
#include "cpu/kv.h"
#include "cpu/matmul.h"

struct dt_cpu {
    const dt_topo *topo;
    dt_pool *pool;
    dt_kernels kernels;
};

/* A layer's matrices; norms and biases are read from the mapped file. */
typedef struct dt_cpu_layer {
    dt_weight wq, wk, wv, wo, w_gate, w_up, w_down;
} dt_cpu_layer;

struct dt_cpu_weights {
    dt_cpu *cpu;
    const dt_model *model;
    dt_matmul_way way;                 /* never DT_MATMUL_AUTO */
    char numerics[DT_KV_Q8_0 + 1][96]; /* by KV type; sessions and statistics point to them */
    char disclaimer[160];
    dt_cpu_layer *layers; /* [n_layer] */
    dt_weight output;
    int n_turns;          /* rotations: 1, or 2 where local layers have one of their own */
    double *inverse_freq; /* [n_turns][n_rot / 2] radians per position */
    uint8_t *memory;      /* all packed panels, huge pages */
    size_t memory_bytes;
    size_t source_bytes; /* of the same matrices in the file */
};

#endif
