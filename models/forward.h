/* A forward: a model placed on one device with a KV cache of its own. CPU and GPU offer the same
 * interface, and the code above it does not know which it holds.
 *
 * One thread at a time may use a forward. Rows of the KV cache are those of models/rows.h. */
#ifndef DT_MODELS_FORWARD_H
#define DT_MODELS_FORWARD_H

#include "models/model.h"
#include "models/rows.h"
#include "models/topk.h"

enum { DT_BATCH_MAX = 64 }; /* rows of one eval */

/* Rows to run. A row attends to every committed row, to its speculative ancestors and to itself.
 * `parents`: the KV row that each token follows: dt_rows_last(), a speculative row, or
 * DT_PARENT(i) for row i < own index of this very batch; for position 0 it is -1. The rows are
 * appended to the cache as speculative, in order. */
typedef struct dt_batch {
    int n_rows;             /* 1 .. DT_BATCH_MAX */
    const int32_t *tokens;  /* [n_rows] */
    const int32_t *parents; /* [n_rows] */
    const bool *wants;      /* [n_rows]: logits and features are needed; NULL: of all rows */
} dt_batch;

/* The i-th row of the batch itself as a parent. */
#define DT_PARENT(i) (-2 - (int32_t)(i))

typedef struct dt_forward dt_forward;

typedef struct dt_forward_ops {
    dt_err (*eval)(dt_forward *forward, const dt_batch *batch);
    dt_err (*topk)(dt_forward *forward, dt_topk *out, int i_row, const dt_topk_args *args);
    dt_err (*move)(dt_forward *forward, const dt_row_move *moves, int n_moves);
    void (*close)(dt_forward *forward);
    dt_err (*admit)(dt_forward *forward, int32_t n_low, const int32_t *tokens, int n);
} dt_forward_ops;

struct dt_forward {
    const dt_forward_ops *ops;
    const dt_model *model; /* not owned */
    const char *device;    /* "cpu", "cuda" */
    bool apart;            /* the device works beside the CPU's threads; its calls may hang */
    const char *numerics;  /* numerics id (doc/numerics.md), owned by the device's weights */
    dt_rows rows;
    int32_t batch_row0; /* KV row of the latest batch's first row */
    /* What topk will be asked with after each eval, for a row's own next position; NULL: unknown. A
     * device that has it finds the candidates in the eval itself. Set by the owner of the forward;
     * `position` is not read. */
    const dt_topk_args *topk_hint;
    /* [n_rows][n_vocab] of the latest eval; rows not wanted are undefined. NULL where they stay on
     * the device; so may the features. */
    const float *logits;
    const float *features; /* [n_rows][n_embd] hidden state after the final norm, likewise */
    size_t kv_bytes;       /* memory of the KV cache */
    size_t kv_token_bytes; /* of one row of it; 0: not known */
    size_t work_bytes;     /* all other memory of the forward; 0: not known */
};

/* Runs the batch. On failure the rows are as before the call. DT_ERR_LIMIT: cache full.
 * DT_ERR_INPUT: a token outside the vocabulary. DT_ERR_DEVICE: the device failed. */
static inline dt_err dt_forward_eval(dt_forward *forward, const dt_batch *batch) {
    return forward->ops->eval(forward, batch);
}

/* The best tokens of row `i_row` of the latest eval (which wanted it), chosen where the logits
 * are. See models/topk.h. */
static inline dt_err dt_forward_topk(
    dt_forward *forward, dt_topk *out, int i_row, const dt_topk_args *args) {
    return forward->ops->topk(forward, out, i_row, args);
}

/* For drafts: from the first call on, only the logits of ids below n_low, of the tokens [n] of this
 * and all later calls, and of some others beside them are computed; the rest are -infinity. The
 * first call may take memory, later ones do not. A device that has no use for it computes all, as
 * before. */
static inline dt_err dt_forward_admit(
    dt_forward *forward, int32_t n_low, const int32_t *tokens, int n) {
    return forward->ops->admit ? forward->ops->admit(forward, n_low, tokens, n) : DT_OK;
}

/* Commits and keeps rows as dt_rows_keep does, and moves the cache's memory accordingly. More than
 * DT_KEEP_MAX rows, path and rest together, are DT_ERR_LIMIT. */
enum { DT_KEEP_MAX = DT_BATCH_MAX + 1024 };
dt_err dt_forward_keep(
    dt_forward *forward, const int32_t *path, int n_path, const int32_t *rest, int n_rest);

/* Forgets speculative rows and committed rows from n on. */
static inline void dt_forward_truncate(dt_forward *forward, int n) {
    dt_rows_truncate(&forward->rows, n);
}

static inline void dt_forward_close(dt_forward *forward) {
    if (forward)
        forward->ops->close(forward);
}

/* Runs tokens [n] as a chain after the committed rows, in batches of at most n_batch (1 ..
 * DT_BATCH_MAX), and commits them; logits and features are those of the last token alone, as row
 * *i_last_out of the latest eval. `progress(arg, n_done)` may be NULL; a non-zero result stops
 * with DT_ERR_STOPPED after the tokens done so far. */
dt_err dt_forward_prefill(int *i_last_out, dt_forward *forward, const int32_t *tokens, int n,
    int n_batch, int (*progress)(void *arg, int n_done), void *arg);

#endif
