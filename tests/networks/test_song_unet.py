"""SongUNet: its keys and counts are those of public checkpoints, and its parts compute what the paper says."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edm_fast.networks import EDMPrecond, SongUNet
from edm_fast.reference.layers import Conv2d, FourierEmbedding, GroupNorm, Linear, PositionalEmbedding
from edm_fast.reference.unet_block import UNetBlock

CIFAR10 = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "channel_mult": [2, 2, 2]}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
TINY = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 2,
    "label_dim": 4,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def randomized(net: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a size that matters, in float64: initial residual branches are almost zero."""
    generator = torch.Generator().manual_seed(7)
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 1 / math.sqrt(max(parameter[0].numel(), 4))
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return net


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64 that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kwargs", "parameters", "keys"),
    [
        pytest.param({**CIFAR10, "label_dim": 10, "augment_dim": 9}, 55_735_299, 427, id="ddpmpp"),
        pytest.param({**CIFAR10, "label_dim": 10}, 55_735_299 - 1152, 426, id="ddpmpp-no-augment"),
        pytest.param({**CIFAR10, **NCSNPP, "label_dim": 10, "augment_dim": 9}, 56_400_643, 434, id="ncsnpp"),
        pytest.param({**CIFAR10, **NCSNPP, "label_dim": 10}, 56_400_643 - 2304, 433, id="ncsnpp-no-augment"),
        pytest.param(
            {"img_resolution": 64, "img_channels": 3, "model_type": "SongUNet", "augment_dim": 9},
            61_805_571,
            553,
            id="ddpmpp-64",
        ),
    ],
)
def test_parameter_and_key_counts_are_those_of_the_public_checkpoints(kwargs, parameters, keys):
    with torch.device("meta"):
        net = EDMPrecond(**kwargs)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert len(net.state_dict()) == keys


def test_keys_of_a_small_network():
    keys = set(SongUNet(**TINY, augment_dim=9).state_dict())
    block = {
        f"{layer}.{kind}" for layer in ("norm0", "conv0", "affine", "norm1", "conv1") for kind in ("weight", "bias")
    }
    skip = {"skip.weight", "skip.bias"}
    attention = {f"{layer}.{kind}" for layer in ("norm2", "qkv", "proj") for kind in ("weight", "bias")}
    resample = {"conv0.resample_filter", "skip.resample_filter"}
    blocks = {
        "enc.8x8_block0": block,
        "enc.4x4_down": block | skip | resample,
        "enc.4x4_block0": block | skip | attention,
        "dec.4x4_in0": block | attention,
        "dec.4x4_in1": block,
        "dec.4x4_block0": block | skip,
        "dec.4x4_block1": block | skip | attention,
        "dec.8x8_up": block | skip | resample,
        "dec.8x8_block0": block | skip,
        "dec.8x8_block1": block | skip,
    }
    wanted = {f"{name}.{part}" for name, parts in blocks.items() for part in parts}
    for name in ("map_label", "map_layer0", "map_layer1", "enc.8x8_conv", "dec.8x8_aux_norm", "dec.8x8_aux_conv"):
        wanted |= {f"{name}.weight", f"{name}.bias"}
    assert keys == wanted | {"map_augment.weight"}


def test_keys_of_the_auxiliary_paths():
    options = {**TINY, "resample_filter": [1, 3, 3, 1]}
    skip = SongUNet(**options, encoder_type="skip", decoder_type="skip").state_dict()
    standard = SongUNet(**options).state_dict()
    residual = SongUNet(**options, encoder_type="residual", embedding_type="fourier").state_dict()
    assert set(skip) - set(standard) == {
        "enc.4x4_aux_down.resample_filter",
        "enc.4x4_aux_skip.weight",
        "enc.4x4_aux_skip.bias",
        "dec.4x4_aux_norm.weight",
        "dec.4x4_aux_norm.bias",
        "dec.4x4_aux_conv.weight",
        "dec.4x4_aux_conv.bias",
        "dec.8x8_aux_up.resample_filter",
    }
    assert set(residual) - set(standard) == {
        "enc.4x4_aux_residual.weight",
        "enc.4x4_aux_residual.bias",
        "enc.4x4_aux_residual.resample_filter",
        "map_noise.freqs",
    }
    assert residual["enc.4x4_aux_residual.weight"].shape == (16, 3, 3, 3)
    assert residual["map_noise.freqs"].shape == (8,)


