"""Option types that several commands share."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click
import torch

from edm_fast.ops.backends import cuda_state, usable_device

# A list longer than this is a slip of the keyboard, and would fill memory before the first image.
_MAX_SEEDS = 10_000_000


class SeedList(click.ParamType):
    """'1,2,5-10' → [1, 2, 5, …, 10], without repetitions, in the order written."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        ranges: list[range] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part)
            if match is None:
                self.fail(f"{value!r} is not a list of integers and ranges such as 0,1,5-10", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f"{part.strip()!r} runs backwards", param, ctx)
            if last >= 2**64:
                self.fail(f"{last} does not fit in 64 bits", param, ctx)
            ranges.append(range(first, last + 1))
        if sum(seeds.stop - seeds.start for seeds in ranges) > _MAX_SEEDS:
            self.fail(f"more than {_MAX_SEEDS} seeds", param, ctx)
        return list(dict.fromkeys(seed for seeds in ranges for seed in seeds))


class Number(click.ParamType):
    """A float that is not NaN, between the given bounds."""

    name = "float"

    def __init__(self, low: float = -math.inf, low_open: bool = False, finite: bool = True) -> None:
        self.low, self.low_open, self.finite = low, low_open, finite

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number", param, ctx)
        if math.isnan(number) or (self.finite and math.isinf(number)):
            self.fail(f"{value!r} is not a {'finite ' if self.finite else ''}number", param, ctx)
        if number < self.low or (self.low_open and number == self.low):
            self.fail(f"{value!r} is not {'above' if self.low_open else 'at least'} {self.low:g}", param, ctx)
        return number


class Interval(click.ParamType):
    """'0.2,5' → (0.2, 5.0), 0 ≤ low < high."""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            low, high = map(float, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers such as 0.2,5", param, ctx)
        if not 0 <= low < high:
            self.fail(f"{value!r}: 0 <= low < high is needed", param, ctx)
        return low, high


class Shard(click.ParamType):
    """'1/4' → (1, 4)."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if match is None or int(match[1]) >= int(match[2]):
            self.fail(f"{value!r} is not i/n with 0 <= i < n", param, ctx)
        return int(match[1]), int(match[2])


class Device(click.ParamType):
    """'auto', 'cpu', 'cuda' or 'cuda:1'; auto is CUDA where this build and this machine have it."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> torch.device:
        if isinstance(value, torch.device):
            return value
        if value == "auto":
            return torch.device("cuda" if cuda_state()[0] else "cpu")
        try:
            usable_device("device", value)
            device = torch.device(value)  # without an index if none was asked for
        except (ValueError, RuntimeError) as error:
            self.fail(str(error).removeprefix("device: "), param, ctx)
        if device.type not in ("cpu", "cuda"):
            self.fail(f"{value!r} has no kernels here; they run on cpu and cuda", param, ctx)
        return device


class Folder(click.Path):
    """A folder that may not exist yet; not an empty name, which would be the current folder."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


# Of the commands that write a network.
weights_dtype = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the weights in the file.",
)
