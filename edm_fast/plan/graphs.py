"""Forwards captured as CUDA graphs, one for each shape: a launch for the whole network in place of one for each op."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from edm_fast.plan.capture import Capture, capture_on_cuda
from edm_fast.plan.device import DevicePlan
from edm_fast.plan.steps import StepTable

logger = logging.getLogger(__name__)

# Captured forwards that a plan keeps; each holds its activations.
MOST_CAPTURES = 8

Captured = TypeVar("Captured")


class CapturedPlan:
    """A `DevicePlan` whose `run` replays captured forwards, by number of samples and of modulation rows.

    They are captured at their first use, and the least recently used is dropped beyond `most`. If a capture fails the
    plan runs uncaptured from then on; the reason is logged, once. Runs on several streams wait for one another.
    """

    def __init__(self, plan: DevicePlan, capture: Capture = capture_on_cuda, most: int = MOST_CAPTURES) -> None:
        self.plan = plan
        self.graph, self.dtype, self.algorithms = plan.graph, plan.dtype, plan.algorithms
        self.column_biases, self.weight_bytes = plan.column_biases, plan.weight_bytes
        self._capture: Capture | None = capture
        self._most = most
        self._captured: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def arena_bytes_per_sample(self) -> int:
        return self.plan.arena_bytes_per_sample

    def run(
        self, x: torch.Tensor, modulation: torch.Tensor | StepTable, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `DevicePlan.run`; a `StepTable` gives the rows of its step."""
        source = self.graph.input
        shape = (source.channels, source.height, source.width)
        if tuple(x.shape[1:]) != shape:
            raise ValueError(f"x: shape is {tuple(x.shape)}; the plan is for {shape}")
        if x.shape[0] == 0 or is_capturing(x):
            return self._run_eagerly(x, modulation, out)
        with self._lock:
            captured = self._captured_for(x, modulation)
            if captured is not None:
                return captured(x, modulation, out)
        return self._run_eagerly(x, modulation, out)

    def _run_eagerly(
        self, x: torch.Tensor, modulation: torch.Tensor | StepTable, out: torch.Tensor | None
    ) -> torch.Tensor:
        rows = modulation.read() if isinstance(modulation, StepTable) else modulation
        return self.plan.run(x, rows, out)

    def _captured_for(self, x: torch.Tensor, modulation: torch.Tensor | StepTable) -> _Captured | None:
        rows = modulation.rows if isinstance(modulation, StepTable) else modulation.shape[0]
        samples = x.shape[0]
        return self.captured((samples, rows), lambda capture: _Captured(self.plan, capture, samples, rows))

    def captured(self, key: Hashable, make: Callable[[Capture], Captured]) -> Captured | None:
        """What `make` captured for this key, now or earlier; None if captures fail.

        The bound holds for everything that was captured with this plan.
        """
        with self._lock:
            found: Captured | None = self._captured.get(key)
            if found is not None:
                self._captured.move_to_end(key)
                return found
            if self._capture is None:
                return None
            # Dropped first, so that its memory can be used.
            if len(self._captured) >= self._most:
                self._drop(len(self._captured) - self._most + 1)
            try:
                try:
                    found = self._make(make, self._capture)
                except torch.OutOfMemoryError:
                    if not self._captured:
                        raise
                if found is None:
                    # What earlier captures hold may be what is missing.
                    self._drop(len(self._captured))
                    found = self._make(make, self._capture)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                logger.warning("the network runs without CUDA graphs, more slowly: the capture failed: %s", error)
                self._capture = None
                return None
            self._captured[key] = found
            return found

    def _make(self, make: Callable[[Capture], Captured], capture: Capture) -> Captured:
        with on_device(self.plan.device):
            return make(capture)

    def _drop(self, count: int) -> None:
        """Forget the least recently used, once no stream uses their memory."""
        on_cuda = self.plan.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.plan.device)
        for _ in range(count):
            self._captured.popitem(last=False)
        if on_cuda:
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Forget everything that was captured, once no stream uses its memory."""
        with self._lock:
            self._drop(len(self._captured))


class _Captured:
    """A captured forward and the memory that it reads."""

    def __init__(self, plan: DevicePlan, capture: Capture, samples: int, rows: int) -> None:
        source, columns = plan.graph.input, plan.graph.columns
        shape = [samples, source.channels, source.height, source.width]
        self._device = plan.device
        # Tensors made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._x = torch.zeros(shape, dtype=plan.dtype, device=plan.device).contiguous(
                memory_format=torch.channels_last
            )
            self._rows = torch.zeros([rows, columns], dtype=torch.float32, device=plan.device)
            self._replay, self._result = capture(lambda: plan.run(self._x, self._rows))
            self._read = torch.cuda.Event() if plan.device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, modulation: torch.Tensor | StepTable, out: torch.Tensor | None) -> torch.Tensor:
        with on_device(self._device):
            if self._read is not None:
                self._read.wait()
            self._x.copy_(x)
            if isinstance(modulation, StepTable):
                modulation.read(out=self._rows)
            else:
                self._rows.copy_(modulation)
            self._replay()
            # The next run writes the result again.
            result = self._result.clone() if out is None else out.copy_(self._result)
            if self._read is not None:
                self._read.record()
        return result


def on_device(device: torch.device) -> torch.cuda.device:
    """CUDA's current device; for another device nothing changes."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def is_capturing(x: torch.Tensor) -> bool:
    """Whether the current stream is being captured, by whomever."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
