/* Which cores this process may use, in the order it should take them: one hardware thread per core
 * first, performance cores before efficient ones, then the sibling threads. hwloc where it was
 * built in, else the affinity mask alone. Immutable after open. */
#ifndef DT_BASE_TOPO_H
#define DT_BASE_TOPO_H

#include "src/base/common.h"

typedef struct dt_topo dt_topo;

/* `synthetic`: NULL for this machine, else an hwloc synthetic description, to which a list of the
 * hardware threads of efficient cores may be joined: "pack:1 core:8 pu:1;4-7"; or the path of an
 * .xml file of lstopo's. Such machines can be described, not bound to. The calling
 * thread's affinity mask counts: open before any thread is bound. Errors: DT_ERR_INPUT (the
 * description), DT_ERR_UNSUPPORTED (one, without hwloc), DT_ERR_IO, DT_ERR_MEMORY. */
dt_err dt_topo_open(dt_topo **out, const char *synthetic);
void dt_topo_close(dt_topo *topo);

int dt_topo_n_cores(const dt_topo *topo); /* physical cores allowed */
/* The team's default size: one thread a core, efficient ones too, but no more than a control
 * group's quota of CPU time keeps running (src/base/limits.h). */
int dt_topo_n_threads(const dt_topo *topo);
int dt_topo_n_pus(const dt_topo *topo); /* hardware threads allowed */

/* The operating system's number of the i-th hardware thread in the order above. */
int dt_topo_pu(const dt_topo *topo, int i);

/* Binds the calling thread to the i-th hardware thread. A refusal is no error to act on: threads
 * then run unbound. */
dt_err dt_topo_bind(const dt_topo *topo, int i);

/* What the processor calls itself, "" if it does not. */
const char *dt_topo_cpu_name(const dt_topo *topo);

/* Bytes of the last-level caches over the hardware threads allowed; 0: not known. */
size_t dt_topo_cache_bytes(const dt_topo *topo);

/* "2 cores, 2 threads, 1 package", "14 cores (6 performance, 8 efficient), 20 threads, 1 package"
 * for listings. */
void dt_topo_describe(const dt_topo *topo, char *out, size_t n_bytes);

/* The machine as lines of text ("L3 32 MiB: CPUs 0-1"), like objects side by side on one line,
 * what they hold indented. What does not fit is cut off. */
void dt_topo_tree(const dt_topo *topo, char *out, size_t n_bytes);

/* Which core serves whom, with reasons: lines "what: sentence" for a team of n_threads. */
void dt_topo_plan(const dt_topo *topo, int n_threads, char *out, size_t n_bytes);

#endif
