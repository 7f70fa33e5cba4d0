#!/usr/bin/env python3
"""`meson install` into an empty folder: a program built against it, the man page, the completion.

Usage: install_test.py BUILD_FOLDER COMPILER [ARGUMENT ...]: the compiler and what the library was
built with (sanitizers). The tiny models lie in DT_TEST_DATA.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(os.environ.get("DT_TEST_DATA") or os.path.join(HERE, "data"),
                     "tiny-qwen2.gguf")
BUILD, COMPILER = os.path.abspath(sys.argv[1]), sys.argv[2:]

n_failed = 0


def check(condition, message):
    global n_failed
    if not condition:
        n_failed += 1
        print("install_test.py:%d: %s" % (sys._getframe(1).f_lineno, message))


def output(*args, **more):
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, **more)
    check(done.returncode == 0, "%s: exit code %d: %s" % (" ".join(args), done.returncode,
                                                          done.stderr.decode(errors="replace")))
    return done.stdout.decode(errors="replace")


def find(folder, path):
    found = glob.glob(os.path.join(folder, "**", path), recursive=True)
    check(len(found) == 1, "%s: found %s" % (path, found))
    return found[0] if found else ""


def test_program(folder):
    program = find(folder, "bin/dovetail")
    check(output(program, "--version").startswith("dovetail "), "--version")
    package = find(folder, "dovetail.pc")
    prefix = os.path.dirname(os.path.dirname(program))
    flags = output("pkg-config", "--define-variable=prefix=" + prefix, "--cflags", "--libs",
                   "dovetail", env=dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(package)))
    client = os.path.join(folder, "client")
    cflags, libs = [], []
    for flag in flags.split():
        (cflags if flag.startswith("-I") else libs).append(flag)
    output(*COMPILER, "-std=c11", "-Wall", "-Wextra", "-Werror", *cflags, "-o", client,
           os.path.join(HERE, "install_client.c"), *libs, cwd=folder)
    want = output(program, "run", "-m", MODEL, "-p", "hello", "-n", "20", "--ignore-eos")
    check(output(client, MODEL, "hello", "20") == want != "", "the client writes another text")
    done = subprocess.run([client, "/no/such/model", "x", "1"], stderr=subprocess.PIPE)
    check(done.returncode == 1 and b"/no/such/model" in done.stderr, "the client's failure")
    # Each header stands alone.
    for header in glob.glob(os.path.join(prefix, "include", "**", "*.h"), recursive=True):
        name = os.path.relpath(header, os.path.join(prefix, "include", "dovetail"))
        text = os.path.join(folder, "alone.c")
        with open(text, "w", encoding="utf-8") as f:
            f.write("#include <%s>\nint x;\n" % name)
        output(*COMPILER, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *cflags, text)


def test_man(folder):
    page = find(folder, "man1/dovetail.1")
    with open(page, encoding="utf-8") as f:
        text = f.read()
    for word in (".SH CHAT", ".SH BENCH", "\\-\\-min\\-p", ".SH EXIT STATUS"):
        check(word in text, "the man page lacks " + word)
    if shutil.which("mandoc"):
        done = subprocess.run(["mandoc", "-Tlint", page], stdout=subprocess.PIPE)
        faults = [line for line in done.stdout.decode().splitlines() if "missing date" not in line]
        check(not faults, "mandoc: %s" % faults)
    if shutil.which("man") and shutil.which("groff"):
        done = subprocess.run(["man", "--warnings", "-l", page], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=dict(os.environ, MANWIDTH="80",
                                                               LC_ALL="C.UTF-8"))
        check(done.returncode == 0 and not done.stderr, "man: %s" % done.stderr)
        check(b"dovetail chat" in done.stdout, "man shows %r" % done.stdout[:200])


def test_completion(folder):
    path = find(folder, "completions/dovetail.bash")

    def complete(*words):
        script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dovetail; ' \
                 'printf "%s\\n" "${COMPREPLY[@]}"'
        return output("bash", "-c", script, "bash", path, "dovetail", *words,
                      cwd=folder).splitlines()

    check("chat" in complete("") and complete("ch") == ["chat"], "commands: %s" % complete(""))
    check(complete("chat", "--min") == ["--min-p"], "options: %s" % complete("chat", "--min"))
    check("--jsonl" not in complete("chat", "--"), "options of another command")
    check(complete("run", "--draft", "n") == ["ngram", "none"], "choices")
    with open(os.path.join(folder, "a model.gguf"), "w", encoding="utf-8"):
        pass
    check(complete("run", "-m", "a m") == ["a model.gguf"], "files: %s" %
          complete("run", "-m", "a m"))
    check(complete("run", "-p", "x") == [""], "a text is completed")


def main():
    with tempfile.TemporaryDirectory() as folder:
        output("meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", folder)
        test_program(folder)
        test_man(folder)
        test_completion(folder)
    print("%d failed" % n_failed)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
