/* What the parts of `dovetail bench` share: the models at hand, the texts they are given, and the
 * rows that are reported. Main thread. */
#ifndef DT_CLI_BENCH_H
#define DT_CLI_BENCH_H

#include "src/cli/report.h"

typedef struct bench {
    const cli_opts *opts; /* draft_kind is DT_DRAFT_NONE where no draft takes part */
    dt_engine *engine;
    const dt_model *model;
    json_t *rows;
    char machine[192], numerics[96];
    char model_name[96], size[32], draft_name[96];
    const char *draft_source; /* of --prompts: "model+ngram", "none" */
    size_t cache_bytes;
    /* Of --curve: the best rate at which the team has read memory in this run. */
    double floor_rate; /* bytes per second */
    size_t floor_bytes;
    int floor_streams;
} bench;

/* Fills in what describes the machine, before an engine is opened; b->opts is set. */
int bench_describe_machine(bench *b);
/* The same for the models of b->engine. */
void bench_describe_models(bench *b);

/* "MODEL, SIZE, draft SOURCE (MODEL); MACHINE" to standard output, for a heading; the draft with
 * --prompts only. */
void bench_print_names(const bench *b);

/* A row {"test": ...} with model, machine, threads, instruction set and numerics in front. The row
 * belongs to b->rows. */
json_t *bench_new_row(bench *b, const char *test);
/* Tokens per second: mean, deviation and the samples themselves. */
void bench_set_samples(json_t *row, const double *samples, int n);
/* "tg128", "pp512 @ d4096" */
void bench_test_name(char *out, size_t n_bytes, const char *kind, int64_t n, int64_t depth);

/* Exactly n tokens of prose into out[n]. */
int bench_filler(int32_t *out, int64_t n, const bench *b);
/* The prompt of the answer test: the user's own as it stands, or a question as a chat. free() it.
 */
int bench_prompt(int32_t **out, int64_t *n_out, const bench *b);

int bench_open_session(dt_session **out, bench *b, dt_draft_kind draft, int64_t n_ctx);
/* Generates exactly n tokens, past the model's end. */
int bench_generate(dt_session *session, int64_t n);
/* Puts `ids` on the empty timeline and runs the prefill. */
int bench_settle(dt_session *session, const int32_t *ids, int64_t n);
/* Whether a draft takes part. */
bool bench_drafts(const bench *b);

/* The modes; each adds to b->rows. */
int bench_speed(bench *b);
int bench_curve(bench *b);
int bench_prompts(bench *b);
int bench_ring(const cli_opts *opts);

/* Prints what each of them gathered. */
void bench_print_speed(const bench *b);
void bench_print_prompts(const bench *b);
void bench_print_curve(bench *b);

#endif
