#include "models/gguf_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *scalar, *array;
} KIND_NAMES[DT_GGUF_COUNT] = {
    [DT_GGUF_U8] = {"u8", "[u8]"},
    [DT_GGUF_I8] = {"i8", "[i8]"},
    [DT_GGUF_U16] = {"u16", "[u16]"},
    [DT_GGUF_I16] = {"i16", "[i16]"},
    [DT_GGUF_U32] = {"u32", "[u32]"},
    [DT_GGUF_I32] = {"i32", "[i32]"},
    [DT_GGUF_F32] = {"f32", "[f32]"},
    [DT_GGUF_BOOL] = {"bool", "[bool]"},
    [DT_GGUF_TEXT] = {"str", "[str]"},
    [DT_GGUF_ARRAY] = {"array", "[array]"},
    [DT_GGUF_U64] = {"u64", "[u64]"},
    [DT_GGUF_I64] = {"i64", "[i64]"},
    [DT_GGUF_F64] = {"f64", "[f64]"},
};

static const char *kind_name(const dt_gguf_entry *e) {
    return e->is_array ? KIND_NAMES[e->kind].array : KIND_NAMES[e->kind].scalar;
}

const char *dt_text_shown(char out[DT_TEXT_SHOWN_BYTES], dt_text text) {
    size_t n = DT_MIN(text.n_bytes, (size_t)DT_TEXT_SHOWN_BYTES - 4);
    for (size_t i = 0; i < n; i++)
        out[i] = text.data[i] >= ' ' && text.data[i] <= '~' ? text.data[i] : '?';
    strcpy(out + n, n < text.n_bytes ? "..." : "");
    return out;
}

/* The index of a name, -1 if it is not there. */
static int64_t find_name(const dt_gguf_name *refs, int64_t n, const char *name) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        int order = strcmp(refs[mid].text, name);
        if (order == 0)
            return refs[mid].i;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return -1;
}

const char *dt_gguf_path(const dt_gguf *gguf) {
    return gguf->path;
}

size_t dt_gguf_file_bytes(const dt_gguf *gguf) {
    size_t n_bytes = gguf->map.n_bytes;
    for (int i = 0; i < gguf->n_parts; i++)
        n_bytes += gguf->parts[i]->map.n_bytes;
    return n_bytes;
}

uint32_t dt_gguf_version(const dt_gguf *gguf) {
    return gguf->version;
}

int64_t dt_gguf_n_tensors(const dt_gguf *gguf) {
    return gguf->n_tensors;
}

const dt_tensor *dt_gguf_tensor(const dt_gguf *gguf, int64_t i_tensor) {
    return &gguf->tensors[i_tensor];
}

const dt_tensor *dt_gguf_find(const dt_gguf *gguf, const char *name) {
    int64_t i = find_name(gguf->tensor_refs, gguf->n_tensors, name);
    return i < 0 ? NULL : &gguf->tensors[i];
}

/* ---- getters */

bool dt_gguf_has(const dt_gguf *gguf, const char *key) {
    return find_name(gguf->key_refs, gguf->n_entries, key) >= 0;
}

/* The entry of a key, NULL if it is absent; another class of value is refused. */
static dt_err find_entry(const dt_gguf_entry **out, const dt_gguf *gguf, const char *key,
    dt_gguf_class want, bool want_array) {
    static const char *const names[] = {"an integer", "a float", "a text"};
    static const char *const array_names[] = {
        "an array of integers", "an array of floats", "an array of texts"};
    *out = NULL;
    int64_t i = find_name(gguf->key_refs, gguf->n_entries, key);
    if (i < 0)
        return DT_OK;
    const dt_gguf_entry *e = &gguf->entries[i];
    if (e->is_array != want_array || dt_gguf_class_of(e->kind) != want)
        DT_FAIL(DT_ERR_INPUT, "key %s: want %s, the file has %s", key,
            (want_array ? array_names : names)[want], kind_name(e));
    if (e->i_too_big >= 0)
        DT_FAIL(DT_ERR_INPUT, "key %s: the value (element %" PRId64 ") is above 2^63 - 1", key,
            e->i_too_big);
    *out = e;
    return DT_OK;
}

dt_err dt_gguf_get_int(const dt_gguf *gguf, const char *key, int64_t *out) {
    const dt_gguf_entry *e;
    DT_TRY(find_entry(&e, gguf, key, DT_GGUF_CLASS_INT, false));
    if (e)
        *out = e->integer;
    return DT_OK;
}

dt_err dt_gguf_get_float(const dt_gguf *gguf, const char *key, double *out) {
    const dt_gguf_entry *e;
    DT_TRY(find_entry(&e, gguf, key, DT_GGUF_CLASS_REAL, false));
    if (e)
        *out = e->real;
    return DT_OK;
}

