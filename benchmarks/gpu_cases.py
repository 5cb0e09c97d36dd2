"""Calls of this library's ops on a device: their inputs, and the bytes that they must move.

Shapes are those of the networks. Full sizes are far beyond any L2 cache; small ones are for checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_rows import OP_TARGETS
from torch import Tensor

import edm_fast
from edm_fast.bench.names import named
from edm_fast.bench.noise import heun_rows, step_bytes
from edm_fast.ops.conv2d_split import TILE, conv2d_split
from edm_fast.ops.denoising_loss import denoising_loss
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.noise_augment import LevelRule, noise_augment
from edm_fast.ops.resample import resample
from edm_fast.ops.residual import residual
from edm_fast.ops.solver_step import solver_step

TWO_TAPS, FOUR_TAPS = (1, 1), (1, 3, 3, 1)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a call: those of `images` have a sample at each index, those of `shared` serve all samples."""

    images: dict[str, Tensor]
    shared: dict[str, Tensor]

    def each(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(*({name: function(t) for name, t in part.items()} for part in (self.images, self.shared)))

    def part(self, samples: slice) -> Inputs:
        """Views of some samples."""
        return Inputs({name: tensor[samples] for name, tensor in self.images.items()}, self.shared)

    def copy(self) -> Inputs:
        return self.each(torch.clone)

    def upcast(self) -> Inputs:
        """Floating-point numbers in float64."""
        return self.each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


class Source:
    """Random tensors on a device."""

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        self.device, self._generator = device, generator

    def images(self, samples: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Channels-last."""
        return self.rows(samples, height, width, channels).to(dtype).permute(0, 3, 1, 2)

    def rows(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device, generator=self._generator)

    def seeds(self, samples: int) -> Tensor:
        largest = 2**63 - 1
        return torch.randint(-largest, largest, [samples], device=self.device, generator=self._generator)


@dataclass(frozen=True)
class Case:
    """A call `call(inputs, backend)`, which returns what it wrote, on `samples` samples.

    Attributes:
        bytes_per_sample: every tensor that a sample needs read once, and every one that it changes written once.
        exact: the reference gives the same bits; otherwise it is compared with in float64.
        target: the share of the copy bandwidth that is wanted.
    """

    op: str
    name: str
    samples: int
    dtype: torch.dtype
    bytes_per_sample: int
    make: Callable[[int, Source], Inputs]
    call: Callable[[Inputs, str | None], tuple[Tensor, ...]]
    exact: bool = False
    target: float | None = None

    @property
    def bytes(self) -> int:
        return self.samples * self.bytes_per_sample


def norm_case(
    what: str,
    samples: int,
    channels: int,
    extent: int,
    *,
    second: int = 0,
    addend: bool = False,
    pre_bias: bool = False,
    modulation: bool = False,
    moments: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    target: float | None = OP_TARGETS["group_norm_silu"],
    **options: Any,
) -> Case:
    """group_norm_silu on square images; `second` channels come from x2, and `options` are the op's."""
    total = channels + second
    groups = min(32, total // 4)
    options = {**options, **({"sum_scale": math.sqrt(0.5)} if addend else {})}
    out_pixels = extent**2 * 4 if options.get("up") else extent**2 // 4 if options.get("down") else extent**2
    images = extent**2 * (total + 2 * channels * addend) + out_pixels * total * (1 + options.get("plain", False))
    rows = total * (pre_bias + 2 * modulation + 2 * moments)

    def make(samples: int, source: Source) -> Inputs:
        images = {"x": source.images(samples, channels, extent, extent, dtype)}
        if second:
            images["x2"] = source.images(samples, second, extent, extent, dtype)
        if addend:
            images["addend"] = source.images(samples, channels, extent, extent, dtype)
        for name in ("pre_bias",) * pre_bias + ("scale", "shift") * modulation:
            images[name] = source.rows(samples, total)
        if moments:
            images["moments"] = residual(images["x"], moments=True)[1]
        return Inputs(images, {"weight": source.rows(total) + 1, "bias": source.rows(total)})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        images = dict(inputs.images)
        taken = images.pop("moments", None)
        given = None if taken is None or backend == "reference" else [taken]
        result = group_norm_silu(
            **images, **inputs.shared, num_groups=groups, moments=given, backend=backend, **options
        )
        return result if isinstance(result, tuple) else (result,)

    name = f"group_norm_silu {named((samples, total, extent, extent), dtype)}, {what}"
    moved = dtype.itemsize * images + 4 * rows
    return Case("group_norm_silu", name, samples, dtype, moved, make, call, target=target)


def resample_case(what: str, samples: int, channels: int, extent: int, up: bool, taps: tuple[float, ...]) -> Case:
    dtype = torch.bfloat16

    def make(samples: int, source: Source) -> Inputs:
        return Inputs({"x": source.images(samples, channels, extent, extent, dtype)}, {})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        return (resample(inputs.images["x"], up=up, down=not up, taps=taps, backend=backend),)

    moved = dtype.itemsize * channels * (extent**2 + (extent**2 * 4 if up else extent**2 // 4))
    name = f"resample {named((samples, channels, extent, extent), dtype)}, {what}"
    return Case("resample", name, samples, dtype, moved, make, call, target=OP_TARGETS["resample"])


def residual_case(what: str, samples: int, channels: int, extent: int, moments: bool) -> Case:
    dtype = torch.bfloat16

    def make(samples: int, source: Source) -> Inputs:
        a, b = (source.images(samples, channels, extent, extent, dtype) for _ in range(2))
        return Inputs({"a": a, "b": b}, {"bias": source.rows(channels)})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        result: Any = residual(**inputs.images, **inputs.shared, scale=math.sqrt(0.5), moments=moments, backend=backend)
        return result if moments else (result,)

    moved = dtype.itemsize * 3 * channels * extent**2 + 8 * channels * moments
    name = f"residual {named((samples, channels, extent, extent), dtype)}, {what}"
    return Case("residual", name, samples, dtype, moved, make, call)


def step_case(what: str, samples: int, extent: int, S_churn: float) -> Case:
    """Both rows of a step of Heun's method between forwards of a bfloat16 network, on a float64 state."""
    state, image, elements = torch.float64, torch.bfloat16, 3 * extent**2
    rows = heun_rows(S_churn)

    def make(samples: int, source: Source) -> Inputs:
        images = {f"r{i}": source.rows(samples, 3, extent, extent, dtype=state) for i in range(2)}
        images["model_output"] = source.images(samples, 3, extent, extent, image)
        images["net_input"] = torch.zeros_like(images["model_output"])
        return Inputs({**images, "seeds": source.seeds(samples)}, {"table": rows.to(source.device)})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        images = dict(inputs.images)
        registers = [images.pop("r0"), images.pop("r1")]
        for row in range(len(rows)):
            solver_step(registers, row=row, **images, **inputs.shared, backend=backend)
        return (*registers, images["net_input"])

    moved = sum(step_bytes(row, elements * state.itemsize, elements * image.itemsize) for row in rows)
    name = f"solver_step ×2 {named((samples, 3, extent, extent), state)}, {what}"
    target = OP_TARGETS["solver_step"]
    return Case("solver_step", name, samples, state, moved, make, call, exact=True, target=target)


def noise_case(samples: int, extent: int, dtype: torch.dtype) -> Case:
    def make(samples: int, source: Source) -> Inputs:
        return Inputs({"seeds": source.seeds(samples)}, {})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        seeds = inputs.images["seeds"]
        return (edm_fast.randn((3, extent, extent), seeds, 3, dtype=dtype, device=seeds.device, backend=backend),)

    name = f"randn {named((samples, 3, extent, extent), dtype)}"
    return Case("randn", name, samples, dtype, 3 * extent**2 * dtype.itemsize + 8, make, call, exact=True)


TRAINING = LevelRule("log_normal", -1.2, 1.2, preconditioning="edm", sigma_data=0.5, weight_sigma_data=0.5)


def noise_augment_case(samples: int, extent: int) -> Case:
    """A bfloat16 network's input from float32 images."""
    dtype = torch.bfloat16

    def make(samples: int, source: Source) -> Inputs:
        return Inputs({"images": source.rows(samples, 3, extent, extent), "seeds": source.seeds(samples)}, {})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        options: Any = {"dtype": dtype, "memory_format": torch.channels_last, "backend": backend}
        return tuple(noise_augment(rule=TRAINING, **inputs.images, **options))

    name = f"noise_augment {named((samples, 3, extent, extent), dtype)}"
    return Case("noise_augment", name, samples, dtype, 3 * extent**2 * (4 + dtype.itemsize) + 36, make, call)


def denoising_loss_case(samples: int, extent: int) -> Case:
    dtype = torch.bfloat16

    def make(samples: int, source: Source) -> Inputs:
        images = {"images": source.rows(samples, 3, extent, extent), "seeds": source.seeds(samples)}
        images["model_output"] = source.images(samples, 3, extent, extent, dtype)
        images["rows"] = noise_augment(images["images"], TRAINING, images["seeds"]).rows
        return Inputs(images, {})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        images = {**inputs.images, "rows": inputs.images["rows"].to(torch.float32)}
        return (denoising_loss(**images, backend=backend),)

    name = f"denoising_loss {named((samples, 3, extent, extent), dtype)}"
    return Case("denoising_loss", name, samples, dtype, 3 * extent**2 * (4 + dtype.itemsize) + 40, make, call)


def split_case(samples: int, channels: int, out_channels: int, extent: int, kernel: int) -> Case:
    """A convolution by split sums, with a residual and moments."""
    dtype = torch.bfloat16

    def make(samples: int, source: Source) -> Inputs:
        images = {"x": source.images(samples, channels, extent, extent, dtype)}
        images["residual"] = source.images(samples, out_channels, extent, extent, dtype)
        weight = source.images(out_channels, channels, kernel, kernel, dtype) / (channels * kernel**2) ** 0.5
        return Inputs(images, {"weight": weight, "bias": source.rows(out_channels)})

    def call(inputs: Inputs, backend: str | None) -> tuple[Tensor, ...]:
        # The CPU has no kernel; there the reference stands in for it.
        chosen = backend or (None if inputs.images["x"].is_cuda else "reference")
        return tuple(conv2d_split(**inputs.images, **inputs.shared, scale=0.75, moments=True, backend=chosen))

    name = f"conv2d_split {kernel}×{kernel} {named((samples, channels, extent, extent), dtype)} to {out_channels}"
    moments = -(-(extent**2) // TILE) * out_channels * 2 * 4
    moved = dtype.itemsize * extent**2 * (channels + 2 * out_channels) + moments
    return Case("conv2d_split", name, samples, dtype, moved, make, call)


def cases(few: int | None = None) -> list[Case]:
    """All cases, at sizes beyond the L2 cache, or of `few` small samples, which is all that a split sum is for.

    Even the small images of the norm in two kernels are too large for the one that keeps them in shared memory.
    """

    def sized(samples: int, extent: int, least: int = 8) -> Any:
        return {"samples": samples, "extent": extent} if few is None else {"samples": few, "extent": least}

    def norm(what: str, samples: int, channels: int, extent: int, least: int = 8, **options: Any) -> Case:
        return norm_case(what, channels=channels, **sized(samples, extent, least), **options)

    small = few is not None
    split = [split_case(few, *shape) for shape in ((64, 72, 8, 3), (328, 24, 9, 3), (256, 64, 4, 1))] if small else []
    return [
        *split,
        norm("embedding", 512, 256, 32, pre_bias=True),
        norm("embedding, float32", 256, 256, 32, pre_bias=True, dtype=torch.float32),
        norm("scale and shift", 256, 192, 64, modulation=True),
        norm("scale and shift", 4096, 768, 8, modulation=True),
        norm("without SiLU", 2048, 256, 16, silu=False),
        norm("two sources, concatenation kept", 256, 256, 32, second=256, plain=True),
        norm("residual sum", 512, 256, 32, addend=True),
        norm("down by 2 taps, skip too", 512, 256, 32, down=True, taps=TWO_TAPS, plain=True),
        norm("up by 2 taps, skip too", 512, 256, 16, up=True, taps=TWO_TAPS, plain=True),
        norm("down by 4 taps, skip too", 512, 256, 32, down=True, taps=FOUR_TAPS, plain=True),
        norm("up by 4 taps, skip too", 512, 256, 16, up=True, taps=FOUR_TAPS, plain=True),
        norm("moments given", 512, 256, 32, moments=True, pre_bias=True),
        norm("in two kernels", 48, 64, 256, least=128, pre_bias=True, target=None),
        resample_case("down by 2 taps", channels=256, **sized(1024, 32), up=False, taps=TWO_TAPS),
        resample_case("up by 2 taps", channels=256, **sized(1024, 16), up=True, taps=TWO_TAPS),
        resample_case("down by 4 taps", channels=256, **sized(1024, 32), up=False, taps=FOUR_TAPS),
        resample_case("up by 4 taps", channels=256, **sized(1024, 16), up=True, taps=FOUR_TAPS),
        residual_case("sum and bias", channels=256, **sized(512, 32), moments=False),
        residual_case("sum, bias and moments", channels=256, **sized(512, 32), moments=True),
        step_case("S_churn=0", **sized(2048, 64), S_churn=0.0),
        step_case("S_churn=40", **sized(2048, 64), S_churn=40.0),
        noise_case(**sized(8192, 64), dtype=torch.float32),
        noise_case(**sized(4096, 64), dtype=torch.float64),
        noise_augment_case(**sized(4096, 64)),
        denoising_loss_case(**sized(4096, 64)),
    ]
