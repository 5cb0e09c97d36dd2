"""The op that the page on new ops adds: its edits fit this repository, its kernels compile, and its own tests pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

import edm_fast

ROOT = Path(__file__).resolve().parents[2]
PAGE = "extend-op.md"

# The page's two kernels by the page's binding: what edm_fast._C and edm_fast_simt would have beside their other ops.
MODULE = """
#include "bindings/ops.h"
#include "edm_fast/blend.h"

namespace py = pybind11;
using namespace edm_fast;

void on_stream(const BlendArgs& args, int device, uintptr_t stream) {
    cuda::blend(args, device, reinterpret_cast<void*>(stream));
}

PYBIND11_MODULE(blend_kernels, m) {
    auto cpu = m.def_submodule("cpu"), simt = m.def_submodule("simt");
    bindings::def_blend(cpu, &cpu::blend);
    bindings::def_blend(simt, &on_stream);
}
"""

# The fixtures of tests/conftest.py for these kernels.
CONFTEST = """
import blend_kernels
import pytest
import torch

from edm_fast.ops import backends

backends.register_kernels("cpu", blend_kernels.cpu)
backends.register_kernels("simt", blend_kernels.simt)


@pytest.fixture(params=["reference", "cpu", "simt"])
def backend(request):
    return request.param


@pytest.fixture
def device():
    return torch.device("cpu")
"""


def edited(source: str, diff: str, where: str) -> str:
    """The source after a diff, whose hunks stand apart by @@ and have their lines in it once; a last one may be cut."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        assert all(line[:1] in ("+", "-", " ", "") for line in lines), f"{where}: {hunk}"
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        assert source.count(f"\n{before}") == 1, f"{where} has these lines {source.count(before)} times:\n{before}"
        source = source.replace(f"\n{before}", f"\n{after}")
    return source


@pytest.fixture(scope="module")
def tree(blocks, tmp_path_factory) -> Path:
    """This repository's files that the page changes, changed, its new ones, and links to the package's others."""
    folder = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(edm_fast.__file__).parent, folder / "edm_fast", copy_function=os.symlink, ignore=ignored)
    shutil.copytree(ROOT / "csrc", folder / "csrc", copy_function=os.symlink)
    for block in blocks(PAGE):
        if not block.title:
            continue
        path = folder / block.title
        if block.language == "diff":
            changed = edited((path if path.exists() else ROOT / block.title).read_text(), block.text, block.title)
            path.unlink(missing_ok=True)  # or the link's target would be written
        else:
            assert not path.exists(), f"{block.title} is there already"
            changed = block.text
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed)
    return folder


def test_the_page_has_every_file_of_an_op(blocks):
    op = ["csrc/include/edm_fast/{}.h", "csrc/cpu/{}.cpp", "csrc/cuda/{}.cu", "edm_fast/reference/{}.py"]
    op += ["edm_fast/ops/{}.py", "tests/ops/test_{}.py"]
    assert all((ROOT / path.format("residual")).exists() for path in op)
    titles = {block.title for block in blocks(PAGE)}
    assert {path.format("blend") for path in op} <= titles


def compiled(tree: Path) -> None:
    """The module blend_kernels in the tree: the page's sources with the dispatcher and the emulator."""
    csrc = tree / "csrc"
    (tree / "module.cpp").write_text(MODULE)
    emulator = [csrc / "simt" / f"{name}.cpp" for name in ("fiber", "launch", "scheduler")]
    sources = [tree / "module.cpp", *(csrc / "cpu" / name for name in ("blend.cpp", "dispatch.cpp", "fork.cpp"))]
    include = [csrc, csrc / "include", csrc / "cpu", csrc / "cuda", pybind11.get_include()]
    include.append(sysconfig.get_paths()["include"])
    command = [
        *(os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-std=c++20", "-O0", "-ffp-contract=off", "-pthread"),
        *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DEDM_FAST_SIMT", "-DEDM_FAST_ISA=baseline"),
        # The dispatcher's other functions have no kernels here, and go.
        *("-fvisibility=hidden", "-ffunction-sections", "-Wl,--gc-sections"),
        *(f"-I{path}" for path in include),
        *map(str, [*sources, *emulator]),
        *("-x", "c++", str(csrc / "cuda" / "blend.cu")),
        *("-o", str(tree / f"blend_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.timeout(300)
def test_its_kernels_compile_and_its_tests_pass(tree):
    compiled(tree)
    (tree / "tests" / "conftest.py").write_text(CONFTEST)
    path = os.pathsep.join(map(str, (tree, ROOT / "tests")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "tests"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout


def test_the_bindings_of_all_ops_still_compile(tree):
    """The page's lines in module.cpp and cuda_ops.h, which the test above leaves out."""
    include = [tree / "csrc" / "include", tree / "csrc" / "cpu", pybind11.get_include()]
    include.append(sysconfig.get_paths()["include"])
    definitions = ['-DEDM_FAST_VERSION=""', '-DEDM_FAST_CUDA_ARCHITECTURES=""', "-DEDM_FAST_WITH_CUDA"]
    command = [os.environ.get("CXX", "g++"), "-fsyntax-only", "-std=c++20", *definitions]
    command += [*(f"-I{path}" for path in include), str(tree / "csrc" / "bindings" / "module.cpp")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
