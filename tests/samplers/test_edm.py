"""edm_sampler and ablation_sampler agree with the paper's own form, element by element, for any callable network."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

from edm_fast.networks import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm_fast.reference import samplers as reference
from edm_fast.reference.exact_denoisers import GaussianDenoiser, GaussianMixtureDenoiser
from edm_fast.samplers import ablation_sampler, edm_sampler
from edm_fast.samplers.evaluation import is_plain_precond

LATENTS = torch.randn([3, 2, 5, 5], generator=torch.Generator().manual_seed(0))


class Nonlinear:
    """A net that is no true denoiser, so that nothing cancels; keeps what it was called with."""

    sigma_min = 0
    sigma_max = math.inf

    def __init__(self):
        self.calls = []

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def __call__(self, x, sigma, class_labels=None):
        self.calls.append((x, sigma, class_labels))
        return torch.tanh(3 * x / (sigma**2 + 0.25)) / 2 + 0.25 * x / (sigma**2 + 0.25)


def seeded(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


GRID = list(
    itertools.product(
        ["edm", "vp", "ve", "iddpm"], ["linear", "vp", "ve"], ["none", "vp"], ["heun", "euler"], [(0, 1), (10, 0.5)]
    )
)


@pytest.mark.parametrize(("discretization", "schedule", "scaling", "solver", "churn_alpha"), GRID, ids=str)
def test_every_ablation_agrees_with_the_reference(discretization, schedule, scaling, solver, churn_alpha):
    S_churn, alpha = churn_alpha
    for num_steps in (1, 2, 7, 18):
        options = {
            "num_steps": num_steps,
            "discretization": discretization,
            "schedule": schedule,
            "scaling": scaling,
            "solver": solver,
            "alpha": alpha,
            "S_churn": S_churn,
            "S_min": 0.1,
            "S_max": 30,
            "S_noise": 1.01,
        }
        actual = ablation_sampler(Nonlinear(), LATENTS, randn_like=seeded(), **options)
        expected = reference.ablation_sampler(Nonlinear(), LATENTS, randn_like=seeded(), **options)
        assert actual.dtype == torch.float64
        assert relative_error(actual, expected) <= SAMPLER_FLOAT64


@pytest.mark.parametrize("S_churn", [0, 5, 40, 1e9])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 40])
def test_algorithm_2_agrees_with_the_reference(num_steps, S_churn):
    options = {"num_steps": num_steps, "S_churn": S_churn, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    actual = edm_sampler(Nonlinear(), LATENTS, randn_like=seeded(), **options)
    expected = reference.edm_sampler(Nonlinear(), LATENTS, randn_like=seeded(), **options)
    assert relative_error(actual, expected) <= SAMPLER_FLOAT64


def test_ablation_with_defaults_is_algorithm_2():
    options = {"num_steps": 9, "S_churn": 20}
    by_ablation = ablation_sampler(Nonlinear(), LATENTS, randn_like=seeded(), **options)
    assert relative_error(by_ablation, edm_sampler(Nonlinear(), LATENTS, randn_like=seeded(), **options)) == 0


def test_signatures_are_the_public_ones():
    shared = "net latents class_labels randn_like num_steps sigma_min sigma_max rho"
    churn = "S_churn S_min S_max S_noise"
    ablation = "solver discretization schedule scaling epsilon_s C_1 C_2 M alpha"
    guidance = "guidance gnet guidance_interval"
    assert list(inspect.signature(edm_sampler).parameters) == f"{shared} {churn} {guidance}".split()
    assert list(inspect.signature(ablation_sampler).parameters) == f"{shared} {ablation} {churn}".split()
    for mine, theirs in ((edm_sampler, reference.edm_sampler), (ablation_sampler, reference.ablation_sampler)):
        parameters = inspect.signature(mine).parameters.values()
        defaults = [parameter.default for parameter in parameters if parameter.kind != parameter.KEYWORD_ONLY]
        assert defaults == [parameter.default for parameter in inspect.signature(theirs).parameters.values()]


def test_the_net_sees_what_the_reference_gives_it():
    mine, theirs = Nonlinear(), Nonlinear()
    labels = torch.eye(3)
    edm_sampler(mine, LATENTS, labels, randn_like=seeded(), num_steps=5, S_churn=3)
    reference.edm_sampler(theirs, LATENTS, labels, randn_like=seeded(), num_steps=5, S_churn=3)
    assert len(mine.calls) == len(theirs.calls) == 9
    for (x, sigma, passed), (x_reference, sigma_reference, _) in zip(mine.calls, theirs.calls, strict=True):
        assert x.dtype == sigma.dtype == torch.float64
        assert sigma.shape == ()
        assert relative_error(x, x_reference) <= SAMPLER_FLOAT64
        assert float(sigma) == pytest.approx(float(sigma_reference), rel=SAMPLER_FLOAT64)
        assert passed is labels


def test_noise_is_asked_for_every_step_in_float64():
    seen = []

    def randn_like(x):
        seen.append((x.dtype, tuple(x.shape)))
        return torch.zeros_like(x)

    edm_sampler(Nonlinear(), LATENTS, randn_like=randn_like, num_steps=6)
    assert seen == [(torch.float64, tuple(LATENTS.shape))] * 6


def test_inputs_that_a_net_keeps_or_returns_stay_whole():
    """The net's input is its own: keeping it, returning it flipped, changing nothing in the latents."""

    class Flipping(Nonlinear):
        def __call__(self, x, sigma, class_labels=None):
            self.calls.append((x, x.clone()))
            return x.flip(-1).transpose(-1, -2)

    latents = LATENTS.clone()
    net = Flipping()
    actual = edm_sampler(net, latents, num_steps=5)
    assert relative_error(actual, reference.edm_sampler(Flipping(), latents, num_steps=5)) <= SAMPLER_FLOAT64
    for kept, copy in net.calls:
        assert_same_bits(kept, copy)
    assert_same_bits(latents, LATENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nets_may_return_any_float(dtype):
    class Low(Nonlinear):
        def __call__(self, x, sigma, class_labels=None):
            return super().__call__(x, sigma).to(dtype)

    # The state differs from the reference's in the last bits, which can round a denoised pixel the other way.
    bound = SAMPLER_FLOAT32 if dtype == torch.float32 else float(torch.finfo(dtype).eps)
    actual = edm_sampler(Low(), LATENTS, num_steps=6)
    assert relative_error(actual, reference.edm_sampler(Low(), LATENTS, num_steps=6)) <= bound


SMALL = {"img_resolution": 8, "img_channels": 2, "label_dim": 3}
SONG = {
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


@pytest.mark.parametrize("precond", [EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond])
@pytest.mark.parametrize("S_churn", [0, 8])
def test_our_networks_agree_by_their_raw_output(precond, S_churn):
    """Preconditioning in solver_step against preconditioning in the module, and the module's labels."""
    torch.manual_seed(0)
    net = precond(**SMALL, **SONG).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    latents, labels = torch.randn([3, 2, 8, 8]), torch.eye(3)
    options = {"num_steps": 6, "S_churn": S_churn}
    actual = edm_sampler(net, latents, labels, randn_like=seeded(), **options)
    with torch.no_grad():
        expected = reference.edm_sampler(net, latents, labels, randn_like=seeded(), **options)
    assert relative_error(actual, expected) <= SAMPLER_FLOAT32
    assert not actual.requires_grad
    assert_same_bits(edm_sampler(net, latents, [0, 1, 2], randn_like=seeded(), **options), actual)
    hooked = []
    net.register_forward_hook(lambda *_: hooked.append(1))
    assert (
        relative_error(edm_sampler(net, latents, labels, randn_like=seeded(), **options), expected) <= SAMPLER_FLOAT32
    )
    assert len(hooked) == 11


def test_an_overridden_forward_is_respected():
    class Shifted(EDMPrecond):
        def forward(self, x, sigma, class_labels=None, **kwargs):
            return torch.full_like(x, 0.25)

    net = Shifted(**SMALL, **SONG)
    images = edm_sampler(net, torch.randn([1, 2, 8, 8]), num_steps=4)
    assert (images - 0.25).abs().max() < SAMPLER_FLOAT32


def test_a_replaced_or_compiled_forward_is_respected():
    net = EDMPrecond(**SMALL, **SONG)
    assert is_plain_precond(net)
    net.forward = lambda x, sigma, class_labels=None: torch.full_like(x, 0.25)
    assert not is_plain_precond(net)
    assert (edm_sampler(net, torch.randn([1, 2, 8, 8]), num_steps=4) - 0.25).abs().max() < SAMPLER_FLOAT32
    compiled = EDMPrecond(**SMALL, **SONG)
    compiled.compile(backend="eager")
    assert not is_plain_precond(compiled)


def test_noise_levels_are_cut_to_the_networks():
    net = VEPrecond(**SMALL, **SONG)
    seen = []
    net.register_forward_pre_hook(lambda _, arguments: seen.append(float(arguments[1])))
    edm_sampler(net, torch.randn([1, 2, 8, 8]), num_steps=4, sigma_min=1e-4, sigma_max=1e4)
    assert max(seen) == pytest.approx(100)
    assert min(seen) == pytest.approx(0.02)


def test_other_shapes_pass():
    for shape in ([4, 7], [2, 3, 5], [1, 3, 5], [1, 1, 2, 3, 2]):
        latents = torch.randn(shape)
        actual = edm_sampler(Nonlinear(), latents, num_steps=4)
        assert relative_error(actual, reference.edm_sampler(Nonlinear(), latents, num_steps=4)) <= SAMPLER_FLOAT64


def test_an_empty_batch_gives_an_empty_result():
    net = Nonlinear()
    result = edm_sampler(net, torch.empty([0, 2, 5, 5]), num_steps=4)
    assert result.shape == (0, 2, 5, 5)
    assert result.dtype == torch.float64
    assert net.calls == []


def relative_deviation(num_steps, solver, **options):
    """Largest error of samples of N(0, ½²) against the exact solution of the ODE, relative."""
    latents = torch.randn([4, 1, 8, 8], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    net = GaussianDenoiser(std=0.5)
    samples = ablation_sampler(net, latents, num_steps=num_steps, solver=solver, **options)
    return relative_error(samples, latents * 80 * 0.5 / math.sqrt(0.5**2 + 80**2))


@pytest.mark.parametrize(
    ("solver", "alpha", "low", "high"), [("euler", 1, 0.9, 1.1), ("heun", 1, 1.9, 2.3), ("heun", 0.75, 1.9, 2.3)]
)
def test_order_of_convergence(solver, alpha, low, high):
    errors = [relative_deviation(n, solver, alpha=alpha) for n in (32, 64, 128, 256)]
    for coarse, fine in itertools.pairwise(errors):
        assert low <= math.log2(coarse / fine) <= high, errors


def test_the_published_errors_of_the_sample_std():
    """Figures of the design notes: 5.5, 1.2, 0.29 and 0.069 % for Heun, 15.4 and 7.8 % for Euler."""
    for num_steps, percent in ((18, 5.5), (36, 1.2), (72, 0.29), (144, 0.069)):
        assert 100 * relative_deviation(num_steps, "heun") == pytest.approx(percent, rel=0.03)
    for num_steps, percent in ((18, 15.4), (36, 7.8)):
        assert 100 * relative_deviation(num_steps, "euler") == pytest.approx(percent, rel=0.03)


@pytest.mark.parametrize("alpha", [1, 0.5])
def test_order_of_convergence_on_a_mixture(alpha):
    means = torch.tensor([-1.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    net = GaussianMixtureDenoiser(means, [0.5, 0.4, 0.6])
    latents = torch.randn([32, 1, 2, 2], dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    exact = ablation_sampler(net, latents, num_steps=2048, alpha=alpha)
    errors = [
        float((ablation_sampler(net, latents, num_steps=n, alpha=alpha) - exact).norm()) for n in (32, 64, 128, 256)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.9 <= math.log2(coarse / fine) <= 2.3, errors


def test_churn_keeps_the_marginal():
    latents = torch.randn([64, 1, 32, 32], generator=torch.Generator().manual_seed(5))
    net = GaussianDenoiser(std=0.5, img_resolution=32)
    ratios = {}
    for S_noise in (1, 1.007):
        options = {"num_steps": 256, "S_churn": 40, "S_noise": S_noise}
        ratios[S_noise] = float(edm_sampler(net, latents, randn_like=seeded(6), **options).std()) / 0.5
    assert abs(ratios[1] - 1) <= 0.005
    assert ratios[1.007] - ratios[1] == pytest.approx(0.007, abs=0.002)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"num_steps": -3}, ValueError, "num_steps"),
        ({"num_steps": 2.5}, TypeError, "num_steps"),
        ({"num_steps": True}, TypeError, "num_steps"),
        ({"sigma_min": 0}, ValueError, "sigma_min"),
        ({"sigma_min": -1}, ValueError, "sigma_min"),
        ({"sigma_min": math.nan}, ValueError, "sigma_min"),
        ({"sigma_max": math.nan}, ValueError, "sigma_max"),
        ({"sigma_max": math.inf}, ValueError, "sigma_max"),
        ({"sigma_min": 2, "sigma_max": 1}, ValueError, "sigma_min"),
        ({"sigma_min": "low"}, TypeError, "sigma_min"),
        ({"rho": 0}, ValueError, "rho"),
        ({"rho": math.nan}, ValueError, "rho"),
        ({"S_churn": -1}, ValueError, "S_churn"),
        ({"S_churn": math.nan}, ValueError, "S_churn"),
        ({"S_min": math.nan}, ValueError, "S_min"),
        ({"S_max": math.nan}, ValueError, "S_max"),
        ({"S_noise": math.inf}, ValueError, "S_noise"),
        ({"S_noise": -0.5}, ValueError, "S_noise"),
        ({"latents": [[0.0]]}, TypeError, "latents"),
        ({"latents": torch.zeros([2], dtype=torch.float32)}, ValueError, "latents"),
        ({"latents": torch.zeros([1, 2, 8, 8], dtype=torch.int64)}, TypeError, "latents"),
        ({"latents": torch.zeros([1, 3, 8, 8])}, ValueError, "latents"),
        ({"latents": torch.zeros([1, 2, 8, 9])}, ValueError, "latents"),
        ({"latents": torch.zeros([1, 2, 8, 8], device="meta")}, ValueError, "latents"),
        ({"class_labels": torch.zeros([2, 3])}, ValueError, "class_labels"),
        ({"class_labels": torch.zeros([1, 4])}, ValueError, "class_labels"),
        ({"class_labels": [3]}, ValueError, "class_labels"),
        ({"class_labels": [-1]}, ValueError, "class_labels"),
        ({"class_labels": [0, 1]}, ValueError, "class_labels"),
        ({"class_labels": [0.5]}, TypeError, "class_labels"),
        ({"class_labels": "7"}, TypeError, "class_labels"),
    ],
)
def test_bad_arguments_are_named(arguments, error, name):
    net = EDMPrecond(**SMALL, **SONG)
    with pytest.raises(error, match=f"^{name}"):
        edm_sampler(net, **{"latents": torch.zeros([1, 2, 8, 8]), **arguments})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"solver": "rk4"}, "solver"),
        ({"discretization": "karras"}, "discretization"),
        ({"schedule": "cosine"}, "schedule"),
        ({"scaling": "ve"}, "scaling"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"epsilon_s": 0}, "epsilon_s"),
        ({"epsilon_s": 1}, "epsilon_s"),
        ({"C_1": 0}, "C_1"),
        ({"C_1": 5}, "C_1"),
        ({"C_1": math.nan}, "C_1"),
        ({"C_2": -1}, "C_2"),
        ({"M": 0}, "M"),
        ({"rho": 0.001}, "sigma_min, sigma_max, rho"),
        ({"schedule": "vp", "sigma_min": 1e-12}, "sigma_min, sigma_max, rho"),
        ({"discretization": "ve", "sigma_min": 1e-200}, "sigma_min"),
        ({"schedule": "vp", "sigma_max": 1e200}, "sigma_min"),
        ({"discretization": "iddpm", "sigma_min": 1.0, "sigma_max": 1.0001}, "sigma_min"),
    ],
)
def test_bad_choices_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        ablation_sampler(Nonlinear(), LATENTS, **arguments)


