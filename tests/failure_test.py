#!/usr/bin/env python3
"""What goes wrong around the program: one clear line, the right exit code, no crash, and no terminal
left in another state.

Usage: failure_test.py PROGRAM [CASE ...]. The tiny models lie in DT_TEST_DATA; DT_TEST_SANITIZE
names the sanitizers of the build, which some cases cannot be tried under.
"""

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from pty_child import Terminal

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.environ.get("DT_TEST_DATA") or os.path.join(HERE, "data")
SANITIZE = os.environ.get("DT_TEST_SANITIZE", "none") != "none"
PROGRAM = os.path.abspath(sys.argv[1])
TARGET, DRAFT = (os.path.join(DATA, name + ".gguf") for name in ("tiny-qwen2", "tiny-draft"))
RUN = ["run", "-m", TARGET, "-n", "8"]
CHAT = ["chat", "-m", TARGET, "-n", "8"]
LONG = ["-n", "60000", "-c", "65536"]
NOBODY = 65534

CASES = []
n_failed = 0


def case(function):
    CASES.append(function)
    return function


def check(condition, message):
    global n_failed
    if not condition:
        n_failed += 1
        frame = sys._getframe(1)
        while frame.f_code.co_name in ("fails", "works", "ends"):
            frame = frame.f_back
        print("failure_test.py:%d: %s" % (frame.f_lineno, message))
    return condition


class Skip(Exception):
    pass


def call(args, stdin=b"", program=PROGRAM, **more):
    more.setdefault("stdout", subprocess.PIPE)
    if isinstance(stdin, bytes):
        more["input"] = stdin
    else:
        more["stdin"] = stdin
    done = subprocess.run([program, *args], stderr=subprocess.PIPE, timeout=300, **more)
    return done.returncode, done.stdout or b"", done.stderr.decode(errors="replace")


def fails(words, args, code=1, partial=False, **more):
    """One line "dovetail: ..." with these words and the exit code; text only if `partial`."""
    got, out, err = call(args, **more)
    check(got == code, "exit code %d, want %d: %r" % (got, code, err))
    check(err.startswith("dovetail: ") and err.count("\n") == 1, "want one line, got %r" % err)
    for word in (words,) if isinstance(words, str) else words:
        check(word in err, "want '%s' in %r" % (word, err))
    check(partial or not out, "wrote %r" % out[:80])


def works(args, **more):
    code, out, err = call(args, **more)
    check(code == 0, "exit code %d: %r" % (code, err))
    return out, err


def limited(what, value):
    return lambda: resource.setrlimit(what, (value, value))


# ---- files and rights

@case
def no_read_permission(folder):
    if os.getuid() != 0:
        model = shutil.copy(TARGET, folder)
        os.chmod(model, 0)
        fails(("cannot", model), ["run", "-m", model, "-p", "x"])
        return
    os.chmod(folder, 0o755)
    model, program = shutil.copy(TARGET, folder), shutil.copy(PROGRAM, folder)
    os.chmod(model, 0o600)
    fails((model, "ermission denied"), ["run", "-m", model, "-p", "x"], program=program,
          user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")


@case
def model_is_no_file(folder):
    fails(folder, ["run", "-m", folder, "-p", "x"])
    fails("/dev/null", ["run", "-m", "/dev/null", "-p", "x"])
    fails("/dev/zero", ["run", "-m", "/dev/zero", "-p", "x"])
    fails("/no/such", ["chat", "-m", "/no/such"])


@case
def too_many_open_files(folder):
    for n_files in range(4, 10):
        code, _, err = call([*RUN, "-p", "x", "-d", DRAFT],
                            preexec_fn=limited(resource.RLIMIT_NOFILE, n_files))
        check(code in (0, 1) and err.count("\n") == 1, "%d files: %d %r" % (n_files, code, err))
    code, _, err = call(CHAT, stdin=b"hello\n/load %s\n" % __file__.encode(),
                        preexec_fn=limited(resource.RLIMIT_NOFILE, 5))
    check(code == 1 and "dovetail: " in err, "chat: %d %r" % (code, err))


def tensors(data):
    """{name: (first byte, last byte)} of a GGUF file."""
    at = 24
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def text(at):
        n, = struct.unpack_from("<Q", data, at)
        return data[at + 8:at + 8 + n].decode(), at + 8 + n

    def skip(at, kind):
        if kind == 8:
            return text(at)[1]
        if kind != 9:
            return at + sizes[kind]
        kind, n = struct.unpack_from("<IQ", data, at)
        at += 12
        for _ in range(n):
            at = skip(at, kind)
        return at

    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    for _ in range(n_keys):
        _, at = text(at)
        at = skip(at + 4, *struct.unpack_from("<I", data, at))
    found = []
    for _ in range(n_tensors):
        name, at = text(at)
        n_dims, = struct.unpack_from("<I", data, at)
        _, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * n_dims)
        at += 16 + 8 * n_dims
        found.append((offset, name))
    base = (at + 31) // 32 * 32
    found.sort()
    ends = [offset for offset, _ in found[1:]] + [len(data) - base]
    return {name: (base + offset, base + end) for (offset, name), end in zip(found, ends)}


