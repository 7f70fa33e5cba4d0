/* The rows of a KV cache against a model that knows every token by a number of its own: random
 * trees grow, are kept in part and cut back, and a plain array plays the cache's memory. */
#include "models/rows.h"
#include "tests/test.h"

enum { N_MAX = 96, N_OPS = 200000 };

/* What the model knows: the id, parent id and position of what lies in each row. */
typedef struct node {
    int64_t id, parent; /* -1: none */
    int32_t position;
} node;

typedef struct world {
    dt_rows rows;
    node want[N_MAX];    /* by row */
    int64_t cell[N_MAX]; /* the memory: id by row, moved by the lists of dt_rows_keep */
    int n_committed, n_used;
    int64_t next_id;
} world;

static int row_of(const world *w, int64_t id) {
    for (int i = 0; i < w->n_used; i++)
        if (w->want[i].id == id)
            return i;
    return -1;
}

static void check_world(const world *w) {
    const dt_rows *rows = &w->rows;
    CHECK(rows->n_committed == w->n_committed && rows->n_used == w->n_used);
    CHECK(dt_rows_last(rows) == w->n_committed - 1);
    for (int i = 0; i < w->n_used; i++) {
        CHECK_MSG(w->cell[i] == w->want[i].id, "row %d holds token %lld, want %lld", i,
            (long long)w->cell[i], (long long)w->want[i].id);
        CHECK(dt_rows_position(rows, i) == w->want[i].position);
        if (i < w->n_committed) {
            CHECK(w->want[i].position == i);
            continue;
        }
        int parent = rows->parent[i];
        CHECK(parent < i && (parent < 0 ? -1 : w->want[parent].id) == w->want[i].parent);
    }
    if (w->n_used == w->n_committed)
        return;
    /* The ancestors of the deepest row there is: the list must be as long as its depth. */
    int32_t row = w->n_used - 1, list[N_MAX];
    int n = dt_rows_ancestors(list, rows, row);
    CHECK(n == w->want[row].position - w->n_committed + 1);
    for (int64_t id = w->want[row].id; n > 0; n--) {
        CHECK(w->want[list[n - 1]].id == id);
        id = w->want[list[n - 1]].parent;
    }
}

static void append(world *w, test_rng *rng) {
    int32_t n_parents = w->n_used - w->n_committed + 1, row = -1;
    int32_t parent = w->n_committed - 1 + (int32_t)test_rng_below(rng, (uint32_t)n_parents);
    /* A bias to the newest row makes trees deep as well as wide. */
    if (test_rng_below(rng, 2))
        parent = w->n_used - 1;
    if (w->n_used == N_MAX) {
        CHECK_FAILS(dt_rows_append(&row, &w->rows, parent), DT_ERR_LIMIT, "full");
        return;
    }
    CHECK_OK(dt_rows_append(&row, &w->rows, parent));
    CHECK(row == w->n_used);
    w->want[row] = (node){w->next_id, parent < 0 ? -1 : w->want[parent].id,
        parent < 0 ? 0 : w->want[parent].position + 1};
    w->cell[row] = w->next_id++;
    w->n_used++;
}

static void append_wrong(world *w, test_rng *rng) {
    int32_t row, wrong;
    if (test_rng_below(rng, 2))
        wrong = w->n_used + (int32_t)test_rng_below(rng, 5);
    else
        wrong = w->n_committed - 2 - (int32_t)test_rng_below(rng, 3);
    CHECK_FAILS(dt_rows_append(&row, &w->rows, wrong), DT_ERR_INTERNAL, "parent");
}

/* A random walk down the tree; its length. */
static int choose_path(const world *w, test_rng *rng, int32_t *path) {
    int n = 0;
    int32_t last = w->n_committed - 1;
    while (test_rng_below(rng, 4)) {
        int32_t children[N_MAX];
        int n_children = 0;
        for (int32_t i = w->n_committed; i < w->n_used; i++)
            if (w->rows.parent[i] == last)
                children[n_children++] = i;
        if (n_children == 0)
            break;
        last = path[n++] = children[test_rng_below(rng, (uint32_t)n_children)];
    }
    return n;
}

static int choose_rest(const world *w, test_rng *rng, int32_t last, int32_t *rest) {
    bool kept[N_MAX] = {false};
    int n = 0;
    uint32_t chance = test_rng_below(rng, 5); /* of 4: none .. all */
    for (int32_t i = w->n_committed; i < w->n_used; i++) {
        int32_t parent = w->rows.parent[i];
        bool may = parent == last || (parent >= 0 && kept[parent]);
        if (may && test_rng_below(rng, 4) < chance) {
            kept[i] = true;
            rest[n++] = i;
        }
    }
    return n;
}

static void keep(world *w, test_rng *rng) {
    int32_t path[N_MAX], rest[N_MAX];
    int n_path = choose_path(w, rng, path);
    int n_rest = choose_rest(w, rng, n_path ? path[n_path - 1] : w->n_committed - 1, rest);
    node after[N_MAX];
    int n = w->n_committed, n_moves = -1;
    memcpy(after, w->want, sizeof after);
    for (int i = 0; i < n_path; i++)
        after[n++] = w->want[path[i]];
    for (int i = 0; i < n_rest; i++)
        after[n++] = w->want[rest[i]];
    dt_row_move moves[N_MAX];
    CHECK_OK(dt_rows_keep(moves, &n_moves, &w->rows, path, n_path, rest, n_rest));
    CHECK(n_moves >= 0 && n_moves <= n_path + n_rest);
    for (int i = 0; i < n_moves; i++) {
        CHECK(moves[i].to < moves[i].from && moves[i].from < w->n_used);
        w->cell[moves[i].to] = w->cell[moves[i].from];
    }
    memcpy(w->want, after, sizeof after);
    w->n_committed += n_path;
    w->n_used = n;
}

