#include "models/token.h"

#include <stdlib.h>
#include <string.h>

#include "models/token_bpe.h"
#include "models/token_spm.h"
#include "src/base/mem.h"

/* Texts that are recognised before all else: in the order of their bytes, so that those with a
 * common beginning stand together and the shortest comes first. */
typedef struct special_text {
    dt_text text;
    int32_t token;
} special_text;

typedef struct special_list {
    special_text *items; /* of each text the lowest id first */
    int32_t start[257];  /* items[start[b] .. start[b + 1]) begin with the byte b */
} special_list;

struct dt_vocab {
    const dt_text *text; /* [n_tokens], the gguf's */
    int32_t n_tokens;
    uint8_t *kind; /* [n_tokens] dt_token_kind */
    bool *ends;    /* [n_tokens] */
    int32_t bos, eos;
    bool add_bos;
    special_list user; /* user-defined tokens, which are recognised always */
    special_list all;  /* and control tokens */
    char *unspaced;    /* texts of `user` and `all` that the file writes with U+2581 */
    bool add_space;    /* a space goes in front of the text */
    dt_text_table table;
    dt_bpe *bpe; /* one of the two */
    dt_spm *spm;
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

static dt_err read_ids(dt_vocab *vocab, const dt_gguf *gguf, dt_text pre, bool is_spm) {
    int32_t eot, eom, padding;
    DT_TRY(read_id(&vocab->bos, vocab, gguf, "tokenizer.ggml.bos_token_id"));
    DT_TRY(read_id(&vocab->eos, vocab, gguf, "tokenizer.ggml.eos_token_id"));
    DT_TRY(read_id(&eot, vocab, gguf, "tokenizer.ggml.eot_token_id"));
    DT_TRY(read_id(&eom, vocab, gguf, "tokenizer.ggml.eom_token_id"));
    DT_TRY(read_id(&padding, vocab, gguf, "tokenizer.ggml.padding_token_id"));

    /* Files of the two Llama families often leave the keys out; their tokenizers put BOS in front,
     * and that of SentencePiece a space too. */
    int64_t add_bos = is_spm || dt_text_is(pre, "llama-bpe") || dt_text_is(pre, "llama3");
    int64_t add_space = is_spm;
    DT_TRY(dt_gguf_get_int(gguf, "tokenizer.ggml.add_bos_token", &add_bos));
    DT_TRY(dt_gguf_get_int(gguf, "tokenizer.ggml.add_space_prefix", &add_space));
    vocab->add_bos = add_bos != 0 && vocab->bos >= 0;
    vocab->add_space = is_spm && add_space != 0;

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
    int order = memcmp(a->text.data, b->text.data, DT_MIN(a->text.n_bytes, b->text.n_bytes));
    if (order != 0)
        return order;
    if (a->text.n_bytes != b->text.n_bytes)
        return a->text.n_bytes < b->text.n_bytes ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

static bool is_special(const dt_vocab *vocab, int32_t id, bool control) {
    return vocab->text[id].n_bytes > 0 &&
           (vocab->kind[id] == DT_TOKEN_USER || (control && vocab->kind[id] == DT_TOKEN_CONTROL));
}

static bool has_space_mark(dt_text text) {
    for (size_t i = 0; i < text.n_bytes; i++)
        if (dt_spm_is_space(text.data + i, text.n_bytes - i))
            return true;
    return false;
}

/* Writes the text with a space for each U+2581; returns its length. */
static size_t put_unspaced(char *out, const char *text, size_t n_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; n++) {
        bool is_space = dt_spm_is_space(text + i, n_bytes - i);
        out[n] = is_space ? ' ' : text[i];
        i += is_space ? DT_SPM_SPACE_BYTES : 1;
    }
    return n;
}

/* Some converters leave U+2581 in the texts of special tokens, others write spaces. */
static dt_err unspace(special_text *items, size_t n_items, dt_vocab *vocab) {
    size_t n_bytes = 0;
    for (size_t i = 0; i < n_items; i++)
        n_bytes += has_space_mark(items[i].text) ? items[i].text.n_bytes : 0;
    DT_TRY(dt_mem_alloc(&vocab->unspaced, n_bytes));
    char *out = vocab->unspaced;
    for (size_t i = 0; i < n_items; i++)
        if (has_space_mark(items[i].text)) {
            size_t n = put_unspaced(out, items[i].text.data, items[i].text.n_bytes);
            items[i].text = (dt_text){out, n};
            out += n;
        }
    return DT_OK;
}

static void sort_special(special_list *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        list->start[(uint8_t)list->items[i].text.data[0] + 1]++;
    for (int b = 0; b < 256; b++)
        list->start[b + 1] += list->start[b];
    if (n > 0)
        qsort(list->items, n, sizeof *list->items, compare_special);
}

static dt_err read_special(dt_vocab *vocab, bool is_spm) {
    size_t n = 0, n_user = 0;
    for (int32_t id = 0; id < vocab->n_tokens; id++) {
        n += is_special(vocab, id, true);
        n_user += is_special(vocab, id, false);
    }
    DT_TRY(dt_mem_alloc(&vocab->all.items, n * sizeof *vocab->all.items));
    DT_TRY(dt_mem_alloc(&vocab->user.items, n_user * sizeof *vocab->user.items));
    n = n_user = 0;
    for (int32_t id = 0; id < vocab->n_tokens; id++)
        if (is_special(vocab, id, true))
            vocab->all.items[n++] = (special_text){vocab->text[id], id};
    if (is_spm)
        DT_TRY(unspace(vocab->all.items, n, vocab));
    for (size_t i = 0; i < n; i++)
        if (vocab->kind[vocab->all.items[i].token] == DT_TOKEN_USER)
            vocab->user.items[n_user++] = vocab->all.items[i];
    sort_special(&vocab->all, n);
    sort_special(&vocab->user, n_user);
    return DT_OK;
}

static dt_err open_spm(dt_vocab *vocab, const dt_gguf *gguf) {
    const float *scores = NULL;
    int64_t n_scores;
    DT_TRY(dt_gguf_get_float_array(gguf, "tokenizer.ggml.scores", &scores, &n_scores));
    return dt_spm_open(&vocab->spm, scores, n_scores, vocab->n_tokens, &vocab->table, vocab->kind);
}

static dt_err open_bpe(dt_vocab *vocab, const dt_gguf *gguf, dt_text pre) {
    const dt_text *merges;
    int64_t n_merges;
    DT_TRY(dt_gguf_get_text_array(gguf, "tokenizer.ggml.merges", &merges, &n_merges));
    return dt_bpe_open(&vocab->bpe, pre, merges, n_merges, &vocab->table, vocab->kind);
}

static dt_err read_vocab(dt_vocab *vocab, const dt_gguf *gguf) {
    dt_text model = {0}, pre = {"default", 7};
    int64_t n_tokens;
    char name[DT_TEXT_SHOWN_BYTES];
    DT_TRY(dt_gguf_get_text(gguf, "tokenizer.ggml.model", &model));
    if (model.n_bytes == 0)
        DT_FAIL(DT_ERR_INPUT, "%s: the file has no tokenizer (key tokenizer.ggml.model)",
            dt_gguf_path(gguf));
    bool is_spm = dt_text_is(model, "llama");
    if (!is_spm && !dt_text_is(model, "gpt2"))
        DT_FAIL(DT_ERR_UNSUPPORTED,
            "%s: tokenizer model \"%s\" is not supported (\"gpt2\", byte-level BPE, and "
            "\"llama\", SentencePiece, are)",
            dt_gguf_path(gguf), dt_text_shown(name, model));
    DT_TRY(dt_gguf_get_text(gguf, "tokenizer.ggml.pre", &pre));
    DT_TRY(dt_gguf_get_text_array(gguf, "tokenizer.ggml.tokens", &vocab->text, &n_tokens));
    if (n_tokens < 1 || n_tokens >= INT32_MAX / 2)
        DT_FAIL(DT_ERR_INPUT, "%s: %lld tokens in tokenizer.ggml.tokens", dt_gguf_path(gguf),
            (long long)n_tokens);
    vocab->n_tokens = (int32_t)n_tokens;
    DT_TRY(check_lengths(vocab, gguf));
    DT_TRY(read_kinds(vocab, gguf));
    DT_TRY(read_ids(vocab, gguf, pre, is_spm));
    DT_TRY(read_special(vocab, is_spm));
    DT_TRY(dt_text_table_init(&vocab->table, vocab->text, vocab->n_tokens));
    dt_err err = is_spm ? open_spm(vocab, gguf) : open_bpe(vocab, gguf, pre);
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
    dt_spm_close(vocab->spm);
    dt_mem_free(vocab->all.items);
    dt_mem_free(vocab->user.items);
    dt_mem_free(vocab->unspaced);
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

bool dt_vocab_add_space(const dt_vocab *vocab) {
    return vocab->add_space;
}

bool dt_vocab_is_spm(const dt_vocab *vocab) {
    return vocab->spm != NULL;
}

bool dt_vocab_ends(const dt_vocab *vocab, int32_t token) {
    return has_token(vocab, token) && vocab->ends[token];
}

/* ---- encode */

typedef struct encoder {
    dt_token_sink sink;
    const dt_vocab *vocab;
    dt_bpe_work bpe;
    dt_spm_work spm;
    bool space; /* the text that follows gets a space in front */
} encoder;

/* The longest special text that begins at text[0], NULL for none. `items` with a common beginning
 * are narrowed down byte by byte. */
static const special_text *match_special(
    const special_list *list, const char *text, size_t n_bytes) {
    int32_t low = list->start[(uint8_t)text[0]], high = list->start[(uint8_t)text[0] + 1];
    const special_text *found = NULL;
    for (size_t n = 1; low < high; n++) {
        /* Of items[low .. high), which share n bytes, the shortest comes first. */
        if (list->items[low].text.n_bytes == n) {
            found = &list->items[low];
            while (low < high && list->items[low].text.n_bytes == n)
                low++;
        }
        if (n == n_bytes)
            break;
        uint8_t byte = (uint8_t)text[n];
        for (int32_t end = high; low < end;) {
            int32_t mid = low + (end - low) / 2;
            if ((uint8_t)list->items[mid].text.data[n] < byte)
                low = mid + 1;
            else
                end = mid;
        }
        for (int32_t start = low; start < high;) {
            int32_t mid = start + (high - start) / 2;
            if ((uint8_t)list->items[mid].text.data[n] <= byte)
                start = mid + 1;
            else
                high = mid;
        }
    }
    return found;
}

/* A stretch without special texts. */
static dt_err encode_plain(encoder *e, const char *text, size_t n_bytes) {
    if (e->vocab->bpe != NULL)
        return dt_bpe_encode(&e->sink, e->vocab->bpe, &e->bpe, text, n_bytes);
    bool space = e->space;
    e->space = false;
    return dt_spm_encode(&e->sink, e->vocab->spm, &e->spm, text, n_bytes, space);
}

/* What may be recognised at `pos`: control tokens up to the next plain span and not inside one,
 * user-defined ones everywhere. The longer of the two counts, so that no plain text can swallow a
 * control token that ends before it. *i_plain is the first span that may lie ahead. */
static const special_text *find_special(const dt_vocab *vocab, const char *text, size_t n_bytes,
    size_t pos, const dt_text_span *plain, int n_plain, int *i_plain) {
    while (*i_plain < n_plain && plain[*i_plain].end <= pos)
        ++*i_plain;
    size_t end = *i_plain < n_plain ? plain[*i_plain].start : n_bytes;
    const special_text *found =
        end > pos ? match_special(&vocab->all, text + pos, end - pos) : NULL;
    if (end == n_bytes)
        return found;
    const special_text *user = match_special(&vocab->user, text + pos, n_bytes - pos);
    return found == NULL || (user != NULL && user->text.n_bytes > found->text.n_bytes) ? user
                                                                                       : found;
}

/* Special texts are found from the left, at each place the longest; what lies between them is
 * ordinary text, encoded stretch by stretch. SentencePiece takes user-defined texts for a part of
 * the text, so the space comes before them too; a control token begins a text anew. */
static dt_err encode_text(
    encoder *e, const char *text, size_t n_bytes, const dt_text_span *plain, int n_plain) {
    const dt_vocab *vocab = e->vocab;
    size_t start = 0, pos = 0;
    int i_plain = 0;
    e->space = vocab->add_space;
    while (pos < n_bytes) {
        const special_text *found =
            find_special(vocab, text, n_bytes, pos, plain, n_plain, &i_plain);
        if (found == NULL) {
            pos++;
            continue;
        }
        bool is_user = vocab->kind[found->token] == DT_TOKEN_USER;
        if (pos > start || (is_user && e->space))
            DT_TRY(encode_plain(e, text + start, pos - start));
        dt_token_sink_push(&e->sink, found->token);
        e->space = !is_user && vocab->add_space;
        pos += found->text.n_bytes;
        start = pos;
    }
    return n_bytes > start ? encode_plain(e, text + start, n_bytes - start) : DT_OK;
}

/* SentencePiece cannot tell U+2581 from a space; where the text has it, special texts are looked
 * for in a copy. The copy's spans are those of the text, each end moved. */
static dt_err encode_unspaced(
    encoder *e, const char *text, size_t n_bytes, const dt_text_span *plain, int n_plain) {
    if (e->vocab->spm == NULL || !has_space_mark((dt_text){text, n_bytes}))
        return encode_text(e, text, n_bytes, plain, n_plain);
    char *copy = NULL;
    dt_text_span *spans = NULL;
    dt_err err = dt_mem_alloc(&copy, n_bytes);
    if (err == DT_OK)
        err = dt_mem_alloc(&spans, (size_t)n_plain * sizeof *spans);
    if (err == DT_OK) {
        size_t n = 0, done = 0;
        for (int i = 0; i < n_plain; i++) {
            n += put_unspaced(copy + n, text + done, plain[i].start - done);
            spans[i].start = n;
            n += put_unspaced(copy + n, text + plain[i].start, plain[i].end - plain[i].start);
            spans[i].end = n;
            done = plain[i].end;
        }
        n += put_unspaced(copy + n, text + done, n_bytes - done);
        err = encode_text(e, copy, n, spans, n_plain);
    }
    dt_mem_free(copy);
    dt_mem_free(spans);
    return err;
}

dt_err dt_encode_spans(int32_t *out, int64_t n_max, int64_t *n_out, const dt_vocab *vocab,
    const char *text, size_t n_bytes, bool bos, const dt_text_span *plain, int n_plain) {
    encoder e = {.sink = {out, n_max, 0}, .vocab = vocab};
    *n_out = 0;
    if (n_bytes >= INT32_MAX)
        DT_FAIL(DT_ERR_LIMIT, "a text of %zu bytes is too long to encode in one piece", n_bytes);
    if (bos && vocab->bos >= 0)
        dt_token_sink_push(&e.sink, vocab->bos);
    dt_err err = n_bytes ? encode_unspaced(&e, text, n_bytes, plain, n_plain) : DT_OK;
    dt_bpe_work_deinit(&e.bpe);
    dt_spm_work_deinit(&e.spm);
    DT_TRY(err);
    *n_out = e.sink.n;
    if (e.sink.n > n_max)
        DT_FAIL(DT_ERR_LIMIT, "the text is %lld tokens, there is room for %lld",
            (long long)e.sink.n, (long long)n_max);
    return DT_OK;
}

dt_err dt_encode(int32_t *out, int64_t n_max, int64_t *n_out, const dt_vocab *vocab,
    const char *text, size_t n_bytes, bool bos, bool special) {
    dt_text_span whole = {0, n_bytes};
    return dt_encode_spans(
        out, n_max, n_out, vocab, text, n_bytes, bos && vocab->add_bos, &whole, !special);
}

/* ---- decode */

/* Copies up to n_max bytes of a text, a space for each U+2581; returns the whole length. */
static size_t decode_spm(char *out, size_t n_max, dt_text text) {
    size_t n = 0;
    for (size_t i = 0; i < text.n_bytes; n++) {
        bool is_space = dt_spm_is_space(text.data + i, text.n_bytes - i);
        if (n < n_max)
            out[n] = is_space ? ' ' : text.data[i];
        i += is_space ? DT_SPM_SPACE_BYTES : 1;
    }
    return n;
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
        if ((byte = dt_spm_byte(text)) < 0)
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
        if (vocab->spm != NULL)
            break;
        if (n_max > 0 && text.n_bytes > 0)
            memcpy(out, text.data, DT_MIN(n_max, text.n_bytes));
        return text.n_bytes;
    }
    if (vocab->spm != NULL)
        return decode_spm(out, n_max, text);
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
