"""What is in the machine code of the CUDA kernels, by NVIDIA's disassembler, and what of it passes the limits.

Run: python tests/cuda_build/sass.py FILE       a table; FILE is an extension module, an object file or a library
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# 64 K registers on a multiprocessor of every architecture from 8.0 to 9.0; they are handed out eight to a thread.
REGISTERS_PER_MULTIPROCESSOR = 65536

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# An instruction begins with its address; a predicate may stand before the operation.
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_ACCESSES = ("LDG", "STG", "LDL", "STL")


@dataclass
class Kernel:
    """A kernel for one architecture; `accesses` counts the loads and stores of global and local memory by operation."""

    name: str
    architecture: str
    registers: int = 0
    stack: int = 0
    local: int = 0
    accesses: Counter[str] = field(default_factory=Counter)

    @property
    def template(self) -> str:
        return self.name.split("<")[0]

    @property
    def aligned(self) -> bool | None:
        """Its second template argument, kAligned of packed.cuh; None for a kernel that has none."""
        return {"true": True, "false": False}.get(",".join(self.name.split("<")[-1].rstrip(">").split(", ")[1:2]))

    def count(self, operation: str, width: str = "") -> int:
        """Accesses such as LDG; of those with `width` in their name only, such as 128."""
        return sum(
            number
            for name, number in self.accesses.items()
            if name.split(".")[0] == operation and (not width or width in name.split("."))
        )


def disassembler() -> dict[str, str] | None:
    """The environment in which `cuobjdump` runs, or None if it or nvdisasm, which it calls, is not there.

    They come with CUDA's toolkit, or as the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
    """
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    folders = [str(folder) for package in packages for folder in sorted(package.glob("*/bin"))]
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    if any(shutil.which(tool, path=path) is None for tool in ("cuobjdump", "nvdisasm")):
        return None
    return {**os.environ, "PATH": path}


def kernels(binary: Path, environment: Mapping[str, str]) -> list[Kernel]:
    """All kernels in a file, for all architectures that it has machine code for."""
    found: dict[tuple[str, str], Kernel] = {}
    for kernel, line in _functions(_output(["--dump-resource-usage", str(binary)], environment)):
        if resources := _RESOURCES.search(line):
            kernel.registers, kernel.stack, _, kernel.local = map(int, resources.groups())
            found[kernel.name, kernel.architecture] = kernel
    for kernel, line in _functions(_output(["--dump-sass", str(binary)], environment)):
        if (instruction := _INSTRUCTION.match(line)) and instruction[1].startswith(_ACCESSES):
            found[kernel.name, kernel.architecture].accesses[instruction[1]] += 1
    names = sorted({name for name, _ in found})
    readable = dict(zip(names, _demangled(names), strict=True))
    for kernel in found.values():
        kernel.name = readable[kernel.name]
    return sorted(found.values(), key=lambda kernel: (kernel.name, kernel.architecture))


def violations(compiled: Iterable[Kernel], limits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for everything that a kernel has and may not have, and for everything that it lacks."""
    problems: list[str] = []
    for kernel in compiled:
        what = f"{kernel.name} for {kernel.architecture}"
        limit = limits.get(kernel.name, limits.get(kernel.template))
        if limit is None:
            problems.append(f"{what}: a kernel without limits, with {kernel.registers} registers")
            continue
        if kernel.registers > limit["registers"]:
            problems.append(f"{what}: {kernel.registers} registers; it may have {limit['registers']}")
        if kernel.stack:
            problems.append(f"{what}: a stack of {kernel.stack} bytes; it may have none")
        if kernel.local:
            problems.append(f"{what}: {kernel.local} bytes of local memory; it may have none")
        spills = {operation: kernel.count(operation) for operation in ("LDL", "STL")}
        if any(spills.values()):
            problems.append(f"{what}: {spills['LDL']} loads and {spills['STL']} stores of local memory; none may be")
        if kernel.aligned is not False:
            problems.extend(f"{what}: {problem}" for problem in _narrow_accesses(kernel, limit))
    return problems


def _narrow_accesses(kernel: Kernel, limit: Mapping[str, Any]) -> Iterator[str]:
    for operation, key in (("LDG", "vector_loads"), ("STG", "vector_stores")):
        if limit[key] and not kernel.count(operation, "128"):
            yield f"no {operation} of 128 bits among {dict(kernel.accesses)}"
        # There images of 16-bit elements must not be moved element by element.
        if kernel.aligned and (narrow := kernel.count(operation, "U16")):
            yield f"{narrow} {operation} of 16 bits; images are moved by 128"


def _functions(lines: Iterable[str]) -> Iterator[tuple[Kernel, str]]:
    """The lines inside functions, each with the function that it is in."""
    architecture, kernel = "", None
    for line in lines:
        if line.startswith("arch = "):
            architecture, kernel = line.removeprefix("arch = ").strip(), None
        elif " Function" in line or "\tFunction" in line:
            kernel = Kernel(line.split("Function")[1].strip(" :\n"), architecture)
        elif kernel is not None:
            yield kernel, line


def _output(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    with subprocess.Popen(
        [str(shutil.which("cuobjdump", path=environment["PATH"])), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(environment),
    ) as process:
        assert process.stdout is not None
        last = ""
        for last in process.stdout:
            yield last
    if process.returncode:
        raise RuntimeError(f"cuobjdump {' '.join(arguments)} failed: {last}")


def _demangled(names: Sequence[str]) -> list[str]:
    """`group_norm_silu_apply<Half, true, false>` for the mangled name of it."""
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [_without_scopes(line) for line in result.stdout.splitlines()]


def _without_scopes(declaration: str) -> str:
    """The name and template arguments of a function, without namespaces, parameters and result."""
    plain = declaration.replace("(anonymous namespace)", "").removeprefix("void ")
    return re.sub(r"\w*::", "", plain[: plain.rindex("(")] if "(" in plain else plain).strip()


def _table(compiled: Sequence[Kernel]) -> str:
    header = f"{'kernel':58s} {'arch':7s} regs stack local  LDG.128/LDG  STG.128/STG  LDL STL"
    rows = [
        f"{k.name:58s} {k.architecture:7s} {k.registers:4d} {k.stack:5d} {k.local:5d} "
        f"{k.count('LDG', '128'):8d}/{k.count('LDG'):<4d} {k.count('STG', '128'):7d}/{k.count('STG'):<4d} "
        f"{k.count('LDL'):4d} {k.count('STL'):3d}"
        for k in compiled
    ]
    return "\n".join([header, *rows, ""])


if __name__ == "__main__":
    where = disassembler()
    if where is None or len(sys.argv) != 2:
        sys.exit("usage: sass.py FILE, with cuobjdump and nvdisasm on PATH")
    sys.stdout.write(_table(kernels(Path(sys.argv[1]), where)))
