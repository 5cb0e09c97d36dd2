"""The two rates that bound everything on a device: bytes by a large copy, operations by a large matrix product."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from gpu_run import Run, self_timing
from torch import Tensor

# Far more than any L2 cache holds.
COPIED_BYTES = 1 << 30
PRODUCT_EXTENT = 8192
_TURNS = 21
_PRODUCT_ERROR = 0.01


class Ceilings(NamedTuple):
    """Bytes read and written, and bfloat16 operations, per second."""

    bytes_per_s: float
    flops_per_s: float


class Copy:
    """A copy of `nbytes` on a device, which reads and writes `moved` bytes together."""

    def __init__(self, device: torch.device, generator: torch.Generator, nbytes: int = COPIED_BYTES) -> None:
        self._source = torch.randn([nbytes // 4], device=device, generator=generator)
        self._target = torch.empty_like(self._source)
        self.moved = 2 * self._source.nbytes

    def __call__(self) -> Tensor:
        return self._target.copy_(self._source)

    def check(self) -> None:
        if not torch.equal(self(), self._source):
            raise RuntimeError("the device's copy differs from what it copies")


def copy_rate(run: Run, nbytes: int = COPIED_BYTES) -> dict[str, Any]:
    copy = Copy(run.device, run.generator(run.device), nbytes)
    copy.check()
    taken = _median(copy, run)
    return {"bytes": copy.moved, "seconds": taken, "bytes_per_s": copy.moved / taken}


def product_rate(run: Run, extent: int = PRODUCT_EXTENT) -> dict[str, Any]:
    generator = run.generator(run.device)
    a, b = (torch.randn([extent, extent], device=run.device, generator=generator).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def product() -> Tensor:
        return torch.mm(a, b, out=out)

    some = slice(0, 16)
    expected = a[some].double() @ b.double()
    error = float((product()[some].double() - expected).abs().max() / expected.abs().max())
    if not error <= _PRODUCT_ERROR:
        raise RuntimeError(f"the device's matrix product is off by {error:.2g} of the largest value")
    taken, flops = _median(product, run), 2 * extent**3
    return {"extent": extent, "flops": flops, "seconds": taken, "flops_per_s": flops / taken}


def _median(function: Callable[[], object], run: Run) -> float:
    turn = self_timing(function, run.clock)
    return statistics.median(turn() for _ in range(_TURNS))


def measure(run: Run, _: Sequence[str] = ()) -> bool:
    """Measure both, print and keep them."""
    copied, product = copy_rate(run), product_rate(run)
    print(f"copy: {copied['bytes_per_s'] / 1e12:.3g} TB/s read and written")
    print(f"matrix product, bfloat16: {product['flops_per_s'] / 1e12:.4g} TFLOP/s")
    run.keep("ceilings", "copy", copied)
    run.keep("ceilings", "matmul", product)
    return True


def ceilings(run: Run) -> Ceilings:
    """Those that the file has; measured now if it has none."""
    if run.kept("ceilings", "copy") is None or run.kept("ceilings", "matmul") is None:
        measure(run)
    copied, product = run.kept("ceilings", "copy"), run.kept("ceilings", "matmul")
    assert copied is not None
    assert product is not None
    return Ceilings(copied["bytes_per_s"], product["flops_per_s"])


def describe(_: Sequence[str]) -> Iterator[str]:
    yield f"copy {COPIED_BYTES / 2**30:g} GiB of random float32, median of {_TURNS} turns"
    yield f"multiply random bfloat16 matrices of {PRODUCT_EXTENT}x{PRODUCT_EXTENT}, median of {_TURNS} turns"
