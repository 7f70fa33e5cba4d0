/* Private to models/: SentencePiece vocabularies (GGUF tokenizer model "llama"), used by token.c.
 *
 * Text is one row of characters, a space written as U+2581. The two neighbours whose joined text is
 * the token of the best score merge first (the leftmost of equals), until no neighbours give a
 * token; a character that is no token falls back to a token for each of its bytes.
 *
 * Immutable after open; what an encoding needs for itself lies in a dt_spm_work of the calling
 * thread. Source: Kudo and Richardson 2018 (SentencePiece), Sennrich et al. 2016 (BPE). */
#ifndef DT_MODELS_TOKEN_SPM_H
#define DT_MODELS_TOKEN_SPM_H

#include "models/token_bpe.h"

typedef struct dt_spm dt_spm;

/* U+2581, which stands for a space in the texts of tokens. */
#define DT_SPM_SPACE "\xE2\x96\x81"
enum { DT_SPM_SPACE_BYTES = 3 };

/* Whether the n_bytes begin with U+2581. */
static inline bool dt_spm_is_space(const char *text, size_t n_bytes) {
    return n_bytes >= DT_SPM_SPACE_BYTES && memcmp(text, DT_SPM_SPACE, DT_SPM_SPACE_BYTES) == 0;
}

/* The byte of a token's text "<0x0A>", as files write a token that is one byte; -1 for another. */
int dt_spm_byte(dt_text text);

/* `scores` [n_tokens]. `table` and `kind` ([n_tokens], a dt_token_kind each) must outlive the
 * result. DT_ERR_INPUT for another number of scores, one that is not a number, and a vocabulary
 * that lacks the token of a byte. */
dt_err dt_spm_open(dt_spm **out, const float *scores, int64_t n_scores, int32_t n_tokens,
    const dt_text_table *table, const uint8_t *kind);
void dt_spm_close(dt_spm *spm);

/* Scratch of one call of dt_encode; zero-initialised, grows as needed. */
typedef struct dt_spm_symbol {
    int32_t prev, next; /* neighbours, -1 at the ends */
    int32_t start;      /* of its text; it ends where the next one starts */
    int32_t id;         /* -1: a character not looked up yet */
    int32_t rank;       /* of the merge with the right neighbour, INT32_MAX for none */
    int32_t merged;     /* what that merge gives */
} dt_spm_symbol;

typedef struct dt_spm_work {
    char *text; /* [n_text_max], spaces as U+2581 */
    size_t n_text, n_text_max;
    dt_spm_symbol *symbols; /* [n_symbols_max] */
    uint64_t *heap;         /* [2 n_symbols_max]: rank << 32 | index of the left symbol */
    size_t n_symbols_max;
} dt_spm_work;

void dt_spm_work_deinit(dt_spm_work *work);

/* Encodes ordinary text, with a space in front if `space`. An invalid byte is the token of that
 * byte, and ends the text on either side of it. */
dt_err dt_spm_encode(dt_token_sink *sink, const dt_spm *spm, dt_spm_work *work, const char *text,
    size_t n_bytes, bool space);

#endif
