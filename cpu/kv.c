#include "cpu/kv.h"

#include <string.h>

#include "src/base/dtype.h"
#include "src/base/fmath.h"
#include "src/base/mem.h"

static size_t element_bytes(const dt_kv *kv) {
    return kv->type == DT_KV_F16 ? sizeof(uint16_t) : sizeof(int8_t);
}

static void lay_out(dt_kv *kv, const dt_config *c, int n_rows, dt_kv_type type) {
    memset(kv, 0, sizeof *kv);
    kv->type = type;
    kv->n_heads = c->n_layer * c->n_head_kv;
    kv->head_dim = c->head_dim;
    kv->v_stride = (int)dt_round_up((size_t)c->head_dim, 16);
    kv->head_keys = DT_ATTN_RANGE * (size_t)kv->head_dim;
    kv->head_values = DT_ATTN_RANGE * (size_t)kv->v_stride;
    kv->key_step = (size_t)kv->n_heads * kv->head_keys;
    kv->value_step = (size_t)kv->n_heads * kv->head_values;
    size_t n_steps = ((size_t)n_rows + DT_ATTN_RANGE - 1) / DT_ATTN_RANGE;
    kv->keys_bytes = n_steps * kv->key_step * element_bytes(kv);
    kv->values_bytes = n_steps * kv->value_step * element_bytes(kv);
    if (type == DT_KV_F16)
        return;
    kv->n_blocks = dt_kv_blocks(kv->head_dim);
    kv->head_scales = DT_ATTN_RANGE * (size_t)kv->n_blocks;
    kv->scale_step = (size_t)kv->n_heads * kv->head_scales;
    kv->scales_bytes = n_steps * kv->scale_step * sizeof(uint16_t);
}

size_t dt_kv_bytes(const dt_config *c, int n_rows, dt_kv_type type) {
    dt_kv kv;
    lay_out(&kv, c, n_rows, type);
    return kv.keys_bytes + kv.values_bytes + 2 * kv.scales_bytes;
}

dt_err dt_kv_open(dt_kv *kv, const dt_config *c, int n_rows, dt_kv_type type) {
    lay_out(kv, c, n_rows, type);
    DT_TRY(dt_mem_reserve(&kv->keys, kv->keys_bytes));
    DT_TRY(dt_mem_reserve(&kv->values, kv->values_bytes));
    if (type == DT_KV_F16)
        return DT_OK;
    DT_TRY(dt_mem_reserve(&kv->key_scales, kv->scales_bytes));
    return dt_mem_reserve(&kv->value_scales, kv->scales_bytes);
}

void dt_kv_close(dt_kv *kv) {
    dt_mem_unmap(kv->keys, kv->keys_bytes);
    dt_mem_unmap(kv->values, kv->values_bytes);
    dt_mem_unmap(kv->key_scales, kv->scales_bytes);
    dt_mem_unmap(kv->value_scales, kv->scales_bytes);
    memset(kv, 0, sizeof *kv);
}

/* Element 0 of a row's key (its others, and its scales, lie 16 apart), and of its value. */
static size_t key_at(const dt_kv *kv, int i_head, int row) {
    size_t step = (size_t)row / DT_ATTN_RANGE, in = (size_t)row % DT_ATTN_RANGE;
    return step * kv->key_step + (size_t)i_head * kv->head_keys +
           in / 16 * (size_t)kv->head_dim * 16 + in % 16;
}

static size_t value_at(const dt_kv *kv, int i_head, int row) {
    size_t step = (size_t)row / DT_ATTN_RANGE, in = (size_t)row % DT_ATTN_RANGE;
    return step * kv->value_step + (size_t)i_head * kv->head_values + in * (size_t)kv->v_stride;
}

static size_t key_scale_at(const dt_kv *kv, int i_head, int row) {
    size_t step = (size_t)row / DT_ATTN_RANGE, in = (size_t)row % DT_ATTN_RANGE;
    return step * kv->scale_step + (size_t)i_head * kv->head_scales +
           in / 16 * (size_t)kv->n_blocks * 16 + in % 16;
}

