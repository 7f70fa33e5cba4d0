#!/usr/bin/env python3
"""The program from outside: exit codes, one clear line for bad input, what goes to which stream.

Usage: cli_test.py PROGRAM [NAME ...]. The tiny models lie in DT_TEST_DATA; DT_TEST_ISA forces an
instruction set.
"""

import csv
import json
import os
import re
import signal
import struct
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.environ.get("DT_TEST_DATA") or os.path.join(HERE, "data")
ISA = os.environ.get("DT_TEST_ISA", "auto")
PROGRAM = os.path.abspath(sys.argv[1])
TARGET, DRAFT, OTHER = (os.path.join(DATA, name + ".gguf")
                        for name in ("tiny-qwen2", "tiny-draft", "tiny-llama"))
RUN = ["run", "-m", TARGET, "--isa", ISA]

n_checks = n_failed = 0


def check(condition, message):
    global n_checks, n_failed
    n_checks += 1
    if not condition:
        n_failed += 1
        frame = sys._getframe(1)
        while frame.f_code.co_name in ("refuses", "works"):
            frame = frame.f_back
        print("cli_test.py:%d: %s" % (frame.f_lineno, message))


class Done:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err.decode(errors="replace")


def call(*args, stdin=b"", **more):
    more.setdefault("stdout", subprocess.PIPE)
    more["input" if isinstance(stdin, bytes) else "stdin"] = stdin
    done = subprocess.run([PROGRAM, *args], stderr=subprocess.PIPE, timeout=300,
                          **more)
    return Done(done.returncode, done.stdout, done.stderr)


def refuses(code, words, *args, prints=False, **more):
    """Nothing on standard output (unless `prints`), one line "dovetail: ..." that holds `words`,
    this exit code."""
    done = call(*args, **more)
    shown = " ".join(a if isinstance(a, str) else repr(a) for a in args)
    one_line = done.err.startswith("dovetail: ") and done.err.count("\n") == 1
    check(done.code == code, "%s: exit code %d, want %d (%s)" % (shown, done.code, code, done.err))
    check(one_line, "%s: want one line, got %r" % (shown, done.err))
    for word in words if isinstance(words, tuple) else (words,):
        check(word in done.err, "%s: want '%s' in %r" % (shown, word, done.err))
    check(prints or not done.out, "%s: wrote %r" % (shown, done.out))


def works(*args, **more):
    done = call(*args, **more)
    check(done.code == 0, "%s: exit code %d: %s" % (args, done.code, done.err))
    return done


# ---- usage

def test_help():
    check(works("--version").out.startswith(b"dovetail "), "no version")
    text = works("--help").out.decode()
    for command in ("run", "chat", "bench", "tokenize", "perplexity", "info"):
        check("  %s " % command in text, "--help lacks " + command)
        lines = works(command, "--help").out.decode().splitlines()
        check(any("--model" in line for line in lines), "%s --help lacks -m" % command)
        check(all(len(line) <= 100 for line in lines), "%s --help has a long line" % command)


def test_usage():
    done = call()
    check(done.code == 2 and "  chat " in done.err and not done.out, "no command: %r" % done.err)
    refuses(2, ("unknown command 'walk'", "dovetail --help"), "walk")
    refuses(2, ("unknown option '--fast'", "dovetail run --help"), "run", "--fast")
    refuses(2, "unknown option '--pp'", "run", "--pp", "3")
    refuses(2, "unexpected argument 'x'", *RUN, "x")
    refuses(2, "-m FILE is needed", "run", "-p", "x")
    refuses(2, "-m FILE is needed", "bench")
    refuses(2, "-n needs a value", *RUN, "-n")
    refuses(2, "-m needs a value", "run", "-m", "-d", "x")
    refuses(2, "'many' is not a whole number", *RUN, "-n", "many")
    refuses(2, "'3x' is not a whole number", *RUN, "-n", "3x")
    refuses(2, "'' is not a whole number", *RUN, "-n", "")
    refuses(2, ("-n", "out of range"), *RUN, "-n", "-2")
    refuses(2, ("-c", "out of range"), *RUN, "-c", "-1")
    refuses(2, "out of range", *RUN, "-n", "99999999999999999999")
    refuses(2, "'hot' is not a number", *RUN, "--temp", "hot")
    refuses(2, "'nan' is not a number", *RUN, "--temp", "nan")
    refuses(2, ("--temp", "0 or 0.0001"), *RUN, "--temp", "1e-30")
    refuses(2, ("--top-p", "out of range"), *RUN, "--top-p", "1.5")
    refuses(2, ("--top-p", "out of range"), *RUN, "--top-p", "0")
    refuses(2, "auto|c|avx2|avxvnni|avx512|amx", *RUN, "--isa", "sse")
    refuses(2, "auto|model|ngram|none", *RUN, "--draft", "oracle")
    refuses(2, "-d FILE", *RUN, "--draft", "model")
    refuses(2, "more than one text", *RUN, "-p", "x", "-f", "y")
    refuses(2, "takes no value", *RUN, "--chat=yes")
    refuses(2, "more than 16 times", *RUN, *(["--stop", "x"] * 17))
    refuses(2, "1 to 256 bytes", *RUN, "--stop", "x" * 257)
    refuses(2, "list of numbers", "bench", "-m", TARGET, "--curve", "1,,2")
    refuses(2, "want 1 to 64", "bench", "-m", TARGET, "--curve", "65")


