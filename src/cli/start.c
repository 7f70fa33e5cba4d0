#define _GNU_SOURCE
#include "src/cli/start.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static void load_progress(void *arg, const char *what, size_t done, size_t total) {
    char label[32];
    (void)arg;
    snprintf(label, sizeof label, "loading the %s", what);
    cli_progress(label, (int64_t)done, (int64_t)total);
}

/* Loading has no place to stop at, and nothing to put in order. */
static void on_load_interrupt(int signal_number) {
    static const char line[] = "\r\033[Kdovetail: interrupted\n";
    size_t skip = cli_progress_shown() ? 0 : 4;
    (void)signal_number;
    (void)!write(STDERR_FILENO, line + skip, sizeof line - 1 - skip);
    _exit(CLI_INTERRUPTED);
}

static bool driver_hangs;

int cli_engine_open(dt_engine **out, const cli_opts *opts) {
    bool with_draft = opts->draft_kind == DT_DRAFT_AUTO || opts->draft_kind == DT_DRAFT_MODEL;
    dt_engine_options options = {
        .target = opts->target,
        .draft = with_draft ? opts->draft : NULL,
        .n_threads = (int)opts->n_threads,
        .isa = opts->isa,
        .matmul = opts->matmul,
        .draft_device = opts->draft_device,
        .gpu = (int)opts->gpu,
        .stuck = &driver_hangs,
        .progress = load_progress,
    };
    struct sigaction interrupt = {.sa_handler = on_load_interrupt}, before;
    sigaction(SIGINT, &interrupt, &before);
    dt_err err = dt_engine_open(out, &options);
    sigaction(SIGINT, &before, NULL);
    cli_progress_end();
    return err == DT_OK ? CLI_OK : cli_fail_err();
}

void cli_gpu_report(char *out, size_t n_bytes) {
    if (!dt_gpu_report(out, n_bytes))
        driver_hangs = true;
}

void cli_engine_close(dt_engine *engine) {
    if (!dt_engine_close(engine))
        driver_hangs = true;
}

int cli_leave(int code) {
    if (!driver_hangs)
        return code;
    fflush(NULL);
    _exit(code); /* a driver that hangs would hold up its own clean-up too */
}

void cli_session_options(dt_session_options *out, const cli_opts *opts) {
    dt_session_options_default(out);
    out->kv = opts->kv;
    out->n_ctx = opts->n_ctx > 0 ? (int)opts->n_ctx : opts->n_ctx == 0 ? DT_CONTEXT_TRAINED : 0;
    dt_sampling *sampling = &out->sampling;
    sampling->temperature = (float)opts->temperature;
    sampling->top_k = (int)opts->top_k;
    sampling->top_p = (float)opts->top_p;
    sampling->min_p = (float)opts->min_p;
    sampling->repeat_penalty = (float)opts->repeat_penalty;
    sampling->presence_penalty = (float)opts->presence_penalty;
    sampling->frequency_penalty = (float)opts->frequency_penalty;
    sampling->penalty_window = (int)opts->penalty_window;
    if (opts->seed >= 0)
        sampling->seed = (uint64_t)opts->seed;
    out->draft = (dt_draft_kind)opts->draft_kind;
    out->tree = (int)opts->tree;
    out->depth = (int)opts->tree_depth;
    out->topk = (int)opts->tree_topk;
    out->guard = !opts->no_guard;
    out->independent_noise = opts->independent_noise;
    out->prefill_batch = (int)opts->prefill_batch;
}

int64_t cli_n_ctx(const cli_opts *opts, const dt_model *model) {
    int64_t trained = model->config.n_ctx_train;
    return opts->n_ctx > 0 ? opts->n_ctx : opts->n_ctx == 0 ? trained : DT_MIN(4096, trained);
}
