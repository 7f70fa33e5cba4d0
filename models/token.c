#include "models/token.h"

#include <stdlib.h>
#include <string.h>

#include "models/token_bpe.h"
#include "src/base/mem.h"

/* A text that is recognised before pre-tokenizing. */
typedef struct special_text {
    dt_text text;
    int32_t token;
    bool always; /* user-defined: recognised without `special` too */
} special_text;

struct dt_vocab {
    const dt_text *text; /* [n_tokens], the gguf's */
    int32_t n_tokens;
    uint8_t *kind; /* [n_tokens] dt_token_kind */
    bool *ends;    /* [n_tokens] */
    int32_t bos, eos;
    bool add_bos;
    special_text *special;      /* by first byte, then longest first, then lowest id */
    int32_t special_start[257]; /* special[special_start[b] .. special_start[b + 1]) begin with b */
    dt_text_table table;
    dt_bpe *bpe;
};

/* Texts with which the known families close a turn or a document; only control tokens count. */
static const char *const end_texts[] = {
    "<|im_end|>",      /* ChatML: Qwen, SmolLM2 */
    "<|endoftext|>",   /* GPT-2, Qwen, SmolLM2 */
    "<|eot_id|>",      /* Llama 3 */
    "<|eom_id|>",      /* Llama 3.1, end of a tool call's message */
    "<|end_of_text|>", /* Llama 3 */
    "<|end|>",         /* Phi-3 */
    "<|end_of_turn|>", /* OpenChat */
    "<end_of_turn>",   /* Gemma */
    "<|end_of_role|>", /* Granite */
    "<|eot|>",
    "<EOT>",
    "</s>",
};

/* ---- open */

static dt_err read_id(int32_t *out, const dt_vocab *vocab, const dt_gguf *gguf, const char *key) {
    int64_t id = -1;
    *out = -1;
    if (!dt_gguf_has(gguf, key))
        return DT_OK;
    DT_TRY(dt_gguf_get_int(gguf, key, &id));
    if (id < 0 || id >= vocab->n_tokens)
        DT_FAIL(DT_ERR_INPUT, "%s: %s is %lld, the vocabulary has %d tokens", dt_gguf_path(gguf),
            key, (long long)id, vocab->n_tokens);
    *out = (int32_t)id;
    return DT_OK;
}

static dt_err check_lengths(const dt_vocab *vocab, const dt_gguf *gguf) {
    for (int32_t id = 0; id < vocab->n_tokens; id++)
        if (vocab->text[id].n_bytes > DT_TOKEN_TEXT_MAX)
            DT_FAIL(DT_ERR_INPUT, "%s: want texts of at most %d bytes, token %d has %zu",
                dt_gguf_path(gguf), DT_TOKEN_TEXT_MAX, id, vocab->text[id].n_bytes);
    return DT_OK;
}

static dt_err read_kinds(dt_vocab *vocab, const dt_gguf *gguf) {
    const int64_t *kinds;
    int64_t n;
    DT_TRY(dt_mem_alloc(&vocab->kind, (size_t)vocab->n_tokens));
    memset(vocab->kind, DT_TOKEN_NORMAL, (size_t)vocab->n_tokens);
    DT_TRY(dt_gguf_get_int_array(gguf, "tokenizer.ggml.token_type", &kinds, &n));
    if (n == 0)
        return DT_OK;
    if (n != vocab->n_tokens)
        DT_FAIL(DT_ERR_INPUT, "%s: %lld entries in tokenizer.ggml.token_type for %d tokens",
            dt_gguf_path(gguf), (long long)n, vocab->n_tokens);
    for (int32_t id = 0; id < vocab->n_tokens; id++) {
        if (kinds[id] < 0 || kinds[id] > DT_TOKEN_BYTE)
            DT_FAIL(DT_ERR_INPUT, "%s: tokenizer.ggml.token_type of token %d is %lld",
                dt_gguf_path(gguf), id, (long long)kinds[id]);
        if (kinds[id] != 0) /* 0 is "undefined": as good as normal */
            vocab->kind[id] = (uint8_t)kinds[id];
    }
    return DT_OK;
}

