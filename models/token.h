/* Vocabulary and tokenizer of a model: byte-level BPE (GGUF tokenizer model "gpt2"), its
 * pre-tokenizing patterns run by PCRE2, or SentencePiece (model "llama"): merges by the scores of
 * tokens, with a token for each byte.
 *
 * Immutable after open; encode and decode may be called by any thread at once.
 * Source: GGUF specification, keys "tokenizer.ggml.*"; Sennrich et al. 2016 (BPE); Radford et
 * al. 2019 (byte-level alphabet). */
#ifndef DT_MODELS_TOKEN_H
#define DT_MODELS_TOKEN_H

#include "models/gguf.h"

typedef struct dt_vocab dt_vocab;

/* Values are those of the key tokenizer.ggml.token_type. */
typedef enum dt_token_kind {
    DT_TOKEN_NORMAL = 1,
    DT_TOKEN_UNKNOWN = 2,
    DT_TOKEN_CONTROL = 3,
    DT_TOKEN_USER = 4,
    DT_TOKEN_UNUSED = 5,
    DT_TOKEN_BYTE = 6,
} dt_token_kind;

/* Bytes of one token's text; sessions reserve room for a tree of the longest. */
enum { DT_TOKEN_TEXT_MAX = 1 << 16 };

/* Refuses a text longer than DT_TOKEN_TEXT_MAX, and by name a tokenizer model other than "gpt2" and
 * "llama" and, for "gpt2", a pre-tokenizer other than gpt-2 ("gpt-2", "default"), llama-bpe
 * ("llama-bpe", "llama3"), qwen2 and smollm. The vocabulary's text is owned by `gguf`, which must
 * outlive it. */
dt_err dt_vocab_open(dt_vocab **out, const dt_gguf *gguf);
void dt_vocab_close(dt_vocab *vocab);

int dt_vocab_size(const dt_vocab *vocab);
/* The token's text as the file writes it (byte-level alphabet for normal tokens). */
dt_text dt_vocab_text(const dt_vocab *vocab, int32_t token);
dt_token_kind dt_vocab_kind(const dt_vocab *vocab, int32_t token);

/* Special ids, -1 where the file names none. `add_bos`: whether encoding starts with BOS. */
int32_t dt_vocab_bos(const dt_vocab *vocab);
int32_t dt_vocab_eos(const dt_vocab *vocab);
bool dt_vocab_add_bos(const dt_vocab *vocab);
/* Whether encoding puts a space in front of the text and of what follows a control token, as
 * SentencePiece does for most of its vocabularies. Decoding gives it like any other. */
bool dt_vocab_add_space(const dt_vocab *vocab);
bool dt_vocab_is_spm(const dt_vocab *vocab); /* SentencePiece */
/* Whether the token ends a generation: EOS, EOT, EOM, or a control token with one of the known
 * end-of-turn texts ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", ...). */
bool dt_vocab_ends(const dt_vocab *vocab, int32_t token);

/* Token ids of `text` (any bytes). With `special`, the texts of control and user-defined tokens
 * are recognised and become one token each; without, they are ordinary text (user-defined ones are
 * recognised always). SentencePiece makes no difference between a space and U+2581, which thus
 * comes back as a space; all other bytes come back as they are. BOS is put in front if `bos` and
 * the vocabulary asks for it. Writes at most `n_max` ids and the whole count to `*n_out`;
 * DT_ERR_LIMIT if that is more than n_max. */
dt_err dt_encode(int32_t *out, int64_t n_max, int64_t *n_out, const dt_vocab *vocab,
    const char *text, size_t n_bytes, bool bos, bool special);

/* The same with BOS in front if `bos`, whatever the vocabulary asks for, and the texts of control
 * tokens recognised outside the plain spans, which are in ascending order and do not overlap. What
 * lies between two special texts is encoded as one, whether a span ends in it or not. */
typedef struct dt_text_span {
    size_t start, end;
} dt_text_span;

dt_err dt_encode_spans(int32_t *out, int64_t n_max, int64_t *n_out, const dt_vocab *vocab,
    const char *text, size_t n_bytes, bool bos, const dt_text_span *plain, int n_plain);

/* The bytes of one token; control tokens give their text if `special`, else nothing. Returns the
 * length, which may exceed n_max (then only n_max bytes were written). */
size_t dt_decode_token(char *out, size_t n_max, const dt_vocab *vocab, int32_t token, bool special);

/* Streaming decode that never splits a UTF-8 character: bytes go in token by token, and come out
 * in whole characters. An invalid byte passes through as it is. Plain data, zero-initialised. */
typedef struct dt_utf8 {
    char held[4];
    int n_held;
} dt_utf8;

/* Length of the well-formed UTF-8 character at text[0], 0 if there is none (RFC 3629: no overlong
 * forms, no surrogates, nothing above U+10FFFF). n_bytes > 0. */
int dt_utf8_char(const char *text, size_t n_bytes);

/* Appends bytes and returns how many may be written now; `out` must hold n_bytes + 4. */
size_t dt_utf8_push(dt_utf8 *utf8, char *out, const char *bytes, size_t n_bytes);
/* What is left at the end of the stream (at most 3 bytes). */
size_t dt_utf8_flush(dt_utf8 *utf8, char *out);

/* Whether a draft's vocabulary fits a target's: ids below both sizes carry the same text, ids
 * beyond the smaller size are unused padding, and BOS, EOS and the ends of turn agree. A mismatch
 * is DT_ERR_INPUT and names the first differing id. `*n_common_out`: ids below it may be proposed.
 */
dt_err dt_vocab_match(int32_t *n_common_out, const dt_vocab *target, const dt_vocab *draft);

#endif
