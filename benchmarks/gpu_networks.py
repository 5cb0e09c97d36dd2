"""One forward of the inner network F in bfloat16 on a device: ours against eager PyTorch and against torch.compile.

All start from the same weights and inputs and compute the embedding too. Eager has weights cast beforehand and is
channels-last; compiled is that with fused attention in place of the reference's float32 products, and CUDA graphs.
Outputs are compared with float64 first.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any
from unittest import mock

import torch
import variants
from gpu_ceilings import Ceilings, ceilings
from gpu_floor import device_graph, floor_seconds, totals
from gpu_rows import BASELINES, TARGETS, selected_rows
from gpu_run import Run, cudnn, self_timing
from harness import Match, paired
from rows import ERROR_BOUNDS, parse_row
from torch import Tensor, nn

import edm_fast
from edm_fast.bench.turns import MismatchError, relative_error
from edm_fast.ops.attention import library_attention
from edm_fast.reference import unet_block

DTYPE = torch.bfloat16
COMPILE_OPTIONS = {"triton.cudagraphs": True, "max_autotune_conv_backends": "ATEN"}
_EXPECTED_CHUNK = 16
_SIGMA = 2.0

# F as a function of (x, c_noise, class_labels).
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(net: Any, batch: int, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(x, c_noise [1], class_labels [N, label_dim]) in float32; x is channels-last, and each sample has a label."""
    size = net.img_resolution
    x = torch.randn([batch, net.img_channels, size, size], device=device, generator=generator)
    classes = torch.randint(net.label_dim, [batch], device=device, generator=generator)
    labels = nn.functional.one_hot(classes, net.label_dim).float()
    return x.contiguous(memory_format=torch.channels_last), torch.tensor([math.log(_SIGMA) / 4], device=device), labels


@torch.no_grad()
def expected(net: Any, x: Tensor, c_noise: Tensor, labels: Tensor, chunk: int = _EXPECTED_CHUNK) -> Tensor:
    """F in float64, a chunk of samples at a time."""
    model = copy.deepcopy(net.model).double()
    parts = zip(x.double().split(chunk), labels.double().split(chunk), strict=True)
    return torch.cat([model(part, c_noise.double(), rows) for part, rows in parts])


