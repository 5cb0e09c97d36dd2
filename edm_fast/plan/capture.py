"""What is launched on a CUDA device, captured once as a graph and replayed by one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

Function = Callable[[], torch.Tensor]
# Gives a replay, and the tensor that each replay writes.
Capture = Callable[[Function], tuple[Callable[[], object], torch.Tensor]]


# A process captures one graph at a time, whatever the device.
_capturing = threading.Lock()


def capture_on_cuda(function: Function) -> tuple[Callable[[], object], torch.Tensor]:
    """Capture what `function` launches on the current device; it runs once before, to make what is made only once."""
    with _capturing:
        # By default all captures of a process share a stream of the first one's device, and its workspaces.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                function()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function()
    return graph.replay, result
