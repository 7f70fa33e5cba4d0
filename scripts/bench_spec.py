#!/usr/bin/env python3
"""Measures what each source of proposals is worth, prompt by prompt and interleaved.

  scripts/bench_spec.py --models TARGET.gguf DRAFT.gguf PROMPTS.jsonl... [options]

Every prompt is answered under every setting in turn, in an order that is shuffled anew for each, so
that a machine that slows down slows down for all. The time of an answer is prefill and decoding
together; loading is left out. Printed are tokens per second, the ratio to plain decoding as the
geometric mean of paired ratios with a 95% interval (bootstrap over prompts), and the worst answer.

Settings: plain, ngram, model, combined (model and n-grams, never resting), planner (the default).
The planner's record of the pair is kept in a folder of its own, made anew (--fresh: for every
answer; --record FOLDER: kept there).
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def settings(args):
    draft = ["-d", args.models[1]]
    return {
        "plain": ["--draft", "none"],
        "ngram": ["--draft", "ngram"],
        "model": draft + ["--draft", "model"],
        "combined": draft + ["--draft", "auto", "--no-guard"],
        "planner": draft,
    }


def read_prompts(paths, n):
    prompts = []
    for path in paths:
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f if line.strip()]
        for i, prompt in enumerate(lines[:n] if n else lines):
            text = prompt.get("prompt") or prompt["turns"][0]
            prompts.append({"id": str(prompt.get("id", i)), "prompt": text,
                            "set": os.path.basename(path)})
    return prompts


def answer(args, flags, prompt, cache):
    """(seconds, tokens, stats) of one answer."""
    command = [args.program, "run", "-m", args.models[0], "--jsonl", "-", "-n", str(args.n_tokens),
               "-c", str(args.ctx), "--stats", "none", "--temp", str(args.temp)] + flags
    if args.temp > 0:
        command += ["--seed", "1"]
    if not args.no_chat:
        command.append("--chat")
    if args.threads:
        command += ["-t", str(args.threads)]
    done = subprocess.run(command, input=json.dumps(prompt).encode() + b"\n",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(os.environ, XDG_CACHE_HOME=cache))
    if done.returncode != 0:
        raise SystemExit("bench_spec.py: exit code %d: %s" % (
            done.returncode, done.stderr.decode(errors="replace").strip()[-300:]))
    line = json.loads(done.stdout)
    stats = line["stats"]
    return stats["seconds"]["prefill"] + stats["seconds"]["decode"], line["tokens"], stats


def interval(logs, rng):
    """Geometric mean of ratios given as logarithms, and its 95% interval."""
    if not logs:
        return float("nan"), float("nan"), float("nan")
    means = sorted(sum(rng.choice(logs) for _ in logs) / len(logs) for _ in range(2000))
    return tuple(math.exp(v) for v in (sum(logs) / len(logs), means[50], means[1949]))


def table(results, names, rng):
    print("| setting | tokens/s | decode alone | tokens a step | against plain, 95% interval "
          "| worst |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        rows = [r for r in results if name in r]
        tokens = sum(len(r[name][1]) for r in rows)
        seconds = sum(r[name][0] for r in rows)
        decode = sum(r[name][2]["seconds"]["decode"] for r in rows)
        steps = sum(r[name][2]["steps"] for r in rows)
        pairs = [r for r in rows if "plain" in r]
        logs = [math.log(r["plain"][0] / r[name][0]) for r in pairs]
        mean, low, high = interval(logs, rng)
        worst = max((r[name][0] / r["plain"][0] for r in pairs if len(r[name][1]) >= 64),
                    default=float("nan"))
        print("| %s | %.1f | %.1f | %.2f | %.2f (%.2f to %.2f) | %.2f |" % (
            name, tokens / seconds, tokens / decode, tokens / max(steps, 1), mean, low, high,
            worst), flush=True)


def parse(known):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("prompts", nargs="+", help="JSON lines with id and prompt or turns")
    add("--models", nargs=2, required=True, metavar=("TARGET", "DRAFT"))
    add("--program", default=os.path.join(ROOT, "build", "dovetail"))
    add("--settings", default=",".join(known), help="of %s" % ", ".join(known))
    add("--n-prompts", type=int, default=0, help="of each file (default: all)")
    add("--n-tokens", type=int, default=128)
    add("--ctx", type=int, default=2048)
    add("--temp", type=float, default=0.0)
    add("--threads", type=int, default=0)
    add("--no-chat", action="store_true", help="continue the prompt instead of answering it")
    add("--seed", type=int, default=1, help="of the order and the bootstrap")
    add("--fresh", action="store_true", help="no record of the pair for any answer")
    add("--record", help="folder that keeps the planner's record (default: one made anew)")
    add("--json", help="write every answer's figures to this file")
    args = parser.parse_args()
    args.settings = args.settings.split(",")
    for name in args.settings:
        if name not in known:
            parser.error("no setting '%s'" % name)
    return args


def main():
    args = parse(["plain", "ngram", "model", "combined", "planner"])
    flags = settings(args)
    rng = random.Random(args.seed)
    results = []
    with tempfile.TemporaryDirectory(prefix="dovetail-") as folder:
        kept = os.path.abspath(args.record) if args.record else os.path.join(folder, "kept")
        for i, prompt in enumerate(read_prompts(args.prompts, args.n_prompts)):
            row = {"prompt": prompt}
            for name in rng.sample(args.settings, len(args.settings)):
                cache = os.path.join(folder, "%d-%s" % (i, name)) if args.fresh else kept
                row[name] = answer(args, flags[name], prompt, cache)
            texts = {tuple(row[name][1]) for name in args.settings}
            if len(texts) != 1:
                raise SystemExit("bench_spec.py: %s: the texts differ" % prompt["id"])
            results.append(row)
            print("%s %s: %s" % (prompt["set"], prompt["id"], ", ".join(
                "%s %.2f s" % (name, row[name][0]) for name in args.settings)), file=sys.stderr)
    for name in sorted({r["prompt"]["set"] for r in results}):
        some = [r for r in results if r["prompt"]["set"] == name]
        print("\n%s, %d prompts, %d tokens at most, T %g\n" % (
            name, len(some), args.n_tokens, args.temp))
        table(some, args.settings, rng)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump([{"id": r["prompt"]["id"], "set": r["prompt"]["set"],
                        **{n: {"seconds": r[n][0], "tokens": len(r[n][1]), "stats": r[n][2]}
                           for n in args.settings}} for r in results], f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