# ---- files

def test_files(folder):
    refuses(1, "/no/such/model", "run", "-m", "/no/such/model", "-p", "x")
    refuses(1, "/no/such/text", *RUN, "-f", "/no/such/text")
    refuses(1, folder, "run", "-m", folder, "-p", "x")
    refuses(1, folder, *RUN, "-f", folder)
    text = os.path.join(folder, "text.gguf")
    with open(text, "w") as f:
        f.write("This is no model.\n")
    refuses(1, ("text.gguf", "GGUF"), "run", "-m", text, "-p", "x")
    refuses(1, "text.gguf", "tokenize", "-m", text, "-p", "x")
    refuses(1, "text.gguf", "info", "-m", text)
    with open(TARGET, "rb") as f:
        data = f.read()
    cut = os.path.join(folder, "cut.gguf")
    for n in (0, 3, 4, 11, 23, 24, 100, 1000, 5000, len(data) // 2, len(data) - 1):
        with open(cut, "wb") as f:
            f.write(data[:n])
        refuses(1, "cut.gguf", "perplexity", "-m", cut, "-f", TARGET)
    refuses(1, "draft", *RUN, "-d", OTHER, "-p", "x")
    refuses(1, "/no/such/draft", *RUN, "-d", "/no/such/draft", "-p", "x")


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


# ---- prompts

def test_prompts(folder):
    refuses(1, "prompt is empty", *RUN, "-p", "")
    refuses(1, "prompt is empty", *RUN)
    refuses(1, "text is empty", "tokenize", "-m", TARGET)
    refuses(1, ("9 tokens", "holds 8"), *RUN, "-c", "8", "-p", "xqxqxqxqx")
    refuses(1, "NUL", *RUN, "--chat", stdin=b"a\0b")
    path = os.path.join(folder, "bytes.txt")
    nasty = b"a\0b\xff\xfe\xc3(\xe2\x82 \xf0\x9f\x98"
    with open(path, "wb") as f:
        f.write(nasty)
    want = works(*RUN, "-n", "9", "-f", path).out
    check(works(*RUN, "-n", "9", stdin=nasty).out == want, "file and standard input differ")
    check(works(*RUN, "-n", "9", "-f", "-", stdin=nasty).out == want, "-f - differs")
    works(*RUN, "-n", "9", "-p", b"\xff\xfe\xc3(")
    plain = works(*RUN, "-n", "9", "-p", "hello").out
    check(works(*RUN, "-n", "9", "--chat", "-p", "hello").out != plain, "--chat changes nothing")
    check(works(*RUN, "-n=9", "--prompt=hello").out == plain, "-n=9 differs")
    lines = os.path.join(folder, "prompts.jsonl")
    with open(lines, "w") as f:
        f.write('{"id": "one", "turns": ["hello"]}\n\n{"prompt": "hello"}\n')
    done = works(*RUN, "-n", "9", "--jsonl", lines)
    answers = [json.loads(line) for line in done.out.splitlines()]
    check([a["id"] for a in answers] == ["one", 3], "ids of --jsonl")
    for a in answers:
        check(bytes.fromhex(a["bytes"]) == plain, "--jsonl writes another text")
        check(len(a["tokens"]) == a["stats"]["tokens"] == 9, "tokens of --jsonl")
    with open(lines, "w") as f:
        f.write('{"id": "one"}\n')
    refuses(1, "line 1", *RUN, "--jsonl", lines)


# ---- answers and figures

KEYS = {"prompt_tokens", "tokens", "steps", "drafted", "accepted", "accepted_per_position",
        "accepted_off_first_branch", "mean_acceptance_length", "tokens_per_second",
        "plain_tokens_per_second", "seconds", "draft", "numerics", "seed", "threads", "isa", "stop"}


def stats_of(*args):
    done = works(*RUN, "--stats", "json", *args)
    check(done.err.count("\n") == 1, "want one object, got %r" % done.err)
    return json.loads(done.err), done.out


def test_stats():
    stats, _ = stats_of("-d", DRAFT, "-p", "hello", "-n", "40", "--ignore-eos")
    check(KEYS <= set(stats), "lacks %s" % (KEYS - set(stats)))
    check(stats["tokens"] == 40 and stats["stop"] == "budget", "tokens %d" % stats["tokens"])
    check(stats["draft"]["source"] == "model+ngram" and stats["draft"]["device"] == "cpu", "draft")
    check(stats["steps"] + stats["accepted"] >= 40, "steps and accepted are too few")
    length = 1 + stats["accepted"] / stats["steps"]
    check(abs(stats["mean_acceptance_length"] - length) < 1e-6, "mean_acceptance_length")
    check(sum(stats["accepted_per_position"]) == stats["accepted"], "accepted_per_position")
    check(stats["wasted"] == stats["drafted"] - stats["accepted"], "wasted")
    froms = stats["proposals_from"].values()
    check(sum(f["tokens"] for f in froms) == 40, "tokens by source: %s" % stats["proposals_from"])
    check(sum(f["steps"] for f in froms) == stats["steps"], "steps by source")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        works(*RUN, "-d", DRAFT, "-p", "hello", "-n", "40", "--ignore-eos", "--trace", path)
        with open(path, encoding="utf-8") as f:
            events = json.load(f)["traceEvents"]
        lanes = [{e["name"] for e in events if e["tid"] == tid and e["ph"] == "X"} for tid in (1, 2)]
        check({"read prompt", "verify"} <= lanes[0] and "hand over" in lanes[1], "lanes %s" % lanes)
        check(all(e["dur"] >= 0 for e in events if e["ph"] == "X"), "durations")
    refuses(1, "cannot write", *RUN, "-p", "hello", "-n", "2", "--trace", "/nowhere/trace.json",
            prints=True)
    check(len(stats["why"]) > 20, "why: %r" % stats["why"])
    stats, _ = stats_of("--draft", "none", "-p", "hello", "-n", "5", "--ignore-eos")
    check(stats["draft"]["source"] == "none" and stats["steps"] == 5, "plain decoding drafts")
    stats, out = stats_of("-p", "hello", "-n", "0")
    check(stats["tokens"] == 0 and out == b"", "-n 0 writes something")
    stats, _ = stats_of("-p", "hello", "-c", "32", "--ignore-eos")
    check(stats["stop"] == "context", "stop is %s" % stats["stop"])
    check(stats["prompt_tokens"] + stats["tokens"] <= 33, "more tokens than the context holds")
    done = works(*RUN, "-p", "hello", "-n", "5", "--stats", "none")
    check(done.err == "", "--stats none writes %r" % done.err)
    done = works(*RUN, "-p", "hello", "-n", "5")
    check(re.fullmatch(r"\d+\.\d tokens/s.*\n", done.err), "figures: %r" % done.err)


def test_same_text():
    base = works(*RUN, "--draft", "none", "-p", "hello", "-n", "64", "--ignore-eos").out
    hot = ["--temp", "0.9", "--seed", "11", "--top-k", "50", "--top-p", "0.95",
           "--repeat-penalty", "1.1"]
    drawn = works(*RUN, "--draft", "none", "-p", "hello", "-n", "64", "--ignore-eos", *hot).out
    check(base != drawn, "temperature changes nothing")
    for more in (["-d", DRAFT], ["-d", DRAFT, "--no-guard", "--tree", "9", "--depth", "8", "--topk",
                 "1"], ["-d", DRAFT, "--tree", "16", "--topk", "4", "--independent-noise"],
                 ["-d", DRAFT, "--draft", "model"], ["--draft", "ngram", "--no-guard"], ["-t", "1"], ["--prefill-batch", "1"],
                 ["-d", DRAFT, "--draft", "none", "-t", "2"]):
        args = [*RUN, "-p", "hello", "-n", "64", "--ignore-eos", *more]
        check(works(*args).out == base, "%s: another text" % more)
        check(works(*args, *hot).out == drawn, "%s: another text at T > 0" % more)


def test_sampling():
    args = [*RUN, "-p", "hello", "-n", "24", "--ignore-eos", "--temp", "1"]
    one = works(*args, "--seed", "1").out
    check(works(*args, "--seed", "1").out == one, "a seed does not repeat its text")
    check(works(*args, "--seed", "2").out != one, "two seeds give one text")
    first, second = works(*args), works(*args)
    found = re.search(r"seed (\d+)", first.err)
    check(found, "the random seed is not printed: %r" % first.err)
    check(first.out != second.out, "two random seeds give one text")
    if found:
        check(works(*args, "--seed", found.group(1)).out == first.out, "printed seed is another")
    check(works(*args, "--seed", "1", "--top-k", "1").out ==
          works(*args[:-2]).out, "top-k 1 is not greedy")


def test_stop():
    text = works(*RUN, "-p", "hello", "-n", "60", "--ignore-eos").out
    if len(text) > 20:
        middle = text[10:13].decode("latin-1")
        if middle.isascii():
            got = works(*RUN, "-p", "hello", "-n", "60", "--ignore-eos", "--stop", middle).out
            check(got == text[:text.index(text[10:13])], "--stop: %r of %r" % (got, text))


def test_template(folder):
    own = works(*RUN, "-n", "9", "--chat", "-p", "hello").out
    check(works(*RUN, "-n", "9", "--chat", "--template", "chatml", "-p", "hello").out == own,
          "--template chatml is not the model's own")
    path = os.path.join(folder, "form.txt")
    with open(path, "w") as f:
        f.write("user <|im_start|>user\\n{text}<|im_end|>\\n\n"
                "assistant <|im_start|>assistant\\n{text}<|im_end|>\\n\n")
    check(works(*RUN, "-n", "9", "--chat", "--template", path, "-p", "hello").out == own,
          "a template file with the same words gives another text")
    refuses(1, ("line 3", "want a line of"), *RUN, "--chat", "--template", write(path, "\n\nx\n"),
            "-p", "x")
    refuses(1, ("no such family", "chatml"), *RUN, "--chat", "--template", "nosuch", "-p", "x")
    refuses(1, "no thinking", *RUN, "--chat", "--think", "off", "-p", "x")
    works(*RUN, "-n", "2", "--chat", "--template", "qwen3", "--think", "off", "-p", "x")
    refuses(2, "--template needs --chat", *RUN, "--template", "chatml", "-p", "x")
    refuses(2, "--think needs --chat", *RUN, "--think", "on", "-p", "x")


def test_bias(folder):
    args = [*RUN, "-p", "hello", "-n", "12", "--ignore-eos"]
    plain = json.loads(works(*args, "--json").out)
    first = plain["tokens"][0]
    banned = json.loads(works(*args, "--json", "--logit-bias", "%d:-inf" % first).out)
    check(first not in banned["tokens"], "a banned token appears: %s" % banned["tokens"])
    forced = json.loads(works(*args, "--json", "--logit-bias", "70:1e6").out)
    check(forced["tokens"] == [70] * 12, "a forced token does not: %s" % forced["tokens"])
    for more in (["-d", DRAFT], ["--draft", "none"], ["-t", "1"]):
        got = json.loads(works(*args, *more, "--json", "--logit-bias", "%d:-inf" % first).out)
        check(got["tokens"] == banned["tokens"], "%s: another text with a bias" % more)
    text = works("tokenize", "-m", TARGET, "--decode", "[70]").out
    same = json.loads(works(*args, "--json", "--logit-bias", text + b":1e6,71:-1").out)
    check(same["tokens"] == [70] * 12, "a bias by text: %s" % same["tokens"])
    colon = json.loads(works(*args, "--json", "--logit-bias", ",:5,::1e6").out)
    check(colon["text"] == ":" * 12, "a comma and a colon as texts: %s" % colon["text"])
    for bad in ("70", "70:", ":1", "70:x", "70:inf", "70:nan", "70:1e7", "70:1,", "70:1,x", ""):
        refuses(2, ("--logit-bias", "TOKEN:VALUE"), *args, "--logit-bias", bad)
    refuses(1, "no single token", *args, "--logit-bias", "no such token at all:1")
    refuses(1, "want 0 to", *args, "--logit-bias", "999999:1")


def test_run_json():
    args = [*RUN, "-p", "hello", "--ignore-eos"]
    text = works(*args, "-n", "9").out
    done = works(*args, "-n", "9", "--json")
    found = json.loads(done.out)
    check(bytes.fromhex(found["bytes"]) == text, "--json has another text")
    check(found["finish_reason"] == "budget" and found["stats"]["tokens"] == 9, "%s" % found)
    check(len(found["tokens"]) == 9 and done.err == "", "--json writes %r" % done.err)
    refuses(2, "--jsonl", *RUN, "--json", "--jsonl", "x")
    check("; -n 9 reached" in works(*args, "-n", "9").err, "the end by -n is not announced")
    done = works(*args, "-n", "-1", "-c", "40")
    check("; the context is full (-c 40)" in done.err, "a full context is not: %r" % done.err)
    done = works(*args, "-n", "1")
    check("; 1 token in" in done.err, "one token: %r" % done.err)
    cut = works(*args, "-n", "40", "--stop", text[6:7], "--stop", "never so").out
    check(cut == text[:text.index(text[6:7])], "two --stop: %r of %r" % (cut, text))


def test_messages(folder):
    refuses(2, "want the name of a file", "run", "-m", "", "-p", "x")
    odd = os.path.join(folder, "a\033[31m\nb\u009b\u00e9.gguf")
    done = refuses(1, "a\\x1b[31m\\x0ab\\xc2\\x9b\u00e9.gguf", "run", "-m", odd, "-p", "x")
    lines = write(os.path.join(folder, "prompts.jsonl"), '{"prompt": "a"}\n\n{"prompt": 3}\n')
    refuses(1, "line 3", *RUN, "-n", "1", "--jsonl", lines, prints=True)
    write(lines, '{"prompt": "a"}\n{"prompt"\n')
    refuses(1, "line 2", *RUN, "-n", "1", "--jsonl", lines, prints=True)
    refuses(1, ("/dev/zero", "256 MB"), *RUN, "-f", "/dev/zero")
    refuses(1, ("standard input", "256 MB"), *RUN, stdin=open("/dev/zero", "rb"))
    refuses(1, "irectory", *RUN, "-f", folder)


def test_trace_over(folder):
    """--trace and --logits leave alone what the command reads, by whatever name."""
    model, draft = os.path.join(folder, "m.gguf"), os.path.join(folder, "d.gguf")
    link = os.path.join(folder, "link")
    shutil.copyfile(TARGET, model)
    shutil.copyfile(DRAFT, draft)
    text = write(os.path.join(folder, "text"), "hello, hello")
    lines = write(os.path.join(folder, "lines"), '{"prompt": "aa"}\n')
    template = write(os.path.join(folder, "template"), "user {text}\nassistant {text}\n")
    os.link(text, link)
    os.symlink(model, link + "2")
    before = {path: open(path, "rb").read() for path in (model, draft, text, lines, template)}
    run = ["run", "-m", model, "-n", "2"]
    for out, args in ((model, ["-p", "x"]), (link + "2", ["-p", "x"]),
                      (draft, ["-d", draft, "-p", "x"]), (text, ["-f", text]), (link, ["-f", text]),
                      (lines, ["--jsonl", lines]),
                      (template, ["--chat", "--template", template, "-p", "x"])):
        refuses(2, ("--trace", "is read by this command"), *run, *args, "--trace", out)
    with open(text, "rb") as f:
        refuses(2, "--trace", *run, "--trace", link, stdin=f)
    with open(text, "rb") as f:
        refuses(2, "--logits", "perplexity", "-m", model, "--logits", text, stdin=f)
    for path, data in before.items():
        with open(path, "rb") as f:
            check(f.read() == data, "%s is overwritten" % path)
    # An older trace is no input, whatever stands in it.
    for _ in range(2):
        works(*run, "-p", "x", "--trace", os.path.join(folder, "trace"))


def gguf_tensor(data, name):
    """Offset of a tensor's bytes in a GGUF file of the default alignment."""
    at = 24
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)

    def skip_text(at):
        return at + 8 + struct.unpack_from("<Q", data, at)[0]

    def skip_value(at, kind):
        if kind == 9:
            kind, n = struct.unpack_from("<IQ", data, at)
            at += 12
        else:
            n = 1
        for _ in range(n if kind == 8 else 0):
            at = skip_text(at)
        return at + n * sizes.get(kind, 0)

    for _ in range(n_keys):
        at = skip_text(at)
        at = skip_value(at + 4, struct.unpack_from("<I", data, at)[0])
    found = None
    for _ in range(n_tensors):
        end = skip_text(at)
        n_dims = struct.unpack_from("<I", data, end)[0]
        if data[at + 8:end] == name:
            found = struct.unpack_from("<Q", data, end + 4 + 8 * n_dims + 4)[0]
        at = end + 4 + 8 * n_dims + 12
    return (at + 31) // 32 * 32 + found


