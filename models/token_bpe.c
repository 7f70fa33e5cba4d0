#define PCRE2_CODE_UNIT_WIDTH 8

#include "models/token_bpe.h"

#include <pcre2.h>
#include <string.h>

#include "models/token_heap.h"
#include "src/base/mem.h"

/* ---- UTF-8 */

/* Bytes of the character that `lead` opens, 0 for a byte that opens none; the allowed range of the
 * second byte, which is where overlong forms, surrogates and the end of Unicode are refused. */
static int lead_length(uint8_t lead, uint8_t *low_out, uint8_t *high_out) {
    *low_out = 0x80;
    *high_out = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    if (lead < 0xE0)
        return 2;
    if (lead == 0xE0)
        *low_out = 0xA0;
    else if (lead == 0xED)
        *high_out = 0x9F;
    else if (lead == 0xF0)
        *low_out = 0x90;
    else if (lead == 0xF4)
        *high_out = 0x8F;
    return lead < 0xF0 ? 3 : 4;
}

/* Checks the bytes there are; the character's whole length, 0 if they begin none. */
static int prefix_length(const uint8_t *bytes, size_t n_bytes) {
    uint8_t low, high;
    int length = lead_length(bytes[0], &low, &high);
    for (int i = 1; i < length && (size_t)i < n_bytes; i++) {
        if (bytes[i] < low || bytes[i] > high)
            return 0;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

int dt_utf8_char(const char *text, size_t n_bytes) {
    int length = prefix_length((const uint8_t *)text, n_bytes);
    return (size_t)length <= n_bytes ? length : 0;
}

bool dt_utf8_unfinished(const char *text, size_t n_bytes) {
    int length = prefix_length((const uint8_t *)text, n_bytes);
    return (size_t)length > n_bytes;
}

/* ---- text -> id */

/* FNV-1a with a final mix: tokens are a handful of bytes, and their halves can be hashed one after
 * the other without joining them. */
static uint32_t hash_more(uint32_t hash, dt_text text) {
    for (size_t i = 0; i < text.n_bytes; i++)
        hash = (hash ^ (uint8_t)text.data[i]) * 16777619u;
    return hash;
}

static uint32_t hash_end(uint32_t hash) {
    hash ^= hash >> 15;
    hash *= 0x2c1b3c6du;
    return hash ^ (hash >> 13);
}

/* Whether the text is `head` followed by `tail`. */
static bool is_joined(dt_text text, dt_text head, dt_text tail) {
    return text.n_bytes == head.n_bytes + tail.n_bytes &&
           dt_text_same((dt_text){text.data, head.n_bytes}, head) &&
           dt_text_same((dt_text){text.data + head.n_bytes, tail.n_bytes}, tail);
}

dt_err dt_text_table_init(dt_text_table *out, const dt_text *text, int32_t n_text) {
    uint32_t n_slots = 16;
    while (n_slots < (uint64_t)n_text * 3 / 2)
        n_slots *= 2;
    *out = (dt_text_table){.text = text, .mask = n_slots - 1};
    DT_TRY(dt_mem_alloc(&out->slots, n_slots * sizeof(dt_text_slot)));
    for (int32_t id = 0; id < n_text; id++) {
        uint32_t hash = hash_end(hash_more(2166136261u, text[id]));
        uint32_t i = hash & out->mask;
        for (; out->slots[i].id_plus_1 != 0; i = (i + 1) & out->mask) {
            const dt_text_slot *slot = &out->slots[i];
            if (slot->hash == hash && dt_text_same(text[slot->id_plus_1 - 1], text[id]))
                break;
        }
        if (out->slots[i].id_plus_1 == 0)
            out->slots[i] = (dt_text_slot){hash, id + 1};
    }
    return DT_OK;
}

void dt_text_table_deinit(dt_text_table *table) {
    dt_mem_free(table->slots);
    table->slots = NULL;
}

int32_t dt_text_table_find(const dt_text_table *table, dt_text head, dt_text tail) {
    uint32_t hash = hash_end(hash_more(hash_more(2166136261u, head), tail));
    for (uint32_t i = hash & table->mask;; i = (i + 1) & table->mask) {
        const dt_text_slot *slot = &table->slots[i];
        if (slot->id_plus_1 == 0)
            return -1;
        if (slot->hash == hash && is_joined(table->text[slot->id_plus_1 - 1], head, tail))
            return slot->id_plus_1 - 1;
    }
}

/* ---- pre-tokenizing patterns */

/* White space as the published patterns' own engine has it (the Unicode property White_Space).
 * PCRE2's \s would add U+180E. */
#define WHITE                                                                                      \
    "\\t-\\r\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"   \
    "\\x{3000}"
#define SPACE "[" WHITE "]"
#define NOT_SPACE "[^" WHITE "]"
#define SYMBOL "[^" WHITE "\\p{L}\\p{N}]"
#define LLAMA_WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA_REST                                                                                 \
    "| ?" SYMBOL "+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACE "+(?!" NOT_SPACE ")|" SPACE "+"

/* From the tokenizer.json files published with the models. Each pattern matches at least one
 * character at every place, so that pieces follow each other without a gap. */
static const struct {
    const char *name;
    bool whole_pieces; /* a piece that is a token is taken as it is ("ignore_merges") */
    const char *pattern;
} pre_tokenizers[] = {
#define GPT2                                                                                       \
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?" SYMBOL "+|" SPACE "+(?!" NOT_SPACE ")|" SPACE "+"
    {"gpt-2", false, GPT2},
    {"default", false, GPT2},
#define LLAMA3 LLAMA_WORDS "\\p{N}{1,3}" LLAMA_REST
    {"llama-bpe", true, LLAMA3},
    {"llama3", true, LLAMA3},
    {"qwen2", false, LLAMA_WORDS "\\p{N}" LLAMA_REST},
    /* Published as two steps: every digit cut out, then gpt-2 on what lies between. A digit
     * therefore is an end of text for the look-ahead. */
    {"smollm", false,
        "\\p{N}|'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?" SYMBOL "+|" SPACE "+(?![^" WHITE
        "\\p{N}])|" SPACE "+"},
};

/* ---- open */

typedef struct merge_slot {
    uint64_t pair;       /* left id << 32 | right id */
    int32_t rank_plus_1; /* 0: empty */
    int32_t merged;
} merge_slot;

struct dt_bpe {
    const dt_text_table *table;
    const uint8_t *kind;
    pcre2_code *code;
    bool whole_pieces;
    int32_t byte_token[256]; /* -1 where the vocabulary has none */
    merge_slot *merges;
    uint32_t merge_mask;
};

static merge_slot *find_merge(const dt_bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t i = (uint32_t)((pair * 0x9e3779b97f4a7c15u) >> 32) & bpe->merge_mask;
    while (bpe->merges[i].rank_plus_1 != 0 && bpe->merges[i].pair != pair)
        i = (i + 1) & bpe->merge_mask;
    return &bpe->merges[i];
}

/* Text that is not marked as a control token must never turn into one. */
static bool is_ordinary(const dt_bpe *bpe, int32_t token) {
    return token >= 0 && (bpe->kind[token] == DT_TOKEN_NORMAL || bpe->kind[token] == DT_TOKEN_USER);
}

/* Cuts "left right" at its first space; the byte-level alphabet itself has none. */
static bool split_merge(dt_text merge, dt_text *left_out, dt_text *right_out) {
    const char *space = merge.n_bytes ? memchr(merge.data, ' ', merge.n_bytes) : NULL;
    if (space == NULL)
        return false;
    *left_out = (dt_text){merge.data, (size_t)(space - merge.data)};
    *right_out = (dt_text){space + 1, merge.n_bytes - left_out->n_bytes - 1};
    return left_out->n_bytes > 0 && right_out->n_bytes > 0;
}

static dt_err read_merges(dt_bpe *bpe, const dt_text *merges, int64_t n_merges) {
    uint64_t n_slots = 16;
    if (n_merges >= INT32_MAX / 2)
        DT_FAIL(
            DT_ERR_INPUT, "tokenizer.ggml.merges: %lld merges are too many", (long long)n_merges);
    while (n_slots < (uint64_t)n_merges * 3 / 2)
        n_slots *= 2;
    DT_TRY(dt_mem_alloc(&bpe->merges, n_slots * sizeof(merge_slot)));
    bpe->merge_mask = (uint32_t)(n_slots - 1);
    for (int64_t i = 0; i < n_merges; i++) {
        dt_text left, right;
        if (!split_merge(merges[i], &left, &right))
            DT_FAIL(DT_ERR_INPUT,
                "tokenizer.ggml.merges: merge %lld is not two texts with a space between",
                (long long)i);
        int32_t left_id = dt_text_table_find(bpe->table, left, (dt_text){0});
        int32_t right_id = dt_text_table_find(bpe->table, right, (dt_text){0});
        int32_t merged_id = dt_text_table_find(bpe->table, left, right);
        if (left_id < 0 || right_id < 0 || merged_id < 0)
            DT_FAIL(DT_ERR_INPUT, "tokenizer.ggml.merges: %s of merge %lld is not a token",
                left_id < 0    ? "the left text"
                : right_id < 0 ? "the right text"
                               : "the result",
                (long long)i);
        merge_slot *slot = find_merge(bpe, left_id, right_id);
        if (slot->rank_plus_1 == 0 && is_ordinary(bpe, merged_id)) /* the first of two counts */
            *slot = (merge_slot){
                (uint64_t)(uint32_t)left_id << 32 | (uint32_t)right_id, (int32_t)i + 1, merged_id};
    }
    return DT_OK;
}

static void read_bytes(dt_bpe *bpe) {
    for (int byte = 0; byte < 256; byte++) {
        int c = dt_byte_to_char((uint8_t)byte);
        char text[3] = {(char)c};
        size_t n_bytes = 1;
        if (c >= 0x80) {
            text[0] = (char)(0xC0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3F));
            n_bytes = 2;
        }
        int32_t id = dt_text_table_find(bpe->table, (dt_text){text, n_bytes}, (dt_text){0});
        bpe->byte_token[byte] = is_ordinary(bpe, id) ? id : -1;
    }
}

static dt_err compile(dt_bpe *bpe, dt_text pre) {
    const char *pattern = NULL;
    for (size_t i = 0; i < DT_COUNT(pre_tokenizers) && pattern == NULL; i++)
        if (dt_text_is(pre, pre_tokenizers[i].name)) {
            pattern = pre_tokenizers[i].pattern;
            bpe->whole_pieces = pre_tokenizers[i].whole_pieces;
        }
    if (pattern == NULL) {
        char name[DT_TEXT_SHOWN_BYTES];
        DT_FAIL(DT_ERR_UNSUPPORTED,
            "pre-tokenizer \"%s\" is not supported (those are gpt-2, llama-bpe, qwen2, smollm)",
            dt_text_shown(name, pre));
    }
    int error;
    PCRE2_SIZE offset;
    bpe->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, NULL);
    if (bpe->code == NULL) {
        char message[160] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof message);
        DT_FAIL(error == PCRE2_ERROR_NOMEMORY ? DT_ERR_MEMORY : DT_ERR_INTERNAL,
            "pre-tokenizing pattern, at %zu: %s", (size_t)offset, message);
    }
    /* Where the system or the build has no JIT the interpreter gives the same matches. */
    (void)pcre2_jit_compile(bpe->code, PCRE2_JIT_COMPLETE);
    return DT_OK;
}

