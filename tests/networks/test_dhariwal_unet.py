"""DhariwalUNet (ADM): keys and counts are those of public checkpoints, and its parts compute what the paper says."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edm_fast.networks import DhariwalUNet, EDMPrecond

TINY = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 2,
    "label_dim": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64 that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(net: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a size that matters, in float64: the initial output is zero."""
    net = net.double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.copy_(rand(*parameter.shape, seed=index) / math.sqrt(max(parameter[0].numel(), 4)))
    return net


def test_parameter_and_key_counts_are_those_of_the_public_checkpoint():
    with torch.device("meta"):
        net = EDMPrecond(64, 3, label_dim=1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == 295_899_267
    assert len(net.state_dict()) == 553


def test_keys_of_a_small_network():
    keys = set(DhariwalUNet(**TINY, augment_dim=9).state_dict())
    block = {
        f"{layer}.{kind}" for layer in ("norm0", "conv0", "affine", "norm1", "conv1") for kind in ("weight", "bias")
    }
    skip = {"skip.weight", "skip.bias"}
    attention = {f"{layer}.{kind}" for layer in ("norm2", "qkv", "proj") for kind in ("weight", "bias")}
    resample = {"conv0.resample_filter", "skip.resample_filter"}
    blocks = {
        "enc.8x8_block0": block,
        "enc.4x4_down": block | resample,
        "enc.4x4_block0": block | skip | attention,
        "dec.4x4_in0": block | attention,
        "dec.4x4_in1": block,
        "dec.4x4_block0": block | skip | attention,
        "dec.4x4_block1": block | skip | attention,
        "dec.8x8_up": block | resample,
        "dec.8x8_block0": block | skip,
        "dec.8x8_block1": block | skip,
    }
    wanted = {f"{name}.{part}" for name, parts in blocks.items() for part in parts}
    for name in ("map_layer0", "map_layer1", "enc.8x8_conv", "out_norm", "out_conv"):
        wanted |= {f"{name}.weight", f"{name}.bias"}
    assert keys == wanted | {"map_augment.weight", "map_label.weight"}


def test_constructor_order_and_defaults_are_the_recorded_contract():
    signature = inspect.signature(DhariwalUNet)
    assert list(signature.parameters)[:3] == ["img_resolution", "in_channels", "out_channels"]
    assert {name: parameter.default for name, parameter in list(signature.parameters.items())[3:]} == {
        "label_dim": 0,
        "augment_dim": 0,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "channel_mult_emb": 4,
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
        "dropout": 0.10,
        "label_dropout": 0,
    }


def test_mapping_adds_labels_after_the_layers_and_keeps_cosine_first():
    net = randomized(DhariwalUNet(**TINY, augment_dim=3))
    noise, labels, augment = rand(2), rand(2, 4, seed=1), rand(2, 3, seed=2)
    frequencies = torch.tensor([10000 ** -(i / 32) for i in range(32)])
    angles = noise.outer(frequencies.double())
    x = torch.cat([angles.cos(), angles.sin()], dim=1) + augment @ net.map_augment.weight.T
    x = functional.silu(x @ net.map_layer0.weight.T + net.map_layer0.bias)
    x = x @ net.map_layer1.weight.T + net.map_layer1.bias + labels @ net.map_label.weight.T
    # Frequencies are float32 in the network, so the comparison is one of float32.
    torch.testing.assert_close(net.embed(noise, labels, augment).float(), functional.silu(x).float())


def test_forward_by_hand():
    net = randomized(DhariwalUNet(**TINY)).eval()
    x, noise, labels = rand(2, 3, 8, 4), rand(2, seed=1), rand(2, 4, seed=2)
    emb, enc, dec = net.embed(noise, labels), net.enc, net.dec
    s0 = enc["8x8_conv"](x)
    s1 = enc["8x8_block0"](s0, emb)
    s2 = enc["4x4_down"](s1, emb)
    s3 = enc["4x4_block0"](s2, emb)
    h = dec["4x4_in1"](dec["4x4_in0"](s3, emb), emb)
    h = dec["4x4_block1"](torch.cat([dec["4x4_block0"](torch.cat([h, s3], 1), emb), s2], 1), emb)
    h = dec["8x8_up"](h, emb)
    h = dec["8x8_block1"](torch.cat([dec["8x8_block0"](torch.cat([h, s1], 1), emb), s0], 1), emb)
    normed = functional.group_norm(h, 16, net.out_norm.weight, net.out_norm.bias, 1e-5)
    wanted = functional.conv2d(functional.silu(normed), net.out_conv.weight, net.out_conv.bias, padding=1)
    torch.testing.assert_close(net(x, noise, labels), wanted)


def test_first_convolution_has_the_width_of_the_first_level():
    net = DhariwalUNet(8, 3, 3, model_channels=16, channel_mult=[2, 4], num_blocks=1)
    assert net.enc["8x8_conv"].weight.shape == (32, 3, 3, 3)


def test_heads_have_64_channels_and_narrow_levels_no_attention():
    net = DhariwalUNet(8, 3, 3, model_channels=32, channel_mult=[1, 4], num_blocks=1, attn_resolutions=[8, 4])
    assert net.enc["8x8_block0"].num_heads == 0
    assert net.enc["4x4_block0"].num_heads == 2
    narrow = DhariwalUNet(8, 3, 3, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8, 4])
    assert not any("qkv" in key for key in narrow.state_dict())


def test_initial_weights_follow_their_modes():
    torch.manual_seed(0)
    net = DhariwalUNet(**TINY, augment_dim=9)
    block = net.dec["4x4_in0"]
    zero = (block.conv1, block.proj, net.out_conv)
    assert all(not bool(layer.weight.any()) and not bool(layer.bias.any()) for layer in zero)
    assert not bool(net.map_augment.weight.any())
    for layer, fan_in in ((block.conv0, 128 * 9), (block.qkv, 128), (block.affine, 256), (net.map_layer0, 64)):
        bound = math.sqrt(1 / fan_in)
        assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound * 1.000001
        assert 0.9 * bound < float(layer.bias.detach().abs().max()) <= bound * 1.000001
    assert abs(float(net.map_label.weight.detach().std()) - 1) < 5 / math.sqrt(2 * 1024)


def test_label_dropout_acts_in_training_only():
    net = DhariwalUNet(**TINY, label_dropout=0.999, dropout=0.0)
    noise, labels = torch.zeros(4), torch.eye(4)
    torch.manual_seed(0)
    none = net.embed(noise, torch.zeros(1, 4))
    assert torch.equal(net.embed(noise, labels, batch=4), none)
    assert not torch.allclose(net.eval().embed(noise, labels, batch=4), none)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 3, 7, 8), (3, 8, 8)], ids=str)
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="x must"):
        DhariwalUNet(**TINY)(torch.zeros(shape), torch.zeros(1), None)
