"""What is captured keeps working, whatever else the process does with its streams and its memory."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import cuda_usable
from tolerance import assert_same_bits

from edm_fast.plan import capture


class FakeCuda:
    """The calls of torch.cuda that a capture makes, written down."""

    def __init__(self, monkeypatch):
        self.running = "current"
        self.ran, self.events, self.made = [], [], 0
        fakes = {
            "Stream": self.stream,
            "current_stream": lambda: FakeStream(-1),
            "current_device": lambda: 0,
            "stream": self.on,
            "CUDAGraph": FakeGraph,
            "graph": lambda graph, stream, capture_error_mode: self.capture(stream),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.events.append("clear"), raising=False)
        monkeypatch.setattr(capture, "_warm_streams", {})

    def stream(self):
        """One of 32, in turn, as PyTorch has them."""
        self.made += 1
        return FakeStream(self.made % 32)

    @contextlib.contextmanager
    def on(self, stream):
        self.running = stream
        yield
        self.running = "current"

    @contextlib.contextmanager
    def capture(self, stream):
        self.events.append(stream.cuda_stream)
        with self.on(stream):
            yield

    def function(self):
        self.ran.append(self.running.cuda_stream)
        return torch.ones(1)


class FakeStream:
    def __init__(self, handle):
        self.cuda_stream = handle

    def wait_stream(self, other):
        pass


class FakeGraph:
    def replay(self):
        pass


def test_workspaces_of_a_capture_are_its_own(monkeypatch):
    """Where a stream has a workspace, of whoever ran on it, it would be part of the graph, and the graph's would serve
    whoever runs on the stream later: all are cleared before and after."""
    cuda = FakeCuda(monkeypatch)
    for _ in range(70):
        capture.capture_on_cuda(cuda.function)
    warm, captured = cuda.ran[::2], cuda.ran[1::2]
    assert len(set(warm)) == 1
    assert len(captured) == 70
    assert cuda.events == [event for stream in captured for event in ("clear", stream, "clear")]


def test_workspaces_are_cleared_after_a_capture_that_fails(monkeypatch):
    cuda = FakeCuda(monkeypatch)

    def function():
        if cuda.function() is not None and len(cuda.ran) == 2:
            raise RuntimeError("not capturable")

    with pytest.raises(RuntimeError, match="not capturable"):
        capture.capture_on_cuda(function)
    assert cuda.events == ["clear", cuda.ran[1], "clear"]


def test_a_captured_product_outlives_the_workspaces_of_the_library_on_cuda():
    if not cuda_usable():
        pytest.skip("needs CUDA")
    a, b = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ([64, 16384], [16384, 64]))
    replay, result = capture.capture_on_cuda(lambda: a @ b)
    replay()
    before = result.clone()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.full([1 << 20], float("nan"), device="cuda") for _ in range(64)]
    replay()
    assert_same_bits(result, before)
    assert all(bool(other.isnan().all()) for other in others)
