"""The samplers of NVlabs/edm by their names, and noise by one torch generator per seed, in the order of its tool."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import reference_of, tiny
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

import edm_fast
from edm_fast import samplers
from edm_fast.compat import nvlabs
from edm_fast.compat.nvlabs import StackedRandomGenerator
from edm_fast.reference import samplers as reference
from edm_fast.reference.exact_denoisers import GaussianDenoiser

SEEDS = [3, 2**32 + 5, -1]
WORDS = [3, 5, 2**32 - 1]


def generators():
    return [torch.Generator().manual_seed(word) for word in WORDS]


def test_a_sample_has_the_numbers_of_its_own_generator():
    """Seeds count modulo 2³²; each call goes on where the one before ended."""
    random, plain = StackedRandomGenerator("cpu", SEEDS), generators()
    first = random.randn([3, 2, 4, 4])
    assert_same_bits(first, torch.stack([torch.randn([2, 4, 4], generator=each) for each in plain]))
    labels = random.randint(10, size=[3])
    assert_same_bits(labels, torch.stack([torch.randint(10, size=[], generator=each) for each in plain]))
    like = torch.empty([3, 2, 4, 4], dtype=torch.float64)
    noise = random.randn_like(like)
    assert noise.dtype == torch.float64
    expected = torch.stack([torch.randn([2, 4, 4], dtype=torch.float64, generator=each) for each in plain])
    assert_same_bits(noise, expected)
    between = random.randint(-5, 5, size=[3, 7], device="cpu", dtype=torch.int32)
    expected = torch.stack([torch.randint(-5, 5, size=[7], dtype=torch.int32, generator=each) for each in plain])
    assert_same_bits(between, expected)


def test_other_samples_in_the_batch_do_not_matter():
    together, alone = StackedRandomGenerator("cpu", SEEDS), StackedRandomGenerator("cpu", torch.tensor([5]))
    for _ in range(2):
        assert_same_bits(together.randn([3, 2, 4])[1:2], alone.randn([1, 2, 4]))
        assert_same_bits(together.randint(9, size=[3, 5])[1:2], alone.randint(9, size=[1, 5]))


def test_the_first_extent_is_the_number_of_seeds():
    random = StackedRandomGenerator("cpu", SEEDS)
    for size in ([2, 4], [], [4]):
        with pytest.raises(ValueError, match="^size: got .*; the first extent is 3"):
            random.randn(size)
    with pytest.raises(ValueError, match="^size: got"):
        random.randint(5, size=[2])
    with pytest.raises(TypeError, match="^bounds: got 0"):
        random.randint(size=[3])
    with pytest.raises(TypeError, match="^seeds: got 0.5"):
        StackedRandomGenerator("cpu", [0.5])
    assert StackedRandomGenerator("cpu", []).randn([0, 3, 2], dtype=torch.float64).shape == (0, 3, 2)


@pytest.mark.parametrize("name", ["edm_sampler", "ablation_sampler"])
def test_the_tools_loop_gives_the_same_images(name):
    """Latents, then labels, then a float64 draw per step, against plain generators and the paper's own form."""
    options = {"num_steps": 6, "S_churn": 4, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    net = GaussianDenoiser(img_channels=2, img_resolution=4)
    random, plain = StackedRandomGenerator("cpu", SEEDS), generators()
    latents = random.randn([3, 2, 4, 4], device="cpu")
    random.randint(10, size=[3], device="cpu")
    images = getattr(nvlabs, name)(net, latents, None, randn_like=random.randn_like, **options)

    drawn = torch.stack([torch.randn([2, 4, 4], generator=each) for each in plain])
    for each in plain:
        torch.randint(10, size=[], generator=each)

    def randn_like(x):
        return torch.stack([torch.randn(x.shape[1:], dtype=x.dtype, generator=each) for each in plain])

    expected = getattr(reference, name)(net, drawn, None, randn_like=randn_like, **options)
    assert images.dtype == torch.float64
    assert relative_error(images, expected) <= SAMPLER_FLOAT64


def test_images_depend_on_their_seeds_alone():
    net = GaussianDenoiser(img_channels=2, img_resolution=4)

    def images(seeds):
        random = StackedRandomGenerator("cpu", seeds)
        latents = random.randn([len(seeds), 2, 4, 4])
        return nvlabs.edm_sampler(net, latents, randn_like=random.randn_like, num_steps=5, S_churn=3)

    together = images(SEEDS)
    assert_same_bits(torch.cat([images(SEEDS[:1]), images(SEEDS[1:])]), together)
    assert_same_bits(images(SEEDS[::-1]).flip(0), together)


def test_a_foreign_network_object_works_as_it_is_and_accelerated():
    """The reference module stands for one of that code: the same class name, attributes and state dict."""
    foreign = reference_of(tiny(label_dim=3))
    latents, labels = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(1)), torch.eye(3)[:2]
    as_it_is = nvlabs.edm_sampler(foreign, latents, labels, num_steps=4)
    with torch.no_grad():
        expected = reference.edm_sampler(foreign, latents, labels, num_steps=4)
    assert relative_error(as_it_is, expected) <= SAMPLER_FLOAT32
    accelerated = nvlabs.edm_sampler(edm_fast.accelerate(foreign), latents, labels, num_steps=4)
    assert relative_error(accelerated, expected) <= SAMPLER_FLOAT32


def test_the_samplers_are_those_of_edm_fast():
    assert nvlabs.edm_sampler is samplers.edm_sampler
    assert nvlabs.ablation_sampler is samplers.ablation_sampler
