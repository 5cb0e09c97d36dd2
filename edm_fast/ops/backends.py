"""Which compiled kernels run where.

A backend is a name: `"cpu"` and `"cuda"` are the kernels of the extension module, `"reference"` is pure PyTorch. With
`backend=None` an op takes the kernels of its tensors' device; nothing falls back to another backend by itself.
"""

from __future__ import annotations

import importlib
import warnings
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
                f"a CUDA tensor needs the CUDA kernels, and this build of edm_fast has none: {compiled.cuda.missing}. "
                "Rebuild with nvcc 12 or newer on PATH and EDM_FAST_CUDA=ON."
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


def launch(op: str, backend: str, device: torch.device, *arguments: Any) -> None:
    """Call the backend's kernel for `op`, on torch's threads or on the current stream of `device`."""
    kernel = getattr(kernels(backend), op)
    if backend == "cpu":
        kernel(*arguments, torch.get_num_threads())
    elif backend == "cuda":
        # Torch's guard leaves alone the devices on which the process has no context yet.
        with torch.cuda.device(device):
            kernel(*arguments, torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream)
    else:
        kernel(*arguments, 0, 0)


def cuda_state() -> tuple[bool, str]:
    """Whether CUDA can be used here, and why or why not."""
    compiled = extension().cuda
    if not compiled.architectures:
        return False, f"this build has no CUDA kernels ({compiled.missing})"
    built = f"kernels are built for {compiled.architectures}"
    if torch.version.cuda is None:
        return False, f"{built}, but this PyTorch has no CUDA"
    if not torch.cuda.is_available():
        return False, f"{built}, but PyTorch finds no usable device or driver"
    return True, built


def usable_device(name: str, device: torch.device | str) -> torch.device:
    """The device, with its index if it is CUDA; ValueError or RuntimeError if it does not exist or cannot be used."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name}: got {device!r}; it is a device such as 'cpu', 'cuda' or 'cuda:1'") from None
    if found.type != "cuda":
        return found
    usable, reason = cuda_state()
    if not usable:
        raise RuntimeError(f"{name}: {str(found)!r} cannot be used: {reason}")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"{name}: got {str(found)!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


_warned: set[tuple[str, torch.dtype]] = set()


def choose_for(op: str, backend: str | None, tensor: torch.Tensor) -> str:
    """`choose` for an op whose kernels do not take float64: without a named backend that runs on the reference.

    It says so in a warning, once for each op.
    """
    if backend is None and tensor.dtype == torch.float64 and tensor.device.type in ("cpu", "cuda"):
        _warn_of_reference(op, tensor.dtype)
        return "reference"
    return choose(backend, tensor.device)


@torch.compiler.assume_constant_result
def _warn_of_reference(op: str, dtype: torch.dtype) -> None:
    if (op, dtype) not in _warned:
        _warned.add((op, dtype))
        warnings.warn(
            f"{op} has no kernel for {dtype}; it runs on the slower reference (pass backend='reference' to mean it)",
            stacklevel=4,
        )
