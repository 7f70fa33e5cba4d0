#!/usr/bin/env python3
"""dovetail chat from outside: what a pipe gets, and scripted sessions at a terminal.

Usage: chat_test.py PROGRAM [NAME ...]. The tiny models lie in DT_TEST_DATA; DT_TEST_ISA forces an
instruction set.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time

from pty_child import HAS_LIBEDIT, Terminal

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.environ.get("DT_TEST_DATA") or os.path.join(HERE, "data")
PROGRAM = os.path.abspath(sys.argv[1])
TARGET, DRAFT, OTHER = (os.path.join(DATA, name + ".gguf")
                        for name in ("tiny-qwen2", "tiny-draft", "tiny-llama"))
CHAT = [PROGRAM, "chat", "-m", TARGET, "--isa", os.environ.get("DT_TEST_ISA", "auto")]
HOT = ["--temp", "0.9", "--seed", "7", "--top-p", "0.95"]

n_checks = n_failed = 0


def check(condition, message):
    global n_checks, n_failed
    n_checks += 1
    if not condition:
        n_failed += 1
        print("chat_test.py:%d: %s" % (sys._getframe(1).f_lineno, message))
    return condition


# ---- from a pipe

class Piped:
    """Lines in, answers (raw), figures (one object an answer) and notes out."""

    def __init__(self, lines, *args, code=0, env=None, model=TARGET):
        text = "".join(line + "\n" for line in lines)
        command = [PROGRAM, "chat", "-m", model, *CHAT[4:], "--stats", "json", *args]
        done = subprocess.run(command, input=text.encode(),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, env=env)
        self.out, err = done.stdout, done.stderr.decode(errors="replace")
        self.stats = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
        self.notes = [line for line in err.splitlines() if not line.startswith("{")]
        if done.returncode != code:
            check(False, "exit code %d, want %d: %r" % (done.returncode, code, err))


def read_chat(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def ids_of(saved):
    return [i for turn in saved["turns"] for i in turn["prompt_ids"] + turn["answer_ids"]]


def decode(ids):
    out = subprocess.run([PROGRAM, "tokenize", "-m", TARGET, "--special", "--decode",
                          json.dumps(ids)], stdout=subprocess.PIPE, check=True).stdout
    return out.decode(errors="replace")


def test_turns(folder):
    """The KV is kept over turns, and a fresh process that reads everything writes the same."""
    for more in ([], HOT):
        path = os.path.join(folder, "a.json")
        talk = ["hello", "and then?", "once more", "/save " + path]
        base = Piped(talk, "-n", "30", "--draft", "none", *more)
        saved = read_chat(path)
        turns = saved["turns"]
        check([t["user"] for t in turns] == ["hello", "and then?", "once more"], "users")
        total = 0
        for turn, stats in zip(turns, base.stats):
            # The last token of the answer before has not been through the model yet.
            want = len(turn["prompt_ids"]) + (1 if total else 0)
            check(stats["prompt_tokens"] == want, "read %d, want %d" % (stats["prompt_tokens"],
                                                                       want))
            check(stats["tokens"] == len(turn["answer_ids"]), "tokens of an answer")
            total += len(turn["prompt_ids"]) + len(turn["answer_ids"])
            check(stats["context"]["tokens"] == total, "tokens of the context")
        first = subprocess.run([PROGRAM, "run", *CHAT[2:], "--chat", "-p", "hello", "-n", "30",
                                *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
        check(base.out.startswith(first.stdout), "the first answer is not that of run --chat")
        for way in (["-d", DRAFT], ["-d", DRAFT, "--no-guard", "--tree", "16", "--topk", "3"],
                    ["--draft", "ngram"], ["-t", "1", "--prefill-batch", "3"]):
            other = os.path.join(folder, "b.json")
            got = Piped(talk[:-1] + ["/save " + other], "-n", "30", *way, *more)
            check(got.out == base.out, "%s: other answers" % way)
            check(ids_of(read_chat(other)) == ids_of(saved), "%s: other ids" % way)
            # Afresh: the whole conversation in one prefill. /retry takes the seed after the set one.
            again = os.path.join(folder, "c.json")
            fresh = Piped(["/load " + path, *(["/set seed 6"] if more else []), "/retry",
                           "/save " + again], "-n", "30", *way, *more)
            check(ids_of(read_chat(again)) == ids_of(saved), "%s: a fresh run differs" % way)
            n_prompt = len(ids_of(saved)) - len(turns[-1]["answer_ids"])
            check(fresh.stats[0]["prompt_tokens"] == n_prompt, "a fresh run reads too little")


def test_models(folder):
    """Other architectures and templates: the same over turns and afresh, with old turns forgotten."""
    path, again = os.path.join(folder, "a.json"), os.path.join(folder, "b.json")
    cases = [(name, []) for name in ("tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-f16")
             if os.path.exists(os.path.join(DATA, name + ".gguf"))]
    cases += [("tiny-qwen2", ["--template", family])
              for family in ("llama2", "llama3", "gemma", "mistral", "phi", "qwen3")]
    for name, more in cases:
        model = os.path.join(DATA, name + ".gguf")
        if name == "tiny-f16":
            more = ["--template", "llama3"]
        lines = ["one", "two \u00e9", "three", "four", "/save " + path]
        args = [*more, "-n", "30", "-c", "300", "--system", "Stay."]
        base = Piped(lines, *args, "--draft", "none", model=model)
        check(Piped(lines, *args, "--no-guard", model=model).out == base.out,
              "%s %s: another text with the n-gram draft" % (name, more))
        check(base.stats[1]["prompt_tokens"] < base.stats[1]["context"]["tokens"] - 30,
              "%s %s: the second turn reads everything" % (name, more))
        Piped(["/load " + path, "/retry", "/save " + again], *args, model=model)
        check(ids_of(read_chat(again)) == ids_of(read_chat(path)),
              "%s %s: a fresh run differs" % (name, more))


def test_template(folder):
    """The ids are those of the template, with every end of turn exactly once."""
    path = os.path.join(folder, "a.json")
    Piped(["hello", "two", "three", "/save " + path], "-n", "8", "--system", "Be brief.")
    text = decode(ids_of(read_chat(path)))
    check(text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello"
                          "<|im_end|>\n<|im_start|>assistant\n"), "beginning: %r" % text)
    check("<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n" in text,
          "second turn: %r" % text)
    check("<|im_end|><|im_end|>" not in text, "an end of turn twice")
    # Another system prompt: as if it had stood there from the start.
    other = os.path.join(folder, "b.json")
    Piped(["/load " + path, "/system Be long.", "/save " + other])
    check(decode(ids_of(read_chat(other))) == text.replace("Be brief.", "Be long."), "/system")


def test_save(folder):
    path, next_path = os.path.join(folder, "a.json"), os.path.join(folder, "b.json")
    for more in ([], HOT):
        one = Piped(["hello", "/set n 17", "/save " + path, "go on", "/save " + next_path], "-n",
                    "20", "--system", "X", *more)
        check(stat.S_IMODE(os.stat(path).st_mode) == 0o600, "mode of a saved chat")
        two = Piped(["/load " + path, "go on"])
        check(two.out and one.out.endswith(two.out), "the answer after /load is another: %r, %r" %
              (one.out, two.out))
        check(two.stats[0]["tokens"] <= 17, "/load does not bring the settings")
    saved = read_chat(path)

    def refused(words, text, *args):
        bad = os.path.join(folder, "bad.json")
        with open(bad, "w", encoding="utf-8") as f:
            f.write(text)
        got = Piped(["/load " + bad, "hello"], *args, code=1)
        check(len(got.notes) == 1 and words in got.notes[0] and not got.out, "%s: %s" %
              (words, got.notes))

    def changed(**keys):
        return json.dumps({**saved, **keys})

    refused("no saved chat", "")
    refused("no saved chat", "{}")
    refused("no saved chat", "[1]")
    refused("version 2", changed(dovetail_chat=2))
    refused("vocabulary", changed(vocabulary="0"))
    refused("system prompt", changed(system=3))
    refused("turns", changed(turns={}))
    refused("turn 1", changed(turns=[{}]))
    turn = saved["turns"][0]
    for ids in ([-1], [10**9], ["x"], [1.5], None, []):
        refused("turn 1", changed(turns=[{**turn, "prompt_ids": ids}]))
    refused("larger -c", json.dumps(saved), "-c", "16")
    refused("temp", changed(settings={"temp": "hot"}))
    got = Piped(["/load " + os.path.join(folder, "none.json")], code=1)
    check("cannot open" in got.notes[0], "missing file: %s" % got.notes)
    got = Piped(["hello", "/save /no/such/folder/x"], code=1)
    check("cannot write /no/such/folder/x" in got.notes[0], "/save: %s" % got.notes)
    precious = os.path.join(folder, "precious.txt")
    with open(precious, "w", encoding="utf-8") as f:
        f.write("keep me")
    got = Piped(["hello", "/save " + precious], code=1)
    with open(precious, encoding="utf-8") as f:
        check("no saved chat" in got.notes[0] and f.read() == "keep me", "/save overwrites files")
    for beside in (path + ".part", path + ".tmp"):
        with open(beside, "w", encoding="utf-8") as f:
            f.write("keep me")
    Piped(["hello", "/save " + path])  # over an older chat
    for beside in (path + ".part", path + ".tmp"):
        with open(beside, encoding="utf-8") as f:
            check(f.read() == "keep me", "/save overwrites %s" % beside)
        os.remove(beside)
    left = [name for name in os.listdir(folder) if name.startswith("a.json")]
    check(left == ["a.json"], "/save leaves %s" % left)
    check(len(read_chat(path)["turns"]) == 1, "/save does not overwrite a saved chat")
    other = [PROGRAM, "chat", "-m", os.path.join(DATA, "tiny-draft.gguf")]
    done = subprocess.run([*other, "-n", "3"], input=("/load %s\nhello\n" % path).encode(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    check(done.returncode == 0 and b"another model" in done.stderr, "other model: %r" % done.stderr)


def test_retry():
    got = Piped(["hello", "/retry"], "-n", "20")
    answers = got.out.splitlines()
    check(any("will be the same" in note for note in got.notes), "no word at temperature 0")
    half = len(got.out) // 2
    check(got.out[:half] == got.out[half:], "/retry at temperature 0: %r" % answers)
    got = Piped(["hello", "/retry", "/retry"], "-n", "20", *HOT)
    check([s["seed"] for s in got.stats] == [7, 8, 9], "seeds: %s" % [s["seed"] for s in got.stats])
    check([s["prompt_tokens"] for s in got.stats][1:] == [1, 1], "/retry reads the prompt again")
    want = Piped(["hello"], "-n", "20", "--temp", "0.9", "--seed", "9", "--top-p", "0.95").out
    check(got.out.endswith(want) and len(got.out) > len(want), "/retry is not its seed's answer")
    got = Piped(["/retry"], code=1)
    check("no answer" in got.notes[0], "/retry of nothing: %s" % got.notes)


def test_settings():
    cold = Piped(["hello"], "-n", "20").out
    hot = Piped(["hello"], "-n", "20", *HOT).out
    got = Piped(["/set temp 0.9", "/set seed 7", "/set top-p 0.95", "/set n 20", "hello"], "-d",
                DRAFT)
    check(got.out == hot != cold, "/set is not the option")
    got = Piped(["/set"], "--temp", "0.5")
    check("temp               0.5" in got.notes, "list of settings: %s" % got.notes)
    for line, words in (("/set temp hot", "not a number"), ("/set temp 1e9", "out of range"),
                        ("/set model x", "no setting"), ("/set temp", "OPTION VALUE"),
                        ("/set n 1.5", "whole number"), ("/walk", "unknown command"),
                        ("/save", "FILE"), ("/load", "FILE")):
        got = Piped([line, "hello"], "-n", "3", code=1)
        check(len(got.notes) == 1 and words in got.notes[0], "%s: %s" % (line, got.notes))


def test_lines(folder):
    path = os.path.join(folder, "a.json")
    Piped(["one \\", "two", '"""', "three", "", "four", '"""', '"""five', 'six"""', '"""seven"""',
           "//eight", "", "  ", "nine \u4e2d\u6587", "/save " + path], "-n", "2")
    users = [turn["user"] for turn in read_chat(path)["turns"]]
    check(users == ["one \ntwo", "three\n\nfour", "five\nsix", "seven", "/eight",
                    "nine \u4e2d\u6587"], "messages: %s" % users)
    got = Piped(['"""', "open at the end"], "-n", "2")
    check(len(got.stats) == 1, "a block that the input ends in")
    got = Piped(["hello", "/clear", "/stats", "hello"], "-n", "9")
    half = len(got.out) // 2
    check(got.out[:half] == got.out[half:], "/clear leaves something")
    check(any("0 turns" in note for note in got.notes), "/stats: %s" % got.notes)


