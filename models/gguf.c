#include "models/gguf_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/base/mem.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as little endian");

enum {
    NAME_MAX_BYTES = 255, /* of a tensor; the specification says 64, some converters write more */
    KEY_MAX_BYTES = 65535,
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 1 << 20,
    PARTS_MAX = 4096,
    /* The smallest a key with its value and a tensor's entry can be in the file: what a count is
     * held against before anything of its size is allocated. */
    ENTRY_MIN_BYTES = 8 + 1 + 4 + 1,
    TENSOR_MIN_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
};

/* Bytes of a value; of a text or an array: the least they take. */
static const uint8_t VALUE_BYTES[DT_GGUF_COUNT] = {
    [DT_GGUF_U8] = 1,
    [DT_GGUF_I8] = 1,
    [DT_GGUF_U16] = 2,
    [DT_GGUF_I16] = 2,
    [DT_GGUF_U32] = 4,
    [DT_GGUF_I32] = 4,
    [DT_GGUF_F32] = 4,
    [DT_GGUF_BOOL] = 1,
    [DT_GGUF_TEXT] = 8,
    [DT_GGUF_ARRAY] = 12,
    [DT_GGUF_U64] = 8,
    [DT_GGUF_I64] = 8,
    [DT_GGUF_F64] = 8,
};

/* ---- reading */

typedef struct reader {
    const uint8_t *data;
    size_t n_bytes, pos;
} reader;

static dt_err need(const reader *r, uint64_t n_bytes, const char *what) {
    size_t left = r->n_bytes - r->pos;
    if (n_bytes > left)
        DT_FAIL(DT_ERR_INPUT,
            "the file is cut off or damaged: %s at byte %zu takes %" PRIu64 " bytes, %zu are left",
            what, r->pos, n_bytes, left);
    return DT_OK;
}

static dt_err read_u32(uint32_t *out, reader *r, const char *what) {
    DT_TRY(need(r, 4, what));
    memcpy(out, r->data + r->pos, 4);
    r->pos += 4;
    return DT_OK;
}

static dt_err read_u64(uint64_t *out, reader *r, const char *what) {
    DT_TRY(need(r, 8, what));
    memcpy(out, r->data + r->pos, 8);
    r->pos += 8;
    return DT_OK;
}

static dt_err read_text(dt_text *out, reader *r, const char *what) {
    uint64_t n;
    DT_TRY(read_u64(&n, r, what));
    DT_TRY(need(r, n, what));
    *out = (dt_text){(const char *)r->data + r->pos, (size_t)n};
    r->pos += n;
    return DT_OK;
}

/* A key or the name of a tensor: they are shown in messages, so control characters are refused. */
static dt_err read_name(dt_gguf_name *out, reader *r, int64_t i, size_t n_max, const char *what) {
    dt_text text;
    size_t at = r->pos;
    DT_TRY(read_text(&text, r, what));
    if (text.n_bytes < 1 || text.n_bytes > n_max)
        DT_FAIL(DT_ERR_INPUT, "%s at byte %zu: want a length of 1 to %zu, the file has %zu", what,
            at, n_max, text.n_bytes);
    for (size_t k = 0; k < text.n_bytes; k++) {
        unsigned char c = (unsigned char)text.data[k];
        if (c < 0x20 || c == 0x7f)
            DT_FAIL(DT_ERR_INPUT, "%s at byte %zu holds the control character 0x%02x", what, at, c);
    }
    *out = (dt_gguf_name){text.data, text.n_bytes, i};
    return DT_OK;
}

/* ---- names */

/* Copies the names into one pool, where they end with NUL; `names` (may be NULL) receives them by
 * index. */
static dt_err bind_names(char **pool_out, dt_gguf_name *refs, int64_t n, const char **names) {
    size_t n_bytes = 0;
    for (int64_t i = 0; i < n; i++)
        n_bytes += refs[i].n_bytes + 1;
    DT_TRY(dt_mem_alloc(pool_out, n_bytes));
    char *to = *pool_out;
    for (int64_t i = 0; i < n; i++) {
        memcpy(to, refs[i].text, refs[i].n_bytes);
        to[refs[i].n_bytes] = '\0';
        refs[i].text = to;
        if (names)
            names[refs[i].i] = to;
        to += refs[i].n_bytes + 1;
    }
    return DT_OK;
}

static int compare_refs(const void *a, const void *b) {
    return strcmp(((const dt_gguf_name *)a)->text, ((const dt_gguf_name *)b)->text);
}

