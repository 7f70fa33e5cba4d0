#include "src/spec/plan.h"

#include "src/base/fmath.h"

enum {
    N_TRIALS_MAX = 200,  /* how far back a belief looks */
    N_VALUE_MAX = 24,    /* steps that a value looks back on */
    N_WINDOW = 16,       /* drafted steps of one comparison with plain decoding */
    N_BEFORE_PROBE = 4,  /* steps before the first plain one is spent on measuring */
    N_PLAIN_STALE = 512, /* steps after which the plain time is measured again */
    TRY_FIRST = 16,      /* steps without the draft model before it is tried again */
    TRY_MAX = 1024,
    N_MERIT = 64,  /* steps for which a success of the model lets it be tried elsewhere */
    REST_MIN = 32, /* tokens */
    REST_MAX = 1024,
    N_LEFT_UNKNOWN = 256, /* tokens expected of an answer without a budget */
    N_LOOK = 6,     /* steps in which the n-gram shows what it can do, before a prompt is read */
    N_UNPROVEN = 6, /* steps of a model that nothing is known of, which are kept short */
    N_BEHIND_SMALL = DT_TREE_MAX, /* tokens that one forward of the draft reads */
};

/* Steps that the price of time looks back on: in this answer, in all, and what the latter count. */
static const double N_STEPS_ANSWER = 48.0, N_STEPS_ALL = 400.0, N_STEPS_RECALLED = 8.0;
/* Beliefs before anything was seen, as so many trials. */
static const float N_PRIOR = 6.0f;
/* A draft model that nothing is known of: accepted tokens a step, in so many steps. */
static const double VALUE_PRIOR = 1.5, N_VALUE_PRIOR = 1.0;
/* Logarithms of 0.67 and 0.1: what is expanded and proposed while no time is known, and of 0.02:
 * what is expanded at all. */
static const float EXPAND_FLOOR = -0.4f, PROPOSE_FLOOR = -2.3f, EXPAND_FLOOR_SHAPED = -4.0f;

/* ---- beliefs ---- */

static const float BUCKET_ENDS[DT_BELIEF_BUCKETS - 1] = {
    0.02f, 0.05f, 0.1f, 0.2f, 0.35f, 0.5f, 0.65f, 0.8f, 0.9f, 0.96f, 0.99f};
static const float BUCKET_MEANS[DT_BELIEF_BUCKETS] = {
    0.01f, 0.03f, 0.07f, 0.14f, 0.27f, 0.42f, 0.57f, 0.72f, 0.85f, 0.93f, 0.97f, 0.99f};
static const uint8_t LENGTH_ENDS[DT_BELIEF_LENGTHS - 1] = {2, 3, 4, 6, 8, 12, 16, 24, 31};

int dt_plan_kind(float log_p, int opinion) {
    float p = log_p > -20.0f ? dt_exp_f32(log_p) : 0.0f;
    int i = 0;
    while (i < DT_BELIEF_BUCKETS - 1 && p >= BUCKET_ENDS[i])
        i++;
    return opinion + i;
}

int dt_plan_kind_match(int n) {
    int i = 0;
    while (i < DT_BELIEF_LENGTHS - 1 && n > LENGTH_ENDS[i])
        i++;
    return DT_BELIEF_MATCH + i;
}

static float prior(int kind) {
    if (kind >= DT_BELIEF_MATCH)
        return 0.4f + 0.05f * (float)(kind - DT_BELIEF_MATCH);
    if (kind == DT_BELIEF_FOREIGN)
        return 0.15f;
    float p = BUCKET_MEANS[kind % DT_BELIEF_BUCKETS];
    if (kind >= DT_BELIEF_OPPOSED)
        return p * 0.7f;
    return kind >= DT_BELIEF_AGREED ? 1.0f - (1.0f - p) * 0.5f : p * 0.97f;
}

float dt_plan_belief(const dt_plan *plan, int kind) {
    const dt_belief *b = &plan->record.beliefs[kind];
    double p = (double)(b->hits + N_PRIOR * prior(kind)) / (double)(b->trials + N_PRIOR);
    return (float)dt_log_f64(p < 1e-4 ? 1e-4 : p > 0.999 ? 0.999 : p);
}

