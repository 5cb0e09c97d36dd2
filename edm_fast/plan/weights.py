"""Weights as the CPU kernels read them, packed once and again when the parameters change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

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


class Versions:
    """Notices that parameters or buffers of a module were written or replaced since they were last looked at."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._seen, self._seen_sums = self._state(), self._sums()

    def _state(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), _version(tensor)) for tensor in self._tensors()]

    def _sums(self) -> list[int]:
        on_cuda: list[torch.Tensor] = []
        sums: list[int] = []
        for tensor in self._tensors():
            words = _words(tensor)
            if words.is_cuda:
                on_cuda.append(words)
            else:
                sums.append(int(words.sum(dtype=torch.int64)))
        return sums + _sums_on_device(on_cuda)

    def _tensors(self) -> list[torch.Tensor]:
        # parameters() and buffers() make a name for each, which takes several times as long.
        found: list[torch.Tensor] = []
        pending = [self._module]
        while pending:
            module = pending.pop()
            for tensors in (module._parameters, module._buffers):
                found += [tensor for tensor in tensors.values() if tensor is not None]
            pending += [child for child in module._modules.values() if child is not None]
        return found

    def changed(self, contents: bool = False) -> bool:
        """Whether anything changed since the last call, or since the beginning.

        `contents`: look at every value too, at the cost of reading them. Writes through `parameter.data` or numpy, and
        new memory at an old address, cannot be told otherwise.
        """
        now, sums = self._state(), self._sums() if contents else self._seen_sums
        different = now != self._seen or sums != self._seen_sums
        if different and not contents:
            sums = self._sums()
        self._seen, self._seen_sums = now, sums
        return different


def _version(tensor: torch.Tensor) -> int:
    # Tensors of inference mode count no versions.
    return 0 if tensor.is_inference() else tensor._version


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers, the widest that it can be viewed as: PyTorch adds int64 five times as fast."""
    words = tensor.detach().contiguous().flatten()
    if words.is_floating_point():
        integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[words.element_size()]
        words = words.view(integers)
    if words.dtype == torch.int32 and words.numel() % 2 == 0 and words.storage_offset() % 2 == 0:
        words = words.view(torch.int64)
    return words


def _sums_on_device(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Sums of each tensor; the host waits once and not for every one."""
    if not tensors:
        return []
    with torch.no_grad():
        return torch.stack([words.sum(dtype=torch.int64).to(tensors[0].device) for words in tensors]).tolist()