static dt_err sort_names(dt_gguf_name *refs, int64_t n, const char *what) {
    if (n == 0)
        return DT_OK;
    qsort(refs, (size_t)n, sizeof *refs, compare_refs);
    for (int64_t i = 1; i < n; i++)
        if (strcmp(refs[i - 1].text, refs[i].text) == 0)
            DT_FAIL(DT_ERR_INPUT, "%s %.255s is there twice", what, refs[i].text);
    return DT_OK;
}

/* ---- metadata */

/* Reads a scalar integer of its kind at `p`; false if it is above INT64_MAX. */
static bool load_int(int64_t *out, const uint8_t *p, dt_gguf_kind k) {
    uint64_t bits = 0;
    int n_bits = 8 * VALUE_BYTES[k];
    memcpy(&bits, p, VALUE_BYTES[k]);
    bool is_signed = k == DT_GGUF_I8 || k == DT_GGUF_I16 || k == DT_GGUF_I32 || k == DT_GGUF_I64;
    if (is_signed && n_bits < 64 && bits >> (n_bits - 1))
        bits |= UINT64_MAX << n_bits;
    *out = (int64_t)bits;
    return is_signed || bits <= INT64_MAX;
}

static double load_real(const uint8_t *p, dt_gguf_kind k) {
    float f;
    double d;
    if (k == DT_GGUF_F64) {
        memcpy(&d, p, 8);
        return d;
    }
    memcpy(&f, p, 4);
    return f;
}

static dt_err read_array(dt_gguf_entry *e, reader *r) {
    uint32_t raw;
    uint64_t n;
    DT_TRY(read_u32(&raw, r, "the element type of an array"));
    DT_TRY(read_u64(&n, r, "the length of an array"));
    if (raw >= DT_GGUF_COUNT)
        DT_FAIL(DT_ERR_INPUT, "want an element type of 0 to %d, the file has %u", DT_GGUF_COUNT - 1,
            raw);
    if (raw == DT_GGUF_ARRAY)
        DT_FAIL(DT_ERR_UNSUPPORTED, "arrays of arrays are not read");
    e->kind = (dt_gguf_kind)raw;
    e->is_array = true;
    size_t item_bytes = VALUE_BYTES[raw], left = r->n_bytes - r->pos;
    if (n > left / item_bytes)
        DT_FAIL(DT_ERR_INPUT,
            "the file is cut off or damaged: %" PRIu64 " elements of at least %zu bytes, %zu bytes "
            "are left",
            n, item_bytes, left);
    e->n = (int64_t)n;
    const uint8_t *p = r->data + r->pos;
    switch (dt_gguf_class_of(e->kind)) {
    case DT_GGUF_CLASS_TEXT: {
        DT_TRY(dt_mem_alloc(&e->items, (size_t)n * sizeof(dt_text)));
        dt_text *texts = e->items;
        for (uint64_t i = 0; i < n; i++)
            DT_TRY(read_text(&texts[i], r, "a text of an array"));
        return DT_OK;
    }
    case DT_GGUF_CLASS_REAL: {
        DT_TRY(dt_mem_alloc(&e->items, (size_t)n * sizeof(float)));
        float *reals = e->items;
        for (uint64_t i = 0; i < n; i++)
            reals[i] = (float)load_real(p + i * item_bytes, e->kind);
        break;
    }
    case DT_GGUF_CLASS_INT: {
        DT_TRY(dt_mem_alloc(&e->items, (size_t)n * sizeof(int64_t)));
        int64_t *integers = e->items;
        for (uint64_t i = 0; i < n; i++) {
            if (!load_int(&integers[i], p + i * item_bytes, e->kind) && e->i_too_big < 0)
                e->i_too_big = (int64_t)i;
            if (e->kind == DT_GGUF_BOOL && integers[i] > 1)
                DT_FAIL(DT_ERR_INPUT, "element %" PRIu64 ": want a bool of 0 or 1, the file has %d",
                    i, (int)integers[i]);
        }
        break;
    }
    }
    r->pos += (size_t)n * item_bytes;
    return DT_OK;
}