def test_overflow(folder):
    path, again = os.path.join(folder, "a.json"), os.path.join(folder, "b.json")
    lines = ["message number %d" % i for i in range(12)] + ["/save " + path]
    base = None
    for way in (["--draft", "none"], ["-d", DRAFT], ["--draft", "ngram"]):
        got = Piped(lines, "-c", "160", "-n", "24", "--system", "Stay.", *way)
        notices = [n for s in got.stats for n in s["notices"] if "context is full" in n]
        check(len(got.stats) == 12, "%d answers" % len(got.stats))
        check(len(notices) >= 2, "nothing is said of the full context")
        check(all(s["context"]["tokens"] <= 160 for s in got.stats), "more than the context holds")
        saved = read_chat(path)
        check(len(saved["turns"]) < 12 and saved["turns"][-1]["user"] == "message number 11",
              "turns that are left")
        text = decode(ids_of(saved))
        check(text.startswith("<|im_start|>system\nStay.<|im_end|>\n<|im_start|>user\nmessage"),
              "the system prompt is gone: %r" % text)
        base = base or got
        check(got.out == base.out, "%s: other answers" % way)
        Piped(["/load " + path, "/retry", "/save " + again], "-c", "160", "-n", "24")
        check(ids_of(read_chat(again)) == ids_of(saved), "afresh it goes on differently")
    # An answer that outgrows the context: old turns go while it is written, and it goes on.
    got = Piped(["hello", "/set n 100", "go on"], "-c", "160", "-n", "40")
    if got.stats[0]["stop"] == got.stats[1]["stop"] == "budget":
        check(got.stats[1]["tokens"] == 100, "the answer stops at %d" % got.stats[1]["tokens"])
        check(got.stats[1]["context"]["turns"] == 1, "no turn was forgotten for it")
    else:
        check(False, "the tiny model ends its answers by itself, nothing tested")
    got = Piped(["hello", "x" * 400], "-c", "64", "-n", "4", code=1)
    check(len(got.notes) == 1 and "the context holds 64" in got.notes[0], "long: %s" % got.notes)