def eager(half: Any) -> Forward:
    """The reference network as it is; `half` has been cast."""

    @torch.inference_mode()
    def forward(x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        return half.model(x, c_noise, labels)

    return forward


def fused_attention(qkv: Tensor, num_heads: int, packed: bool = False) -> Tensor:
    """In place of the reference's self_attention: scaled_dot_product_attention."""
    return library_attention(qkv, num_heads, packed)


@contextlib.contextmanager
def compiled(half: Any) -> Iterator[Forward]:
    """The same network by torch.compile; to be called inside of the context alone."""
    torch._dynamo.reset()
    with mock.patch.object(unet_block, "self_attention", fused_attention):
        module = torch.compile(half.model, fullgraph=True, dynamic=False, options=COMPILE_OPTIONS)

        @torch.no_grad()
        def forward(x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
            return module(x, c_noise, labels)

        yield forward


@contextlib.contextmanager
def baseline(name: str, half: Any) -> Iterator[Forward]:
    """'eager' or 'compiled', of a network that has been cast."""
    if name == "eager":
        yield eager(half)
        return
    with compiled(half) as forward:
        yield forward


def skipped_graphs() -> int:
    """How many CUDA graphs torch.compile has gone without in this process."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def checked(what: str, output: Tensor, wanted: Tensor) -> Match:
    """MismatchError if an output is too far from the float64 one."""
    match = Match(relative_error(output.double(), wanted), ERROR_BOUNDS["bfloat16"])
    if not match.good:
        raise MismatchError(f"{what} is off by {match.error:.2g} of the largest value; {match.bound:g} is allowed")
    return match


class Row:
    """A network and a batch size: inputs, what is expected, ours, and the network that baselines are made of."""

    def __init__(self, run: Run, row: str) -> None:
        self.run, self.row = run, row
        self.name, self.batch = parse_row(row)
        net = variants.build_network(self.name).to(run.device)
        x, self.c_noise, self.labels = inputs(net, self.batch, run.device, run.generator(run.device))
        self.x = x.to(DTYPE)
        # From the input as it was rounded, so that the error is the network's.
        with cudnn(benchmark=False):
            self.expected = expected(net, self.x, self.c_noise, self.labels)
        self.half = variants.cast_images(copy.deepcopy(net), DTYPE, torch.channels_last)
        self.net = net

    @functools.cached_property
    def prepared(self) -> Any:
        return edm_fast.prepare(self.net, dtype=DTYPE)

    @torch.inference_mode()
    def ours(self) -> Tensor:
        return self.prepared.network(self.x, self.c_noise, self.labels)

    def plan(self, rates: Ceilings) -> dict[str, Any]:
        """The floor of ours, whether it runs as a CUDA graph, and its time when modulation rows are given, as in
        sampling, where one product makes those of many steps."""
        checked("ours", self.ours(), self.expected)
        size = self.prepared.img_resolution
        plan = self.prepared.plan(size, size)
        graph = plan.graph
        flops, moved = totals(graph, self.batch, DTYPE.itemsize)
        with torch.inference_mode():
            rows = self.prepared.modulation(self.c_noise.expand(self.batch), self.labels)
            turn = self_timing(lambda: self.prepared.run(self.x, rows), self.run.clock)
            given = statistics.median(turn() for _ in range(self.run.pairs))
        floor = floor_seconds(graph, self.batch, DTYPE.itemsize, rates)
        # A plan whose capture failed has none any more.
        captured = getattr(plan, "_capture", None) is not None
        return {"floor_s": floor, "flops": flops, "bytes": moved, "captured": captured, "rows_given_s": given}

    def reached(self, what: str, function: Callable[[], Tensor]) -> Tensor:
        """The function's result, once the device is done; says before what is about to run, so that a fault has a
        place."""
        print(f"    {what}", flush=True)
        result = function()
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def compare(self, name: str, floor_s: float) -> dict[str, Any]:
        """Ours over a baseline: both checked, then timed in turn."""
        match = checked("ours", self.ours(), self.expected)
        with baseline(name, self.half) as forward:

            def theirs() -> Tensor:
                return forward(self.x, self.c_noise, self.labels)

            skipped, start = skipped_graphs(), time.perf_counter()
            self.reached(f"first call of {name}", theirs)
            first_s = time.perf_counter() - start
            baseline_match = checked(name, self.reached(f"second call of {name}", theirs), self.expected)
            # The baseline may have taken memory that a graph of ours still uses.
            checked(f"ours after {name}", self.reached(f"ours after {name}", self.ours), self.expected)
            baseline_turn = self_timing(theirs, self.run.clock)
            result = paired(self.row, baseline_turn, self_timing(self.ours, self.run.clock), self.run.pairs)
            # Replayed in turn, each may have written what the other reads.
            checked(f"{name} after the turns", self.reached(f"{name} after the turns", theirs), self.expected)
            checked("ours after the turns", self.reached("ours after the turns", self.ours), self.expected)
            return {
                **asdict(result),
                "floor_share": floor_s / result.ours_s,
                "first_call_s": first_s,
                "graphs_skipped": skipped_graphs() - skipped,
                "error": match.error,
                "baseline_error": baseline_match.error,
                "error_bound": match.bound,
                "match": True,
            }


class Attempt:
    """A context in which figures are measured and kept under (row, name).

    A mismatch is kept in their place; what else may fail on a device is said. `good`: it came to figures.
    """

    def __init__(self, run: Run, row: str, name: str, what: str) -> None:
        self._run, self._row, self._name, self._what = run, row, name, what
        self.good = False

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.good = error is None
        if isinstance(error, MismatchError):
            print(f"{self._what}: no match, no time: {error}")
            self._run.keep(self._row, self._name, {"match": False, "reason": str(error)})
            return True
        if isinstance(error, RuntimeError):  # out of memory, or a compiler that gives up
            print(f"{self._what}: not measured:\n{''.join(traceback.format_exception(error))}", flush=True)
            return True
        return False


def measure_row(run: Run, row: str, rates: Ceilings) -> bool:
    """Measure, print and keep what belongs to a row. Whether all of it came to a figure."""
    print(f"{row}: float64 first", flush=True)
    with Attempt(run, row, "plan", "  plan") as planned:
        measured = Row(run, row)
        plan = measured.plan(rates)
        run.keep(row, "plan", plan)
        graphs = "" if plan["captured"] else ", without a CUDA graph"
        print(
            f"  floor {plan['floor_s'] * 1e3:.4g} ms, ours with rows given {plan['rows_given_s'] * 1e3:.4g} ms{graphs}"
        )
    if not planned.good:
        return False
    good = True
    for name in BASELINES:
        with Attempt(run, row, name, f"  {name}") as compared:
            entry = measured.compare(name, plan["floor_s"])
            print(f"  {name}: {entry['baseline_s'] * 1e3:.4g} ms, ours {entry['ours_s'] * 1e3:.4g} ms: ", end="")
            print(f"{entry['ratio']:.2f} ({entry['ratio_low']:.2f} … {entry['ratio_high']:.2f})", flush=True)
            if entry["graphs_skipped"]:
                print(f"  {name}: went without CUDA graphs {entry['graphs_skipped']} times")
            run.keep(row, name, entry)
        good &= compared.good
        release(run.device)
    return good


def release(device: torch.device) -> None:
    """Hand back the memory of what is not used any more."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(run: Run, arguments: Sequence[str] = ()) -> bool:
    """The rows that are named, by NETWORK or NETWORK:BATCH, or all."""
    rates = ceilings(run)
    good = True
    # cuDNN's own trials choose its algorithms, for all variants.
    with cudnn(benchmark=True):
        for row in selected_rows(list(arguments)):
            good &= measure_row(run, row, rates)
            release(run.device)
    return good


def describe(arguments: Sequence[str]) -> Iterator[str]:
    graphs: dict[str, Any] = {}
    for row in selected_rows(list(arguments)):
        name, batch = parse_row(row)
        if name not in graphs:
            graphs[name] = device_graph(name)
        graph = graphs[name]
        flops, moved = totals(graph, batch, DTYPE.itemsize)
        shape = f"{batch} × {graph.input.channels}×{graph.input.height}×{graph.input.width}"
        yield (
            f"{row}: {shape} bfloat16, {len(graph.operations)} operations, {flops / 1e12:.3g} TFLOP, {moved / 1e9:.3g} "
            f"GB; {-(-batch // _EXPECTED_CHUNK)} chunks in float64; ours with rows given; over {', '.join(BASELINES)} "
            f"(wanted of the last: {TARGETS.get(batch, 'no ratio')})"
        )
    yield f"compiled has the options {COMPILE_OPTIONS}"