static dt_err read_value(dt_gguf_entry *e, reader *r) {
    uint32_t raw;
    e->i_too_big = -1;
    DT_TRY(read_u32(&raw, r, "the type of a value"));
    if (raw >= DT_GGUF_COUNT)
        DT_FAIL(
            DT_ERR_INPUT, "want a value type of 0 to %d, the file has %u", DT_GGUF_COUNT - 1, raw);
    if (raw == DT_GGUF_ARRAY)
        return read_array(e, r);
    e->kind = (dt_gguf_kind)raw;
    if (raw == DT_GGUF_TEXT)
        return read_text(&e->text, r, "a text");
    DT_TRY(need(r, VALUE_BYTES[raw], "a value"));
    const uint8_t *p = r->data + r->pos;
    r->pos += VALUE_BYTES[raw];
    if (dt_gguf_class_of(e->kind) == DT_GGUF_CLASS_REAL)
        e->real = load_real(p, e->kind);
    else if (!load_int(&e->integer, p, e->kind))
        e->i_too_big = 0;
    if (e->kind == DT_GGUF_BOOL && e->integer > 1)
        DT_FAIL(DT_ERR_INPUT, "want a bool of 0 or 1, the file has %d", (int)e->integer);
    return DT_OK;
}

static dt_err read_entries(dt_gguf *gguf, reader *r, uint64_t n) {
    size_t left = r->n_bytes - r->pos;
    if (n > left / ENTRY_MIN_BYTES)
        DT_FAIL(DT_ERR_INPUT,
            "the file is cut off or damaged: it declares %" PRIu64 " keys, %zu bytes are left", n,
            left);
    DT_TRY(dt_mem_alloc(&gguf->entries, (size_t)n * sizeof *gguf->entries));
    DT_TRY(dt_mem_alloc(&gguf->key_refs, (size_t)n * sizeof *gguf->key_refs));
    DT_TRY(dt_mem_alloc(&gguf->keys, (size_t)n * sizeof *gguf->keys));
    for (uint64_t i = 0; i < n; i++) {
        dt_gguf_name *ref = &gguf->key_refs[i];
        DT_TRY(read_name(ref, r, (int64_t)i, KEY_MAX_BYTES, "a key"));
        gguf->n_entries = (int64_t)i + 1;
        dt_err err = read_value(&gguf->entries[i], r);
        if (err != DT_OK)
            return dt_err_prefix(
                err, "key %.*s", (int)DT_MIN(ref->n_bytes, (size_t)NAME_MAX_BYTES), ref->text);
    }
    DT_TRY(bind_names(&gguf->key_pool, gguf->key_refs, gguf->n_entries, gguf->keys));
    return sort_names(gguf->key_refs, gguf->n_entries, "key");
}

/* ---- tensors */

static dt_err read_shape(dt_tensor *t, reader *r) {
    uint32_t n_dims;
    DT_TRY(read_u32(&n_dims, r, "the number of dimensions"));
    if (n_dims < 1 || n_dims > 4)
        DT_FAIL(DT_ERR_INPUT, "want 1 to 4 dimensions, the file has %u", n_dims);
    t->n_dims = (int)n_dims;
    int64_t n_weights = 1;
    for (int i = 0; i < 4; i++) {
        uint64_t ne = 1;
        if (i < t->n_dims)
            DT_TRY(read_u64(&ne, r, "a shape"));
        if (ne < 1 || ne > INT64_MAX)
            DT_FAIL(DT_ERR_INPUT, "want a dimension of 1 to 2^63 - 1, the file has %" PRIu64, ne);
        if (__builtin_mul_overflow(n_weights, (int64_t)ne, &n_weights))
            DT_FAIL(DT_ERR_INPUT, "the shape multiplies to more than 2^63 - 1 weights");
        t->ne[i] = (int64_t)ne;
    }
    uint32_t type;
    DT_TRY(read_u32(&type, r, "a tensor's type"));
    if (!dt_type_known(type))
        DT_FAIL(DT_ERR_UNSUPPORTED, "its type %s is not read by this program", dt_type_name(type));
    t->type = (dt_type)type;
    int64_t block = dt_type_block(t->type), n_bytes;
    if (t->ne[0] % block != 0)
        DT_FAIL(DT_ERR_INPUT,
            "want columns in multiples of %" PRId64 " for %s, the file has %" PRId64, block,
            dt_type_name(type), t->ne[0]);
    if (__builtin_mul_overflow(n_weights / block, (int64_t)dt_type_block_bytes(t->type), &n_bytes))
        DT_FAIL(DT_ERR_INPUT, "its %" PRId64 " weights take more than 2^63 - 1 bytes", n_weights);
    t->n_bytes = (size_t)n_bytes;
    return DT_OK;
}

