"""Whether a module's parameters or buffers have changed since they were last looked at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edm_fast.plan.capture import Capture, capture_on_cuda

logger = logging.getLogger(__name__)

# What tells tensors apart without a look at their values.
_State = list[tuple[Any, ...]]


class Versions:
    """Notices that parameters or buffers of a module were written or replaced.

    Values are compared by sums of their bits. On a CUDA device the sums are captured as a graph at the second look at
    the same tensors: launched one by one they would take the host milliseconds.
    """

    def __init__(self, module: nn.Module, capture: Capture = capture_on_cuda) -> None:
        self._module = module
        self._capture: Capture | None = capture
        self._captured: tuple[_State, _CapturedSums] | None = None
        self._seen = self._state()
        self._seen_sums = self._sums(self._seen)

    def changed(self, contents: bool = False) -> bool:
        """Whether anything changed since the last call, or since the beginning.

        `contents`: look at every value too, at the cost of reading them. Writes through `parameter.data` or numpy, and
        new memory at an old address, cannot be told otherwise.
        """
        now = self._state()
        if now == self._seen:
            sums = self._sums(now, again=True) if contents else self._seen_sums
            different = sums != self._seen_sums
        else:
            sums, different = self._sums(now), True
        self._seen, self._seen_sums = now, sums
        return different

    def _state(self) -> _State:
        return [
            (tensor.data_ptr(), _version(tensor), tensor.shape, tensor.stride(), tensor.dtype)
            for tensor in self._tensors()
        ]

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

    def _sums(self, state: _State, again: bool = False) -> list[int]:
        tensors = self._tensors()
        if not tensors or len({tensor.device for tensor in tensors}) > 1 or not tensors[0].is_cuda:
            return [int(_sum_of_bits(tensor)) for tensor in tensors]
        if self._captured is not None and self._captured[0] == state:
            return self._captured[1]()
        self._captured = None
        if again and self._capture is not None and not torch.cuda.is_current_stream_capturing():
            try:
                with torch.cuda.device(tensors[0].device):
                    captured = _CapturedSums(tensors, self._capture)
                    sums = captured()
                self._captured = state, captured
                return sums
            except RuntimeError as error:
                logger.warning("weights are compared one by one, more slowly: the capture failed: %s", error)
                self._capture = None
        return _stacked_sums(tensors).tolist()


class _CapturedSums:
    """The sums of the same tensors again and again, by one launch."""

    def __init__(self, tensors: Sequence[torch.Tensor], capture: Capture) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._replay, self._result = capture(lambda: _stacked_sums(tensors))

    def __call__(self) -> list[int]:
        self._replay()
        return self._result.tolist()


def _version(tensor: torch.Tensor) -> int:
    # Tensors of inference mode count no versions.
    return 0 if tensor.is_inference() else tensor._version


def _stacked_sums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Without waiting for the device."""
    with torch.no_grad():
        return torch.stack([_sum_of_bits(tensor) for tensor in tensors])


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    words = tensor.detach().contiguous().flatten()
    if words.is_floating_point():
        integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[words.element_size()]
        words = words.view(integers)
    if words.dtype == torch.int32 and words.numel() % 2 == 0 and words.storage_offset() % 2 == 0:
        words = words.view(torch.int64)  # which PyTorch adds up five times as fast
    return words.sum(dtype=torch.int64)
