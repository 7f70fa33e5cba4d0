#include "src/cli/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/token.h"
#include "src/cli/show.h"

json_t *report_real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *report_bytes(const char *bytes, size_t n_bytes) {
    char *text = malloc(3 * n_bytes + 1);
    size_t n = 0;
    if (!text)
        return json_null();
    for (size_t i = 0; i < n_bytes;) {
        size_t length = (size_t)dt_utf8_char(bytes + i, n_bytes - i);
        if (length > 0) {
            memcpy(text + n, bytes + i, length);
            n += length;
            i += length;
        } else {
            memcpy(text + n, "\xef\xbf\xbd", 3);
            n += 3;
            i++;
        }
    }
    json_t *value = json_stringn(text, n);
    free(text);
    return value;
}

const char *report_stop_name(dt_stop stop) {
    switch (stop) {
    case DT_STOP_END:
        return "end";
    case DT_STOP_STRING:
        return "string";
    case DT_STOP_BUDGET:
        return "budget";
    case DT_STOP_CONTEXT:
        return "context";
    case DT_STOP_CALLER:
        return "interrupt";
    }
    return "unknown";
}

json_t *report_stats(const dt_engine *engine, const dt_stats *stats, dt_stop stop,
    double load_seconds, json_t *notices) {
    json_t *root = json_object();
    json_object_set_new(root, "prompt_tokens", json_integer(stats->n_prompt));
    json_object_set_new(root, "tokens", json_integer(stats->n_generated));
    json_object_set_new(root, "steps", json_integer(stats->n_steps));
    json_object_set_new(root, "drafted", json_integer(stats->n_drafted));
    json_object_set_new(root, "accepted", json_integer(stats->n_accepted));
    json_t *at = json_array();
    int depth = DT_STAT_DEPTH_MAX;
    while (depth > 0 && stats->accepted_at[depth - 1] == 0)
        depth--;
    for (int i = 0; i < depth; i++)
        json_array_append_new(at, json_integer(stats->accepted_at[i]));
    json_object_set_new(root, "accepted_per_position", at);
    json_object_set_new(root, "accepted_off_first_branch", json_integer(stats->n_off_branch));
    json_object_set_new(root, "late_drafts", json_integer(stats->n_late));
    json_object_set_new(root, "mean_acceptance_length", report_real(stats->mean_acceptance_length));
    json_object_set_new(root, "tokens_per_second", report_real(stats->tokens_per_second));
    json_object_set_new(root, "plain_tokens_per_second",
        stats->plain_tokens_per_second > 0 ? report_real(stats->plain_tokens_per_second)
                                           : json_null());
    json_object_set_new(root, "seconds",
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "load", report_real(load_seconds),
            "prefill", report_real(stats->prefill_seconds), "decode",
            report_real(stats->decode_seconds), "verify", report_real(stats->verify_seconds),
            "sample", report_real(stats->sample_seconds), "wait", report_real(stats->wait_seconds),
            "draft", report_real(stats->draft_seconds)));
    json_object_set_new(root, "draft",
        json_pack("{s:s, s:s, s:s}", "source", stats->draft_source, "device", stats->draft_device,
            "state", stats->draft_state));
    json_object_set_new(root, "wasted", json_integer(stats->n_drafted - stats->n_accepted));
    json_object_set_new(root, "saved_seconds", report_real(stats->saved_seconds));
    static const char *const froms[DT_STAT_FROM_COUNT] = {"rest", "plain", "ngram", "model"};
    json_t *by = json_object();
    for (int i = 0; i < DT_STAT_FROM_COUNT; i++)
        json_object_set_new(by, froms[i],
            json_pack("{s:I, s:I}", "steps", (json_int_t)stats->steps_by[i], "tokens",
                (json_int_t)stats->tokens_by[i]));
    json_object_set_new(root, "proposals_from", by);
    json_object_set_new(root, "why", json_string(stats->why));
    json_object_set_new(root, "numerics", json_string(stats->numerics));
    json_object_set_new(root, "seed", json_integer((json_int_t)stats->seed));
    json_object_set_new(root, "threads", json_integer(dt_engine_n_threads(engine)));
    json_object_set_new(root, "isa", json_string(dt_engine_isa(engine)));
    json_object_set_new(root, "kv_bytes", json_integer((json_int_t)stats->kv_bytes));
    json_object_set_new(root, "stop", json_string(report_stop_name(stop)));
    json_object_set_new(root, "notices", notices ? notices : json_array());
    json_object_set_new(root, "version", json_string(DT_VERSION));
    return root;
}