void dt_plan_learn(dt_plan *plan, int kind, bool right) {
    dt_belief *b = &plan->record.beliefs[kind];
    if (b->trials >= N_TRIALS_MAX) {
        b->hits *= 1.0f - 1.0f / N_TRIALS_MAX;
        b->trials *= 1.0f - 1.0f / N_TRIALS_MAX;
    }
    b->hits += right ? 1.0f : 0.0f;
    b->trials += 1.0f;
}

/* ---- time ---- */

/* How time grows with rows where nothing was measured: one row to four cost the same, since the
 * weights are read once; then arithmetic takes over. From AVX-512 VNNI and AVX2 on a Zen 4 EPYC,
 * November 2026. */
static double shape(int n) {
    return DT_MAX(1.0, 0.05 + 0.19 * (double)n);
}

/* A curve known at some places, taken relative to the shape: straight between them, level beyond.
 */
static double curve_at(const double *known, int n) {
    int low = n, high = n;
    while (low > 0 && known[low] <= 0.0)
        low--;
    while (high <= DT_TREE_MAX && known[high] <= 0.0)
        high++;
    if (low == high)
        return known[low];
    if (low == 0)
        return high > DT_TREE_MAX ? 0.0 : known[high] / shape(high) * shape(n);
    double ratio = known[low] / shape(low);
    if (high <= DT_TREE_MAX)
        ratio += (known[high] / shape(high) - ratio) * (double)(n - low) / (double)(high - low);
    return ratio * shape(n);
}

/* Takes in a measurement. The other places follow half as fast: a machine that slows down slows
 * down everywhere. */
static void curve_measured(double *known, int n, double ns) {
    double before = curve_at(known, n);
    if (before <= 0.0) {
        known[n] = ns;
        return;
    }
    double ratio = ns / before;
    ratio = ratio > 2.0 ? 2.0 : ratio < 0.5 ? 0.5 : ratio;
    for (int i = 1; i <= DT_TREE_MAX; i++)
        known[i] *= 1.0 + (ratio - 1.0) * 0.05;
    if (known[n] > 0.0)
        known[n] *= 1.0 + (ratio - 1.0) * 0.1;
    else
        known[n] = ns;
}

double dt_plan_pass_ns(const dt_plan *plan, int n_rows) {
    return curve_at(plan->record.pass_ns, DT_MIN(n_rows, DT_TREE_MAX));
}

double dt_plan_draft_ns(const dt_plan *plan, int n_rows) {
    double ns = curve_at(plan->record.draft_ns, DT_MIN(n_rows, DT_TREE_MAX));
    return n_rows > DT_TREE_MAX ? ns * (double)n_rows / DT_TREE_MAX : ns;
}

void dt_plan_drafted(dt_plan *plan, int n_rows, int64_t ns) {
    curve_measured(plan->record.draft_ns, DT_MIN(n_rows, DT_TREE_MAX), (double)ns);
}

void dt_plan_expanded(dt_plan *plan, float score) {
    plan->best_child += ((double)dt_exp_f32(score) - plan->best_child) * 0.03;
}

/* Tokens that a nanosecond is worth: what the session writes, and at least what it would write
 * without proposals. 0 while that is not known, and where time is no object. */
static double price(const dt_plan *plan) {
    double plain = plan->rests ? dt_plan_pass_ns(plan, 1) : 0.0;
    if (plain <= 0.0)
        return 0.0;
    /* What earlier answers gave counts as some steps of this one. */
    double tokens = plan->tokens, time_ns = plan->time_ns;
    if (plan->record.time_ns > 0.0) {
        tokens += plan->record.tokens * N_STEPS_RECALLED / N_STEPS_ALL;
        time_ns += plan->record.time_ns * N_STEPS_RECALLED / N_STEPS_ALL;
    }
    double rate = time_ns > 0.0 ? tokens / time_ns : 0.0;
    return DT_MAX(rate, 1.0 / plain);
}

/* ---- rows ---- */

