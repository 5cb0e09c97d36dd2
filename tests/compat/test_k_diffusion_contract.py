"""What callers of k-diffusion rely on beyond the values: dtypes, callbacks, layouts, networks as models, errors."""

from __future__ import annotations

import builtins
import itertools
import math

import pytest
import torch
from tiny_networks import tiny
from tolerance import SAMPLER_FLOAT32, assert_same_bits, relative_error

import edm_fast
from edm_fast.compat import k_diffusion as ours

SIGMAS = ours.get_sigmas_karras(5, 0.1, 10)
X = torch.randn([2, 2, 4, 4], generator=torch.Generator().manual_seed(0)) * SIGMAS[0]
OVER_LEVELS = [
    name for name in ours.__all__ if name.startswith("sample_") and "fast" not in name and "adapt" not in name
]
NO_NOISE = ("sample_lms", "sample_dpmpp_2m")


class Model:
    """A smooth model with an extra argument; keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, shift=0.0):
        assert not torch.is_grad_enabled()
        self.calls.append((x, x.clone(), sigma))
        return shift + x * (0.25 / (0.25 + sigma.float().reshape(-1, 1, 1, 1) ** 2)).to(x.dtype)


def sample(name, model, x=X, seeds=(1, 2), sigmas=SIGMAS, **options):
    """A sampler by name, over SIGMAS or their range, with noise by seeds if it draws any."""
    noise = {} if name in NO_NOISE or seeds is None else {"seeds": list(seeds)[: x.shape[0]]}
    options = {"disable": True, **noise, **options}
    if name == "sample_dpm_fast":
        return ours.sample_dpm_fast(model, x, 0.1, 10.0, 7, **options)
    if name == "sample_dpm_adaptive":
        return ours.sample_dpm_adaptive(model, x, 0.1, 10.0, **options)
    return getattr(ours, name)(model, x, sigmas, **options)


ALL = [*OVER_LEVELS, "sample_dpm_fast", "sample_dpm_adaptive"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_x_keeps_its_dtype_and_the_model_sees_it(name, dtype):
    model, seen = Model(), []
    x = X.to(dtype)
    samples = sample(name, model, x, callback=seen.append)
    assert samples.dtype == dtype
    assert not samples.requires_grad
    for given, copy, sigma in model.calls:
        assert given.dtype == sigma.dtype == dtype
        assert sigma.shape == (2,)
        assert_same_bits(given, copy)  # a model may keep its input
    assert {report["x"].dtype for report in seen} == {report["denoised"].dtype for report in seen} == {dtype}
    exact = sample(name, Model(), x.double())
    # Rounding chooses the steps where two orders nearly agree.
    least = 100 * SAMPLER_FLOAT32 if name == "sample_dpm_adaptive" else SAMPLER_FLOAT32
    assert relative_error(samples, exact) <= max(least, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ALL)
def test_extra_arguments_reach_the_model_and_x_stays_whole(name):
    x = X.clone()
    shifted = sample(name, Model(), x, extra_args={"shift": 3.0})
    assert_same_bits(x, X)
    assert float((shifted - sample(name, Model())).abs().min()) > 1


@pytest.mark.parametrize("name", ALL)
def test_channels_last_stays_channels_last(name):
    model = Model()
    samples = sample(name, model, X.contiguous(memory_format=torch.channels_last))
    assert samples.is_contiguous(memory_format=torch.channels_last)
    assert all(given.is_contiguous(memory_format=torch.channels_last) for given, _, _ in model.calls)
    assert relative_error(samples, sample(name, Model())) <= SAMPLER_FLOAT32


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_and_no_steps(name):
    model = Model()
    assert sample(name, model, X[:0]).shape == (0, 2, 4, 4)
    if name in OVER_LEVELS:
        assert_same_bits(sample(name, model, sigmas=SIGMAS[:1]), X)
        assert_same_bits(sample(name, model, sigmas=[]), X)
    else:
        x, info = ours.sample_dpm_adaptive(model, X, 2.0, 2.0, return_info=True)
        assert_same_bits(x, X)
        assert info == {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    assert model.calls == []


def test_the_callback_comes_before_the_update():
    seen = []
    sample("sample_heun", Model(), callback=seen.append, s_churn=2.0)
    assert [report["i"] for report in seen] == list(range(5))
    assert [float(report["sigma"]) for report in seen] == SIGMAS[:-1].tolist()
    assert [float(report["sigma_hat"]) for report in seen] == pytest.approx((1.4 * SIGMAS[:-1]).tolist(), rel=1e-6)
    for report in seen:
        share = 0.25 / (0.25 + report["sigma_hat"] ** 2)
        assert relative_error(report["denoised"], report["x"] * share) <= SAMPLER_FLOAT32
    assert len({report["x"].data_ptr() for report in seen}) == 5  # each is the callback's to keep


def test_reports_are_what_the_state_was():
    """x of step i + 1 follows from x and denoised of step i."""
    seen = []
    samples = sample("sample_euler", Model(), callback=seen.append, seeds=None)
    following = [*(report["x"] for report in seen[1:]), samples]
    for report, x_next, sigma_next in zip(seen, following, SIGMAS[1:], strict=True):
        slope = (report["x"] - report["denoised"]) / report["sigma"]
        expected = report["x"] + (sigma_next - report["sigma"]) * slope
        assert float((x_next - expected).abs().max()) <= SAMPLER_FLOAT32 * float(report["x"].abs().max())


@pytest.mark.parametrize("inference", [False, True])
def test_what_a_callback_writes_goes_into_the_update(inference):
    def paint(report):
        report["x"][..., 0] = 0.5
        report["denoised"][..., 0] = 0.5

    x = X.clone()
    options = {"eta": 0.0, "sigmas": SIGMAS[:-1]}  # a step to 0 would forget x
    with torch.inference_mode(inference):
        samples = sample("sample_euler_ancestral", Model(), x, callback=paint, **options)
    assert float((samples[..., 0] - 0.5).abs().max()) <= SAMPLER_FLOAT32
    assert_same_bits(samples[..., 1:], sample("sample_euler_ancestral", Model(), **options)[..., 1:])
    assert_same_bits(x, X)


def test_a_callback_that_only_looks_changes_nothing():
    for dtype in (torch.float32, torch.float16):
        x = X.to(dtype)
        watched = sample("sample_dpmpp_2m", Model(), x, callback=lambda report: report["x"].sum())
        assert_same_bits(watched, sample("sample_dpmpp_2m", Model(), x))


def test_a_model_may_reuse_the_memory_of_its_result():
    results = {}

    def reusing(x, sigma):
        return results.setdefault("one", torch.empty_like(x)).copy_(Model()(x, sigma))

    for name in ALL:
        seen, expected = [], []
        observe = lambda report, seen=seen: seen.append(report["denoised"].clone())  # noqa: E731
        samples = sample(name, reusing, callback=observe)
        assert_same_bits(
            samples, sample(name, Model(), callback=lambda report, log=expected: log.append(report["denoised"]))
        )
        for denoised, other in zip(seen, expected, strict=True):
            assert_same_bits(denoised, other)


def test_the_progress_bar_counts_steps_or_evaluations(capsys):
    expected = {"sample_heun": "5/5", "sample_dpm_fast": "7/7"}
    for name, count in expected.items():
        sample(name, Model(), disable=False)
        assert count in capsys.readouterr().err
        sample(name, Model(), disable=True)
        assert capsys.readouterr().err == ""
        sample(name, tiny(label_dim=0), edm_fast.randn((3, 8, 8), [1, 2]), disable=False)
        assert count in capsys.readouterr().err


def test_randn_like_is_called_every_step_used_or_not():
    seen = []

    def randn_like(x):
        seen.append(x.dtype)
        return torch.zeros_like(x)

    ours.sample_heun(Model(), X.half(), SIGMAS, disable=True, randn_like=randn_like)
    assert seen == [torch.float16] * 5
    seen.clear()
    ours.sample_dpm_fast(Model(), X, 0.1, 10.0, 7, disable=True, randn_like=randn_like)
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["sample_euler", "sample_dpmpp_2m", "sample_dpmpp_sde", "sample_dpm_fast"])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_network_of_this_library_as_the_model(name, prepared):
    """By its raw output, against the same network hidden in a closure."""
    net = tiny(label_dim=3)
    model = edm_fast.prepare(net) if prepared else net
    x = edm_fast.randn((3, 8, 8), [1, 2]) * 10
    labels = torch.eye(3)[[0, 2]]
    seen, expected_seen = [], []
    options = {"extra_args": {"class_labels": labels}}
    actual = sample(name, model, x, callback=seen.append, **options)
    closure = lambda x, sigma, class_labels: net(x, sigma, class_labels)  # noqa: E731
    expected = sample(name, closure, x, callback=expected_seen.append, **options)
    assert relative_error(actual, expected) <= SAMPLER_FLOAT32
    assert len(seen) == len(expected_seen)
    for report, other in zip(seen, expected_seen, strict=True):
        assert report["i"] == other["i"]
        assert float(report["sigma"]) == float(other["sigma"])
        assert relative_error(report["x"], other["x"]) <= SAMPLER_FLOAT32
        assert relative_error(report["denoised"], other["denoised"]) <= SAMPLER_FLOAT32
    assert_same_bits(sample(name, model, x, extra_args={"class_labels": [0, 2]}), actual)
    # With any other argument the network itself is called.
    augment = torch.linspace(-1, 1, 18).reshape(2, 9)
    augmented = sample(name, model, x, extra_args={"class_labels": labels, "augment_labels": augment})
    closure = lambda x, sigma: net(x, sigma, labels, augment_labels=augment)  # noqa: E731
    assert relative_error(augmented, sample(name, closure, x)) <= SAMPLER_FLOAT32
    assert relative_error(augmented, actual) > 100 * SAMPLER_FLOAT32


def test_images_that_do_not_fit_the_network_are_named():
    net = tiny(label_dim=3)
    with pytest.raises(ValueError, match="^x: 2 channels; the network has 3"):
        sample("sample_euler", net, torch.zeros([2, 2, 8, 8]))
    with pytest.raises(ValueError, match="^class_labels: 3 labels for 2 samples"):
        sample("sample_euler", net, torch.zeros([2, 3, 8, 8]), extra_args={"class_labels": [0, 1, 2]})


def test_networks_get_the_callers_noise_in_order():
    net, calls = tiny(label_dim=0), []

    def noise_sampler(sigma, sigma_next):
        calls.append((float(sigma), float(sigma_next)))
        return torch.full([2, 3, 8, 8], 0.1 * len(calls))

    x = edm_fast.randn((3, 8, 8), [1, 2]) * 10
    actual = ours.sample_euler_ancestral(net, x, SIGMAS, disable=True, noise_sampler=noise_sampler)
    assert calls == list(itertools.pairwise(SIGMAS.tolist()))[:-1]
    calls.clear()
    closure = lambda x, sigma: net(x, sigma)  # noqa: E731
    expected = ours.sample_euler_ancestral(closure, x, SIGMAS, disable=True, noise_sampler=noise_sampler)
    assert relative_error(actual, expected) <= SAMPLER_FLOAT32


def test_the_default_noise_says_what_it_needs(monkeypatch):
    imported = builtins.__import__

    def without_torchsde(name, *arguments, **options):
        if name == "torchsde":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_torchsde)
    for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"):
        with pytest.raises(ImportError, match=r"^noise_sampler: .*torchsde.*edm-fast\[sde\].*seeds"):
            getattr(ours, f"sample_{name}")(Model(), X, SIGMAS, disable=True)
    ours.sample_dpmpp_2m_sde(Model(), X, SIGMAS, disable=True, eta=0.0)


def test_brownian_noise_does_not_depend_on_the_steps():
    pytest.importorskip("torchsde")
    noise = ours.BrownianTreeNoiseSampler(X, 0.1, 10.0, seed=[4, 5])
    whole, first, second = noise(8.0, 2.0), noise(8.0, 5.0), noise(5.0, 2.0)
    assert relative_error((first + second) / math.sqrt(2), whole) <= SAMPLER_FLOAT32
    alone = ours.BrownianTreeNoiseSampler(X[1:], 0.1, 10.0, seed=[5])
    assert_same_bits(alone(8.0, 2.0), whole[1:])
    assert_same_bits(noise(2.0, 8.0), -whole)
    with pytest.raises(ValueError, match="^seed: got 3; x has 2"):
        ours.BrownianTreeNoiseSampler(X, 0.1, 10.0, seed=[1, 2, 3])


RISING, FLAT = [1.0, 2.0, 0.0], [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("euler", {"x": [[0.0]]}, TypeError, "x: got list"),
        ("euler", {"x": torch.zeros([2, 3], dtype=torch.int64)}, TypeError, "x: dtype"),
        ("euler", {"x": torch.tensor(1.0)}, ValueError, "x: got a scalar"),
        ("euler", {"model": None}, TypeError, "model: got NoneType"),
        ("euler", {"callback": 3}, TypeError, "callback: got 3"),
        ("euler", {"sigmas": torch.zeros([2, 2])}, ValueError, "sigmas: shape"),
        ("euler", {"sigmas": "abc"}, TypeError, "sigmas: got 'abc'"),
        ("euler", {"sigmas": [3.0, 0.0, 0.0]}, ValueError, "sigmas: number 1 of 3 is 0.0"),
        ("heun", {"sigmas": [3.0, -1.0]}, ValueError, "sigmas: number 1 of 2 is -1.0"),
        ("dpm_2", {"sigmas": [math.nan, 0.0]}, ValueError, "sigmas: number 0 of 2 is nan"),
        ("dpm_2", {"sigmas": [math.inf, 0.0]}, ValueError, "sigmas: number 0 of 2 is inf"),
        ("lms", {"sigmas": FLAT}, ValueError, "sigmas: number 1 is 2.0 after 2.0"),
        ("dpmpp_2m", {"sigmas": FLAT}, ValueError, "sigmas: number 1 is 2.0 after 2.0"),
        *(
            (name, {"sigmas": RISING}, ValueError, "sigmas: number 1 is 2.0 after 1.0")
            for name in (
                "euler_ancestral",
                "dpm_2_ancestral",
                "dpmpp_2s_ancestral",
                "dpmpp_sde",
                "dpmpp_2m_sde",
                "dpmpp_3m_sde",
            )
        ),
        ("euler", {"s_churn": -1}, ValueError, "s_churn: got -1"),
        ("euler", {"s_churn": math.nan}, ValueError, "s_churn: got NaN"),
        ("heun", {"s_tmin": math.nan}, ValueError, "s_tmin: got NaN"),
        ("heun", {"s_tmax": "high"}, TypeError, "s_tmax: got 'high'"),
        ("dpm_2", {"s_noise": math.inf}, ValueError, "s_noise: got inf"),
        ("euler_ancestral", {"eta": -0.1}, ValueError, "eta: got -0.1"),
        ("dpmpp_2m_sde", {"s_noise": -1}, ValueError, "s_noise: got -1"),
        ("dpmpp_sde", {"r": 0}, ValueError, "r: got 0"),
        ("dpmpp_sde", {"r": 1.5}, ValueError, "r: got 1.5"),
        ("dpmpp_2m_sde", {"solver_type": "euler"}, ValueError, "solver_type: got 'euler'"),
        ("lms", {"order": 5}, ValueError, "order: got 5; it is at most 4"),
        ("lms", {"order": 0}, ValueError, "order: got 0"),
        ("euler", {"seeds": [1]}, ValueError, "seeds: got 1; x has 2 samples"),
        ("euler", {"seeds": [1.5, 2]}, TypeError, "seeds: got 1.5"),
        ("euler", {"seeds": [1, 2], "randn_like": torch.randn_like}, ValueError, "randn_like, seeds: noise has one"),
        ("euler_ancestral", {"noise_sampler": 3}, TypeError, "noise_sampler: got 3"),
        ("euler_ancestral", {"noise_sampler": lambda *_: 0.5}, TypeError, "noise_sampler: returned float"),
        ("euler_ancestral", {"noise_sampler": lambda *_: torch.zeros(3)}, ValueError, "noise_sampler: returned shape"),
        ("euler", {"model": lambda x, sigma: None}, TypeError, "model: returned NoneType"),
        ("euler", {"model": lambda x, sigma: x[:1]}, ValueError, "model: returned shape"),
    ],
)
def test_bad_arguments_are_named(name, arguments, error, message):
    given = {"model": Model(), "x": X, "sigmas": SIGMAS, "disable": True, **arguments}
    with pytest.raises(error, match=f"^{message}"):
        getattr(ours, f"sample_{name}")(**given)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("fast", {"n": 0}, ValueError, "n: got 0"),
        ("fast", {"sigma_min": 0}, ValueError, "sigma_min: got 0"),
        ("fast", {"sigma_max": math.nan}, ValueError, "sigma_max: got NaN"),
        ("fast", {"sigma_min": 10.0}, ValueError, "sigma_min: got 10.0, which is sigma_max too"),
        ("fast", {"sigma_min": 20.0, "eta": 0.5}, ValueError, "eta: got 0.5"),
        ("adaptive", {"order": 4}, ValueError, "order: got 4"),
        ("adaptive", {"rtol": -1}, ValueError, "rtol: got -1"),
        ("adaptive", {"h_init": 0}, ValueError, "h_init: got 0"),
        ("adaptive", {"sigma_min": 20.0, "eta": 0.5}, ValueError, "eta: got 0.5"),
        ("adaptive", {"model": lambda x, sigma: x * math.nan}, FloatingPointError, "model: gave NaN"),
        (
            "adaptive",
            {"model": lambda x, sigma: 1e4 * torch.randn_like(x), "rtol": 0, "atol": 1e-9},
            FloatingPointError,
            "model: no step from sigma",
        ),
    ],
)
def test_bad_arguments_of_dpm_solver_are_named(name, arguments, error, message):
    given = {"model": Model(), "x": X, "sigma_min": 0.1, "sigma_max": 10.0, "disable": True, **arguments}
    with pytest.raises(error, match=f"^{message}"):
        getattr(ours, f"sample_dpm_{name}")(**({"n": 5} if name == "fast" else {}) | given)


def test_dpm_solver_runs_upwards():
    x = 0.1 * X
    up = ours.sample_dpm_fast(Model(), x, 10.0, 0.1, 30, disable=True)
    again = ours.sample_dpm_fast(Model(), up, 0.1, 10.0, 30, disable=True)
    assert relative_error(again, x) <= 1e-2
    adaptive = ours.sample_dpm_adaptive(Model(), x, 10.0, 0.1, disable=True, rtol=1e-3, atol=1e-4)
    assert relative_error(adaptive, up) <= 1e-2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("karras", {"n": 0}, "n: got 0"),
        ("karras", {"sigma_min": 0}, "sigma_min: got 0"),
        ("exponential", {"sigma_max": math.inf}, "sigma_max: got inf"),
        ("polyexponential", {"rho": -1}, "rho: got -1"),
    ],
)
def test_bad_arguments_of_schedules_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(ours, f"get_sigmas_{name}")(**{"n": 5, "sigma_min": 0.1, "sigma_max": 10.0, **arguments})
