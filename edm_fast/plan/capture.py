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


def capture_on_cuda(function: Function) -> tuple[Callable[[], object], torch.Tensor]:
    """Capture what `function` launches on the current device; it runs once before, to make what is made only once.

    Returns the replay and the tensor that `function` returned, which every replay writes. Raises what `function` raises
    and, for what cannot be captured, PyTorch's RuntimeError; the current stream captures nothing then.

    cuBLAS keeps a workspace for each stream it has run on, and its address is captured. So the function runs first on a
    stream where nothing is captured, and the capture's own workspace is made during the capture, in the memory that
    belongs to the graph: whoever clears the workspaces of the process, as torch.compile does, cannot give it away.
    PyTorch hands 32 streams a device out in turn, to whoever asks. So all workspaces are cleared before a capture, for
    others have run on its stream, and after it, for others will: each would use memory of the other's graph. A graph of
    the caller's own loses its workspace by that, as by torch.compile, if it was captured on a stream where cuBLAS had
    run before.
    """
    with _capturing:
        device = torch.cuda.current_device()
        if device not in _warm_streams:
            _warm_streams[device] = torch.cuda.Stream()
        warm = _warm_streams[device]
        warm.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(warm):
                function()
        finally:
            torch.cuda.current_stream().wait_stream(warm)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # By default all captures of a process share a stream of the first one's device. Other threads may allocate
            # meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = function()
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    return graph.replay, result
