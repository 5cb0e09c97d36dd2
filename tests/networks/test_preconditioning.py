"""Preconditioning: the coefficients are those of table 1, and the denoiser is their combination with the network."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import cuda_usable

from edm_fast.networks import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond

SMALL = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
CLASSES = [VPPrecond, VEPrecond, iDDPMPrecond, EDMPrecond]
SIGMAS = [0.002, 0.05, 0.5, 1.0, 7.5, 80.0]


def small(cls: type[Precond], label_dim: int = 4, **options) -> Precond:
    torch.manual_seed(0)
    net = cls(8, 2, label_dim, **options, **SMALL).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.normal_(std=0.1)
    return net


def expected(cls: type[Precond], sigma: float) -> list[float]:
    """Rows of table 1 in Python's float64; c_noise of iDDPM is tested apart."""
    if cls is VPPrecond:
        t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
        return [1, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 * t]
    if cls is VEPrecond:
        return [1, sigma, 1, math.log(sigma / 2)]
    if cls is iDDPMPrecond:
        return [1, -sigma, 1 / math.sqrt(sigma**2 + 1)]
    total = sigma**2 + 0.5**2
    return [0.5**2 / total, sigma * 0.5 / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_coefficients_are_those_of_table_1(cls, dtype):
    net = small(cls)
    sigma = torch.tensor(SIGMAS, dtype=dtype).reshape(2, 3)
    found = net.coefficients(sigma)
    assert all(c.shape == sigma.shape and c.dtype == dtype for c in found)
    for index, level in enumerate(sigma.flatten().tolist()):
        for coefficient, wanted in zip(found, expected(cls, level), strict=False):
            # In float32 the 1 + σ² of VP's ln(1 + σ²) loses digits at small σ, as written, by design.
            tolerance = 1e-9 if dtype == torch.float64 else 3e-2 if level < 0.01 else 1e-4
            assert float(coefficient.flatten()[index]) == pytest.approx(wanted, rel=tolerance)


def test_vp_noise_levels_carry_float32_rounding():
    net = small(VPPrecond)
    assert net.sigma_min == pytest.approx(9.766e-4, rel=1e-4)
    exact = math.sqrt(math.expm1(0.5 * 19.9 * 1e-10 + 0.1 * 1e-5))
    assert exact == pytest.approx(1.0005e-3, rel=1e-4)
    assert net.sigma_max == pytest.approx(math.sqrt(math.expm1(0.5 * 19.9 + 0.1)), rel=1e-5)
    t = torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(net.sigma_inv(net.sigma(t)), t)


def test_iddpm_noise_levels_follow_the_recursion():
    net = small(iDDPMPrecond)
    u = [0.0] * 1001
    for j in range(1000, 0, -1):
        before, now = (math.sin(0.5 * math.pi * i / 1000 / 1.008) ** 2 for i in (j - 1, j))
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(before / now, 0.001) - 1)
    wanted = torch.tensor(u, dtype=torch.float64)
    assert net.u.dtype == torch.float32
    assert net.u.shape == (1001,)
    assert float(((net.u.double() - wanted).abs() / wanted.clamp(min=1e-9))[:-1].max()) < 5e-3
    assert net.u[1000] == 0
    assert net.sigma_min == float(net.u[999])
    assert net.sigma_max == float(net.u[0])
    assert "u" in net.state_dict()


def test_iddpm_rounds_to_the_nearest_level_and_labels_it_by_its_index():
    net = small(iDDPMPrecond)
    for j in (3, 500, 999):
        between = (0.6 * net.u[j] + 0.4 * net.u[j + 1]).to(torch.float64)
        assert net.round_sigma(between) == net.u[j].to(torch.float64)
        assert net.round_sigma(between).dtype == torch.float64
        assert float(net.coefficients(between).c_noise) == 999 - j
    grid = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) * 50
    rounded = net.round_sigma(grid)
    assert rounded.shape == grid.shape
    for level, nearest in zip(grid.flatten(), rounded.flatten(), strict=True):
        assert (nearest - level).abs() == (net.u - level).abs().min()
    assert torch.equal(net.round_sigma([1, 2]), net.round_sigma(torch.tensor([1.0, 2.0])))


@pytest.mark.parametrize("cls", [VPPrecond, VEPrecond, EDMPrecond])
def test_other_classes_keep_sigma(cls):
    sigma = torch.tensor([0.1, 3.0], dtype=torch.float64)
    assert torch.equal(small(cls).round_sigma(sigma), sigma)
    assert isinstance(small(cls).round_sigma(0.3), torch.Tensor)


def test_ranges_of_the_classes():
    assert (small(EDMPrecond).sigma_min, small(EDMPrecond).sigma_max) == (0, math.inf)
    assert (small(VEPrecond).sigma_min, small(VEPrecond).sigma_max) == (0.02, 100)


