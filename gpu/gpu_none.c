/* The table of a build without CUDA. */
#include "gpu/ops.h"

const dt_gpu_ops *dt_gpu_table(void) {
    return NULL;
}
