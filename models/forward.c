#include "models/forward.h"

dt_err dt_forward_keep(
    dt_forward *forward, const int32_t *path, int n_path, const int32_t *rest, int n_rest) {
    dt_row_move moves[DT_KEEP_MAX]; /* 9 KB: small enough for any thread's stack */
    int n_moves;
    if (n_path < 0 || n_rest < 0 || n_path > DT_KEEP_MAX || n_rest > DT_KEEP_MAX - n_path)
        DT_FAIL(DT_ERR_LIMIT, "%d + %d rows to keep, %d is the most", n_path, n_rest, DT_KEEP_MAX);
    DT_TRY(dt_rows_keep(moves, &n_moves, &forward->rows, path, n_path, rest, n_rest));
    return n_moves ? forward->ops->move(forward, moves, n_moves) : DT_OK;
}

/* One batch of a prefill: a chain below the committed rows, committed at once. */
static dt_err prefill_batch(dt_forward *forward, const int32_t *tokens, int n, bool want_last) {
    int32_t parents[DT_BATCH_MAX], path[DT_BATCH_MAX];
    bool wants[DT_BATCH_MAX];
    for (int i = 0; i < n; i++) {
        parents[i] = i == 0 ? dt_rows_last(&forward->rows) : DT_PARENT(i - 1);
        wants[i] = want_last && i == n - 1;
    }
    dt_batch batch = {n, tokens, parents, wants};
    DT_TRY(dt_forward_eval(forward, &batch));
    for (int i = 0; i < n; i++)
        path[i] = forward->batch_row0 + i;
    return dt_forward_keep(forward, path, n, NULL, 0);
}

dt_err dt_forward_prefill(int *i_last_out, dt_forward *forward, const int32_t *tokens, int n,
    int n_batch, int (*progress)(void *arg, int n_done), void *arg) {
    if (n < 1 || n_batch < 1 || n_batch > DT_BATCH_MAX)
        DT_FAIL(DT_ERR_INTERNAL, "prefill of %d tokens in batches of %d", n, n_batch);
    const dt_rows *rows = &forward->rows;
    if (n > rows->n_max - rows->n_used)
        DT_FAIL(DT_ERR_LIMIT, "%d tokens do not fit: %d of the KV cache's %d rows are free", n,
            rows->n_max - rows->n_used, rows->n_max);
    for (int done = 0; done < n;) {
        int n_now = DT_MIN(n_batch, n - done);
        DT_TRY(prefill_batch(forward, tokens + done, n_now, done + n_now == n));
        done += n_now;
        *i_last_out = n_now - 1;
        if (progress && progress(arg, done))
            DT_FAIL(DT_ERR_STOPPED, "stopped after %d of %d tokens of the prompt", done, n);
    }
    return DT_OK;
}
