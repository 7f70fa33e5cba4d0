#include <string.h>

#include "cpu/kernels.h"
#include "cpu/layout.h"

#ifdef DT_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

static const char *const isa_names[DT_ISA_COUNT] = {
    [DT_ISA_C] = "c",
    [DT_ISA_AVX2] = "avx2",
    [DT_ISA_AVXVNNI] = "avxvnni",
    [DT_ISA_AVX512] = "avx512",
    [DT_ISA_AMX] = "amx",
};

const char *dt_isa_name(dt_isa isa) {
    return isa_names[isa];
}

dt_err dt_isa_parse(dt_isa *out, const char *name) {
    for (int i = 0; i < DT_ISA_COUNT; i++)
        if (strcmp(name, isa_names[i]) == 0) {
            *out = (dt_isa)i;
            return DT_OK;
        }
    DT_FAIL(
        DT_ERR_INPUT, "\"%s\" is no instruction set; one of: c, avx2, avxvnni, avx512, amx", name);
}

#ifdef DT_X86

enum { XCR0_YMM = 0x06, XCR0_ZMM = 0xe6 }; /* SSE and AVX state; with opmask and both zmm halves */

static unsigned bit(unsigned word, int i) {
    return word >> i & 1;
}

/* What the operating system saves at a thread switch: a CPU may have registers that it does not. */
static unsigned saved_state(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) /* OSXSAVE */
        return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_avx2(void) {
    unsigned a, b, c1, b7, c, d;
    if (!__get_cpuid(1, &a, &b, &c1, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c, &d))
        return false;
    bool fma = bit(c1, 12), avx = bit(c1, 28), f16c = bit(c1, 29), avx2 = bit(b7, 5);
    return avx && fma && f16c && avx2 && (saved_state() & XCR0_YMM) == XCR0_YMM;
}

static bool has_avxvnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4);
}

static bool has_avx512(void) {
    unsigned a, b, c, d;
    if (!has_avx2() || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31), vnni = bit(c, 11);
    return f && dq && bw && vl && vnni && (saved_state() & XCR0_ZMM) == XCR0_ZMM;
}

/* Whether the AMX kernels give AVX-512's bits on this CPU, for a kind of tile each. They were
 * written without one at hand, so it is asked before they are used. */
static bool amx_agrees(void) {
    enum { K = 256, ROWS = 19, TYPES = 3 };
    static const dt_type types[TYPES] = {DT_TYPE_Q4_K, DT_TYPE_Q6_K, DT_TYPE_Q5_1};
    dt_kernels amx, plain;
    dt_kernels_get(&amx, DT_ISA_AMX);
    dt_kernels_get(&plain, DT_ISA_AVX512);
    for (int i = 0; i < TYPES; i++) {
        _Alignas(64) uint8_t panel[16 * K];
        int8_t q[ROWS * K];
        float d[ROWS * K / 32], want[ROWS][DT_PANEL_ROWS], got[ROWS][DT_PANEL_ROWS];
        int16_t sum16[ROWS * K / 16] = {0}, sum32[ROWS * K / 32] = {0};
        uint32_t random = 1;
        for (size_t j = 0; j < sizeof panel; j++) { /* finite halves, scales of 6 bits */
            bool scale = types[i] == DT_TYPE_Q4_K && j < DT_Q4K_LINES;
            random = random * 1664525 + 1013904223;
            panel[j] = (uint8_t)(random >> 24 & (scale ? 0x3f : 0xbf));
        }
        for (int j = 0; j < ROWS * K; j++) {
            random = random * 1664525 + 1013904223;
            q[j] = (int8_t)((int)(random >> 24) % 255 - 127);
            sum16[j / 16] = (int16_t)(sum16[j / 16] + q[j]);
            sum32[j / 32] = (int16_t)(sum32[j / 32] + q[j]);
            d[j / 32] = 1.0f / (float)(1 + j % 7);
        }
        dt_act act = {K, dt_type_block(types[i]), q, d, sum16, sum32, NULL, 0};
        plain.matmul[types[i]](want[0], DT_PANEL_ROWS, panel, &act, 0, ROWS);
        amx.matmul_many[types[i]](got[0], DT_PANEL_ROWS, panel, &act, 0, ROWS);
        if (memcmp(want, got, sizeof want) != 0)
            return false;
    }
    return true;
}

/* Linux gives the tiles' 8 KB of state to those who ask (ARCH_REQ_XCOMP_PERM, XTILEDATA). */
static bool has_amx(void) {
#ifdef __linux__
    enum { REQUEST = 0x1023, TILE_DATA = 18, XCR0_TILES = 3 << 17 };
    unsigned a, b, c, d;
    if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    bool tile = bit(d, 24), int8 = bit(d, 25);
    return tile && int8 && (saved_state() & XCR0_TILES) == XCR0_TILES &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0 && amx_agrees();
#else
    return false;
#endif
}

#endif

bool dt_isa_runs(dt_isa isa) {
    switch (isa) {
    case DT_ISA_C:
        return true;
#ifdef DT_X86
    case DT_ISA_AVX2:
        return has_avx2();
    case DT_ISA_AVXVNNI:
        return has_avxvnni() || has_avx512();
    case DT_ISA_AVX512:
        return has_avx512();
    case DT_ISA_AMX:
        return has_amx();
#endif
    default:
        return false;
    }
}

dt_isa dt_isa_best(void) {
    int isa = DT_ISA_COUNT - 1;
    while (!dt_isa_runs((dt_isa)isa))
        isa--;
    return (dt_isa)isa;
}

void dt_kernels_get(dt_kernels *out, dt_isa isa) {
    memset(out, 0, sizeof *out);
    dt_kernels_c(out);
#ifdef DT_X86
    if (isa >= DT_ISA_AVX2)
        dt_kernels_avx2(out);
    if (isa == DT_ISA_AVXVNNI && has_avxvnni())
        dt_kernels_avxvnni(out);
    else if (isa == DT_ISA_AVXVNNI)
        dt_kernels_avxvnni_evex(out);
    if (isa >= DT_ISA_AVX512)
        dt_kernels_avx512(out);
    if (isa >= DT_ISA_AMX)
        dt_kernels_amx(out);
#endif
    out->isa = isa_names[isa];
}
