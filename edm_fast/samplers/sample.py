"""Images from seeds: our own noise, any batch split, the same bits."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from edm_fast.ops.backends import choose, usable_device
from edm_fast.ops.tensors import seed_tensor
from edm_fast.plan import Prepared
from edm_fast.reference.preconditioning import Precond
from edm_fast.samplers import arguments
from edm_fast.samplers.edm import edm_table
from edm_fast.samplers.execution import Callback, execute
from edm_fast.samplers.guidance import guidance_of, guided
from edm_fast.samplers.noise import RNGS, generator_noise, keyed_noise
from edm_fast.samplers.recovery import FINITE, Precision, finite_images, in_batches

logger = logging.getLogger(__name__)


def sample(
    net: Any,
    seeds: int | Iterable[int] | torch.Tensor,
    class_labels: arguments.Labels = None,
    num_steps: int = 18,
    batch: int | None = 64,
    solver: str = "heun",
    *,
    rng: str = "philox",
    shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    state_dtype: torch.dtype = torch.float64,
    prepare: bool = True,
    progress: Callable[[int, int], object] | None = None,
    callback: Callback | None = None,
    guidance: float = 1,
    gnet: Any = None,
    guidance_interval: Sequence[float] = (0, math.inf),
    debug_overflow: bool = False,
    **table_arguments: Any,
) -> torch.Tensor:
    """One image per seed, float32 [N, C, H, W] in the order of the seeds, not clamped.

    The noise of an image is a function of its seed alone (see `edm_fast.randn`: draw 0 is its latents, draw i + 1 the
    churn of step i), or with rng="torch" of its seed and the kind of device. Noise and solver give the same bits for
    every `batch`; so does the whole, if the network does.

    Args:
        net: a network of this library, or any callable net(x, sigma, class_labels) → D(x; σ).
        seeds: N integers of 64 bits.
        class_labels: N integer ids, or rows [N, label_dim]; None leaves a conditional network unconditioned.
        num_steps, solver: number of steps, at most 100,000; "heun" or "euler".
        batch: how many images the network sees at a time. If memory does not suffice it is halved. None: all of them,
            or torch.OutOfMemoryError and its like.
        rng: "philox" for our noise; "torch" for that of NVlabs/edm's tool, a torch.Generator for each seed modulo 2³²
            that draws float32 latents, then a class if the network has labels, then a tensor like the state per step.
        shape: (C, H, W); by default (img_channels, img_resolution, img_resolution) of the network.
        device: where to compute; by default where the network's parameters lie.
        state_dtype: float64 or float32; dtype of the sampler's state.
        prepare: run networks of this library in evaluation mode through `edm_fast.prepare(net)`. Its packed weights are
            kept with the network. Pass a prepared network to choose its dtype.
        progress: called with (images done, images in all) after each batch.
        callback: called with a `Progress` once per step of each batch; a batch that did not fit begins again.
        guidance: w of D = D_g + w·(D − D_g); 1 is no guidance.
        gnet: gives D_g: another network on the same device (autoguidance), which gets the labels if it takes any; by
            default `net` without labels (classifier-free guidance).
        guidance_interval: (low, high]; at other noise levels w is 1, and gnet is not evaluated.
        debug_overflow: where a network in 16 bits overflows, warn which layer was the first. Images that are not finite
            are made again in float32 in any case, and they alone.
        table_arguments: sigma_min, sigma_max, rho, discretization, schedule, scaling, alpha, S_churn, S_min, S_max,
            S_noise and the rest of `ablation_sampler`'s.

    Raises:
        ValueError, TypeError: an argument out of range; names it.
        FloatingPointError: images with NaN or infinity, even in float32; names their seeds, the step and the first
            layer.
        MemoryError: a single image does not fit; says how many bytes were wanted.
    """
    arguments.check_network("net", net)
    for name, function in (("progress", progress), ("callback", callback)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}; it is a function")
    if batch is not None:
        batch = arguments.check_count("batch", batch)
    arguments.check_choice("rng", rng, RNGS)
    if state_dtype not in (torch.float64, torch.float32):
        raise TypeError(f"state_dtype: got {state_dtype}; it is float64 or float32")
    net_device = arguments.net_device(net)
    where = usable_device("device", device) if device is not None else net_device or torch.device("cpu")
    if net_device is not None and net_device != where:
        raise ValueError(f"device: got {where}; the network is on {net_device}")
    choose(None, where)
    image_shape = _image_shape(net, shape)
    keys = seed_tensor(seeds, where)
    rows = arguments.label_rows(class_labels, keys.shape[0], getattr(net, "label_dim", None), where)
    guidance_of(net, rows, guidance, gnet, guidance_interval)
    table = edm_table(net, device=where, num_steps=num_steps, solver=solver, **table_arguments)

    if isinstance(net, torch.nn.Module) and net.training:
        logger.warning("net: is in training mode, so dropout acts while sampling; net.eval() switches it off")
    nets = [net] if guidance == 1 or gnet is None else [net, gnet]
    half = any(_runs_in_half(each, where) for each in nets)
    images = torch.empty([keys.shape[0], *image_shape], dtype=torch.float32, device=where)

    def make(part: slice) -> None:
        part_seeds, part_rows = keys[part], None if rows is None else rows[part]

        def chosen_images(chosen: torch.Tensor, how: Precision) -> tuple[torch.Tensor, torch.Tensor]:
            labels = None if part_rows is None else part_rows[chosen]
            chosen_seeds = part_seeds[chosen]
            ours, theirs = how.of(net), how.of(gnet)
            with torch.no_grad():
                if rng == "torch":
                    latents, noise, _ = generator_noise(image_shape, chosen_seeds, getattr(net, "label_dim", 0))
                else:
                    latents, noise = keyed_noise(image_shape, chosen_seeds, state_dtype)
                asked = guidance_of(ours, labels, guidance, theirs, guidance_interval)
                evaluation, guide = guided(ours, asked, table, labels, where, state_dtype, how.forced, prepare)
            first_bad = torch.full_like(chosen_seeds, FINITE)
            made = execute(
                table,
                evaluation,
                latents,
                state_dtype=state_dtype,
                output_dtype=torch.float32,
                guide=guide,
                callback=callback if how is Precision.GIVEN else None,
                first_bad=first_bad,
                **noise,
            )
            # What is finite in the state may not be in the image.
            finite = torch.isfinite(made).flatten(1).all(dim=1)
            return made, first_bad.where(finite, first_bad.clamp(max=table.evaluations))

        images[part] = finite_images(chosen_images, part_seeds, nets, half, place, debug_overflow)

    def place(row: int) -> str:
        return f"at step {table.step[row - 1]} of {table.num_steps}, sigma {table.sigma[row - 1]:.4g}"

    if batch is None:
        make(slice(0, keys.shape[0]))
    else:
        in_batches(make, keys.shape[0], batch, progress)
    return images


def _runs_in_half(net: Any, device: torch.device) -> bool:
    if isinstance(net, Prepared):
        return net.dtype != torch.float32
    return isinstance(net, Precond) and net.network_dtype(device, force_fp32=False) != torch.float32


def _image_shape(net: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    channels, resolution = getattr(net, "img_channels", None), getattr(net, "img_resolution", None)
    if shape is None:
        if channels is None or resolution is None:
            raise ValueError("shape: the network has no img_channels and img_resolution; give (C, H, W)")
        return (channels, resolution, resolution)
    try:
        extents = tuple(operator.index(extent) for extent in shape)
    except TypeError:
        raise TypeError(f"shape: got {shape!r}; three integers (C, H, W) are needed") from None
    if len(extents) != 3 or min(extents) < 1:
        raise ValueError(f"shape: got {extents}; three positive integers (C, H, W) are needed")
    if channels is not None and extents[0] != channels:
        raise ValueError(f"shape: {extents[0]} channels; the network has {channels}")
    ours = net.net if isinstance(net, Prepared) else net
    if isinstance(ours, Precond):
        divisor = 1 << int(getattr(ours.model, "num_levels", 1)) - 1
        if extents[1] % divisor or extents[2] % divisor:
            raise ValueError(
                f"shape: got {extents}; the network takes heights and widths that are multiples of {divisor}"
            )
    return extents
