/* What gpu_device.c and gpu_forward.c share; nobody else includes it. */
#ifndef DT_GPU_GPU_DEVICE_H
#define DT_GPU_GPU_DEVICE_H

#include <pthread.h>

#include "gpu/gpu.h"
#include "gpu/ops.h"

struct dt_gpu {
    const dt_gpu_ops *ops;
    dt_gpu_device *device;
    dt_gpu_info info;
    pthread_mutex_t mutex; /* held during the calls of a forward: they all use one stream */
    char text[192];
};

/* Matrices of a layer and its vectors, float32, in device memory; vectors that it lacks are NULL.
 */
typedef struct dt_gpu_layer {
    dt_gpu_matrix wq, wk, wv, wo, w_gate, w_up, w_down;
    const float *attn_norm, *attn_post_norm, *ffn_norm, *ffn_post_norm;
    const float *bq, *bk, *bv, *q_norm, *k_norm;
} dt_gpu_layer;

struct dt_gpu_weights {
    dt_gpu *gpu;
    const dt_model *model;
    char numerics[96];
    dt_gpu_layer *layers; /* [n_layer] */
    dt_gpu_matrix embedding, output;
    const float *output_norm;
    int n_turns;          /* rotations: 1, or 2 where local layers have one of their own */
    double *inverse_freq; /* [n_turns][n_rot / 2] radians per position */
    void *d_memory;       /* all of the above */
};

/* Bytes are handed out in multiples of this, which suits every load of the kernels. */
enum { DT_GPU_ALIGN = 256 };

#endif
