/* Memory and mapped files. Nothing here but the clock is called from the decode loop. Any thread.
 */
#ifndef DT_BASE_MEM_H
#define DT_BASE_MEM_H

#include "src/base/common.h"

/* Zero-filled, aligned to 64 bytes; `*out` is NULL on failure (DT_ERR_MEMORY). n_bytes may be 0. */
dt_err dt_mem_alloc(void *out /* T ** */, size_t n_bytes);
void dt_mem_free(void *p);

/* A zero-filled region of whole pages, on huge pages where the system grants them. Free it with
 * the same size. */
dt_err dt_mem_map_huge(void *out /* T ** */, size_t n_bytes);
void dt_mem_unmap(void *p, size_t n_bytes);

/* The same, but address space alone: pages are taken when they are first written, without a promise
 * that they will be there. */
dt_err dt_mem_reserve(void *out /* T ** */, size_t n_bytes);

/* A file mapped for reading. `data` is valid until the unmap. An empty file is DT_ERR_INPUT. */
typedef struct dt_file_map {
    const uint8_t *data;
    size_t n_bytes;
} dt_file_map;

dt_err dt_file_map_open(dt_file_map *out, const char *path);
void dt_file_map_close(dt_file_map *map); /* takes a zeroed one too */

/* Drops the resident pages that lie wholly inside [data, data + n_bytes) of a mapped file; they are
 * read again when touched. */
void dt_file_map_release(const void *data, size_t n_bytes);

/* Monotonic clock in nanoseconds. */
int64_t dt_time_ns(void);

#endif
