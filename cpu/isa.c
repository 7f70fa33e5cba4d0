#include <string.h>

#include "cpu/kernels.h"

#ifdef DT_X86
#include <cpuid.h>
#endif

static const char *const isa_names[DT_ISA_COUNT] = {
    [DT_ISA_C] = "c",
    [DT_ISA_AVX2] = "avx2",
    [DT_ISA_AVXVNNI] = "avxvnni",
    [DT_ISA_AVX512] = "avx512",
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
    DT_FAIL(DT_ERR_INPUT, "\"%s\" is no instruction set; one of: c, avx2, avxvnni, avx512", name);
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
#endif
    out->isa = isa_names[isa];
}
