#!/usr/bin/env python3
"""Makes the tiny models that the tests run: tests/data/tiny-*.gguf.

    scripts/make_tiny.py [FOLDER]

Random weights from a fixed seed, so the files are the same bits every time (only exact or correctly
rounded numpy operations are used, no sums or products of matrices). Between them they hold every
weight type that dovetail reads and every branch of the architectures:

    tiny-llama   llama: neighbouring RoPE pairs, head of its own, 32-wide types, 3 query heads on
                 one KV head, token count no multiple of 16
    tiny-qwen2   qwen2: halved RoPE pairs, biases, tied head, K-quants, padding tokens
    tiny-draft   the first layer of tiny-qwen2 in other types, so that it often guesses right
    tiny-iq4     qwen2: the types whose nibbles are places in a table of levels
    tiny-f16     GGUF version 2, float types, RoPE over a part of the head, scaled linearly and by
                 factors, heads wider than n_embd / n_head
    tiny-qwen3   qwen3: heads of q and k with norms of their own, wider than n_embd / n_head
    tiny-gemma3  gemma3: three layers, two of them with a window of 8 positions and a RoPE base of
                 their own, norms behind the blocks, GELU, scaled embeddings, tied head
    tiny-mistral mistral: a window of 10 positions in every layer, RoPE scaled as llama3
    tiny-phi3    phi3: q, k, v in one tensor, gate and up in another, RoPE over a part of the head,
                 scaled as yarn
"""

import pathlib
import re
import struct
import sys

import numpy as np

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 0, 1, 2, 3, 6, 7, 8
Q3_K, Q4_K, Q5_K, Q6_K, BF16 = 11, 12, 13, 14, 30
IQ4_NL, IQ4_XS = 20, 23
IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
                      dtype=np.float32)

# ---- quantisers: plain rounding to the block formats, no search for better scales


def half_bytes(x):
    return x.astype("<f2").reshape(-1, 1).view(np.uint8)


def as_half(x):
    """The scale as the reader will see it."""
    return x.astype("<f2").astype(np.float32)


def divide(x, d):
    return np.divide(x, d, out=np.zeros_like(x), where=d != 0)


def levels(x, d, low, high):
    return np.clip(np.rint(divide(x, np.broadcast_to(d, x.shape))), low, high).astype(np.int32)


def signed_peak(x):
    """Of each last axis, the value of largest magnitude, with its sign."""
    i = np.argmax(np.abs(x), axis=-1)
    return np.take_along_axis(x, i[..., None], axis=-1)[..., 0]


def low_nibbles(q):
    return ((q[:, :16] & 15) | (q[:, 16:] & 15) << 4).astype(np.uint8)


def fifth_bits(q):
    bits = np.left_shift(q.astype(np.uint32) >> 4 & 1, np.arange(32, dtype=np.uint32))
    return np.bitwise_or.reduce(bits, axis=1).astype("<u4").reshape(-1, 1).view(np.uint8)


def quantise_zero_point(x, bits):
    """Q4_0, Q5_0: the value of largest magnitude becomes the lowest level."""
    z = 1 << (bits - 1)
    d = as_half(signed_peak(x) / -z)
    q = levels(x, d[:, None], -z, z - 1) + z
    parts = [half_bytes(d)] + ([fifth_bits(q)] if bits == 5 else []) + [low_nibbles(q)]
    return np.concatenate(parts, axis=1)


def quantise_minimum(x, bits):
    """Q4_1, Q5_1."""
    m = as_half(x.min(axis=1))
    d = as_half((x.max(axis=1) - m) / ((1 << bits) - 1))
    q = levels(x - m[:, None], d[:, None], 0, (1 << bits) - 1)
    parts = [half_bytes(d), half_bytes(m)] + ([fifth_bits(q)] if bits == 5 else [])
    return np.concatenate(parts + [low_nibbles(q)], axis=1)


def quantise_q8_0(x):
    d = as_half(np.abs(x).max(axis=1) / 127)
    q = levels(x, d[:, None], -127, 127).astype(np.int8)
    return np.concatenate([half_bytes(d), q.view(np.uint8)], axis=1)


