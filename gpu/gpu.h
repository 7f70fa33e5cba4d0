/* The GPU as a device for a draft: a device, a model's weights in its memory, and forwards over
 * them that give the CPU's bits. This is all that code outside gpu/ sees of it. Compiled in every
 * build; where the build or the machine has no GPU, opening fails with the reason. */
#ifndef DT_GPU_GPU_H
#define DT_GPU_GPU_H

#include "models/forward.h"

typedef struct dt_gpu dt_gpu;
typedef struct dt_gpu_weights dt_gpu_weights;

enum { DT_GPU_ANY = -1 };

/* Whether this build has kernels for a GPU at all. */
bool dt_gpu_built(void);
/* And whether the driver shows one here, whatever it is good for. */
bool dt_gpu_present(void);

/* `index` DT_GPU_ANY: the device with the most free memory. DT_ERR_UNSUPPORTED: a build without
 * CUDA, or a device too old; DT_ERR_DEVICE: no driver, no device, or one that fails. */
dt_err dt_gpu_open(dt_gpu **out, int index);
void dt_gpu_close(dt_gpu *gpu);

/* "GPU 0, NVIDIA GeForce RTX 4060 (compute 8.9, 7.2 of 8.0 GiB free)", as found when opened. */
const char *dt_gpu_describe(const dt_gpu *gpu);
/* What dt_forward.device says: "cuda", or "emulated" in test programs. */
const char *dt_gpu_device_name(const dt_gpu *gpu);

/* Copies a model's weights into device memory in the kernels' layout. `progress` as in dt_cpu_load.
 * The model and the device must outlive the weights. DT_ERR_MEMORY where they do not fit. */
dt_err dt_gpu_load(dt_gpu_weights **out, dt_gpu *gpu, const dt_model *model,
    void (*progress)(void *arg, size_t done, size_t total), void *arg);
void dt_gpu_unload(dt_gpu_weights *weights);

/* A forward with room for n_rows KV rows. Its top-k is found on the device for every wanted row of
 * an eval, with the arguments that dt_forward.topk_hint names. `logits` is NULL unless host_logits
 * asks for a copy of them on the host (checks do); features stay on the device. One thread at a
 * time; forwards of one device wait for each other. */
dt_err dt_gpu_forward_open(
    dt_forward **out, const dt_gpu_weights *weights, int n_rows, bool host_logits);

#endif