@pytest.mark.parametrize("cls", CLASSES)
def test_denoiser_combines_input_and_network_output(cls):
    net = small(cls)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 8, 8, generator=generator)
    sigma, labels = torch.tensor([0.1, 1.0, 10.0]), torch.eye(4)[:3]
    c_skip, c_out, c_in, c_noise = (c.reshape(-1, 1, 1, 1) for c in net.coefficients(sigma))
    raw = net.model(c_in * x, c_noise.flatten(), class_labels=labels)
    assert raw.shape[1] == (4 if cls is iDDPMPrecond else 2)
    torch.testing.assert_close(net(x, sigma, labels), c_skip * x + c_out * raw[:, :2])
    torch.testing.assert_close(net.network_output(c_in * x, c_noise, labels), raw[:, :2])


def test_inputs_of_other_dtypes_give_float32():
    net = small(EDMPrecond)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    result = net(x, torch.tensor(1.0, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:2])
    assert result.dtype == torch.float32
    assert torch.equal(result, net(x.float(), 1.0, torch.eye(4)[:2]))


def test_missing_labels_are_zeros():
    net = small(EDMPrecond)
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(net(x, 1.0), net(x, 1.0, torch.zeros(2, 4)))
    assert not torch.allclose(net(x, 1.0), net(x, 1.0, torch.eye(4)[:2]))
    assert small(EDMPrecond, label_dim=0)(x, 1.0).shape == x.shape


def test_one_row_of_labels_serves_all_images():
    net = small(EDMPrecond)
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(net(x, 1.0, torch.eye(4)[:1]), net(x, 1.0, torch.eye(4)[[0, 0]]))


def test_augment_labels_reach_the_network():
    net = EDMPrecond(8, 2, 0, augment_dim=3, **SMALL).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1)
    x = torch.randn(2, 2, 8, 8)
    assert not torch.allclose(net(x, 1.0), net(x, 1.0, augment_labels=torch.ones(2, 3)))


def test_use_fp16_changes_nothing_on_cpu():
    plain, half = small(EDMPrecond), small(EDMPrecond, use_fp16=True)
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(plain(x, 1.0), half(x, 1.0))


@pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")
def test_use_fp16_runs_the_network_in_half_on_cuda_unless_forced():
    plain, half = small(EDMPrecond).cuda(), small(EDMPrecond, use_fp16=True).cuda()
    x = torch.randn(2, 2, 8, 8, device="cuda")
    assert half(x, 1.0).dtype == torch.float32
    assert not torch.equal(plain(x, 1.0), half(x, 1.0))
    torch.testing.assert_close(plain(x, 1.0), half(x, 1.0, force_fp32=True))


@pytest.mark.parametrize(
    ("shape", "sigma", "labels", "message"),
    [
        ((2, 3, 8, 8), [1.0], None, r"x must be \[N, 2, H, W\].*\[2, 3, 8, 8\]"),
        ((2, 8, 8), [1.0], None, "x must be"),
        ((2, 2, 8, 7), [1.0], None, "x must have a height and a width"),
        ((2, 2, 8, 8), [1.0, 1.0, 1.0], None, "sigma must hold 1 or 2 values, but it holds 3"),
        ((2, 2, 8, 8), [1.0], (2, 5), r"class_labels must be \[2, 4\].*\[2, 5\]"),
        ((2, 2, 8, 8), [1.0], (3, 4), r"class_labels must be .*\[3, 4\]"),
        ((2, 2, 8, 8), [1.0], (4,), r"class_labels must be .*\[4\]"),
    ],
)
def test_wrong_shapes_are_refused(shape, sigma, labels, message):
    rows = None if labels is None else torch.zeros(labels)
    with pytest.raises(ValueError, match=message):
        small(EDMPrecond)(torch.zeros(shape), torch.tensor(sigma), rows)


def test_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="class_labels"):
        small(EDMPrecond, label_dim=0)(torch.zeros(2, 2, 8, 8), 1.0, torch.eye(4)[:2])


def test_unknown_model_type_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"model_type.*SongUNet, DhariwalUNet.*'ResNet'"):
        EDMPrecond(8, 1, model_type="ResNet")


@pytest.mark.parametrize("cls", CLASSES)
def test_recorded_arguments_rebuild_the_network(cls):
    net = cls(8, 2, 4, True, **{**SMALL, "channel_mult": (1, 2)})
    recorded = json.loads(json.dumps(net.init_kwargs))
    assert recorded == net.init_kwargs
    again = cls(**recorded)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items()
    }
    assert again.init_kwargs == net.init_kwargs
    assert again.use_fp16 is True


def test_networks_build_on_the_meta_device():
    with torch.device("meta"):
        nets = [cls(8, 2, 4, **SMALL) for cls in CLASSES]
    assert all(tensor.is_meta for net in nets for tensor in net.state_dict().values())
    assert nets[2].sigma_min > 0