static dt_err read_ids(dt_vocab *vocab, const dt_gguf *gguf, dt_text pre) {
    int32_t eot, eom, padding;
    DT_TRY(read_id(&vocab->bos, vocab, gguf, "tokenizer.ggml.bos_token_id"));
    DT_TRY(read_id(&vocab->eos, vocab, gguf, "tokenizer.ggml.eos_token_id"));
    DT_TRY(read_id(&eot, vocab, gguf, "tokenizer.ggml.eot_token_id"));
    DT_TRY(read_id(&eom, vocab, gguf, "tokenizer.ggml.eom_token_id"));
    DT_TRY(read_id(&padding, vocab, gguf, "tokenizer.ggml.padding_token_id"));

    /* Files of the Llama 3 family often leave the key out; their tokenizer puts BOS in front. */
    int64_t add_bos = dt_text_is(pre, "llama-bpe") || dt_text_is(pre, "llama3");
    DT_TRY(dt_gguf_get_int(gguf, "tokenizer.ggml.add_bos_token", &add_bos));
    vocab->add_bos = add_bos != 0 && vocab->bos >= 0;

    DT_TRY(dt_mem_alloc(&vocab->ends, (size_t)vocab->n_tokens * sizeof(bool)));
    for (int32_t id = 0; id < vocab->n_tokens; id++) {
        vocab->ends[id] = id == vocab->eos || id == eot || id == eom;
        for (size_t i = 0; i < DT_COUNT(end_texts) && vocab->kind[id] == DT_TOKEN_CONTROL; i++)
            vocab->ends[id] = vocab->ends[id] || dt_text_is(vocab->text[id], end_texts[i]);
    }
    return DT_OK;
}