/* Between this and place_tensors, `data` is the tensor's offset into the data section. */
static dt_err read_tensors(dt_gguf *gguf, reader *r, uint64_t n, uint64_t alignment) {
    size_t left = r->n_bytes - r->pos;
    if (n > left / TENSOR_MIN_BYTES)
        DT_FAIL(DT_ERR_INPUT,
            "the file is cut off or damaged: it declares %" PRIu64 " tensors, %zu bytes are left",
            n, left);
    DT_TRY(dt_mem_alloc(&gguf->tensors, (size_t)n * sizeof *gguf->tensors));
    DT_TRY(dt_mem_alloc(&gguf->tensor_refs, (size_t)n * sizeof *gguf->tensor_refs));
    for (uint64_t i = 0; i < n; i++) {
        dt_gguf_name *ref = &gguf->tensor_refs[i];
        dt_tensor *t = &gguf->tensors[i];
        uint64_t offset;
        DT_TRY(read_name(ref, r, (int64_t)i, NAME_MAX_BYTES, "the name of a tensor"));
        dt_err err = read_shape(t, r);
        if (err != DT_OK)
            return dt_err_prefix(err, "tensor %.*s", (int)ref->n_bytes, ref->text);
        DT_TRY(read_u64(&offset, r, "a tensor's offset"));
        if (offset % alignment != 0)
            DT_FAIL(DT_ERR_INPUT,
                "tensor %.*s: want an offset in multiples of %" PRIu64 ", the file has %" PRIu64,
                (int)ref->n_bytes, ref->text, alignment, offset);
        t->data = (const void *)(uintptr_t)offset;
    }
    gguf->n_tensors = (int64_t)n;
    DT_TRY(bind_names(&gguf->tensor_pool, gguf->tensor_refs, gguf->n_tensors, NULL));
    for (int64_t i = 0; i < gguf->n_tensors; i++)
        gguf->tensors[i].name = gguf->tensor_refs[i].text;
    return DT_OK;
}

