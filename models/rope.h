/* Frequencies of the rotary embedding with the scalings that stretch it over longer contexts.
 * Formulas: doc/numerics.md, "Rotation". Sources: linear, Chen et al. 2023 (arXiv 2306.15595);
 * YaRN, Peng et al. 2023 (arXiv 2309.00071); llama3, the release of Llama 3.1. */
#ifndef DT_MODELS_ROPE_H
#define DT_MODELS_ROPE_H

#include "models/config.h"

/* out[n_rot / 2] = radians per position of the pairs, at most DT_ROPE_RATE_MAX; `factors` [n_rot /
 * 2] divide them, NULL without. */
void dt_rope_frequencies(double *out, const dt_config *config, const float *factors);

/* The same for local layers where config->local_rope. */
void dt_rope_frequencies_local(double *out, const dt_config *config);

#endif
