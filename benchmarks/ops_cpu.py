"""Single ops on the CPU: noise, the sampler step and the fused layers, each against eager PyTorch.

A layer's baseline runs in both memory layouts, and the faster one counts. Outputs are compared with a float64 result
before anything is timed. An op that this build does not have is named and skipped.

Run: python benchmarks/ops_cpu.py [--pairs 41]
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from harness import Result, compare, report, seconds
from torch import Tensor
from torch.nn import functional

import edm_fast
from edm_fast.ops.backends import extension
from edm_fast.ops.conv2d import ALGORITHMS
from edm_fast.ops.solver_step import DRAW, NET_INPUT_SCALE, REGISTERS, UPDATE, UPDATE_TERMS, solver_step
from edm_fast.ops.tensors import DTYPE_CODES
from edm_fast.plan.weights import factors, pack
from edm_fast.reference.randn import randn as reference_randn
from edm_fast.reference.solver_step import solver_step as reference_solver_step
from edm_fast.samplers.edm import edm_table

SOLVER_STEP_TARGET = 10.0
RANDN_TARGET = 5.0
_BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}
_SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Case:
    """Baselines by name, of which the fastest counts, and ours; `output` and `expected` must agree first.

    `most_pairs` bounds the pairs of a case that takes long, `bound` the error in place of the dtype's.
    """

    name: str
    baselines: dict[str, Callable[[], object]]
    ours: Callable[[], object]
    output: Callable[[], Tensor]
    expected: Callable[[], Tensor]
    dtype: torch.dtype
    target: float | None = None
    most_pairs: int = 1000
    bound: float | None = None


def run(case: Case, pairs: int) -> tuple[Result, dict[str, Any]]:
    """Compare outputs, choose the baseline, time. AssertionError if the outputs do not match."""
    expected = case.expected().double()
    error = float((case.output().double() - expected).abs().max() / expected.abs().max())
    bound = _BOUNDS[case.dtype] if case.bound is None else case.bound
    assert error <= bound, f"{case.name}: off by {error:.2g} of the largest value; {bound:g} is allowed"
    medians = {}
    for name, baseline in case.baselines.items():
        baseline()
        medians[name] = statistics.median(seconds(baseline) for _ in range(5))
    best = min(medians, key=lambda name: medians[name])
    extra = {"baseline": best, "error": error, "error_bound": bound, "target": case.target}
    return compare(case.name, case.baselines[best], case.ours, pairs), extra


def randn_cases() -> Iterator[Case]:
    for shape in ((1, 3, 32, 32), (64, 3, 32, 32), (64, 3, 64, 64)):
        for dtype, target in ((torch.float64, RANDN_TARGET), (torch.float32, None)):
            seeds = torch.arange(shape[0])

            def ours(shape=shape, dtype=dtype, seeds=seeds) -> Tensor:
                return edm_fast.randn(shape[1:], seeds, dtype=dtype)

            def baseline(shape=shape, dtype=dtype) -> Tensor:
                return torch.randn(shape, dtype=dtype)

            def expected(shape=shape, seeds=seeds) -> Tensor:
                return reference_randn(shape[1:], seeds, 0)

            name = f"randn {named(shape, dtype)}"
            yield Case(name, {"torch.randn": baseline}, ours, ours, expected, dtype, target)


def heun_rows(S_churn: float) -> Tensor:
    """The table's rows of one step in the middle of the default sampler, a predictor and a corrector."""
    table = edm_table(object(), num_steps=18, S_churn=S_churn)
    variance = table.sigma**2 + _SIGMA_DATA**2
    c_skip, c_out, c_in = _SIGMA_DATA**2 / variance, table.sigma * _SIGMA_DATA / variance**0.5, variance**-0.5
    return torch.from_numpy(table.rows(c_skip, c_out, c_in))[17:19].contiguous()


def solver_step_cases() -> Iterator[Case]:
    """Both rows of a Heun step in float64. The baseline draws its noise with torch.randn_like, where a row uses any."""
    for S_churn in (0.0, 40.0):
        rows = heun_rows(S_churn)
        update = rows[:, UPDATE:NET_INPUT_SCALE].reshape(len(rows), REGISTERS, UPDATE_TERMS)
        noisy = (update[:, :, -1] != 0).any(dim=1).tolist()
        for shape in ((1, 3, 32, 32), (64, 3, 32, 32), (64, 3, 64, 64)):
            yield solver_step_case(
                f"solver_step ×2 {named(shape, torch.float64)}, S_churn={S_churn:g}", shape, rows, noisy
            )


