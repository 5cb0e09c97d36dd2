"""What a plan consists of: images (activations), the operations on them, and the graph of a network.

All operations work on channels-last images [N, H, W, C] of one storage dtype; the number of samples N is not part of a
plan. Weights are named by the modules that own them, so that a plan can be packed again when they change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import nn

Direction = Literal[-1, 0, 1]
Algorithm = Literal["direct", "winograd2", "winograd2x4", "winograd4", "tiles"]


@dataclass(eq=False)
class Image:
    """An activation; two images are the same if they are one object."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def elements(self) -> int:
        """Per sample."""
        return self.pixels * self.channels


@dataclass(frozen=True)
class Columns:
    """Columns [start, start + width) of the modulation rows."""

    start: int
    width: int


@dataclass(frozen=True)
class Resampling:
    """2× resampling by a separable filter; `taps` sum to 1. Direction 1 is up, -1 down, 0 none."""

    direction: Direction = 0
    taps: tuple[float, ...] = ()
    padding: int = 0


@dataclass(eq=False)
class Conv:
    """out = (weight * sources + biases + residual) · scale; `module` is a Conv2d with 3×3 or 1×1 weights.

    `packed_qkv`: the output channels go from (head, channel, q|k|v) to q | k | v. `residual_up`: the residual has half
    the resolution, and each of its pixels counts four times.
    """

    module: Any
    sources: tuple[Image, ...]
    out: Image
    kernel: int
    padding: int
    biases: tuple[nn.Parameter, ...] = ()
    residual: Image | None = None
    residual_up: bool = False
    scale: float = 1.0
    packed_qkv: bool = False


@dataclass(eq=False)
class GroupNormSilu:
    """`edm_fast.ops.group_norm_silu` with the parameters of `module`; `scale` and `shift` come together.

    `addend` and `sum` come together too: then x = (source + addend) · sum_scale, of one source, is written to `sum`.
    """

    module: Any
    sources: tuple[Image, ...]
    out: Image
    silu: bool = True
    pre_bias: Columns | None = None
    scale: Columns | None = None
    shift: Columns | None = None
    resampling: Resampling = Resampling()
    plain: Image | None = None
    addend: Image | None = None
    sum: Image | None = None
    sum_scale: float = 1.0


@dataclass(eq=False)
class Resample:
    source: Image
    out: Image
    resampling: Resampling


@dataclass(eq=False)
class Residual:
    """out = (a + b) · scale."""

    a: Image
    b: Image
    out: Image
    scale: float


@dataclass(eq=False)
class AddBias:
    """out = source + a constant for each channel, which the executor holds."""

    source: Image
    out: Image


@dataclass(eq=False)
class Attention:
    """Self-attention over the pixels of qkv, whose channels are q | k | v."""

    qkv: Image
    out: Image
    heads: int


Operation: TypeAlias = Conv | GroupNormSilu | Resample | Residual | AddBias | Attention


@dataclass(eq=False)
class Graph:
    """A network for images of one size. Column blocks of `affines` make up a modulation row, in order."""

    input: Image
    output: Image
    operations: list[Operation] = field(default_factory=list)
    affines: list[Any] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Width of a modulation row."""
        return sum(affine.weight.shape[0] for affine in self.affines)


def reads(operation: Operation) -> list[Image]:
    """The images that an operation reads."""
    if isinstance(operation, Conv):
        return [*operation.sources, *([operation.residual] if operation.residual is not None else [])]
    if isinstance(operation, GroupNormSilu):
        return [*operation.sources, *([operation.addend] if operation.addend is not None else [])]
    if isinstance(operation, Resample | AddBias):
        return [operation.source]
    if isinstance(operation, Residual):
        return [operation.a, operation.b]
    return [operation.qkv]


def writes(operation: Operation) -> list[Image]:
    """The images that an operation writes."""
    if isinstance(operation, GroupNormSilu):
        return [image for image in (operation.out, operation.plain, operation.sum) if image is not None]
    return [operation.out]
