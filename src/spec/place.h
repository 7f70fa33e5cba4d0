/* Where a draft model runs: on a GPU if one is wanted, at hand and able, else on the CPU. Whatever
 * fails on the GPU leaves one line behind and falls back. One thread at a time, but any; the notice
 * may be read, and forwards be used and closed, meanwhile. */
#ifndef DT_SPEC_PLACE_H
#define DT_SPEC_PLACE_H

#include "cpu/cpu.h"

typedef struct dt_place dt_place;

typedef struct dt_place_options {
    dt_cpu *cpu;
    const dt_model *model;
    const char *device;  /* NULL or "auto", "cpu", "cuda" */
    int gpu;             /* index; negative: the one with the most free memory */
    int64_t patience_ns; /* of a GPU's call; 0: as designed */
    void (*progress)(void *arg, size_t done, size_t total); /* may be NULL */
    void *arg;
} dt_place_options;

/* Loads the weights. An unknown device is DT_ERR_INPUT. *out is to be closed after a failure too,
 * if it is not NULL: a thread may hang in it. */
dt_err dt_place_open(dt_place **out, const dt_place_options *options);
/* A forward on the device chosen, or on the CPU where the GPU has no room for it. Those that run on
 * the GPU already stay there. */
dt_err dt_place_forward(dt_forward **out, dt_place *place, int n_rows);
/* Closes it with patience; NULL is fine. False: it hangs and was left to itself. */
bool dt_place_forward_close(dt_forward *forward);
/* Empty, or one line why the draft does not run on the GPU. Valid until the place is closed. */
const char *dt_place_notice(const dt_place *place);
/* A thread hangs in what this has opened on the GPU: it is not touched again, and what comes next
 * runs on the CPU. */
void dt_place_abandon(dt_place *place);
/* NULL is fine. False: a call hangs, or did before; the model and the place stay in memory. */
bool dt_place_close(dt_place *place);

/* Which GPU there is, or "none: " and why: one line. False: a call hangs and was left to itself. */
bool dt_place_describe_gpu(char *out, size_t n_bytes);

#endif