def solver_step_case(name: str, shape: tuple[int, ...], rows: Tensor, noisy: list[bool]) -> Case:
    seeds = torch.arange(shape[0])
    network_output = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def state() -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)]

    def ours(registers: list[Tensor], net_input: Tensor) -> None:
        for index in range(len(rows)):
            solver_step(registers, rows, index, model_output=network_output, seeds=seeds, net_input=net_input)

    def reference(registers: list[Tensor], net_input: Tensor, draw: Callable[[int], Tensor]) -> None:
        for index in range(len(rows)):
            noise = draw(index) if noisy[index] else None
            reference_solver_step(registers, rows[index], network_output, noise=noise, net_input=net_input)

    def our_noise(index: int) -> Tensor:
        return edm_fast.randn(shape[1:], seeds, int(rows[index, DRAW]), dtype=torch.float64)

    def result(step: Callable[[list[Tensor], Tensor], None]) -> Tensor:
        registers, net_input = state(), torch.empty(shape)
        step(registers, net_input)
        return torch.cat([*registers, net_input.double()])

    timed, timed_reference = state(), state()
    fast_input, plain_input = torch.empty(shape).to(memory_format=torch.channels_last), torch.empty(shape)
    return Case(
        name,
        {"reference": lambda: reference(timed_reference, plain_input, lambda _: torch.randn_like(timed_reference[0]))},
        lambda: ours(timed, fast_input),
        lambda: result(ours),
        lambda: result(lambda registers, net_input: reference(registers, net_input, our_noise)),
        torch.float64,
        SOLVER_STEP_TARGET,
    )


def op(name: str) -> Callable[..., Any]:
    """The op `edm_fast.ops.NAME`; LookupError if this build does not have it."""
    try:
        function = getattr(importlib.import_module(f"edm_fast.ops.{name}"), name)
    except (ImportError, AttributeError):
        raise LookupError(f"there is no edm_fast.ops.{name}") from None
    if not hasattr(extension().cpu, name):
        raise LookupError(f"edm_fast.ops.{name} has no CPU kernel in this build")
    return function


def layer_case(
    name: str,
    x: Tensor,
    baselines: dict[str, Callable[[Tensor], Tensor]],
    ours: Callable[[Tensor], Tensor],
    expected: Callable[[], Tensor],
) -> Case:
    """A layer that maps images to images: each baseline in both layouts, ours in channels-last."""
    last = x.contiguous(memory_format=torch.channels_last)
    by_name: dict[str, Callable[[], object]] = {}
    for label, baseline in baselines.items():
        for layout, tensor in (("channels_last", last), ("contiguous", x.contiguous())):
            by_name[f"{label}, {layout}"] = lambda baseline=baseline, tensor=tensor: baseline(tensor)
    return Case(name, by_name, lambda: ours(last), lambda: ours(last), expected, x.dtype)


def named(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    samples, *rest = shape
    return f"{samples} × {'×'.join(map(str, rest))} {str(dtype).removeprefix('torch.')}"


def group_norm_silu_cases() -> Iterator[Case]:
    """The second norm of a DDPM++ block: silu(norm(x + embedding))."""
    group_norm_silu = op("group_norm_silu")
    for shape in ((1, 256, 32, 32), (8, 256, 32, 32), (8, 256, 16, 16)):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape).to(dtype)
            weight, bias, row = torch.rand(256) + 0.5, torch.randn(256), torch.randn(shape[0], 256)

            def eager(x: Tensor, weight=weight, bias=bias, row=row) -> Tensor:
                weight, bias, row = (tensor.to(x.dtype) for tensor in (weight, bias, row))
                return functional.silu(functional.group_norm(x + row[:, :, None, None], 32, weight, bias, 1e-6))

            def ours(x: Tensor, weight=weight, bias=bias, row=row) -> Tensor:
                return group_norm_silu(x, weight, bias, 32, pre_bias=row, eps=1e-6)

            expected = lambda eager=eager, x=x: eager(x.double())  # noqa: E731
            yield layer_case(f"group_norm_silu {named(shape, dtype)}", x, {"eager": eager}, ours, expected)


