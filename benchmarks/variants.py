"""The networks that are timed, and the ways to run them; each variant lives in a process of its own (worker.py).

Every variant computes F, the inner network, for one noise level and class labels, from the same weights and inputs.
Weights are random but not zero: what the initialisation leaves at (nearly) zero is overwritten, so that no branch can
be dropped unnoticed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import edm_fast
from edm_fast.bench.plain import plain_digits
from edm_fast.ops.backends import extension
from edm_fast.reference.layers import Conv2d, GroupNorm
from edm_fast.reference.preconditioning import EDMPrecond, Precond

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

_CIFAR = {
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 10,
    "model_type": "SongUNet",
    "augment_dim": 9,
    "channel_mult": [2, 2, 2],
}
PRESETS: dict[str, dict[str, Any]] = {
    "ddpmpp": {**_CIFAR},
    "ncsnpp": {
        **_CIFAR,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "adm": {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet"},
}

_SIGMA = 2.0
_SEED = 20220601


class NotAvailableError(Exception):
    """The variant does not exist in this build."""


@dataclass(frozen=True)
class Spec:
    """One variant of one network. kind: reference, eager, compiled, frozen or ours; isa: native or avx2.

    "compiled" is torch.compile as it comes; "frozen" is with freezing and inductor's C++ wrapper.
    """

    network: str
    batch: int
    kind: str
    dtype: str = "float32"
    memory_format: str = "channels_last"
    isa: str = "native"


@dataclass
class Variant:
    """A network that is ready to run: `forward` computes F, `net` is the reference network that it was made from."""

    spec: Spec
    net: Precond
    forward: Callable[[], Tensor]
    prepared: Any = None


def build_network(name: str) -> Precond:
    """The reference network with the weights that all variants share."""
    if name == "digits":
        return plain_digits()
    torch.manual_seed(_SEED)
    net = EDMPrecond(**PRESETS[name]).eval().requires_grad_(False)
    fill_vanishing_weights(net)
    return net


def fill_vanishing_weights(net: nn.Module) -> None:
    """Overwrite weights far below their layer's scale, and every bias; GroupNorm's weights lie around 1."""
    for module in net.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, GroupNorm):
            weight.copy_(1 + 0.1 * torch.randn_like(weight))
        elif isinstance(weight, nn.Parameter):
            scale = 0.5 / math.sqrt(weight[0].numel())
            if weight.square().mean().sqrt() < 0.02 * scale:
                weight.copy_(scale * torch.randn_like(weight))
        if isinstance(bias, nn.Parameter):
            bias.copy_(0.05 * torch.randn_like(bias))


def inputs(net: Precond, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x, c_noise [1], class_labels [N, label_dim]) in float32; each sample has its own label."""
    generator = torch.Generator().manual_seed(_SEED)
    shape = [batch, net.img_channels, net.img_resolution, net.img_resolution]
    labels = nn.functional.one_hot(torch.arange(batch) * 7 % net.label_dim, net.label_dim).float()
    return torch.randn(shape, generator=generator), torch.tensor([math.log(_SIGMA) / 4]), labels


def build(spec: Spec) -> Variant:
    """Build the variant and its inputs; nothing has run yet, so that compilation happens at the first forward."""
    if spec.isa != "native" and spec.kind == "ours":
        extension().cpu.use_isa(spec.isa)
    with torch.no_grad():
        net = build_network(spec.network)
    x, c_noise, labels = inputs(net, spec.batch)
    dtype = DTYPES[spec.dtype]
    if spec.kind == "reference":
        return _reference(spec, net.to(dtype), x.to(dtype), c_noise.to(dtype), labels.to(dtype))
    if spec.kind == "ours":
        return ours(spec, net, x.to(dtype, memory_format=torch.channels_last), c_noise, labels)
    memory_format = FORMATS[spec.memory_format]
    x = x.to(dtype, memory_format=memory_format)
    return _baseline(spec, cast_images(net, dtype, memory_format), x, c_noise, labels)


def cast_images(net: Precond, dtype: torch.dtype, memory_format: torch.memory_format) -> Precond:
    """Cast beforehand what meets images: convolutions and norms. The embedding is computed in float32 by all."""
    for module in net.modules():
        if isinstance(module, Conv2d | GroupNorm):
            module.to(dtype)
    net.to(memory_format=memory_format)
    return net


def _reference(spec: Spec, net: Precond, x: Tensor, c_noise: Tensor, labels: Tensor) -> Variant:
    @torch.inference_mode()
    def forward() -> Tensor:
        return net.model(x, c_noise, labels)

    return Variant(spec, net, forward)


def _baseline(spec: Spec, net: Precond, x: Tensor, c_noise: Tensor, labels: Tensor) -> Variant:
    if spec.kind == "eager":
        return _reference(spec, net, x, c_noise, labels)
    import torch._inductor.config as inductor

    inductor.freezing = inductor.cpp_wrapper = spec.kind == "frozen"
    compiled = torch.compile(net.model, fullgraph=True)

    # Freezing needs no_grad where the weights could require gradients.
    @torch.no_grad()
    def forward() -> Tensor:
        return compiled(x, c_noise, labels)

    return Variant(spec, net, forward)


def ours(spec: Spec, net: Precond, x: Tensor, c_noise: Tensor, labels: Tensor) -> Variant:
    """The prepared network. NotAvailableError as long as this build cannot prepare one."""
    prepare = getattr(edm_fast, "prepare", None)
    if prepare is None:
        raise NotAvailableError("this build has no edm_fast.prepare, so there is nothing of ours to time")
    prepared = prepare(net, dtype=DTYPES[spec.dtype], conv_algorithm="auto")

    @torch.inference_mode()
    def forward() -> Tensor:
        return prepared.network(x, c_noise, labels)

    return Variant(spec, net, forward, prepared)


def memory(variant: Variant) -> dict[str, int]:
    """Bytes that a forward needs beside the parameters, and what the parameters take.

    For a prepared network these are its plan's own figures, working memory with scratch and the packed weights; for
    any other the peak of what torch's allocator gave out during a forward, which leaves out what libraries allocate
    for themselves.
    """
    if variant.prepared is not None:
        plan = variant.prepared.plan(variant.net.img_resolution, variant.net.img_resolution)
        return {"activation_bytes": plan.memory_bytes(variant.spec.batch), "weight_bytes": plan.weight_bytes}
    weights = sum(p.numel() * p.element_size() for p in variant.net.model.parameters())
    return {"activation_bytes": peak_allocation(variant.forward), "weight_bytes": weights}


def peak_allocation(forward: Callable[[], object]) -> int:
    """The largest sum of live allocations during a call, from the profiler's record of every allocation and release."""
    forward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        forward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    live = peak = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak
