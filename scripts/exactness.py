#!/usr/bin/env python3
"""Checks that the text does not depend on the draft, the threads, the batch or the instruction set.

  scripts/exactness.py --models TARGET.gguf DRAFT.gguf [options]

The target alone writes the base texts; every setting of every other factor must write the same
bytes. Controls that change what decides the text (another seed, one changed weight) must not.
Prints a table, exits with 1 if any line of it is wrong. Groups, to be chosen with --only:

  main      T = 0, more prompts and longer texts: a chain of 8 from the draft model
  factors   T = 0 and T = 0.8, each factor alone: drafts, trees, n-gram, threads, prompt in pieces,
            instruction sets, OpenBLAS against itself
  random    random combinations of the factors (the seed is printed; --seed repeats them)
  controls  what must differ
"""

import argparse
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
TEMPERATURES = {"T=0": [], "T=0.8": ["--temp", "0.8", "--seed", "20261124"]}
GROUPS = ["main", "factors", "random", "controls"]


class Failure(Exception):
    """A message for the user, one line."""


# ---- one run of the program

class Outcome:
    def __init__(self, lines, seconds):
        self.answers = {str(line["id"]): (line["bytes"], line["tokens"]) for line in lines}
        stats = [line["stats"] for line in lines]
        tokens, steps = (sum(s[key] for s in stats) for key in ("tokens", "steps"))
        self.seconds = seconds
        decode = sum(s["seconds"]["decode"] for s in stats)
        self.tokens_per_second = tokens / decode if decode > 0 else 0.0
        accepted = sum(s["accepted"] for s in stats)
        self.n_drafted = sum(s["drafted"] for s in stats)
        self.length = 1 + accepted / steps if steps else 0.0


class Runner:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.prompts = read_prompts(args.prompts)
        self.cache = {}

    def prompts_file(self, n):
        path = os.path.join(self.folder, "prompts-%d.jsonl" % n)
        if not os.path.exists(path):
            with open(path, "w", encoding="utf-8") as f:
                for prompt in self.prompts[:n]:
                    f.write(json.dumps(prompt) + "\n")
        return path

    def run(self, flags, size, model=None):
        """`flags` decide everything but the model and the size (prompts, tokens)."""
        n_prompts, n_tokens = size
        key = (tuple(flags), size, model)
        if key in self.cache:
            return self.cache[key]
        command = [self.args.program, "run", "-m", model or self.args.models[0], "--chat",
                   "--jsonl", self.prompts_file(n_prompts), "-n", str(n_tokens), "-c", "2048",
                   "--stats", "none"] + flags
        start = time.time()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Failure("exit code %d: %s" % (
                done.returncode, done.stderr.decode(errors="replace").strip()[-300:]))
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if len(lines) != min(n_prompts, len(self.prompts)):
            raise Failure("%d answers to %d prompts" % (len(lines), n_prompts))
        self.cache[key] = Outcome(lines, time.time() - start)
        return self.cache[key]


def read_prompts(path):
    with open(path, encoding="utf-8") as f:
        prompts = [json.loads(line) for line in f if line.strip()]
    for i, prompt in enumerate(prompts):
        prompt.setdefault("id", str(i))
    return prompts


def isa_levels(program):
    out = subprocess.run([program, "info", "--json"], stdout=subprocess.PIPE, check=True).stdout
    return json.loads(out)["machine"]["isa"]


# ---- the settings

PLAIN = ["--draft", "none"]


def chain(args, n):
    return ["-d", args.models[1], "--tree", str(n + 1), "--depth", str(n), "--topk", "1",
            "--no-guard"]


def tree(args, n, topk, depth):
    return ["-d", args.models[1], "--tree", str(n), "--depth", str(depth), "--topk", str(topk),
            "--no-guard"]


def factor_settings(args, levels):
    """(name, base flags, flags, slow): what is compared with what."""
    yield "draft 1", PLAIN, chain(args, 1), False
    yield "draft 4", PLAIN, chain(args, 4), False
    yield "draft 16", PLAIN, chain(args, 16), False
    yield "tree of 16, 4 children", PLAIN, tree(args, 16, 4, 8), False
    yield "n-gram", PLAIN, ["--draft", "ngram", "--no-guard"], False
    yield "model alone", PLAIN, ["-d", args.models[1], "--draft", "model"], False
    yield "model and n-gram", PLAIN, ["-d", args.models[1], "--no-guard"], False
    yield "planned", PLAIN, ["-d", args.models[1]], False
    for n in (1, 2):
        yield "threads %d" % n, PLAIN, PLAIN + ["-t", str(n)], False
    for n in (1, 7, 512):
        yield "prompt in pieces of %d" % n, PLAIN, PLAIN + ["--prefill-batch", str(n)], False
    for level in levels:
        yield "isa %s" % level, PLAIN, PLAIN + ["--isa", level], level == "c"
    blas = ["--matmul", "openblas"]
    yield "openblas, draft 4", PLAIN + blas, chain(args, 4) + blas, True
    yield "openblas, 1 thread", PLAIN + blas, PLAIN + blas + ["-t", "1"], True
    yield "openblas, pieces of 7", PLAIN + blas, PLAIN + blas + ["--prefill-batch", "7"], True


def random_settings(args, levels, rng):
    """(name, temperature, flags)"""
    fast = [level for level in levels if level != "c"] or levels
    for i in range(args.n_random):
        temperature = rng.choice(sorted(TEMPERATURES))
        source = rng.choice(["model", "model", "auto", "auto", "ngram", "none"])
        flags = ["--draft", source]
        if source in ("model", "auto"):
            flags += ["-d", args.models[1]]
        if source != "none":
            if rng.random() < 0.7:
                flags += ["--tree", str(rng.randint(2, 33)), "--depth", str(rng.randint(1, 16)),
                          "--topk", str(rng.randint(1, 8))]
            flags += rng.choice([[], ["--no-guard"]])
            flags += rng.choice([[], [], ["--independent-noise"]])
        flags += ["-t", str(rng.randint(1, 2)), "--prefill-batch", str(rng.randint(1, 64)),
                  "--isa", rng.choice(fast)]
        shown = [f for f in flags if f not in (args.models[1], "-d")]
        yield "random %d: %s" % (i + 1, " ".join(shown)), temperature, flags


# ---- a model with one changed weight

def skip_value(f, kind):
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    if kind == 8:
        f.seek(struct.unpack("<Q", f.read(8))[0], os.SEEK_CUR)
    elif kind == 9:
        inner, n = struct.unpack("<IQ", f.read(12))
        if inner in sizes:
            f.seek(n * sizes[inner], os.SEEK_CUR)
        else:
            for _ in range(n):
                skip_value(f, inner)
    else:
        f.seek(sizes[kind], os.SEEK_CUR)


