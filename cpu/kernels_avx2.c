/* AVX2 with FMA and F16C. */
#include "cpu/lanes.h"
#include "src/base/fmath.h"

#define DT_ISA avx2
#include "cpu/tile256.h"

/* ---- float types: one chain per output, so only rows of activations hide its latency ---- */

INLINE void tile_float(TILE_ARGS, const dt_type type) {
    const int line_bytes = type == DT_TYPE_F32 ? 64 : 32;
    const float *x[TILE];
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) {
        x[t] = act->x + (size_t)(row0 + t) * act->x_stride;
        y[t][0] = y[t][1] = _mm256_setzero_ps();
    }
    for (int i = 0; i < act->k; i++, panel += line_bytes) {
        fetch(panel + ahead_of(m), 1);
        __m256 w[2];
        UNROLL for (int h = 0; h < 2; h++) w[h] =
            type == DT_TYPE_F32   ? _mm256_loadu_ps((const float *)(const void *)panel + 8 * h)
            : type == DT_TYPE_F16 ? f16_at(panel, h)
                                  : _mm256_castsi256_ps(_mm256_slli_epi32(
                                        _mm256_cvtepu16_epi32(load_half(panel + 16 * h)), 16));
        UNROLL for (int t = 0; t < m; t++) {
            __m256 v = _mm256_set1_ps(x[t][i]);
            y[t][0] = _mm256_fmadd_ps(w[0], v, y[t][0]);
            y[t][1] = _mm256_fmadd_ps(w[1], v, y[t][1]);
        }
    }
    store_tile(out, out_stride, y, m);
}

TILE_OF(f32, float, DT_TYPE_F32)
TILE_OF(f16, float, DT_TYPE_F16)
TILE_OF(bf16, float, DT_TYPE_BF16)

INT8_TYPES(MATMUL)
FLOAT_TYPES(MATMUL)

/* ---- quantise ---- */

static void quantise_avx2(dt_act *act, int i_row, const float *x) {
    int k = act->k, block = act->block;
    int8_t *q = act->q + (size_t)i_row * (size_t)k;
    float *d = act->d + (size_t)i_row * (size_t)(k / block);
    int16_t *sum32 = act->sum32 + (size_t)i_row * (size_t)(k / 32);
    int16_t *sum16 = block == 256 ? act->sum16 + (size_t)i_row * (size_t)(k / 16) : NULL;
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), flip = _mm256_set1_epi8(-128);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* of two packs in lanes */
    for (int i = 0; i < k; i += block) {
        __m256i most = _mm256_setzero_si256();
        for (int j = 0; j < block; j += 8)
            most = _mm256_max_epi32(
                most, _mm256_and_si256(load((const uint8_t *)(x + i + j)), magnitude));
        __m128i top =
            _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
        uint32_t largest = (uint32_t)_mm_cvtsi128_si32(top);
        float a = dt_bits_f32(largest);
        bool finite = largest < 0x7f800000;
        if (!finite || a < 0x1p-100f) {
            d[i / block] = finite ? 0.0f : dt_bits_f32(0x7fc00000);
            memset(q + i, 0, (size_t)block);
            memset(sum32 + i / 32, 0, (size_t)block / 16);
            if (sum16)
                memset(sum16 + i / 16, 0, (size_t)block / 8);
            continue;
        }
        d[i / block] = a / 127.0f;
        __m256 r = _mm256_set1_ps(127.0f / a);
        for (int j = i; j < i + block; j += 32) {
            __m256i v[4];
            UNROLL for (int c = 0; c < 4; c++) v[c] =
                _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + j + 8 * c), r));
            __m256i bytes =
                _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
            bytes = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256((__m256i *)(void *)(q + j), bytes);
            /* Sums of 8 bytes, each too large by 128. */
            __m256i sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, flip), _mm256_setzero_si256());
            sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
            int s0 = _mm256_extract_epi32(sums, 0) - 2048;
            int s1 = _mm256_extract_epi32(sums, 4) - 2048;
            sum32[j / 32] = (int16_t)(s0 + s1);
            if (sum16) {
                sum16[j / 16] = (int16_t)s0;
                sum16[j / 16 + 1] = (int16_t)s1;
            }
        }
    }
}

void dt_kernels_avx2(dt_kernels *table) {
    INT8_TYPES(MATMUL_SLOT)
    FLOAT_TYPES(MATMUL_SLOT)
    table->quantise = quantise_avx2;
    lanes_fill(table);
}
