"""The noisy input of a training step, with the noise level of every sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.randn import as_word
from edm_fast.ops.tensors import (
    ABSENT,
    View,
    address,
    check_device,
    check_float,
    check_shape,
    image_view,
    kernel_shape,
    seed_tensor,
    viewable,
)

# The codes of csrc/include/edm_fast/noise_level.h.
SOURCES = {"given": 0, "rows": 1, "log_normal": 2, "log_uniform": 3, "uniform": 4, "vp": 5}
PRECONDITIONINGS = {"denoiser": 0, "edm": 1, "vp": 2, "ve": 3}
# Columns of the rows.
SIGMA, C_IN, C_NOISE, WEIGHT, OF_IMAGE, OF_NOISE, C_OUT = range(7)
ROW_SIZE = 7


class LevelRule(NamedTuple):
    """Where noise levels come from, and which numbers go with them.

        source        σ
        log_normal    exp(a + b·z), z ~ N(0, 1)
        log_uniform   exp(a + b·u), u ~ U(0, 1)
        uniform       a + b·u
        vp            √(exp(½a·t² + b·t) - 1), t = 1 + u·(c - 1)
        given         the caller's
        rows          the caller's, with all other numbers

    `preconditioning` says what the network's output F means: "edm" (with `sigma_data`), "vp" (with `beta_d`,
    `beta_min` and `levels`, the M of its noise label), "ve", or "denoiser" for a network that gives D(x; σ) itself.
    The loss's weight is (σ² + s²)/(σ·s)² with s = `weight_sigma_data`, or 1/σ² if that is 0.
    """

    source: str = "given"
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    preconditioning: str = "denoiser"
    sigma_data: float = 0.0
    beta_d: float = 0.0
    beta_min: float = 0.0
    levels: float = 0.0
    weight_sigma_data: float = 0.0

    def numbers(self) -> list[float]:
        """As the kernels have it; ValueError for a name that is not known."""
        for name, known in (("source", SOURCES), ("preconditioning", PRECONDITIONINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; it is one of {', '.join(known)}")
        source, a, b, c, preconditioning, *others = self
        return [*map(float, (SOURCES[source], a, b, c, PRECONDITIONINGS[preconditioning], *others))]


class NoisyBatch(NamedTuple):
    """`net_input` c_in·(y + σ·n), like the images in shape, and the rows float32 [N, 7] that `denoising_loss` takes."""

    net_input: torch.Tensor
    rows: torch.Tensor

    @property
    def sigma(self) -> torch.Tensor:
        """[N]"""
        return self.rows.select(1, SIGMA)

    @property
    def c_noise(self) -> torch.Tensor:
        """[N]"""
        return self.rows.select(1, C_NOISE)

    @property
    def weight(self) -> torch.Tensor:
        """[N]"""
        return self.rows.select(1, WEIGHT)


def noise_augment(
    images: torch.Tensor,
    rule: LevelRule,
    seeds: int | Iterable[int] | torch.Tensor | None = None,
    draw: int = 0,
    *,
    sigma: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str | None = None,
) -> NoisyBatch:
    """c_in·(y + σ·n) in one pass over the images, and per sample σ, c_noise, the loss's weight and what it needs more.

    n is standard normal, a function of (seed, draw, element) in a family of streams of its own; σ is a function of
    (seed, draw). Neither depends on the rest of the batch, on the device or on the layout.

    Args:
        images: y [N, C, H, W] or [N, …], any float dtype; read as float32. No gradient flows to it.
        rule: the distribution of σ, the preconditioning and the weight.
        seeds: N integers of 64 bits; needed unless σ and noise are both given.
        draw: which draw of the seeds' streams, 0 … 2³²-1.
        sigma: σ [N], float32; goes with the source "given".
        rows: float32 [N, 7]; goes with the source "rows".
        noise: n, like the images in shape, any float dtype; None draws it.
        dtype, memory_format: of net_input.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    numbers = rule.numbers()
    draw = as_word("draw", draw)
    check_float("images", images.dtype)
    check_float("dtype", dtype)
    if noise is not None:
        check_float("noise", noise.dtype)
    images = viewable(images.detach())
    if images.dim() < 2:
        raise ValueError(f"images: shape is {tuple(images.shape)}; it must be [N, C, H, W] or [N, …]")
    samples, device = images.shape[0], images.device
    if memory_format == torch.channels_last and images.dim() != 4:
        raise ValueError(f"memory_format: channels_last needs images [N, C, H, W]; theirs is {tuple(images.shape)}")
    for name, tensor, source in (("sigma", sigma, "given"), ("rows", rows, "rows")):
        if (tensor is not None) != (rule.source == source):
            raise ValueError(
                f"{name}: it goes with the source {source!r} and with no other; here it is {rule.source!r}"
            )
    if sigma is not None:
        sigma = sigma.detach().to(torch.float32).contiguous()
    made = torch.empty([samples, ROW_SIZE], dtype=torch.float32, device=device)
    if rows is not None:
        check_shape("rows", rows, made.shape)
        made.copy_(rows)
    keys = None if seeds is None else seed_tensor(seeds, device).contiguous()
    noise = None if noise is None else viewable(noise.detach())
    net_input = torch.empty(images.shape, dtype=dtype, device=device, memory_format=memory_format)
    arguments = (images, numbers, draw, keys, sigma, noise, made, net_input)
    chosen = backends.choose(backend, device)
    if chosen == "reference":
        from edm_fast.reference import noise_augment as reference

        _check(*arguments)
        if rule.source != "rows":
            made.copy_(reference.level_rows(rule, _sigma(rule, keys, draw, sigma)))
        net_input.copy_(reference.noise_augment(images.to(torch.float32), made, keys, draw, noise))
    elif backend is None:
        torch.ops.edm_fast.noise_augment_(*arguments)
    else:
        _run(chosen, *arguments)
    return NoisyBatch(net_input, made)


