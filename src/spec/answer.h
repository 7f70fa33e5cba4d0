/* The text of an answer: token bytes go in, whole UTF-8 characters come out, up to the first stop
 * string. Bytes that may yet become a stop string are held back until that is certain.
 *
 * Owned by a session, not thread-safe. All memory is taken by init. */
#ifndef DT_SPEC_ANSWER_H
#define DT_SPEC_ANSWER_H

#include "models/token.h"

enum { DT_STOPS_MAX = 16, DT_STOP_BYTES_MAX = 256 };

typedef struct dt_stop_text {
    int n_bytes;
    int n_matched; /* bytes of it that the text ends with */
    uint8_t bytes[DT_STOP_BYTES_MAX];
    int16_t fall[DT_STOP_BYTES_MAX]; /* Knuth-Morris-Pratt: the longest border of the first i + 1 */
} dt_stop_text;

typedef struct dt_answer {
    int n_stops;
    dt_stop_text stops[DT_STOPS_MAX];
    int n_held;
    char held[DT_STOP_BYTES_MAX];
    dt_utf8 utf8;
    char *out; /* certain text not taken yet */
    size_t n_out, n_out_max;
} dt_answer;

/* Room for n_bytes between two clears. */
dt_err dt_answer_init(dt_answer *answer, size_t n_bytes);
void dt_answer_deinit(dt_answer *answer); /* takes a zeroed one too */

/* Starts an answer. DT_ERR_INPUT for too many, empty or too long stop strings. */
dt_err dt_answer_start(dt_answer *answer, const char *const *stops, int n_stops);

/* Appends bytes; true once a stop string is complete (it and all after it are dropped). */
bool dt_answer_push(dt_answer *answer, const char *bytes, size_t n_bytes);

/* The answer ends: what was held back comes out. */
void dt_answer_finish(dt_answer *answer);

#endif
