"""sample(): an image is a function of its seed, whatever the batch; labels, limits and failures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import tiny
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

import edm_fast
from edm_fast.networks import EDMPrecond
from edm_fast.ops.backends import extension
from edm_fast.ops.randn import DOMAIN_LABELS
from edm_fast.reference import samplers as reference
from edm_fast.reference.exact_denoisers import GaussianDenoiser, GaussianMixtureDenoiser
from edm_fast.samplers import Progress, random_class
from edm_fast.samplers.recovery import FINITE, Precision, finite_images

SEEDS = [7, 0, 2**64 - 1, 123456789012, 3, 3, 99]


def mixture() -> GaussianMixtureDenoiser:
    """A net whose arithmetic does not depend on the batch."""
    means = torch.linspace(-1, 1, 3 * 2 * 6 * 6).reshape(3, 2, 6, 6)
    return GaussianMixtureDenoiser(means, [0.2, 0.3, 0.1])


def small_net(**options):
    torch.manual_seed(1)
    net = EDMPrecond(
        img_resolution=8,
        img_channels=1,
        label_dim=4,
        model_type="SongUNet",
        model_channels=16,
        channel_mult=[1],
        num_blocks=1,
        attn_resolutions=[],
        **options,
    ).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.nn.init.normal_(net.model.map_label.weight, std=5)
    return net


@pytest.mark.parametrize("S_churn", [0, 10])
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_every_batch_split_gives_the_same_bits(solver, S_churn):
    options = {"num_steps": 6, "solver": solver, "S_churn": S_churn}
    whole = edm_fast.sample(mixture(), SEEDS, **options)
    assert whole.shape == (7, 2, 6, 6)
    assert whole.dtype == torch.float32
    for batch in (1, 2, 3, 6):
        assert_same_bits(edm_fast.sample(mixture(), SEEDS, batch=batch, **options), whole)
    order = [6, 2, 0, 5, 1, 3, 4]
    assert_same_bits(edm_fast.sample(mixture(), [SEEDS[i] for i in order], **options), whole[order])
    assert_same_bits(whole[4], whole[5])


@settings(max_examples=20, deadline=None)
@given(seeds=st.lists(st.integers(-(2**63), 2**64 - 1), max_size=5), batch=st.integers(1, 6))
def test_any_seeds_and_batch(seeds, batch):
    images = edm_fast.sample(mixture(), seeds, num_steps=2, batch=batch)
    assert images.shape == (len(seeds), 2, 6, 6)
    for seed, image in zip(seeds, images, strict=True):
        assert_same_bits(edm_fast.sample(mixture(), seed, num_steps=2)[0], image)


@pytest.mark.parametrize("S_churn", [0, 10])
def test_noise_of_torch_generators_in_any_batch(S_churn):
    """Of a network without labels; a seed counts modulo 2³²."""
    generators = [torch.Generator().manual_seed(seed % 2**32) for seed in SEEDS]
    latents = torch.stack([torch.randn([2, 6, 6], generator=each) for each in generators])

    def randn_like(x):
        return torch.stack([torch.randn(x.shape[1:], dtype=x.dtype, generator=each) for each in generators])

    options = {"num_steps": 6, "S_churn": S_churn}
    expected = reference.edm_sampler(mixture(), latents, randn_like=randn_like, **options)
    images = edm_fast.sample(mixture(), SEEDS, rng="torch", **options)
    assert relative_error(images, expected) <= 2 * torch.finfo(torch.float32).eps
    assert_same_bits(edm_fast.sample(mixture(), SEEDS, rng="torch", batch=2, **options), images)
    net = mixture()
    torch.set_default_dtype(torch.float64)
    try:
        assert_same_bits(edm_fast.sample(net, SEEDS, rng="torch", **options), images)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("S_churn", [0, 10])
def test_noise_is_draw_0_for_latents_and_i_plus_1_for_step_i(S_churn):
    draws = iter(range(1, 100))

    def randn_like(x):
        return edm_fast.randn(x.shape[1:], SEEDS, next(draws), dtype=x.dtype)

    latents = edm_fast.randn((2, 6, 6), SEEDS, 0)
    options = {"num_steps": 6, "S_churn": S_churn}
    expected = reference.edm_sampler(mixture(), latents, randn_like=randn_like, **options)
    images = edm_fast.sample(mixture(), SEEDS, **options)
    # float32 images of the same float64 samples, up to a rounding that falls on the other side.
    assert relative_error(images, expected) <= 2 * torch.finfo(torch.float32).eps


def test_a_float32_state_differs_in_its_last_bits_only():
    net = GaussianDenoiser(std=0.5)
    double = edm_fast.sample(net, SEEDS, num_steps=18)
    single = edm_fast.sample(net, SEEDS, num_steps=18, state_dtype=torch.float32)
    assert 0 < relative_error(single, double) <= SAMPLER_FLOAT32


def test_labels_as_ids_and_as_rows_are_the_same():
    net = small_net()
    ids = [3, 0, 1]
    by_ids = edm_fast.sample(net, range(3), ids, num_steps=3)
    for labels in (torch.tensor(ids), torch.eye(4)[ids], torch.eye(4, dtype=torch.int64)[ids], tuple(ids)):
        assert_same_bits(edm_fast.sample(net, range(3), labels, num_steps=3), by_ids)
    without = edm_fast.sample(net, range(3), num_steps=3)
    zeros = edm_fast.sample(net, range(3), torch.zeros([3, 4]), num_steps=3)
    assert relative_error(zeros, without) <= SAMPLER_FLOAT32  # one row for all goes through another GEMM
    assert relative_error(without, by_ids) > SAMPLER_FLOAT32


def test_progress_counts_images():
    seen = []
    edm_fast.sample(mixture(), range(5), num_steps=2, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_callback_sees_every_step_before_its_update():
    seen: list[Progress] = []
    net = GaussianDenoiser(std=0.5)
    images = edm_fast.sample(net, range(2), num_steps=4, callback=seen.append)
    assert [info.step for info in seen] == [0, 1, 2, 3]
    assert {info.num_steps for info in seen} == {4}
    assert seen[0].sigma == pytest.approx(80)
    latents = edm_fast.randn((1, 8, 8), range(2), dtype=torch.float64)
    assert relative_error(seen[0].x, seen[0].sigma * latents) <= SAMPLER_FLOAT64
    for info in seen:
        assert_same_bits(info.denoised, net(info.x, torch.tensor(info.sigma, dtype=torch.float64)))
    assert_same_bits(edm_fast.sample(net, range(2), num_steps=4), images)


def test_a_net_in_training_mode_is_reported(caplog):
    edm_fast.sample(small_net(), [1], num_steps=1)
    assert not caplog.records
    edm_fast.sample(small_net().train(), [1], num_steps=1)
    assert "training mode" in caplog.text


def test_an_empty_list_of_seeds():
    assert edm_fast.sample(mixture(), []).shape == (0, 2, 6, 6)


def test_shape_may_differ_from_the_networks():
    assert edm_fast.sample(small_net(), [1, 2], num_steps=2, shape=(1, 16, 8)).shape == (2, 1, 16, 8)
    assert edm_fast.sample(lambda x, sigma, labels: x / 2, [1], num_steps=2, shape=(3, 5, 4)).shape == (1, 3, 5, 4)


class OutOfMemory(GaussianDenoiser):
    """Cannot take more than `limit` images."""

    def __init__(self, limit, error):
        super().__init__(std=0.5)
        self.limit, self.error, self.batches = limit, error, []

    def __call__(self, x, sigma, class_labels=None):
        if x.shape[0] > self.limit:
            raise self.error
        self.batches.append(x.shape[0])
        return super().__call__(x, sigma)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_keeps_the_bits(error):
    net = OutOfMemory(3, error)
    images = edm_fast.sample(net, range(10), num_steps=3, batch=8)
    assert max(net.batches) <= 3
    assert_same_bits(images, edm_fast.sample(GaussianDenoiser(std=0.5), range(10), num_steps=3))


def test_without_a_batch_size_it_is_all_or_an_error():
    net = OutOfMemory(3, torch.OutOfMemoryError("Tried to allocate 20.00 GiB"))
    images = edm_fast.sample(net, range(3), num_steps=3, batch=None)
    assert_same_bits(images, edm_fast.sample(GaussianDenoiser(std=0.5), range(3), num_steps=3))
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        edm_fast.sample(net, range(4), num_steps=3, batch=None)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 KiB. GPU 0 has", 2560),
        ("[enforce fail at alloc_cpu.cpp:117] err == 0. can't allocate memory: you tried to allocate 800 bytes.", 800),
        ("can't allocate 4096 bytes of working memory", 4096),
    ],
)
def test_the_error_at_one_image_says_how_many_bytes(message, wanted):
    with pytest.raises(MemoryError, match=f"does not fit in memory; {wanted} bytes more were needed: "):
        edm_fast.sample(OutOfMemory(0, MemoryError(message)), range(4), num_steps=2)


def test_out_of_memory_at_one_image_is_an_error_with_the_size():
    with pytest.raises(MemoryError, match=r"batch: a single image.*20\.00 GiB"):
        edm_fast.sample(OutOfMemory(0, torch.OutOfMemoryError("Tried to allocate 20.00 GiB")), range(4), num_steps=2)


def test_other_errors_of_a_net_pass_through():
    with pytest.raises(RuntimeError, match="broken layer"):
        edm_fast.sample(OutOfMemory(0, RuntimeError("broken layer")), range(4), num_steps=2)


def test_images_that_overflow_in_float16_alone_are_made_again_in_float32():
    """The rule itself, on a stand-in for a network that overflows in float16 for seeds 3 and -1."""
    calls = []
    seeds = torch.tensor([2, 3, 5, -1])

    def make(chosen, how):
        calls.append((chosen.tolist(), how))
        images = seeds[chosen].float()[:, None] * torch.ones(2)
        first_bad = torch.full_like(chosen, FINITE)
        if how is not Precision.FLOAT32:
            images[(chosen == 1) | (chosen == 3), 1] = torch.inf
            first_bad[chosen == 1], first_bad[chosen == 3] = 7, 6
        return images, first_bad

    def worse(chosen, how):
        images, first_bad = make(chosen, how)
        first_bad[chosen == 3] = 5
        return images, first_bad

    images = finite_images(make, seeds, [], True, str)
    assert calls == [([0, 1, 2, 3], Precision.GIVEN), ([1, 3], Precision.FLOAT32)]
    assert_same_bits(images, seeds.float()[:, None] * torch.ones(2))
    with pytest.raises(FloatingPointError, match="1 of 4 images: seeds 18446744073709551615; first 5$"):
        finite_images(worse, seeds, [], True, str)
    with pytest.raises(FloatingPointError, match="2 of 4 images: seeds 3, 18446744073709551615; first 6$"):
        finite_images(make, seeds, [], False, str)


def overflowing():
    """A network prepared in float16, whose activations leave it for class 3: its scales are beyond 65504."""
    net = tiny("adm")
    with torch.no_grad():
        net.model.map_label.weight[:, 3] *= 1e6
    return edm_fast.prepare(net, dtype=torch.float16)


def test_samples_that_overflow_in_float16_are_made_again_in_float32(caplog):
    seeds, labels = range(5), [0, 3, 1, 3, 2]
    net = overflowing()
    whole = edm_fast.sample(net, seeds, labels, num_steps=3)
    assert [record.getMessage() for record in caplog.records] == [
        "2 images overflowed in 16 bits and are made again in float32: seeds 1, 3; first at step 0 of 3, sigma 80"
    ]
    broken, kept = [1, 3], [0, 2, 4]
    assert_same_bits(whole[broken], edm_fast.sample(net.net, broken, [3, 3], num_steps=3))
    assert_same_bits(whole[kept], edm_fast.sample(net, kept, [0, 1, 2], num_steps=3))
    assert relative_error(whole[kept], edm_fast.sample(net.net, kept, [0, 1, 2], num_steps=3)) > SAMPLER_FLOAT32
    caplog.clear()
    for batch in (1, 2, 3):
        assert_same_bits(edm_fast.sample(net, seeds, labels, num_steps=3, batch=batch), whole)


def test_a_dtype_that_the_network_chose_itself_is_given_up_too(caplog):
    """By its plan, by its layers where there is none, and by its own forward where that is hooked into."""
    net = overflowing().net
    expected = edm_fast.sample(net, [7, 8], [3, 1], num_steps=2)
    net.compute_dtype = torch.float16
    for change in (lambda: None, lambda: net.register_forward_hook(lambda *arguments: None)):
        change()
        caplog.clear()
        made = edm_fast.sample(net, [7, 8], [3, 1], num_steps=2)
        assert "1 images overflowed in 16 bits and are made again in float32: seeds 7;" in caplog.text
        assert relative_error(made[0], expected[0]) <= SAMPLER_FLOAT32
        assert SAMPLER_FLOAT32 < relative_error(made[1], expected[1]) < 0.1


def test_dropout_does_not_act_in_float32_if_it_does_not_in_float16():
    net = overflowing()
    expected = edm_fast.sample(net, [7], [3], num_steps=2)
    net.net.train()
    for module in net.net.modules():
        module.dropout = 0.5
    assert_same_bits(edm_fast.sample(net, [7], [3], num_steps=2), expected)


def test_images_that_float32_cannot_hold_are_not_given():
    def net(x, sigma, class_labels):
        return torch.full_like(x, 1e39)

    with pytest.raises(FloatingPointError, match="seeds 4; first at step 1 of 2, sigma 0.002$") as caught:
        edm_fast.sample(net, [4], num_steps=2, solver="euler", shape=(1, 2, 2))
    assert caught.value.finite.tolist() == [False]


def test_debug_overflow_names_the_first_layer(caplog):
    net = overflowing()
    edm_fast.sample(net, [7], [3], num_steps=2, debug_overflow=True)
    assert "seeds 7; first at step 0 of 2, sigma 80, in layer model.enc.8x8_block0.norm1" in caplog.text
    assert net.net.compute_dtype is None
    assert not any(module._forward_hooks for module in net.net.modules())


def test_debug_overflow_names_a_layer_of_the_network_that_guides(caplog):
    net, guide = edm_fast.prepare(tiny("adm", seed=8), dtype=torch.float16), overflowing()
    edm_fast.sample(net, [7], [3], num_steps=2, gnet=guide, guidance=2, debug_overflow=True)
    assert "seeds 7; first at step 0 of 2, sigma 80, in layer gnet.model.enc.8x8_block0.norm1" in caplog.text


def test_the_first_layer_that_breaks_is_named():
    net = small_net()
    torch.nn.init.constant_(net.model.enc["8x8_block0"].conv1.weight, torch.nan)
    layer = r"model\.enc\.8x8_block0\.conv1"
    with pytest.raises(FloatingPointError, match=f"seeds 4, 5; first at step 0 of 2, sigma 80, in layer {layer}$"):
        edm_fast.sample(net, [4, 5], num_steps=2)
    assert not any(module._forward_hooks for module in net.modules())


def test_nan_names_the_seeds():
    class Breaking(GaussianDenoiser):
        def __call__(self, x, sigma, class_labels=None):
            denoised = super().__call__(x, sigma)
            if sigma < 0.01:
                denoised[1, 0, 3, 2] = torch.nan
            return denoised

    with pytest.raises(
        FloatingPointError, match="1 of 2 images: seeds 18446744073709551615; first at step 3 of 4, sigma 0.002$"
    ):
        edm_fast.sample(Breaking(), [5, -1], num_steps=4, solver="euler")


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"seeds": [0.5]}, TypeError, "seeds"),
        ({"seeds": [2**64]}, ValueError, "seeds"),
        ({"seeds": None}, TypeError, "seeds"),
        ({"seeds": 1.5}, TypeError, "seeds"),
        ({"seeds": [torch.tensor(1.5)]}, TypeError, "seeds"),
        ({"shape": 5}, TypeError, "shape"),
        ({"shape": ("a", 1, 1)}, TypeError, "shape"),
        ({"shape": (1, math.inf, 2)}, TypeError, "shape"),
        ({"device": "nope"}, ValueError, "device"),
        ({"class_labels": [4, 0]}, ValueError, "class_labels"),
        ({"class_labels": [-1, 0]}, ValueError, "class_labels"),
        ({"class_labels": [0]}, ValueError, "class_labels"),
        ({"class_labels": torch.zeros([1, 4])}, ValueError, "class_labels"),
        ({"class_labels": torch.zeros([2, 3])}, ValueError, "class_labels"),
        ({"class_labels": torch.zeros([2, 4, 1])}, ValueError, "class_labels"),
        ({"class_labels": [0.0, 1.0]}, TypeError, "class_labels"),
        ({"class_labels": 3}, TypeError, "class_labels"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"batch": 0}, ValueError, "batch"),
        ({"batch": 2.0}, TypeError, "batch"),
        ({"rng": "numpy"}, ValueError, "rng"),
        ({"solver": "dpm"}, ValueError, "solver"),
        ({"shape": (3, 8, 8)}, ValueError, "shape"),
        ({"shape": (1, 8)}, ValueError, "shape"),
        ({"shape": (1, 8, 0)}, ValueError, "shape"),
        ({"state_dtype": torch.float16}, TypeError, "state_dtype"),
        ({"device": "meta"}, ValueError, "device"),
        ({"S_churn": math.nan}, ValueError, "S_churn"),
        ({"sigma_max": -1}, ValueError, "sigma_max"),
        ({"discretization": "cosine"}, ValueError, "discretization"),
    ],
)
def test_bad_arguments_are_named(arguments, error, name):
    with pytest.raises(error, match=f"^{name}"):
        edm_fast.sample(small_net(), **{"seeds": [1, 2], **arguments})


def test_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="unconditional"):
        edm_fast.sample(mixture(), [1], [0])


def test_a_net_without_a_size_needs_a_shape():
    with pytest.raises(ValueError, match="^shape"):
        edm_fast.sample(lambda x, sigma, labels: x, [1])


def test_random_classes_are_uniform_and_fixed_by_the_seed():
    classes = [random_class(seed, 10) for seed in range(5000)]
    assert classes == [random_class(seed, 10) for seed in range(5000)]
    words = [extension().noise_words(seed, 0, 0, DOMAIN_LABELS)[0] for seed in range(5000)]
    assert classes == [word * 10 // 2**32 for word in words]
    counts = torch.bincount(torch.tensor(classes), minlength=10)
    assert len(counts) == 10
    # Five standard deviations of a binomial with 5000 trials of probability 1/10.
    assert (counts - 500).abs().max() <= 5 * math.sqrt(5000 * 0.1 * 0.9)