def test_stop_across(folder):
    """A stop string of which one part comes before the context fills and the other after."""
    path = os.path.join(folder, "a.json")
    lines = ["hello", "/set n 100", "go on", "/save " + path]
    wide = Piped(lines, "-c", "4096", "-n", "40")
    n_first = 160 - (wide.stats[1]["context"]["tokens"] - wide.stats[1]["tokens"])
    free = Piped(lines, "-c", "160", "-n", "40")
    ids = read_chat(path)["turns"][-1]["answer_ids"]
    if not check(len(ids) == 100 and 4 < n_first < 96, "the context does not fill: %d" % n_first):
        return
    stats = free.stats[1]
    by = stats["proposals_from"].values()
    check(sum(b["tokens"] for b in by) == 100, "tokens by source: %s" % stats["proposals_from"])
    check(sum(b["steps"] for b in by) == stats["steps"], "steps by source")
    part = [subprocess.run([PROGRAM, "tokenize", "-m", TARGET, "--decode", json.dumps(some)],
                           stdout=subprocess.PIPE, check=True).stdout
            for some in (ids[:n_first], ids)]
    text, at = part[1], len(part[0])
    stop = text[at - 2:at + 2]
    while text.index(stop) < at - 4:
        stop = text[at - 2:at + len(stop)]
    check(free.out.endswith(text + (b"" if text.endswith(b"\n") else b"\n")), "decoded: %r" % text)
    want = text[:text.index(stop)]
    for way in (["--draft", "none"], ["-d", DRAFT, "--no-guard"]):
        got = Piped(lines[:3], "-c", "160", "-n", "40", "--stop", stop, *way)
        check(got.stats[1]["stop"] == "string", "%s: ended by %s" % (way, got.stats[1]["stop"]))
        check(got.out.rstrip(b"\n").endswith(want.rstrip(b"\n")), "%s: %r, want %r" %
              (way, got.out, want))