def quantise_minimum_k(x, bits):
    """Q4_K, Q5_K: 8 sub-blocks with 6-bit scales and minima."""
    x = x.reshape(-1, 8, 32)
    top = (1 << bits) - 1
    low = np.maximum(-x.min(axis=2), 0)
    step = (x.max(axis=2) + low) / top
    d, dmin = as_half(step.max(axis=1) / 63), as_half(low.max(axis=1) / 63)
    s = levels(step, d[:, None], 0, 63)
    m = levels(low, dmin[:, None], 0, 63)
    shift = (dmin[:, None] * m.astype(np.float32))[:, :, None]
    q = levels(x + shift, (d[:, None] * s.astype(np.float32))[:, :, None], 0, top)
    scales = np.concatenate([
        s[:, :4] | s[:, 4:] >> 4 << 6,
        m[:, :4] | m[:, 4:] >> 4 << 6,
        (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], axis=1).astype(np.uint8)
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128).astype(np.uint8)
    parts = [half_bytes(d), half_bytes(dmin), scales]
    if bits == 5:
        high = np.left_shift(q >> 4, np.arange(8)[:, None])
        parts.append(np.bitwise_or.reduce(high, axis=1).astype(np.uint8))
    return np.concatenate(parts + [nibbles], axis=1)


def quantise_signed_k(x, low, top_scale):
    """The common part of Q3_K and Q6_K: 16 sub-blocks with signed scales."""
    x = x.reshape(-1, 16, 16)
    step = signed_peak(x) / low
    d = as_half(np.abs(step).max(axis=1) / top_scale)
    s = levels(step, d[:, None], -top_scale, top_scale)
    q = levels(x, (d[:, None] * s.astype(np.float32))[:, :, None], low, -low - 1) - low
    return d, s, q.reshape(-1, 2, 4, 32)  # halves of 128, groups of 32


def quantise_q3_k(x):
    d, s, q = quantise_signed_k(x, -4, 31)
    s = s + 32
    scales = np.concatenate([
        (s[:, :8] & 15) | (s[:, 8:] & 15) << 4,
        np.bitwise_or.reduce(s.reshape(-1, 4, 4) >> 4 << np.arange(0, 8, 2)[:, None], axis=1)],
        axis=1).astype(np.uint8)
    fields = np.bitwise_or.reduce((q & 3) << np.arange(0, 8, 2)[:, None], axis=2)
    high = np.bitwise_or.reduce((q >> 2).reshape(-1, 8, 32) << np.arange(8)[:, None], axis=1)
    return np.concatenate([high.astype(np.uint8), fields.reshape(-1, 64).astype(np.uint8), scales,
                           half_bytes(d)], axis=1)


