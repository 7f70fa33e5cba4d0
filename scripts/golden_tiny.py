#!/usr/bin/env python3
"""Writes tests/data/tiny-*.logits: float64 reference logits of tests/data/tiny-*.gguf.

Usage: scripts/golden_tiny.py [MODEL.gguf ...]      (default: every tests/data/tiny-*.gguf)
       scripts/golden_tiny.py --check [MODEL ...]   compares with the files that are there

A file holds, little endian: int32 n_tokens, int32 n_vocab, int32 tokens[n_tokens], float32
logits[n_tokens][n_vocab]. There are 24 tokens, (7 i i + 13 i + 5) mod n_vocab. The weights are
those of the file, dequantised; activations are not quantised. Needs the packages gguf and numpy.
"""

import glob
import os
import sys

import numpy as np

from golden_logits import Model, forward

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "data")
N_TOKENS = 24
MAX_VOCAB = 600  # 24 rows stay under 60 KB


def golden_of(path):
    """Tokens and logits."""
    model = Model(path, np.float64)
    head = "output.weight" if "output.weight" in model.tensors else "token_embd.weight"
    n_vocab = model.n_rows(head)
    if n_vocab > MAX_VOCAB:
        sys.exit("%s: %d ids are too many for the golden file of a tiny model" % (path, n_vocab))
    tokens = [(7 * i * i + 13 * i + 5) % n_vocab for i in range(N_TOKENS)]
    return np.array(tokens, dtype="<i4"), forward(model, tokens).astype("<f4")


def main():
    check = "--check" in sys.argv[1:]
    paths = [a for a in sys.argv[1:] if a != "--check"]
    paths = paths or sorted(glob.glob(os.path.join(DATA, "tiny-*.gguf")))
    if not paths:
        sys.exit("golden_tiny.py: no tests/data/tiny-*.gguf")
    n_failed = 0
    for path in paths:
        tokens, logits = golden_of(path)
        out = path[:-len(".gguf")] + ".logits"
        head = np.array(logits.shape, dtype="<i4").tobytes() + tokens.tobytes()
        if check:
            with open(out, "rb") as f:
                data = f.read()
            # Float64 sums in another order, then rounded to float32: the last bit may differ.
            good = len(data) == len(head) + logits.nbytes and data.startswith(head) and np.allclose(
                np.frombuffer(data[len(head):], dtype="<f4").reshape(logits.shape), logits,
                rtol=1e-6, atol=1e-6)
            n_failed += not good
            print("%s: %s" % (os.path.basename(out), "equal" if good else "DIFFERS"))
        else:
            with open(out, "wb") as f:
                f.write(head + logits.tobytes())
            print("%s: %d positions x %d ids" % (os.path.basename(out), *logits.shape))
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
