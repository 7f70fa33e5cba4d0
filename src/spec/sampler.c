#include "src/spec/sampler.h"

#include <string.h>

#include "src/base/mem.h"
#include "src/base/noise.h"

void dt_sampling_default(dt_sampling *out) {
    *out = (dt_sampling){.top_p = 1.0f, .repeat_penalty = 1.0f, .penalty_window = 64};
}

/* Whether low <= value <= high; false for NaN. */
static bool within(float value, float low, float high) {
    return value >= low && value <= high;
}

dt_err dt_sampling_check(const dt_sampling *o) {
    if (!within(o->temperature, 0.0f, 1e6f))
        DT_FAIL(DT_ERR_INPUT, "temperature: want 0 or more, got %g", (double)o->temperature);
    if (o->temperature > 0.0f && o->temperature < 1e-4f)
        DT_FAIL(
            DT_ERR_INPUT, "temperature: want 0 or at least 0.0001, got %g", (double)o->temperature);
    if (o->top_k < 0)
        DT_FAIL(DT_ERR_INPUT, "top-k: want 0 (off) or more, got %d", o->top_k);
    if (!within(o->top_p, 1e-6f, 1.0f))
        DT_FAIL(DT_ERR_INPUT, "top-p: want above 0 and at most 1, got %g", (double)o->top_p);
    if (!within(o->min_p, 0.0f, 1.0f))
        DT_FAIL(DT_ERR_INPUT, "min-p: want 0 to 1, got %g", (double)o->min_p);
    if (!within(o->repeat_penalty, 1e-3f, 1e3f))
        DT_FAIL(
            DT_ERR_INPUT, "repeat penalty: want 0.001 to 1000, got %g", (double)o->repeat_penalty);
    if (!within(o->presence_penalty, -1e3f, 1e3f))
        DT_FAIL(DT_ERR_INPUT, "presence penalty: want -1000 to 1000, got %g",
            (double)o->presence_penalty);
    if (!within(o->frequency_penalty, -1e3f, 1e3f))
        DT_FAIL(DT_ERR_INPUT, "frequency penalty: want -1000 to 1000, got %g",
            (double)o->frequency_penalty);
    if (o->penalty_window < 0)
        DT_FAIL(DT_ERR_INPUT, "penalty window: want 0 or more, got %d", o->penalty_window);
    for (int i = 0; i < o->n_biases; i++) {
        float bias = o->biases[i].bias;
        if (!within(bias, -1e6f, 1e6f) && bias != -__builtin_inff())
            DT_FAIL(DT_ERR_INPUT, "logit bias of token %d: want -1e6 to 1e6 or -infinity, got %g",
                (int)o->biases[i].token, (double)bias);
    }
    return DT_OK;
}

dt_err dt_sampler_init(dt_sampler *sampler, const dt_sampling *options, int n_vocab) {
    *sampler = (dt_sampler){.options = *options, .n_vocab = n_vocab};
    DT_TRY(dt_sampling_check(options));
    sampler->n_window = options->penalty_window;
    sampler->penalties = sampler->n_window > 0 &&
                         (options->repeat_penalty != 1.0f || options->presence_penalty != 0.0f ||
                             options->frequency_penalty != 0.0f);
    for (int i = 0; i < options->n_biases; i++) {
        int32_t token = options->biases[i].token;
        if (token < 0 || token >= n_vocab)
            DT_FAIL(
                DT_ERR_INPUT, "logit bias: want tokens 0 to %d, got %d", n_vocab - 1, (int)token);
    }
    size_t n = (size_t)n_vocab;
    dt_err err = DT_OK;
    if (sampler->penalties)
        err = dt_mem_alloc(&sampler->counts, n * sizeof *sampler->counts);
    if (err == DT_OK && (sampler->penalties || options->n_biases > 0))
        err = dt_mem_alloc(&sampler->changed, n * sizeof *sampler->changed);
    if (err == DT_OK && options->temperature > 0.0f &&
        (options->top_k > 0 || options->top_p < 1.0f))
        err = dt_mem_alloc(&sampler->candidates, n * sizeof *sampler->candidates);
    if (err != DT_OK)
        dt_sampler_deinit(sampler);
    return err;
}

void dt_sampler_deinit(dt_sampler *sampler) {
    dt_mem_free(sampler->counts);
    dt_mem_free(sampler->changed);
    dt_mem_free(sampler->candidates);
    sampler->counts = NULL;
    sampler->changed = NULL;
    sampler->candidates = NULL;
}

/* Penalties, on the sampler's own copy of the logits. */
static void penalise(dt_sampler *s, const int32_t *tokens, int64_t n_tokens) {
    float *out = s->changed;
    int64_t first = n_tokens > s->n_window ? n_tokens - s->n_window : 0;
    for (int64_t i = first; i < n_tokens; i++)
        s->counts[tokens[i]]++;
    /* The count is taken back at the token's first sight, so that each is penalised once. */
    for (int64_t i = first; i < n_tokens; i++) {
        int32_t token = tokens[i];
        int32_t count = s->counts[token];
        if (count == 0)
            continue;
        s->counts[token] = 0;
        float l = out[token];
        float repeat = s->options.repeat_penalty;
        l = l > 0.0f ? l / repeat : l * repeat;
        out[token] =
            l - (s->options.presence_penalty + (float)count * s->options.frequency_penalty);
    }
}