# ---- at a terminal

def terminal(folder, *args, columns=80, **more):
    env = dict(os.environ, TERM="xterm", XDG_STATE_HOME=os.path.join(folder, "state"),
               LC_ALL="C.UTF-8")
    return Terminal([*CHAT, *args], columns=columns, env=env, **more)


def ready(t, at=0):
    return t.ready(at)


def say(t, text, at):
    t.type(text + "\r")
    return ready(t, t.expect(r"\[\d+ tokens[^\]]*\]", at))


def answer_in(shown):
    """What stands between the message and the figures, without progress and notes."""
    shown = re.sub(r"\r\x1b\[K[^\r]*(?=\r\x1b\[K)|\r\x1b\[K", "", shown)
    return re.sub(r"dovetail: [^\r]*\r\n", "", shown).split("[")[0]


def ends_well(t, code):
    got = t.wait()
    check(got == code, "exit code %d, want %d: %r" % (got, code, t.text[-300:]))
    check(t.sane(), "the terminal is left in another state")
    t.close()


def test_session(folder):
    """Three turns, Ctrl-C in the middle, /retry, /save and /load."""
    path = os.path.join(folder, "a.json")
    t = terminal(folder, "-n", "24", "-c", "65536", "-d", DRAFT)
    at = ready(t)
    at = say(t, "hello", at)
    at = say(t, "\u4e2d\u6587 caf\u00e9", at)
    t.type("/set n 60000\r")
    at = ready(t, at)
    t.type("a long one\r")
    at = t.expect("a long one\r\n.{50}", at)
    t.type("\x03")
    at = ready(t, t.expect(r"\[\d+ tokens", at))
    t.type("/set n 24\r")
    at = ready(t, at)
    at = say(t, "third", at)
    start = at
    at = say(t, "/retry", at)
    check("will be the same" in t.text[start:at], "/retry says nothing: %r" % t.text[start:at])
    t.type("/save %s\r" % path)
    at = ready(t, at)
    start = at
    at = say(t, "next", at)
    want = answer_in(t.text[start:at])
    t.type("\x04")
    ends_well(t, 0)
    saved = read_chat(path)["turns"]
    check([turn["user"] for turn in saved] ==
          ["hello", "\u4e2d\u6587 caf\u00e9", "a long one", "third"], "messages: %s" %
          [turn["user"] for turn in saved])
    check(4 < len(saved[2]["answer_ids"]) < 60000, "Ctrl-C: %d tokens" %
          len(saved[2]["answer_ids"]))
    t = terminal(folder, "-n", "24", "-c", "65536")
    at = ready(t)
    t.type("/load %s\r" % path)
    at = ready(t, at)
    start = at
    at = say(t, "next", at)
    got = answer_in(t.text[start:at])
    check(got == want, "after /load: %r, want %r" % (got, want))
    t.type("/quit\r")
    ends_well(t, 0)