def test_constructor_order_and_defaults_are_the_recorded_contract():
    signature = inspect.signature(SongUNet)
    assert {name: parameter.default for name, parameter in list(signature.parameters.items())[3:]} == {
        "label_dim": 0,
        "augment_dim": 0,
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "dropout": 0.10,
        "label_dropout": 0,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": (1, 1),
    }
    assert list(signature.parameters)[:3] == ["img_resolution", "in_channels", "out_channels"]


def test_positional_embedding_is_cosine_then_sine():
    sigma = 0.7
    for endpoint in (False, True):
        found = PositionalEmbedding(6, endpoint=endpoint)(torch.tensor([sigma]))[0]
        frequencies = [10000 ** -(i / (3 - endpoint)) for i in range(3)]
        wanted = [math.cos(sigma * f) for f in frequencies] + [math.sin(sigma * f) for f in frequencies]
        torch.testing.assert_close(found, torch.tensor(wanted))


def test_fourier_embedding_is_cosine_then_sine_of_two_pi_f():
    embedding = FourierEmbedding(4)
    embedding.freqs.copy_(torch.tensor([0.25, 1.5]))
    found = embedding(torch.tensor([0.3]))[0]
    angles = [2 * math.pi * 0.25 * 0.3, 2 * math.pi * 1.5 * 0.3]
    torch.testing.assert_close(found, torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles]))
    torch.manual_seed(0)
    assert 14 < FourierEmbedding(20000).freqs.std() < 18


def test_mapping_swaps_the_halves_scales_labels_and_adds_augmentation():
    net = randomized(SongUNet(**TINY, augment_dim=3))
    noise, labels, augment = rand(2), rand(2, 4, seed=1), rand(2, 3, seed=2)
    cosine, sine = net.map_noise(noise).chunk(2, dim=1)
    x = torch.cat([sine, cosine], dim=1)
    x = x + (2 * labels) @ net.map_label.weight.T + net.map_label.bias
    x = x + augment @ net.map_augment.weight.T
    x = functional.silu(x @ net.map_layer0.weight.T + net.map_layer0.bias)
    x = functional.silu(x @ net.map_layer1.weight.T + net.map_layer1.bias)
    torch.testing.assert_close(net.embed(noise, labels, augment), x)


@pytest.mark.parametrize("height_width", [(4, 4), (6, 10)], ids=str)
def test_box_filter_resampling_is_average_pooling_and_nearest_neighbour(height_width):
    x = rand(2, 3, *height_width)
    down = Conv2d(3, 3, kernel=0, down=True).double()
    up = Conv2d(3, 3, kernel=0, up=True).double()
    torch.testing.assert_close(down(x), functional.avg_pool2d(x, 2))
    torch.testing.assert_close(up(x), functional.interpolate(x, scale_factor=2, mode="nearest"))


def test_wide_filter_keeps_a_constant_image_constant_inside():
    for direction in ("up", "down"):
        layer = Conv2d(1, 1, kernel=0, resample_filter=[1, 3, 3, 1], **{direction: True}).double()
        result = layer(torch.ones(1, 1, 8, 8, dtype=torch.float64))
        inside = result[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.ones_like(inside))


def test_resampling_comes_before_the_convolution_and_the_bias_last():
    layer = randomized(Conv2d(2, 3, kernel=3, down=True, resample_filter=[1, 3, 3, 1]))
    taps = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
    x = rand(2, 2, 8, 6)
    kernel = taps.outer(taps)[None, None].expand(2, 1, 4, 4)
    small = functional.conv2d(functional.pad(x, [1, 1, 1, 1]), kernel, stride=2, groups=2)
    torch.testing.assert_close(layer(x), functional.conv2d(small, layer.weight, layer.bias, padding=1))