def attention_cases() -> Iterator[Case]:
    """EDM's form of attention, with its weights in float32, and PyTorch's fused one."""
    attention = op("attention")
    for shape, heads in (((1, 256, 16, 16), 1), ((8, 256, 16, 16), 1), ((1, 576, 16, 16), 9)):
        for dtype in (torch.float32, torch.bfloat16):
            samples, channels, height, width = shape
            qkv = torch.randn(samples, 3 * channels, height, width).to(dtype)

            def parts(qkv: Tensor, shape=shape, heads=heads) -> tuple[Tensor, ...]:
                samples, channels, height, width = shape
                return qkv.reshape(samples * heads, channels // heads, 3, height * width).unbind(2)

            def eager(qkv: Tensor, parts=parts, shape=shape) -> Tensor:
                q, k, v = parts(qkv)
                accumulate = torch.promote_types(q.dtype, torch.float32)
                scores = torch.bmm(q.transpose(1, 2).to(accumulate), (k / math.sqrt(k.shape[1])).to(accumulate))
                return torch.bmm(v, scores.softmax(dim=2).to(v.dtype).transpose(1, 2)).reshape(shape)

            def fused(qkv: Tensor, parts=parts, shape=shape) -> Tensor:
                q, k, v = (part.transpose(1, 2)[None] for part in parts(qkv))
                attended = functional.scaled_dot_product_attention(q, k, v)[0]
                return attended.transpose(1, 2).reshape(shape)

            def ours(qkv: Tensor, heads=heads) -> Tensor:
                return attention(qkv, heads)

            name = f"attention {named(shape, dtype)}, {heads} head{'s' * (heads > 1)}"
            expected = lambda eager=eager, qkv=qkv: eager(qkv.double())  # noqa: E731
            yield layer_case(name, qkv, {"eager": eager, "fused": fused}, ours, expected)


def conv2d_cases() -> Iterator[Case]:
    """3×3 convolutions of DDPM++ with weights that are packed beforehand, as a prepared network has them."""
    op("conv2d")
    for shape in ((1, 256, 32, 32), (8, 256, 16, 16)):
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.randn(shape).to(dtype), (torch.randn(256, 256, 3, 3) / 48).to(dtype)
            bias = torch.randn(256).to(dtype)
            layouts = [weight, weight.contiguous(memory_format=torch.channels_last)]

            def eager(x: Tensor, layouts=layouts, bias=bias) -> Tensor:
                weight = layouts[x.is_contiguous(memory_format=torch.channels_last)]
                return functional.conv2d(x, weight, bias, padding=1)

            expected = lambda x=x, weight=weight, bias=bias: functional.conv2d(  # noqa: E731
                x.double(), weight.double(), bias.double(), padding=1
            )
            by_pairs = (False, True) if dtype == torch.bfloat16 and extension().cpu.multiplies_pairs() else (False,)
            for name, pairs in itertools.product(ALGORITHMS, by_pairs):
                ours = packed_conv2d(weight.float(), bias.float(), name, pairs)
                case = f"conv2d {name}{' by pairs' * pairs} {named(shape, dtype)}"
                yield layer_case(case, x, {"eager": eager}, ours, expected)


def packed_conv2d(weight: Tensor, bias: Tensor, algorithm: str, pairs: bool) -> Callable[[Tensor], Tensor]:
    """A convolution by the CPU kernel, packed once; its argument is channels-last."""
    cpu, threads, code = extension().cpu, torch.get_num_threads(), ALGORITHMS[algorithm]
    out_channels, _, kernel, _ = weight.shape
    packed = pack(weight, algorithm, pairs)

    def run(x: Tensor) -> Tensor:
        samples, channels, height, width = x.shape
        out = torch.empty_like(x)
        size, sources, none = (samples, height, width), (channels, 0), (0, 0)
        layer = (size, sources, out_channels, kernel, kernel // 2, code, factors(pairs), DTYPE_CODES[x.dtype])
        inputs = (x.data_ptr(), 0, packed.data_ptr(), bias.data_ptr(), none, 0, 0, 1.0)
        cpu.conv2d(*layer, *inputs, out.data_ptr(), threads)
        return out

    return run


GROUPS = {
    "randn": randn_cases,
    "solver_step": solver_step_cases,
    "group_norm_silu": group_norm_silu_cases,
    "attention": attention_cases,
    "conv2d": conv2d_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=41, help="pairs per case (default: %(default)s)")
    options = parser.parse_args()
    results: list[Result] = []
    extra: dict[str, dict[str, Any]] = {}
    for name, cases in GROUPS.items():
        try:
            for case in cases():
                result, extra[case.name] = run(case, options.pairs)
                results.append(result)
        except LookupError as error:
            print(f"skipped {name}: {error}")
    report("Single ops on the CPU", results, "ops_cpu", extra)


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        main()
