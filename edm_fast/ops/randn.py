"""Standard normal noise as a pure function of (seed, draw, element)."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Sequence

import torch

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import check_device, check_float, check_writable, image_view, kernel_shape, seed_tensor

# The domains of csrc/include/edm_fast/philox.h.
DOMAIN_SAMPLER = 0
DOMAIN_LABELS = 1
DOMAIN_USER = 2
DOMAIN_TRAINING = 3
DOMAIN_NOISE_LEVEL = 4
DOMAIN_DROPOUT = 5

_MASK32 = 0xFFFFFFFF


def randn(
    shape_per_sample: Sequence[int],
    seeds: int | Iterable[int] | torch.Tensor,
    draw: int = 0,
    *,
    domain: int = DOMAIN_SAMPLER,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str | None = None,
) -> torch.Tensor:
    """Noise [N, *shape_per_sample] with out[n, i] = normal(seeds[n], draw, element i).

    The words are Philox4x32-10 with the sample's 64-bit seed as key and (i // 4, draw, domain) as counter; Box-Muller
    makes them normal in float32, with the same bits on every device. Element i is counted in the order of a
    contiguous [C, H, W] sample, whatever `memory_format` is. Sample n depends on seeds[n] alone, never on the batch
    around it.

    Args:
        shape_per_sample: shape of one sample, usually (C, H, W).
        seeds: N integers of 64 bits, as an iterable or a 1-D integer tensor; a single int makes a batch of one.
        draw: which draw of the sample's stream, 0 … 2³²-1. The sampler takes 0 for the latents and i + 1 for step i.
        domain: which family of streams; the sampler's by default, so that draw 0 gives its latents.
        dtype: float32 (exact), or float64, float16, bfloat16 (the float32 value, cast).
        device: where the noise is made.
        memory_format: `torch.contiguous_format` or, for [N, C, H, W], `torch.channels_last`.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        TypeError: seeds or extents that are not integers, or a dtype that is not one of the four.
        ValueError: a seed beyond 64 bits, a draw or domain outside 32 bits, a negative extent, a device or
            backend that does not exist.
        RuntimeError: a CUDA device that cannot be used; says why.
    """
    try:
        shape = [operator.index(extent) for extent in shape_per_sample]
    except TypeError:
        raise TypeError(f"shape_per_sample: got {shape_per_sample!r}; extents are integers") from None
    if any(extent < 0 for extent in shape):
        raise ValueError(f"shape_per_sample: got {tuple(shape)}; extents are not negative")
    draw, domain = as_word("draw", draw), as_word("domain", domain)
    check_float("dtype", dtype)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format: got {memory_format}; it is contiguous_format or channels_last")
    if memory_format == torch.channels_last and len(shape) != 3:
        raise ValueError(f"memory_format: channels_last needs samples of shape (C, H, W), and theirs is {tuple(shape)}")
    where = backends.usable_device("device", device)
    chosen = backends.choose(backend, where)
    keys = seed_tensor(seeds, where)
    out = torch.empty([keys.shape[0], *shape], dtype=dtype, device=keys.device, memory_format=memory_format)
    if chosen == "reference":
        from edm_fast.reference.randn import randn as reference_randn

        return out.copy_(reference_randn(shape, keys, draw, domain))
    if backend is None:
        torch.ops.edm_fast.randn_(out, keys, draw, domain)
    else:
        _run(chosen, out, keys, draw, domain)
    return out


def as_word(name: str, value: int) -> int:
    """A 32-bit unsigned integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}; it is an integer")
    if not 0 <= value <= _MASK32:
        raise ValueError(f"{name}: got {value}; it is between 0 and 2**32 - 1")
    return int(value)


def _run(backend: str, out: torch.Tensor, seeds: torch.Tensor, draw: int, domain: int) -> None:
    check_device("seeds", seeds, out.device)
    if seeds.dtype != torch.int64 or seeds.dim() != 1 or seeds.shape[0] != out.shape[0]:
        raise ValueError(f"seeds: got {seeds.dtype} {tuple(seeds.shape)}; int64 [{out.shape[0]}] is needed")
    check_writable("out", out)
    keys = seeds.contiguous()  # a copy, if any, must outlive the launch
    view = image_view("out", out)
    backends.launch("randn", backend, out.device, kernel_shape(out.shape), keys.data_ptr(), draw, domain, view)


LIBRARY.define("randn_(Tensor(a!) out, Tensor seeds, int draw, int domain) -> ()")
LIBRARY.impl("randn_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("randn_", lambda *args: _run("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::randn_", lib=LIBRARY)
def _fake(out: torch.Tensor, seeds: torch.Tensor, draw: int, domain: int) -> None:
    return None