def composed_kernel(weight: Tensor, taps: list[float]) -> Tensor:
    """The one kernel that acts as `weight` and the (symmetric) filter in a row: their full convolution."""
    line = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    outputs, inputs, size, _ = weight.shape
    margin = [len(taps) - 1] * 4
    flat = functional.pad(weight.reshape(outputs * inputs, 1, size, size), margin)
    return functional.conv2d(flat, line.outer(line)[None, None]).reshape(outputs, inputs, size + 3, size + 3)


def test_fused_down_is_the_convolution_and_then_the_filter():
    layer = randomized(Conv2d(2, 3, kernel=3, down=True, resample_filter=[1, 3, 3, 1], fused_resample=True))
    x = rand(2, 2, 8, 6)
    kernel = composed_kernel(layer.weight.detach(), [1, 3, 3, 1])
    wanted = functional.conv2d(x, kernel, layer.bias, stride=2, padding=2)
    torch.testing.assert_close(layer(x), wanted)
    assert layer(x).shape == (2, 3, 4, 3)


def test_fused_up_is_the_filter_on_inserted_zeros_and_then_the_convolution():
    layer = randomized(Conv2d(2, 3, kernel=3, up=True, resample_filter=[1, 3, 3, 1], fused_resample=True))
    x = rand(2, 2, 5, 6)
    spread = torch.zeros(2, 2, 10, 12, dtype=torch.float64)
    spread[:, :, ::2, ::2] = x
    kernel = 4 * composed_kernel(layer.weight.detach(), [1, 3, 3, 1])
    wanted = functional.conv2d(functional.pad(spread, [3, 2, 3, 2]), kernel, layer.bias)
    torch.testing.assert_close(layer(x), wanted)


def test_group_norm_uses_groups_of_at_least_four_channels():
    assert [GroupNorm(channels).num_groups for channels in (4, 16, 128, 256)] == [1, 4, 32, 32]
    norm = randomized(GroupNorm(8, eps=1e-3))
    x = rand(2, 8, 3, 3)
    groups = x.reshape(2, 2, -1)
    centred = groups - groups.mean(dim=2, keepdim=True)
    normed = (centred / (centred.square().mean(dim=2, keepdim=True) + 1e-3).sqrt()).reshape(x.shape)
    wanted = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), wanted)
    with pytest.raises(ValueError, match=r"num_channels.* 3"):
        GroupNorm(3)
    with pytest.raises(ValueError, match=r"num_channels.* 144"):
        GroupNorm(144)


def make_block(**options) -> UNetBlock:
    return randomized(
        UNetBlock(
            8,
            12,
            emb_channels=6,
            attention=True,
            eps=1e-6,
            skip_scale=math.sqrt(0.5),
            resample_proj=True,
            **{"num_heads": 1, "adaptive_scale": False, **options},
        )
    )


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("adaptive_scale", [False, True], ids=["song", "adm"])
def test_block_follows_its_equation(heads, adaptive_scale):
    block = make_block(num_heads=heads, adaptive_scale=adaptive_scale)
    x, emb = rand(2, 8, 4, 6), rand(2, 6, seed=1)

    def norm(module, value):
        return functional.group_norm(value, module.num_groups, module.weight, module.bias, 1e-6)

    h = functional.conv2d(functional.silu(norm(block.norm0, x)), block.conv0.weight, block.conv0.bias, padding=1)
    e = (emb @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    if adaptive_scale:
        h = functional.silu(norm(block.norm1, h) * (1 + e[:, :12]) + e[:, 12:])
    else:
        h = functional.silu(norm(block.norm1, h + e))
    h = functional.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = (h + functional.conv2d(x, block.skip.weight, block.skip.bias)) / math.sqrt(2)
    qkv = functional.conv2d(norm(block.norm2, h), block.qkv.weight, block.qkv.bias).flatten(2)
    width = 12 // heads
    heads_out = []
    for head in range(heads):
        rows = qkv[:, 3 * width * head : 3 * width * (head + 1)]
        q, k, v = (rows[:, part::3].transpose(1, 2) for part in range(3))
        heads_out.append(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2))
    attended = torch.cat(heads_out, dim=1).reshape(h.shape)
    wanted = (functional.conv2d(attended, block.proj.weight, block.proj.bias) + h) / math.sqrt(2)
    torch.testing.assert_close(block.eval()(x, emb), wanted)


