"""Few images on a device: convolutions whose sums are split, of `conv2d_split`, over cuDNN's in the same network.

Both are checked against float64. Timed are a whole forward, with modulation rows given as in sampling, one image from
its seed on, and each convolution by itself, replayed from a graph, once its bits are those of another run and a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from gpu_bits import differing
from gpu_cases import Source
from gpu_floor import device_graph
from gpu_networks import DTYPE, Attempt, Row, checked, release
from gpu_rows import SAMPLING_STEPS, SAMPLING_TARGETS_S, SPLIT_ROWS
from gpu_run import Run, cudnn, replayed, self_timing
from gpu_sampling import ERROR_BOUNDS, OVER_EAGER, Subject
from harness import paired
from rows import parse_row
from torch import Tensor

import edm_fast
from edm_fast.bench.names import named
from edm_fast.bench.turns import MismatchError
from edm_fast.networks.convolution import convolve
from edm_fast.ops.conv2d_split import PACK, conv2d_split, tiles
from edm_fast.plan.ir import Conv

CALLS = 50
# Images of a batch in which the first must have the bits that it has alone.
_TOGETHER = 3


class Shape(NamedTuple):
    """A convolution of a network, of one sample."""

    channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    padding: int


def shapes(name: str) -> list[Shape]:
    """The different convolutions of a network that conv2d_split takes as they are, largest first."""
    found = {
        Shape(source.channels, op.out.channels, source.height, source.width, op.kernel, op.padding)
        for op in device_graph(name).operations
        if isinstance(op, Conv)
        for source in op.sources
        if source.channels % PACK == 0
    }
    return sorted(found, key=lambda s: (-s.height * s.width, -s.channels * s.kernel**2, -s.out_channels))


def split(net: Any) -> Any:
    """The prepared network whose convolutions are ours."""
    return edm_fast.prepare(net, dtype=DTYPE, conv_algorithm="split")


def measure_network(run: Run, row: str) -> dict[str, Any]:
    """A forward by cuDNN over ours, both checked."""
    measured = Row(run, row)
    ours = split(measured.net)
    with torch.inference_mode():
        rows = ours.modulation(measured.c_noise.expand(measured.batch), measured.labels)

        def forward(prepared: Any) -> Callable[[], Tensor]:
            return lambda: prepared.run(measured.x, rows)

        # Of each its own: those of the library's plan have biases in them.
        theirs_rows = measured.prepared.modulation(measured.c_noise.expand(measured.batch), measured.labels)

        def theirs() -> Tensor:
            return measured.prepared.run(measured.x, theirs_rows)

        output = measured.reached("first call by split sums", forward(ours))
        match = checked("split", output, measured.expected)
        baseline_match = checked("cuDNN", measured.reached("first call by cuDNN", theirs), measured.expected)
        # For the record: attention is a library's, which may sum differently for each batch.
        repeats = differing([forward(ours)()], [output])
        splits = differing([ours.run(measured.x[:1], rows[:1])], [output[:1]])
        result = paired(row, self_timing(theirs, run.clock), self_timing(forward(ours), run.clock), run.pairs)
        checked("split after the turns", forward(ours)(), measured.expected)
    return {
        **asdict(result),
        "error": match.error,
        "baseline_error": baseline_match.error,
        "error_bound": match.bound,
        "repeats_differing": repeats,
        "splits_differing": splits,
        "match": True,
    }


def measure_sampling(run: Run, row: str, num_steps: int = SAMPLING_STEPS) -> dict[str, Any]:
    """From seeds to images by Heun's method: networks by cuDNN over ours, the images of both checked."""
    name, batch = parse_row(row)
    with cudnn(allow_tf32=False, benchmark=False):
        subject = Subject(run, name, batch, num_steps, 0.0)
    half = subject.denoiser(DTYPE)
    eager_error = subject.error(subject.reference(half, len(subject.expected)))
    bound = max(ERROR_BOUNDS["bfloat16"], OVER_EAGER * eager_error)
    nets = {"cuDNN": edm_fast.prepare(subject.net, dtype=DTYPE), "split": split(subject.net)}

    def errors(when: str = "") -> dict[str, float]:
        found = {what: subject.error(subject.sample(net)) for what, net in nets.items()}
        for what, error in found.items():
            if not error <= bound:
                raise MismatchError(f"{what} is off by {error:.2g} of the largest value{when}; {bound:.2g} is allowed")
        return found

    before = errors()
    turns = [self_timing(functools.partial(subject.sample, net), run.clock) for net in nets.values()]
    result = paired(row, *turns, run.pairs)
    errors(" after the turns")
    checks = {"error": before["split"], "baseline_error": before["cuDNN"], "error_bound": bound, "match": True}
    return {**asdict(result), **checks, "num_steps": num_steps}


