#!/usr/bin/env python3
"""Table of the CUDA module's kernels: registers, shared memory, theoretical occupancy, tensor core and asynchronous copy instructions.

    scripts/gpu-kernels.py build/release/lvpipe_cuda.so [--arch sm_80 sm_90 sm_100] [--check]

Reads the compiled module with cuobjdump and nvdisasm (in the toolkit, or `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`);
no GPU is needed. --check fails where a kernel spills, or an attention kernel has no tensor core instruction (HMMA) or, over the
paged cache, no asynchronous copy (LDGSTS).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

# Of one multiprocessor: bytes of shared memory, and what the system keeps of it for each block. (CUDA Programming Guide, Compute
# Capabilities.) All three have 65,536 registers, given out by 256 a warp, and room for 64 warps and 32 blocks.
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
SYSTEM_SHARED, REGISTERS, WARPS, BLOCKS, REGISTER_UNIT = 1024, 65536, 64, 32, 256


@dataclass
class Kernel:
    name: str
    registers: int
    stack: int
    local: int
    shared: int  # static and, where the host asks for more, dynamic bytes
    threads: int
    opcodes: dict[str, int]

    def occupancy(self, arch: str) -> float:
        warps = -(-self.threads // 32)
        of_registers = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT * warps
        blocks = min(BLOCKS, WARPS // warps, REGISTERS // of_registers, SHARED[arch] // (self.shared + SYSTEM_SHARED))
        return blocks * warps / WARPS


def block(name: str) -> tuple[int, int]:
    """Threads of a block and dynamic bytes of shared memory as the host code launches them; the widest case where they vary."""
    if found := re.search(r"tile_attention_kernel<lvp_(paged|dense)_keys<\S+>, (?:\(int\))?(\d+)>", name):
        size, slots, pad = int(found[2]), 64, 8
        keys = size * (slots + pad) if found[1] == "paged" else slots * (size + pad)
        return 128, 2 * 2 * (keys + slots * (size + pad))
    if "row_attention_kernel" in name:  # eight heads of 128
        return 128, (8 * 128 * (2 + 1) + 8 * 256) * 4
    return (128, 0) if "merge_kernel" in name else (256, 0)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def short(name: str) -> str:
    """A demangled kernel without its namespace and parameters."""
    name = re.sub(r"^void |\(anonymous namespace\)::|_GLOBAL__N_\w*::", "", name)
    depth = 0
    for i, sign in enumerate(name):
        depth += {"<": 1, ">": -1}.get(sign, 0)
        if sign == "(" and depth == 0:
            return name[:i]
    return name


def kernels(module: str, arch: str) -> list[Kernel]:
    usage = run("cuobjdump", "--dump-resource-usage", "-arch", arch, module)
    found = re.findall(r"Function (\S+):\s*\n\s*(.*)", usage)
    names = run("c++filt", *(f for f, _ in found)).splitlines()
    opcodes: dict[str, dict[str, int]] = {}
    here: dict[str, int] = {}
    for line in run("cuobjdump", "-sass", "-arch", arch, module).splitlines():
        if start := re.search(r"Function : (\S+)", line):
            here = opcodes.setdefault(start[1], {})
        elif code := re.search(r"\b(HMMA|LDGSTS)\b", line):
            here[code[1]] = here.get(code[1], 0) + 1
    rows = []
    for (symbol, figures), name in zip(found, names):
        value = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", figures)}
        threads, dynamic = block(name)
        # From sm_90 on the compiler counts the kilobyte the system keeps into SHARED of every kernel that uses any.
        shared = max(0, value["SHARED"] - (SYSTEM_SHARED if arch != "sm_80" and value["SHARED"] >= SYSTEM_SHARED else 0))
        rows.append(Kernel(short(name), value["REG"], value["STACK"], value["LOCAL"], shared + dynamic, threads, opcodes.get(symbol, {})))
    return sorted(rows, key=lambda k: k.name)


def faults(kernel: Kernel) -> list[str]:
    found = ["spills"] if kernel.local else []
    if "tile_attention_kernel" in kernel.name:
        found += [] if kernel.opcodes.get("HMMA") else ["no HMMA"]
        found += [] if kernel.opcodes.get("LDGSTS") or "paged" not in kernel.name else ["no LDGSTS"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("--arch", nargs="+", default=list(SHARED), choices=list(SHARED))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    missing = [tool for tool in ("cuobjdump", "nvdisasm", "c++filt") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"gpu-kernels.py: {', '.join(missing)} not found; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or the CUDA toolkit")
    bad = []
    for arch in args.arch:
        print(f"\n{arch}\n\n| kernel | threads | registers | shared bytes | occupancy | HMMA | LDGSTS |\n|---|---|---|---|---|---|---|")
        for k in kernels(args.module, arch):
            print(f"| {k.name} | {k.threads} | {k.registers} | {k.shared} | {k.occupancy(arch):.0%} "
                  f"| {k.opcodes.get('HMMA', 0)} | {k.opcodes.get('LDGSTS', 0)} |")
            bad += [f"{arch} {k.name}: {f}" for f in faults(k)]
    if args.check and bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