dt_err dt_bpe_open(dt_bpe **out, dt_text pre, const dt_text *merges, int64_t n_merges,
    const dt_text_table *table, const uint8_t *kind) {
    dt_bpe *bpe;
    *out = NULL;
    DT_TRY(dt_mem_alloc(&bpe, sizeof *bpe));
    bpe->table = table;
    bpe->kind = kind;
    dt_err err = compile(bpe, pre);
    if (err == DT_OK)
        err = read_merges(bpe, merges, n_merges);
    if (err != DT_OK) {
        dt_bpe_close(bpe);
        return err;
    }
    read_bytes(bpe);
    *out = bpe;
    return DT_OK;
}

void dt_bpe_close(dt_bpe *bpe) {
    if (bpe == NULL)
        return;
    pcre2_code_free(bpe->code);
    dt_mem_free(bpe->merges);
    dt_mem_free(bpe);
}

/* ---- merging one piece */

/* Looks up what `i` and its right neighbour would merge to, and queues it. */
static void queue_merge(const dt_bpe *bpe, dt_bpe_work *work, size_t *n_heap, int32_t i) {
    dt_bpe_symbol *symbol = &work->symbols[i];
    symbol->rank = INT32_MAX;
    if (symbol->next < 0)
        return;
    const merge_slot *slot = find_merge(bpe, symbol->id, work->symbols[symbol->next].id);
    if (slot->rank_plus_1 == 0)
        return;
    symbol->rank = slot->rank_plus_1 - 1;
    symbol->merged = slot->merged;
    dt_token_heap_push(work->heap, n_heap, (uint64_t)(uint32_t)symbol->rank << 32 | (uint32_t)i);
}

