#!/usr/bin/env python3
"""What ptxas says of every kernel: no spills, no stack, registers and shared memory within bounds.

Usage: registers_test.py ROOT NVCC ARCH [ARCH ...]: architectures like 75; those that this nvcc does
not know are left out. Each is compiled with all warnings as errors.
"""

import os
import re
import subprocess
import sys
import tempfile

# By the beginning of the kernel's name: registers, static shared memory in bytes. 256 threads leave
# 255 registers a thread at one block a multiprocessor; two blocks need 128.
BOUNDS = {
    "k_matmul_float": (80, 0),
    "k_matmul": (128, 0),
    "k_embed": (96, 0),
    "k_norm": (64, 64),
    "k_rotate": (96, 0),
    "k_gate": (64, 0),
    "k_kv_move": (40, 0),
    "k_attn_range": (80, 64),
    "k_attn_combine": (64, 0),
    "k_topk_max": (48, 0),
    "k_topk_sum": (64, 64),
    "k_topk_pick": (96, 2048),
}
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin"]
KERNEL = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers(.*?)$", re.S | re.M)


def bound_of(name):
    plain = re.sub(r"^_Z\d+", "", name)
    for start in sorted(BOUNDS, key=len, reverse=True):
        if plain.startswith(start):
            return BOUNDS[start]
    return None


def check_arch(root, nvcc, arch):
    faults, seen = [], 0
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([nvcc, *FLAGS, "-arch=sm_" + arch, "-I", root,
                               os.path.join(root, "gpu", "ops_cuda.cu"), "-o",
                               os.path.join(folder, "ops.cubin")], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        return ["sm_%s: nvcc fails:\n%s" % (arch, done.stdout[-2000:])], 0
    for name, stack, stores, loads, registers, rest in KERNEL.findall(done.stdout):
        seen += 1
        shared = re.search(r"(\d+) bytes smem", rest)
        bounds = bound_of(name)
        if not bounds:
            faults.append("sm_%s: %s has no bounds in this table" % (arch, name))
            continue
        if int(stack) or int(stores) or int(loads):
            faults.append("sm_%s: %s spills: stack %s, stores %s, loads %s" % (arch, name, stack,
                                                                             stores, loads))
        if int(registers) > bounds[0]:
            faults.append("sm_%s: %s takes %s registers, %d are allowed" % (arch, name, registers,
                                                                          bounds[0]))
        if shared and int(shared.group(1)) > bounds[1]:
            faults.append("sm_%s: %s takes %s bytes of shared memory, %d are allowed" % (
                arch, name, shared.group(1), bounds[1]))
    if seen < len(BOUNDS):
        faults.append("sm_%s: %d kernels were seen" % (arch, seen))
    return faults, seen


def main():
    root, nvcc, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
    known = subprocess.run([nvcc, "--list-gpu-arch"], stdout=subprocess.PIPE, text=True).stdout
    faults, seen = [], 0
    for arch in wanted:
        if "compute_%s\n" % arch not in known:
            print("sm_%s: not known to this nvcc" % arch)
            continue
        new, n = check_arch(root, nvcc, arch)
        faults += new
        seen += n
    for fault in faults:
        print(fault)
    print("%d kernels, %d faults" % (seen, len(faults)))
    return 1 if faults or seen == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
