"""Sampling on a device: images against the reference sampler with the same noise, and the time of a whole run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import variants
from gpu_cases import Source
from gpu_networks import DTYPE, Attempt, Forward, baseline, eager, release
from gpu_rows import BASELINES, PRECISIONS, SAMPLING_ROWS, SAMPLING_STEPS, SAMPLING_TARGETS_S
from gpu_run import Run, cudnn, self_timing
from harness import paired
from rows import parse_row
from torch import Tensor, nn

import edm_fast
from edm_fast.bench.turns import MismatchError, relative_error
from edm_fast.reference import preconditioning
from edm_fast.reference.samplers import edm_sampler

# An image may err so much, or twice as much as the reference sampler with an eager network in the same precision.
ERROR_BOUNDS = {"float32": 1e-3, "float32 with TF32": 1e-2, "bfloat16": 0.1}
OVER_EAGER = 2.0

# Images of a timed batch that are compared with float64.
_COMPARED = 4


class Sampled(NamedTuple):
    images: int
    num_steps: int


# By network; churn raises each step's noise by a tenth.
SAMPLED = {"digits": Sampled(10, 18), "ddpmpp": Sampled(4, 4), "ncsnpp": Sampled(4, 4), "adm": Sampled(2, 3)}


class Denoiser:
    """D(x; σ) for the reference samplers, of a preconditioned network whose F runs in `dtype`, channels-last.

    As in the network's own forward, σ goes through float32.
    """

    def __init__(self, net: Any, forward: Forward, dtype: torch.dtype) -> None:
        self._net, self._forward, self._dtype = net, forward, dtype
        self.sigma_min, self.sigma_max, self.round_sigma = net.sigma_min, net.sigma_max, net.round_sigma

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = self._net.coefficients(sigma.float().reshape(-1, 1, 1, 1))
        x_in = (c_in * x).to(self._dtype).contiguous(memory_format=torch.channels_last)
        c_noise = c_noise.flatten()
        if self._dtype == torch.float64:
            c_noise, labels = c_noise.double(), labels.double()
        return c_skip * x + c_out * self._forward(x_in, c_noise, labels)


class Subject:
    """A network, seeds and classes, and the reference sampler's images in float64 with the noise of these seeds."""

    def __init__(self, run: Run, name: str, count: int, num_steps: int, S_churn: float) -> None:
        self.net = variants.build_network(name).requires_grad_(False).to(run.device)
        source = Source(torch.device("cpu"), run.generator())
        self.seeds = source.seeds(count)
        self.classes = self.seeds % self.net.label_dim
        self.labels = nn.functional.one_hot(self.classes, self.net.label_dim).float().to(run.device)
        self.options = {"num_steps": num_steps, "S_churn": S_churn}
        self.device = run.device
        self.expected = self.reference(self.denoiser(torch.float64), min(count, _COMPARED) if S_churn == 0 else count)

    def denoiser(self, dtype: torch.dtype) -> Denoiser:
        """Of the network in eager PyTorch: all of it in float64 or float32, or cast as baselines are."""
        plain = plain_network(self.net)
        if dtype in (torch.float64, torch.float32):
            plain.model.to(dtype)
        else:
            plain = variants.cast_images(plain, dtype, torch.channels_last)
        return Denoiser(plain, eager(plain), dtype)

    @torch.no_grad()
    def reference(self, denoiser: Denoiser, count: int | None = None) -> Tensor:
        """float64 images of the first `count` seeds; noise is made by the CPU."""
        seeds, draws = self.seeds[:count], itertools.count(1)

        def noise(draw: int) -> Tensor:
            shape = (self.net.img_channels, self.net.img_resolution, self.net.img_resolution)
            return edm_fast.randn(shape, seeds, draw, dtype=torch.float64).to(self.device)

        return edm_sampler(
            denoiser, noise(0), self.labels[:count], randn_like=lambda _: noise(next(draws)), **self.options
        )

    def sample(self, net: Any, batch: int | None = None) -> Tensor:
        """Ours, of a network or a prepared one."""
        return edm_fast.sample(net, self.seeds, self.classes, batch=batch or len(self.seeds), **self.options)

    def error(self, images: Tensor) -> float:
        return relative_error(images[: len(self.expected)].double(), self.expected)


def plain_network(net: Any) -> Any:
    """The reference network with the same weights."""
    if type(net).__module__ == preconditioning.__name__:
        return copy.deepcopy(net)
    plain = getattr(preconditioning, type(net).__name__)(**net.init_kwargs).eval().requires_grad_(False)
    plain.load_state_dict(net.state_dict())
    return plain.to(next(net.parameters()).device)


def images_of(subject: Subject, precision: str) -> dict[str, Any]:
    """The errors of ours and of the reference sampler with an eager network, in one precision."""
    dtype = DTYPE if precision == "bfloat16" else torch.float32
    with cudnn(allow_tf32=precision != "float32"):
        # The network alone is prepared by `sample`; others are prepared anew, since plans keep what they chose.
        net = subject.net if precision == "float32" else edm_fast.prepare(subject.net, dtype=dtype)
        error = subject.error(subject.sample(net))
        eager_error = subject.error(subject.reference(subject.denoiser(dtype)))
    bound = max(ERROR_BOUNDS[precision], OVER_EAGER * eager_error)
    return {"error": error, "eager_error": eager_error, "error_bound": bound, "good": error <= bound}