def test_keys(folder):
    path = os.path.join(folder, "a.json")
    t = terminal(folder, "-n", "4")
    at = ready(t)
    if HAS_LIBEDIT:
        t.type("dropped")
        at = t.expect("dropped", at)
        t.type("\x03")  # clears the line
        at = ready(t, at)
        at = say(t, "\u4e2d\u6587\x7f\u5b57 \U0001f600x\x7f", at)
        at = say(t, "\x1b[A!", at)  # up: the line before, and more
        at = say(t, "abc\x01X\x05Y", at)  # home, end
    else:
        at = say(t, "plain", at)
    t.resize(3)
    at = say(t, "narrow", at)
    t.type("one \\\r")
    at = t.expect(r"\. $", at)
    at = say(t, "two", at)
    t.type('"""\r')
    at = t.expect(r"\. $", at)
    t.type("never sent")
    at = t.expect("n.*e.*v.*e.*r.*s.*e.*n.*t", at)
    t.type("\x03")  # drops the block
    at = ready(t, at)
    t.resize(80)
    t.type("/save %s\r" % path)
    at = ready(t, at)
    t.type("\x03")  # at an empty prompt: the end
    ends_well(t, 130)
    users = [turn["user"] for turn in read_chat(path)["turns"]]
    want = ["\u4e2d\u5b57 \U0001f600", "\u4e2d\u5b57 \U0001f600!", "XabcY", "narrow", "one \ntwo"]
    check(users == (want if HAS_LIBEDIT else ["plain", *want[3:]]), "messages: %s" % users)
    if HAS_LIBEDIT:
        history = os.path.join(folder, "state", "dovetail", "history")
        check(stat.S_IMODE(os.stat(history).st_mode) == 0o600, "mode of the history")
        t = terminal(folder, "-n", "4")
        at = ready(t)
        at = say(t, "\x1b[A" * 3 + "?", at)  # the lines of the chat before
        t.type("\x04")
        ends_well(t, 0)
        check("two?" in t.text, "no history: %r" % t.text)