static size_t value_scale_at(const dt_kv *kv, int i_head, int row) {
    size_t step = (size_t)row / DT_ATTN_RANGE, in = (size_t)row % DT_ATTN_RANGE;
    return step * kv->scale_step + (size_t)i_head * kv->head_scales + in * (size_t)kv->n_blocks;
}

uint16_t dt_kv_quantise(int8_t *q, size_t q_stride, const float *x, int n) {
    uint32_t largest = 0;
    for (int i = 0; i < n; i++)
        largest = DT_MAX(largest, dt_f32_bits(x[i]) & 0x7fffffff);
    uint16_t scale = dt_f32_to_f16(dt_bits_f32(largest) / 127.0f);
    float d = dt_f16_to_f32(scale);
    for (int i = 0; i < n; i++) {
        float level = d > 0.0f && d < __builtin_inff() ? x[i] / d : 0.0f;
        level = level > -127.0f ? level : -127.0f;
        level = level < 127.0f ? level : 127.0f;
        q[(size_t)i * q_stride] = (int8_t)dt_rint_f32(level);
    }
    return scale;
}

static void store_q8(dt_kv *kv, int i_head, int row, const float *key, const float *value) {
    int8_t *keys = (int8_t *)kv->keys + key_at(kv, i_head, row);
    int8_t *values = (int8_t *)kv->values + value_at(kv, i_head, row);
    uint16_t *key_scales = kv->key_scales + key_scale_at(kv, i_head, row);
    uint16_t *value_scales = kv->value_scales + value_scale_at(kv, i_head, row);
    for (int b = 0; b < kv->n_blocks; b++) {
        int d = b * DT_KV_BLOCK, n = DT_MIN(DT_KV_BLOCK, kv->head_dim - d);
        key_scales[(size_t)b * 16] = dt_kv_quantise(keys + (size_t)d * 16, 16, key + d, n);
        value_scales[b] = dt_kv_quantise(values + d, 1, value + d, n);
    }
}

void dt_kv_store(dt_kv *kv, const dt_kernels *kernels, int i_head, int row, const float *key,
    const float *value) {
    if (kv->type == DT_KV_Q8_0) {
        store_q8(kv, i_head, row, key, value);
        return;
    }
    uint16_t half[16], *at = (uint16_t *)(void *)kv->keys + key_at(kv, i_head, row);
    for (int d = 0; d < kv->head_dim; d += 16) {
        int n = DT_MIN(16, kv->head_dim - d);
        kernels->to_f16(half, key + d, n);
        for (int i = 0; i < n; i++)
            at[(size_t)(d + i) * 16] = half[i];
    }
    kernels->to_f16(
        (uint16_t *)(void *)kv->values + value_at(kv, i_head, row), value, kv->head_dim);
}

static void move_row(dt_kv *kv, int i_head, int from, int to) {
    size_t k_from = key_at(kv, i_head, from), k_to = key_at(kv, i_head, to);
    size_t size = element_bytes(kv);
    for (size_t d = 0; d < (size_t)kv->head_dim; d++)
        memcpy(kv->keys + (k_to + d * 16) * size, kv->keys + (k_from + d * 16) * size, size);
    memcpy(kv->values + value_at(kv, i_head, to) * size,
        kv->values + value_at(kv, i_head, from) * size, (size_t)kv->v_stride * size);
    if (kv->type == DT_KV_F16)
        return;
    for (size_t b = 0; b < (size_t)kv->n_blocks; b++) {
        kv->key_scales[key_scale_at(kv, i_head, to) + b * 16] =
            kv->key_scales[key_scale_at(kv, i_head, from) + b * 16];
        kv->value_scales[value_scale_at(kv, i_head, to) + b] =
            kv->value_scales[value_scale_at(kv, i_head, from) + b];
    }
}

void dt_kv_move(dt_kv *kv, const dt_row_move *moves, int n_moves) {
    for (int i = 0; n_moves > 0 && i < kv->n_heads; i++)
        for (int j = 0; j < n_moves; j++)
            move_row(kv, i, moves[j].from, moves[j].to);
}
