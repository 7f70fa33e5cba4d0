/* VNNI on vectors of 256 bits, for CPUs that have it without AVX-512 (Intel's 12th to 14th
 * generation): the quantised matmuls; the rest is AVX2's. Compiled twice: with the VEX encoding of
 * AVX-VNNI, and, with DT_EVEX, with the encoding of AVX512VL and AVX512_VNNI, so that CPUs with
 * AVX-512 run and test the same source. */
#include "cpu/kernels.h"

#define DT_VNNI
#ifdef DT_EVEX
#define DT_ISA avxvnni_evex
#else
#define DT_ISA avxvnni
#endif
#include "cpu/tile256.h"

INT8_TYPES(MATMUL)

#ifdef DT_EVEX
void dt_kernels_avxvnni_evex(dt_kernels *table) {
#else
void dt_kernels_avxvnni(dt_kernels *table) {
#endif
    INT8_TYPES(MATMUL_SLOT)
}
