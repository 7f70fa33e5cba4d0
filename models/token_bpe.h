/* Private to models/: what token.c uses of the byte-level BPE in token_bpe.c.
 *
 * Everything made by an open or init call is immutable afterwards and may be read by any thread;
 * what an encoding needs for itself lies in a dt_bpe_work of the calling thread. */
#ifndef DT_MODELS_TOKEN_BPE_H
#define DT_MODELS_TOKEN_BPE_H

#include "models/token.h"

/* The byte-level alphabet: each byte has one visible character, so that merges can be written as
 * text. Printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, ascending. */
static inline int dt_byte_to_char(uint8_t byte) {
    if (byte <= 32)
        return 256 + byte;
    if (byte >= 127 && byte <= 160)
        return 289 + (byte - 127);
    return byte == 173 ? 323 : byte;
}

/* -1 for a code point outside the alphabet. */
static inline int dt_char_to_byte(int c) {
    if (c <= 32 || (c >= 127 && c <= 160) || c == 173 || c > 323)
        return -1;
    if (c < 256)
        return c;
    return c < 289 ? c - 256 : c < 323 ? c - 289 + 127 : 173;
}

/* Whether the n_bytes (1..3) are the beginning of a well-formed character that needs more. */
bool dt_utf8_unfinished(const char *text, size_t n_bytes);

/* Open-addressing hash table from text to the lowest id with that text. Refers to `text`. */
typedef struct dt_text_slot {
    uint32_t hash;
    int32_t id_plus_1; /* 0: empty */
} dt_text_slot;

typedef struct dt_text_table {
    const dt_text *text;
    dt_text_slot *slots;
    uint32_t mask;
} dt_text_table;

dt_err dt_text_table_init(dt_text_table *out, const dt_text *text, int32_t n_text);
void dt_text_table_deinit(dt_text_table *table);
/* The id of the text that is `head` followed by `tail`, -1 if there is none. */
int32_t dt_text_table_find(const dt_text_table *table, dt_text head, dt_text tail);

/* Where ids go: at most n_max are written, all are counted. */
typedef struct dt_token_sink {
    int32_t *out;
    int64_t n_max;
    int64_t n;
} dt_token_sink;

static inline void dt_token_sink_push(dt_token_sink *sink, int32_t token) {
    if (sink->n < sink->n_max)
        sink->out[sink->n] = token;
    sink->n++;
}

typedef struct dt_bpe dt_bpe;

/* `pre` is the value of tokenizer.ggml.pre. `table` and `kind` ([number of tokens], a
 * dt_token_kind each) must outlive the result. DT_ERR_UNSUPPORTED for another pre-tokenizer;
 * DT_ERR_INPUT for a merge that is malformed or names a token that is not there. */
dt_err dt_bpe_open(dt_bpe **out, dt_text pre, const dt_text *merges, int64_t n_merges,
    const dt_text_table *table, const uint8_t *kind);
void dt_bpe_close(dt_bpe *bpe);

/* Scratch of one call of dt_encode; zero-initialised, grows as needed. */
typedef struct dt_bpe_symbol {
    int32_t prev, next; /* neighbours in the piece, -1 at the ends */
    int32_t id;         /* -1 once merged into its left neighbour */
    int32_t rank;       /* of the merge with the right neighbour, INT32_MAX for none */
    int32_t merged;     /* what that merge gives */
} dt_bpe_symbol;

typedef struct dt_bpe_work {
    dt_bpe_symbol *symbols; /* [n_symbols_max] */
    uint64_t *heap;         /* [2 n_symbols_max]: rank << 32 | index of the left symbol */
    size_t n_symbols_max;
    void *match_data; /* PCRE2's */
    void *match_context;
} dt_bpe_work;

void dt_bpe_work_deinit(dt_bpe_work *work);

/* Encodes ordinary text. An invalid byte is a piece of its own, and ends the text for the pattern
 * on either side of it. A byte for which the vocabulary has no token is left out (as the published
 * tokenizers do). */
dt_err dt_bpe_encode(
    dt_token_sink *sink, const dt_bpe *bpe, dt_bpe_work *work, const char *text, size_t n_bytes);

#endif
