/* The CPU as a device: a team of threads, a kernel table, packed weights, and forwards over them.
 * This is all that code outside cpu/ sees of it. */
#ifndef DT_CPU_CPU_H
#define DT_CPU_CPU_H

#include "models/forward.h"
#include "src/base/topo.h"

typedef struct dt_cpu dt_cpu;
typedef struct dt_cpu_weights dt_cpu_weights;

typedef enum dt_matmul_way {
    DT_MATMUL_AUTO,     /* fused: every type this program reads has a fused kernel */
    DT_MATMUL_FUSED,    /* our kernels on packed weights: numerics id "int8" */
    DT_MATMUL_OPENBLAS, /* dequantised tiles and sgemm: id "openblas-VERSION-CORE" */
    DT_MATMUL_FLOAT,    /* dequantised tiles and our float32 kernel, slow: id "f32" */
} dt_matmul_way;

/* n_threads 0: as dt_topo_n_threads says. isa NULL or "auto": the best of this CPU; a name it does
 * not run is DT_ERR_UNSUPPORTED. `topo` must outlive the device. */
dt_err dt_cpu_open(dt_cpu **out, const dt_topo *topo, int n_threads, const char *isa);
void dt_cpu_close(dt_cpu *cpu);
/* Whether dt_cpu_open would take the name on this CPU. */
bool dt_cpu_isa_runs(const char *isa);
/* The i-th instruction set this program knows, in ascending order of preference; NULL behind the
 * last. */
const char *dt_cpu_isa_name(int i);
int dt_cpu_n_threads(const dt_cpu *cpu);
const char *dt_cpu_isa(const dt_cpu *cpu);

/* Packs a model's weights with the team, releasing the mapped source tensor by tensor.
 * `progress(arg, done, total)` in bytes, from the calling thread, may be NULL. The model and the
 * device must outlive the weights. Immutable afterwards; shared by any number of forwards. */
dt_err dt_cpu_load(dt_cpu_weights **out, dt_cpu *cpu, const dt_model *model, dt_matmul_way way,
    void (*progress)(void *arg, size_t done, size_t total), void *arg);
void dt_cpu_unload(dt_cpu_weights *weights);
/* Empty, or one line why exactness over batch sizes is not promised (OpenBLAS self-test). */
const char *dt_cpu_disclaimer(const dt_cpu_weights *weights);

/* Bytes of the packed weights, and of their tensors in the model file. 0 and 0 where they are not
 * packed. */
void dt_cpu_weights_bytes(size_t *packed_out, size_t *source_out, const dt_cpu_weights *weights);

/* Loads OpenBLAS and runs its self-test: `id` becomes "openblas-VERSION-CORE", `fault` empty or one
 * line. DT_ERR_UNSUPPORTED without it. */
dt_err dt_cpu_check_openblas(char *id, size_t n_id, char *fault, size_t n_fault);

/* Bytes that grow with the rows of a forward over a model, when all are used. */
size_t dt_cpu_forward_bytes(const dt_config *config, int n_rows, dt_kv_type kv);

/* A forward with room for n_rows KV rows (committed and speculative together). Address space for
 * the rows is reserved; their memory comes page by page as they are first used. */
dt_err dt_cpu_forward_open_kv(
    dt_forward **out, const dt_cpu_weights *weights, int n_rows, dt_kv_type kv);
/* With halves. */
dt_err dt_cpu_forward_open(dt_forward **out, const dt_cpu_weights *weights, int n_rows);

/* A buffer of n_bytes (rounded up) on huge pages, for measuring how fast the team reads memory. The
 * device must outlive it. */
typedef struct dt_cpu_reader dt_cpu_reader;
dt_err dt_cpu_reader_open(dt_cpu_reader **out, dt_cpu *cpu, size_t n_bytes);
void dt_cpu_reader_close(dt_cpu_reader *reader);
/* Reads the buffer once, every thread n_streams (1, 2, 4, 8 or 16) places side by side: bytes per
 * second. */
dt_err dt_cpu_reader_rate(double *out, dt_cpu_reader *reader, int n_streams);

#endif