def test_one_column(folder):
    t = terminal(folder, "-n", "6", columns=1)
    at = t.ready()
    t.type("hello \u4e2d\r")
    t.ready(t.expect(r"\[\d+ tokens", at))
    t.type("\x04")
    ends_well(t, 0)


def test_color(folder):
    t = terminal(folder, "-n", "40", "-d", DRAFT, "--color", "--no-guard", "--stats", "json")
    at = ready(t)
    t.type("hello\r")
    at = ready(t, t.expect(r"\{.*\}", at))
    t.type("\x04")
    ends_well(t, 0)
    stats = json.loads(re.search(r"\{.*\}", t.text).group(0))
    answer = t.text[t.text.index("hello\r\n"):t.text.index("{\"")]
    check(answer.count("\x1b[32m") == answer.count("\x1b[0m"), "colours: %r" % answer)
    check(stats["accepted"] == 0 or "\x1b[32m" in answer, "no colour: %r" % answer)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", answer)
    check("\x1b" not in plain.replace("\x1b[K", ""), "escapes: %r" % plain)


def test_controls(folder):
    """A model whose texts hold U+009B, which some terminals take for ESC [, and a byte that is no
    UTF-8: neither reaches the terminal."""
    with open(TARGET, "rb") as f:
        data = f.read()
    word = b"\x05\0\0\0\0\0\0\0total"
    check(data.count(word) == 1, "the model has no word 'total'")
    data = data.replace(b"t otal", "\u0120t he".encode())  # no merge may lead to it any more
    # The names of bytes in a vocabulary: c2, 9b and x; c2, x and y.
    for name, raw, shown in (("\u00c2\u013dx", b"\xc2\x9bx", b"\xef\xbf\xbdx"),
                             ("\u00c2xyz", b"\xc2xyz", b"\xef\xbf\xbdxyz")):
        path = os.path.join(folder, "controls.gguf")
        with open(path, "wb") as f:
            f.write(data.replace(word, word[:8] + name.encode()))
        piped = Piped(["hello"], "-n", "40", model=path)
        check(raw in piped.out, "the model does not say it: %r" % piped.out)
        t = terminal(folder, "-n", "40", "-m", path)
        at = ready(t)
        say(t, "hello", at)
        t.type("\x04")
        ends_well(t, 0)
        check(raw not in t.raw and shown in t.raw, "on the terminal: %r" % t.raw[-400:])