/* Lists that break the rules must be refused and change nothing. */
static void keep_wrong(world *w, test_rng *rng) {
    int32_t path[N_MAX + 1], rest[N_MAX + 1];
    int n_path = choose_path(w, rng, path), n_moves;
    int32_t last = n_path ? path[n_path - 1] : w->n_committed - 1;
    int n_rest = choose_rest(w, rng, last, rest);
    dt_row_move moves[2 * N_MAX + 2];
    switch (test_rng_below(rng, 4)) {
    case 0: /* the path skips a node, or starts twice */
        if (n_path < 2)
            return;
        path[0] = path[1];
        break;
    case 1: /* a committed row, or one that is not there */
        path[n_path++] = test_rng_below(rng, 2) ? w->n_committed - 1 : w->n_used;
        n_rest = 0;
        break;
    case 2: /* twice the same */
        if (n_rest < 1)
            return;
        rest[n_rest] = rest[n_rest - 1];
        n_rest++;
        break;
    case 3: /* an orphan: a row of the path itself has no parent among the kept */
        if (n_path < 1)
            return;
        rest[0] = path[0];
        n_rest = 1;
        break;
    }
    CHECK_FAILS(dt_rows_keep(moves, &n_moves, &w->rows, path, n_path, rest, n_rest),
        DT_ERR_INTERNAL, "row");
    CHECK(n_moves == 0);
}

static void truncate_rows(world *w, test_rng *rng) {
    int n = (int)test_rng_below(rng, (uint32_t)w->n_committed + 1);
    if (test_rng_below(rng, 2))
        n = w->n_committed;
    dt_rows_truncate(&w->rows, n);
    w->n_committed = w->n_used = n;
}

static void test_random(void) {
    test_rng rng = test_rng_open();
    static world w;
    CHECK_OK(dt_rows_init(&w.rows, N_MAX));
    int n_seen_full = 0;
    for (int i = 0; i < N_OPS && test_n_failed == 0; i++) {
        uint32_t op = test_rng_below(&rng, 100);
        if (op < 80)
            append(&w, &rng);
        else if (op < 90)
            keep(&w, &rng);
        else if (op < 94)
            keep_wrong(&w, &rng);
        else if (op < 97)
            append_wrong(&w, &rng);
        else if (op == 97 || w.n_committed > N_MAX / 2)
            truncate_rows(&w, &rng);
        n_seen_full += w.n_used == N_MAX;
        check_world(&w);
        for (int k = 0; k < w.n_used; k++)
            if (row_of(&w, w.want[k].id) != k)
                CHECK_MSG(false, "token %lld lies twice", (long long)w.want[k].id);
    }
    CHECK(n_seen_full > 100);
    dt_rows_deinit(&w.rows);
}

static void test_by_hand(void) {
    dt_rows rows;
    int32_t row;
    CHECK_FAILS(dt_rows_init(&rows, 0), DT_ERR_INPUT, "at least 1");
    CHECK_OK(dt_rows_init(&rows, 8));
    CHECK(dt_rows_last(&rows) == -1);
    /* 0 <- {1, 2}, 2 <- {3, 4}, 3 <- 5 */
    const int32_t parents[] = {-1, 0, 0, 2, 2, 3};
    for (int i = 0; i < 6; i++) {
        CHECK_OK(dt_rows_append(&row, &rows, parents[i]));
        CHECK(row == i);
    }
    CHECK(dt_rows_position(&rows, 5) == 3);
    dt_row_move moves[6];
    int n_moves;
    const int32_t path[] = {0, 2}, rest[] = {3, 5};
    CHECK_OK(dt_rows_keep(moves, &n_moves, &rows, path, 2, rest, 2));
    CHECK(n_moves == 3 && rows.n_committed == 2 && rows.n_used == 4);
    const dt_row_move want[] = {{2, 1}, {3, 2}, {5, 3}};
    for (int i = 0; i < 3; i++)
        CHECK(moves[i].from == want[i].from && moves[i].to == want[i].to);
    CHECK(rows.parent[2] == 1 && rows.parent[3] == 2);
    CHECK(dt_rows_position(&rows, 2) == 2 && dt_rows_position(&rows, 3) == 3);
    CHECK_OK(dt_rows_keep(moves, &n_moves, &rows, NULL, 0, NULL, 0));
    CHECK(n_moves == 0 && rows.n_committed == 2 && rows.n_used == 2);
    dt_rows_truncate(&rows, 5); /* beyond the end: nothing to forget */
    CHECK(rows.n_committed == 2);
    dt_rows_truncate(&rows, 1);
    CHECK(rows.n_committed == 1 && rows.n_used == 1);
    dt_rows_deinit(&rows);
    dt_rows_deinit(&rows);
}

int main(void) {
    test_by_hand();
    test_random();
    return test_end();
}