def test_names(folder):
    """What a model file says of itself: shown harmlessly, and as it is in tables for programs, cut
    between characters."""
    with open(TARGET, "rb") as f:
        data = f.read()
    old = b"\x0a\0\0\0\0\0\0\0tiny-qwen2"
    check(data.count(old) == 1, "the model has no name")
    odd = b'\x1b[31m\xc2\x9bA,"\r\n\xff' + "\u00e9".encode() * 30 + b"0"
    check(len(odd) == 74, "%d bytes, the tensors would move" % len(odd))
    path = os.path.join(folder, "odd.gguf")
    with open(path, "wb") as f:
        f.write(data.replace(old, struct.pack("<Q", 74) + odd))
    prompts = write(os.path.join(folder, "prompts.jsonl"), '{"prompt": "aa"}\n')
    base = ["bench", "-m", path, "--isa", ISA, "-r", "1"]
    speed = [*base, "-p", "0", "-n", "2"]
    curve = [*base, "--curve", "1"]
    turns = [*base, "-md", path, "--prompts", prompts, "-n", "2"]
    for args in (["info", "-m", path], speed, curve, turns):
        text = works(*args).out
        check(b"\\x1b[31m\\xc2\\x9bA" in text, "%s: the name: %r" % (args, text[:300]))
        check(not re.search(b"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", text), "%s: a control: %r" %
              (args, text))
        text.decode()
    whole = odd.decode(errors="replace")
    check(json.loads(works("info", "-m", path, "--json").out)["model"]["name"] == whole, "info")
    for args, key in ((speed, "model"), (turns, "model"), (turns, "draft_model")):
        out = works(*args, "-o", "csv").out.decode()
        names = [row[key] for row in csv.DictReader(out.splitlines(True))]
        names += [json.loads(line)[key] for line in works(*args, "-o", "jsonl").out.splitlines()]
        found = json.loads(works(*args, "-o", "json").out)
        names += [row[key] for row in (found if isinstance(found, list) else [found])]
        for name in names:
            check(len(name) > 30 and whole.startswith(name), "%s: %s %r" % (args, key, name))


