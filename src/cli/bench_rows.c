/* The texts, sessions and rows of dovetail bench. */
#include <stdlib.h>
#include <string.h>

#include "src/base/topo.h"
#include "src/cli/bench.h"
#include "src/cli/show.h"
#include "src/cli/inputs.h"
#include "src/cli/start.h"

/* Fills a context to the depth asked for. */
static const char FILLER[] =
    "A river does not hurry, and yet it arrives. The mill on its bank was built when the town was "
    "young: two storeys of grey stone, a wheel of oak, and a channel that a child could step over. "
    "In spring the water stood high and the stones turned all night; in August they turned for an "
    "hour after rain. The miller kept a book of these hours, and from the book his daughter "
    "learned "
    "to guess, weeks ahead, how much grain the mill could take. People called it luck. ";

/* What the answer test answers: long enough that no model is done after a hundred tokens. */
static const char QUESTION[] =
    "Write a Python class for a double-ended queue on top of a circular buffer, with the methods "
    "push_front, push_back, pop_front, pop_back, __len__, __iter__ and __getitem__. Add type "
    "hints, "
    "a docstring for every method and a short test for each of them.";

/* ---- texts and sessions --------------------------------------------------------------------- */

int bench_filler(int32_t *out, int64_t n, const bench *b) {
    int32_t *ids;
    int64_t n_ids;
    int code = cli_encode(&ids, &n_ids, b->model->vocab, FILLER, sizeof FILLER - 1, false, false);
    if (code != CLI_OK)
        return code;
    for (int64_t i = 0; i < n; i++)
        out[i] = ids[i % n_ids];
    free(ids);
    return CLI_OK;
}

int bench_prompt(int32_t **out, int64_t *n_out, const bench *b) {
    dt_chat *chat;
    if (b->opts->file) {
        cli_text text;
        int code = cli_read_prompt(&text, b->opts);
        if (code != CLI_OK)
            return code;
        code = cli_encode(out, n_out, b->model->vocab, text.data, text.n_bytes, true, false);
        free(text.data);
        return code;
    }
    if (dt_chat_open(&chat, b->model->file, NULL, DT_CHAT_THINK_AUTO) != DT_OK)
        return cli_encode(out, n_out, b->model->vocab, QUESTION, sizeof QUESTION - 1, true, false);
    dt_chat_turn turn = {"user", QUESTION};
    int code = cli_encode_chat(out, n_out, chat, b->model->vocab, &turn, 1);
    dt_chat_close(chat);
    return code;
}

int bench_open_session(dt_session **out, bench *b, dt_draft_kind draft, int64_t n_ctx) {
    dt_session_options options;
    dt_stats stats;
    cli_session_options(&options, b->opts);
    options.draft = draft;
    options.n_ctx = (int)n_ctx;
    if (dt_session_open(out, b->engine, &options) != DT_OK)
        return cli_fail_err();
    dt_session_stats(*out, &stats);
    snprintf(b->numerics, sizeof b->numerics, "%s", stats.numerics);
    return CLI_OK;
}

int bench_generate(dt_session *session, int64_t n) {
    dt_stop stop;
    dt_generate_options options = {.n_max = n, .ignore_end = true};
    return dt_session_generate(&stop, session, &options) == DT_OK ? CLI_OK : cli_fail_err();
}

int bench_settle(dt_session *session, const int32_t *ids, int64_t n) {
    if (n == 0)
        return CLI_OK;
    if (dt_session_append(session, ids, n) != DT_OK)
        return cli_fail_err();
    int code = bench_generate(session, 1);
    if (code == CLI_OK && dt_session_rewind(session, n) != DT_OK)
        code = cli_fail_err();
    return code;
}

bool bench_drafts(const bench *b) {
    return b->opts->draft_kind != DT_DRAFT_NONE;
}

/* ---- rows ----------------------------------------------------------------------------------- */