static int compare_places(const void *a, const void *b) {
    const dt_tensor *x = *(const dt_tensor *const *)a, *y = *(const dt_tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

static dt_err check_overlap(const dt_gguf *gguf) {
    const dt_tensor **order = NULL;
    DT_TRY(dt_mem_alloc(&order, (size_t)gguf->n_tensors * sizeof *order));
    for (int64_t i = 0; i < gguf->n_tensors; i++)
        order[i] = &gguf->tensors[i];
    if (gguf->n_tensors)
        qsort(order, (size_t)gguf->n_tensors, sizeof *order, compare_places);
    dt_err err = DT_OK;
    for (int64_t i = 1; i < gguf->n_tensors && err == DT_OK; i++)
        if ((const uint8_t *)order[i - 1]->data + order[i - 1]->n_bytes >
            (const uint8_t *)order[i]->data)
            err = DT_ERROR(DT_ERR_INPUT, "tensors %.200s and %.200s overlap", order[i - 1]->name,
                order[i]->name);
    dt_mem_free(order);
    return err;
}

static dt_err place_tensors(dt_gguf *gguf, const reader *r, uint64_t alignment) {
    size_t start = dt_round_up(r->pos, alignment);
    size_t n_data = start < r->n_bytes ? r->n_bytes - start : 0;
    for (int64_t i = 0; i < gguf->n_tensors; i++) {
        dt_tensor *t = &gguf->tensors[i];
        uint64_t offset = (uintptr_t)t->data;
        if (offset > n_data || t->n_bytes > n_data - offset)
            DT_FAIL(DT_ERR_INPUT,
                "the file is cut off or damaged: tensor %s takes %zu bytes at offset %" PRIu64
                " of the data, which has %zu",
                t->name, t->n_bytes, offset, n_data);
        t->data = r->data + start + offset;
    }
    return check_overlap(gguf);
}

/* ---- files */

static dt_err check_magic(const reader *r) {
    const uint8_t *p = r->data;
    if (r->n_bytes >= 4 && memcmp(p, "FUGG", 4) == 0)
        DT_FAIL(DT_ERR_UNSUPPORTED, "a big-endian GGUF file; only little-endian ones are read");
    if (r->n_bytes >= 8 && memcmp(p, "version ", 8) == 0)
        DT_FAIL(
            DT_ERR_INPUT, "a Git LFS pointer, not the model itself: fetch it with git lfs pull");
    if (memcmp(p, "GGUF", DT_MIN(r->n_bytes, (size_t)4)) != 0)
        DT_FAIL(DT_ERR_INPUT,
            "not a GGUF file: want the first bytes \"GGUF\", the file has "
            "%02x %02x %02x %02x",
            p[0], r->n_bytes > 1 ? p[1] : 0, r->n_bytes > 2 ? p[2] : 0, r->n_bytes > 3 ? p[3] : 0);
    return need(r, 4, "the magic number");
}

static dt_err parse(dt_gguf *gguf) {
    reader r = {gguf->map.data, gguf->map.n_bytes, 0};
    DT_TRY(check_magic(&r));
    r.pos = 4;
    DT_TRY(read_u32(&gguf->version, &r, "the version"));
    if (gguf->version != 0 && (gguf->version & 0xffff) == 0)
        DT_FAIL(DT_ERR_UNSUPPORTED, "a big-endian GGUF file; only little-endian ones are read");
    if (gguf->version != 2 && gguf->version != 3)
        DT_FAIL(DT_ERR_UNSUPPORTED, "want GGUF version 2 or 3, the file has %u", gguf->version);
    uint64_t n_tensors, n_entries;
    DT_TRY(read_u64(&n_tensors, &r, "the number of tensors"));
    DT_TRY(read_u64(&n_entries, &r, "the number of keys"));
    DT_TRY(read_entries(gguf, &r, n_entries));

    /* The specification wants multiples of 8, which also keeps float tensors aligned for us. */
    int64_t alignment = ALIGNMENT_DEFAULT;
    DT_TRY(dt_gguf_get_int(gguf, "general.alignment", &alignment));
    if (alignment < 8 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
        DT_FAIL(DT_ERR_INPUT,
            "key general.alignment: want a power of two from 8 to %d, the file has %" PRId64,
            ALIGNMENT_MAX, alignment);
    DT_TRY(read_tensors(gguf, &r, n_tensors, (uint64_t)alignment));
    return place_tensors(gguf, &r, (uint64_t)alignment);
}

/* One file by itself; its tensor names are not sorted yet. */
static dt_err open_file(dt_gguf **out, const char *path) {
    dt_gguf *gguf;
    *out = NULL;
    DT_TRY(dt_mem_alloc(&gguf, sizeof *gguf));
    size_t n_bytes = strlen(path) + 1;
    dt_err err = dt_mem_alloc(&gguf->path, n_bytes);
    if (err == DT_OK) {
        memcpy(gguf->path, path, n_bytes);
        err = dt_file_map_open(&gguf->map, path);
    }
    if (err == DT_OK) {
        err = parse(gguf);
        if (err != DT_OK)
            dt_err_prefix(err, "%.255s", path);
    }
    if (err != DT_OK) {
        dt_gguf_close(gguf);
        return err;
    }
    *out = gguf;
    return DT_OK;
}

enum { SUFFIX_BYTES = 20 }; /* "-00001-of-00003.gguf" */

static void part_suffix(char out[32], int i_part, int n_parts) {
    snprintf(out, 32, "-%05d-of-%05d.gguf", i_part % 100000 + 1, n_parts % 100000);
}

static dt_err read_split(const dt_gguf *gguf, int *i_part, int *n_parts) {
    int64_t no = 0, count = 1;
    DT_TRY(dt_gguf_get_int(gguf, "split.count", &count));
    DT_TRY(dt_gguf_get_int(gguf, "split.no", &no));
    if (count == 0)
        count = 1;
    if (count < 0 || count > PARTS_MAX || no < 0 || no >= count)
        DT_FAIL(DT_ERR_INPUT,
            "%.255s: want split.no below split.count, at most %d; the file has %" PRId64
            " and %" PRId64,
            gguf->path, PARTS_MAX, no, count);
    *i_part = (int)no;
    *n_parts = (int)count;
    return DT_OK;
}

static dt_err open_part(dt_gguf *gguf, char *path, int i_part, int n_parts) {
    dt_gguf **slot = &gguf->parts[i_part - 1];
    dt_err err = open_file(slot, path);
    if (err != DT_OK)
        return dt_err_prefix(err, "part %d of %d", i_part + 1, n_parts);
    gguf->n_parts = i_part;
    int no, count;
    DT_TRY(read_split(*slot, &no, &count));
    if (no != i_part || count != n_parts)
        DT_FAIL(DT_ERR_INPUT, "%.255s: want part %d of %d, the file says it is part %d of %d", path,
            i_part + 1, n_parts, no + 1, count);
    return DT_OK;
}

/* Opens the parts that follow a first one and makes one directory of all their tensors. */
static dt_err open_parts(dt_gguf *gguf, int n_parts) {
    char suffix[32];
    size_t n_path = strlen(gguf->path);
    part_suffix(suffix, 0, n_parts);
    if (n_path < SUFFIX_BYTES || strcmp(gguf->path + n_path - SUFFIX_BYTES, suffix) != 0)
        DT_FAIL(DT_ERR_INPUT,
            "%.255s is the first of %d parts, which are found by name: its name must end in %s",
            gguf->path, n_parts, suffix);
    DT_TRY(dt_mem_alloc(&gguf->parts, (size_t)n_parts * sizeof *gguf->parts));
    char *path;
    DT_TRY(dt_mem_alloc(&path, n_path + 1));
    memcpy(path, gguf->path, n_path + 1);
    dt_err err = DT_OK;
    int64_t n_all = gguf->n_tensors;
    for (int i = 1; i < n_parts && err == DT_OK; i++) {
        part_suffix(suffix, i, n_parts);
        memcpy(path + n_path - SUFFIX_BYTES, suffix, SUFFIX_BYTES);
        err = open_part(gguf, path, i, n_parts);
        if (err == DT_OK)
            n_all += gguf->parts[i - 1]->n_tensors;
    }
    dt_mem_free(path);
    DT_TRY(err);

    int64_t n_want = n_all;
    DT_TRY(dt_gguf_get_int(gguf, "split.tensors.count", &n_want));
    if (n_want != n_all)
        DT_FAIL(DT_ERR_INPUT,
            "%.255s: want %" PRId64 " tensors in all parts together, the files have %" PRId64,
            gguf->path, n_want, n_all);
    dt_tensor *all;
    DT_TRY(dt_mem_alloc(&all, (size_t)n_all * sizeof *all));
    int64_t n = gguf->n_tensors;
    memcpy(all, gguf->tensors, (size_t)n * sizeof *all);
    for (int i = 0; i < gguf->n_parts; i++) {
        const dt_gguf *part = gguf->parts[i];
        memcpy(all + n, part->tensors, (size_t)part->n_tensors * sizeof *all);
        n += part->n_tensors;
    }
    dt_mem_free(gguf->tensors);
    gguf->tensors = all;
    gguf->n_tensors = n_all;
    dt_mem_free(gguf->tensor_refs);
    DT_TRY(dt_mem_alloc(&gguf->tensor_refs, (size_t)n_all * sizeof *gguf->tensor_refs));
    for (int64_t i = 0; i < n_all; i++)
        gguf->tensor_refs[i] = (dt_gguf_name){all[i].name, 0, i};
    return DT_OK;
}

static dt_err open_all(dt_gguf *gguf) {
    int i_part, n_parts;
    DT_TRY(read_split(gguf, &i_part, &n_parts));
    if (i_part > 0) {
        char suffix[32];
        part_suffix(suffix, 0, n_parts);
        DT_FAIL(DT_ERR_INPUT, "%.255s is part %d of %d: open the first part (its name ends in %s)",
            gguf->path, i_part + 1, n_parts, suffix);
    }
    if (n_parts > 1)
        DT_TRY(open_parts(gguf, n_parts));
    dt_err err = sort_names(gguf->tensor_refs, gguf->n_tensors, "tensor");
    return err == DT_OK ? DT_OK : dt_err_prefix(err, "%.255s", gguf->path);
}

dt_err dt_gguf_open(dt_gguf **out, const char *path) {
    dt_gguf *gguf;
    *out = NULL;
    DT_TRY(open_file(&gguf, path));
    dt_err err = open_all(gguf);
    if (err != DT_OK) {
        dt_gguf_close(gguf);
        return err;
    }
    *out = gguf;
    return DT_OK;
}

void dt_gguf_close(dt_gguf *gguf) {
    if (!gguf)
        return;
    for (int i = 0; i < gguf->n_parts; i++)
        dt_gguf_close(gguf->parts[i]);
    dt_mem_free(gguf->parts);
    for (int64_t i = 0; i < gguf->n_entries; i++)
        dt_mem_free(gguf->entries[i].items);
    dt_mem_free(gguf->entries);
    dt_mem_free(gguf->key_refs);
    dt_mem_free(gguf->key_pool);
    dt_mem_free(gguf->keys);
    dt_mem_free(gguf->tensors);
    dt_mem_free(gguf->tensor_refs);
    dt_mem_free(gguf->tensor_pool);
    dt_file_map_close(&gguf->map);
    dt_mem_free(gguf->path);
    dt_mem_free(gguf);
}