def test_skip_exists_only_where_channels_or_resolution_change():
    def skip(channels, **options):
        return UNetBlock(8, channels, emb_channels=4, **options).skip

    assert skip(8) is None
    assert skip(8, up=True).weight is None
    assert skip(8, up=True, resample_proj=True).weight.shape == (8, 8, 1, 1)
    assert skip(12, down=True).weight.shape == (12, 8, 1, 1)


def test_encoder_and_decoder_with_auxiliary_paths_by_hand():
    for encoder_type in ("skip", "residual"):
        net = randomized(SongUNet(**TINY, encoder_type=encoder_type, decoder_type="skip")).eval()
        x, noise, labels = rand(2, 3, 8, 8), rand(2, seed=1), rand(2, 4, seed=2)
        emb, enc, dec = net.embed(noise, labels), net.enc, net.dec
        s0 = enc["8x8_conv"](x)
        s1 = enc["8x8_block0"](s0, emb)
        s2 = enc["4x4_down"](s1, emb)
        if encoder_type == "skip":
            s2 = s2 + enc["4x4_aux_skip"](functional.avg_pool2d(x, 2))
        else:
            s2 = (s2 + enc["4x4_aux_residual"](x)) / math.sqrt(2)
        s3 = enc["4x4_block0"](s2, emb)
        h = dec["4x4_in1"](dec["4x4_in0"](s3, emb), emb)
        h = dec["4x4_block1"](torch.cat([dec["4x4_block0"](torch.cat([h, s3], 1), emb), s2], 1), emb)
        low = dec["4x4_aux_conv"](functional.silu(dec["4x4_aux_norm"](h)))
        h = dec["8x8_up"](h, emb)
        h = dec["8x8_block1"](torch.cat([dec["8x8_block0"](torch.cat([h, s1], 1), emb), s0], 1), emb)
        high = dec["8x8_aux_conv"](functional.silu(dec["8x8_aux_norm"](h)))
        wanted = functional.interpolate(low, scale_factor=2, mode="nearest") + high
        torch.testing.assert_close(net(x, noise, labels), wanted)


def test_auxiliary_path_runs_on_through_every_level():
    for encoder_type in ("skip", "residual"):
        options = {**TINY, "channel_mult": [1, 1, 1], "num_blocks": 0}
        net = randomized(SongUNet(**options, encoder_type=encoder_type)).eval()
        x, emb, enc = rand(2, 3, 8, 8), rand(2, 64, seed=1), net.enc
        s0 = enc["8x8_conv"](x)
        s1 = enc["4x4_down"](s0, emb)
        if encoder_type == "skip":
            s1 = s1 + enc["4x4_aux_skip"](functional.avg_pool2d(x, 2))
            s2 = enc["2x2_down"](s1, emb) + enc["2x2_aux_skip"](functional.avg_pool2d(x, 4))
        else:
            s1 = (s1 + enc["4x4_aux_residual"](x)) / math.sqrt(2)
            s2 = (enc["2x2_down"](s1, emb) + enc["2x2_aux_residual"](s1)) / math.sqrt(2)
        for found, wanted in zip(net._encode(x, emb), [s0, s1, s2], strict=True):
            torch.testing.assert_close(found, wanted)


def test_images_need_not_be_square_nor_of_the_nominal_size():
    net = SongUNet(20, 3, 3, model_channels=16, channel_mult=[1, 1, 1], num_blocks=1, attn_resolutions=[]).eval()
    assert net(torch.randn(2, 3, 20, 12), torch.zeros(2), None).shape == (2, 3, 20, 12)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 3, 7, 8), (1, 3, 8, 9), (3, 8, 8), (1, 3, 0, 8)], ids=str)
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="x must"):
        SongUNet(**TINY)(torch.zeros(shape), torch.zeros(1), None)


