#include "models/topk.h"

#include <string.h>

#include "models/scan.h"
#include "src/base/noise.h"

enum { N_RANKED = 64 }; /* the longest list kept; DT_TOPK_FILTERED at most */

_Static_assert((int)DT_TOPK_FILTERED <= (int)N_RANKED, "the list holds the filtered candidates");

typedef struct ranking {
    int n, n_max;
    int32_t tokens[N_RANKED];
    double values[N_RANKED]; /* descending; ties in the order of insertion */
} ranking;

static inline void rank_insert(ranking *list, int32_t token, double value) {
    if (list->n == list->n_max && !(value > list->values[list->n - 1]))
        return;
    int at = list->n < list->n_max ? list->n++ : list->n - 1;
    for (; at > 0 && value > list->values[at - 1]; at--) {
        list->values[at] = list->values[at - 1];
        list->tokens[at] = list->tokens[at - 1];
    }
    list->values[at] = value;
    list->tokens[at] = token;
}

/* The best logits of the row. */
static void rank_logits(ranking *list, const dt_scan *scan, const float *logits) {
    float limit = -__builtin_inff();
    for (int b = 0; b < scan->n_blocks; b++) {
        /* Ids ascend, so a later equal never wins; -infinity is no candidate, nor is NaN. */
        if (!(scan->block[b] > limit))
            continue;
        int end = DT_MIN((b + 1) * scan->n_block, scan->n);
        for (int i = b * scan->n_block; i < end; i++) {
            if (!(logits[i] > limit))
                continue;
            rank_insert(list, i, (double)logits[i]);
            if (list->n == list->n_max)
                limit = (float)list->values[list->n - 1];
        }
    }
}

static void give(dt_topk *out, const ranking *list, int k, double scale, double log_sum) {
    out->n = DT_MIN(k, list->n);
    for (int i = 0; i < out->n; i++) {
        out->tokens[i] = list->tokens[i];
        out->scores[i] = (float)(list->values[i] * scale - log_sum);
    }
}

/* log of the sum of e^(value * scale) over the list, whose first value is the largest. */
static double log_weight(const ranking *list, double scale) {
    double sum = 0.0;
    for (int i = 0; i < list->n; i++)
        sum += dt_exp_f64((list->values[i] - list->values[0]) * scale);
    return dt_log_f64(sum) + list->values[0] * scale;
}

/* Cuts the descending list of l / T as the target's filters would. */
static void filter(ranking *list, const dt_topk_args *args) {
    if (args->top_k > 0)
        list->n = DT_MIN(list->n, args->top_k);
    double weights[N_RANKED];
    double sum = 0.0;
    for (int i = 0; i < list->n; i++)
        sum += weights[i] = dt_exp_f64(list->values[i] - list->values[0]);
    if (args->top_p > 0.0f && args->top_p < 1.0f) {
        double limit = sum * (double)args->top_p;
        double reached = 0.0;
        int n = 0;
        while (n < list->n && reached < limit)
            reached += weights[n++];
        list->n = DT_MAX(n, 1);
    }
    while (list->n > 1 && weights[list->n - 1] < (double)args->min_p)
        list->n--;
}

/* The filtered list gets its noise. */
static void add_noise(ranking *list, const ranking *near, const dt_topk_args *args) {
    for (int i = 0; i < near->n; i++) {
        uint32_t bits = dt_noise_bits(args->seed, args->position, near->tokens[i]);
        rank_insert(list, near->tokens[i], near->values[i] + dt_noise_gumbel(bits));
    }
}

/* How far below the best logit (in units of the temperature) blocks are looked into. */
static float noisy_reach(const dt_scan *scan, float inverse) {
    static const float reaches[] = DT_TOPK_REACHES;
    for (int i = 0; i < (int)DT_COUNT(reaches); i++) {
        int n = 0;
        for (int b = 0; b < scan->n_blocks; b++)
            n += (scan->best - scan->block[b]) * inverse <= reaches[i];
        if (n <= DT_TOPK_NOISE_BLOCKS)
            return reaches[i];
    }
    return reaches[DT_COUNT(reaches) - 1];
}

/* Tokens first .. end-1, at most DT_SCAN_BLOCK, none of whose logits is above `top`; returns how
 * many of them got noise. */
