#include "models/scan.h"
#include "models/topk.h"
#include "src/base/mem.h"
#include "src/base/noise.h"
#include "tests/test.h"

enum { N_MAX = 152064 };

static float logits[N_MAX];
static double values[N_MAX];
static bool used[N_MAX];

static void fill(test_rng *rng, int n, float spread) {
    for (int i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++)
            sum += test_rng_float(rng);
        logits[i] = spread * sum;
    }
}

/* The k largest of values[0 .. n-1], ties to the smaller id, one by one. */
static int slow_topk(int32_t *out, int n, int k) {
    memset(used, 0, sizeof used);
    int got = 0;
    for (; got < k; got++) {
        int best = -1;
        for (int i = 0; i < n; i++) {
            if (!used[i] && values[i] > -1e300 && (best < 0 || values[i] > values[best]))
                best = i;
        }
        if (best < 0)
            break;
        used[best] = true;
        out[got] = best;
    }
    return got;
}

static void check_tokens(const dt_topk *got, int n, int k, const char *what) {
    int32_t want[DT_TOPK_MAX];
    int n_want = slow_topk(want, n, k);
    CHECK_MSG(got->n == n_want, "%s: %d tokens, want %d", what, got->n, n_want);
    for (int i = 0; i < got->n && i < n_want; i++)
        CHECK_MSG(got->tokens[i] == want[i], "%s: place %d is token %d, want %d", what, i,
            (int)got->tokens[i], (int)want[i]);
}

static void test_greedy(test_rng *rng) {
    static const int sizes[] = {1, 2, 15, 16, 17, 63, 64, 65, 1000, 5003};
    for (int round = 0; round < 200; round++) {
        int n = sizes[test_rng_below(rng, DT_COUNT(sizes))];
        int k = 1 + (int)test_rng_below(rng, DT_TOPK_MAX);
        fill(rng, n, 4.0f);
        for (int i = 0; i < n; i++) {
            if (round % 3 == 0)
                logits[i] = (float)(int)logits[i]; /* many ties */
            if (round % 5 == 0 && test_rng_below(rng, 3) == 0)
                logits[i] = __builtin_nanf("");
            if (round % 7 == 0 && test_rng_below(rng, 3) == 0)
                logits[i] = -__builtin_inff();
        }
        int n_allowed = 1 + (int)test_rng_below(rng, (uint32_t)n);
        dt_topk got;
        dt_topk_row(&got, logits, n, &(dt_topk_args){.k = k, .n_allowed = n_allowed});
        double total = 0.0;
        for (int i = 0; i < n_allowed; i++) {
            values[i] = logits[i] == logits[i] ? (double)logits[i] : -1e308 * 10;
            total += logits[i] == logits[i] ? dt_exp_f64((double)logits[i]) : 0.0;
        }
        check_tokens(&got, n_allowed, k, "greedy");
        for (int i = 0; i < got.n; i++) {
            double error =
                (double)got.scores[i] - ((double)logits[got.tokens[i]] - dt_log_f64(total));
            CHECK_MSG(error < 2e-5 && error > -2e-5, "score off by %g", error);
            CHECK(got.scores[i] <= 1e-6f);
        }
    }
    for (int i = 0; i < 100; i++)
        logits[i] = __builtin_nanf("");
    dt_topk got;
    dt_topk_row(&got, logits, 100, &(dt_topk_args){.k = 3, .n_allowed = 100});
    CHECK(got.n == 0);
}

static void test_noise(test_rng *rng) {
    for (int round = 0; round < 100; round++) {
        int n = 1 + (int)test_rng_below(rng, 4000);
        fill(rng, n, 1.0f + (float)(round % 9));
        dt_topk_args args = {
            .k = 1 + (int)test_rng_below(rng, DT_TOPK_MAX),
            .n_allowed = n,
            .temperature = 0.3f + 0.1f * (float)(round % 12),
            .noise = true,
            .seed = test_rng_next(rng),
            .position = round,
            .tau = 1.0f,
        };
        dt_topk got;
        dt_topk_row(&got, logits, n, &args);
        for (int i = 0; i < n; i++)
            values[i] = (double)logits[i] / (double)args.temperature +
                        dt_noise_gumbel(dt_noise_bits(args.seed, args.position, i));
        check_tokens(&got, n, args.k, "noise");
        for (int i = 0; i < got.n; i++) {
            CHECK(got.scores[i] <= 1e-6f);
            CHECK(i == 0 || got.scores[i] <= got.scores[i - 1]);
        }
        args.noise = false;
        dt_topk_row(&got, logits, n, &args);
        for (int i = 0; i < n; i++)
            values[i] = (double)logits[i];
        check_tokens(&got, n, args.k, "no noise");
        args.noise = true;
        args.top_k = 4;
        dt_topk_row(&got, logits, n, &args);
        int32_t want[DT_TOPK_MAX];
        int n_want = slow_topk(want, n, 4);
        CHECK(got.n == DT_MIN(n_want, args.k));
        for (int i = 0; i < got.n; i++)
            CHECK(used[got.tokens[i]]); /* one of the four best logits */
        args.top_k = 0;
        args.min_p = 1.0f;
        dt_topk_row(&got, logits, n, &args);
        CHECK(got.n >= 1 && logits[got.tokens[0]] == logits[want[0]]);
    }
}

static void test_noise_blocks(test_rng *rng) {
    for (int round = 0; round < 100; round++) {
        uint64_t seed = test_rng_next(rng);
        int64_t position = (int64_t)(test_rng_next(rng) >> (1 + round % 60));
        int32_t first = (int32_t)test_rng_below(rng, N_MAX);
        uint32_t bits[DT_SCAN_BLOCK];
        dt_scan_noise(bits, seed, position, first);
        for (int i = 0; i < DT_SCAN_BLOCK; i++)
            CHECK(bits[i] == dt_noise_bits(seed, position, first + i));
        double gap = (double)test_rng_below(rng, 2400) * 0.01;
        uint32_t bound = dt_scan_bits_bound(gap);
        CHECK(bound == UINT32_MAX || dt_noise_gumbel(bound + 1) < gap);
    }
}

static void time_row(test_rng *rng, float spread, const dt_topk_args *args, const char *what) {
    fill(rng, N_MAX, spread);
    dt_topk got;
    int64_t best = INT64_MAX;
    for (int i = 0; i < 20; i++) {
        int64_t start = dt_time_ns();
        dt_topk_row(&got, logits, N_MAX, args);
        best = DT_MIN(best, dt_time_ns() - start);
    }
    printf("%s: %.0f us a row of %d\n", what, (double)best * 1e-3, N_MAX);
}

int main(void) {
    test_rng rng = test_rng_open();
    test_greedy(&rng);
    test_noise(&rng);
    test_noise_blocks(&rng);
    dt_topk_args args = {.k = 4, .n_allowed = N_MAX, .tau = 1.0f, .seed = 3, .position = 9};
    time_row(&rng, 4.0f, &args, "greedy");
    args.temperature = 0.8f;
    args.noise = true;
    time_row(&rng, 4.0f, &args, "noise");
    args.top_p = 0.95f;
    time_row(&rng, 4.0f, &args, "noise, top-p");
    return test_end();
}
