#include "models/rows.h"

#include <string.h>

#include "src/base/mem.h"

dt_err dt_rows_init(dt_rows *rows, int n_max) {
    memset(rows, 0, sizeof *rows);
    if (n_max < 1)
        DT_FAIL(DT_ERR_INPUT, "want a KV cache of at least 1 row, not %d", n_max);
    DT_TRY(dt_mem_alloc(&rows->parent, (size_t)n_max * sizeof *rows->parent));
    dt_err err = dt_mem_alloc(&rows->position, (size_t)n_max * sizeof *rows->position);
    if (err != DT_OK) {
        dt_rows_deinit(rows);
        return err;
    }
    rows->n_max = n_max;
    return DT_OK;
}

void dt_rows_deinit(dt_rows *rows) {
    dt_mem_free(rows->parent);
    dt_mem_free(rows->position);
    memset(rows, 0, sizeof *rows);
}

static bool is_speculative(const dt_rows *rows, int32_t row) {
    return row >= rows->n_committed && row < rows->n_used;
}

dt_err dt_rows_append(int32_t *row_out, dt_rows *rows, int32_t parent) {
    if (parent != dt_rows_last(rows) && !is_speculative(rows, parent))
        DT_FAIL(DT_ERR_INTERNAL,
            "row %d cannot be a parent: neither the last committed row (%d) nor a speculative one "
            "(%d to %d)",
            parent, dt_rows_last(rows), rows->n_committed, rows->n_used - 1);
    if (rows->n_used >= rows->n_max)
        DT_FAIL(DT_ERR_LIMIT, "the KV cache is full: all its %d rows are used", rows->n_max);
    int32_t row = rows->n_used++;
    rows->parent[row] = parent;
    rows->position[row] = parent < 0 ? 0 : dt_rows_position(rows, parent) + 1;
    *row_out = row;
    return DT_OK;
}

int dt_rows_ancestors(int32_t *out, const dt_rows *rows, int32_t row) {
    int n = rows->position[row] - rows->n_committed + 1;
    for (int i = n - 1; i >= 0; i--) {
        out[i] = row;
        row = rows->parent[row];
    }
    return n;
}

/* Index of `row` in an ascending list, -1 if it is not there. */
static int find_row(const int32_t *list, int n, int32_t row) {
    int low = 0, high = n;
    while (low < high) {
        int mid = low + (high - low) / 2;
        if (list[mid] == row)
            return mid;
        if (list[mid] < row)
            low = mid + 1;
        else
            high = mid;
    }
    return -1;
}

/* A parent lies before its child, so a valid path ascends and `rest` lies wholly behind it: the two
 * lists together ascend, which is what makes moves in order safe. */
static dt_err check_keep(
    const dt_rows *rows, const int32_t *path, int n_path, const int32_t *rest, int n_rest) {
    int32_t last = dt_rows_last(rows);
    for (int i = 0; i < n_path; i++) {
        if (!is_speculative(rows, path[i]) || rows->parent[path[i]] != last)
            DT_FAIL(DT_ERR_INTERNAL, "row %d of the path is no speculative child of row %d",
                path[i], last);
        last = path[i];
    }
    for (int i = 0; i < n_rest; i++) {
        if (!is_speculative(rows, rest[i]) || (i > 0 && rest[i] <= rest[i - 1]))
            DT_FAIL(
                DT_ERR_INTERNAL, "rows to keep must be speculative and ascend: row %d", rest[i]);
        int32_t parent = rows->parent[rest[i]];
        if (parent != last && find_row(rest, i, parent) < 0)
            DT_FAIL(DT_ERR_INTERNAL, "row %d is kept without its parent, row %d", rest[i], parent);
    }
    return DT_OK;
}

dt_err dt_rows_keep(dt_row_move *moves, int *n_moves_out, dt_rows *rows, const int32_t *path,
    int n_path, const int32_t *rest, int n_rest) {
    *n_moves_out = 0;
    DT_TRY(check_keep(rows, path, n_path, rest, n_rest));
    int32_t old_last = n_path > 0 ? path[n_path - 1] : dt_rows_last(rows);
    int32_t to = rows->n_committed;
    int n_moves = 0;
    for (int i = 0; i < n_path; i++, to++)
        if (path[i] != to)
            moves[n_moves++] = (dt_row_move){path[i], to};
    rows->n_committed = to;
    for (int i = 0; i < n_rest; i++, to++) {
        int32_t from = rest[i], parent = rows->parent[from];
        rows->parent[to] =
            parent == old_last ? dt_rows_last(rows) : rows->n_committed + find_row(rest, i, parent);
        rows->position[to] = rows->position[from];
        if (from != to)
            moves[n_moves++] = (dt_row_move){from, to};
    }
    rows->n_used = to;
    *n_moves_out = n_moves;
    return DT_OK;
}

void dt_rows_truncate(dt_rows *rows, int n) {
    if (n < rows->n_committed)
        rows->n_committed = n < 0 ? 0 : n;
    rows->n_used = rows->n_committed;
}