def quantise_q6_k(x):
    d, s, q = quantise_signed_k(x, -32, 127)
    low = (q[:, :, :2] & 15) | (q[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce((q >> 4) << np.arange(0, 8, 2)[:, None], axis=2)
    return np.concatenate([low.reshape(-1, 128).astype(np.uint8),
                           high.reshape(-1, 64).astype(np.uint8),
                           s.astype(np.int8).view(np.uint8), half_bytes(d)], axis=1)


def iq4_places(x, d):
    """The nearest level of x / d, as nibbles."""
    x = divide(x, np.broadcast_to(d[..., None], x.shape))
    q = np.searchsorted((IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / 2, x)
    return low_nibbles(q.reshape(-1, 32)).reshape(*x.shape[:-1], 16)


def quantise_iq4_nl(x):
    d = as_half(signed_peak(x) / -127)
    return np.concatenate([half_bytes(d), iq4_places(x, d)], axis=1)


def quantise_iq4_xs(x):
    x = x.reshape(-1, 8, 32)
    step = signed_peak(x) / -127
    d = as_half(signed_peak(step) / -32)
    s = levels(step, d[:, None], -32, 31)
    q = iq4_places(x, d[:, None] * s.astype(np.float32))
    s = s + 32
    high = np.bitwise_or.reduce(s >> 4 << np.arange(0, 16, 2), axis=1).astype("<u2")
    return np.concatenate([half_bytes(d), high.reshape(-1, 1).view(np.uint8),
                           (s[:, ::2] & 15 | (s[:, 1::2] & 15) << 4).astype(np.uint8),
                           q.reshape(-1, 128)], axis=1)


def to_bf16(x):
    u = x.astype("<f4").view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype("<u2")


QUANTISERS = {
    Q4_0: (32, lambda x: quantise_zero_point(x, 4)),
    Q5_0: (32, lambda x: quantise_zero_point(x, 5)),
    Q4_1: (32, lambda x: quantise_minimum(x, 4)),
    Q5_1: (32, lambda x: quantise_minimum(x, 5)),
    Q8_0: (32, quantise_q8_0),
    Q4_K: (256, lambda x: quantise_minimum_k(x, 4)),
    Q5_K: (256, lambda x: quantise_minimum_k(x, 5)),
    Q3_K: (256, quantise_q3_k),
    Q6_K: (256, quantise_q6_k),
    IQ4_NL: (32, quantise_iq4_nl),
    IQ4_XS: (256, quantise_iq4_xs),
}


def encode_tensor(x, type_id):
    x = x.astype(np.float32)
    if type_id == F32:
        return x.astype("<f4").tobytes()
    if type_id == F16:
        return x.astype("<f2").tobytes()
    if type_id == BF16:
        return to_bf16(x).tobytes()
    block, quantise = QUANTISERS[type_id]
    assert x.shape[-1] % block == 0
    return np.ascontiguousarray(quantise(x.reshape(-1, block))).tobytes()


# ---- the GGUF writer


def text_bytes(text):
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(value):
    """(type id, bytes): int -> u32, float -> f32, bool, str, and lists of str or int (i32)."""
    if isinstance(value, bool):
        return 7, struct.pack("<B", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, text_bytes(value)
    if isinstance(value[0], str):
        return 9, struct.pack("<IQ", 8, len(value)) + b"".join(map(text_bytes, value))
    return 9, struct.pack("<IQ", 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def write_gguf(path, keys, tensors, version=3):
    """tensors: {name: (array, type id)}; a matrix is [rows, columns]."""
    alignment = keys.get("general.alignment", 32)
    head = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(keys))]
    for key, value in keys.items():
        type_id, raw = value_bytes(value)
        head += [text_bytes(key), struct.pack("<I", type_id), raw]
    blobs, offset = [], 0
    for name, (x, type_id) in tensors.items():
        raw = encode_tensor(x, type_id)
        head += [text_bytes(name), struct.pack("<I", x.ndim),
                 struct.pack(f"<{x.ndim}Q", *x.shape[::-1]), struct.pack("<IQ", type_id, offset)]
        raw += bytes(-len(raw) % alignment)
        blobs.append(raw)
        offset += len(raw)
    head = b"".join(head)
    path.write_bytes(head + bytes(-len(head) % alignment) + b"".join(blobs))
    print(f"{path}: {path.stat().st_size} bytes, {len(tensors)} tensors")


# ---- the vocabulary: byte-level BPE learnt from a few lines

TRAINING_TEXT = """
The draft proposes a few tokens and the target verifies them in one pass. Where the target agrees,
the tokens are accepted, and where it does not, the target says what comes instead. The text is the
text of the target alone, whatever the draft had proposed; only the time that it takes is different.
for (int i = 0; i < n; i++) { sum += values[i]; } return sum;
def add(a, b):
    return a + b
def mean(values):
    total = 0
    for value in values:
        total = add(total, value)
    return total / len(values)
"""

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}")


def byte_alphabet():
    """GPT-2's letters for the 256 bytes: printable ones are themselves, the rest from U+0100 on."""
    printable = set([*range(33, 127), *range(161, 173), *range(174, 256)])
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def learn_merges(n):
    letters = byte_alphabet()
    words = {}
    for word in re.findall(r" ?[A-Za-z]+| ?[^A-Za-z0-9\s]+|[0-9]|\s+", TRAINING_TEXT):
        word = tuple(letters[b] for b in word.encode())
        words[word] = words.get(word, 0) + 1
    merges = []
    for _ in range(n):
        counts = {}
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + count
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        joined = {}
        for word, count in words.items():
            out = []
            for letter in word:
                if out and (out[-1], letter) == best:
                    out[-1] += letter
                else:
                    out.append(letter)
            joined[tuple(out)] = joined.get(tuple(out), 0) + count
        words = joined
    return merges


def make_vocab(pre, n_merges, specials_first, n_unused=0):
    merges = learn_merges(n_merges)
    tokens = [(t, NORMAL) for t in byte_alphabet()] + [(a + b, NORMAL) for a, b in merges]
    assert len(set(tokens)) == len(tokens)
    specials = [(t, CONTROL) for t in SPECIALS]
    tokens = specials + tokens if specials_first else tokens + specials + [("<tool_call>", USER)]
    tokens += [(f"[PAD{len(tokens) + i}]", UNUSED) for i in range(n_unused)]
    texts = [t for t, _ in tokens]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in merges],
        "tokenizer.ggml.bos_token_id": texts.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": texts.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": texts.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    return tokens, keys


# ---- weights


class Weights:
    """Random tensors of a model: uniform, scaled by what a matrix does to an input of unit size."""

    def __init__(self, seed):
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.tensors = {}

    def uniform(self, shape, deviation):
        return ((self.random.random(shape) * 2 - 1) * (deviation * 3 ** 0.5)).astype(np.float32)

    def matrix(self, name, n_out, k, type_id, gain):
        self.tensors[name] = self.uniform((n_out, k), gain / k ** 0.5), type_id

    def vector(self, name, n, centre, deviation):
        self.tensors[name] = self.uniform(n, deviation) + np.float32(centre), F32

    def tokens(self, name, vocab, k, type_id, deviation):
        """Rows of special and padding tokens, and to a lesser degree of bytes above 127, are small:
        as the head's rows they make these tokens rare, so that texts are long and mostly legible.
        """
        x = self.uniform((len(vocab), k), deviation)
        for i, (text, kind) in enumerate(vocab):
            if kind != NORMAL:
                x[i] *= np.float32(0.25)
            elif len(text) == 1 and not " " <= text <= "~" and text not in "\u0120\u010a":
                x[i] *= np.float32(0.5)
        self.tensors[name] = x, type_id


def make_layer(weights, i, shape, types, attn_gain, ffn_gain, bias=False, qk_norm=0,
               post_norm=False):
    """shape: (n_embd, Q, KV, n_ff); types: of q, k, v, o, gate, up, down; qk_norm: head size of
    q's and k's norms; post_norm: norms behind the blocks, centred on the gains."""
    d, q, kv, ff = shape
    name = f"blk.{i}."
    weights.vector(name + "attn_norm.weight", d, 1, 0.1)
    weights.matrix(name + "attn_q.weight", q, d, types[0], 1.4)
    weights.matrix(name + "attn_k.weight", kv, d, types[1], 1.4)
    weights.matrix(name + "attn_v.weight", kv, d, types[2], 1)
    if bias:
        weights.vector(name + "attn_q.bias", q, 0, 0.3)
        weights.vector(name + "attn_k.bias", kv, 0, 0.3)
        weights.vector(name + "attn_v.bias", kv, 0, 0.1)
    if qk_norm:
        weights.vector(name + "attn_q_norm.weight", qk_norm, 1.2, 0.3)
        weights.vector(name + "attn_k_norm.weight", qk_norm, 1.2, 0.3)
    weights.matrix(name + "attn_output.weight", d, q, types[3], attn_gain)
    weights.vector(name + "ffn_norm.weight", d, 1, 0.1)
    weights.matrix(name + "ffn_gate.weight", ff, d, types[4], 1.5)
    weights.matrix(name + "ffn_up.weight", ff, d, types[5], 1.5)
    weights.matrix(name + "ffn_down.weight", d, ff, types[6], ffn_gain)
    if post_norm:
        weights.vector(name + "post_attention_norm.weight", d, attn_gain, 0.1)
        weights.vector(name + "post_ffw_norm.weight", d, ffn_gain, 0.1)


def model_keys(arch, name, n_ctx, n_layer, n_embd, n_ff, n_head, n_head_kv, rope_base, **more):
    keys = {
        "general.architecture": arch,
        "general.name": name,
        f"{arch}.context_length": n_ctx,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.block_count": n_layer,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head_kv,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.rope.freq_base": rope_base,
    }
    keys.update({f"{arch}.{key.replace('__', '.')}": value for key, value in more.items()})
    return keys


def make_llama(path):
    vocab, vocab_keys = make_vocab("smollm", 74, True)
    w = Weights(1)
    w.tokens("token_embd.weight", vocab, 96, Q8_0, 0.25)
    w.vector("output_norm.weight", 96, 1, 0.1)
    w.tokens("output.weight", vocab, 96, Q4_1, 0.28)
    types = [[Q4_0, Q5_0, Q8_0, Q4_1, Q5_1, Q4_0, Q8_0], [Q5_1, Q4_1, Q5_0, Q8_0, Q4_0, Q4_1, Q5_0]]
    for i in range(2):
        make_layer(w, i, (96, 96, 32, 160), types[i], 0.6, 1.5)
    keys = model_keys("llama", "tiny-llama", 2048, 2, 96, 160, 3, 1, 1e4,
                      rope__dimension_count=32, vocab_size=len(vocab))
    write_gguf(path, keys | vocab_keys, w.tensors)


def make_pair(target_path, draft_path):
    vocab, vocab_keys = make_vocab("qwen2", 49, False, n_unused=3)
    shape, heads = (256, 64, 16, 64), {"attention__key_length": 16, "attention__value_length": 16}
    w = Weights(2)
    w.tokens("token_embd.weight", vocab, 256, Q6_K, 0.16)
    w.vector("output_norm.weight", 256, 1, 0.1)
    make_layer(w, 0, shape, [Q4_K, Q3_K, Q6_K, Q5_0, Q4_K, Q5_K, Q4_0], 0.4, 3, bias=True)
    make_layer(w, 1, shape, [Q5_K, Q4_K, Q4_K, Q4_0, Q3_K, Q4_K, Q4_0], 1, 1, bias=True)
    keys = model_keys("qwen2", "tiny-qwen2", 4096, 2, 256, 64, 4, 1, 1e6, **heads)
    write_gguf(target_path, keys | vocab_keys, w.tensors)

    types = {"token_embd.weight": Q4_K, "blk.0.attn_v.weight": Q4_K, "blk.0.ffn_up.weight": Q4_K,
             "blk.0.attn_output.weight": Q4_0}
    draft = {name: (x, types.get(name, type_id)) for name, (x, type_id) in w.tensors.items()
             if not name.startswith("blk.1.")}
    keys = model_keys("qwen2", "tiny-draft", 4096, 1, 256, 64, 4, 1, 1e6, **heads)
    write_gguf(draft_path, keys | vocab_keys, draft)


def make_iq4(path):
    vocab, vocab_keys = make_vocab("qwen2", 49, False, n_unused=3)
    w = Weights(4)
    w.tokens("token_embd.weight", vocab, 256, IQ4_XS, 0.16)
    w.vector("output_norm.weight", 256, 1, 0.1)
    types = [IQ4_XS, IQ4_NL, IQ4_XS, IQ4_NL, IQ4_NL, IQ4_XS, IQ4_NL]
    make_layer(w, 0, (256, 64, 16, 64), types, 0.7, 2, bias=True)
    keys = model_keys("qwen2", "tiny-iq4", 4096, 1, 256, 64, 4, 1, 1e6, attention__key_length=16,
                      attention__value_length=16)
    write_gguf(path, keys | vocab_keys, w.tensors)


def make_f16(path):
    vocab, vocab_keys = make_vocab("gpt-2", 40, True)
    w = Weights(3)
    w.tokens("token_embd.weight", vocab, 48, F16, 0.35)
    w.vector("output_norm.weight", 48, 1, 0.1)
    w.tokens("output.weight", vocab, 48, BF16, 0.4)
    w.vector("rope_freqs.weight", 8, 1.5, 0.2)
    types = [[F16, F32, BF16, F16, BF16, F16, F16], [BF16, F16, F16, F32, F16, F16, BF16]]
    for i in range(2):
        make_layer(w, i, (48, 96, 48, 72), types[i], 0.6, 1.5)
    keys = model_keys("llama", "tiny-f16", 1024, 2, 48, 72, 4, 2, 5e4, rope__dimension_count=16,
                      attention__key_length=24, attention__value_length=24,
                      rope__scaling__type="linear", rope__scaling__factor=2.0)
    keys["general.alignment"] = 64
    write_gguf(path, keys | vocab_keys, w.tensors, version=2)


def make_qwen3(path):
    vocab, vocab_keys = make_vocab("qwen2", 49, False, n_unused=2)
    w = Weights(4)
    w.tokens("token_embd.weight", vocab, 64, Q8_0, 0.3)
    w.vector("output_norm.weight", 64, 1, 0.1)
    types = [[Q5_0, Q8_0, Q8_0, Q5_1, Q4_0, Q5_0, Q8_0], [Q8_0, Q5_1, Q8_0, Q4_1, Q5_0, Q4_0, Q5_1]]
    for i in range(2):
        make_layer(w, i, (64, 128, 64, 96), types[i], 0.8, 1.5, qk_norm=32)
    keys = model_keys("qwen3", "tiny-qwen3", 2048, 2, 64, 96, 4, 2, 1e6,
                      attention__key_length=32, attention__value_length=32)
    write_gguf(path, keys | vocab_keys, w.tensors)


def make_gemma3(path):
    vocab, vocab_keys = make_vocab("gpt-2", 35, True)
    w = Weights(5)
    w.tokens("token_embd.weight", vocab, 64, Q5_0, 0.35)
    w.vector("output_norm.weight", 64, 1, 0.1)
    types = [[Q4_0, Q5_0, Q8_0, Q4_K, Q4_0, Q4_0, Q6_K], [Q4_0, Q8_0, Q5_1, Q4_0, Q4_1, Q4_0, Q4_K],
             [Q4_0, Q5_0, Q8_0, Q5_K, Q4_0, Q4_0, Q5_0]]
    for i in range(3):
        make_layer(w, i, (64, 256, 64, 256), types[i], 1.0, 1.2, qk_norm=64, post_norm=True)
    keys = model_keys("gemma3", "tiny-gemma3", 2048, 3, 64, 256, 4, 1, 1e6,
                      attention__key_length=64, attention__value_length=64,
                      attention__sliding_window=8, attention__sliding_window_pattern=3)
    write_gguf(path, keys | vocab_keys, w.tensors)


def make_mistral(path):
    vocab, vocab_keys = make_vocab("gpt-2", 30, True)
    w = Weights(6)
    w.tokens("token_embd.weight", vocab, 64, Q8_0, 0.3)
    w.vector("output_norm.weight", 64, 1, 0.1)
    w.tokens("output.weight", vocab, 64, Q5_1, 0.35)
    for i in range(2):
        make_layer(w, i, (64, 64, 32, 96), [Q8_0, Q5_0, Q8_0, Q5_1, Q4_1, Q5_0, Q8_0], 0.8, 1.5)
    keys = model_keys("mistral", "tiny-mistral", 2048, 2, 64, 96, 4, 2, 1e2,
                      attention__sliding_window=10, rope__scaling__type="llama3",
                      rope__scaling__factor=8.0, rope__scaling__original_context_length=96,
                      rope__scaling__low_freq_factor=1.0, rope__scaling__high_freq_factor=4.0)
    write_gguf(path, keys | vocab_keys, w.tensors)


def make_phi3(path):
    vocab, vocab_keys = make_vocab("gpt-2", 30, True)
    w = Weights(7)
    w.tokens("token_embd.weight", vocab, 64, Q8_0, 0.3)
    w.vector("output_norm.weight", 64, 1, 0.1)
    w.tokens("output.weight", vocab, 64, Q5_0, 0.35)
    for i in range(2):
        name = f"blk.{i}."
        w.vector(name + "attn_norm.weight", 64, 1, 0.1)
        w.matrix(name + "attn_qkv.weight", 64 + 2 * 32, 64, [Q8_0, Q5_1][i], 1.3)
        w.matrix(name + "attn_output.weight", 64, 64, Q5_0, 0.8)
        w.vector(name + "ffn_norm.weight", 64, 1, 0.1)
        w.matrix(name + "ffn_up.weight", 2 * 96, 64, [Q4_1, Q8_0][i], 1.5)
        w.matrix(name + "ffn_down.weight", 64, 96, Q5_1, 1.5)
    keys = model_keys("phi3", "tiny-phi3", 2048, 2, 64, 96, 4, 2, 1e2, rope__dimension_count=12,
                      rope__scaling__type="yarn", rope__scaling__factor=8.0,
                      rope__scaling__original_context_length=256)
    write_gguf(path, keys | vocab_keys, w.tensors)


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "tests" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    make_llama(folder / "tiny-llama.gguf")
    make_pair(folder / "tiny-qwen2.gguf", folder / "tiny-draft.gguf")
    make_iq4(folder / "tiny-iq4.gguf")
    make_f16(folder / "tiny-f16.gguf")
    make_qwen3(folder / "tiny-qwen3.gguf")
    make_gemma3(folder / "tiny-gemma3.gguf")
    make_mistral(folder / "tiny-mistral.gguf")
    make_phi3(folder / "tiny-phi3.gguf")


if __name__ == "__main__":
    main()
