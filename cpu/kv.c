#include "cpu/kv.h"

#include <string.h>

#include "src/base/mem.h"

static void lay_out(dt_kv *kv, const dt_config *c, int n_rows) {
    memset(kv, 0, sizeof *kv);
    kv->n_heads = c->n_layer * c->n_head_kv;
    kv->head_dim = c->head_dim;
    kv->v_stride = (int)dt_round_up((size_t)c->head_dim, 16);
    kv->head_keys = DT_ATTN_RANGE * (size_t)kv->head_dim;
    kv->head_values = DT_ATTN_RANGE * (size_t)kv->v_stride;
    kv->key_step = (size_t)kv->n_heads * kv->head_keys;
    kv->value_step = (size_t)kv->n_heads * kv->head_values;
    size_t n_steps = ((size_t)n_rows + DT_ATTN_RANGE - 1) / DT_ATTN_RANGE;
    kv->keys_bytes = n_steps * kv->key_step * sizeof *kv->keys;
    kv->values_bytes = n_steps * kv->value_step * sizeof *kv->values;
}

size_t dt_kv_bytes(const dt_config *c, int n_rows) {
    dt_kv kv;
    lay_out(&kv, c, n_rows);
    return kv.keys_bytes + kv.values_bytes;
}

dt_err dt_kv_open(dt_kv *kv, const dt_config *c, int n_rows) {
    lay_out(kv, c, n_rows);
    DT_TRY(dt_mem_reserve(&kv->keys, kv->keys_bytes));
    return dt_mem_reserve(&kv->values, kv->values_bytes);
}

void dt_kv_close(dt_kv *kv) {
    dt_mem_unmap(kv->keys, kv->keys_bytes);
    dt_mem_unmap(kv->values, kv->values_bytes);
    memset(kv, 0, sizeof *kv);
}

/* Where element 0 of a row's key lies (its others 16 apart), and its value. */
static uint16_t *key_at(const dt_kv *kv, int i_head, int row) {
    int step = row / DT_ATTN_RANGE, in = row % DT_ATTN_RANGE;
    return kv->keys + (size_t)step * kv->key_step + (size_t)i_head * kv->head_keys +
           (size_t)(in / 16) * (size_t)kv->head_dim * 16 + (size_t)(in % 16);
}

static uint16_t *value_at(const dt_kv *kv, int i_head, int row) {
    int step = row / DT_ATTN_RANGE, in = row % DT_ATTN_RANGE;
    return kv->values + (size_t)step * kv->value_step + (size_t)i_head * kv->head_values +
           (size_t)in * (size_t)kv->v_stride;
}

void dt_kv_store(dt_kv *kv, const dt_kernels *kernels, int i_head, int row, const float *key,
    const float *value) {
    uint16_t half[16], *at = key_at(kv, i_head, row);
    for (int d = 0; d < kv->head_dim; d += 16) {
        int n = DT_MIN(16, kv->head_dim - d);
        kernels->to_f16(half, key + d, n);
        for (int i = 0; i < n; i++)
            at[(size_t)(d + i) * 16] = half[i];
    }
    kernels->to_f16(value_at(kv, i_head, row), value, kv->head_dim);
}

void dt_kv_move(dt_kv *kv, const dt_row_move *moves, int n_moves) {
    for (int i = 0; n_moves > 0 && i < kv->n_heads; i++) {
        for (int j = 0; j < n_moves; j++) {
            const uint16_t *from = key_at(kv, i, moves[j].from);
            uint16_t *to = key_at(kv, i, moves[j].to);
            for (size_t d = 0; d < (size_t)kv->head_dim; d++)
                to[d * 16] = from[d * 16];
            memcpy(value_at(kv, i, moves[j].to), value_at(kv, i, moves[j].from),
                (size_t)kv->v_stride * sizeof *kv->values);
        }
    }
}
