/* Book-keeping of the rows of a KV cache: which hold committed tokens, which hold tokens of a tree
 * that may still be rejected. It knows nothing of where the rows lie; a device moves its memory by
 * the list that dt_rows_keep gives.
 *
 * Rows 0 .. n_committed-1 are committed and row i holds position i. Rows n_committed .. n_used-1
 * are speculative: each has a parent row (a speculative row before it, or the last committed row,
 * or -1 for position 0), and its position is its parent's + 1. Not thread-safe; owned by a
 * forward. */
#ifndef DT_MODELS_ROWS_H
#define DT_MODELS_ROWS_H

#include "src/base/common.h"

/* What a cache holds of keys and values (doc/numerics.md, "Keys and values"). */
typedef enum dt_kv_type {
    DT_KV_F16,
    DT_KV_Q8_0, /* int8 with a half-precision scale for 32 elements of a head */
} dt_kv_type;

typedef struct dt_rows {
    int n_max; /* capacity in rows */
    int n_committed;
    int n_used;
    int32_t *parent;   /* [n_max], of speculative rows */
    int32_t *position; /* [n_max], of speculative rows */
} dt_rows;

typedef struct dt_row_move {
    int32_t from, to; /* to <= from; apply in list order */
} dt_row_move;

dt_err dt_rows_init(dt_rows *rows, int n_max);
void dt_rows_deinit(dt_rows *rows);

/* The row that follows the committed ones as parent: n_committed - 1. */
static inline int32_t dt_rows_last(const dt_rows *rows) {
    return rows->n_committed - 1;
}

static inline int32_t dt_rows_position(const dt_rows *rows, int32_t row) {
    return row < rows->n_committed ? row : rows->position[row];
}

/* Appends one speculative row below `parent` (dt_rows_last or a speculative row) and returns it.
 * DT_ERR_LIMIT when the cache is full, DT_ERR_INTERNAL for a parent that is neither. */
dt_err dt_rows_append(int32_t *row_out, dt_rows *rows, int32_t parent);

/* Ancestors of a speculative row that are speculative themselves, and the row itself, by ascending
 * position, into out[position - n_committed]. Returns their number. */
int dt_rows_ancestors(int32_t *out, const dt_rows *rows, int32_t row);

/* Commits `path` (speculative rows, each the parent of the next, the first below the last committed
 * row) and keeps the speculative rows `rest` (ascending; the parent of each is the path's last row
 * or in `rest` before it); all other speculative rows are forgotten. Kept rows move down: the path
 * to n_committed.., then `rest` in order. `moves` (room for n_path + n_rest) receives the moves
 * that change a row's place. */
dt_err dt_rows_keep(dt_row_move *moves, int *n_moves_out, dt_rows *rows, const int32_t *path,
    int n_path, const int32_t *rest, int n_rest);

/* Forgets every speculative row and the committed ones from `n` on (n <= n_committed). */
void dt_rows_truncate(dt_rows *rows, int n);

#endif
