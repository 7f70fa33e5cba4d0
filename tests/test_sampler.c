#include <math.h>

#include "src/base/mem.h"
#include "src/base/noise.h"
#include "src/spec/sampler.h"
#include "tests/test.h"

enum { N_MAX = 152064 };

static float logits[N_MAX];
static float changed[N_MAX];
static bool allowed[N_MAX];
static int32_t order[N_MAX];

static void fill(test_rng *rng, int n, float spread) {
    for (int i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++)
            sum += test_rng_float(rng);
        logits[i] = spread * sum;
    }
}

static int compare(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (changed[x] != changed[y])
        return changed[x] > changed[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

/* The definition of the header, step by step. Sets changed and allowed; false if a cut is so close
 * that rounding may decide it. */
static bool slow_filter(const dt_sampling *o, int n, const int32_t *tokens, int64_t n_tokens) {
    int n_order = 0;
    for (int i = 0; i < n; i++) {
        int count = 0;
        for (int64_t j = DT_MAX(0, n_tokens - o->penalty_window); j < n_tokens; j++)
            count += tokens[j] == i;
        float l = logits[i];
        for (int j = 0; j < o->n_biases; j++)
            l = o->biases[j].token == i ? l + o->biases[j].bias : l;
        if (count > 0) {
            l = l > 0.0f ? l / o->repeat_penalty : l * o->repeat_penalty;
            l = l - (o->presence_penalty + (float)count * o->frequency_penalty);
        }
        changed[i] = l;
        allowed[i] = false;
        if (l == l)
            order[n_order++] = i;
    }
    qsort(order, (size_t)n_order, sizeof *order, compare);
    bool clear = true;
    double t = (double)o->temperature, best = (double)changed[order[0]];
    if (o->top_k > 0)
        n_order = DT_MIN(n_order, o->top_k);
    double sum = 0.0, reached = 0.0;
    for (int i = 0; i < n_order; i++)
        sum += exp(((double)changed[order[i]] - best) / t);
    int n_kept = o->top_p < 1.0f ? 0 : n_order;
    while (n_kept < n_order && reached < sum * (double)o->top_p) {
        reached += exp(((double)changed[order[n_kept++]] - best) / t);
        clear = clear && fabs(reached / sum - (double)o->top_p) > 1e-5;
    }
    for (int i = 0; i < n_kept; i++) {
        double distance = ((double)changed[order[i]] - best) / t - log((double)o->min_p);
        allowed[order[i]] = o->min_p == 0.0f || distance >= 0.0;
        clear = clear && (o->min_p == 0.0f || i == 0 || fabs(distance) > 1e-9);
    }
    return clear;
}

static int32_t slow_next(const dt_sampling *o, int n, int64_t position) {
    int32_t token = -1;
    double value = 0.0;
    for (int i = 0; i < n; i++) {
        if (changed[i] != changed[i] || (o->temperature > 0.0f && !allowed[i]))
            continue;
        double z = (double)changed[i];
        if (o->temperature > 0.0f)
            z = z / (double)o->temperature + dt_noise_gumbel(dt_noise_bits(o->seed, position, i));
        if (token < 0 || z > value) {
            token = i;
            value = z;
        }
    }
    return token;
}

static dt_sampling random_options(test_rng *rng) {
    dt_sampling o;
    dt_sampling_default(&o);
    o.seed = test_rng_next(rng);
    uint32_t dice = test_rng_below(rng, 64);
    o.temperature = dice % 8 == 0 ? 0.0f : 0.2f + 0.25f * (float)test_rng_below(rng, 6);
    if (dice & 1)
        o.top_k = 1 + (int)test_rng_below(rng, 60);
    if (dice & 2)
        o.top_p = 0.05f + 0.1f * (float)test_rng_below(rng, 10);
    if (dice & 4)
        o.min_p = 0.02f + 0.1f * (float)test_rng_below(rng, 9);
    if (dice & 8) {
        o.repeat_penalty = 1.3f;
        o.penalty_window = 1 + (int)test_rng_below(rng, 50);
    }
    if (dice & 16) {
        o.presence_penalty = 0.7f;
        o.frequency_penalty = 0.4f;
    }
    return o;
}

/* Up to four, on few tokens, so that some get several. */
static void random_biases(test_rng *rng, dt_sampling *o, dt_logit_bias *biases, int n) {
    o->biases = biases;
    o->n_biases = test_rng_below(rng, 3) == 0 ? (int)test_rng_below(rng, 5) : 0;
    for (int i = 0; i < o->n_biases; i++) {
        biases[i].token = (int32_t)test_rng_below(rng, (uint32_t)DT_MIN(n, 6));
        biases[i].bias =
            test_rng_below(rng, 4) == 0 ? -__builtin_inff() : 6.0f * test_rng_float(rng);
    }
}

/* Against the definition, on rows with ties, NaN and infinities. */
static void test_definition(test_rng *rng) {
    static const int sizes[] = {1, 2, 17, 63, 64, 65, 129, 1000, 3001};
    int n_compared = 0;
    for (int round = 0; round < 3000; round++) {
        int n = sizes[test_rng_below(rng, DT_COUNT(sizes))];
        fill(rng, n, 0.5f + (float)(round % 6));
        for (int i = 0; i < n; i++) {
            if (round % 4 == 0)
                logits[i] = rintf(logits[i]);
            if (round % 5 == 0 && i > 0 && test_rng_below(rng, 3) == 0)
                logits[i] = test_rng_below(rng, 2) ? __builtin_nanf("") : -__builtin_inff();
        }
        int32_t tokens[80];
        int64_t n_tokens = (int64_t)test_rng_below(rng, 80);
        for (int64_t i = 0; i < n_tokens; i++)
            tokens[i] = (int32_t)test_rng_below(rng, (uint32_t)DT_MIN(n, 30));
        dt_sampling o = random_options(rng);
        dt_logit_bias biases[4];
        random_biases(rng, &o, biases, n);
        dt_sampler sampler;
        CHECK_OK(dt_sampler_init(&sampler, &o, n));
        int32_t got = dt_sampler_next(&sampler, logits, tokens, n_tokens);
        CHECK(dt_sampler_next(&sampler, logits, tokens, n_tokens) == got);
        bool clear = slow_filter(&o, n, tokens, n_tokens), lost = true;
        for (int i = 0; i < n; i++)
            lost = lost && !(changed[i] > -__builtin_inff());
        CHECK(sampler.lost == lost);
        if (clear && !lost) {
            int32_t want = slow_next(&o, n, n_tokens);
            CHECK_MSG(got == want,
                "round %d: token %d, want %d (n %d, T %g, top-k %d, top-p %g, min-p %g)", round,
                (int)got, (int)want, n, (double)o.temperature, o.top_k, (double)o.top_p,
                (double)o.min_p);
            n_compared++;
        }
        dt_sampler_deinit(&sampler);
    }
    CHECK(n_compared > 2400);
}

static void test_odd_rows(void) {
    for (int warm = 0; warm < 2; warm++) {
        dt_sampling o;
        dt_sampling_default(&o);
        o.temperature = warm ? 0.7f : 0.0f;
        dt_sampler sampler;
        CHECK_OK(dt_sampler_init(&sampler, &o, 200));
        for (int i = 0; i < 200; i++)
            logits[i] = __builtin_nanf("");
        CHECK(dt_sampler_next(&sampler, logits, NULL, 0) == 0 && sampler.lost);
        logits[150] = -__builtin_inff();
        CHECK(dt_sampler_next(&sampler, logits, NULL, 0) == 150 && sampler.lost);
        logits[160] = -3e38f;
        CHECK(dt_sampler_next(&sampler, logits, NULL, 0) == 160 && !sampler.lost);
        logits[170] = logits[180] = __builtin_inff();
        CHECK(dt_sampler_next(&sampler, logits, NULL, 0) == 170);
        dt_sampler_deinit(&sampler);
    }
}

/* 20,000 seeds at one position follow the distribution that the filters leave. */
static void test_distribution(test_rng *rng) {
    enum { N = 97, N_SEEDS = 20000 };
    for (int filter = 0; filter < 5; filter++) {
        dt_sampling o;
        dt_sampling_default(&o);
        o.temperature = 0.9f;
        if (filter == 1)
            o.top_k = 12;
        if (filter == 2)
            o.top_p = 0.85f;
        if (filter == 3)
            o.min_p = 0.03f;
        if (filter == 4)
            o.repeat_penalty = 2.0f;
        fill(rng, N, 1.5f);
        int32_t history[] = {1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
        CHECK(slow_filter(&o, N, history, 10));
        double p[N], total = 0.0;
        for (int i = 0; i < N; i++)
            total += p[i] = allowed[i] ? exp((double)changed[i] / (double)o.temperature) : 0.0;
        int seen[N] = {0};
        for (int seed = 0; seed < N_SEEDS; seed++) {
            o.seed = (uint64_t)seed * 0x9e3779b97f4a7c15u;
            dt_sampler sampler;
            CHECK_OK(dt_sampler_init(&sampler, &o, N));
            seen[dt_sampler_next(&sampler, logits, history, 10)]++;
            dt_sampler_deinit(&sampler);
        }
        /* Cells of fewer than 5 expected are put together. The statistic has mean `cells` and
         * variance 2 cells; 5 standard deviations are a chance of some 1e-6. */
        double chi2 = 0.0, rest_p = 0.0;
        int cells = -1, rest_seen = 0;
        for (int i = 0; i < N; i++) {
            double want = p[i] / total * N_SEEDS;
            CHECK(allowed[i] || seen[i] == 0);
            if (want < 5.0) {
                rest_p += want;
                rest_seen += seen[i];
                continue;
            }
            chi2 += (seen[i] - want) * (seen[i] - want) / want;
            cells++;
        }
        if (rest_p >= 5.0) {
            chi2 += (rest_seen - rest_p) * (rest_seen - rest_p) / rest_p;
            cells++;
        }
        printf("filter %d: chi-square %.1f with %d degrees of freedom\n", filter, chi2, cells);
        CHECK(cells > 3 && chi2 < cells + 5.0 * sqrt(2.0 * cells));
    }
}

/* The draft, with the same noise, chooses the target's token more often than by its own odds. */
static void test_coupling(test_rng *rng) {
    enum { N = 97, N_ROUNDS = 4000 };
    int n_coupled = 0, n_alone = 0;
    dt_sampling o;
    dt_sampling_default(&o);
    o.temperature = 0.8f;
    float draft[N];
    for (int round = 0; round < N_ROUNDS; round++) {
        fill(rng, N, 1.5f);
        for (int i = 0; i < N; i++)
            draft[i] = logits[i] + 0.4f * test_rng_float(rng);
        o.seed = test_rng_next(rng);
        dt_sampler target, own;
        CHECK_OK(dt_sampler_init(&target, &o, N));
        o.seed++;
        CHECK_OK(dt_sampler_init(&own, &o, N));
        int32_t y = dt_sampler_next(&target, logits, NULL, 0);
        n_coupled += dt_sampler_next(&target, draft, NULL, 0) == y;
        n_alone += dt_sampler_next(&own, draft, NULL, 0) == y;
        dt_sampler_deinit(&target);
        dt_sampler_deinit(&own);
    }
    printf("same token: %.3f with the same noise, %.3f with another\n",
        n_coupled / (double)N_ROUNDS, n_alone / (double)N_ROUNDS);
    CHECK(n_coupled > n_alone + N_ROUNDS / 5);
}

static void test_refusals(void) {
    dt_sampling o;
    dt_sampler sampler;
#define REFUSED(field, value, words)                                                               \
    do {                                                                                           \
        dt_sampling_default(&o);                                                                   \
        o.field = (value);                                                                         \
        CHECK_FAILS(dt_sampler_init(&sampler, &o, 10), DT_ERR_INPUT, words);                       \
    } while (0)
    REFUSED(temperature, -1.0f, "temperature");
    REFUSED(temperature, __builtin_nanf(""), "temperature");
    REFUSED(temperature, 1e-6f, "temperature");
    REFUSED(top_k, -1, "top-k");
    REFUSED(top_p, 1.5f, "top-p");
    REFUSED(min_p, -0.1f, "min-p");
    REFUSED(repeat_penalty, 0.0f, "repeat penalty");
    REFUSED(presence_penalty, __builtin_inff(), "presence penalty");
    REFUSED(frequency_penalty, -1e9f, "frequency penalty");
    REFUSED(penalty_window, -5, "penalty window");
    static const dt_logit_bias outside[] = {{10, 1.0f}, {3, __builtin_inff()}, {3, 1e7f}};
    for (int i = 0; i < 3; i++) {
        dt_sampling_default(&o);
        o.biases = &outside[i];
        o.n_biases = 1;
        CHECK_FAILS(dt_sampler_init(&sampler, &o, 10), DT_ERR_INPUT, "logit bias");
    }
}

static void time_next(test_rng *rng, const dt_sampling *o, float spread, const char *what) {
    fill(rng, N_MAX, spread);
    dt_sampler sampler;
    CHECK_OK(dt_sampler_init(&sampler, o, N_MAX));
    int32_t history[64] = {1, 2, 3};
    int64_t least = INT64_MAX;
    for (int i = 0; i < 20; i++) {
        int64_t start = dt_time_ns();
        dt_sampler_next(&sampler, logits, history, 64 - i);
        least = DT_MIN(least, dt_time_ns() - start);
    }
    printf("%s: %.0f us a token of %d\n", what, (double)least * 1e-3, N_MAX);
    dt_sampler_deinit(&sampler);
}

int main(void) {
    test_rng rng = test_rng_open();
    test_definition(&rng);
    test_odd_rows();
    test_distribution(&rng);
    test_coupling(&rng);
    test_refusals();
    dt_sampling o;
    dt_sampling_default(&o);
    time_next(&rng, &o, 4.0f, "greedy");
    o.repeat_penalty = 1.1f;
    time_next(&rng, &o, 4.0f, "greedy, penalties");
    o.repeat_penalty = 1.0f;
    o.temperature = 0.8f;
    time_next(&rng, &o, 4.0f, "T = 0.8");
    time_next(&rng, &o, 2.0f, "T = 0.8, flat");
    o.top_p = 0.95f;
    time_next(&rng, &o, 4.0f, "top-p");
    time_next(&rng, &o, 2.0f, "top-p, flat");
    o.top_k = 40;
    time_next(&rng, &o, 4.0f, "top-k, top-p");
    return test_end();
}
