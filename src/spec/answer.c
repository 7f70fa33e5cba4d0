#include "src/spec/answer.h"

#include <string.h>

#include "src/base/mem.h"

/* Bytes that may come out beyond those pushed: held ones, and a split character. */
enum { OUT_SPARE = DT_STOP_BYTES_MAX + 16 };

dt_err dt_answer_init(dt_answer *answer, size_t n_bytes) {
    *answer = (dt_answer){.n_out_max = n_bytes + OUT_SPARE};
    return dt_mem_alloc(&answer->out, answer->n_out_max);
}

void dt_answer_deinit(dt_answer *answer) {
    dt_mem_free(answer->out);
    answer->out = NULL;
}

static void find_borders(dt_stop_text *stop) {
    stop->fall[0] = 0;
    int border = 0;
    for (int i = 1; i < stop->n_bytes; i++) {
        while (border > 0 && stop->bytes[i] != stop->bytes[border])
            border = stop->fall[border - 1];
        if (stop->bytes[i] == stop->bytes[border])
            border++;
        stop->fall[i] = (int16_t)border;
    }
}

dt_err dt_answer_start(dt_answer *answer, const char *const *stops, int n_stops) {
    if (n_stops < 0 || n_stops > DT_STOPS_MAX)
        DT_FAIL(DT_ERR_INPUT, "stop strings: want at most %d, got %d", DT_STOPS_MAX, n_stops);
    for (int i = 0; i < n_stops; i++) {
        size_t n = strlen(stops[i]);
        if (n < 1 || n > DT_STOP_BYTES_MAX)
            DT_FAIL(DT_ERR_INPUT, "stop string %d: want 1 to %d bytes, got %zu", i + 1,
                DT_STOP_BYTES_MAX, n);
    }
    answer->n_stops = n_stops;
    for (int i = 0; i < n_stops; i++) {
        dt_stop_text *stop = &answer->stops[i];
        stop->n_bytes = (int)strlen(stops[i]);
        stop->n_matched = 0;
        memcpy(stop->bytes, stops[i], (size_t)stop->n_bytes);
        find_borders(stop);
    }
    answer->n_held = 0;
    answer->utf8 = (dt_utf8){0};
    answer->n_out = 0;
    return DT_OK;
}

/* Takes one byte more into account; returns the bytes of it that the text now ends with. */
static int match(dt_stop_text *stop, uint8_t byte) {
    int n = stop->n_matched;
    while (n > 0 && stop->bytes[n] != byte)
        n = stop->fall[n - 1];
    if (stop->bytes[n] == byte)
        n++;
    stop->n_matched = n;
    return n;
}

static void emit(dt_answer *answer, const char *bytes, size_t n_bytes) {
    if (answer->n_out + n_bytes + sizeof answer->utf8.held > answer->n_out_max)
        return; /* the owner clears before this */
    answer->n_out += dt_utf8_push(&answer->utf8, answer->out + answer->n_out, bytes, n_bytes);
}

/* Lets all but the last n_kept held bytes out. */
static void let_out(dt_answer *answer, int n_kept) {
    int n = answer->n_held - n_kept;
    emit(answer, answer->held, (size_t)n);
    memmove(answer->held, answer->held + n, (size_t)n_kept);
    answer->n_held = n_kept;
}

bool dt_answer_push(dt_answer *answer, const char *bytes, size_t n_bytes) {
    if (answer->n_stops == 0) {
        emit(answer, bytes, n_bytes);
        return false;
    }
    for (size_t i = 0; i < n_bytes; i++) {
        int longest = 0;
        int complete = 0;
        for (int j = 0; j < answer->n_stops; j++) {
            dt_stop_text *stop = &answer->stops[j];
            int n = match(stop, (uint8_t)bytes[i]);
            longest = DT_MAX(longest, n);
            if (n == stop->n_bytes)
                complete = DT_MAX(complete, n);
        }
        /* Held bytes are the longest beginning of a stop string that the text ends with, so one
         * byte more is all that a longer one can need, and fewer than the maximum are held. */
        answer->held[answer->n_held++] = bytes[i];
        if (complete > 0) {
            let_out(answer, complete);
            answer->n_held = 0;
            return true;
        }
        let_out(answer, longest);
    }
    return false;
}

void dt_answer_finish(dt_answer *answer) {
    let_out(answer, 0);
    answer->n_out += dt_utf8_flush(&answer->utf8, answer->out + answer->n_out);
}