@pytest.mark.parametrize("name", ["embedding_type", "encoder_type", "decoder_type"])
def test_unknown_types_are_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=rf"{name}.*standard|{name}.*positional.*'sideways'"):
        SongUNet(**TINY, **{name: "sideways"})


def test_initial_weights_follow_their_modes():
    torch.manual_seed(0)
    net = SongUNet(**{**TINY, "model_channels": 64})
    block = net.dec["4x4_in0"]
    bound = math.sqrt(6 / (128 * 9 + 128 * 9))
    for layer, wanted in (
        (block.conv0, bound),
        (block.conv1, 1e-5 * bound),
        (block.proj, 1e-5 * math.sqrt(6 / (128 + 128))),
        (block.qkv, math.sqrt(0.2) * math.sqrt(6 / (128 + 384))),
        (block.affine, math.sqrt(6 / (256 + 128))),
        (net.dec["8x8_aux_conv"], 1e-5 * math.sqrt(6 / (64 * 9 + 2 * 9))),
    ):
        largest = float(layer.weight.detach().abs().max())
        assert 0.97 * wanted < largest <= wanted
    assert all(not bool(p.any()) for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("mode", "deviation"),
    [
        ("xavier_uniform", math.sqrt(2 / 40)),
        ("xavier_normal", math.sqrt(2 / 40)),
        ("kaiming_uniform", math.sqrt(1 / 10)),
        ("kaiming_normal", math.sqrt(1 / 10)),
    ],
)
def test_initialisation_modes_have_their_variance(mode, deviation):
    torch.manual_seed(0)
    weights = torch.cat([Linear(10, 30, init_mode=mode).weight.detach().flatten() for _ in range(100)])
    assert abs(float(weights.std()) / deviation - 1) < 0.02
    assert abs(float(weights.mean())) < 0.02 * deviation
    with pytest.raises(ValueError, match=r"mode.*'nothing'"):
        Linear(2, 2, init_mode="nothing")


def test_dropout_and_label_dropout_act_in_training_only():
    net = SongUNet(**TINY, label_dropout=0.999, dropout=0.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    x, noise, labels = torch.randn(4, 3, 8, 8), torch.zeros(4), torch.eye(4)
    torch.manual_seed(3)
    torch.testing.assert_close(net(x, noise, labels), net(x, noise, torch.zeros(1, 4)))
    net.eval()
    assert not torch.allclose(net(x, noise, labels), net(x, noise, torch.zeros(1, 4)))
    dropping = SongUNet(**TINY, dropout=0.5)
    dropping.load_state_dict(net.state_dict())
    assert not torch.equal(dropping(x, noise, labels), dropping(x, noise, labels))
    assert torch.equal(dropping.eval()(x, noise, labels), net(x, noise, labels))


def test_label_dropout_drops_at_its_rate():
    net = SongUNet(**{**TINY, "label_dim": 1}, label_dropout=0.25)
    with torch.no_grad():
        net.map_label.weight.fill_(1.0)
        net.map_label.bias.zero_()
    torch.manual_seed(0)
    emb = net.embed(torch.zeros(1), torch.ones(1, 1), batch=4000)
    reference = net.eval().embed(torch.zeros(1), torch.ones(1, 1))
    kept = (emb - reference).abs().amax(dim=1) < 1e-4
    assert abs(float(kept.float().mean()) - 0.75) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_half_precision_rounds_weights_and_the_embedding_result():
    block = make_block().float().eval().requires_grad_(False)
    x, emb = rand(2, 8, 4, 4).half(), rand(2, 6, seed=1).float()
    rounded = make_block().float().eval().requires_grad_(False)
    for name, parameter in rounded.named_parameters():
        if not name.startswith("affine"):
            parameter.copy_(parameter.half().float())
    result = block(x, emb)
    assert result.dtype == torch.float16
    assert torch.equal(result, rounded(x, emb))
    close = rounded(x.float(), emb)
    assert float((result.float() - close).abs().max()) < 0.01 * float(close.abs().max())