def test_ends(folder):
    """Whatever ends the program, the terminal is as it was."""
    long = ["-n", "60000", "-c", "65536", "--color"]
    t = terminal(folder, *long)
    at = ready(t)
    t.type("go\r")
    t.expect("go\r\n.{20}", at)
    # In the answer, or at the prompt after it. The system may hand over two as one, so: until it
    # ends, as a user would.
    while t.alive():
        t.type("\x03")
        t.pump(0.2)
    ends_well(t, 130)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        t = terminal(folder, *long)
        ready(t)
        t.signal(number)
        ends_well(t, -number)
        check("dovetail: ended" in t.text, "no word: %r" % t.text)
    t = terminal(folder, *long)
    at = ready(t)
    t.type("go\r")
    t.expect("go\r\n.{20}", at)
    t.signal(signal.SIGTERM)
    ends_well(t, -signal.SIGTERM)
    # Mistakes at the prompt end nothing.
    t = terminal(folder, "-n", "3")
    at = ready(t)
    fifo = os.path.join(folder, "fifo")
    os.mkfifo(fifo)
    for line in ("/load /no/such", "/walk", "/set temp hot", "/save", "/load " + fifo,
                 "/save " + fifo, "/load /dev/tty"):
        t.type(line + "\r")
        at = ready(t, t.expect("dovetail: ", at))
    say(t, "hello", at)
    t.type("\x04")
    ends_well(t, 0)


def test_paste(folder):
    """Ctrl-C in the answer to a pasted block drops the rest of the block."""
    t = terminal(folder, "-n", "60000", "-c", "65536")
    at = ready(t)
    t.type("go\rone\rtwo\rthree\r")
    t.expect("go\r\n.{20}", at)
    t.type("\x03")
    at = t.expect(r"\d of 65536 in the context\]", at)
    ready(t, at)
    check("one\r\n" not in t.text[at:], "goes on with the block: %r" % t.text[at:])
    t.type("\x04")
    ends_well(t, 0)


def test_long_system(folder):
    t = terminal(folder, "-n", "3", "-c", "64")
    at = ready(t)
    t.type("/system " + "x " * 90 + "\r")
    at = t.expect("stays as it was", at)
    at = ready(t, at)
    at = say(t, "hello", at)
    t.type("\x04")
    ends_well(t, 0)


def main():
    tests = {name[5:]: value for name, value in globals().items() if name.startswith("test_")}
    for name in sys.argv[2:] or tests:
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                tests[name](*([folder] if tests[name].__code__.co_argcount else []))
            except AssertionError as error:
                check(False, "%s: %s" % (name, error))
        print("%s: %.1f s" % (name, time.time() - start), flush=True)
    print("%d checks, %d failed" % (n_checks, n_failed))
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