int bench_describe_machine(bench *b) {
    dt_topo *topo;
    if (dt_topo_open(&topo, NULL) != DT_OK)
        return cli_fail_err();
    char cores[96];
    const char *name = dt_topo_cpu_name(topo);
    dt_topo_describe(topo, cores, sizeof cores);
    snprintf(b->machine, sizeof b->machine, "%s%s%s", name, name[0] ? ", " : "", cores);
    b->cache_bytes = dt_topo_cache_bytes(topo);
    dt_topo_close(topo);
    return CLI_OK;
}

/* As much as has room, without a part of a character at the end. */
static void clip(char *out, size_t n_out, const char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes) {
        bool plain;
        size_t length = show_char(&plain, text + n, n_bytes - n);
        if (n + length >= n_out)
            break;
        n += length;
    }
    memcpy(out, text, n);
    out[n] = '\0';
}

static void name_model(char *out, size_t n_bytes, const dt_model *model) {
    dt_text name = {0};
    const char *path = dt_gguf_path(model->file);
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    if (dt_gguf_get_text(model->file, "general.name", &name) == DT_OK && name.n_bytes > 0)
        clip(out, DT_MIN(n_bytes, 61u), name.data, name.n_bytes);
    else
        clip(out, n_bytes, base, strlen(base));
}

void bench_describe_models(bench *b) {
    b->model = dt_engine_target(b->engine);
    name_model(b->model_name, sizeof b->model_name, b->model);
    if (dt_engine_draft(b->engine))
        name_model(b->draft_name, sizeof b->draft_name, dt_engine_draft(b->engine));
    double mib = (double)dt_gguf_file_bytes(b->model->file) / (1024.0 * 1024.0);
    if (mib >= 1024)
        snprintf(b->size, sizeof b->size, "%.2f GiB", mib / 1024);
    else
        snprintf(b->size, sizeof b->size, "%.2f MiB", mib);
}

void bench_print_names(const bench *b) {
    show_text(stdout, b->model_name);
    printf(", %s", b->size);
    if (b->draft_source) {
        printf(", draft %s%s", b->draft_source, b->draft_name[0] ? " (" : "");
        show_text(stdout, b->draft_name);
        fputs(b->draft_name[0] ? ")" : "", stdout);
    }
    fputs("; ", stdout);
    show_text(stdout, b->machine);
}

json_t *bench_new_row(bench *b, const char *test) {
    json_t *row = json_object();
    json_object_set_new(row, "model", report_bytes(b->model_name, strlen(b->model_name)));
    json_object_set_new(row, "size", json_string(b->size));
    json_object_set_new(
        row, "size_bytes", json_integer((json_int_t)dt_gguf_file_bytes(b->model->file)));
    json_object_set_new(row, "machine", report_bytes(b->machine, strlen(b->machine)));
    json_object_set_new(row, "isa", json_string(dt_engine_isa(b->engine)));
    json_object_set_new(row, "threads", json_integer(dt_engine_n_threads(b->engine)));
    json_object_set_new(row, "numerics", json_string(b->numerics));
    json_object_set_new(row, "version", json_string(DT_VERSION));
    json_object_set_new(row, "test", json_string(test));
    json_array_append_new(b->rows, row);
    return row;
}

void bench_set_samples(json_t *row, const double *samples, int n) {
    double mean, deviation;
    json_t *list = json_array();
    report_mean(&mean, &deviation, samples, n);
    for (int i = 0; i < n; i++)
        json_array_append_new(list, report_real(samples[i]));
    json_object_set_new(row, "avg_ts", report_real(mean));
    json_object_set_new(row, "stddev_ts", report_real(deviation));
    json_object_set_new(row, "samples_ts", list);
}

void bench_test_name(char *out, size_t n_bytes, const char *kind, int64_t n, int64_t depth) {
    if (depth > 0)
        snprintf(out, n_bytes, "%s%lld @ d%lld", kind, (long long)n, (long long)depth);
    else
        snprintf(out, n_bytes, "%s%lld", kind, (long long)n);
}
