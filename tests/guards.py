"""Memory with NaN in and around it, so that whatever an op does not write, or writes beside its outputs, shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

# Odd, so that outputs do not begin where vectors would like them to.
BAND = 67


class Guards:
    """Takes the place of torch.empty: each tensor lies off any alignment between two bands of NaN."""

    def __init__(self) -> None:
        self._buffers: list[tuple[torch.Tensor, int]] = []

    def empty(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> torch.Tensor:
        """A dense tensor of NaN."""
        sizes = list(shape)
        count = torch.Size(sizes).numel()
        buffer = torch.full([count + 2 * BAND], torch.nan, dtype=dtype, device=device)
        self._buffers.append((buffer, count))
        if memory_format == torch.channels_last:
            n, c, h, w = sizes
            return buffer[BAND : BAND + count].view(n, h, w, c).permute(0, 3, 1, 2)
        return buffer[BAND : BAND + count].view(sizes)

    def empty_like(
        self,
        tensor: torch.Tensor,
        *,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> torch.Tensor:
        """As `empty`; images are channels-last."""
        last = tensor.dim() == 4 and memory_format in (torch.preserve_format, torch.channels_last)
        return self.empty(
            tensor.shape,
            dtype=dtype or tensor.dtype,
            device=tensor.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give the ops such memory until the test ends."""
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch, "empty_like", self.empty_like)

    def check(self) -> None:
        """Nothing was written beside any tensor."""
        for buffer, count in self._buffers:
            assert buffer[:BAND].isnan().all(), "written before an output"
            assert buffer[BAND + count :].isnan().all(), "written behind an output"
