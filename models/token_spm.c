#include "models/token_spm.h"

#include <stdlib.h>

#include "models/token_heap.h"
#include "src/base/mem.h"

struct dt_spm {
    const dt_text_table *table;
    const uint8_t *kind;
    int32_t *rank; /* [n_tokens]: 0 for the best score, equal for equal ones */
    int32_t byte_token[256];
    size_t n_longest;       /* bytes of the longest text that a merge can give */
    bool before_space[256]; /* bytes that some token has in front of a space */
};

/* ---- open */

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

int dt_spm_byte(dt_text text) {
    if (text.n_bytes != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

typedef struct scored {
    float score;
    int32_t token;
} scored;

static int compare_scored(const void *a_, const void *b_) {
    const scored *a = a_, *b = b_;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

static dt_err read_ranks(dt_spm *spm, const float *scores, int32_t n_tokens) {
    scored *order;
    DT_TRY(dt_mem_alloc(&spm->rank, (size_t)n_tokens * sizeof *spm->rank));
    for (int32_t id = 0; id < n_tokens; id++)
        if (scores[id] != scores[id])
            DT_FAIL(DT_ERR_INPUT, "tokenizer.ggml.scores: token %d has no number", id);
    DT_TRY(dt_mem_alloc(&order, (size_t)n_tokens * sizeof *order));
    for (int32_t id = 0; id < n_tokens; id++)
        order[id] = (scored){scores[id], id};
    qsort(order, (size_t)n_tokens, sizeof *order, compare_scored);
    for (int32_t i = 1, rank = 0; i < n_tokens; i++) {
        rank += order[i].score != order[i - 1].score;
        spm->rank[order[i].token] = rank;
    }
    dt_mem_free(order);
    return DT_OK;
}

static dt_err read_bytes(dt_spm *spm, int32_t n_tokens) {
    for (int byte = 0; byte < 256; byte++)
        spm->byte_token[byte] = -1;
    for (int32_t id = n_tokens - 1; id >= 0; id--) {
        int byte = spm->kind[id] == DT_TOKEN_BYTE ? dt_spm_byte(spm->table->text[id]) : -1;
        if (byte >= 0)
            spm->byte_token[byte] = id;
    }
    for (int byte = 0; byte < 256; byte++)
        if (spm->byte_token[byte] < 0)
            DT_FAIL(DT_ERR_INPUT,
                "the vocabulary has no token for byte %d (text \"<0x%02X>\", type %d)", byte, byte,
                DT_TOKEN_BYTE);
    return DT_OK;
}

/* Merges give these. User-defined texts are cut out before, so none of them ever comes of a merge,
 * and a byte's or a control token's text is no text of ordinary characters. */
static bool is_ordinary(const dt_spm *spm, int32_t token) {
    return token >= 0 && spm->kind[token] == DT_TOKEN_NORMAL;
}

static void read_texts(dt_spm *spm, int32_t n_tokens) {
    for (int32_t id = 0; id < n_tokens; id++) {
        dt_text text = spm->table->text[id];
        if (!is_ordinary(spm, id))
            continue;
        spm->n_longest = DT_MAX(spm->n_longest, text.n_bytes);
        for (size_t i = 1; i < text.n_bytes; i++)
            if (dt_spm_is_space(text.data + i, text.n_bytes - i))
                spm->before_space[(uint8_t)text.data[i - 1]] = true;
    }
}

dt_err dt_spm_open(dt_spm **out, const float *scores, int64_t n_scores, int32_t n_tokens,
    const dt_text_table *table, const uint8_t *kind) {
    dt_spm *spm;
    *out = NULL;
    if (n_scores != n_tokens)
        DT_FAIL(DT_ERR_INPUT, "%lld entries in tokenizer.ggml.scores for %d tokens",
            (long long)n_scores, n_tokens);
    DT_TRY(dt_mem_alloc(&spm, sizeof *spm));
    spm->table = table;
    spm->kind = kind;
    dt_err err = read_ranks(spm, scores, n_tokens);
    if (err == DT_OK)
        err = read_bytes(spm, n_tokens);
    if (err != DT_OK) {
        dt_spm_close(spm);
        return err;
    }
    read_texts(spm, n_tokens);
    *out = spm;
    return DT_OK;
}

void dt_spm_close(dt_spm *spm) {
    if (spm == NULL)
        return;
    dt_mem_free(spm->rank);
    dt_mem_free(spm);
}

/* ---- merging one stretch of text */

static dt_err reserve_symbols(dt_spm_work *work, size_t n_symbols) {
    if (n_symbols <= work->n_symbols_max)
        return DT_OK;
    size_t n = DT_MAX(n_symbols, DT_MAX(256, 2 * work->n_symbols_max));
    dt_mem_free(work->symbols);
    dt_mem_free(work->heap);
    work->symbols = NULL;
    work->heap = NULL;
    work->n_symbols_max = 0;
    DT_TRY(dt_mem_alloc(&work->symbols, n * sizeof *work->symbols));
    /* n - 1 pairs at first; each of at most n - 1 merges takes one out and puts two in. */
    DT_TRY(dt_mem_alloc(&work->heap, 2 * n * sizeof *work->heap));
    work->n_symbols_max = n;
    return DT_OK;
}

static dt_text symbol_text(const dt_spm_work *work, int32_t from, int32_t last) {
    int32_t next = work->symbols[last].next;
    size_t start = (size_t)work->symbols[from].start;
    size_t end = next < 0 ? work->n_text : (size_t)work->symbols[next].start;
    return (dt_text){work->text + start, end - start};
}

/* Looks up what `i` and its right neighbour would merge to, and queues it. */
static void queue_merge(const dt_spm *spm, dt_spm_work *work, size_t *n_heap, int32_t i) {
    dt_spm_symbol *symbol = &work->symbols[i];
    symbol->rank = INT32_MAX;
    if (symbol->next < 0)
        return;
    dt_text joined = symbol_text(work, i, symbol->next);
    if (joined.n_bytes > spm->n_longest)
        return;
    int32_t id = dt_text_table_find(spm->table, joined, (dt_text){0});
    if (!is_ordinary(spm, id))
        return;
    symbol->rank = spm->rank[id];
    symbol->merged = id;
    dt_token_heap_push(work->heap, n_heap, (uint64_t)(uint32_t)symbol->rank << 32 | (uint32_t)i);
}

static void push_symbol(
    dt_token_sink *sink, const dt_spm *spm, const dt_spm_work *work, int32_t i) {
    int32_t id = work->symbols[i].id;
    dt_text text = symbol_text(work, i, i);
    if (id < 0)
        id = dt_text_table_find(spm->table, text, (dt_text){0});
    if (is_ordinary(spm, id)) {
        dt_token_sink_push(sink, id);
        return;
    }
    for (size_t k = 0; k < text.n_bytes; k++)
        dt_token_sink_push(sink, spm->byte_token[(uint8_t)text.data[k]]);
}

/* Encodes work->text, well-formed UTF-8, and empties it. An entry of the heap whose pair has
 * changed since is known by its rank: where the new pair has the same rank, it is the same key. */
static dt_err merge_text(dt_token_sink *sink, const dt_spm *spm, dt_spm_work *work) {
    size_t n_heap = 0, n_text = work->n_text;
    int32_t n = 0;
    if (n_text == 0)
        return DT_OK;
    DT_TRY(reserve_symbols(work, n_text));
    dt_spm_symbol *symbols = work->symbols;
    for (size_t pos = 0; pos < n_text; n++) {
        symbols[n] = (dt_spm_symbol){.prev = n - 1, .next = n + 1, .start = (int32_t)pos, .id = -1};
        pos += (size_t)DT_MAX(dt_utf8_char(work->text + pos, n_text - pos), 1);
    }
    symbols[n - 1].next = -1;
    for (int32_t i = 0; i < n; i++)
        queue_merge(spm, work, &n_heap, i);
    while (n_heap > 0) {
        uint64_t top = dt_token_heap_pop(work->heap, &n_heap);
        int32_t i = (int32_t)(uint32_t)top;
        if (symbols[i].rank != (int32_t)(top >> 32))
            continue;
        dt_spm_symbol *right = &symbols[symbols[i].next];
        symbols[i].id = symbols[i].merged;
        symbols[i].next = right->next;
        right->rank = INT32_MAX;
        if (right->next >= 0)
            symbols[right->next].prev = i;
        queue_merge(spm, work, &n_heap, i);
        if (symbols[i].prev >= 0)
            queue_merge(spm, work, &n_heap, symbols[i].prev);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next)
        push_symbol(sink, spm, work, i);
    work->n_text = 0;
    return DT_OK;
}

/* ---- cutting text */

static dt_err append(dt_spm_work *work, const char *text, size_t n_bytes) {
    if (work->n_text + n_bytes > INT32_MAX)
        DT_FAIL(DT_ERR_LIMIT, "a text of more than %d bytes without a place to cut", INT32_MAX);
    if (work->n_text + n_bytes > work->n_text_max) {
        size_t n = 2 * work->n_text_max + n_bytes + 256;
        char *bytes;
        DT_TRY(dt_mem_alloc(&bytes, n));
        if (work->n_text > 0)
            memcpy(bytes, work->text, work->n_text);
        dt_mem_free(work->text);
        work->text = bytes;
        work->n_text_max = n;
    }
    memcpy(work->text + work->n_text, text, n_bytes);
    work->n_text += n_bytes;
    return DT_OK;
}

/* No merge reaches over a place that lies inside no token, so the text may be cut there: before a
 * space, where no token has the byte in front of it before one. With real vocabularies that is
 * nearly every space, which keeps heap and symbols in the cache. */
static dt_err append_space(dt_token_sink *sink, const dt_spm *spm, dt_spm_work *work) {
    if (work->n_text > 0 && !spm->before_space[(uint8_t)work->text[work->n_text - 1]])
        DT_TRY(merge_text(sink, spm, work));
    return append(work, DT_SPM_SPACE, DT_SPM_SPACE_BYTES);
}

dt_err dt_spm_encode(dt_token_sink *sink, const dt_spm *spm, dt_spm_work *work, const char *text,
    size_t n_bytes, bool space) {
    if (space)
        DT_TRY(append_space(sink, spm, work));
    for (size_t pos = 0; pos < n_bytes;) {
        int n = dt_utf8_char(text + pos, n_bytes - pos);
        if (n == 0) {
            DT_TRY(merge_text(sink, spm, work));
            dt_token_sink_push(sink, spm->byte_token[(uint8_t)text[pos]]);
            n = 1;
        } else if (text[pos] == ' ' || dt_spm_is_space(text + pos, n_bytes - pos)) {
            DT_TRY(append_space(sink, spm, work));
        } else {
            DT_TRY(append(work, text + pos, (size_t)n));
        }
        pos += (size_t)n;
    }
    return merge_text(sink, spm, work);
}

void dt_spm_work_deinit(dt_spm_work *work) {
    dt_mem_free(work->text);
    dt_mem_free(work->symbols);
    dt_mem_free(work->heap);
    *work = (dt_spm_work){0};
}
