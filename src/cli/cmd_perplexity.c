/* dovetail perplexity: how well the model predicts a text, in one window. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/cli/report.h"
#include "src/cli/inputs.h"
#include "src/cli/start.h"

typedef struct logits_file {
    FILE *file;
    size_t n_vocab;
    int write_errno;
} logits_file;

static void on_logits(void *arg, int64_t position, const float *logits) {
    logits_file *out = arg;
    (void)position;
    if (!out->write_errno &&
        fwrite(logits, sizeof *logits, out->n_vocab, out->file) != out->n_vocab)
        out->write_errno = errno ? errno : EIO;
}

static int write_logits(
    dt_session *session, const char *path, const int32_t *ids, int64_t n, int n_vocab) {
    logits_file out = {fopen(path, "wb"), (size_t)n_vocab, 0};
    if (!out.file)
        return cli_fail(CLI_FAILED, "cannot create %s: %s", path, strerror(errno));
    dt_err err = dt_session_logits(session, ids, n, on_logits, &out);
    if (fclose(out.file) != 0 && !out.write_errno)
        out.write_errno = errno;
    if (err != DT_OK)
        return cli_fail_err();
    if (out.write_errno)
        return cli_fail(CLI_FAILED, "cannot write %s: %s", path, strerror(out.write_errno));
    return CLI_OK;
}

static int read_tokens(int32_t **out, int64_t *n_out, const cli_opts *opts, const dt_model *model,
    const cli_text *text) {
    int code =
        opts->ids_file
            ? cli_read_ids(out, n_out, text->data, model->config.n_vocab, opts->ids_file)
            : cli_encode(out, n_out, model->vocab, text->data, text->n_bytes, !opts->no_bos, false);
    if (code != CLI_OK)
        return code;
    if (opts->max_tokens > 0)
        *n_out = DT_MIN(*n_out, opts->max_tokens);
    if (*n_out < 2)
        code = cli_fail(CLI_FAILED, "the text has %lld %s, want at least 2", (long long)*n_out,
            report_tokens(*n_out));
    else if (*n_out > model->config.n_ctx_train)
        code = cli_fail(CLI_FAILED,
            "the text has %lld tokens, the model's context holds %d: give "
            "--max-tokens or a shorter text",
            (long long)*n_out, model->config.n_ctx_train);
    if (code != CLI_OK)
        free(*out);
    return code;
}

static int measure(const cli_opts *opts, dt_engine *engine, const cli_text *text) {
    const dt_model *model = dt_engine_target(engine);
    dt_session *session = NULL;
    dt_session_options options;
    dt_stats stats;
    int32_t *ids = NULL;
    int64_t n = 0;
    double nll = 0;
    int code = read_tokens(&ids, &n, opts, model, text);
    if (code != CLI_OK)
        return code;
    cli_session_options(&options, opts);
    options.n_ctx = (int)n;
    options.draft = DT_DRAFT_NONE;
    if (dt_session_open(&session, engine, &options) != DT_OK ||
        dt_session_nll(&nll, session, ids, n) != DT_OK)
        code = cli_fail_err();
    if (code == CLI_OK && !isfinite(nll))
        code = cli_fail(CLI_FAILED, "the model's logits are not finite: its file may be damaged");
    if (code == CLI_OK && opts->logits_file)
        code = write_logits(session, opts->logits_file, ids, n, model->config.n_vocab);
    if (code == CLI_OK) {
        dt_session_stats(session, &stats);
        if (opts->json) {
            json_t *object = json_pack("{s:I, s:o, s:o, s:s, s:s, s:i}", "tokens", (json_int_t)n,
                "mean_nll", report_real(nll), "perplexity", report_real(exp(nll)), "numerics",
                stats.numerics, "isa", dt_engine_isa(engine), "threads",
                dt_engine_n_threads(engine));
            report_json(stdout, object, 0);
            json_decref(object);
        } else {
            printf("perplexity %.4f, mean negative log-likelihood %.6f over %lld tokens (%s)\n",
                exp(nll), nll, (long long)n - 1, stats.numerics);
        }
    }
    dt_session_close(session);
    free(ids);
    return code;
}

int cmd_perplexity(const cli_opts *opts) {
    cli_text text;
    dt_engine *engine = NULL;
    const char *file = opts->file || opts->ids_file ? opts->file : "-";
    const char *read[] = {opts->target, file, opts->ids_file};
    int code = cli_check_output("--logits", opts->logits_file, read, DT_COUNT(read));
    if (code != CLI_OK)
        return code;
    code = opts->ids_file ? cli_read_file(&text, opts->ids_file) : cli_read_prompt(&text, opts);
    if (code != CLI_OK)
        return code;
    code = cli_engine_open(&engine, opts);
    if (code == CLI_OK)
        code = measure(opts, engine, &text);
    cli_engine_close(engine);
    free(text.data);
    return code;
}
