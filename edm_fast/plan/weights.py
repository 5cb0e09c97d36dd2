"""Weights as the CPU kernels read them, packed once and again when the parameters change."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edm_fast.ops.backends import extension
from edm_fast.plan.algorithms import CODES
from edm_fast.plan.ir import Algorithm, Conv


def pack(weight: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
    """Float32 weights [O, I, k, k] in the order of the kernels of this machine."""
    out_channels, in_channels, kernel, _ = weight.shape
    cpu = extension().cpu
    dense = weight.detach().to("cpu", torch.float32).contiguous()
    size = cpu.conv2d_packed_size(in_channels, out_channels, kernel, CODES[algorithm])
    packed = torch.empty(size, dtype=torch.float32)
    cpu.use_huge_pages(packed.data_ptr(), packed.nbytes)
    cpu.pack_conv2d(
        in_channels,
        out_channels,
        kernel,
        CODES[algorithm],
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
            torch.zeros(module.weight.shape[0]) if module.bias is None else module.bias.detach().float().cpu()
            for module in modules
        ]
        self._bias = torch.cat(biases).contiguous()

    def __call__(self, x: torch.Tensor, silu: bool = False, addend: torch.Tensor | None = None) -> torch.Tensor:
        """f(x Wᵀ + b + addend) for x [rows, in_features]; f is SiLU or the identity."""
        x = x.to(torch.float32).contiguous()
        out = torch.empty(x.shape[0], self.out_features)
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


class Versions:
    """Notices that parameters or buffers of a module were written or replaced since they were last looked at."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._seen = self._state()

    def _state(self) -> list[tuple[int, int]]:
        module = self._module
        return [(tensor.data_ptr(), tensor._version) for tensor in (*module.parameters(), *module.buffers())]

    def changed(self) -> bool:
        """Whether anything changed since the last call, or since the beginning."""
        now = self._state()
        different = now != self._seen
        self._seen = now
        return different
