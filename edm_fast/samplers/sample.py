"""Images from seeds: our own noise, any batch split, the same bits."""

from __future__ import annotations

import logging
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from edm_fast.ops.backends import extension, usable_device
from edm_fast.ops.randn import DOMAIN_LABELS, randn
from edm_fast.ops.tensors import seed_tensor
from edm_fast.plan import Prepared
from edm_fast.samplers import arguments
from edm_fast.samplers.edm import edm_table
from edm_fast.samplers.evaluation import is_plain_precond, runs_in_half
from edm_fast.samplers.execution import Callback, execute
from edm_fast.samplers.guidance import guidance_of, guided
from edm_fast.samplers.recovery import finite_images, in_batches

logger = logging.getLogger(__name__)


def sample(
    net: Any,
    seeds: int | Iterable[int] | torch.Tensor,
    class_labels: arguments.Labels = None,
    num_steps: int = 18,
    batch: int = 64,
    solver: str = "heun",
    *,
    shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    state_dtype: torch.dtype = torch.float64,
    prepare: bool = True,
    progress: Callable[[int, int], object] | None = None,
    callback: Callback | None = None,
    guidance: float = 1,
    gnet: Any = None,
    guidance_interval: Sequence[float] = (0, math.inf),
    **table_arguments: Any,
) -> torch.Tensor:
    """One image per seed, float32 [N, C, H, W] in the order of the seeds, not clamped.

    The noise of an image is a function of its seed alone (see `edm_fast.randn`: draw 0 is its latents, draw i + 1 the
    churn of step i). Noise and solver give the same bits for every `batch`; so does the whole, if the network does.

    Args:
        net: a network of this library, or any callable net(x, sigma, class_labels) → D(x; σ).
        seeds: N integers of 64 bits.
        class_labels: N integer ids, or rows [N, label_dim]; None leaves a conditional network unconditioned.
        num_steps, solver: number of steps; "heun" or "euler".
        batch: how many images the network sees at a time. If memory does not suffice it is halved.
        shape: (C, H, W); by default (img_channels, img_resolution, img_resolution) of the network.
        device: where to compute; by default where the network's parameters lie.
        state_dtype: float64 or float32; dtype of the sampler's state.
        prepare: run networks of this library in evaluation mode through `edm_fast.prepare(net)`. Its packed weights are
            kept with the network. Pass a prepared network to choose its dtype.
        progress: called with (images done, images in all) after each batch.
        callback: called with a `Progress` once per step of each batch.
        guidance: w of D = D_g + w·(D − D_g); 1 is no guidance.
        gnet: gives D_g: another network on the same device (autoguidance), which gets the labels if it takes any; by
            default `net` without labels (classifier-free guidance).
        guidance_interval: (low, high]; at other noise levels w is 1, and gnet is not evaluated.
        table_arguments: sigma_min, sigma_max, rho, discretization, schedule, scaling, alpha, S_churn, S_min, S_max,
            S_noise and the rest of `ablation_sampler`'s.

    Raises:
        ValueError, TypeError: an argument out of range; names it.
        FloatingPointError: images with NaN or infinity, even in float32; names their seeds and the first layer.
        MemoryError: a single image does not fit.
    """
    if isinstance(batch, bool) or not isinstance(batch, numbers.Integral):
        raise TypeError(f"batch: got {batch!r}; it is an integer")
    if batch < 1:
        raise ValueError(f"batch: got {batch}; it must be at least 1")
    if state_dtype not in (torch.float64, torch.float32):
        raise TypeError(f"state_dtype: got {state_dtype}; it is float64 or float32")
    net_device = arguments.net_device(net)
    where = usable_device("device", device) if device is not None else net_device or torch.device("cpu")
    if net_device is not None and net_device != where:
        raise ValueError(f"device: got {where}; the network is on {net_device}")
    image_shape = _image_shape(net, shape)
    keys = seed_tensor(seeds, where)
    rows = arguments.label_rows(class_labels, keys.shape[0], getattr(net, "label_dim", None), where)
    guidance_of(net, rows, guidance, gnet, guidance_interval)
    table = edm_table(net, device=where, num_steps=num_steps, solver=solver, **table_arguments)

    if isinstance(net, torch.nn.Module) and net.training:
        logger.warning("net: is in training mode, so dropout acts while sampling; net.eval() switches it off")
    module = net.net if isinstance(net, Prepared) else net
    half = any(_runs_in_half(each, where) for each in (net, gnet if guidance != 1 else None))

    images = torch.empty([keys.shape[0], *image_shape], dtype=torch.float32, device=where)

    def make(part: slice) -> None:
        part_seeds, part_rows = keys[part], None if rows is None else rows[part]

        def chosen_images(chosen: torch.Tensor, force_fp32: bool) -> torch.Tensor:
            labels = None if part_rows is None else part_rows[chosen]
            chosen_seeds = part_seeds[chosen]
            with torch.no_grad():
                latents = randn(image_shape, chosen_seeds, 0, dtype=state_dtype, device=where)
                chosen_net = module if force_fp32 else net
                asked = guidance_of(chosen_net, labels, guidance, gnet, guidance_interval)
                evaluation, guide = guided(chosen_net, asked, table, labels, where, state_dtype, force_fp32, prepare)
            return execute(
                table,
                evaluation,
                latents,
                state_dtype=state_dtype,
                seeds=chosen_seeds,
                output_dtype=torch.float32,
                guide=guide,
                callback=callback if len(chosen) == len(part_seeds) and not force_fp32 else None,
            )

        images[part] = finite_images(chosen_images, part_seeds, module, half)

    in_batches(make, keys.shape[0], batch, progress)
    return images


def _runs_in_half(net: Any, device: torch.device) -> bool:
    if isinstance(net, Prepared):
        return net.dtype != torch.float32
    return is_plain_precond(net) and runs_in_half(net, device)


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
    return extents


def random_class(seed: int, label_dim: int) -> int:
    """A class for a seed, uniform over label_dim; from the same keyed stream as the noise, in a domain of its own."""
    if label_dim < 1:
        raise ValueError(f"label_dim: got {label_dim}; it must be at least 1")
    word = extension().noise_words(seed % 2**64, 0, 0, DOMAIN_LABELS)[0]
    return word * label_dim >> 32
