#include "cpu/lateness.h"

#include "src/base/mem.h"

/* A window must span several time slices of the system (some 3 ms each), and several passes of a
 * small model. */
static const int64_t WINDOW_NS = 50000000;
/* The first pass after a rest often shows enough; a trial that ends well forgets the past. */
static const int64_t TRIAL_NS = 1000000000;
static const int64_t REST_MIN_NS = 250000000, REST_MAX_NS = 8000000000;

dt_err dt_lateness_init(dt_lateness *out, int n_threads) {
    *out = (dt_lateness){.enabled = true, .n_threads = n_threads, .n_in = n_threads};
    DT_TRY(dt_mem_alloc(&out->workers, (size_t)n_threads * sizeof *out->workers));
    for (int i = 0; i < n_threads; i++)
        out->workers[i].rest_ns = REST_MIN_NS;
    return DT_OK;
}

void dt_lateness_deinit(dt_lateness *l) {
    dt_mem_free(l->workers);
    l->workers = NULL;
}

static void window_clear(dt_lateness *l) {
    l->window_ns = 0;
    for (int i = 0; i < l->n_threads; i++)
        l->workers[i].lost_ns = 0;
}

/* The latest worker, if the others would be faster without it: n_in workers that lose a share f of
 * their time do (1 - f) n_in, the others alone n_in - 1. Where memory and not arithmetic is the
 * bound, the others alone do better than that: a tenth is their credit. */
static int too_late(const dt_lateness *l) {
    int worst = 0;
    for (int i = 1; i < l->n_threads; i++)
        if (l->workers[i].lost_ns > l->workers[worst].lost_ns)
            worst = i;
    double lost = (double)l->workers[worst].lost_ns, window = (double)l->window_ns;
    return l->n_in > 1 && lost * (double)l->n_in > 0.9 * window ? worst : -1;
}

static void leave_out(dt_lateness *l, int i, int64_t now_ns) {
    dt_late_worker *w = &l->workers[i];
    w->out = true;
    w->on_trial = false;
    w->until_ns = now_ns + w->rest_ns;
    w->rest_ns = DT_MIN(2 * w->rest_ns, REST_MAX_NS);
    l->n_in--;
}

/* One worker at a time comes back, so that a bad one is known from a good one. */
static void try_again(dt_lateness *l, int64_t now_ns) {
    for (int i = 0; i < l->n_threads; i++) {
        dt_late_worker *w = &l->workers[i];
        if (!w->out || now_ns < w->until_ns)
            continue;
        w->out = false;
        w->on_trial = true;
        w->until_ns = now_ns + TRIAL_NS;
        l->n_in++;
        window_clear(l);
        return;
    }
}

void dt_lateness_pass(dt_lateness *l, int64_t now_ns, int64_t pass_ns, const int64_t *lost_ns) {
    if (!l->enabled)
        return;
    l->window_ns += pass_ns;
    bool on_trial = false;
    for (int i = 0; i < l->n_threads; i++) {
        dt_late_worker *w = &l->workers[i];
        w->lost_ns += lost_ns[i];
        if (!w->on_trial)
            continue;
        on_trial = true;
        if (now_ns >= w->until_ns) {
            w->on_trial = false;
            w->rest_ns = REST_MIN_NS;
        }
    }
    /* A trial is judged early: what it costs is lost for certain. */
    if (l->window_ns < (on_trial ? WINDOW_NS / 4 : WINDOW_NS))
        return;
    int worst = too_late(l);
    if (worst >= 0)
        leave_out(l, worst, now_ns);
    window_clear(l);
    if (!on_trial)
        try_again(l, now_ns);
}