const char *report_tokens(int64_t n) {
    return n == 1 ? "token" : "tokens";
}

bool report_trace(const char *path, const dt_session *session) {
    static const char *const lanes[DT_TRACE_LANES] = {"verify", "draft"};
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", file);
    for (int lane = 0; lane < DT_TRACE_LANES; lane++) {
        const dt_trace_event *events;
        int n = dt_session_trace(&events, session, lane);
        fprintf(file,
            "%s{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":%d,"
            "\"args\":{\"name\":\"%s\"}}",
            lane > 0 ? ",\n" : "", lane + 1, lanes[lane]);
        for (int i = 0; i < n; i++)
            fprintf(file,
                ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,"
                "\"args\":{\"rows\":%d}}",
                events[i].what, lane + 1, (double)events[i].start_ns * 1e-3,
                (double)(events[i].end_ns - events[i].start_ns) * 1e-3, (int)events[i].n_rows);
    }
    fputs("\n]}\n", file);
    bool good = ferror(file) == 0;
    return fclose(file) == 0 && good;
}

void report_stats_line(FILE *out, const dt_stats *stats, bool with_seed, const char *end) {
    if (stats->n_generated == 0) {
        fprintf(out, "no tokens generated%s%s\n", end ? "; " : "", end ? end : "");
        return;
    }
    fprintf(out, "%.1f tokens/s", stats->tokens_per_second);
    if (stats->plain_tokens_per_second > 0 && stats->n_drafted > 0)
        fprintf(out, ", %.2f x plain (%.1f)",
            stats->tokens_per_second / stats->plain_tokens_per_second,
            stats->plain_tokens_per_second);
    if (strcmp(stats->draft_source, "none") != 0)
        fprintf(out, ", %.2f tokens a step, draft %s on %s%s%s", stats->mean_acceptance_length,
            stats->draft_source, stats->draft_device,
            strcmp(stats->draft_state, "on") == 0 ? "" : " now ",
            strcmp(stats->draft_state, "on") == 0 ? "" : stats->draft_state);
    fprintf(out, "; %lld %s in %.1f s, prompt of %lld in %.1f s", (long long)stats->n_generated,
        report_tokens(stats->n_generated), stats->decode_seconds, (long long)stats->n_prompt,
        stats->prefill_seconds);
    if (end)
        fprintf(out, "; %s", end);
    if (with_seed)
        fprintf(out, "; seed %llu", (unsigned long long)stats->seed);
    if (stats->n_drafted > 0)
        fprintf(out, "\n%lld drafted, %lld used, %.2f s waited; %s", (long long)stats->n_drafted,
            (long long)stats->n_accepted, stats->wait_seconds, stats->why);
    fputc('\n', out);
}

void report_answer_line(FILE *out, const dt_stats *stats, int64_t n_tokens, int64_t n_ctx) {
    fprintf(out, "[%lld %s, %.1f tokens/s", (long long)stats->n_generated,
        report_tokens(stats->n_generated), stats->tokens_per_second);
    if (stats->plain_tokens_per_second > 0 && stats->n_drafted > 0)
        fprintf(out, ", %.2f x plain", stats->tokens_per_second / stats->plain_tokens_per_second);
    if (strcmp(stats->draft_source, "none") != 0)
        fprintf(out, ", %.2f tokens a step", stats->mean_acceptance_length);
    if (strcmp(stats->draft_state, "off") == 0 || strcmp(stats->draft_state, "dead") == 0)
        fprintf(out, ", draft %s", stats->draft_state);
    fprintf(out, "; %lld read, %lld of %lld in the context]\n", (long long)stats->n_prompt,
        (long long)n_tokens, (long long)n_ctx);
}

void report_mean(double *mean_out, double *deviation_out, const double *values, int n) {
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++)
        sum += values[i];
    double mean = n > 0 ? sum / n : 0;
    for (int i = 0; i < n; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    *mean_out = mean;
    *deviation_out = n > 1 ? sqrt(squares / (n - 1)) : 0;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double report_quantile(double *values, int n, double quantile) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    double at = quantile * (n - 1);
    int i = (int)at;
    double right = i + 1 < n ? values[i + 1] : values[i];
    return values[i] + (at - i) * (right - values[i]);
}

/* ---- tables --------------------------------------------------------------------------------- */

enum { CELL_BYTES = 160, COLUMNS_MAX = 16 };

