/* GGUF model files, versions 2 and 3, single or split ("-00001-of-00003.gguf"), mapped read-only.
 *
 * Every count, length, offset, alignment, type and shape in the header is checked against the size
 * of the file before it is used, so a damaged or hostile file gives DT_ERR_INPUT (or
 * DT_ERR_UNSUPPORTED with the type's name) and never a fault. Immutable after open; any thread.
 * Source: GGUF specification, "File structure" and "Standardized key-value pairs". */
#ifndef DT_MODELS_GGUF_H
#define DT_MODELS_GGUF_H

#include <string.h>

#include "src/base/dtype.h"

typedef struct dt_gguf dt_gguf;

/* Opens `path`; if it is the first part of a split file, its other parts too (their tensors are
 * one directory). Owner: the caller, until dt_gguf_close (which takes NULL). */
dt_err dt_gguf_open(dt_gguf **out, const char *path);
void dt_gguf_close(dt_gguf *gguf);

const char *dt_gguf_path(const dt_gguf *gguf);
/* Bytes of all parts together. */
size_t dt_gguf_file_bytes(const dt_gguf *gguf);
uint32_t dt_gguf_version(const dt_gguf *gguf);

int64_t dt_gguf_n_tensors(const dt_gguf *gguf);
const dt_tensor *dt_gguf_tensor(const dt_gguf *gguf, int64_t i_tensor);
/* NULL if the file has no tensor of that name. */
const dt_tensor *dt_gguf_find(const dt_gguf *gguf, const char *name);

/* Metadata. A getter leaves `*out` as it was when the key is absent, so the caller presets the
 * default; a value of another kind is DT_ERR_INPUT. Integers of every width are read as int64 (a
 * bool as 0 or 1), float32 and float64 as double. A value above INT64_MAX is DT_ERR_INPUT. */
bool dt_gguf_has(const dt_gguf *gguf, const char *key);
dt_err dt_gguf_get_int(const dt_gguf *gguf, const char *key, int64_t *out);
dt_err dt_gguf_get_float(const dt_gguf *gguf, const char *key, double *out);

/* Text in the file, not NUL-terminated, any bytes. */
typedef struct dt_text {
    const char *data;
    size_t n_bytes;
} dt_text;

static inline bool dt_text_same(dt_text a, dt_text b) {
    return a.n_bytes == b.n_bytes && (a.n_bytes == 0 || memcmp(a.data, b.data, a.n_bytes) == 0);
}

static inline bool dt_text_is(dt_text text, const char *word) {
    return dt_text_same(text, (dt_text){word, strlen(word)});
}

/* A piece of the text that can be put into a message: what is not printable ASCII becomes "?", a
 * long text ends in dots. Returns `out`. */
enum { DT_TEXT_SHOWN_BYTES = 68 };
const char *dt_text_shown(char out[DT_TEXT_SHOWN_BYTES], dt_text text);

dt_err dt_gguf_get_text(const dt_gguf *gguf, const char *key, dt_text *out);

/* Arrays. `*n_out` is 0 when the key is absent. Elements in constant time by index. */
dt_err dt_gguf_get_text_array(
    const dt_gguf *gguf, const char *key, const dt_text **out, int64_t *n_out);
/* Integers and bools of any width, converted; owned by the gguf. */
dt_err dt_gguf_get_int_array(
    const dt_gguf *gguf, const char *key, const int64_t **out, int64_t *n_out);
dt_err dt_gguf_get_float_array(
    const dt_gguf *gguf, const char *key, const float **out, int64_t *n_out);

/* For listings: the i-th key, its kind as text ("u32", "str", "[str]") and a short printable value
 * (escaped, cut to fit `n_bytes`). */
int64_t dt_gguf_n_keys(const dt_gguf *gguf);
const char *dt_gguf_key(const dt_gguf *gguf, int64_t i_key);
void dt_gguf_describe(const dt_gguf *gguf, int64_t i_key, char *out, size_t n_bytes);

#endif
