#!/usr/bin/env python3
"""Compiles the device code with nvcc, warnings as errors, and holds what ptxas reports of each kernel
against tests/gpu/kernels.txt: registers and shared memory at most, spills none.

    scripts/check_cuda.py                 for sm_75 and sm_90 (the test cuda_kernels)
    scripts/check_cuda.py --all           every architecture of the build that this nvcc has, and PTX
    scripts/check_cuda.py --write         writes the table anew from what was compiled

Exit code 77: there is no nvcc ($NVCC, the PATH, /usr/local/cuda/bin)."""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE = os.path.join(ROOT, "gpu", "ops_cuda.cu")
TABLE = os.path.join(ROOT, "tests", "gpu", "kernels.txt")
ARCHITECTURES = [61, 75, 80, 86, 89, 90, 120]
FEW = [75, 90]
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v",
         "-Xcompiler", "-fno-exceptions,-fno-rtti,-fno-threadsafe-statics", "-I" + ROOT]
STEP = 8  # registers are given out in eights
HEADER = """# What ptxas may report of each kernel, for every architecture: registers, bytes of static shared
# memory, bytes of stack. scripts/check_cuda.py compares, its --write makes this file.
"""
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def find_nvcc():
    for path in (os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and os.access(path, os.X_OK):
            return path
    return None


def has(nvcc, architecture):
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return f"compute_{architecture}" in listed.split()


def compile_for(nvcc, architecture, kind, folder):
    """ptxas's report; kind: sm (code) or compute (PTX alone, no report)."""
    command = [nvcc, *FLAGS, "-gencode", f"arch=compute_{architecture},code={kind}_{architecture}",
               "-c", SOURCE, "-o", os.path.join(folder, f"{kind}_{architecture}.o")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    print(f"{kind}_{architecture}: nvcc {'done' if done.returncode == 0 else 'FAILED'}, "
          f"{time.monotonic() - started:.0f} s")
    if done.returncode != 0:
        print(done.stdout + done.stderr)
        return None
    return done.stderr


def plain_names(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                          check=True)
    plain = {}
    for name, text in zip(names, done.stdout.splitlines()):
        text = re.sub(r"^void ", "", text)
        plain[name] = re.sub(r"\(int\)", "", text[:text.rindex("(")] if "(" in text else text)
        plain[name] = re.sub(r"\(.*$", "", plain[name]).replace(" ", "")
    return plain


def parse(report):
    """name -> [registers, shared, stack, spills]"""
    kernels, name = {}, None
    for line in report.splitlines():
        if match := ENTRY.search(line):
            name = match.group(1)
            kernels[name] = [0, 0, 0, 0]
        elif name and (match := FRAME.search(line)):
            stack, stores, loads = map(int, match.groups())
            kernels[name][2:] = [stack, stores + loads]
        elif name and (match := USED.search(line)):
            kernels[name][0] = int(match.group(1))
            if match := SHARED.search(line):
                kernels[name][1] = int(match.group(1))
            name = None
    plain = plain_names(list(kernels))
    return {plain[name]: values for name, values in kernels.items()}


def read_table():
    table = {}
    with open(TABLE, encoding="utf-8") as f:
        for line in f:
            if line.strip() and not line.startswith("#"):
                name, *limits = line.split()
                table[name] = [int(limit) for limit in limits]
    return table


def compare(kernels, table, architecture):
    faults = []
    for name, (registers, shared, stack, spills) in sorted(kernels.items()):
        where = f"sm_{architecture} {name}"
        if spills:
            faults.append(f"{where}: {spills} bytes of spills")
        if name not in table:
            faults.append(f"{where}: not in the table")
            continue
        for what, have, limit in zip(("registers", "bytes of shared memory", "bytes of stack"),
                                     (registers, shared, stack), table[name]):
            if have > limit:
                faults.append(f"{where}: {have} {what}, the table allows {limit}")
    faults += [f"sm_{architecture} {name}: in the table, but not compiled"
               for name in sorted(set(table) - set(kernels))]
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        print("no nvcc")
        return 77
    architectures = [a for a in (ARCHITECTURES if args.all else FEW) if has(nvcc, a)]
    reports, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures:
            report = compile_for(nvcc, architecture, "sm", folder)
            if report is None:
                return 1
            reports[architecture] = parse(report)
        if args.all and compile_for(nvcc, architectures[-1], "compute", folder) is None:
            return 1
    if not reports or not all(reports.values()):
        print("ptxas reported no kernel")
        return 1
    if args.write:
        limits = {}
        for kernels in reports.values():
            for name, (registers, shared, stack, _) in kernels.items():
                have = limits.setdefault(name, [0, 0, 0])
                up = -(-registers // STEP) * STEP
                limits[name] = [max(a, b) for a, b in zip(have, (up, shared, stack))]
        with open(TABLE, "w", encoding="utf-8") as f:
            f.write(HEADER)
            for name, values in sorted(limits.items()):
                f.write(f"{name:40s} {values[0]:4d} {values[1]:6d} {values[2]:4d}\n")
    table = read_table()
    for architecture, kernels in reports.items():
        faults += compare(kernels, table, architecture)
    for fault in faults:
        print(fault)
    print(f"{sum(map(len, reports.values()))} kernels, {len(faults)} faults")
    if faults:
        print("if the new figures are meant: scripts/check_cuda.py --all --write")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
