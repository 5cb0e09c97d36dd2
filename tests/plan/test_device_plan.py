"""A graph on a device: the reference network's function, a table of steps, and captured runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tolerance import assert_as_exact_as_eager

from edm_fast.plan.device import DevicePlan
from edm_fast.plan.embedding import DeviceModulation
from edm_fast.plan.lowering import lower
from edm_fast.reference import preconditioning as reference

SONG = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 4,
    "model_type": "SongUNet",
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [2, 1],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.0,
}
WIDE = [1, 3, 3, 1]
NETWORKS = {
    "positional": SONG,
    "fourier": {**SONG, "embedding_type": "fourier", "channel_mult_noise": 2},
    "filtered": {**SONG, "resample_filter": WIDE},
    "residual": {**SONG, "encoder_type": "residual", "channel_mult": [1, 2, 2], "resample_filter": WIDE},
    "residual by averages": {**SONG, "encoder_type": "residual", "channel_mult": [1, 2, 2]},
    "skip": {**SONG, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": WIDE},
    "skip by averages": {**SONG, "encoder_type": "skip", "decoder_type": "skip"},
    "adm": {**SONG, "model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2]},
}


def network(name):
    """A reference network whose weights, biases and norms are all of a size that matters."""
    net = reference.EDMPrecond(**NETWORKS[name]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(max(parameter[0].numel(), 4)))
    return net


def inputs(dtype=torch.float32, samples=2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn([samples, 3, 8, 8], generator=generator).to(dtype)
    labels, augment = (torch.randn([samples, width], generator=generator) for width in (4, 9))
    return x.contiguous(memory_format=torch.channels_last), torch.linspace(-1, 1, samples), labels, augment


def device_plan(net, dtype=torch.float32, backend=None):
    graph = lower(net.model, 8, 8, plain_skips=True)
    plan = DevicePlan(graph, dtype, "cpu", backend)
    return plan, DeviceModulation(net.model, graph.affines, plan.column_biases)


def assert_like_reference(name, dtype, backend):
    net = network(name)
    plan, modulation = device_plan(net, dtype, backend)
    x, *rest = inputs(dtype)
    actual = plan.run(x, modulation(*rest))
    eager = net.model(x, *rest)
    exact = copy.deepcopy(net.model).double()(x.double(), *(tensor.double() for tensor in rest))
    assert_as_exact_as_eager(actual, eager, exact, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_the_networks(name, backend, dtype):
    assert_like_reference(name, dtype, backend)
