"""Foreign EDM networks, known by name and structure, become ours; others are refused with what differs."""

from __future__ import annotations

import copy

import pytest
import torch
from tolerance import assert_same_bits
from torch import nn

import edm_fast
from edm_fast import networks
from edm_fast.reference import preconditioning as reference

COMMON = {"img_resolution": 16, "img_channels": 3, "model_channels": 16, "num_blocks": 1, "dropout": 0.0}
SONG = {**COMMON, "model_type": "SongUNet", "channel_mult": [1, 2], "attn_resolutions": [8]}
ADM = {**COMMON, "model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2], "attn_resolutions": [8]}
NETWORKS = {
    "ddpmpp": {**SONG, "label_dim": 4, "augment_dim": 9, "label_dropout": 0.25, "dropout": 0.13},
    "ncsnpp": {
        **SONG,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "skip": {**SONG, "encoder_type": "skip", "decoder_type": "skip", "channel_mult": [2, 1, 2], "num_blocks": 2},
    "one level": {**SONG, "channel_mult": [1], "attn_resolutions": [], "img_channels": 1, "channel_mult_emb": 2},
    "adm": {**ADM, "label_dim": 4, "augment_dim": 9, "use_fp16": True},
    "adm without attention": {**ADM, "model_channels": 24, "img_resolution": 20},
}
PRECONDITIONINGS = {
    "EDMPrecond": {"sigma_data": 0.7, "sigma_min": 0.01},
    "VPPrecond": {"beta_d": 15.0, "M": 500},
    "VEPrecond": {"sigma_max": 50.0},
    "iDDPMPrecond": {"M": 200, "C_2": 0.01},
}


def foreign(precond="EDMPrecond", *args, recorded=False, seed=0, **kwargs):
    """A module with EDM's names and structure whose classes are not ours; `recorded` as EDM's persistence does it."""
    torch.manual_seed(seed)
    net = getattr(reference, precond)(*args, **kwargs)
    if recorded:
        net._init_args, net._init_kwargs = args, kwargs
    del net.init_kwargs
    net.model.__class__ = type(type(net.model).__name__, (type(net.model),), {})
    net.__class__ = type(precond, (type(net),), {})
    return net.eval()


def same_function(ours, theirs):
    x = torch.randn([2, theirs.img_channels, theirs.img_resolution, 16], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, 0.5), theirs(x, 0.5))


@pytest.mark.parametrize("recorded", [False, True], ids=["inferred", "recorded"])
@pytest.mark.parametrize("name", NETWORKS)
def test_architectures(name, recorded):
    theirs = foreign(**NETWORKS[name], recorded=recorded)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ours = edm_fast.accelerate(theirs)
    assert type(ours) is networks.EDMPrecond
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, tensor in ours.state_dict().items():
        assert_same_bits(tensor, theirs.state_dict()[key])
        assert tensor.data_ptr() != theirs.state_dict()[key].data_ptr()
    same_function(ours, theirs)
    assert ours.use_fp16 == theirs.use_fp16
    assert ours.model.label_dropout == theirs.model.label_dropout
    block, block2 = (next(part for part in net.modules() if hasattr(part, "dropout")) for net in (ours, theirs))
    assert block.dropout == block2.dropout


@pytest.mark.parametrize("recorded", [False, True], ids=["inferred", "recorded"])
@pytest.mark.parametrize("precond", PRECONDITIONINGS)
def test_preconditionings(precond, recorded):
    theirs = foreign(precond, **NETWORKS["adm"], **PRECONDITIONINGS[precond], recorded=recorded)
    ours = edm_fast.accelerate(theirs)
    assert type(ours) is getattr(networks, precond)
    same_function(ours, theirs)
    for name, value in PRECONDITIONINGS[precond].items():
        assert getattr(ours, name) == value


def test_positional_arguments_are_recorded_too():
    theirs = foreign("EDMPrecond", 16, 3, 4, recorded=True, **{k: v for k, v in SONG.items() if "img" not in k})
    ours = edm_fast.accelerate(theirs)
    assert (ours.img_resolution, ours.img_channels, ours.label_dim) == (16, 3, 4)


def test_ours_is_returned_as_it_is():
    ours = networks.EDMPrecond(**SONG)
    assert edm_fast.accelerate(ours) is ours


def test_modes_flags_and_dtypes_are_kept_and_no_random_numbers_are_used():
    theirs = foreign(**SONG, recorded=True).train().double()
    theirs.model.enc["8x8_down"].dropout = 0.4
    theirs.model.enc.requires_grad_(False)
    state = torch.get_rng_state()
    ours = edm_fast.accelerate(theirs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in ours.modules())
    flags = {key: parameter.requires_grad for key, parameter in theirs.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in ours.named_parameters()} == flags
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float64}
    assert [ours.model.enc[key].dropout for key in ("8x8_down", "8x8_block0")] == [0.4, 0.0]


def renamed(net, name):
    net.__class__ = type(name, (type(net),), {})
    return net


def without(net, attribute):
    delattr(net, attribute)
    return net


def changed(net, path, attribute, value):
    setattr(net.get_submodule(path), attribute, value)
    return net


def extra(net):
    net.model.map_extra = nn.Linear(2, 2)
    return net


def bare_blocks(net):
    """A network whose first convolution has another width than its blocks expect."""
    conv = net.model.enc["16x16_conv"]
    conv.weight = nn.Parameter(torch.zeros(16, 3, 5, 5))
    return net


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: nn.Linear(2, 2), "got a Linear"),
        (lambda net: 7, "got a int"),
        (lambda net: net.model, "got a SongUNet"),
        (lambda net: renamed(net, "CTPrecond"), "got a CTPrecond"),
        (lambda net: renamed(net.model, "UNet") and net, "its .model is a UNet"),
        (lambda net: without(net, "sigma_data"), "the attribute sigma_data"),
        (extra, "unexpected keys: model.map_extra.weight, model.map_extra.bias"),
        (lambda net: without(net.model.dec, "16x16_up") and net, "missing keys: model.dec.16x16_up"),
        (lambda net: without(net.model, "map_layer0") and net, "has no model.map_layer0.weight"),
        (bare_blocks, r"shapes: model.enc.16x16_conv.weight \[16, 3, 5, 5\] for \[16, 3, 3, 3\]"),
        (lambda net: changed(net, "model.enc.8x8_block0", "num_heads", 4), "8x8_block0.num_heads is 4, not 1"),
        (lambda net: changed(net, "model.enc.8x8_block0.norm0", "eps", 1e-3), "8x8_block0.norm0.eps is 0.001, not"),
        (lambda net: changed(net, "", "img_resolution", 32), "img_resolution is 32, not 16"),
    ],
)
def test_others_are_refused_with_what_differs(spoil, message):
    with pytest.raises(ValueError, match=f"^module: .*{message}"):
        edm_fast.accelerate(spoil(foreign(**copy.deepcopy(SONG))))


def test_recorded_arguments_that_are_unknown_are_refused():
    theirs = foreign(**SONG, recorded=True)
    theirs._init_kwargs = {**theirs._init_kwargs, "attention_type": "linear"}
    with pytest.raises(ValueError, match="^module: .*attention_type"):
        edm_fast.accelerate(theirs)
    theirs._init_kwargs = {**SONG, "num_blocks": 2}
    with pytest.raises(ValueError, match="^module: .*missing keys"):
        edm_fast.accelerate(theirs)