def test_counts_must_be_integers():
    with pytest.raises(TypeError, match="^M"):
        ablation_sampler(Nonlinear(), LATENTS, M=1.5)


def test_levels_that_a_net_rounds_to_zero_are_refused():
    class Coarse(Nonlinear):
        def round_sigma(self, sigma):
            return torch.as_tensor(sigma).round()

    with pytest.raises(ValueError, match="^sigma_min"):
        edm_sampler(Coarse(), LATENTS)


@pytest.mark.parametrize(
    ("randn_like", "message"),
    [(None, "got None"), (lambda x: None, "returned NoneType"), (lambda x: x.numpy(), "returned")],
)
def test_noise_functions_that_give_no_tensor_are_named(randn_like, message):
    with pytest.raises(TypeError, match=f"^randn_like: {message}"):
        edm_sampler(Nonlinear(), LATENTS, randn_like=randn_like, S_churn=3)


def test_a_range_outside_the_networks_is_refused():
    with pytest.raises(ValueError, match="network's noise levels"):
        edm_sampler(VEPrecond(**SMALL, **SONG), torch.zeros([1, 2, 8, 8]), sigma_min=200, sigma_max=300)


@pytest.mark.parametrize(
    ("output", "error"), [(None, TypeError), (torch.zeros([3, 2, 5, 4]), ValueError), ("x", TypeError)]
)
def test_a_net_that_returns_nonsense_is_named(output, error):
    with pytest.raises(error, match="^net: returned"):
        edm_sampler(lambda x, sigma, labels: output, LATENTS)
