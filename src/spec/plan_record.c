#include "src/spec/plan_record.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/fmath.h"

enum { VERSION = 1, TEXT_MAX = 16384 };

static uint64_t hash_text(const char *text, size_t n) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (uint8_t)text[i]) * 0x100000001b3u;
    return hash;
}

bool dt_plan_record_path(char *out, size_t n_max, const char *key) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    unsigned long long hash = hash_text(key, strlen(key));
    int n = 0;
    if (cache && cache[0] == '/')
        n = snprintf(out, n_max, "%s/dovetail/plan/%016llx.txt", cache, hash);
    else if (home && home[0] == '/')
        n = snprintf(out, n_max, "%s/.cache/dovetail/plan/%016llx.txt", home, hash);
    return n > 0 && (size_t)n < n_max;
}

/* ---- the record as a list of numbers ---- */

enum {
    N_NUMBERS = 2 * (DT_TREE_MAX + 1) + 2 * DT_N_BELIEFS + 3 * DT_PLAN_STATES + 4,
};

/* Visits every number of a record in order: into or out of `numbers`. */
static void convert(dt_plan_record *record, double *numbers, bool out_of_record) {
    int n = 0;
#define VISIT(type, field)                                                                         \
    do {                                                                                           \
        if (out_of_record)                                                                         \
            numbers[n++] = (double)(field);                                                        \
        else                                                                                       \
            (field) = (type)numbers[n++];                                                          \
    } while (0)
    for (int i = 0; i <= DT_TREE_MAX; i++)
        VISIT(double, record->pass_ns[i]);
    for (int i = 0; i <= DT_TREE_MAX; i++)
        VISIT(double, record->draft_ns[i]);
    for (int i = 0; i < DT_N_BELIEFS; i++) {
        VISIT(float, record->beliefs[i].hits);
        VISIT(float, record->beliefs[i].trials);
    }
    for (int i = 0; i < DT_PLAN_STATES; i++) {
        VISIT(double, record->values[i].n);
        VISIT(double, record->values[i].tokens);
        VISIT(double, record->values[i].cost_ns);
    }
    VISIT(double, record->try_at);
    VISIT(double, record->tokens);
    VISIT(double, record->time_ns);
    VISIT(double, record->n_tokens);
#undef VISIT
}

/* ---- files ---- */

static bool parse(double *numbers, char *text, const char *key) {
    char *sum = strstr(text, "\nsum ");
    if (!sum)
        return false;
    unsigned long long want = strtoull(sum + 5, NULL, 16);
    if (want != hash_text(text, (size_t)(sum + 1 - text)))
        return false;
    char head[64];
    int n_head = snprintf(head, sizeof head, "dovetail plan %d\n", VERSION);
    size_t n_key = strlen(key);
    if (strncmp(text, head, (size_t)n_head) != 0 || strncmp(text + n_head, key, n_key) != 0 ||
        text[(size_t)n_head + n_key] != '\n')
        return false;
    char *at = text + n_head + n_key + 1;
    for (int i = 0; i < N_NUMBERS; i++) {
        char *end;
        numbers[i] = strtod(at, &end);
        if (end == at || !(numbers[i] >= -1e18 && numbers[i] <= 1e18))
            return false;
        at = end;
    }
    return true;
}

bool dt_plan_record_load(dt_plan_record *out, const char *path, const char *key) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    char text[TEXT_MAX];
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    double numbers[N_NUMBERS];
    if (!parse(numbers, text, key))
        return false;
    convert(out, numbers, false);
    return true;
}

/* Makes the folders of a path; what fails shows when the file is opened. */
static void make_folders(const char *path) {
    char folder[1024];
    size_t n = strlen(path);
    if (n >= sizeof folder)
        return;
    for (size_t i = 1; i < n; i++) {
        if (path[i] != '/')
            continue;
        memcpy(folder, path, i);
        folder[i] = '\0';
        mkdir(folder, 0777);
    }
}

dt_err dt_plan_record_save(const char *path, const char *key, const dt_plan_record *record) {
    char text[TEXT_MAX], temporary[1100];
    double numbers[N_NUMBERS];
    dt_plan_record copy = *record;
    convert(&copy, numbers, true);
    size_t n = (size_t)snprintf(text, sizeof text, "dovetail plan %d\n%s\n", VERSION, key);
    for (int i = 0; i < N_NUMBERS && n + 64 < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%.9g\n", numbers[i]);
    if (n + 64 >= sizeof text)
        DT_FAIL(DT_ERR_LIMIT, "%s: the planner's record is too long", path);
    n += (size_t)snprintf(
        text + n, sizeof text - n, "sum %016llx\n", (unsigned long long)hash_text(text, n));
    make_folders(path);
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "wb");
    if (!file)
        DT_FAIL(DT_ERR_IO, "cannot write %s: %s", temporary, strerror(errno));
    bool good = fwrite(text, 1, n, file) == n;
    good = fclose(file) == 0 && good;
    if (!good || rename(temporary, path) != 0) {
        int code = errno;
        unlink(temporary);
        DT_FAIL(DT_ERR_IO, "cannot write %s: %s", path, strerror(code));
    }
    return DT_OK;
}