static dt_err reserve(dt_bpe_work *work, size_t n_symbols) {
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

/* The token whose bytes are exactly the piece's, -1 for none. */
static int32_t find_whole(const dt_bpe *bpe, const char *piece, size_t n_bytes) {
    char text[512];
    size_t n = 0;
    if (n_bytes > sizeof text / 2)
        return -1;
    for (size_t i = 0; i < n_bytes; i++) {
        int c = dt_byte_to_char((uint8_t)piece[i]);
        if (c >= 0x80)
            text[n++] = (char)(0xC0 | c >> 6);
        text[n++] = (char)(c >= 0x80 ? 0x80 | (c & 0x3F) : c);
    }
    int32_t id = dt_text_table_find(bpe->table, (dt_text){text, n}, (dt_text){0});
    return is_ordinary(bpe, id) ? id : -1;
}

/* The lowest rank first, the leftmost of equals: a heap over a linked list, so that the time is
 * n log n whatever the piece. An entry whose pair has changed since is known by its rank. */
static dt_err merge_piece(
    dt_token_sink *sink, const dt_bpe *bpe, dt_bpe_work *work, const char *piece, size_t n_bytes) {
    if (bpe->whole_pieces) {
        int32_t id = find_whole(bpe, piece, n_bytes);
        if (id >= 0) {
            dt_token_sink_push(sink, id);
            return DT_OK;
        }
    }
    DT_TRY(reserve(work, n_bytes));
    dt_bpe_symbol *symbols = work->symbols;
    int32_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        int32_t id = bpe->byte_token[(uint8_t)piece[i]];
        if (id < 0)
            continue;
        symbols[n] = (dt_bpe_symbol){.prev = n - 1, .next = n + 1, .id = id};
        n++;
    }
    if (n == 0)
        return DT_OK;
    symbols[n - 1].next = -1;
    size_t n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        queue_merge(bpe, work, &n_heap, i);
    while (n_heap > 0) {
        uint64_t top = dt_token_heap_pop(work->heap, &n_heap);
        int32_t i = (int32_t)(uint32_t)top;
        if (symbols[i].rank != (int32_t)(top >> 32))
            continue;
        dt_bpe_symbol *right = &symbols[symbols[i].next];
        symbols[i].id = symbols[i].merged;
        symbols[i].next = right->next;
        right->rank = INT32_MAX;
        if (right->next >= 0)
            symbols[right->next].prev = i;
        queue_merge(bpe, work, &n_heap, i);
        if (symbols[i].prev >= 0)
            queue_merge(bpe, work, &n_heap, symbols[i].prev);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next)
        dt_token_sink_push(sink, symbols[i].id);
    return DT_OK;
}

