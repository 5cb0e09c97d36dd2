"""Weights as the CPU kernels read them, packed once and again when the parameters change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edm_fast.ops.backends import extension
from edm_fast.ops.tensors import DTYPE_CODES
from edm_fast.plan.algorithms import CODES
from edm_fast.plan.ir import Algorithm, Conv

_HUGE_PAGE_FLOATS = (2 << 20) // 4
_ALIGNMENT_FLOATS = 16


class Pool:
    """Memory for all weights of a plan: one block of large pages, which are read much faster than small ones."""

    def __init__(self, sizes: Sequence[int]) -> None:
        floats = sum(map(_aligned, sizes))
        block = torch.empty(floats + _HUGE_PAGE_FLOATS, dtype=torch.float32, device="cpu")
        extension().cpu.use_huge_pages(block.data_ptr(), block.nbytes)
        self._free = block[-block.data_ptr() // 4 % _HUGE_PAGE_FLOATS :]

    def take(self, size: int) -> torch.Tensor:
        """The next `size` floats, uninitialised, aligned to 64 bytes."""
        taken, self._free = self._free[:size], self._free[_aligned(size) :]
        return taken


def _aligned(floats: int) -> int:
    return -(-floats // _ALIGNMENT_FLOATS) * _ALIGNMENT_FLOATS


def factors(pairs: bool) -> int:
    """The code of what products multiply: float32, or pairs of bfloat16."""
    return DTYPE_CODES[torch.bfloat16 if pairs else torch.float32]


def packed_size(weight: torch.Tensor, algorithm: Algorithm, pairs: bool = False) -> int:
    """Floats that `pack` needs."""
    out_channels, in_channels, kernel, _ = weight.shape
    return extension().cpu.conv2d_packed_size(in_channels, out_channels, kernel, CODES[algorithm], factors(pairs))


def pack(
    weight: torch.Tensor, algorithm: Algorithm, pairs: bool = False, packed: torch.Tensor | None = None
) -> torch.Tensor:
    """Float32 weights [O, I, k, k] in the order of the kernels of this machine; written to `packed`, if given."""
    out_channels, in_channels, kernel, _ = weight.shape
    cpu = extension().cpu
    dense = weight.detach().to("cpu", torch.float32).contiguous()
    if packed is None:
        packed = torch.empty(packed_size(weight, algorithm, pairs), dtype=torch.float32, device="cpu")
    cpu.pack_conv2d(
        in_channels,
        out_channels,
        kernel,
        CODES[algorithm],
        factors(pairs),
        False,
        dense.data_ptr(),
        packed.data_ptr(),
        torch.get_num_threads(),
    )
    return packed


def separate_qkv(tensor: torch.Tensor) -> torch.Tensor:
    """Rows (head, channel, q|k|v) in the order q | k | v, each (head, channel)."""
    return tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


def conv_weight(conv: Conv) -> torch.Tensor:
    """The weight [O, I, k, k] of a layer in the order of its plan."""
    weight: torch.Tensor = conv.module.weight
    return separate_qkv(weight) if conv.packed_qkv else weight


def conv_bias(conv: Conv) -> torch.Tensor | None:
    """The sum of a layer's biases, float32 [O], or None."""
    if not conv.biases:
        return None
    total = torch.stack([bias.detach().float() for bias in conv.biases]).sum(dim=0)
    return (separate_qkv(total) if conv.packed_qkv else total).contiguous()


class PackedLinear:
    """A Linear, or several that share their input, for rows of float32: each row's result depends on that row alone."""

    def __init__(self, *modules: Any) -> None:
        weight = torch.cat([module.weight.detach().float().cpu() for module in modules])
        self.out_features, self.in_features = weight.shape
        self._weight = pack(weight[:, :, None, None], "direct")
        biases = [
            torch.zeros(module.weight.shape[0], dtype=torch.float32, device="cpu")
            if module.bias is None
            else module.bias.detach().float().cpu()
            for module in modules
        ]
        self._bias = torch.cat(biases).contiguous()

    def __call__(self, x: torch.Tensor, silu: bool = False, addend: torch.Tensor | None = None) -> torch.Tensor:
        """f(x Wᵀ + b + addend) for x [rows, in_features]; f is SiLU or the identity."""
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x: got shape {list(x.shape)}; rows of width {self.in_features} are needed")
        x = x.to(torch.float32).contiguous()
        out = torch.empty([x.shape[0], self.out_features], dtype=torch.float32, device="cpu")
        other = None if addend is None else addend.expand(out.shape).contiguous()
        extension().cpu.linear(
            (x.shape[0], self.in_features, self.out_features),
            x.data_ptr(),
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            0 if other is None else other.data_ptr(),
            silu,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out
