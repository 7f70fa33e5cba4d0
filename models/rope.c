#include "models/rope.h"

#include "src/base/fmath.h"

static const double PI = 3.14159265358979323846;

static double frequency(double base, int i, int n_rot) {
    return dt_pow_f64(base, -2.0 * i / n_rot);
}

/* The index of the pair that turns `n_turns` times over the original context, as a real number. */
static double pair_of_turns(const dt_config *c, double n_turns) {
    double ratio = c->rope_n_ctx / (n_turns * 2.0 * PI);
    return c->n_rot * dt_log_f64(ratio) / (2.0 * dt_log_f64(c->rope_base));
}

/* Pairs below *low turn fast enough to stay as they are, those above *high are interpolated. */
static void yarn_limits(double *low, double *high, const dt_config *c) {
    *low = DT_MAX(__builtin_floor(pair_of_turns(c, c->rope_fast)), 0.0);
    *high = DT_MIN(__builtin_ceil(pair_of_turns(c, c->rope_slow)), c->n_rot - 1.0);
}

static double yarn(const dt_config *c, double f, int i) {
    double low, high;
    yarn_limits(&low, &high, c);
    double ramp = (i - low) / DT_MAX(high - low, 0.001);
    ramp = DT_MIN(DT_MAX(ramp, 0.0), 1.0);
    return f * c->rope_scale * ramp + f * (1.0 - ramp);
}

static double llama3(const dt_config *c, double f) {
    double n_turns = f * c->rope_n_ctx / (2.0 * PI); /* over the original context */
    if (n_turns < c->rope_slow)
        return f * c->rope_scale;
    if (n_turns > c->rope_fast)
        return f;
    double smooth = (n_turns - c->rope_slow) / (c->rope_fast - c->rope_slow);
    return (1.0 - smooth) * f * c->rope_scale + smooth * f;
}

void dt_rope_frequencies(double *out, const dt_config *c, const float *factors) {
    for (int i = 0; i < c->n_rot / 2; i++) {
        double f = frequency(c->rope_base, i, c->n_rot);
        if (c->rope_scaling == DT_ROPE_YARN)
            f = yarn(c, f, i);
        else if (c->rope_scaling == DT_ROPE_LLAMA3 && !factors)
            f = llama3(c, f);
        else if (c->rope_scaling == DT_ROPE_LINEAR)
            f *= c->rope_scale;
        out[i] = factors ? f / (double)factors[i] : f;
    }
}

void dt_rope_frequencies_local(double *out, const dt_config *c) {
    for (int i = 0; i < c->n_rot / 2; i++)
        out[i] = frequency(c->rope_base_local, i, c->n_rot);
}
