#!/usr/bin/env python3
"""The whole program on the emulated device: its text is that of no draft, the device that served the
trees is named, and whatever fails there costs the draft alone.

Usage: program_test.py PROGRAM [--all]. The tiny models lie in DT_TEST_DATA; --all fails every one of
the first calls of each kind, not some of them.
"""

import json
import os
import subprocess
import sys
import time

DATA = os.environ["DT_TEST_DATA"]
PROGRAM = os.path.abspath(sys.argv[1])
TARGET, DRAFT = (os.path.join(DATA, name + ".gguf") for name in ("tiny-qwen2", "tiny-draft"))
PROMPT = "def main(argc, argv):\n    return"

n_checks = n_failed = 0


def check(condition, message):
    global n_checks, n_failed
    n_checks += 1
    if not condition:
        n_failed += 1
        print("program_test.py:%d: %s" % (sys._getframe(1).f_lineno, message))


def run(*args, n=24, **switches):
    """Standard output, the statistics and the exit code of `run`; SWITCHES go to the shim."""
    env = dict(os.environ, SHIM_LEAKS="1", **{"SHIM_" + k: v for k, v in switches.items()})
    done = subprocess.run([PROGRAM, "run", "-m", TARGET, "-p", PROMPT, "-n", str(n), "--ignore-eos",
                           "--stats", "json", "-t", "1", *args],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=env, timeout=120)
    lines = done.stderr.decode(errors="replace").strip().split("\n")
    try:
        stats = json.loads(lines[-1])
    except ValueError:
        stats = {}
    if not stats:
        check(False, "no statistics (exit code %d): %s" % (done.returncode, lines[-3:]))
    return done.stdout, stats, done.returncode


WARM = ["--temp", "0.8", "--seed", "7"]
plain = {warm: run("--draft", "none", *(WARM if warm else []))[0] for warm in (False, True)}
WITH = ["-d", DRAFT, "--draft", "model", "--no-guard"]


def same(name, text, warm=False):
    check(text == plain[warm], "%s: %r, want %r" % (name, text, plain[warm]))


def test_text():
    check(plain[False] != plain[True], "the temperature changes nothing")
    for shape in ([], ["--tree", "5", "--topk", "1"], ["--tree", "12", "--topk", "3"]):
        for warm in (False, True):
            for order in ("forward", "random"):
                text, stats, code = run(*WITH, *shape, *(WARM if warm else []), ORDER=order)
                name = "%s at %s, %s" % (shape, 0.8 if warm else 0, order)
                same(name, text, warm)
                check(code == 0, "%s: exit code %d" % (name, code))
                draft = stats.get("draft", {})
                check(draft.get("device") == "emulated" and draft.get("state") == "on",
                      "%s: served by %s" % (name, draft))
                check(stats.get("drafted", 0) > 0, "%s: nothing was drafted" % name)
                check(stats.get("notices") == [], "%s: %s" % (name, stats.get("notices")))


def test_accepts():
    """A model that drafts for itself is accepted whole, so its trees are right."""
    for warm in ([], WARM):
        text, stats, _ = run("-d", TARGET, "--draft", "model", "--no-guard", "--tree", "5", "--topk",
                             "1", *warm)
        same("itself", text, bool(warm))
        check(stats["drafted"] - 4 <= stats["accepted"] > 0,
              "itself: %d of %d accepted" % (stats["accepted"], stats["drafted"]))


