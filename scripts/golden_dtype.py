#!/usr/bin/env python3
"""Writes tests/data/dtype_golden.h: random blocks of every weight type and their float32 values.

Needs the PyPI packages gguf and numpy. Usage: scripts/golden_dtype.py > tests/data/dtype_golden.h
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

# Offsets of the half-precision scales inside a block.
TYPES = {
    T.F16: [], T.BF16: [],
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0],
}
# Usual scales, and the odd ones: subnormal, negative, large, zero.
SCALES = np.array([0.0123, -0.37, 3e-6, 6e-8, 130.0, 0.0, 1.0, -2e-3], dtype=np.float16)


def numbers(values, form, per_line):
    rows = []
    for i in range(0, len(values), per_line):
        rows.append("    " + ",".join(form % v for v in values[i:i + per_line]) + ",")
    return "\n".join(rows)


def main():
    rng = np.random.default_rng(7)
    print("/* Made by scripts/golden_dtype.py: random blocks and what the Python package gguf says")
    print(" * they hold (bits of float32). */")
    print("#ifndef DT_TESTS_DATA_DTYPE_GOLDEN_H")
    print("#define DT_TESTS_DATA_DTYPE_GOLDEN_H\n")
    print("#include \"src/base/dtype.h\"\n")
    table = []
    for kind, offsets in TYPES.items():
        block, size = GGML_QUANT_SIZES[kind]
        n_blocks = 48 if block == 1 else 6 if block == 32 else 2
        data = rng.integers(0, 256, (n_blocks, size), dtype=np.uint8)
        for i in range(n_blocks):
            for j, offset in enumerate(offsets):
                scale = SCALES[(i + 3 * j) % len(SCALES)]
                data[i, offset:offset + 2] = np.array([scale]).view(np.uint8)
        if kind == T.F16:  # every exponent, infinities; no NaN, whose bits are nobody's promise
            data = (np.arange(48, dtype=np.uint16) * 1387 % 0x7c01).view(np.uint8)
        data = data.reshape(1, -1)
        out = dequantize(data, kind).reshape(-1).view(np.uint32)
        low = kind.name.lower()
        print("static const uint8_t golden_%s_row[] = {\n%s\n};"
              % (low, numbers(data.reshape(-1).tolist(), "%d", 23)))
        print("static const uint32_t golden_%s_out[] = {\n%s\n};\n"
              % (low, numbers(out.tolist(), "0x%x", 8)))
        table.append("    {DT_TYPE_%s, %d, golden_%s_row, golden_%s_out},"
                     % (kind.name, len(out), low, low))
    print("static const struct {\n    dt_type type;\n    int n;\n    const uint8_t *row;")
    print("    const uint32_t *out;\n} golden_rows[] = {\n%s\n};\n\n#endif" % "\n".join(table))


if __name__ == "__main__":
    sys.exit(main())
