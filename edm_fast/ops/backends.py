"""Which compiled kernels run where.

A backend is a name: `"cpu"` and `"cuda"` are the kernels of the extension module, `"reference"` is pure PyTorch. With
`backend=None` an op takes the kernels of its tensors' device; nothing falls back to another backend by itself.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

_kernels: dict[str, Any] = {}


def extension() -> ModuleType:
    """The compiled module `edm_fast._C`; ImportError says how to build it if it is not there."""
    try:
        return importlib.import_module("edm_fast._C")
    except ImportError as error:
        raise ImportError(
            f"the compiled module edm_fast._C cannot be imported ({error}). It is built by `pip install .` in the "
            "source tree, for the Python that runs it."
        ) from error


def register_kernels(backend: str, module: Any) -> None:
    """Make the functions of `module` the kernels of `backend`.

    Their last arguments are (threads) for "cpu" and (device, stream) for every other backend; all but "cuda" work on
    the memory that the CPU sees.
    """
    _kernels[backend] = module


def kernels(backend: str) -> Any:
    """The functions of a compiled backend. RuntimeError if this build does not have it."""
    if backend not in _kernels:
        compiled = extension()
        if backend == "cuda" and not compiled.cuda.architectures:
            raise RuntimeError(
                "a CUDA tensor needs the CUDA kernels, and this build of edm_fast has none: no CUDA compiler was found "
                "when it was built. Rebuild with nvcc 12 or newer on PATH and EDM_FAST_CUDA=ON."
            )
        _kernels[backend] = {"cpu": compiled.cpu, "cuda": compiled.cuda}[backend]
    return _kernels[backend]


def choose(backend: str | None, device: torch.device) -> str:
    """The backend for tensors on `device`; ValueError if `backend` does not exist or does not run there."""
    if backend is None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: {device} has no kernels; they run on cpu and cuda")
        return device.type
    known = sorted({"cpu", "cuda", "reference", *_kernels})
    if backend not in known:
        raise ValueError(f"backend: got {backend!r}; it is one of {', '.join(known)}")
    needed = "cuda" if backend == "cuda" else "cpu"
    if backend != "reference" and device.type != needed:
        raise ValueError(f"backend: {backend!r} runs on {needed} tensors, and these are on {device}")
    return backend


def where(backend: str, device: torch.device) -> tuple[int, ...]:
    """The last arguments of a kernel: (threads) on the CPU, (device index, stream handle) otherwise."""
    if backend == "cpu":
        return (torch.get_num_threads(),)
    if backend == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return (index, torch.cuda.current_stream(device).cuda_stream)
    return (0, 0)