/* ---- cutting text into pieces */

static dt_err make_matcher(dt_bpe_work *work, const dt_bpe *bpe) {
    if (work->match_data != NULL)
        return DT_OK;
    work->match_data = pcre2_match_data_create_from_pattern(bpe->code, NULL);
    work->match_context = pcre2_match_context_create(NULL);
    if (work->match_data == NULL || work->match_context == NULL)
        DT_FAIL(DT_ERR_MEMORY, "no memory for matching the pre-tokenizing pattern");
    /* The patterns step back at most once over a run of white space, so they need time linear in
     * the text; the default limit would refuse a run of ten million. */
    pcre2_set_match_limit(work->match_context, UINT32_MAX);
    return DT_OK;
}

/* `text` is well-formed UTF-8. */
static dt_err encode_valid(
    dt_token_sink *sink, const dt_bpe *bpe, dt_bpe_work *work, const char *text, size_t n_bytes) {
    DT_TRY(make_matcher(work, bpe));
    for (size_t pos = 0; pos < n_bytes;) {
        int rc = pcre2_match(bpe->code, (PCRE2_SPTR)text, n_bytes, pos, PCRE2_NO_UTF_CHECK,
            work->match_data, work->match_context);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(bpe->code, (PCRE2_SPTR)text, n_bytes, pos,
                PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, work->match_data, work->match_context);
        if (rc < 0) {
            char message[160] = "";
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
            DT_FAIL(rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT ? DT_ERR_MEMORY
                                                                              : DT_ERR_INTERNAL,
                "pre-tokenizing pattern, at byte %zu of %zu: %s", pos, n_bytes, message);
        }
        size_t end = pcre2_get_ovector_pointer(work->match_data)[1];
        if (end <= pos || end > n_bytes)
            DT_FAIL(DT_ERR_INTERNAL, "pre-tokenizing pattern: empty match at byte %zu", pos);
        DT_TRY(merge_piece(sink, bpe, work, text + pos, end - pos));
        pos = end;
    }
    return DT_OK;
}

dt_err dt_bpe_encode(
    dt_token_sink *sink, const dt_bpe *bpe, dt_bpe_work *work, const char *text, size_t n_bytes) {
    for (size_t pos = 0; pos < n_bytes;) {
        size_t end = pos;
        for (int n; end < n_bytes && (n = dt_utf8_char(text + end, n_bytes - end)) > 0;)
            end += (size_t)n;
        DT_TRY(encode_valid(sink, bpe, work, text + pos, end - pos));
        if (end < n_bytes) {
            DT_TRY(merge_piece(sink, bpe, work, text + end, 1));
            end++;
        }
        pos = end;
    }
    return DT_OK;
}

void dt_bpe_work_deinit(dt_bpe_work *work) {
    dt_mem_free(work->symbols);
    dt_mem_free(work->heap);
    pcre2_match_data_free(work->match_data);
    pcre2_match_context_free(work->match_context);
    *work = (dt_bpe_work){0};
}
