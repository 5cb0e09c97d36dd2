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

# Where functions run before they are captured, by device.
_warm_streams: dict[int, torch.cuda.Stream] = {}
# Streams on which something ran or was captured here: (device, handle).
_used: set[tuple[int, int]] = set()


def capture_on_cuda(function: Function) -> tuple[Callable[[], object], torch.Tensor]:
    """Capture what `function` launches on the current device; it runs once before, to make what is made only once.

    cuBLAS keeps a workspace for each stream it has run on, and its address is captured. So the function runs first on a
    stream where nothing is captured, and the capture's own workspace is made during the capture, in the memory that
    belongs to the graph: whoever clears the workspaces of the process, as torch.compile does, cannot give it away.
    PyTorch has 32 streams a device and hands them out in turn; where one comes again, the workspaces are cleared here.
    """
    with _capturing:
        device = torch.cuda.current_device()
        if device not in _warm_streams:
            _warm_streams[device] = torch.cuda.Stream()
            _used.add((device, _warm_streams[device].cuda_stream))
        warm = _warm_streams[device]
        warm.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(warm):
                function()
        finally:
            torch.cuda.current_stream().wait_stream(warm)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        again = (device, stream.cuda_stream) in _used
        _used.add((device, stream.cuda_stream))
        if again:
            torch._C._cuda_clearCublasWorkspaces()
        # By default all captures of a process share a stream of the first one's device, and its workspaces. Other
        # threads may allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function()
        if again:
            torch._C._cuda_clearCublasWorkspaces()
    return graph.replay, result