def check(run: Run, names: Sequence[str] = ()) -> bool:
    """Sample every network, or those that are named, in every precision; print and keep. Whether all errors will do."""
    good = True
    for name in names or SAMPLED:
        count, num_steps = SAMPLED[name]
        with cudnn(allow_tf32=False):
            subject = Subject(run, name, count, num_steps, num_steps / 10)
        for precision in PRECISIONS:
            entry = {**images_of(subject, precision), "images": count, "num_steps": num_steps}
            print(
                f"{name}, {precision}: {count} images, {num_steps} steps: off by {entry['error']:.2g}, eager by "
                f"{entry['eager_error']:.2g}, {entry['error_bound']:.2g} allowed: {'good' if entry['good'] else 'BAD'}",
                flush=True,
            )
            run.keep("images", f"{name}, {precision}", entry)
            good &= entry["good"]
        del subject
        release(run.device)
    return good


def describe(names: Sequence[str]) -> Iterator[str]:
    for name in names or SAMPLED:
        count, num_steps = SAMPLED[name]
        bounds = ", ".join(f"{precision} (at most {ERROR_BOUNDS[precision]:g})" for precision in PRECISIONS)
        yield (
            f"{name}: {count} images, {num_steps} steps of Heun's method with S_churn={num_steps / 10:g}, against the "
            f"reference sampler in float64 with the same noise: {bounds}, or {OVER_EAGER:g} × eager's error"
        )


def measure_row(run: Run, row: str, num_steps: int = SAMPLING_STEPS) -> bool:
    """Time sampling of a batch, from seeds to images, against the reference sampler with each baseline network."""
    name, batch = parse_row(row)
    with cudnn(allow_tf32=False, benchmark=False):
        subject = Subject(run, name, batch, num_steps, 0.0)
    prepared = edm_fast.prepare(subject.net, dtype=DTYPE)
    half = variants.cast_images(plain_network(subject.net), DTYPE, torch.channels_last)
    eager_error = subject.error(subject.reference(Denoiser(half, eager(half), DTYPE), len(subject.expected)))
    bound = max(ERROR_BOUNDS["bfloat16"], OVER_EAGER * eager_error)
    good = True
    for kind in BASELINES:
        with Attempt(run, "sampling", f"{row}, {kind}", f"{row}, {kind}") as attempt:
            with baseline(kind, half) as forward:
                entry = _compare(run, row, subject, prepared, Denoiser(half, forward, DTYPE), bound)
            run.keep("sampling", f"{row}, {kind}", {**entry, "num_steps": num_steps})
            print(f"{row}, {num_steps} steps: {kind} {entry['baseline_s'] * 1e3:.4g} ms, ours ", end="")
            print(f"{entry['ours_s'] * 1e3:.4g} ms: {entry['ratio']:.2f}", flush=True)
        good &= attempt.good
        release(run.device)
    return good


def _compare(run: Run, row: str, subject: Subject, prepared: Any, denoiser: Denoiser, bound: float) -> dict[str, Any]:
    shape = (subject.net.img_channels, subject.net.img_resolution, subject.net.img_resolution)
    seeds = subject.seeds.to(run.device)

    def ours() -> Tensor:
        return subject.sample(prepared)

    @torch.no_grad()
    def theirs() -> Tensor:
        latents = edm_fast.randn(shape, seeds, 0, dtype=torch.float64, device=run.device)
        return edm_sampler(denoiser, latents, subject.labels, **subject.options)

    def errors(when: str = "") -> dict[str, float]:
        found = {"error": subject.error(ours()), "baseline_error": subject.error(theirs())}
        for what, error in found.items():
            if not error <= bound:
                raise MismatchError(f"{what} is {error:.2g} of the largest value{when}; {bound:.2g} is allowed")
        return found

    before = errors()
    result = paired(row, self_timing(theirs, run.clock), self_timing(ours, run.clock), run.pairs)
    errors(" after the turns")
    return {**asdict(result), **before, "error_bound": bound, "match": True}


def measure(run: Run, rows: Sequence[str] = ()) -> bool:
    """The rows that are named, or those with a target and their like."""
    good = True
    with cudnn(benchmark=True):
        for row in rows or SAMPLING_ROWS:
            good &= measure_row(run, row)
            release(run.device)
    return good


def describe_times(rows: Sequence[str]) -> Iterator[str]:
    for row in rows or SAMPLING_ROWS:
        target = SAMPLING_TARGETS_S.get(row)
        wanted = "" if target is None else f"; wanted: at most {target * 1e3:g} ms"
        yield (
            f"{row}: {SAMPLING_STEPS} steps of Heun's method in bfloat16, {_COMPARED} images or fewer against float64; "
            f"over the reference sampler with {' and '.join(BASELINES)} networks{wanted}"
        )