/* ---- heaps of token ids over their logits ---- */

/* Whether token a comes before b when the best come first. */
static inline bool before(const float *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

/* Lets heap[at] sink; the top is the best (`best_on_top`) or the worst of all. */
static void sink(int32_t *heap, int n, int at, const float *logits, bool best_on_top) {
    int32_t moving = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(logits, heap[child + 1], heap[child]) == best_on_top)
            child++;
        if (before(logits, moving, heap[child]) == best_on_top)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* The k best into candidates, best first; returns how many (fewer where logits are NaN). */
static int select_top_k(dt_sampler *s, const float *logits, int k) {
    int32_t *heap = s->candidates;
    int n = 0;
    for (int b = 0; b < s->scan.n_blocks; b++) {
        /* Ids ascend, so an equal one that comes later never replaces. */
        if (n == k && !(s->scan.block[b] > logits[heap[0]]))
            continue;
        int end = DT_MIN((b + 1) * s->scan.n_block, s->scan.n);
        for (int i = b * s->scan.n_block; i < end; i++) {
            if (logits[i] != logits[i])
                continue;
            if (n < k) {
                heap[n++] = i;
                for (int at = n / 2 - 1; n == k && at >= 0; at--)
                    sink(heap, n, at, logits, false);
            } else if (logits[i] > logits[heap[0]]) {
                heap[0] = i;
                sink(heap, n, 0, logits, false);
            }
        }
    }
    for (int at = n / 2 - 1; n < k && at >= 0; at--)
        sink(heap, n, at, logits, false);
    for (int left = n - 1; left > 0; left--) {
        int32_t worst = heap[0];
        heap[0] = heap[left];
        heap[left] = worst;
        sink(heap, left, 0, logits, false);
    }
    return n;
}

/* ---- filters: each lowers the number of tokens allowed from the worst end ---- */

/* Tokens allowed: those before or at (logit, token) in the order of `before`, with logits from
 * `floor` on. */
typedef struct cut {
    float logit;
    int32_t token;
    double floor;
} cut;

static inline bool allows(const cut *c, float logit, int32_t token) {
    return (logit > c->logit || (logit == c->logit && token <= c->token)) &&
           (double)logit >= c->floor;
}

static void cut_at(cut *c, const float *logits, int32_t token) {
    c->logit = logits[token];
    c->token = token;
}

/* Top-k, and top-p of what it leaves. */
static void cut_top_k(cut *c, dt_sampler *s, const float *logits) {
    int n = select_top_k(s, logits, DT_MIN(s->options.top_k, s->n_vocab));
    if (s->options.top_p < 1.0f) {
        float inverse = 1.0f / s->options.temperature;
        double sum = 0.0, reached = 0.0;
        for (int i = 0; i < n; i++)
            sum += (double)dt_scan_exp((logits[s->candidates[i]] - s->scan.best) * inverse);
        int kept = 0;
        while (kept < n && reached < sum * (double)s->options.top_p)
            reached +=
                (double)dt_scan_exp((logits[s->candidates[kept++]] - s->scan.best) * inverse);
        n = DT_MAX(kept, 1);
    }
    cut_at(c, logits, s->candidates[n - 1]);
}

/* Top-p of a whole row: weights are summed by buckets of distance to the best, and only the bucket
 * in which the sum is reached is put in order. Tokens beyond the last bucket (e^-40) weigh nothing.
 */
enum { N_BUCKETS = 160 };
static const float BUCKETS_PER_T = 4.0f;

static inline int bucket_of(float distance) {
    return distance < (float)N_BUCKETS / BUCKETS_PER_T ? (int)(distance * BUCKETS_PER_T)
                                                       : N_BUCKETS;
}

static void cut_top_p(cut *c, dt_sampler *s, const float *logits) {
    const dt_scan *scan = &s->scan;
    float inverse = 1.0f / s->options.temperature;
    double buckets[N_BUCKETS + 1] = {0};
    for (int b = 0; b < scan->n_blocks; b++) {
        if (bucket_of((scan->best - scan->block[b]) * inverse) == N_BUCKETS)
            continue;
        int end = DT_MIN((b + 1) * scan->n_block, scan->n);
        for (int first = b * scan->n_block; first < end; first += DT_SCAN_BLOCK) {
            int n = DT_MIN(DT_SCAN_BLOCK, end - first);
            float weights[DT_SCAN_BLOCK];
            if (n == DT_SCAN_BLOCK)
                dt_scan_exp_block(weights, logits + first, scan->best, inverse);
            for (int i = 0; n < DT_SCAN_BLOCK && i < n; i++)
                weights[i] = dt_scan_exp((logits[first + i] - scan->best) * inverse);
            for (int i = 0; i < n; i++)
                buckets[bucket_of((scan->best - logits[first + i]) * inverse)] +=
                    (double)weights[i];
        }
    }
    double sum = 0.0, reached = 0.0;
    for (int i = 0; i < N_BUCKETS; i++)
        sum += buckets[i];
    double limit = sum * (double)s->options.top_p;
    int last = 0;
    while (last < N_BUCKETS - 1 && reached + buckets[last] < limit)
        reached += buckets[last++];

    int n = 0;
    int32_t *heap = s->candidates;
    for (int b = 0; b < scan->n_blocks; b++) {
        if (bucket_of((scan->best - scan->block[b]) * inverse) > last)
            continue;
        int end = DT_MIN((b + 1) * scan->n_block, scan->n);
        for (int i = b * scan->n_block; i < end; i++) {
            if (bucket_of((scan->best - logits[i]) * inverse) == last)
                heap[n++] = i;
        }
    }
    for (int at = n / 2 - 1; at >= 0; at--)
        sink(heap, n, at, logits, true);
    while (n > 0) {
        int32_t best = heap[0];
        cut_at(c, logits, best);
        reached += (double)dt_scan_exp((logits[best] - scan->best) * inverse);
        if (reached >= limit)
            break;
        heap[0] = heap[--n];
        sink(heap, n, 0, logits, true);
    }
}

/* ---- the draw ---- */

typedef struct draw {
    const float *logits;
    double temperature;
    int64_t position;
    uint64_t seed;
    int32_t token; /* best so far, -1 before the first */
    double value;
    double limit; /* a token whose logit is below cannot win */
} draw;

static void consider(draw *d, int32_t token, uint32_t bits) {
    double z = (double)d->logits[token] / d->temperature + dt_noise_gumbel(bits);
    if (d->token >= 0 && !(z > d->value || (z == d->value && token < d->token)))
        return;
    d->token = token;
    d->value = z;
    /* Rounding of the quotient and the sum stays far below this margin. */
    double limit = (z - DT_NOISE_MAX) * d->temperature;
    d->limit = limit - ((limit < 0.0 ? -limit : limit) + 1.0) * 1e-9;
}

/* Tokens first .. end-1, at most DT_SCAN_BLOCK, none of whose logits is above `top`. */
static void draw_block(draw *d, const cut *c, float top, int first, int end) {
    float low = DT_MAX((float)d->limit, c->logit);
    int n_near = 0;
    for (int i = first; i < end; i++)
        n_near += d->logits[i] >= low;
    /* Noise of a whole block costs some 20 single ones. Hardly any passes the bound, so it is
     * looked at first. */
    uint32_t bits[DT_SCAN_BLOCK];
    bool whole = n_near > 20;
    if (whole)
        dt_scan_noise(bits, d->seed, d->position, first);
    uint32_t bound = dt_scan_bits_bound(d->value - (double)top / d->temperature - 1e-6);
    for (int i = first; i < end; i++) {
        if (whole && bits[i - first] > bound)
            continue;
        float l = d->logits[i];
        if (!((double)l >= d->limit && allows(c, l, i)))
            continue;
        uint32_t r = whole ? bits[i - first] : dt_noise_bits(d->seed, d->position, i);
        if (r <= bound)
            consider(d, i, r);
    }
}

int32_t dt_sampler_next(
    dt_sampler *s, const float *logits, const int32_t *tokens, int64_t n_tokens) {
    const dt_sampling *o = &s->options;
    if (s->changed != NULL) {
        memcpy(s->changed, logits, (size_t)s->n_vocab * sizeof *logits);
        for (int i = 0; i < o->n_biases; i++)
            s->changed[o->biases[i].token] += o->biases[i].bias;
        if (s->penalties)
            penalise(s, tokens, n_tokens);
        logits = s->changed;
    }
    dt_scan *scan = &s->scan;
    dt_scan_row(scan, logits, s->n_vocab);
    float infinity = __builtin_inff();
    int32_t best = dt_scan_argmax(scan, logits);
    s->lost = !(scan->best > -infinity && scan->best < infinity);
    if (!(o->temperature > 0.0f) || s->lost)
        return best;

    double temperature = (double)o->temperature;
    cut c = {-infinity, INT32_MAX, -(double)infinity};
    if (o->top_k > 0)
        cut_top_k(&c, s, logits);
    else if (o->top_p < 1.0f)
        cut_top_p(&c, s, logits);
    if (o->min_p > 0.0f)
        c.floor = (double)scan->best + dt_log_f64((double)o->min_p) * temperature;

    draw d = {logits, temperature, n_tokens, o->seed, -1, 0.0, 0.0};
    consider(&d, best, dt_noise_bits(o->seed, n_tokens, best));
    for (int b = 0; b < scan->n_blocks; b++) {
        float top = scan->block[b];
        int end = DT_MIN((b + 1) * scan->n_block, scan->n);
        for (int first = b * scan->n_block; first < end; first += DT_SCAN_BLOCK) {
            if ((double)top >= d.limit && top >= c.logit && (double)top >= c.floor)
                draw_block(&d, &c, top, first, DT_MIN(first + DT_SCAN_BLOCK, end));
        }
    }
    return d.token;
}