def test_nan(folder):
    """A model whose weights are no numbers ends with a line, not with an empty text."""
    with open(TARGET, "rb") as f:
        data = bytearray(f.read())
    # In the last norm: no logit is a number.
    struct.pack_into("<f", data, gguf_tensor(data, b"output_norm.weight"), float("nan"))
    path = os.path.join(folder, "nan.gguf")
    with open(path, "wb") as f:
        f.write(data)
    refuses(1, ("logits are not finite", "damaged"), "run", "-m", path, "-p", "hello")
    refuses(1, "damaged", "run", "-m", path, "-p", "hello", "--json")
    refuses(1, "damaged", "run", "-m", path, "-p", "hello", "--temp", "1", "--seed", "1")


# ---- streams and signals

def test_streams():
    refuses(1, "cannot write", *RUN, "-p", "hello", "-n", "20", "--ignore-eos",
            stdout=open("/dev/full", "wb"))
    refuses(1, "cannot write", "run", "--help", stdout=open("/dev/full", "wb"))
    read_end, write_end = os.pipe()
    os.close(read_end)
    refuses(1, "cannot write", *RUN, "-p", "hello", "-n", "20", "--ignore-eos", stdout=write_end)
    os.close(write_end)
    refuses(1, "cannot write", *RUN, "-p", "hello", "-n", "20", "--ignore-eos",
            preexec_fn=lambda: os.close(1))
    done = subprocess.run([PROGRAM, *RUN, "-p", "hello", "-n", "5"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=lambda: os.close(0))
    check(done.returncode == 0, "closed standard input: exit code %d" % done.returncode)


def test_interrupt():
    """The writer blocks on a full pipe, so the answer is under way when the signal comes."""
    child = subprocess.Popen([PROGRAM, *RUN, "--draft", "none", "-p", "hello", "-n", "60000", "-c",
                              "65536", "--ignore-eos", "--stats", "json"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=300)
    if child.returncode == 1 and b"context" in err:
        print("test_interrupt: the tiny model's context is too short, nothing tested")
        return
    check(child.returncode == 130, "exit code %d, want 130: %r" % (child.returncode, err))
    check(len(first) == 1 and len(out) < 60000 * 4, "the answer went on")
    try:
        check(json.loads(err)["stop"] == "interrupt", "stop: %r" % err)
    except ValueError:
        check(False, "no figures after Ctrl-C: %r" % err)


# ---- the other commands

def test_tokenize():
    text = "def f(x):\n    return x + 1  # \u00fc \u4e2d \U0001f600\r\n"
    ids = json.loads(works("tokenize", "-m", TARGET, "-p", text).out)
    check(ids and all(isinstance(i, int) for i in ids), "ids: %s" % ids)
    back = works("tokenize", "-m", TARGET, "--decode", json.dumps(ids)).out
    check(back == text.encode(), "decoding gives %r" % back)
    check(json.loads(works("tokenize", "-m", TARGET, stdin=text.encode()).out) == ids, "stdin")
    raw = bytes(range(256))
    ids = json.loads(works("tokenize", "-m", TARGET, "--no-bos", stdin=raw).out)
    back = works("tokenize", "-m", TARGET, "--decode", json.dumps(ids)).out
    check(back == raw, "bytes do not survive")
    plain = json.loads(works("tokenize", "-m", TARGET, "-p", "<|im_end|>").out)
    special = json.loads(works("tokenize", "-m", TARGET, "--special", "-p", "<|im_end|>").out)
    check(len(plain) > 1 and len(special) == 1, "--special: %s %s" % (plain, special))
    refuses(1, "out of range", "tokenize", "-m", TARGET, "--decode", "[999999]")
    refuses(1, "not a token id", "tokenize", "-m", TARGET, "--decode", '[1, "x"]')
    for text in ("[1, x]", "[1, 2", "1 2 3", "[]xx", "", "{}"):
        refuses(1, "want a JSON array", "tokenize", "-m", TARGET, "--decode", text)


def test_perplexity(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as f:
        f.write("One line of text, and another one.\n" * 3)
    logits = os.path.join(folder, "logits")
    args = ["perplexity", "-m", TARGET, "--isa", ISA, "-f", path]
    found = json.loads(works(*args, "--json", "--logits", logits).out)
    ids = json.loads(works("tokenize", "-m", TARGET, "-f", path).out)
    n_vocab = json.loads(works("info", "-m", TARGET, "--json").out)["model"]["sizes"]["vocabulary"]
    check(found["tokens"] == len(ids), "tokens: %s" % found)
    check(os.path.getsize(logits) == 4 * n_vocab * len(ids), "size of the logits")
    import math
    total = 0.0
    with open(logits, "rb") as f:
        for following in ids[1:]:
            row = struct.unpack("<%df" % n_vocab, f.read(4 * n_vocab))
            top = max(row)
            total += top + math.log(sum(math.exp(x - top) for x in row)) - row[following]
    check(abs(total / (len(ids) - 1) - found["mean_nll"]) < 1e-4, "mean_nll and logits disagree")
    check(abs(math.exp(found["mean_nll"]) / found["perplexity"] - 1) < 1e-6, "perplexity")
    check(b"perplexity" in works(*args).out, "no text")
    ids_path = os.path.join(folder, "ids.json")
    with open(ids_path, "w") as f:
        json.dump(ids, f)
    again = json.loads(works("perplexity", "-m", TARGET, "--isa", ISA, "--ids", ids_path, "--json",
                             "-t", "1", "--prefill-batch", "3").out)
    check(again["mean_nll"] == found["mean_nll"], "--ids gives another result")
    cut = json.loads(works(*args, "--json", "--max-tokens", "10").out)
    check(cut["tokens"] == 10, "--max-tokens")
    refuses(1, "at least 2", "perplexity", "-m", TARGET, stdin=b"x")
    refuses(1, "context holds", "perplexity", "-m", TARGET, stdin=b"xq" * 20000)
    refuses(1, "cannot create", *args, "--logits", "/no/such/folder/x")
    model = os.path.join(folder, "model.gguf")
    shutil.copyfile(TARGET, model)
    size = os.path.getsize(model)
    refuses(2, "is read by this command", "perplexity", "-m", model, "-f", path, "--logits",
            model)
    check(os.path.getsize(model) == size, "--logits overwrote the model")


def test_bench():
    args = ["bench", "-m", TARGET, "--isa", ISA, "-r", "2"]
    rows = json.loads(works(*args, "-md", DRAFT, "-p", "32", "-n", "16", "-o", "json").out)
    check([r["test"] for r in rows] == ["pp32", "tg16", "tg16"], "tests: %s" % rows)
    check(all(r["avg_ts"] > 0 and len(r["samples_ts"]) == 2 for r in rows), "samples")
    check(all(r["machine"] and r["threads"] > 0 and r["isa"] and r["numerics"] for r in rows),
          "what it ran on: %s" % rows)
    check(rows[2]["draft"] == "model+ngram" and rows[2]["mean_acceptance_length"] >= 1, "draft row")
    table = works(*args, "--pp", "16", "--tg", "0", "--depth", "40").out.decode()
    check("pp16 @ d40" in table and table.count("\n") == 5, "table:\n" + table)
    text = works(*args, "-p", "8", "-n", "8", "-d", "0,24", "-o", "csv").out.decode()
    found = list(csv.DictReader(text.splitlines()))
    check([r["test"] for r in found] == ["pp8", "tg8", "pp8 @ d24", "tg8 @ d24"], "csv: " + text)
    check(all(float(r["avg_ts"]) > 0 and len(r["samples_ts"].split()) == 2 for r in found), text)
    lines = works(*args, "-p", "8,9", "-n", "0", "-o", "jsonl").out.decode().splitlines()
    check([json.loads(line)["test"] for line in lines] == ["pp8", "pp9"], "jsonl: %s" % lines)


def test_bench_curve():
    args = ["bench", "-m", TARGET, "--isa", ISA, "-r", "2", "--curve", "1,4,64"]
    found = json.loads(works(*args, "-o", "json").out)
    curve = found["curve"]
    check([r["m"] for r in curve] == [1, 4, 64] and all(r["ms"] > 0 for r in curve), "curve")
    check(found["pass_bytes"] <= os.path.getsize(TARGET), "bytes of a pass: %s" % found)
    for row in curve:
        rate = found["pass_bytes"] / row["ms"] * 1e-6
        check(abs(row["gb_per_s"] / rate - 1) < 1e-6, "GB/s: %s, want %g" % (row, rate))
        ratio = row["ms"] / found["floor_ms"]
        check(abs(row["ratio_to_floor"] / ratio - 1) < 1e-6, "floor: %s, want %g" % (row, ratio))
    check(curve[0]["ratio"] == 1, "T(1): %s" % curve[0])
    isas = json.loads(works("info", "--json").out)["machine"]["isa"]
    args = ["bench", "-m", TARGET, "--isa", ",".join(isas), "-r", "1", "--curve", "2"]
    found = works(*args, "-d", "0,30", "-o", "jsonl").out.decode().splitlines()
    found = [(row["isa"], row["n_depth"]) for row in map(json.loads, found)]
    check(found == [(isa, depth) for isa in isas for depth in (0, 30)], "rows: %s" % found)
    table = works(*args[:3], "--isa", "all", "-r", "1", "--curve", "1").out.decode()
    check("T(m) / F" in table and "F = " in table, "table:\n" + table)


def test_bench_prompts(folder):
    path = os.path.join(folder, "prompts.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for row in ({"id": "a", "category": "code", "turns": ["aa bb aa bb", "bb aa"]},
                    {"id": "b", "category": "prose, long", "prompt": "one two three"},
                    {"prompt": "no category"}):
            file.write(json.dumps(row) + "\n\n")
    args = ["bench", "-m", TARGET, "--isa", ISA, "--prompts", path, "-n", "24", "-r", "2"]
    rows = json.loads(works(*args, "-md", DRAFT, "-o", "json").out)
    names = ["code", "prose, long", "none", "all"]
    check([r["category"] for r in rows] == names, "categories: %s" % rows)
    check([r["prompts"] for r in rows] == [1, 1, 1, 3], "prompts: %s" % rows)
    check(rows[3]["tokens"] == sum(r["tokens"] for r in rows[:3]) > 0, "tokens: %s" % rows)
    for r in rows:
        check(abs(r["speed_up"] - r["avg_ts"] / r["plain_ts"]) < 1e-6, "speed-up: %s" % r)
        length = 1 + r["accepted"] / r["steps"]
        check(abs(r["mean_acceptance_length"] - length) < 1e-6, "length: %s" % r)
        at = r["acceptance_per_position"]
        check(abs(sum(at) - r["accepted"] / r["steps"]) < 1e-6, "positions: %s" % r)
        check(all(0 < p <= 1 for p in at) and at == sorted(at, reverse=True), "order: %s" % at)
        check(r["machine"] and r["isa"] and r["threads"] and r["numerics"], "facts: %s" % r)
    text = works(*args, "--draft", "ngram", "-o", "csv").out.decode()
    found = list(csv.DictReader(text.splitlines()))
    check([r["category"] for r in found] == names, "csv: " + text)
    plain = works(*args).out.decode()
    check("no draft" in plain and "speed-up" not in plain, "no draft:\n" + plain)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"prompt": "good"}\n{"turns": [1]}\n')
    refuses(1, ("line 2", "turns"), *args)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"prompt": "' + "very long " * 9000 + '"}\n')
    refuses(1, ("line 1", "context"), *args)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n")
    refuses(1, "no prompt", *args)


def test_bench_refuses():
    args = ["bench", "-m", TARGET]
    refuses(2, ("--prompts", "-p"), *args, "--prompts", "x", "-p", "3")
    refuses(2, ("--prompts", "-n"), *args, "--prompts", "x", "-n", "0")
    refuses(1, "x", *args, "--prompts", "x")
    refuses(2, "nothing to measure", *args, "-p", "0", "-n", "0")
    refuses(2, "list of numbers", *args, "-d", DRAFT)
    refuses(2, ("--curve", "draft"), *args, "--curve", "1", "-md", DRAFT)
    refuses(2, ("--curve", "-p"), *args, "--curve", "1", "-p", "8")
    refuses(2, "--ring", *args, "--ring")
    refuses(2, "-n above 0", *args, "-n", "0", "--draft", "ngram")
    refuses(2, ("'sse' is none of", "avx2"), *args, "--isa", "c,sse")


def test_bench_ring():
    n_cpus = len(os.sched_getaffinity(0))
    if n_cpus >= 2:
        rows = json.loads(works("bench", "--ring", "-o", "json").out)
        check(len(rows) == 2 and all(0 < r["median_ns"] <= r["p99_ns"] for r in rows), "ring")
    else:
        refuses(1, "two hardware threads", "bench", "--ring")


def test_info():
    found = json.loads(works("info", "--json").out)
    machine, plan = found["machine"], found["plan"]
    check("c" in machine["isa"] and "model" not in found, "info without a model")
    check(machine["tree"] and machine["gpu"] and machine["openblas"]["self_test"], "machine")
    check(machine["memory"]["limit_bytes"] >= machine["memory"]["available_bytes"] > 0, "memory")
    check(1 <= plan["threads"] <= machine["cores"] and plan["team"], "plan: %s" % plan)
    found = json.loads(works("info", "-m", TARGET, "-c", "1000", "--json").out)["model"]
    check(found["architecture"] == "qwen2" and found["chat"] in ("chatml", "qwen2"),
          "info: %s" % found)
    check(found["numerics"].startswith("int8"), "numerics: %s" % found["numerics"])
    needs = found["memory"]
    check(needs["context"] == 1000, "context: %s" % needs)
    check(needs["kv_bytes"] >= 1000 * needs["kv_token_bytes"] > 0, "KV cache: %s" % needs)
    total = needs["weights_bytes"] + needs["kv_bytes"] + needs["work_bytes"]
    check(needs["total_bytes"] == total and needs["work_bytes"] > 0, "memory: %s" % needs)
    check(b"qwen2" in works("info", "-m", TARGET).out, "info as text")


def test_info_topology():
    if "hwloc" not in json.loads(works("info", "--json").out)["build"]["parts"]:
        refuses(2, "hwloc", "info", "--topology", "pu:2")
        return
    found = json.loads(works("info", "--topology", "pack:2 core:4 pu:2", "--json").out)
    check(found["plan"]["threads"] == found["machine"]["cores"] == 8, "two sockets: %s" % found)
    check("memory" in found["plan"], "two sockets: %s" % found["plan"])
    hybrid = os.path.join(DATA, "topo_hybrid.xml")
    text = works("info", "--topology", hybrid, "-t", "2").out.decode()
    check("2 performance, 4 efficient" in text and "all 4 stay free" in text, "hybrid:\n" + text)
    refuses(2, "synthetic", "info", "--topology", "nonsense")
    refuses(2, "no.xml", "info", "--topology", "no.xml")


def test_affinity():
    first = min(os.sched_getaffinity(0))
    done = works("info", "--json", preexec_fn=lambda: os.sched_setaffinity(0, {first}))
    found = json.loads(done.out)
    check(found["plan"]["threads"] == found["machine"]["hardware_threads"] == 1,
          "bound to one CPU: %s" % found["plan"])
    check("CPU %d," % first in found["plan"]["team"], "team: %s" % found["plan"])


def main():
    tests = {name[5:]: value for name, value in globals().items() if name.startswith("test_")}
    for name in sys.argv[2:] or tests:
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            needs_folder = tests[name].__code__.co_argcount
            tests[name](*([folder] if needs_folder else []))
        print("%s: %.1f s" % (name, time.time() - start), flush=True)
    print("%d checks, %d failed" % (n_checks, n_failed))
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