def tensor_place(path, name):
    """Offset in the file and number of elements of a tensor (GGUF 2 and 3, one file)."""
    with open(path, "rb") as f:
        magic, version, n_tensors, n_keys = struct.unpack("<4sIQQ", f.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise Failure("%s: no GGUF file of version 2 or 3" % path)
        alignment, found = 32, None
        for _ in range(n_keys):
            key = f.read(struct.unpack("<Q", f.read(8))[0])
            kind = struct.unpack("<I", f.read(4))[0]
            if key == b"general.alignment":
                alignment = struct.unpack("<I", f.read(4))[0]
            else:
                skip_value(f, kind)
        for _ in range(n_tensors):
            tensor = f.read(struct.unpack("<Q", f.read(8))[0]).decode()
            n_dims = struct.unpack("<I", f.read(4))[0]
            dims = struct.unpack("<%dQ" % n_dims, f.read(8 * n_dims))
            kind, offset = struct.unpack("<IQ", f.read(12))
            if tensor == name:
                found = (offset, dims[0], kind)
        data = (f.tell() + alignment - 1) // alignment * alignment
    if not found or found[2] != 0:
        raise Failure("%s: no float32 tensor %s" % (path, name))
    return data + found[0], found[1]


def flip_weight(source, target):
    """Copies a model and flips the sign of the largest weight of its last norm: one bit."""
    offset, n = tensor_place(source, "output_norm.weight")
    shutil.copyfile(source, target)
    with open(target, "r+b") as f:
        f.seek(offset)
        values = struct.unpack("<%df" % n, f.read(4 * n))
        i = max(range(n), key=lambda j: abs(values[j]))
        f.seek(offset + 4 * i + 3)
        top = f.read(1)[0]
        f.seek(offset + 4 * i + 3)
        f.write(bytes([top ^ 0x80]))


# ---- the table

class Table:
    def __init__(self, only):
        self.only = re.compile(only) if only else None
        self.n_wrong = self.n_lines = 0
        print("| setting | T | answers | result | t/s | length | s |\n"
              "| --- | --- | ---: | --- | ---: | ---: | ---: |", flush=True)

    def wants(self, group, name):
        return self.only is None or bool(self.only.search(group + " " + name))

    def line(self, name, temperature, make_pair, must_differ=False, drafts=False):
        """make_pair() -> (base, outcome)"""
        self.n_lines += 1
        try:
            base, outcome = make_pair()
        except Failure as failure:
            self.n_wrong += 1
            print("| %s | %s | | FAILED: %s | | | |" % (name, temperature, failure), flush=True)
            return
        n = len(base.answers)
        differing = [i for i in base.answers if outcome.answers.get(i) != base.answers[i]]
        if must_differ:
            good = bool(differing)
            result = "differs, as it must" if good else "SAME, but must differ"
        else:
            good = not differing
            result = "same" if good else "DIFFERS: " + ", ".join(differing[:3])
            if good and drafts and outcome.n_drafted == 0:
                result = "same, but nothing was drafted"
        self.n_wrong += not good
        print("| %s | %s | %d of %d same | %s | %.1f | %.2f | %.0f |" % (
            name, temperature[2:], n - len(differing), n, result, outcome.tokens_per_second,
            outcome.length, outcome.seconds), flush=True)


def run_groups(args, runner, table, levels):
    size = (args.n_prompts, args.n_tokens)
    slow_size = (args.slow_prompts, args.slow_tokens)
    main_size = (args.main_prompts, args.main_tokens)

    def same(name, temperature, base, flags, at):
        more = TEMPERATURES[temperature]
        table.line(name, temperature,
                   lambda: (runner.run(base + more, at), runner.run(flags + more, at)),
                   drafts="-d" in flags)

    if "main" in args.groups and table.wants("main", "draft 8"):
        same("draft 8", "T=0", PLAIN, chain(args, 8), main_size)
    if "factors" in args.groups:
        for temperature in TEMPERATURES:
            for name, base, flags, slow in factor_settings(args, levels):
                if table.wants("factors", name):
                    same(name, temperature, base, flags, slow_size if slow else size)
    if "random" in args.groups:
        for name, temperature, flags in random_settings(args, levels, random.Random(args.seed)):
            if table.wants("random", name):
                same(name, temperature, PLAIN, flags, size)
    if "controls" in args.groups:
        drawn = TEMPERATURES["T=0.8"]
        if table.wants("controls", "another seed"):
            table.line("another seed", "T=0.8", lambda: (
                runner.run(PLAIN + drawn, size),
                runner.run(PLAIN + drawn[:-1] + ["7"], size)), must_differ=True)
        if table.wants("controls", "one changed weight"):
            changed = os.path.join(runner.folder, "changed.gguf")

            def changed_weight():
                flip_weight(args.models[0], changed)
                return runner.run(PLAIN, size), runner.run(PLAIN, size, model=changed)
            table.line("one changed weight", "T=0", changed_weight, must_differ=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--models", nargs=2, required=True, metavar=("TARGET", "DRAFT"))
    add("--program", default=os.path.join(ROOT, "build", "dovetail"))
    add("--prompts", default=os.path.join(ROOT, "tests", "prompts", "mixed.jsonl"),
        help="JSON lines with id and turns")
    add("--only", help="regular expression on \"GROUP SETTING\"")
    add("--groups", default=",".join(GROUPS), help="of %s" % ", ".join(GROUPS))
    add("--n-prompts", type=int, default=8)
    add("--n-tokens", type=int, default=64)
    add("--main-prompts", type=int, default=40, help="prompts of the group main")
    add("--main-tokens", type=int, default=128)
    add("--slow-prompts", type=int, help="prompts of isa c and openblas (default: as the others)")
    add("--slow-tokens", type=int)
    add("--n-random", type=int, default=20)
    add("--seed", type=int, help="of the random combinations (default: drawn)")
    add("--quick", action="store_true", help="3 prompts, 32 tokens, few settings: a minute or two")
    args = parser.parse_args()
    args.groups = args.groups.split(",")
    for group in args.groups:
        if group not in GROUPS:
            parser.error("no group '%s'" % group)
    if args.quick:
        args.n_prompts, args.n_tokens, args.main_prompts, args.main_tokens = 3, 32, 3, 32
        args.slow_prompts, args.slow_tokens, args.n_random = 1, 8, 2
        args.only = args.only or (
            "^main|^random|^controls|"
            "factors (draft 4|tree|model alone|planned|n-gram|prompt in pieces of 7|threads 1|isa avx)")
    args.slow_prompts = args.slow_prompts or args.n_prompts
    args.slow_tokens = args.slow_tokens or args.n_tokens
    args.seed = random.randrange(1 << 32) if args.seed is None else args.seed
    return args


def main():
    args = parse()
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="dovetail-") as folder:
        try:
            runner = Runner(args, folder)
            levels = isa_levels(args.program)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            print("exactness.py: %s" % error, file=sys.stderr)
            return 1
        if "random" in args.groups:
            print("random combinations: --seed %d\n" % args.seed)
        table = Table(args.only)
        run_groups(args, runner, table, levels)
    print("\n%d settings, %d wrong, %.0f s" % (table.n_lines, table.n_wrong, time.time() - start))
    return 1 if table.n_wrong or table.n_lines == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