def test_without():
    """No GPU: the CPU serves, with a line where the GPU was asked for."""
    for driver in ("35", "34", "100"):
        text, stats, code = run(*WITH, DRIVER=driver)
        same("driver " + driver, text)
        check(code == 0 and stats["draft"]["device"] == "cpu" and stats["notices"] == [],
              "driver %s, auto: %s %s" % (driver, stats["draft"], stats["notices"]))
        text, stats, _ = run(*WITH, "--draft-device", "cuda", DRIVER=driver)
        same("driver " + driver, text)
        check(stats["draft"]["device"] == "cpu" and len(stats["notices"]) == 1 and
              "runs on the CPU: no GPU can be used" in stats["notices"][0],
              "driver %s, asked: %s" % (driver, stats["notices"]))
    text, stats, _ = run(*WITH, "--draft-device", "cpu")
    same("on the CPU", text)
    check(stats["draft"]["device"] == "cpu" and stats["notices"] == [], "cpu: %s" % stats["draft"])
    text, stats, _ = run(*WITH, CC="52")
    same("too old", text)
    check("6.1 or later" in str(stats["notices"]) or "6.1 is the least" in str(stats["notices"]),
          "too old: %s" % stats["notices"])
    text, stats, _ = run(*WITH, VRAM_MB="1")
    same("too small", text)
    check("memory is full" in str(stats["notices"]), "too small: %s" % stats["notices"])
    text, stats, _ = run(*WITH, "--gpu", "3", DEVICES="2")
    same("no such GPU", text)
    check("there is no GPU 3" in str(stats["notices"]), "no such GPU: %s" % stats["notices"])
    text, stats, _ = run(*WITH, DEVICES="2", VRAM_MB="64,8000")
    same("two", text)
    check(stats["draft"]["device"] == "emulated", "two: %s" % stats)


def test_failures():
    """The n-th call of each kind fails, or the device is lost from there on."""
    for what in ("alloc", "copy", "launch", "event", "sync", "graph", "stream", "other"):
        for how in ("", "lose@"):
            for n in range(1, 46) if "--all" in sys.argv else (1, 2, 3, 5, 8, 30, 100, 300):
                fail = "%s%s:%d" % (how, what, n)
                text, stats, code = run(*WITH, "--tree", "4", n=12, FAIL=fail)
                check(plain[False].startswith(text) and len(text) > 0, "%s: %r" % (fail, text))
                check(code == 0, "%s: exit code %d" % (fail, code))
                served = stats.get("draft", {})
                told = len(stats.get("notices", []))
                seen = not (what == "other" and n == 1)  # else the driver shows no device
                check(served.get("device") == "emulated" or told == 1 or not seen,
                      "%s: %s without a word: %s" % (fail, served, stats.get("notices")))
                check(served.get("state") == "on" or told == 1,
                      "%s: %s, told %s" % (fail, served, stats.get("notices")))


def test_hang():
    """A call that never returns in the middle: the text goes on, and the end waits two seconds."""
    start = time.monotonic()
    text, stats, code = run(*WITH, n=24, FAIL="hang@graph:20")
    same("a call that hangs", text)
    check(code == 0, "a call that hangs: exit code %d" % code)
    seconds = time.monotonic() - start
    check(seconds < 20, "a call that hangs: %.1f s" % seconds)


def test_info():
    done = subprocess.run([PROGRAM, "info", "--json"], stdout=subprocess.PIPE, timeout=60)
    gpu = json.loads(done.stdout)["machine"]["gpu"]
    check(gpu.startswith("GPU 0, "), "info: %s" % gpu)
    env = dict(os.environ, SHIM_DRIVER="35")
    done = subprocess.run([PROGRAM, "info", "--json"], stdout=subprocess.PIPE, env=env, timeout=60)
    gpu = json.loads(done.stdout)["machine"]["gpu"]
    check(gpu.startswith("none: no GPU can be used: "), "info: %s" % gpu)
    # A driver that never answers: the end is the program's own, not that of its libraries.
    out = hangs.communicate(timeout=60)[0]
    gpu = json.loads(out)["machine"]["gpu"]
    check(gpu == "none: the driver does not answer", "info: %s" % gpu)
    check(hangs.returncode == 0, "info, a driver that hangs: exit code %d" % hangs.returncode)


# It waits for ten seconds: meanwhile the others run.
hangs = subprocess.Popen([PROGRAM, "info", "--json"], stdout=subprocess.PIPE,
                         env=dict(os.environ, SHIM_LEAKS="1", SHIM_FAIL="hang@event:1"))
for test in (test_text, test_accepts, test_without, test_failures, test_hang, test_info):
    test()
print("%d checks, %d failed" % (n_checks, n_failed))
sys.exit(1 if n_failed else 0)