static void format_cell(char out[CELL_BYTES], const json_t *row, const report_column *column) {
    const json_t *value = json_object_get(row, column->key);
    out[0] = '\0';
    if (json_is_string(value))
        show_bytes(out, CELL_BYTES, json_string_value(value), json_string_length(value));
    else if (json_is_integer(value))
        snprintf(out, CELL_BYTES, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        snprintf(out, CELL_BYTES, "%.*f", column->decimals, json_real_value(value));
    size_t i;
    json_t *item;
    json_array_foreach(value, i, item) {
        size_t used = strlen(out);
        snprintf(out + used, CELL_BYTES - used, "%s%.*f", i ? " " : "", column->decimals,
            json_number_value(item));
    }
    const json_t *deviation =
        column->deviation_key ? json_object_get(row, column->deviation_key) : NULL;
    size_t n = strlen(out);
    if (n > 0 && json_is_real(deviation))
        snprintf(out + n, CELL_BYTES - n, " ± %.*f", column->decimals, json_real_value(deviation));
}

/* Columns on the screen: bytes that do not continue a UTF-8 character. */
static int text_width(const char *text) {
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_markdown(FILE *out, const json_t *rows, const report_column *columns, int n) {
    char cell[CELL_BYTES];
    int width[COLUMNS_MAX];
    for (int c = 0; c < n; c++) {
        size_t i_row;
        json_t *row;
        width[c] = 0;
        json_array_foreach(rows, i_row, row) {
            format_cell(cell, row, &columns[c]);
            width[c] = DT_MAX(width[c], text_width(cell));
        }
        if (width[c] > 0)
            width[c] = DT_MAX(width[c], text_width(columns[c].title));
    }
    for (int line = -2; line < (int)json_array_size(rows); line++) {
        for (int c = 0; c < n; c++) {
            bool right = c > 0;
            if (width[c] == 0)
                continue;
            if (line == -1) {
                fputs(c == 0 ? "|" : " |", out);
                fputc(' ', out);
                for (int i = 0; i < width[c] - right; i++)
                    fputc('-', out);
                if (right)
                    fputc(':', out);
                continue;
            }
            if (line == -2)
                snprintf(cell, sizeof cell, "%s", columns[c].title);
            else
                format_cell(cell, json_array_get(rows, (size_t)line), &columns[c]);
            int pad = width[c] - text_width(cell);
            fprintf(out, "%s %*s%s%*s", c == 0 ? "|" : " |", right ? pad : 0, "", cell,
                right ? 0 : pad, "");
        }
        fputs(" |\n", out);
    }
}

void report_json(FILE *out, const json_t *value, size_t flags) {
    json_dumpf(value, out, flags | JSON_REAL_PRECISION(9));
    fputc('\n', out);
}

/* A field of CSV (RFC 4180): quoted where it holds what would end it. */
static void print_field(FILE *out, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void print_value(FILE *out, const json_t *value) {
    size_t i;
    json_t *item;
    if (json_is_string(value))
        print_field(out, json_string_value(value));
    else if (json_is_integer(value))
        fprintf(out, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        fprintf(out, "%.9g", json_real_value(value));
    else if (json_is_boolean(value))
        fputs(json_is_true(value) ? "true" : "false", out);
    else if (json_is_array(value))
        json_array_foreach(value, i, item) {
            if (i > 0)
                fputc(' ', out);
            print_value(out, item);
        }
}

/* Rows of one table may have different members: the columns are those of all, in the order in which
 * they first appear. */
static void print_csv(FILE *out, const json_t *rows) {
    json_t *columns = json_object(), *row, *value;
    size_t i_row;
    const char *key;
    json_array_foreach(rows, i_row, row) json_object_foreach(row, key, value)
        json_object_set_new(columns, key, json_null());
    const char *comma = "";
    json_object_foreach(columns, key, value) {
        fputs(comma, out);
        print_field(out, key);
        comma = ",";
    }
    fputc('\n', out);
    json_array_foreach(rows, i_row, row) {
        comma = "";
        json_object_foreach(columns, key, value) {
            fputs(comma, out);
            print_value(out, json_object_get(row, key));
            comma = ",";
        }
        fputc('\n', out);
    }
    json_decref(columns);
}

void report_table(FILE *out, cli_table_form form, const json_t *rows, const report_column *columns,
    int n_columns) {
    size_t i_row;
    json_t *row;
    switch (form) {
    case CLI_TABLE_MD:
        print_markdown(out, rows, columns, DT_MIN(n_columns, (int)COLUMNS_MAX));
        break;
    case CLI_TABLE_CSV:
        print_csv(out, rows);
        break;
    case CLI_TABLE_JSON:
        report_json(out, rows, JSON_INDENT(2));
        break;
    case CLI_TABLE_JSONL:
        json_array_foreach(rows, i_row, row) report_json(out, row, 0);
        break;
    }
}
