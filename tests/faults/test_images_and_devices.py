"""Images that the network does not make, none at all, and tensors of other devices, dtypes and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from generate_command import run
from tiny_networks import tiny
from tolerance import assert_same_bits

import edm_fast
from edm_fast.compat import k_diffusion
from edm_fast.compat.diffusers import EDMEulerScheduler, EDMHeunScheduler
from edm_fast.samplers import ablation_sampler, edm_sampler

NET = tiny("adm")
PREPARED = edm_fast.prepare(NET)
LATENTS = edm_fast.randn((3, 8, 8), [1, 2])


def denoiser(x: torch.Tensor, sigma: torch.Tensor, class_labels: Any = None) -> torch.Tensor:
    return x / 2


WRONG_IMAGES = [
    (LATENTS[:, :2], "2 channels; the network has 3"),
    (torch.zeros([0, 2, 8, 8]), "2 channels; the network has 3"),
    (torch.zeros([2, 3, 16, 16]), "images of 16x16; the network makes 8x8"),
    (torch.zeros([2, 3, 8, 9]), "images of 8x9; the network makes 8x8"),
    (LATENTS[0], r"shape is \(3, 8, 8\); the network takes \[N, 3, H, W\]"),
    (LATENTS[None], r"shape is \(1, 2, 3, 8, 8\); the network takes \[N, 3, H, W\]"),
    (torch.zeros([2, 192]), r"shape is \(2, 192\); the network takes \[N, 3, H, W\]"),
]


@pytest.mark.parametrize("net", [NET, PREPARED], ids=["network", "prepared"])
@pytest.mark.parametrize(("images", "message"), WRONG_IMAGES, ids=[message for _, message in WRONG_IMAGES])
def test_images_that_the_network_does_not_make_are_refused_at_entry(net, images, message):
    for sampler in (edm_sampler, ablation_sampler):
        with pytest.raises(ValueError, match=f"^latents: {message}$"):
            sampler(net, images)
    if len(images):  # k-diffusion's samplers give an empty batch back as it is
        with pytest.raises(ValueError, match=f"^x: {message}$"):
            k_diffusion.sample_heun(net, images, [5.0, 1.0, 0.0], disable=True)


@pytest.mark.parametrize("net", [NET, PREPARED], ids=["network", "prepared"])
@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2, 8, 8), ValueError, "2 channels; the network has 3"),
        ((3, 7, 8), ValueError, r"got \(3, 7, 8\); the network takes heights and widths that are multiples of 2"),
        ((3, 8, 9), ValueError, r"got \(3, 8, 9\); the network takes heights and widths that are multiples of 2"),
        ((3, 8), ValueError, r"got \(3, 8\); three positive integers"),
        ((3, 0, 8), ValueError, r"got \(3, 0, 8\); three positive integers"),
        ((3, 8.0, 8), TypeError, r"got \(3, 8.0, 8\); three integers"),
    ],
)
def test_a_shape_that_the_network_does_not_make_is_named(net, shape, error, message):
    with pytest.raises(error, match=f"^shape: {message}"):
        edm_fast.sample(net, [1], shape=shape)


@pytest.mark.parametrize("shape", [(2.5,), ("a",), 5, None, (float("nan"),)])
def test_extents_of_noise_are_integers_and_never_cut(shape):
    with pytest.raises(TypeError, match="^shape_per_sample: got .*; extents are integers$"):
        edm_fast.randn(shape, [1])


@pytest.mark.parametrize("seeds", [[], (), range(0), np.zeros(0, dtype=np.int64), torch.zeros(0, dtype=torch.int64)])
@pytest.mark.parametrize("batch", [64, 1, None])
def test_no_seeds_are_no_images(seeds, batch):
    assert edm_fast.sample(NET, seeds, [], batch=batch).shape == (0, 3, 8, 8)
    assert edm_fast.randn((3, 8, 8), seeds).shape == (0, 3, 8, 8)


def test_no_latents_are_no_images():
    none = LATENTS[:0]
    for sampler in (edm_sampler, ablation_sampler):
        assert sampler(NET, none, []).shape == (0, 3, 8, 8)
    assert PREPARED(none, 1.0).shape == (0, 3, 8, 8)
    assert k_diffusion.sample_heun(NET, none, [5.0, 1.0, 0.0], disable=True).shape == (0, 3, 8, 8)
    for scheduler in (EDMHeunScheduler(), EDMEulerScheduler()):
        scheduler.set_timesteps(2)
        scheduler.scale_model_input(none, scheduler.timesteps[0])
        assert scheduler.step(none, scheduler.timesteps[0], none).prev_sample.shape == (0, 3, 8, 8)


def test_generate_without_a_seed_of_its_own_writes_no_image(tmp_path):
    """The fifth of five processes that share two seeds."""
    assert "0 images in" in run("--outdir", tmp_path / "out", "--seeds", "0-1", "--shard", "4/5", "--steps", 1)
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("latents", "error", "message"),
    [
        (LATENTS.to("meta"), ValueError, "on meta; the network is on cpu"),
        (LATENTS.int(), TypeError, "dtype is torch.int32; it must be a floating-point type"),
        (LATENTS.to(torch.complex64), TypeError, "dtype is torch.complex64; it must be a floating-point type"),
        (LATENTS > 0, TypeError, "dtype is torch.bool; it must be a floating-point type"),
        (LATENTS.to_sparse(), TypeError, "layout is torch.sparse_coo; it must be torch.strided"),
        (LATENTS.numpy(), TypeError, r"got ndarray; it is a tensor \[N, C, H, W\]"),
        (None, TypeError, r"got NoneType; it is a tensor \[N, C, H, W\]"),
    ],
    ids=str,
)
def test_latents_of_another_kind_are_named(latents, error, message):
    with pytest.raises(error, match=f"^latents: {message}$"):
        edm_sampler(NET, latents)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_latents_of_any_float_layout_or_history_give_the_same_images(dtype):
    latents = LATENTS.to(dtype)
    expected = edm_sampler(NET, latents.double(), num_steps=2)
    turned = latents.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    recorded = latents.clone().requires_grad_()
    for form in (latents, turned, recorded, latents.to(memory_format=torch.channels_last)):
        made = edm_sampler(NET, form, num_steps=2)
        assert_same_bits(made, expected)
        assert not made.requires_grad


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: x.to("meta"), ValueError, "returned a tensor on meta; its input is on cpu"),
        (lambda x: x[:1], ValueError, r"returned shape \(1, 3, 8, 8\) for an input of \(2, 3, 8, 8\)"),
        (lambda x: x.int(), TypeError, "returned torch.int32 of layout torch.strided; strided float64"),
        (lambda x: x.to(torch.complex64), TypeError, "returned torch.complex64 of layout torch.strided; strided float"),
        (lambda x: x.to_sparse(), TypeError, "returned .* of layout torch.sparse_coo; strided float64"),
        (lambda x: x.numpy(), TypeError, "returned ndarray; a tensor like its input is needed"),
        (lambda x: (x,), TypeError, "returned tuple; a tensor like its input is needed"),
    ],
)
def test_what_a_function_of_the_callers_returns_is_named_by_the_function(wrong, error, message):
    with pytest.raises(error, match=f"^net: {message}"):
        edm_sampler(lambda x, sigma, labels: wrong(x), LATENTS)
    with pytest.raises(error, match=f"^net: {message}"):
        edm_fast.sample(lambda x, sigma, labels: wrong(x), [1, 2], shape=(3, 8, 8))
    with pytest.raises(error, match=f"^model: {message}"):
        k_diffusion.sample_heun(lambda x, sigma: wrong(x), LATENTS, [5.0, 0.0], disable=True)
    with pytest.raises(error, match=f"^randn_like: {message}"):
        edm_sampler(denoiser, LATENTS, randn_like=wrong, S_churn=1)
    with pytest.raises(error, match=f"^randn_like: {message}"):
        k_diffusion.sample_heun(lambda x, sigma: x / 2, LATENTS, [5.0, 0.0], s_churn=1, randn_like=wrong, disable=True)


@pytest.mark.parametrize("net", [None, 5, "net.pkl"])
def test_what_is_no_network_is_named(net):
    for call in (
        lambda: edm_fast.sample(net, [1], shape=(1, 2, 2)),
        lambda: edm_sampler(net, LATENTS),
        lambda: edm_sampler(net, LATENTS[:0]),
    ):
        with pytest.raises(
            TypeError, match=rf"^net: got {type(net).__name__}; a network, net\(x, sigma, class_labels\)"
        ):
            call()


@pytest.mark.parametrize("name", ["progress", "callback"])
def test_what_is_no_function_is_named_before_any_work(name):
    with pytest.raises(TypeError, match=f"^{name}: got int; it is a function$"):
        edm_fast.sample(denoiser, [1], shape=(1, 2, 2), **{name: 5})


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "on meta, where tensors have no values"),
        (torch.tensor([1, 2]).to_sparse(), TypeError, "layout is torch.sparse_coo; it must be torch.strided"),
        ([2**64], ValueError, "18446744073709551616 does not fit in 64 bits"),
        ([-(2**63) - 1], ValueError, "-9223372036854775809 does not fit in 64 bits"),
        (b"12", TypeError, "got a bytes; seeds are integers in order, one per sample"),
        ("12", TypeError, "got a str; seeds are integers in order, one per sample"),
        ({1, 2}, TypeError, "got a set; seeds are integers in order, one per sample"),
        ({1: 2}, TypeError, "got a dict; seeds are integers in order, one per sample"),
    ],
    ids=str,
)
def test_seeds_that_are_none_are_named(seeds, error, message):
    with pytest.raises(error, match=f"^seeds: {message}$"):
        edm_fast.randn((3,), seeds)
    with pytest.raises(error, match=f"^seeds: {message}$"):
        edm_fast.sample(denoiser, seeds, shape=(1, 2, 2))


def test_a_single_seed_of_numpy_is_a_seed_and_equal_seeds_give_equal_images():
    expected = edm_fast.randn((3,), [2**64 - 2])
    assert_same_bits(edm_fast.randn((3,), np.uint64(2**64 - 2)), expected)
    assert_same_bits(edm_fast.randn((3,), [-2, 2**64 - 2]), expected.expand(2, 3))


def test_images_on_another_device_than_the_prepared_network_are_named():
    with pytest.raises(ValueError, match="^x: is on meta; the network is on cpu$"):
        PREPARED(LATENTS.to("meta"), 1.0)
    with pytest.raises(TypeError, match=r"^x: got ndarray; it is a tensor \[N, 3, H, W\]$"):
        PREPARED(LATENTS.numpy(), 1.0)
