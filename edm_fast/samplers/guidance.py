"""Guidance: D = D_g + w·(D − D_g), the denoised image moved away from what a second network, or no label, gives.

Classifier-free guidance (Ho and Salimans 2022) takes the same network without labels for D_g, autoguidance (Karras et
al. 2024) a weaker network; outside an interval of noise levels (Kynkäänniemi et al. 2024) there is none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_fast.plan import Prepared
from edm_fast.plan.cache import prepared_for
from edm_fast.samplers import arguments
from edm_fast.samplers.evaluation import DenoiserEvaluation, Evaluation, evaluation_of, in_float32
from edm_fast.samplers.table import SolverTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guide:
    """D_g of one table.

    Attributes:
        evaluation: sees the same inputs as the main network's.
        weight: float64 [E], w of each evaluation; 1 where the guide takes no part and is not evaluated.
    """

    evaluation: Evaluation
    weight: np.ndarray

    def takes_part(self, index: int) -> bool:
        return bool(self.weight[index] != 1)


@dataclass(frozen=True)
class Guidance:
    """What a caller asks for: the second network with its labels, w, and σ ∈ (low, high] where it holds."""

    net: Any
    class_labels: torch.Tensor | None
    weight: float
    interval: tuple[float, float]

    def weights(self, table: SolverTable) -> np.ndarray:
        low, high = self.interval
        return np.where((table.sigma > low) & (table.sigma <= high), self.weight, 1.0)


def guidance_of(
    net: Any,
    class_labels: torch.Tensor | None,
    guidance: Any,
    gnet: Any,
    guidance_interval: Sequence[float],
) -> Guidance | None:
    """The checked arguments; None for w = 1, which is no guidance.

    `class_labels` are the rows of the main network, and of `gnet` where it takes labels. Without `gnet` it is `net`
    without labels. ValueError or TypeError names what does not fit.
    """
    weight = arguments.check_number("guidance", guidance)
    if math.isinf(weight):
        raise ValueError(f"guidance: got {guidance}; it must be finite")
    interval = _interval(guidance_interval)
    if gnet is not None:
        arguments.check_network("gnet", gnet)
    if weight == 1:
        return None
    ours, theirs = arguments.net_device(net), arguments.net_device(gnet)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"gnet: is on {theirs}; the network is on {ours}")
    if class_labels is not None and class_labels.dim() != 2:
        raise ValueError(f"class_labels: got shape {tuple(class_labels.shape)}; guidance needs rows [N, label_dim]")
    if gnet is None:
        if class_labels is None or getattr(net, "label_dim", None) == 0:
            raise ValueError(f"guidance: {guidance} needs class_labels to move away from, or a gnet")
        return Guidance(net, None, weight, interval)
    for name in ("img_channels", "img_resolution"):
        ours, theirs = getattr(net, name, None), getattr(gnet, name, None)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(f"gnet: {name} is {theirs}; the network's is {ours}")
    label_dim = getattr(gnet, "label_dim", None)
    if class_labels is not None and label_dim and class_labels.shape[1] != label_dim:
        raise ValueError(f"gnet: label_dim is {label_dim}; the labels have {class_labels.shape[1]} columns")
    return Guidance(gnet, None if label_dim == 0 else class_labels, weight, interval)


def _interval(given: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = given
    except (TypeError, ValueError):
        raise TypeError(f"guidance_interval: got {given!r}; two numbers (low, high) are needed") from None
    low, high = (arguments.check_number("guidance_interval", bound) for bound in (low, high))
    if not 0 <= low < high:
        raise ValueError(f"guidance_interval: got ({low:g}, {high:g}); 0 ≤ low < high is needed")
    return low, high


def guided(
    net: Any,
    guidance: Guidance | None,
    table: SolverTable,
    class_labels: torch.Tensor | None,
    device: torch.device,
    state_dtype: torch.dtype,
    force_fp32: bool = False,
    prepare: bool = True,
) -> tuple[Evaluation, Guide | None]:
    """The evaluation of `net`, and its guide; arguments as those of `evaluation_of`.

    Where the two would not take the same input, as with different sigma_data or dtypes, both denoise x/s itself.
    """
    main = evaluation_of(net, table, class_labels, device, state_dtype, force_fp32, prepare)
    if guidance is None:
        return main, None
    guide = evaluation_of(guidance.net, table, guidance.class_labels, device, state_dtype, force_fp32, prepare)
    if not _same_input(main, guide):
        logger.info("net and gnet take different inputs: each is evaluated as a denoiser, and no step is captured")
        denoisers = [_denoiser(each, device, force_fp32, prepare) for each in (net, guidance.net)]
        main = DenoiserEvaluation(denoisers[0], table, class_labels, device, state_dtype)
        guide = DenoiserEvaluation(denoisers[1], table, guidance.class_labels, device, state_dtype)
    return main, Guide(guide, guidance.weights(table))


def _denoiser(net: Any, device: torch.device, force_fp32: bool, prepare: bool) -> Callable[..., Any]:
    """net(x, σ, labels) → D, prepared if that is allowed, in float32 if it must be."""
    prepared = prepared_for(net, device, force_fp32) if prepare and not isinstance(net, Prepared) else None
    if prepared is not None:
        return prepared
    return in_float32(net) if force_fp32 else net


def _same_input(main: Evaluation, guide: Evaluation) -> bool:
    return (
        np.array_equal(main.c_in, guide.c_in)
        and main.input_dtype == guide.input_dtype
        and main.input_format == guide.input_format
    )
