#!/usr/bin/env python3
"""The rules of the house that a compiler does not check: includes run one way, one file sees each
outside library, file names are unique, nothing in the library prints or exits."""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ["src/base", "models", "cpu", "gpu", "src/spec", "src/cli"]
MAY_SEE = {
    "src/base": {"src/base"},
    "models": {"src/base", "models"},
    "cpu": {"src/base", "models", "cpu"},
    "gpu": {"src/base", "models", "gpu"},
    "src/spec": {"src/base", "models", "src/spec", "src"},
    "src/cli": {"src/base", "models", "src/cli", "src"},
}
DOORS = {"cpu/cpu.h", "gpu/gpu.h"}
ONE_FILE = ["cblas.h", "omp.h", "hwloc.h", "cuda_runtime.h", "pcre2.h", "histedit.h"]
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.M)
NOISY = re.compile(r"\b(printf|puts|exit|abort|perror)\s*\(")


def sources():
    for folder in FOLDERS + ["src"]:
        path = os.path.join(ROOT, folder)
        if not os.path.isdir(path):
            continue
        for name in sorted(os.listdir(path)):
            if name.endswith((".c", ".h", ".cu", ".cuh")):
                yield folder, name, open(os.path.join(path, name), encoding="utf-8").read()


def main():
    faults, seen, users = [], {}, {}
    for folder, name, text in sources():
        where = f"{folder}/{name}"
        if name in seen:
            faults.append(f"{where}: the name is taken by {seen[name]}")
        seen[name] = where
        for include in INCLUDE.findall(text):
            for library in ONE_FILE:
                if os.path.basename(include) == library:
                    users.setdefault(library, []).append(where)
            home = os.path.dirname(include)
            if home not in FOLDERS + ["src"] or folder == "src":
                continue
            door = include in DOORS and folder == "src/spec"
            if home not in MAY_SEE[folder] and not door:
                faults.append(f"{where}: includes {include}")
        if folder not in ("src/cli", "src"):
            code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
            for match in NOISY.finditer(code):
                faults.append(f"{where}: calls {match.group(1)}")
        if any(len(line) > 100 for line in text.splitlines()):
            faults.append(f"{where}: a line of more than 100 columns")
    for library, files in users.items():
        if len(files) > 1:
            faults.append(f"{library} is included by {', '.join(files)}")
    for fault in faults:
        print(fault)
    print(f"{len(seen)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
