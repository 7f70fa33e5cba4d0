#!/usr/bin/env python3
"""An independent reference for the logits of a model file, and the comparison with it.

  golden_logits.py make MODEL.gguf GOLDEN.npy [--text FILE] [--n-tokens N] [--f64]
  golden_logits.py compare GOLDEN.npy LOGITS [--mean X] [--p99 X] [--ppl X]

`make` tokenizes the text, dequantises the weights, runs the whole forward in float32 (or float64)
with numpy and writes GOLDEN.npy (logits, [n_tokens, n_vocab] float32) and GOLDEN.ids.json (token
ids). `compare` takes what `dovetail perplexity -m MODEL --ids GOLDEN.ids.json --logits LOGITS`
wrote; it prints the divergence KL(reference || logits) over positions 1..256, position 0 apart, and
both perplexities, and exits with 1 beyond the bounds. Needs numpy; `make` the package gguf too.
Nothing here is shared with the program: tokenizer, forward and comparison are written anew.
"""

import argparse
import json
import os
import re
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = os.path.join(HERE, "..", "tests", "prompts", "golden.txt")


# ---- model file

class Model:
    def __init__(self, path, dtype=np.float32):
        import gguf
        self.dequantize = gguf.quants.dequantize
        self.dtype = dtype
        reader = gguf.GGUFReader(path)
        self.fields = reader.fields
        self.tensors = {t.name: t for t in reader.tensors}
        self.arch = self.key("general.architecture")
        if self.arch not in ("llama", "qwen2", "qwen3", "gemma3", "mistral", "phi3"):
            sys.exit("%s: no reference for architecture %s" % (path, self.arch))
        size = lambda name, default=None: self.key(self.arch + "." + name, default)
        self.n_embd = size("embedding_length")
        self.n_layer = size("block_count")
        self.n_head = size("attention.head_count")
        self.n_head_kv = size("attention.head_count_kv", self.n_head)
        self.head_dim = size("attention.key_length", self.n_embd // self.n_head)
        self.n_rot = size("rope.dimension_count", self.head_dim)
        self.eps = size("attention.layer_norm_rms_epsilon")
        self.rope_base = size("rope.freq_base", 10000.0)
        scaling = "rope.scaling."
        self.rope_kind = size(scaling + "type", "none")
        self.rope_factor = size(scaling + "factor", 1.0)
        self.rope_n_ctx = size(scaling + "original_context_length", size("context_length"))
        self.rope_low = size(scaling + "low_freq_factor", 1.0)
        self.rope_high = size(scaling + "high_freq_factor", 4.0)
        self.score_scale = self.head_dim ** -0.5
        self.window = size("attention.sliding_window", 0)
        self.local = [self.window > 0] * self.n_layer
        self.local_base = None
        if self.arch == "gemma3":
            if self.n_layer == 62:  # the 27B
                self.score_scale = (self.n_embd // self.n_head) ** -0.5
            if self.window:
                period = size("attention.sliding_window_pattern", 6)
                self.local = [i % period < period - 1 for i in range(self.n_layer)]
                self.local_base = size("rope.freq_base_swa", 10000.0)

    def key(self, name, default=None):
        field = self.fields.get(name)
        return default if field is None else field.contents()

    def weight(self, name, rows=slice(None)):
        """Float values of a tensor (or of some of its rows), None if the file has none."""
        t = self.tensors.get(name)
        if t is None:
            return None
        return self.dequantize(t.data[rows], t.tensor_type).astype(self.dtype, copy=False)

    def n_rows(self, name):
        return int(self.tensors[name].shape[-1])


# ---- tokenizers: byte-level BPE and SentencePiece's BPE

LETTER, OTHER = r"[^\W\d_]", r"(?:[^\s\w]|_)"
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?" + LETTER + r"+|\d| ?" + OTHER +
         r"+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?" + LETTER + r"+| ?\d+| ?" + OTHER + r"+|\s+(?!\S)|\s+"


def byte_alphabet():
    """The printable stand-in of every byte (Radford et al. 2019)."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    rest = [b for b in range(256) if b not in plain]
    table = {b: chr(b) for b in plain}
    table.update({b: chr(256 + i) for i, b in enumerate(rest)})
    return table


def merge_word(word, ranks):
    parts = list(word)
    while len(parts) > 1:
        pairs = [ranks.get(parts[i] + " " + parts[i + 1], 1 << 60) for i in range(len(parts) - 1)]
        best = min(pairs)
        if best == 1 << 60:
            break
        i = pairs.index(best)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def merge_pieces(model, text):
    """Neighbours whose union has the best score are joined first, the leftmost of equal ones; a
    character without a token becomes its bytes."""
    ids = {t: i for i, t in enumerate(model.key("tokenizer.ggml.tokens"))}
    scores = model.key("tokenizer.ggml.scores")
    if model.key("tokenizer.ggml.add_space_prefix", True):
        text = " " + text
    parts = list(text.replace(" ", "\u2581"))
    rank = lambda i: scores[ids[parts[i] + parts[i + 1]]] if parts[i] + parts[i + 1] in ids else None
    ranks = [rank(i) for i in range(len(parts) - 1)]
    while any(r is not None for r in ranks):
        i = max((i for i, r in enumerate(ranks) if r is not None), key=lambda i: (ranks[i], -i))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        for k in (i - 1, i):
            if 0 <= k < len(ranks):
                ranks[k] = rank(k)
    out = []
    for part in parts:
        out += [ids[part]] if part in ids else [ids["<0x%02X>" % b] for b in part.encode()]
    return out


def tokenize(model, text):
    if model.key("tokenizer.ggml.model") == "llama":
        first = [model.key("tokenizer.ggml.bos_token_id")]
        return first * model.key("tokenizer.ggml.add_bos_token", True) + merge_pieces(model, text)
    kind = model.key("tokenizer.ggml.pre")
    if kind == "qwen2":
        pieces = re.findall(QWEN2, text)
    elif kind == "smollm":
        pieces = [p for part in re.split(r"(\d)", text) for p in re.findall(GPT2, part)]
    elif kind in ("gpt-2", "default"):
        pieces = re.findall(GPT2, text)
    else:
        sys.exit("no reference for pre-tokenizer %s" % kind)
    assert "".join(pieces) == text
    ranks = {m: i for i, m in enumerate(model.key("tokenizer.ggml.merges"))}
    ids = {t: i for i, t in enumerate(model.key("tokenizer.ggml.tokens"))}
    alphabet = byte_alphabet()
    out = []
    if model.key("tokenizer.ggml.add_bos_token", False):
        out.append(model.key("tokenizer.ggml.bos_token_id"))
    for piece in pieces:
        out += [ids[p] for p in merge_word([alphabet[b] for b in piece.encode()], ranks)]
    return out


# ---- forward

def rms_norm(x, weight, eps):
    mean = np.mean(np.square(x.astype(np.float64)), axis=-1, keepdims=True)
    return (x / np.sqrt(mean + eps)).astype(x.dtype) * weight


def yarn(model, frequency):
    """Pairs of more than 32 turns over the first context stay, those of fewer than 1 are
    interpolated, between them a ramp over the pairs."""
    pair = lambda turns: (model.n_rot * np.log(model.rope_n_ctx / (turns * 2 * np.pi)) /
                          (2 * np.log(model.rope_base)))
    low = max(np.floor(pair(32)), 0)
    high = min(np.ceil(pair(1)), model.n_rot - 1)
    ramp = np.clip((np.arange(len(frequency)) - low) / max(high - low, 0.001), 0, 1)
    return frequency / model.rope_factor * ramp + frequency * (1 - ramp)


def llama3(model, frequency):
    """Long waves are interpolated, short ones stay, between them a blend."""
    wave = 2 * np.pi / frequency
    blend = (model.rope_n_ctx / wave - model.rope_low) / (model.rope_high - model.rope_low)
    between = (1 - blend) * frequency / model.rope_factor + blend * frequency
    long, short = model.rope_n_ctx / model.rope_low, model.rope_n_ctx / model.rope_high
    return np.where(wave > long, frequency / model.rope_factor,
                    np.where(wave < short, frequency, between))


def rope_angles(model, n_tok, local=False):
    """cos and sin, [n_tok, n_rot / 2]."""
    exponent = np.arange(0, model.n_rot, 2, dtype=np.float64) / model.n_rot
    frequency = (model.local_base if local else model.rope_base) ** -exponent
    factors = model.weight("rope_freqs.weight")
    gain = 1.0
    if not local and model.rope_kind == "yarn":
        frequency = yarn(model, frequency)
        gain = 0.1 * np.log(model.rope_factor) + 1
    elif not local and model.rope_kind == "llama3" and factors is None:
        frequency = llama3(model, frequency)
    elif not local and model.rope_kind == "linear":
        frequency = frequency / model.rope_factor
    if not local and factors is not None:
        frequency = frequency / factors.astype(np.float64)
    angle = np.arange(n_tok, dtype=np.float64)[:, None] * frequency[None, :]
    return (gain * np.cos(angle)).astype(model.dtype), (gain * np.sin(angle)).astype(model.dtype)


def rotate(x, cos, sin, neighbours):
    """x [n_tok, n_head, head_dim]; pairs are (2i, 2i + 1) or (i, i + n_rot / 2)."""
    half = cos.shape[1]
    out = x.copy()
    first = slice(0, 2 * half, 2) if neighbours else slice(0, half)
    second = slice(1, 2 * half, 2) if neighbours else slice(half, 2 * half)
    a, b = x[:, :, first], x[:, :, second]
    c, s = cos[:, None, :], sin[:, None, :]
    out[:, :, first] = a * c - b * s
    out[:, :, second] = a * s + b * c
    return out


def attention(model, q, k, v, window):
    """Causal, grouped: q [T, n_head, d], k and v [T, n_head_kv, d] -> [T, n_head * d]. With a window
    only that many keys are seen, the token's own included."""
    n_tok = q.shape[0]
    group = model.n_head // model.n_head_kv
    unseen = np.triu(np.ones((n_tok, n_tok), dtype=bool), 1)
    if window:
        unseen |= np.tril(np.ones((n_tok, n_tok), dtype=bool), -window)
    out = np.empty_like(q)
    for h in range(model.n_head):
        score = (q[:, h] @ k[:, h // group].T).astype(np.float64) * model.score_scale
        score[unseen] = -np.inf
        score -= score.max(axis=1, keepdims=True)
        weight = np.exp(score)
        weight /= weight.sum(axis=1, keepdims=True)
        out[:, h] = weight.astype(q.dtype) @ v[:, h // group]
    return out.reshape(n_tok, -1)


def linear(model, x, name):
    y = x @ model.weight(name + ".weight").T
    bias = model.weight(name + ".bias")
    return y if bias is None else y + bias


def activation(model, gate):
    wide = gate.astype(np.float64)
    if model.arch == "gemma3":
        wide = 0.5 * wide * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide ** 3)))
    else:
        wide = wide / (1 + np.exp(-wide))
    return wide.astype(gate.dtype)


def layer(model, x, prefix, cos, sin, window):
    n_tok = x.shape[0]
    neighbours = model.arch in ("llama", "mistral")
    y = rms_norm(x, model.weight(prefix + "attn_norm.weight"), model.eps)
    if model.arch == "phi3":
        sizes = [model.n_head * model.head_dim, model.n_head_kv * model.head_dim]
        q, k, v = np.split(linear(model, y, prefix + "attn_qkv"), np.cumsum(sizes), axis=1)
    else:
        q, k, v = (linear(model, y, prefix + "attn_" + part) for part in "qkv")
    q, k, v = (t.reshape(n_tok, -1, model.head_dim) for t in (q, k, v))
    if model.arch in ("qwen3", "gemma3"):
        q = rms_norm(q, model.weight(prefix + "attn_q_norm.weight"), model.eps)
        k = rms_norm(k, model.weight(prefix + "attn_k_norm.weight"), model.eps)
    q, k = rotate(q, cos, sin, neighbours), rotate(k, cos, sin, neighbours)
    y = linear(model, attention(model, q, k, v, window), prefix + "attn_output")
    if model.arch == "gemma3":
        y = rms_norm(y, model.weight(prefix + "post_attention_norm.weight"), model.eps)
    x = x + y
    y = rms_norm(x, model.weight(prefix + "ffn_norm.weight"), model.eps)
    if model.arch == "phi3":
        gate, up = np.split(linear(model, y, prefix + "ffn_up"), 2, axis=1)
    else:
        gate, up = linear(model, y, prefix + "ffn_gate"), linear(model, y, prefix + "ffn_up")
    y = linear(model, activation(model, gate) * up, prefix + "ffn_down")
    if model.arch == "gemma3":
        y = rms_norm(y, model.weight(prefix + "post_ffw_norm.weight"), model.eps)
    return x + y


def forward(model, ids, progress=False):
    """Logits of every position, [n_tok, n_vocab] of the model's dtype."""
    turns = rope_angles(model, len(ids))
    local_turns = rope_angles(model, len(ids), True) if model.local_base else turns
    x = model.weight("token_embd.weight", np.asarray(ids))
    if model.arch == "gemma3":
        x = x * model.dtype(model.n_embd ** 0.5)
    for i in range(model.n_layer):
        if model.local[i]:
            x = layer(model, x, "blk.%d." % i, *local_turns, model.window)
        else:
            x = layer(model, x, "blk.%d." % i, *turns, 0)
        if progress and sys.stderr.isatty():
            print("\r\033[Klayer %d of %d" % (i + 1, model.n_layer), end="", file=sys.stderr)
    x = rms_norm(x, model.weight("output_norm.weight"), model.eps)
    head = "output.weight" if "output.weight" in model.tensors else "token_embd.weight"
    n_vocab = model.n_rows(head)
    logits = np.empty((len(ids), n_vocab), dtype=model.dtype)
    for at in range(0, n_vocab, 8192):
        rows = slice(at, min(at + 8192, n_vocab))
        logits[:, rows] = x @ model.weight(head, rows).T
    if progress and sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return logits


# ---- commands

def ids_path(golden):
    return (golden[:-4] if golden.endswith(".npy") else golden) + ".ids.json"


def write_whole(path, write):
    """Through a temporary name, so that a cut run leaves nothing that looks complete."""
    with open(path + ".part", "wb") as f:
        write(f)
    os.replace(path + ".part", path)


def make(args):
    start = time.time()
    model = Model(args.model, np.float64 if args.f64 else np.float32)
    with open(args.text, encoding="utf-8", newline="") as f:
        ids = tokenize(model, f.read())[:args.n_tokens]
    logits = forward(model, ids, progress=True)
    os.makedirs(os.path.dirname(os.path.abspath(args.golden)), exist_ok=True)
    write_whole(ids_path(args.golden), lambda f: f.write((json.dumps(ids) + "\n").encode()))
    write_whole(args.golden, lambda f: np.save(f, logits.astype(np.float32)))
    print("%s: %d positions x %d ids, %.0f s" % (args.golden, *logits.shape, time.time() - start))


def log_softmax(row):
    row = row.astype(np.float64)
    top = row.max()
    return row - (top + np.log(np.exp(row - top).sum()))


def compare(args):
    golden = np.load(args.golden, mmap_mode="r")
    with open(ids_path(args.golden)) as f:
        ids = json.load(f)
    n_tok, n_vocab = golden.shape
    want = n_tok * n_vocab * 4
    if os.path.getsize(args.logits) != want:
        sys.exit("%s: want %d x %d float32 (%d bytes), the file has %d bytes" % (
            args.logits, n_tok, n_vocab, want, os.path.getsize(args.logits)))
    ours = np.memmap(args.logits, dtype="<f4", mode="r", shape=(n_tok, n_vocab))
    kl, nll, same_top = np.zeros(n_tok), np.zeros((2, n_tok - 1)), 0
    for i in range(n_tok):
        p, q = log_softmax(golden[i]), log_softmax(ours[i])
        kl[i] = np.sum(np.exp(p) * (p - q))
        same_top += int(np.argmax(p) == np.argmax(q))
        if i + 1 < n_tok:
            nll[:, i] = -p[ids[i + 1]], -q[ids[i + 1]]
    rest = kl[1:257]
    mean, p99 = float(rest.mean()), float(np.quantile(rest, 0.99))
    ppl = np.exp(nll[:, 1:].mean(axis=1))
    whole = np.exp(nll.mean(axis=1))
    change = abs(ppl[1] / ppl[0] - 1)
    print("positions 1..%d: mean KL %.6f (bound %g), 99th percentile %.6f (bound %g), "
          "largest %.4f" % (len(rest), mean, args.mean, p99, args.p99, rest.max()))
    print("position 0: KL %.6f; the likeliest token agrees at %d of %d positions" %
          (kl[0], same_top, n_tok))
    print("perplexity from position 1: reference %.4f, ours %.4f, %.3f%% apart (bound %g%%)" %
          (ppl[0], ppl[1], 100 * change, 100 * args.ppl))
    print("perplexity of all positions: reference %.4f, ours %.4f" % tuple(whole))
    good = mean <= args.mean and p99 <= args.p99 and change <= args.ppl  # false for NaN
    if not good:
        print("golden_logits.py: beyond the bounds", file=sys.stderr)
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("make", help="write the reference logits of a text")
    p.add_argument("model")
    p.add_argument("golden")
    p.add_argument("--text", default=TEXT)
    p.add_argument("--n-tokens", type=int, default=258)
    p.add_argument("--f64", action="store_true", help="compute in float64")
    p = commands.add_parser("compare", help="compare logits with the reference")
    p.add_argument("golden")
    p.add_argument("logits")
    p.add_argument("--mean", type=float, default=0.006, help="bound on the mean KL")
    p.add_argument("--p99", type=float, default=0.05, help="bound on its 99th percentile")
    p.add_argument("--ppl", type=float, default=0.01, help="bound on the change of perplexity")
    args = parser.parse_args()
    return make(args) if args.command == "make" else compare(args)


if __name__ == "__main__":
    sys.exit(main())
