/* Measuring with a session's target: likelihoods, logits, the time of a pass. */
#include "src/base/fmath.h"
#include "src/base/mem.h"
#include "src/spec/session.h"

/* Logits of tokens[0 .. n-1], by batches; `row` gets each position's. Leaves the timeline empty. */
static dt_err run_rows(dt_session *s, const int32_t *tokens, int64_t n,
    void (*row)(void *arg, int64_t position, const float *logits), void *arg) {
    if (n < 1 || n > s->n_ctx)
        DT_FAIL(DT_ERR_LIMIT, "%lld tokens do not fit the context of %d", (long long)n, s->n_ctx);
    DT_TRY(dt_session_rewind(s, 0));
    dt_forward *target = s->parts.target;
    int32_t parents[DT_BATCH_MAX], path[DT_BATCH_MAX];
    dt_err err = DT_OK;
    for (int64_t done = 0; done < n && err == DT_OK;) {
        int n_rows = (int)DT_MIN(n - done, s->options.prefill_batch);
        for (int i = 0; i < n_rows; i++)
            parents[i] = i == 0 ? dt_rows_last(&target->rows) : DT_PARENT(i - 1);
        err = dt_forward_eval(target, &(dt_batch){n_rows, tokens + done, parents, NULL});
        if (err != DT_OK)
            break;
        for (int i = 0; i < n_rows; i++) {
            path[i] = target->batch_row0 + i;
            row(arg, done + i, target->logits + (size_t)i * (size_t)s->n_vocab);
        }
        err = dt_forward_keep(target, path, n_rows, NULL, 0);
        done += n_rows;
    }
    dt_forward_truncate(target, 0);
    return err;
}

typedef struct likelihood {
    const int32_t *tokens;
    int64_t n;
    int n_vocab;
    double sum;
} likelihood;

static void add_row(void *arg, int64_t position, const float *logits) {
    likelihood *l = arg;
    if (position + 1 >= l->n)
        return;
    float best = dt_scan_max(logits, l->n_vocab);
    double sum = 0.0;
    for (int i = 0; i < l->n_vocab; i++)
        sum += dt_exp_f64((double)logits[i] - (double)best);
    l->sum += dt_log_f64(sum) + (double)best - (double)logits[l->tokens[position + 1]];
}

dt_err dt_session_nll(double *out, dt_session *s, const int32_t *tokens, int64_t n) {
    if (n < 2)
        DT_FAIL(DT_ERR_INPUT, "likelihood: want at least 2 tokens, got %lld", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= s->n_vocab)
            DT_FAIL(DT_ERR_INPUT, "token %d at %lld is outside the vocabulary of %d",
                (int)tokens[i], (long long)i, s->n_vocab);
    }
    likelihood l = {tokens, n, s->n_vocab, 0.0};
    DT_TRY(run_rows(s, tokens, n, add_row, &l));
    *out = l.sum / (double)(n - 1);
    return DT_OK;
}

dt_err dt_session_logits(dt_session *s, const int32_t *tokens, int64_t n,
    void (*row)(void *arg, int64_t position, const float *logits), void *arg) {
    return run_rows(s, tokens, n, row, arg);
}

dt_err dt_session_time_pass(double *seconds_out, dt_session *s, int m) {
    if (m < 1 || m > DT_BATCH_MAX)
        DT_FAIL(DT_ERR_INPUT, "rows of a pass: want 1 to %d, got %d", DT_BATCH_MAX, m);
    dt_forward *target = s->parts.target;
    int first = target->rows.n_committed;
    int n = (int)s->n_tokens - 1 - first;
    int i_last = 0;
    if (n > 0)
        DT_TRY(dt_forward_prefill(
            &i_last, target, s->tokens + first, n, s->options.prefill_batch, NULL, NULL));
    int32_t tokens[DT_BATCH_MAX], parents[DT_BATCH_MAX];
    for (int i = 0; i < m; i++) {
        tokens[i] = s->n_tokens > 0 ? s->tokens[(s->n_tokens - 1 + i) % s->n_tokens] : 0;
        parents[i] = i == 0 ? dt_rows_last(&target->rows) : DT_PARENT(i - 1);
    }
    int64_t start = dt_time_ns();
    dt_err err = dt_forward_eval(target, &(dt_batch){m, tokens, parents, NULL});
    *seconds_out = (double)(dt_time_ns() - start) * 1e-9;
    dt_forward_truncate(target, target->rows.n_committed);
    return err;
}
