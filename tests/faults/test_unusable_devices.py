"""Devices that cannot be used say so at first use, and a failed capture of a graph costs speed alone."""

from __future__ import annotations

import functools
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from tiny_networks import tiny
from tolerance import assert_same_bits

import edm_fast
from edm_fast.cli import main
from edm_fast.ops import backends
from edm_fast.plan import Prepared
from edm_fast.plan import prepared as prepared_module
from edm_fast.plan.graphs import CapturedPlan


def build(monkeypatch: pytest.MonkeyPatch, architectures: str, missing: str = "") -> None:
    """As if the extension had been built so, in a PyTorch with CUDA that finds no device."""
    compiled = SimpleNamespace(cuda=SimpleNamespace(architectures=architectures, missing=missing))
    monkeypatch.setattr(backends, "extension", lambda: compiled)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


ENTRIES = [
    lambda: edm_fast.randn((3,), [1], device="cuda"),
    lambda: edm_fast.sample(lambda x, sigma, labels: x / 2, [1], shape=(1, 2, 2), device="cuda:1"),
    lambda: edm_fast.load(device="cuda"),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=["randn", "sample", "load"])
def test_a_build_without_cuda_is_said_at_first_use(entry, monkeypatch):
    build(monkeypatch, "", "no CUDA compiler was found")
    message = r"^device: 'cuda(:1)?' cannot be used: this build has no CUDA kernels \(no CUDA compiler was found\)$"
    with pytest.raises(RuntimeError, match=message):
        entry()


@pytest.mark.parametrize("entry", ENTRIES, ids=["randn", "sample", "load"])
def test_a_driver_that_cannot_be_used_is_said_with_what_the_kernels_need(entry, monkeypatch):
    build(monkeypatch, "8.0 9.0")
    message = "kernels are built for 8.0 9.0, but PyTorch finds no usable device or driver$"
    with pytest.raises(RuntimeError, match=rf"^device: 'cuda(:1)?' cannot be used: {message}"):
        entry()


@pytest.mark.parametrize(
    "command", [["generate"], ["train", "--outdir", "x"], ["evaluate", "--ref", "digits"], ["selfcheck"]], ids=str
)
def test_commands_say_why_a_device_cannot_be_used(command, monkeypatch):
    build(monkeypatch, "", "no CUDA compiler was found")
    result = CliRunner().invoke(main, [*command, "--device", "cuda"])
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert "'--device': 'cuda' cannot be used: this build has no CUDA kernels (no CUDA compiler was found)" in text


@pytest.mark.parametrize("device", ["xpu", "mps", "meta"])
def test_devices_without_kernels_are_named(device):
    message = f"^device: {device} has no kernels; they run on cpu and cuda$"
    with pytest.raises(ValueError, match=message):
        edm_fast.randn((3,), [1], device=device)
    with pytest.raises(ValueError, match=message):
        edm_fast.sample(lambda x, sigma, labels: x, [1], shape=(1, 2, 2), device=device)


@pytest.mark.parametrize("device", ["nope", "", "cuda:x"])
def test_what_is_no_device_is_named(device):
    for call in (lambda: edm_fast.randn((3,), [1], device=device), lambda: edm_fast.load(device=device)):
        with pytest.raises(ValueError, match=f"^device: got {device!r}; it is a device such as 'cpu'"):
            call()


def test_a_capture_that_fails_costs_speed_alone_and_is_reported_once(monkeypatch, caplog):
    """By the executor of a GPU, on the CPU."""

    def failing(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    def images(capture, batch):
        monkeypatch.setattr(prepared_module, "CapturedPlan", functools.partial(CapturedPlan, capture=capture))
        nets.append(edm_fast.prepare(tiny("adm")))
        return edm_fast.sample(nets[-1], range(5), [0, 1, 2, 3, 4], num_steps=3, batch=batch)

    nets: list[Prepared] = []
    monkeypatch.setattr(Prepared, "_make_cpu_plan", Prepared._make_device_plan)
    eager = images(None, 5)
    assert_same_bits(images(failing, 5), eager)
    edm_fast.sample(nets[-1], range(5), [0, 1, 2, 3, 4], num_steps=3, batch=2)
    [record] = caplog.records
    assert "runs without CUDA graphs" in record.getMessage()
    assert "operation not permitted when stream is capturing" in record.getMessage()


def test_a_kernel_module_gets_the_stream_and_the_device_of_its_tensors(monkeypatch):
    """Whatever is current: the launcher hands both on, and gives the current device back."""
    seen = []
    monkeypatch.setattr(backends, "kernels", lambda backend: kernels)
    kernels = ModuleType("kernels")
    kernels.randn = lambda *arguments: seen.append(arguments[-2:])
    entered = []

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(("enter", self.device))

        def __exit__(self, *_):
            entered.append(("exit", self.device))

    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: SimpleNamespace(cuda_stream=77 if of == device else 0))
    backends.launch("randn", "cuda", device, "view")
    assert seen == [(1, 77)]
    assert entered == [("enter", device), ("exit", device)]