def measure_shape(run: Run, shape: Shape) -> dict[str, Any]:
    """A single convolution of one sample by cuDNN over ours, both checked against float64."""
    source = Source(run.device, run.generator(run.device))
    images = source.images(_TOGETHER, shape.channels, shape.height, shape.width, DTYPE)
    x = images[:1]
    weight = source.images(shape.out_channels, shape.channels, shape.kernel, shape.kernel, DTYPE)
    weight = weight / (shape.channels * shape.kernel**2) ** 0.5
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=shape.padding)

    # As a plan has them: zeros once for all its convolutions.
    grown = 2 * shape.padding - shape.kernel + 1
    pixels = (shape.height + grown) * (shape.width + grown)
    arrived = torch.zeros([tiles(_TOGETHER, pixels, shape.out_channels)], dtype=torch.int32, device=run.device)

    def ours(images: Tensor = x) -> tuple[Tensor, ...]:
        options: Any = {"moments": True, "arrived": arrived, "backend": _backend(run)}
        return conv2d_split(images, weight, padding=shape.padding, **options)

    def theirs() -> Tensor:
        return convolve(x, weight, padding=shape.padding)

    with torch.inference_mode():
        match = checked("split", ours()[0], expected)
        together = ours(images)
        wrong = differing(ours(), ours()) + differing(ours(), [part[:1] for part in together])
        if wrong:
            raise MismatchError(f"split: {wrong} elements differ in a repeat or in a batch of {_TOGETHER}")
        checked("cuDNN", theirs(), expected)
        turns = [self_timing(replayed(call, CALLS, run.device), run.clock) for call in (theirs, ours)]
        result = paired("", *turns, run.pairs)
    times = {"baseline_s": result.baseline_s / CALLS, "ours_s": result.ours_s / CALLS}
    return {**asdict(result), **times, "error": match.error, "error_bound": match.bound, "match": True}


def _backend(run: Run) -> str | None:
    """The CPU has no kernel: there this file is tested with the reference."""
    return "reference" if run.device.type == "cpu" else None


def shape_name(shape: Shape) -> str:
    extent = named((1, shape.channels, shape.height, shape.width), DTYPE)
    return f"{shape.kernel}×{shape.kernel} {extent} to {shape.out_channels}"


def measure(run: Run, rows: Sequence[str] = ()) -> bool:
    """The rows that are named, or `SPLIT_ROWS`: check, time, print and keep. Whether all came to figures."""
    good = True
    with cudnn(benchmark=True):
        for row in rows or SPLIT_ROWS:
            good &= _attempt(run, row, "network", lambda row=row: measure_network(run, row))
            release(run.device)
            if row in SAMPLING_TARGETS_S:
                good &= _attempt(run, row, "sampling", lambda row=row: measure_sampling(run, row))
                release(run.device)
        for name in dict.fromkeys(parse_row(row)[0] for row in rows or SPLIT_ROWS):
            for shape in shapes(name):
                what = shape_name(shape)
                good &= _attempt(run, f"{name}:1", what, lambda shape=shape: measure_shape(run, shape))
    return good


def _attempt(run: Run, row: str, name: str, figures: Callable[[], dict[str, Any]]) -> bool:
    with Attempt(run, "split", f"{row}, {name}", f"{row}, {name}") as attempt:
        entry = figures()
        run.keep("split", f"{row}, {name}", entry)
        times = f"cuDNN {entry['baseline_s'] * 1e6:.4g} µs, split {entry['ours_s'] * 1e6:.4g} µs"
        ratio = f"{entry['ratio']:.2f} ({entry['ratio_low']:.2f} … {entry['ratio_high']:.2f})"
        print(f"{row}, {name}: {times}: {ratio}", flush=True)
    return attempt.good


def describe(rows: Sequence[str]) -> Iterator[str]:
    for row in rows or SPLIT_ROWS:
        yield f"a forward of {row} by split sums over one by cuDNN; for the record, bits of a repeat and of one image"
        if row in SAMPLING_TARGETS_S:
            wanted = f"at most {SAMPLING_TARGETS_S[row] * 1e3:g} ms wanted"
            yield f"sampling {row} in {SAMPLING_STEPS} steps by both, {wanted}"
    for name in dict.fromkeys(parse_row(row)[0] for row in rows or SPLIT_ROWS):
        count = len(shapes(name))
        yield f"each of {count} convolutions of {name}: bits in a batch of {_TOGETHER}; {CALLS} calls in a graph"