static int rank_noisy(ranking *list, const float *logits, const dt_topk_args *args, float limit,
    float top, int first, int end) {
    int32_t near[DT_SCAN_BLOCK];
    int n = 0;
    for (int i = first; i < end; i++) {
        if (logits[i] >= limit)
            near[n++] = i;
    }
    double temperature = (double)args->temperature;
    uint32_t bound = UINT32_MAX;
    if (list->n == list->n_max)
        bound = dt_scan_bits_bound(list->values[list->n - 1] - (double)top / temperature - 1e-6);
    uint32_t bits[DT_SCAN_BLOCK];
    bool all = n > 20; /* what noise of a whole block costs */
    if (all)
        dt_scan_noise(bits, args->seed, args->position, first);
    for (int i = 0; i < n; i++) {
        uint32_t r =
            all ? bits[near[i] - first] : dt_noise_bits(args->seed, args->position, near[i]);
        if (r <= bound)
            rank_insert(list, near[i], (double)logits[near[i]] / temperature + dt_noise_gumbel(r));
    }
    return n;
}

static void rank_by_noise(
    ranking *list, const dt_scan *scan, const float *logits, const dt_topk_args *args) {
    float inverse = 1.0f / args->temperature;
    float limit = scan->best - noisy_reach(scan, inverse) * args->temperature;
    int n_noise = 0;
    for (int b = 0; b < scan->n_blocks && n_noise < DT_TOPK_NOISE_TOKENS; b++) {
        if (!(scan->block[b] >= limit))
            continue;
        int end = DT_MIN((b + 1) * scan->n_block, scan->n);
        for (int first = b * scan->n_block; first < end; first += DT_SCAN_BLOCK)
            n_noise += rank_noisy(list, logits, args, limit, scan->block[b], first,
                DT_MIN(first + DT_SCAN_BLOCK, end));
    }
}

dt_topk_mode dt_topk_mode_of(const dt_topk_args *args) {
    if (!(args->temperature > 0.0f) || !args->noise)
        return DT_TOPK_PLAIN;
    bool filters =
        args->top_k > 0 || (args->top_p > 0.0f && args->top_p < 1.0f) || args->min_p > 0.0f;
    return filters ? DT_TOPK_BY_LIST : DT_TOPK_BY_NOISE;
}

/* Of a logit, or of z where there is noise. */
static double score_scale(const dt_topk_args *args) {
    double tau = args->tau > 0.0f ? (double)args->tau : 1.0;
    if (dt_topk_mode_of(args) != DT_TOPK_PLAIN)
        return 1.0 / tau;
    return args->temperature > 0.0f ? 1.0 / ((double)args->temperature * tau) : 1.0;
}

float dt_topk_scale(const dt_topk_args *args) {
    return (float)score_scale(args);
}

void dt_topk_finish(dt_topk *out, const int32_t *tokens, const double *values, int n, float best,
    int64_t sum, const dt_topk_args *args) {
    double scale = score_scale(args);
    ranking list = {.n = DT_MIN(n, N_RANKED), .n_max = N_RANKED};
    memcpy(list.tokens, tokens, (size_t)list.n * sizeof *tokens);
    memcpy(list.values, values, (size_t)list.n * sizeof *values);
    out->n = 0;
    if (list.n == 0)
        return;
    switch (dt_topk_mode_of(args)) {
    case DT_TOPK_PLAIN:
        give(out, &list, args->k, scale, dt_log_f64((double)sum * 0x1p-32) + (double)best * scale);
        return;
    case DT_TOPK_BY_LIST: {
        ranking noisy = {.n_max = N_RANKED};
        for (int i = 0; i < list.n; i++)
            list.values[i] /= (double)args->temperature;
        filter(&list, args);
        add_noise(&noisy, &list, args);
        give(out, &noisy, args->k, scale, log_weight(&noisy, scale));
        return;
    }
    case DT_TOPK_BY_NOISE:
        /* The sum of all e^z is dominated by its largest terms, which are in the list. */
        give(out, &list, args->k, scale, log_weight(&list, scale));
        return;
    }
}

void dt_topk_row(dt_topk *out, const float *logits, int n_vocab, const dt_topk_args *args) {
    dt_scan scan;
    dt_scan_row(&scan, logits, DT_MIN(args->n_allowed, n_vocab));
    out->n = 0;
    float infinity = __builtin_inff();
    if (!(scan.best > -infinity && scan.best < infinity))
        return; /* nothing to tell apart */
    ranking list = {.n_max = DT_MIN(args->k, DT_TOPK_MAX)};
    int64_t sum = 0;
    switch (dt_topk_mode_of(args)) {
    case DT_TOPK_PLAIN:
        rank_logits(&list, &scan, logits);
        sum = dt_scan_exp_sum(&scan, logits, dt_topk_scale(args), DT_TOPK_SUM_REACH);
        break;
    case DT_TOPK_BY_LIST:
        list.n_max = DT_TOPK_FILTERED;
        rank_logits(&list, &scan, logits);
        break;
    case DT_TOPK_BY_NOISE:
        list.n_max = DT_TOPK_WEIGHED;
        rank_by_noise(&list, &scan, logits, args);
        break;
    }
    dt_topk_finish(out, list.tokens, list.values, list.n, scan.best, sum, args);
}