def _sigma(rule: LevelRule, keys: torch.Tensor | None, draw: int, sigma: torch.Tensor | None) -> torch.Tensor:
    from edm_fast.reference.noise_augment import drawn_sigma

    if sigma is not None:
        return sigma
    assert keys is not None
    return drawn_sigma(rule, keys, draw)


def check_noise_source(
    images: torch.Tensor, seeds: torch.Tensor | None, noise: torch.Tensor | None, needed: bool = True
) -> None:
    """Errors for seeds and noise that do not go with the images, and where something is drawn without seeds."""
    if seeds is not None:
        check_device("seeds", seeds, images.device)
        if seeds.dtype != torch.int64 or tuple(seeds.shape) != (images.shape[0],) or not seeds.is_contiguous():
            raise ValueError(f"seeds: got {seeds.dtype} {tuple(seeds.shape)}; int64 [{images.shape[0]}] is needed")
    elif needed:
        raise ValueError("seeds: they are needed unless noise and noise levels are both given")
    if noise is not None:
        check_device("noise", noise, images.device)
        check_shape("noise", noise, images.shape)
        check_float("noise", noise.dtype)


def check_rows(images: torch.Tensor, rows: torch.Tensor) -> None:
    check_device("rows", rows, images.device)
    if rows.dtype != torch.float32 or tuple(rows.shape) != (images.shape[0], ROW_SIZE) or not rows.is_contiguous():
        raise ValueError(
            f"rows: got {rows.dtype} {tuple(rows.shape)}; float32 [{images.shape[0]}, {ROW_SIZE}] is needed"
        )


def view_or_absent(name: str, tensor: torch.Tensor | None) -> View:
    return ABSENT if tensor is None else image_view(name, tensor)


def _check(
    images: torch.Tensor,
    rule: list[float],
    draw: int,
    seeds: torch.Tensor | None,
    sigma: torch.Tensor | None,
    noise: torch.Tensor | None,
    rows: torch.Tensor,
    net_input: torch.Tensor,
) -> None:
    check_float("images", images.dtype)
    drawn = rule[0] not in (SOURCES["given"], SOURCES["rows"])
    check_noise_source(images, seeds, noise, needed=drawn or noise is None)
    if sigma is not None:
        check_device("sigma", sigma, images.device)
        check_shape("sigma", sigma, [images.shape[0]])
    check_rows(images, rows)
    check_device("net_input", net_input, images.device)
    check_shape("net_input", net_input, images.shape)


def _run(backend: str, images: torch.Tensor, rule: list[float], draw: int, *tensors: torch.Tensor | None) -> None:
    seeds, sigma, noise, rows, net_input = tensors
    assert rows is not None
    assert net_input is not None
    _check(images, rule, draw, seeds, sigma, noise, rows, net_input)
    backends.launch(
        "noise_augment",
        backend,
        images.device,
        kernel_shape(images.shape),
        rule,
        draw,
        address(seeds),
        address(sigma),
        rows.data_ptr(),
        image_view("images", images),
        view_or_absent("noise", noise),
        image_view("net_input", net_input),
    )


LIBRARY.define(
    "noise_augment_(Tensor images, float[] rule, int draw, Tensor? seeds, Tensor? sigma, Tensor? noise, "
    "Tensor(a!) rows, Tensor(b!) net_input) -> ()"
)
LIBRARY.impl("noise_augment_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("noise_augment_", lambda *args: _run("cuda", *args), "CUDA")


torch.library.register_fake("edm_fast::noise_augment_", _check, lib=LIBRARY)
