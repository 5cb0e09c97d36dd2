"""Forwards at full size that find faults of the device, ours for the sanitizers and the compiled baseline's alone. They
keep no figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import variants
from gpu_networks import DTYPE, Forward, Row, checked, compiled, inputs, release
from gpu_rows import selected_rows
from gpu_run import Run, cudnn
from rows import parse_row
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import edm_fast
from edm_fast.plan.graphs import CapturedPlan

# What is run if nothing is named.
_ROWS = ["ddpmpp:64"]
_BASELINE_CALLS = 200
_OTHER_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def run_forward(run: Run, arguments: Sequence[str] = ()) -> bool:
    """One forward of ours of each row, for the sanitizers, and of one sample by split sums. Whether all is finite."""
    good = True
    for row in selected_rows(list(arguments) or _ROWS):
        name, batch = parse_row(row)
        net = variants.build_network(name).to(run.device)
        x, c_noise, labels = inputs(net, batch, run.device, run.generator(run.device))
        with torch.inference_mode():
            prepared = edm_fast.prepare(net, dtype=DTYPE)
            plan = prepared.plan(*x.shape[2:])
            # Without a graph: captures do not go with the sanitizers' way to allocate.
            plan = plan.plan if isinstance(plan, CapturedPlan) else plan
            output = plan.run(x.to(DTYPE), prepared.modulation(c_noise.expand(batch), labels))
        good &= bool(output.isfinite().all())
        if run.device.type == "cuda":  # the CPU has no convolutions by split sums
            with torch.inference_mode():
                split = edm_fast.prepare(net, dtype=DTYPE, conv_algorithm="split")
                plan = split.plan(*x.shape[2:])
                plan = plan.plan if isinstance(plan, CapturedPlan) else plan
                output = plan.run(x[:1].to(DTYPE), split.modulation(c_noise, labels[:1]))
            good &= bool(output.isfinite().all())
    return good


def describe_forward(arguments: Sequence[str]) -> Iterator[str]:
    return (f"a forward of {row}" for row in selected_rows(list(arguments) or _ROWS))


def run_baseline(run: Run, arguments: Sequence[str] = (), cudnn_attention: bool = True) -> bool:
    """torch.compile's forward of each row, many times, in a process where nothing of ours runs: a fault of the device
    is then not of our making. MismatchError if the last output is not right. Without cuDNN's attention, whether it is
    the cause shows too."""
    attention = contextlib.nullcontext() if cudnn_attention else sdpa_kernel(_OTHER_ATTENTION)
    with cudnn(benchmark=True), attention:
        for row in selected_rows(list(arguments) or _ROWS):
            alone = Row(run, row)
            with compiled(alone.half) as forward:

                def calls(alone: Row = alone, forward: Forward = forward) -> Tensor:
                    for _ in range(_BASELINE_CALLS):
                        output = forward(alone.x, alone.c_noise, alone.labels)
                    return output

                checked("compiled", alone.reached(f"{_BASELINE_CALLS} calls of {row}", calls), alone.expected)
            release(run.device)
    return True


def run_baseline_without_cudnn(run: Run, arguments: Sequence[str] = ()) -> bool:
    return run_baseline(run, arguments, cudnn_attention=False)


def describe_baseline(arguments: Sequence[str]) -> Iterator[str]:
    rows = selected_rows(list(arguments) or _ROWS)
    return (f"{_BASELINE_CALLS} forwards of {row} by torch.compile, and nothing of ours" for row in rows)


def describe_baseline_without_cudnn(arguments: Sequence[str]) -> Iterator[str]:
    return (f"{line}, without cuDNN's attention" for line in describe_baseline(arguments))
