"""Backends for the op tests: the same claims are made of every implementation of an op."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch
from guards import Guards

from edm_fast.ops import backends

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    # The tensors here are small: waking threads costs more than it saves. Tests about threads ask for them.
    torch.set_num_threads(1)
    # References in float32 are float32: PyTorch lets cuDNN round to TF32 by default.
    torch.backends.cudnn.allow_tf32 = False


def tool(name: str) -> str:
    """A program of the environment that runs the tests, or of PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"{name} is needed: pip install 'edm-fast[test]'"
    return found


@contextlib.contextmanager
def one_process_at_a_time(build: Path) -> Iterator[None]:
    """For builds in a folder that the workers of pytest-xdist share."""
    build.parent.mkdir(exist_ok=True)
    with open(build.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def simt_module() -> ModuleType:
    """The CUDA sources on the host emulator, built from this tree; a rebuild compiles only what changed."""
    sanitize = os.environ.get("EDM_FAST_SANITIZE", "OFF")
    build = ROOT / "build" / f"simt-{sys.implementation.cache_tag}-{sanitize}"
    configure = [
        tool("cmake"),
        f"-S{ROOT}",
        f"-B{build}",
        "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DEDM_FAST_EXTENSION=OFF",
        "-DEDM_FAST_SIMT=ON",
        "-DEDM_FAST_WERROR=ON",
        f"-DEDM_FAST_SANITIZE={sanitize}",
    ]
    # The compilers must not inherit a sanitizer that is preloaded into this process.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with one_process_at_a_time(build):
        for command in (configure, [tool("cmake"), "--build", str(build)]):
            result = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert result.returncode == 0, result.stdout + result.stderr
    [path] = build.glob("csrc/simt/edm_fast_simt*.so")
    spec = importlib.util.spec_from_file_location("edm_fast_simt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backends.register_kernels("simt", module)
    return module


@pytest.fixture(params=["reference", "cpu", "simt", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each implementation of an op in turn."""
    if request.param == "cuda" and not cuda_usable():
        pytest.skip("no CUDA device, or no CUDA kernels in this build")
    if request.param == "simt":
        request.getfixturevalue("simt_module")
    return request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the tensors of the test's backend lie."""
    return torch.device("cuda", 0) if backend == "cuda" else torch.device("cpu")


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """What ops allocate is poisoned and lies between guards, which are looked at in the end."""
    guards = Guards()
    guards.install(monkeypatch)
    yield guards
    guards.check()


def cuda_usable() -> bool:
    return torch.cuda.is_available() and bool(backends.extension().cuda.architectures)


@pytest.fixture
def isa() -> Iterator[ModuleType]:
    """The CPU kernels' instruction-set switch, put back afterwards."""
    cpu = backends.extension().cpu
    chosen = cpu.isa()
    yield cpu
    cpu.use_isa(chosen)