def damaged(folder, source, name):
    """A copy whose tensor is NaN all over: the bytes are NaN as F32, and as scales of blocks."""
    with open(source, "rb") as f:
        data = bytearray(f.read())
    first, last = tensors(data)[name]
    data[first:last] = b"\xff\x7f" * ((last - first) // 2)
    path = os.path.join(folder, "damaged.gguf")
    with open(path, "wb") as f:
        f.write(data)
    return path


@case
def damaged_tensors(folder):
    for name in ("blk.0.ffn_down.weight", "output_norm.weight", "token_embd.weight"):
        model = damaged(folder, TARGET, name)
        fails("not finite", ["run", "-m", model, "-p", "hello", "-n", "8"])
        fails("not finite", ["run", "-m", model, "-p", "hello", "-n", "8", "-d", DRAFT])
        fails("not finite", ["chat", "-m", model, "-n", "8"], stdin=b"hello\n", partial=True)
        fails("not finite", ["perplexity", "-m", model, "-f", __file__, "--max-tokens", "20"])


@case
def damaged_draft(folder):
    want, _ = works([*RUN, "-p", "hello", "--draft", "none"])
    model = damaged(folder, DRAFT, "output_norm.weight")
    out, _ = works([*RUN, "-p", "hello", "-d", model])
    check(out == want, "a damaged draft changes the text")


@case
def model_cut_while_in_use(folder):
    model = shutil.copy(TARGET, os.path.join(folder, "model.gguf"))
    child = subprocess.Popen([PROGRAM, "chat", "-m", model, "-n", "4"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdin.write(b"hello\n")
    child.stdin.flush()
    child.stdout.read(1)
    os.truncate(model, 0)
    out, err = child.communicate(b"and now?\n", timeout=300)
    check(child.returncode == 1, "exit code %d: %r" % (child.returncode, err))
    check(b"SIGBUS" in err, "no word of it: %r" % err)


# ---- context and prompts

@case
def zero_length_context(folder):
    fails("-c", [*RUN, "-p", "x", "-c", "-1"], code=2)
    with open(TARGET, "rb") as f:
        data = bytearray(f.read())
    key = b"qwen2.context_length"
    at = data.index(key) + len(key) + 4
    struct.pack_into("<I", data, at, 0)
    model = os.path.join(folder, "zero.gguf")
    with open(model, "wb") as f:
        f.write(data)
    fails(("zero.gguf", "context_length"), ["run", "-m", model, "-p", "x"])


@case
def huge_context(folder):
    if SANITIZE:
        raise Skip("address space")
    fails("memory", [*RUN, "-p", "x", "-c", "16000000"],
          preexec_fn=limited(resource.RLIMIT_AS, 1 << 30))


@case
def prompt_of_10_megabytes(folder):
    path = os.path.join(folder, "long.txt")
    with open(path, "wb") as f:
        f.write(b"the quick brown fox, 12345; " * (10 * 1000 * 1000 // 28))
    fails(("tokens", "larger -c"), [*RUN, "-f", path])
    with open(path, "rb") as f:
        fails(("tokens", "larger -c"), CHAT, stdin=f.read() + b"\n")


@case
def prompt_of_nuls(folder):
    out, err = works(RUN, stdin=b"\0" * 50)
    check("tokens/s" in err, "no answer: %r" % err)
    fails("NUL", CHAT, stdin=b"\0\0\0\n")
    fails("NUL", [*RUN, "--chat"], stdin=b"\0\0\0")


@case
def prompt_is_a_folder(folder):
    fails(("cannot read", "directory"), [*RUN, "-f", folder])
    handle = os.open(folder, os.O_RDONLY)
    fails(("standard input", "directory"), RUN, stdin=handle)
    fails(("standard input", "directory"), CHAT, stdin=handle)
    os.close(handle)


# ---- memory and threads

@case
def out_of_memory(folder):
    if SANITIZE:
        raise Skip("address space")
    codes = set()
    for megabytes in (12, 16, 20, 24, 28, 32, 40, 56, 80, 120, 180, 260, 400, 2000):
        code, _, err = call([*RUN, "-p", "hello", "-d", DRAFT],
                            preexec_fn=limited(resource.RLIMIT_AS, megabytes << 20))
        # Below some 12 MB the loader of the system gives up before the program is there.
        if "OMP: Error" in err:
            continue  # LLVM's OpenMP runtime ends the program itself
        check(code in (0, 1, 127), "%d MB: exit code %d: %r" % (megabytes, code, err))
        check(len(err.strip().splitlines()) == 1, "%d MB: want one line, got %r" % (megabytes, err))
        codes.add(code)
    check({0, 1} <= codes, "exit codes %s" % codes)


@case
def no_more_threads(folder):
    if os.getuid() != 0 or SANITIZE:
        raise Skip("not root")
    os.chmod(folder, 0o755)
    model, program = shutil.copy(TARGET, folder), shutil.copy(PROGRAM, folder)
    os.chmod(model, 0o644)
    code, _, err = call(["run", "-m", model, "-p", "x", "-n", "4"], program=program, user=NOBODY,
                        group=NOBODY, extra_groups=[], cwd="/",
                        preexec_fn=limited(resource.RLIMIT_NPROC, 1))
    check(code == 1 and len(err.strip().splitlines()) == 1, "exit code %d: %r" % (code, err))


# ---- output

@case
def disk_full(folder):
    for args, stdin in (([*RUN, "-p", "x"], b""), (CHAT, b"hello\n"), (["info"], b""),
                        (["tokenize", "-m", TARGET, "-p", "x"], b""), (["--help"], b""),
                        (["--version"], b""), (["chat", "--help"], b"")):
        with open("/dev/full", "wb") as full:
            fails("cannot write", args, stdin=stdin, stdout=full)


@case
def disk_full_of_a_file(folder):
    text = os.path.join(folder, "text")
    with open(text, "w", encoding="utf-8") as f:
        f.write("hello " * 40)
    fails(("/dev/full", "No space"), ["perplexity", "-m", TARGET, "-f", text, "--logits",
                                      "/dev/full"])
    fails("File too large", ["perplexity", "-m", TARGET, "-f", text, "--logits",
                             os.path.join(folder, "logits")],
          preexec_fn=limited(resource.RLIMIT_FSIZE, 10000))
    saved = os.path.join(folder, "chat.json")
    works(CHAT, stdin=b"hello\n/save %s\n" % saved.encode())
    with open(saved, "rb") as f:
        before = f.read()
    child = started([*CHAT, "--stats", "none"], stdin=subprocess.PIPE)
    child.stdin.write(b"one\n")
    child.stdin.flush()
    check(child.stdout.read(1), "no answer")
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (100, 100))
    _, err = child.communicate(b"/save %s\n" % saved.encode(), timeout=300)
    err = err.decode()
    check(child.returncode == 1 and "cannot write" in err and err.count("\n") == 1,
          "/save: %d %r" % (child.returncode, err))
    with open(saved, "rb") as f:
        check(f.read() == before, "/save on a full disk costs the older file")
    left = [name for name in os.listdir(folder) if name.startswith("chat.json")]
    check(left == ["chat.json"], "a part is left: %s" % left)


@case
def reader_goes_away(folder):
    for args, stdin in (([*RUN, *LONG, "--ignore-eos", "-p", "x"], b""),
                        ([*CHAT, *LONG], b"hello\n")):
        read_end, write_end = os.pipe()
        os.close(read_end)
        fails("cannot write", args, stdin=stdin, stdout=write_end)
        os.close(write_end)


@case
def closed_streams(folder):
    fails("cannot write", [*RUN, "-p", "x"], preexec_fn=lambda: os.close(1))
    fails("cannot write", CHAT, stdin=b"hello\n", preexec_fn=lambda: os.close(1))
    works([*RUN, "-p", "x"], preexec_fn=lambda: os.close(2))
    works([*RUN, "-p", "x"], preexec_fn=lambda: os.close(0))
    fails(("standard input", "Bad file"), CHAT, preexec_fn=lambda: os.close(0))
    fails(("standard input", "Bad file"), RUN, preexec_fn=lambda: os.close(0))


# ---- signals

def started(args, stdin=subprocess.DEVNULL):
    return subprocess.Popen([PROGRAM, *args], stdin=stdin, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@case
def terminated_while_it_writes(folder):
    for args in ([*RUN, *LONG, "--ignore-eos", "-p", "x"], [*RUN, *LONG, "--ignore-eos", "-p", "x",
                 "-d", DRAFT]):
        child = started(args)
        check(child.stdout.read(1), "no text")
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=300)
        check(child.returncode == -signal.SIGTERM, "exit code %d: %r" % (child.returncode, err))
        check(err.decode().strip() == "dovetail: ended by a signal (SIGTERM)", "said %r" % err)


def reading(folder, *args):
    """A program on a terminal that reads a long prompt."""
    path = os.path.join(folder, "prompt.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write("hello, river " * 9000)
    t = Terminal([PROGRAM, "run", "-m", TARGET, "-f", path, "-n", "4", "-c", "150000", *args])
    t.expect("reading the prompt")
    return t


def ends(t, code, words=""):
    got = t.wait()
    check(got == code, "exit code %d, want %d: %r" % (got, code, t.text[-200:]))
    check(t.sane(), "the terminal is left in another state")
    check(words in t.text, "want '%s' in %r" % (words, t.text[-200:]))
    t.close()


@case
def terminated_while_it_reads(folder):
    t = reading(folder)
    t.signal(signal.SIGTERM)
    ends(t, -signal.SIGTERM, "ended by a signal")


@case
def interrupted_while_it_reads(folder):
    t = reading(folder)
    t.type("\x03")
    ends(t, 130)
    t = reading(folder, "-d", DRAFT)
    t.type("\x03")
    ends(t, 130)


@case
def chat_interrupted_while_it_reads(folder):
    t = chat(folder, "-c", "65536")
    t.type("hello, river " * 250 + "\r")  # a terminal's line holds 4096 bytes
    at = t.expect("river")
    at = t.expect("reading", at)
    t.type("\x03")
    at = t.ready(t.expect("taken back", at))
    # The same of a second try, where an answer is there already.
    t.type("hello\r")
    at = t.ready(t.expect(r"\[\d+ tokens", at))
    t.type("/system " + "hello, river " * 250 + "\r")
    at = t.ready(t.expect("river \r\n", at))
    t.type("/retry\r")
    at = t.expect("reading", at)
    t.type("\x03")
    t.ready(t.expect("old answer stays", at))
    talks(t)


# ---- terminals

def chat(folder, *args, columns=80, **env):
    env = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"],
           "XDG_STATE_HOME": os.path.join(folder, "state"), **env}
    t = Terminal([PROGRAM, *CHAT, *args], columns=columns,
                 env={k: v for k, v in env.items() if v is not None})
    t.ready()
    return t


def talks(t, code=0):
    """The chat answers, and ends as it should."""
    at = t.ready()
    t.type("hello\r")
    t.ready(t.expect(r"\[\d+ tokens", at))
    t.type("\x04")
    ends(t, code)
    return t.text


@case
def one_column(folder):
    talks(chat(folder, columns=1))
    t = Terminal([PROGRAM, *RUN, "-p", "hello", "-d", DRAFT], columns=1)
    ends(t, 0, "tokens/s")


@case
def odd_terminals(folder):
    for term in ("dumb", "no-such-terminal", "", None):
        talks(chat(folder, TERM=term))
    for locale in ("C", "no_SUCH.locale", None):
        talks(chat(folder, LC_ALL=locale))


@case
def no_home(folder):
    text = talks(chat(folder, XDG_STATE_HOME=None))
    check(text.count("not remembered") <= 1, "said more than once: %r" % text)


@case
def history_cannot_be_written(folder):
    blocked = os.path.join(folder, "file")
    with open(blocked, "w", encoding="utf-8"):
        pass
    os.makedirs(os.path.join(folder, "taken", "dovetail", "history", "x"))
    for state in (blocked, os.path.join(folder, "taken"), "/proc"):
        text = talks(chat(folder, XDG_STATE_HOME=state))
        check(text.count("not remembered") <= 1, "said more than once: %r" % text)
    broken = os.path.join(folder, "state", "dovetail")
    os.makedirs(broken)
    with open(os.path.join(broken, "history"), "wb") as f:
        f.write(os.urandom(5000))
    talks(chat(folder))


@case
def terminal_goes_away(folder):
    for args in ([], LONG):
        t = chat(folder, *args)
        if args:
            t.type("go\r")
            t.expect("go\r\n.{20}")
        os.close(t.slave)
        os.close(t.master)
        deadline = time.monotonic() + 60
        while t.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if check(not t.alive(), "it goes on without a terminal"):
            code = os.waitstatus_to_exitcode(t.status)
            check(code in (-signal.SIGHUP, 0, 1), "exit code %d" % code)
        else:
            t.signal(signal.SIGKILL)


@case
def crash(folder):
    """A fault of our own: the terminal is as it was, and the signal is seen."""
    if SANITIZE:
        raise Skip("sanitizers catch it")
    for number in (signal.SIGSEGV, signal.SIGABRT):
        t = chat(folder)
        t.ready()
        t.signal(number)
        ends(t, -number)


@case
def error_at_the_prompt(folder):
    """An answer that fails ends neither the chat nor the terminal's state."""
    t = chat(folder, "-c", "64")
    at = t.ready()
    t.type("x" * 300 + "\r")
    t.ready(t.expect("the context holds 64", at))
    talks(t)


def main():
    wanted = sys.argv[2:]
    for function in CASES:
        name = function.__name__
        if wanted and name not in wanted:
            continue
        start = time.time()
        before = n_failed
        with tempfile.TemporaryDirectory() as folder:
            try:
                function(folder)
                result = "ok" if n_failed == before else "FAILED"
            except AssertionError as error:
                check(False, "%s: %s" % (name, error))
                result = "FAILED"
            except Skip as reason:
                result = "skipped: %s" % reason
        print("%-34s %5.1f s  %s" % (name, time.time() - start, result), flush=True)
    print("%d cases, %d failed checks" % (len(CASES), n_failed))
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