static int compare_special(const void *a_, const void *b_) {
    const special_text *a = a_, *b = b_;
    uint8_t first_a = (uint8_t)a->text.data[0], first_b = (uint8_t)b->text.data[0];
    if (first_a != first_b)
        return first_a < first_b ? -1 : 1;
    if (a->text.n_bytes != b->text.n_bytes)
        return a->text.n_bytes > b->text.n_bytes ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

static bool is_special(const dt_vocab *vocab, int32_t id) {
    return vocab->text[id].n_bytes > 0 &&
           (vocab->kind[id] == DT_TOKEN_CONTROL || vocab->kind[id] == DT_TOKEN_USER);
}

static dt_err read_special(dt_vocab *vocab) {
    size_t n = 0;
    for (int32_t id = 0; id < vocab->n_tokens; id++)
        n += is_special(vocab, id);
    DT_TRY(dt_mem_alloc(&vocab->special, n * sizeof *vocab->special));
    n = 0;
    for (int32_t id = 0; id < vocab->n_tokens; id++)
        if (is_special(vocab, id)) {
            vocab->special[n++] =
                (special_text){vocab->text[id], id, vocab->kind[id] == DT_TOKEN_USER};
            vocab->special_start[(uint8_t)vocab->text[id].data[0] + 1]++;
        }
    for (int b = 0; b < 256; b++)
        vocab->special_start[b + 1] += vocab->special_start[b];
    if (n > 0)
        qsort(vocab->special, n, sizeof *vocab->special, compare_special);
    return DT_OK;
}

static dt_err read_vocab(dt_vocab *vocab, const dt_gguf *gguf) {
    dt_text model = {0}, pre = {"default", 7};
    int64_t n_tokens, n_merges;
    const dt_text *merges;
    char name[DT_TEXT_SHOWN_BYTES];
    DT_TRY(dt_gguf_get_text(gguf, "tokenizer.ggml.model", &model));
    if (model.n_bytes == 0)
        DT_FAIL(DT_ERR_INPUT, "%s: the file has no tokenizer (key tokenizer.ggml.model)",
            dt_gguf_path(gguf));
    if (!dt_text_is(model, "gpt2"))
        DT_FAIL(DT_ERR_UNSUPPORTED,
            "%s: tokenizer model \"%s\" is not supported (only \"gpt2\", byte-level BPE, is)",
            dt_gguf_path(gguf), dt_text_shown(name, model));
    DT_TRY(dt_gguf_get_text(gguf, "tokenizer.ggml.pre", &pre));
    DT_TRY(dt_gguf_get_text_array(gguf, "tokenizer.ggml.tokens", &vocab->text, &n_tokens));
    if (n_tokens < 1 || n_tokens >= INT32_MAX / 2)
        DT_FAIL(DT_ERR_INPUT, "%s: %lld tokens in tokenizer.ggml.tokens", dt_gguf_path(gguf),
            (long long)n_tokens);
    vocab->n_tokens = (int32_t)n_tokens;
    DT_TRY(check_lengths(vocab, gguf));
    DT_TRY(read_kinds(vocab, gguf));
    DT_TRY(read_ids(vocab, gguf, pre));
    DT_TRY(read_special(vocab));
    DT_TRY(dt_text_table_init(&vocab->table, vocab->text, vocab->n_tokens));
    DT_TRY(dt_gguf_get_text_array(gguf, "tokenizer.ggml.merges", &merges, &n_merges));
    dt_err err = dt_bpe_open(&vocab->bpe, pre, merges, n_merges, &vocab->table, vocab->kind);
    return err == DT_OK ? DT_OK : dt_err_prefix(err, "%s", dt_gguf_path(gguf));
}

dt_err dt_vocab_open(dt_vocab **out, const dt_gguf *gguf) {
    dt_vocab *vocab;
    *out = NULL;
    DT_TRY(dt_mem_alloc(&vocab, sizeof *vocab));
    dt_err err = read_vocab(vocab, gguf);
    if (err != DT_OK) {
        dt_vocab_close(vocab);
        return err;
    }
    *out = vocab;
    return DT_OK;
}

void dt_vocab_close(dt_vocab *vocab) {
    if (vocab == NULL)
        return;
    dt_bpe_close(vocab->bpe);
    dt_text_table_deinit(&vocab->table);
    dt_mem_free(vocab->special);
    dt_mem_free(vocab->ends);
    dt_mem_free(vocab->kind);
    dt_mem_free(vocab);
}

/* ---- what a token is */

int dt_vocab_size(const dt_vocab *vocab) {
    return vocab->n_tokens;
}

static bool has_token(const dt_vocab *vocab, int32_t token) {
    return token >= 0 && token < vocab->n_tokens;
}

dt_text dt_vocab_text(const dt_vocab *vocab, int32_t token) {
    return has_token(vocab, token) ? vocab->text[token] : (dt_text){"", 0};
}

dt_token_kind dt_vocab_kind(const dt_vocab *vocab, int32_t token) {
    return has_token(vocab, token) ? (dt_token_kind)vocab->kind[token] : DT_TOKEN_UNUSED;
}

int32_t dt_vocab_bos(const dt_vocab *vocab) {
    return vocab->bos;
}

int32_t dt_vocab_eos(const dt_vocab *vocab) {
    return vocab->eos;
}

bool dt_vocab_add_bos(const dt_vocab *vocab) {
    return vocab->add_bos;
}

bool dt_vocab_ends(const dt_vocab *vocab, int32_t token) {
    return has_token(vocab, token) && vocab->ends[token];
}

/* ---- encode */

/* The longest special text that begins at text[0], NULL for none. */
static const special_text *match_special(
    const dt_vocab *vocab, const char *text, size_t n_bytes, bool special) {
    const special_text *entry = vocab->special + vocab->special_start[(uint8_t)text[0]];
    const special_text *end = vocab->special + vocab->special_start[(uint8_t)text[0] + 1];
    for (; entry < end; entry++)
        if ((special || entry->always) && entry->text.n_bytes <= n_bytes &&
            memcmp(entry->text.data, text, entry->text.n_bytes) == 0)
            return entry;
    return NULL;
}

/* Special texts are found from the left, at each place the longest; what lies between them is
 * ordinary text, pre-tokenized stretch by stretch. */
static dt_err encode_text(dt_token_sink *sink, const dt_vocab *vocab, dt_bpe_work *work,
    const char *text, size_t n_bytes, bool special) {
    size_t start = 0, pos = 0;
    while (pos < n_bytes) {
        const special_text *found = match_special(vocab, text + pos, n_bytes - pos, special);
        if (found == NULL) {
            pos++;
            continue;
        }
        DT_TRY(dt_bpe_encode(sink, vocab->bpe, work, text + start, pos - start));
        dt_token_sink_push(sink, found->token);
        pos += found->text.n_bytes;
        start = pos;
    }
    return dt_bpe_encode(sink, vocab->bpe, work, text + start, n_bytes - start);
}

dt_err dt_encode(int32_t *out, int64_t n_max, int64_t *n_out, const dt_vocab *vocab,
    const char *text, size_t n_bytes, bool bos, bool special) {
    dt_token_sink sink = {out, n_max, 0};
    dt_bpe_work work = {0};
    *n_out = 0;
    if (n_bytes >= INT32_MAX)
        DT_FAIL(DT_ERR_LIMIT, "a text of %zu bytes is too long to encode in one piece", n_bytes);
    if (bos && vocab->add_bos)
        dt_token_sink_push(&sink, vocab->bos);
    dt_err err = n_bytes ? encode_text(&sink, vocab, &work, text, n_bytes, special) : DT_OK;
    dt_bpe_work_deinit(&work);
    DT_TRY(err);
    *n_out = sink.n;
    if (sink.n > n_max)
        DT_FAIL(DT_ERR_LIMIT, "the text is %lld tokens, there is room for %lld", (long long)sink.n,
            (long long)n_max);
    return DT_OK;
}

/* ---- decode */

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* "<0x0A>", as files write a token that is one byte; -1 for another text. */
static int byte_of_text(dt_text text) {
    if (text.n_bytes != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

size_t dt_decode_token(
    char *out, size_t n_max, const dt_vocab *vocab, int32_t token, bool special) {
    if (!has_token(vocab, token))
        return 0;
    dt_text text = vocab->text[token];
    int byte;
    size_t n = 0;
    switch ((dt_token_kind)vocab->kind[token]) {
    case DT_TOKEN_NORMAL:
        break;
    case DT_TOKEN_BYTE:
        if ((byte = byte_of_text(text)) < 0)
            break;
        if (n_max > 0)
            out[0] = (char)byte;
        return 1;
    case DT_TOKEN_UNUSED:
        return 0;
    case DT_TOKEN_CONTROL:
    case DT_TOKEN_UNKNOWN:
        if (!special)
            return 0;
        /* fall through */
    case DT_TOKEN_USER:
        if (n_max > 0 && text.n_bytes > 0)
            memcpy(out, text.data, DT_MIN(n_max, text.n_bytes));
        return text.n_bytes;
    }
    /* Back from the byte-level alphabet, which lies in U+0021..U+0143; what is not of it stays. */
    for (size_t i = 0; i < text.n_bytes; i++) {
        uint8_t lead = (uint8_t)text.data[i];
        byte = lead;
        if (lead >= 0xC2 && lead <= 0xC5 && i + 1 < text.n_bytes &&
            ((uint8_t)text.data[i + 1] & 0xC0) == 0x80) {
            int c = (lead & 0x1F) << 6 | ((uint8_t)text.data[i + 1] & 0x3F);
            if (dt_char_to_byte(c) >= 0) {
                byte = dt_char_to_byte(c);
                i++;
            }
        }
        if (n < n_max)
            out[n] = (char)byte;
        n++;
    }
    return n;
}

size_t dt_utf8_push(dt_utf8 *utf8, char *out, const char *bytes, size_t n_bytes) {
    size_t n = (size_t)utf8->n_held;
    memcpy(out, utf8->held, n);
    if (n_bytes > 0)
        memcpy(out + n, bytes, n_bytes);
    n += n_bytes;
    /* Only the beginning of a character at the very end is held back: its first byte is at most 3
     * from the end, and no byte that continues a character can begin one. */
    size_t n_tail = 0;
    for (size_t i = 1; i <= 3 && i <= n; i++)
        if (dt_utf8_unfinished(out + n - i, i)) {
            n_tail = i;
            break;
        }
    memcpy(utf8->held, out + n - n_tail, n_tail);
    utf8->n_held = (int)n_tail;
    return n - n_tail;
}

size_t dt_utf8_flush(dt_utf8 *utf8, char *out) {
    size_t n = (size_t)utf8->n_held;
    memcpy(out, utf8->held, n);
    utf8->n_held = 0;
    return n;
}

/* ---- two vocabularies */

/* "[PAD12]": a prefix, digits, a suffix. */
static bool is_numbered(dt_text text, const char *prefix, const char *suffix) {
    size_t n_prefix = strlen(prefix), n_suffix = strlen(suffix);
    if (text.n_bytes <= n_prefix + n_suffix || memcmp(text.data, prefix, n_prefix) != 0 ||
        memcmp(text.data + text.n_bytes - n_suffix, suffix, n_suffix) != 0)
        return false;
    for (size_t i = n_prefix; i < text.n_bytes - n_suffix; i++)
        if (text.data[i] < '0' || text.data[i] > '9')
            return false;
    return true;
}

/* Padding is a token no text uses, put in to round the size of the vocabulary up: marked as unused,
 * without text, or with one of the texts that converters make up. */
static bool is_padding(const dt_vocab *vocab, int32_t token) {
    dt_text text = vocab->text[token];
    return vocab->kind[token] == DT_TOKEN_UNUSED || text.n_bytes == 0 ||
           is_numbered(text, "[PAD", "]") || is_numbered(text, "<|dummy_", "|>") ||
           is_numbered(text, "<dummy", ">") || is_numbered(text, "<unused", ">");
}

dt_err dt_vocab_match(int32_t *n_common_out, const dt_vocab *target, const dt_vocab *draft) {
    int32_t n_common = DT_MIN(target->n_tokens, draft->n_tokens);
    char a[DT_TEXT_SHOWN_BYTES], b[DT_TEXT_SHOWN_BYTES];
    *n_common_out = 0;
    for (int32_t id = 0; id < n_common; id++) {
        if (!dt_text_same(target->text[id], draft->text[id]) &&
            !(is_padding(target, id) && is_padding(draft, id)))
            DT_FAIL(DT_ERR_INPUT,
                "the draft's vocabulary is another: token %d is \"%s\", the target has \"%s\"", id,
                dt_text_shown(b, draft->text[id]), dt_text_shown(a, target->text[id]));
        if (target->ends[id] != draft->ends[id])
            DT_FAIL(DT_ERR_INPUT,
                "the draft's vocabulary is another: token %d (\"%s\") ends a turn only in the %s",
                id, dt_text_shown(a, target->text[id]), target->ends[id] ? "target" : "draft");
    }
    const dt_vocab *larger = target->n_tokens > draft->n_tokens ? target : draft;
    for (int32_t id = n_common; id < larger->n_tokens; id++)
        if (!is_padding(larger, id))
            DT_FAIL(DT_ERR_INPUT,
                "the draft's vocabulary is another: token %d (\"%s\") is only in the %s", id,
                dt_text_shown(a, larger->text[id]), larger == target ? "target" : "draft");
    if (target->bos != draft->bos || target->eos != draft->eos)
        DT_FAIL(DT_ERR_INPUT,
            "the draft's vocabulary is another: its BOS and EOS are %d and %d, the target's %d, %d",
            draft->bos, draft->eos, target->bos, target->eos);
    *n_common_out = n_common;
    return DT_OK;
}