dt_err dt_gguf_get_text(const dt_gguf *gguf, const char *key, dt_text *out) {
    const dt_gguf_entry *e;
    DT_TRY(find_entry(&e, gguf, key, DT_GGUF_CLASS_TEXT, false));
    if (e)
        *out = e->text;
    return DT_OK;
}

dt_err dt_gguf_get_text_array(
    const dt_gguf *gguf, const char *key, const dt_text **out, int64_t *n_out) {
    const dt_gguf_entry *e;
    *n_out = 0;
    DT_TRY(find_entry(&e, gguf, key, DT_GGUF_CLASS_TEXT, true));
    if (e) {
        *out = e->items;
        *n_out = e->n;
    }
    return DT_OK;
}

dt_err dt_gguf_get_int_array(
    const dt_gguf *gguf, const char *key, const int64_t **out, int64_t *n_out) {
    const dt_gguf_entry *e;
    *n_out = 0;
    DT_TRY(find_entry(&e, gguf, key, DT_GGUF_CLASS_INT, true));
    if (e) {
        *out = e->items;
        *n_out = e->n;
    }
    return DT_OK;
}

dt_err dt_gguf_get_float_array(
    const dt_gguf *gguf, const char *key, const float **out, int64_t *n_out) {
    const dt_gguf_entry *e;
    *n_out = 0;
    DT_TRY(find_entry(&e, gguf, key, DT_GGUF_CLASS_REAL, true));
    if (e) {
        *out = e->items;
        *n_out = e->n;
    }
    return DT_OK;
}

int64_t dt_gguf_n_keys(const dt_gguf *gguf) {
    return gguf->n_entries;
}

const char *dt_gguf_key(const dt_gguf *gguf, int64_t i_key) {
    return gguf->keys[i_key];
}

/* ---- listings */

/* What is printed into a caller's buffer: pieces that fit whole or not at all, so that an escape is
 * never cut in two. */
typedef struct printer {
    char *out;
    size_t n, n_max; /* n_max without the NUL */
    bool full;
} printer;

static void put(printer *p, const char *piece) {
    size_t n = strlen(piece);
    if (p->full || n > p->n_max - p->n) {
        p->full = true;
        return;
    }
    memcpy(p->out + p->n, piece, n + 1);
    p->n += n;
}

static void put_text(printer *p, dt_text text) {
    put(p, "\"");
    for (size_t i = 0; i < text.n_bytes && !p->full; i++) {
        unsigned char c = (unsigned char)text.data[i];
        char piece[8];
        if (c == '\n')
            snprintf(piece, sizeof piece, "\\n");
        else if (c == '"' || c == '\\')
            snprintf(piece, sizeof piece, "\\%c", c);
        else if (c < 0x20 || c > 0x7e)
            snprintf(piece, sizeof piece, "\\x%02x", c);
        else
            snprintf(piece, sizeof piece, "%c", c);
        put(p, piece);
    }
    put(p, "\"");
}

static void put_int(printer *p, const dt_gguf_entry *e, int64_t value) {
    char piece[32];
    if (e->kind == DT_GGUF_BOOL)
        snprintf(piece, sizeof piece, "%s", value ? "true" : "false");
    else if (e->kind == DT_GGUF_U64)
        snprintf(piece, sizeof piece, "%" PRIu64, (uint64_t)value);
    else
        snprintf(piece, sizeof piece, "%" PRId64, value);
    put(p, piece);
}

static void put_real(printer *p, double value) {
    char piece[32];
    snprintf(piece, sizeof piece, "%.9g", value);
    put(p, piece);
}

void dt_gguf_describe(const dt_gguf *gguf, int64_t i_key, char *out, size_t n_bytes) {
    if (n_bytes == 0)
        return;
    out[0] = '\0';
    const dt_gguf_entry *e = &gguf->entries[i_key];
    printer p = {out, 0, n_bytes - 1, false};
    put(&p, kind_name(e));
    put(&p, " ");
    if (e->is_array) {
        char piece[32];
        snprintf(piece, sizeof piece, "%" PRId64 ":", e->n);
        put(&p, piece);
    }
    int64_t n = e->is_array ? e->n : 1;
    for (int64_t i = 0; i < n && !p.full; i++) {
        if (e->is_array)
            put(&p, " ");
        switch (dt_gguf_class_of(e->kind)) {
        case DT_GGUF_CLASS_TEXT:
            put_text(&p, e->is_array ? ((const dt_text *)e->items)[i] : e->text);
            break;
        case DT_GGUF_CLASS_REAL:
            put_real(&p, e->is_array ? ((const float *)e->items)[i] : e->real);
            break;
        case DT_GGUF_CLASS_INT:
            put_int(&p, e, e->is_array ? ((const int64_t *)e->items)[i] : e->integer);
            break;
        }
    }
    /* What did not fit is shown by dots in place of the last bytes. */
    if (p.full && n_bytes > 4) {
        p.n = DT_MIN(p.n, n_bytes - 4);
        memcpy(out + p.n, "...", 4);
    }
}
