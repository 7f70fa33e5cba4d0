#include "gpu/gpu_pack.h"

#include <string.h>

dt_gpu_shape dt_gpu_shape_of(dt_type type) {
    static const dt_gpu_shape shapes[DT_TYPE_COUNT] = {
        [DT_TYPE_F32] = {4, 1, 0, 0},
        [DT_TYPE_F16] = {8, 1, 0, 0},
        [DT_TYPE_BF16] = {8, 1, 0, 0},
        [DT_TYPE_Q4_0] = {32, 1, 0, 1},
        [DT_TYPE_Q4_1] = {32, 1, 1, 0},
        [DT_TYPE_Q5_0] = {32, 1, 1, 1},
        [DT_TYPE_Q5_1] = {32, 1, 2, 0},
        [DT_TYPE_Q8_0] = {32, 2, 0, 1},
        [DT_TYPE_IQ4_NL] = {32, 1, 0, 1},
        [DT_TYPE_Q3_K] = {256, 7, 0, 1},
        [DT_TYPE_Q4_K] = {256, 9, 0, 0},
        [DT_TYPE_Q5_K] = {256, 11, 0, 0},
        [DT_TYPE_Q6_K] = {256, 13, 0, 1},
        [DT_TYPE_IQ4_XS] = {256, 8, 2, 0},
    };
    return shapes[type];
}

void dt_gpu_matrix_of(dt_gpu_matrix *out, const dt_tensor *tensor) {
    dt_gpu_shape s = dt_gpu_shape_of(tensor->type);
    *out = (dt_gpu_matrix){
        .type = tensor->type,
        .n_out = (int)tensor->ne[1],
        .k = (int)tensor->ne[0],
        .n_blocks = ((int)tensor->ne[0] + s.n_block - 1) / s.n_block,
        .n_panels = ((int)tensor->ne[1] + DT_GPU_PANEL_ROWS - 1) / DT_GPU_PANEL_ROWS,
    };
    out->panel_bytes = (size_t)out->n_blocks * DT_GPU_PANEL_ROWS *
                       (size_t)(16 * s.n_vecs + 4 * s.n_words + 2 * s.n_halves);
}

/* One block's pieces. */
typedef struct pieces {
    uint8_t vecs[13][16];
    uint8_t words[2][4];
    uint8_t half[2];
} pieces;

/* hmask[32], q[64], scales[12], d. */
static void split_q3_K(pieces *p, const uint8_t *b) {
    const uint8_t *s = b + 96;
    memcpy(p->vecs, b, 96);
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
        p->vecs[6][j] = (uint8_t)((low | ((s[8 + j % 4] >> (2 * (j / 4))) & 3) << 4) - 32);
    }
    memcpy(p->half, b + 108, 2);
}

static void split(pieces *p, const uint8_t *b, dt_type type) {
    switch (type) {
    case DT_TYPE_Q4_0:
    case DT_TYPE_IQ4_NL:
        memcpy(p->half, b, 2);
        memcpy(p->vecs, b + 2, 16);
        break;
    case DT_TYPE_Q4_1:
        memcpy(p->words, b, 4);
        memcpy(p->vecs, b + 4, 16);
        break;
    case DT_TYPE_Q5_0:
        memcpy(p->half, b, 2);
        memcpy(p->words, b + 2, 4);
        memcpy(p->vecs, b + 6, 16);
        break;
    case DT_TYPE_Q5_1:
        memcpy(p->words, b, 8);
        memcpy(p->vecs, b + 8, 16);
        break;
    case DT_TYPE_Q8_0:
        memcpy(p->half, b, 2);
        memcpy(p->vecs, b + 2, 32);
        break;
    case DT_TYPE_Q4_K:
        memcpy(p->vecs, b, 144);
        break;
    case DT_TYPE_Q5_K:
        memcpy(p->vecs, b, 176);
        break;
    case DT_TYPE_Q6_K:
        memcpy(p->vecs, b, 208);
        memcpy(p->half, b + 208, 2);
        break;
    case DT_TYPE_Q3_K:
        split_q3_K(p, b);
        break;
    case DT_TYPE_IQ4_XS:
        memcpy(p->words, b, 8);
        memcpy(p->vecs, b + 8, 128);
        break;
    default: /* never reached: dt_gpu_shape_of knows no other */
        break;
    }
}

static void pack_floats(
    uint8_t *out, const uint8_t *row, size_t row_bytes, int n_blocks, int lane) {
    for (int b = 0; b < n_blocks; b++) {
        size_t at = (size_t)b * 16, n = DT_MIN(row_bytes - at, 16);
        memcpy(out + ((size_t)b * DT_GPU_PANEL_ROWS + (size_t)lane) * 16, row + at, n);
    }
}

static void pack_row(
    uint8_t *out, const uint8_t *row, const dt_gpu_matrix *m, dt_gpu_shape s, int lane) {
    enum { R = DT_GPU_PANEL_ROWS };
    size_t n_blocks = (size_t)m->n_blocks, block_bytes = (size_t)dt_type_block_bytes(m->type);
    size_t n_vecs = (size_t)s.n_vecs, n_words = (size_t)s.n_words, at = (size_t)lane;
    uint8_t *words = out + n_blocks * n_vecs * R * 16, *halves = words + n_blocks * n_words * R * 4;
    for (size_t b = 0; b < n_blocks; b++) {
        pieces p;
        split(&p, row + b * block_bytes, m->type);
        for (size_t i = 0; i < n_vecs; i++)
            memcpy(out + ((b * n_vecs + i) * R + at) * 16, p.vecs[i], 16);
        for (size_t i = 0; i < n_words; i++)
            memcpy(words + ((b * n_words + i) * R + at) * 4, p.words[i], 4);
        if (s.n_halves)
            memcpy(halves + (b * R + at) * 2, p.half, 2);
    }
}

void dt_gpu_pack_panel(uint8_t *out, const dt_tensor *tensor, int i_panel) {
    dt_gpu_matrix m;
    dt_gpu_matrix_of(&m, tensor);
    dt_gpu_shape s = dt_gpu_shape_of(m.type);
    size_t row_bytes = dt_type_row_bytes(m.type, m.k);
    int row0 = i_panel * DT_GPU_PANEL_ROWS;
    memset(out, 0, m.panel_bytes);
    for (int lane = 0; lane < DT_GPU_PANEL_ROWS && row0 + lane < m.n_out; lane++) {
        const uint8_t *row = (const uint8_t *)tensor->data + (size_t)(row0 + lane) * row_bytes;
        if (dt_type_block(m.type) == 1)
            pack_floats(out, row, row_bytes, m.n_blocks, lane);
        else
            pack_row(out, row, &m, s, lane);
    }
}