/* The n_max best nodes but the root, best first, ties by order; returns how many. */
static int rank(int32_t *order, const dt_tree_node *nodes, int n, int n_max) {
    int n_ranked = 0;
    for (int i = 1; i < n; i++) {
        float score = nodes[i].score;
        if (n_ranked == n_max && (n_max == 0 || !(score > nodes[order[n_max - 1]].score)))
            continue;
        int at = n_ranked < n_max ? n_ranked++ : n_max - 1;
        for (; at > 0 && score > nodes[order[at - 1]].score; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    return n_ranked;
}

/* How many of the nodes in this order are worth a row, and what they gain in tokens. */
static int best_rows(double *gain_out, const dt_plan *plan, const dt_tree_node *nodes,
    const int32_t *order, int n_ranked) {
    double tokens = 0.0, best = 0.0;
    double rate = price(plan), plain = dt_plan_pass_ns(plan, 1);
    int n_best = 0;
    for (int i = 0; i < n_ranked; i++) {
        float score = nodes[order[i]].score;
        if (rate <= 0.0 && score < PROPOSE_FLOOR)
            break;
        tokens += (double)dt_exp_f32(score);
        double gain = tokens - rate * (dt_plan_pass_ns(plan, i + 2) - plain);
        if (gain > best) {
            best = gain;
            n_best = i + 1;
        }
    }
    *gain_out = best;
    return n_best;
}

int dt_plan_trim(const dt_plan *plan, dt_tree_node *nodes, int n, int n_max) {
    int32_t order[DT_TREE_MAX], place[DT_TREE_MAX];
    bool keep[DT_TREE_MAX] = {true};
    if (n < 1 || n > DT_TREE_MAX)
        return n;
    int n_kept = rank(order, nodes, n, DT_MIN(n_max, DT_TREE_MAX) - 1);
    double gain = 0.0;
    if (!plan->shaped)
        n_kept = best_rows(&gain, plan, nodes, order, n_kept);
    for (int i = 0; i < n_kept; i++)
        keep[order[i]] = true;
    int n_out = 0;
    for (int i = 0; i < n; i++) {
        dt_tree_node node = nodes[i];
        /* A parent scores no lower and comes first, so it was kept too. */
        if (!keep[i] || (i > 0 && !keep[node.parent])) {
            keep[i] = false;
            continue;
        }
        node.parent = i > 0 ? place[node.parent] : -1;
        place[i] = n_out;
        nodes[n_out++] = node;
    }
    return n_out;
}

/* The model has not run in enough steps to be judged. */
static bool unproven(const dt_plan *plan) {
    double n = 0.0;
    for (int i = 0; i < DT_PLAN_STATES; i++)
        n += plan->record.values[i].n;
    return n < N_UNPROVEN;
}

bool dt_plan_expands(const dt_plan *plan, const float *scores, int n, int depth) {
    if (n == 0)
        return false;
    if (plan->shaped)
        return scores[0] >= EXPAND_FLOOR_SHAPED;
    if (plan->apart) /* it grows while verification works: what it costs is not the target's time */
        return scores[0] >= EXPAND_FLOOR_SHAPED;
    double rate = price(plan), forward = dt_plan_draft_ns(plan, n);
    if (rate <= 0.0 || forward <= 0.0)
        return scores[0] >= EXPAND_FLOOR;
    if (unproven(plan) && depth > 0)
        return false;
    double reached = 0.0;
    for (int i = 0; i < n; i++)
        reached += (double)dt_exp_f32(scores[i]);
    double row = dt_plan_pass_ns(plan, depth + 2) - dt_plan_pass_ns(plan, depth + 1);
    return reached * plan->best_child > rate * (forward + DT_MAX(row, 0.0));
}

/* ---- which source ---- */

/* Tokens and time beyond a plain step's that running the draft model is expected to bring. */
static double model_value(const dt_plan *plan, int state, double rate) {
    const dt_plan_value *values = plan->record.values;
    double n = N_VALUE_PRIOR;
    double tokens = VALUE_PRIOR * n;
    double cost =
        n * (2.0 * dt_plan_draft_ns(plan, 1) + dt_plan_pass_ns(plan, 4) - dt_plan_pass_ns(plan, 1));
    for (int i = 0; i < DT_PLAN_STATES; i++) {
        n += values[i].n;
        tokens += values[i].n * values[i].tokens;
        cost += values[i].n * values[i].cost_ns;
    }
    double value = (tokens - rate * cost) / n;
    if (state < 0)
        return value;
    const dt_plan_value *own = &values[state];
    return (own->n * (own->tokens - rate * own->cost_ns) + N_VALUE_PRIOR * value) /
           (own->n + N_VALUE_PRIOR);
}

/* Whether the answer is long enough for the draft model to read what it is behind. */
static bool promises(const dt_plan *plan, double rate, int64_t n_behind, int64_t n_left) {
    if (n_behind <= N_BEHIND_SMALL)
        return true;
    if (plan->has_ngram && !plan->apart && plan->rests && plan->n_steps < N_LOOK)
        return false;
    double n = n_left < N_LEFT_UNKNOWN || n_left < 1 << 20 ? (double)n_left : N_LEFT_UNKNOWN;
    /* Some two tokens a step, and where n-grams propose too, the model in half of them. */
    double gain = model_value(plan, -1, rate) * n * (plan->has_ngram ? 0.25 : 0.5);
    return gain > rate * dt_plan_draft_ns(plan, (int)DT_MIN(n_behind, 1 << 20));
}

/* Whether the model, which does not promise to pay now, is tried again. */
static bool tries(dt_plan *plan, int state) {
    plan->n_skipped[state]++;
    plan->n_since_model++;
    if (plan->n_since_merit >= N_MERIT) { /* it pays nowhere */
        if ((double)plan->n_since_model < plan->record.try_at)
            return false;
    } else if ((double)plan->n_skipped[state] < plan->try_state[state]) {
        return false;
    }
    plan->n_skipped[state] = 0;
    plan->try_state[state] = DT_MIN(2.0 * plan->try_state[state], (double)TRY_MAX);
    plan->record.try_at = DT_MIN(2.0 * plan->record.try_at, (double)TRY_MAX);
    return true;
}

static dt_plan_mode choose_source(
    dt_plan *plan, double ngram_gain, bool ngram, int64_t n_behind, int64_t n_left) {
    dt_plan_mode without = ngram ? DT_PLAN_NGRAM : DT_PLAN_PLAIN;
    if (!plan->has_model)
        return without;
    if (plan->shaped || (!plan->rests && !plan->has_ngram))
        return DT_PLAN_MODEL;
    double rate = price(plan);
    if (!promises(plan, rate, n_behind, n_left))
        return without;
    double value = model_value(plan, plan->state, rate);
    if (value > ngram_gain || (unproven(plan) && plan->state == 0)) {
        plan->n_skipped[plan->state] = 0;
        plan->try_state[plan->state] = TRY_FIRST;
        if (plan->record.values[plan->state].n >= 2.0) {
            plan->n_since_merit = 0;
            plan->record.try_at = TRY_FIRST;
        }
    } else if (!tries(plan, plan->state)) {
        return without;
    }
    return DT_PLAN_MODEL;
}

dt_plan_mode dt_plan_choose(
    dt_plan *plan, const dt_tree_node *ngram, int n_ngram, int64_t n_behind, int64_t n_left) {
    int32_t order[DT_TREE_MAX];
    int n = rank(order, ngram, DT_MIN(n_ngram, DT_TREE_MAX), DT_TREE_MAX - 1);
    double gain = 0.0, offered = 0.0;
    bool any = best_rows(&gain, plan, ngram, order, n) > 0 || (plan->shaped && n > 0);
    for (int i = 0; i < n; i++)
        offered += (double)dt_exp_f32(ngram[order[i]].score);
    plan->state = offered < 0.1 ? 0 : offered < 0.7 ? 1 : offered < 1.8 ? 2 : 3;
    bool unknown = plan->record.pass_ns[1] <= 0.0 && plan->n_since_plain >= N_BEFORE_PROBE;
    if (n_left < 2)
        plan->mode = DT_PLAN_PLAIN;
    else if (plan->rests && plan->rest_left > 0)
        plan->mode = DT_PLAN_REST;
    else if (plan->rests && (unknown || plan->n_since_plain >= N_PLAIN_STALE))
        plan->mode = DT_PLAN_PLAIN;
    else
        plan->mode = choose_source(plan, gain, any, n_behind, n_left);
    if (plan->mode == DT_PLAN_MODEL)
        plan->n_since_model = 0;
    return plan->mode;
}

/* ---- what became of it ---- */

void dt_plan_init(dt_plan *plan, const dt_plan_record *record) {
    *plan = (dt_plan){
        .best_child = 0.75,
        .rest_next = REST_MIN,
        .fresh = true,
    };
    if (record)
        plan->record = *record;
    if (plan->record.try_at <= 0.0)
        plan->record.try_at = TRY_FIRST;
    for (int i = 0; i < DT_PLAN_STATES; i++)
        plan->try_state[i] = TRY_FIRST;
    plan->n_since_merit = plan->record.try_at > TRY_FIRST ? N_MERIT : 0;
}

static void clear_window(dt_plan *plan) {
    plan->window_ns = 0;
    plan->window_tokens = 0;
    plan->window_steps = 0;
}

void dt_plan_start(dt_plan *plan) {
    clear_window(plan);
    plan->fresh = true;
    plan->n_steps = 0;
}

static void weigh_model(dt_plan *plan, double cost_ns, double tokens) {
    dt_plan_value *value = &plan->record.values[plan->state];
    value->n = DT_MIN(value->n + 1.0, (double)N_VALUE_MAX);
    value->tokens += (tokens - value->tokens) / value->n;
    value->cost_ns += (cost_ns - value->cost_ns) / value->n;
}

/* Drafting that came out slower than plain decoding rests for a while. */
static void weigh_drafting(dt_plan *plan, int64_t step_ns, int64_t n_tokens) {
    double plain = dt_plan_pass_ns(plan, 1);
    plan->window_ns += step_ns;
    plan->window_tokens += n_tokens;
    plan->window_steps++;
    if (plan->window_steps < N_WINDOW || plan->record.pass_ns[1] <= 0.0)
        return;
    /* A draw is within the noise of the measurement, and is no reason to change. */
    bool slower = (double)plan->window_ns > (double)plan->window_tokens * plain * 1.02;
    clear_window(plan);
    if (!slower) {
        plan->rest_next = REST_MIN;
        return;
    }
    plan->rest_left = plan->rest_next;
    plan->rest_next = DT_MIN(plan->rest_next * 2, REST_MAX);
}

void dt_plan_verdict(
    dt_plan *plan, int n_rows, int64_t pass_ns, int64_t step_ns, int64_t n_tokens) {
    if (n_rows < 1 || n_rows > DT_TREE_MAX || pass_ns <= 0)
        return;
    curve_measured(plan->record.pass_ns, n_rows, (double)pass_ns);
    plan->n_since_plain = n_rows == 1 ? 0 : plan->n_since_plain + 1;
    plan->n_since_merit++;
    plan->n_steps++;
    plan->record.n_tokens += (double)n_tokens;
    if (plan->rest_left > 0) {
        plan->rest_left = DT_MAX(plan->rest_left - n_tokens, 0);
        return;
    }
    if (plan->fresh) {
        plan->fresh = false;
        return;
    }
    plan->tokens += (double)n_tokens - plan->tokens / N_STEPS_ANSWER;
    plan->time_ns += (double)step_ns - plan->time_ns / N_STEPS_ANSWER;
    plan->record.tokens += (double)n_tokens - plan->record.tokens / N_STEPS_ALL;
    plan->record.time_ns += (double)step_ns - plan->record.time_ns / N_STEPS_ALL;
    if (plan->mode == DT_PLAN_MODEL)
        weigh_model(plan, (double)step_ns - dt_plan_pass_ns(plan, 1), (double)(n_tokens - 1));
    if (plan->mode != DT_PLAN_PLAIN)
        weigh_drafting(plan, step_ns, n_tokens);
}
