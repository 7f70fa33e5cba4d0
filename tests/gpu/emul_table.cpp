/* The table of gpu/ops.h against the host shim. */
#include "gpu/ops_cuda.cu" // NOLINT
