"""What ptxas made of the CUDA kernels stays within limits.toml: registers, stack, local memory, width of accesses."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from cuda_build.sass import REGISTERS_PER_MULTIPROCESSOR, Kernel, disassembler, kernels, violations

from edm_fast.ops import backends

tomllib = pytest.importorskip("tomllib", reason="limits.toml is read by tomllib, of Python 3.11 or newer")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMITS = tomllib.loads((HERE / "limits.toml").read_text())


def absent(reason: str) -> None:
    """Skips, except where the build was told to have CUDA: there nothing may be missing."""
    if os.environ.get("EDM_FAST_CUDA") == "ON":
        pytest.fail(f"EDM_FAST_CUDA=ON, but {reason}")
    pytest.skip(reason)


def device_code() -> Path | None:
    """The extension if it has CUDA kernels, or else a build's library of them that is newer than their sources."""
    extension = backends.extension()
    if extension.cuda.architectures:
        return Path(extension.__file__)
    sources = [path for folder in ("cuda", "include/edm_fast") for path in (ROOT / "csrc" / folder).iterdir()]
    newest = max(path.stat().st_mtime for path in sources)
    libraries = [path for path in ROOT.glob("build/*/csrc/libedm_fast_cuda.a") if path.stat().st_mtime > newest]
    return max(libraries, key=lambda path: path.stat().st_mtime, default=None)


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    """Every kernel of the build for every architecture."""
    binary = device_code()
    if binary is None:
        absent(f"this build has no CUDA kernels: {backends.extension().cuda.missing}")
    environment = disassembler()
    if environment is None:
        absent("there is no disassembler: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return kernels(binary, environment)


def test_every_kernel_stays_within_its_limits(compiled):
    problems = violations(compiled, LIMITS)
    assert not problems, "\n".join(problems)


def test_every_architecture_has_every_kernel(compiled):
    found = {kernel.architecture: set() for kernel in compiled}
    for kernel in compiled:
        found[kernel.architecture].add(kernel.name)
    assert len({frozenset(names) for names in found.values()}) == 1, {key: len(names) for key, names in found.items()}
    built = backends.extension().cuda.architectures.split()
    real = {f"sm_{name.removesuffix('-real')}" for name in built if not name.endswith("-virtual")}
    assert not built or set(found) == real


def test_every_limit_is_of_a_kernel(compiled):
    assert set(LIMITS) <= {name for kernel in compiled for name in (kernel.name, kernel.template)}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_leave_room_for_the_blocks_that_are_wanted(name):
    limit = LIMITS[name]
    assert limit["threads"] * limit["blocks"] * limit["registers"] <= REGISTERS_PER_MULTIPROCESSOR
    assert limit["registers"] % 8 == 0


def test_every_kernel_in_the_sources_has_limits():
    """Without a CUDA compiler too, and with the block's size and the blocks of its __launch_bounds__."""
    bounds = re.compile(r"__global__ void __launch_bounds__\((\w+)(?:, (\d+|kBlocks<[^>]+>))?\)\s+(\w+)\(")
    constants = re.compile(r"constexpr int (k\w*Threads) = (\d+);")
    # Of instances that may have different numbers of blocks the least one.
    choice = re.compile(r"constexpr int kBlocks = .* \? (\d+) : (\d+);")
    found = {}
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*")):
        text = path.read_text()
        assert len(re.findall(r"\b__global__\b", text)) == len(bounds.findall(text)), f"{path.name}: no launch bounds"
        header = path.with_suffix(".cuh")
        sizes = dict(constants.findall((header.read_text() if header.exists() else "") + text))
        for size, blocks, name in bounds.findall(text):
            least = blocks or 1 if not blocks.startswith("k") else min(map(int, choice.search(text).groups()))
            found[name] = int(sizes[size]), int(least)
    assert set(found) == {name.split("<")[0] for name in LIMITS}
    for name, limit in LIMITS.items():
        threads, blocks = found[name.split("<")[0]]
        assert limit["threads"] == threads
        assert limit["blocks"] >= blocks


VECTORS = Counter({"LDG.E.128.CONSTANT": 2, "STG.E.128": 1, "LDG.E": 3})
MIXED = VECTORS + Counter({"LDG.E.U16": 4, "STG.E.U16": 4})


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (Kernel("randn_kernel", "sm_80", registers=49, accesses=MIXED), "49 registers; it may have 48"),
        (Kernel("solver_step_kernel<float, 3>", "sm_80", registers=97, accesses=MIXED), "97 registers; it may have 96"),
        (Kernel("solver_step_kernel<double, 1>", "sm_80", registers=97, accesses=MIXED), None),
        (Kernel("randn_kernel", "sm_80", stack=8, accesses=MIXED), "a stack of 8 bytes; it may have none"),
        (Kernel("randn_kernel", "sm_80", local=4, accesses=MIXED), "4 bytes of local memory; it may have none"),
        (
            Kernel("randn_kernel", "sm_80", accesses=MIXED + Counter({"LDL": 1, "STL.64": 2})),
            "1 loads and 2 stores",
        ),
        (Kernel("solver_step_kernel<double, 1>", "sm_80", accesses=Counter({"LDG.E.128": 1, "STG.E.64": 2})), "no STG"),
        (Kernel("strange_kernel", "sm_80", registers=12), "a kernel without limits, with 12 registers"),
        (Kernel("residual_kernel<Half, true>", "sm_80", accesses=VECTORS), None),
        (Kernel("residual_kernel<Half, false>", "sm_80"), None),
        (Kernel("residual_kernel<Half, true>", "sm_80", accesses=Counter({"LDG.E.128": 1, "STG.E.64": 2})), "no STG"),
        (Kernel("residual_kernel<Half, true>", "sm_80", accesses=Counter({"STG.E.128": 1})), "no LDG"),
        (Kernel("residual_kernel<Half, true>", "sm_80", accesses=VECTORS + Counter({"STG.E.U16": 4})), "4 STG of 16"),
    ],
)
def test_violations_are_named(kernel, problem):
    expected = [] if problem is None else [f"{kernel.name} for sm_80: "]
    found = violations([kernel], LIMITS)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
        assert problem in line
