#include "src/spec/guard.h"

enum {
    N_PLAIN_MIN = 2,     /* plain steps before anything is compared */
    N_WINDOW = 12,       /* drafted steps of one comparison */
    N_BEFORE_PROBE = 4,  /* drafted steps before the first plain one is spent on measuring */
    N_PLAIN_STALE = 512, /* drafted steps after which the plain time is measured again */
    REST_MIN = 32,       /* tokens */
    REST_MAX = 1024,
};

void dt_guard_init(dt_guard *guard, bool enabled) {
    *guard = (dt_guard){.enabled = enabled, .rest_next = REST_MIN, .fresh = true};
}

static void clear_window(dt_guard *guard) {
    guard->window_ns = 0;
    guard->window_tokens = 0;
    guard->window_steps = 0;
}

void dt_guard_start(dt_guard *guard) {
    clear_window(guard);
    guard->fresh = true;
}

dt_guard_step dt_guard_next(const dt_guard *guard) {
    if (!guard->enabled)
        return DT_GUARD_DRAFT;
    if (guard->rest_left > 0)
        return DT_GUARD_REST;
    if (guard->planned)
        return DT_GUARD_DRAFT;
    bool unknown = guard->n_plain < N_PLAIN_MIN && guard->n_since_plain >= N_BEFORE_PROBE;
    return unknown || guard->n_since_plain >= N_PLAIN_STALE ? DT_GUARD_PROBE : DT_GUARD_DRAFT;
}

void dt_guard_plain(dt_guard *guard, int64_t step_ns) {
    double ns = (double)step_ns;
    guard->plain_ns += guard->n_plain == 0 ? ns : (ns - guard->plain_ns) * 0.25;
    guard->n_plain++;
    if (guard->n_plain >= N_PLAIN_MIN)
        guard->n_since_plain = 0;
    if (guard->rest_left > 0) {
        guard->rest_left--;
        if (guard->rest_left == 0)
            dt_guard_start(guard);
    }
}

static void rest(dt_guard *guard) {
    guard->rest_left = guard->rest_next;
    guard->rest_next = DT_MIN(guard->rest_next * 2, REST_MAX);
}

bool dt_guard_late(dt_guard *guard) {
    if (!guard->enabled || guard->rest_left > 0)
        return false;
    clear_window(guard);
    rest(guard);
    return true;
}

bool dt_guard_drafted(dt_guard *guard, double *drafted_rate_out, double *plain_rate_out,
    int64_t step_ns, int64_t n_tokens) {
    if (guard->fresh) {
        guard->fresh = false;
        return false;
    }
    guard->n_since_plain++;
    guard->window_ns += step_ns;
    guard->window_tokens += n_tokens;
    guard->window_steps++;
    if (guard->planned && guard->window_steps >= N_WINDOW) {
        clear_window(guard);
        guard->rest_next = REST_MIN; /* in time again: an old lateness is forgiven */
    }
    if (!guard->enabled || guard->planned || guard->n_plain < N_PLAIN_MIN ||
        guard->window_steps < N_WINDOW)
        return false;
    double drafted_ns = (double)guard->window_ns / (double)DT_MAX(guard->window_tokens, 1);
    clear_window(guard);
    /* A draw is within the noise of the measurement, and is no reason to change. */
    if (drafted_ns <= guard->plain_ns * 1.02) {
        guard->rest_next = REST_MIN;
        return false;
    }
    rest(guard);
    *drafted_rate_out = 1e9 / drafted_ns;
    *plain_rate_out = 1e9 / guard->plain_ns;
    return true;
}
