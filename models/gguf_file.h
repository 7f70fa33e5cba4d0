/* Private to models/: what an opened GGUF file is, for gguf.c, which reads it, and gguf_get.c,
 * which answers questions about it. Immutable after open; owned by the dt_gguf. */
#ifndef DT_MODELS_GGUF_FILE_H
#define DT_MODELS_GGUF_FILE_H

#include "models/gguf.h"
#include "src/base/mem.h"

/* Values are those of the specification. */
typedef enum dt_gguf_kind {
    DT_GGUF_U8,
    DT_GGUF_I8,
    DT_GGUF_U16,
    DT_GGUF_I16,
    DT_GGUF_U32,
    DT_GGUF_I32,
    DT_GGUF_F32,
    DT_GGUF_BOOL,
    DT_GGUF_TEXT,
    DT_GGUF_ARRAY,
    DT_GGUF_U64,
    DT_GGUF_I64,
    DT_GGUF_F64,
    DT_GGUF_COUNT,
} dt_gguf_kind;

typedef enum dt_gguf_class {
    DT_GGUF_CLASS_INT,
    DT_GGUF_CLASS_REAL,
    DT_GGUF_CLASS_TEXT,
} dt_gguf_class;

static inline dt_gguf_class dt_gguf_class_of(dt_gguf_kind k) {
    return k == DT_GGUF_TEXT                      ? DT_GGUF_CLASS_TEXT
           : k == DT_GGUF_F32 || k == DT_GGUF_F64 ? DT_GGUF_CLASS_REAL
                                                  : DT_GGUF_CLASS_INT;
}

/* One key of the metadata. A scalar's fields are used as its class says; an array's elements are
 * converted once, at open, since getters must not allocate. */
typedef struct dt_gguf_entry {
    dt_gguf_kind kind; /* of the elements, if an array */
    bool is_array;
    int64_t n;         /* elements of an array */
    int64_t i_too_big; /* element above INT64_MAX, -1 for none; 0 if a scalar is */
    int64_t integer;
    double real;
    dt_text text;
    void *items; /* int64_t, float or dt_text [n], owned */
} dt_gguf_entry;

/* A directory of names: unsorted while it is filled, sorted for finding afterwards. */
typedef struct dt_gguf_name {
    const char *text;
    size_t n_bytes; /* until bound; `text` ends with NUL then */
    int64_t i;
} dt_gguf_name;

struct dt_gguf {
    char *path;
    dt_file_map map;
    uint32_t version;
    int64_t n_entries, n_tensors;
    dt_gguf_entry *entries;
    dt_gguf_name *key_refs, *tensor_refs;
    char *key_pool, *tensor_pool; /* the names again, each with its NUL */
    const char **keys;            /* [n_entries] in file order */
    dt_tensor *tensors;
    dt_gguf **parts; /* parts 2.. of a split file */
    int n_parts;     /* parts opened in `parts` */
};

#endif
