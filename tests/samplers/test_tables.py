"""Schedules against their formulas, tables against their shape, and the loop's one kernel per evaluation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tolerance import assert_same_bits
from torch.utils._python_dispatch import TorchDispatchMode

import edm_fast
from edm_fast.networks import EDMPrecond
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.samplers import edm_table, schedules
from edm_fast.samplers.curves import LinearCurve, VECurve, VPCurve, fit_vp_curve, vp_scaling
from edm_fast.samplers.evaluation import evaluation_of
from edm_fast.samplers.execution import execute
from edm_fast.samplers.solvers import Churn, ode_table

SMALL_NET = {
    "img_resolution": 8,
    "img_channels": 1,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


class AnyNet:
    """No attributes at all, as a foreign net may have."""

    def __call__(self, x, sigma, class_labels=None):
        return x / (1 + sigma**2)


def test_edm_levels():
    sigmas = schedules.edm_sigmas(18)
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-1] == pytest.approx(0.002)
    # (80^{1/7} + 1/17 (0.002^{1/7} - 80^{1/7}))^7
    assert sigmas[1] == pytest.approx((80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17) ** 7)
    assert list(schedules.edm_sigmas(1)) == pytest.approx([80])


def test_other_levels():
    low, high = schedules.default_range("vp")
    assert (low, high) == pytest.approx((math.sqrt(math.expm1(0.5 * 19.9e-6 + 1e-4)), math.sqrt(math.expm1(10.05))))
    vp = schedules.vp_sigmas(5, low, high)
    curve = VPCurve(19.9, 0.1)
    assert vp == pytest.approx([curve.sigma(t) for t in np.linspace(1, 1e-3, 5)])
    ve = schedules.ve_sigmas(7)
    assert ve**2 == pytest.approx(np.geomspace(1e4, 4e-4, 7))
    assert schedules.exponential_sigmas(7, 0.02, 100) == pytest.approx(ve)
    poly = schedules.polyexponential_sigmas(5, 0.1, 10, rho=2)
    assert np.log(poly) == pytest.approx(np.log(0.1) + np.linspace(1, 0, 5) ** 2 * np.log(100))


def test_iddpm_levels():
    levels = schedules.iddpm_levels()
    torch.set_default_dtype(torch.float64)
    try:
        assert (schedules.iddpm_levels() == levels).all()
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(levels) == 1001
    assert levels[-1] == 0
    assert (np.diff(levels) < 0).all()
    # The module computes the same recursion in float32.
    module = edm_fast.networks.iDDPMPrecond(**SMALL_NET)
    assert torch.from_numpy(levels[:-1]).float().div(module.u[:-1]) == pytest.approx(np.ones(1000), abs=2e-3)
    # All-float64 arithmetic differs measurably at small levels: the float32 ᾱ is part of the definition.
    alpha_bar = np.sin(0.5 * np.pi * np.arange(1001) / 1000 / 1.008) ** 2
    exact = [0.0]
    for j in range(1000, 0, -1):
        exact.append(math.sqrt((exact[-1] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], 0.001) - 1))
    differences = np.abs(levels[:-1] / np.array(exact[:0:-1]) - 1)
    assert 1e-5 < differences.max() < 2e-3
    chosen = schedules.iddpm_sigmas(10)
    assert all(sigma in levels for sigma in chosen)
    assert chosen[0] == levels[levels <= 81][0]
    assert chosen[-1] == levels[levels >= 0.002][-1]


@pytest.mark.parametrize("curve", [LinearCurve(), VECurve(), VPCurve(19.9, 0.1), fit_vp_curve(0.002, 80, 1e-3)])
def test_curves_are_consistent(curve):
    for t in (0.01, 0.3, 0.99):
        assert curve.time(curve.sigma(t)) == pytest.approx(t)
        step = 1e-6
        slope = (curve.sigma(t + step) - curve.sigma(t - step)) / (2 * step)
        assert curve.sigma_derivative(t) == pytest.approx(slope, rel=1e-5)
        scaling = vp_scaling(curve)
        slope = (scaling.scale(t + step) - scaling.scale(t - step)) / (2 * step)
        assert scaling.scale_derivative(t) == pytest.approx(slope, rel=1e-5)


def test_the_fitted_vp_curve_meets_its_ends():
    curve = fit_vp_curve(0.01, 50, 1e-3)
    assert (curve.sigma(1e-3), curve.sigma(1)) == pytest.approx((0.01, 50))


def test_shape_of_tables():
    heun, euler = ode_table([10, 1, 0.1]), ode_table([10, 1, 0.1], "euler")
    assert (heun.evaluations, heun.registers, heun.num_steps) == (5, 2, 3)
    assert (euler.evaluations, euler.registers, euler.num_steps) == (3, 1, 3)
    assert list(heun.step) == [0, 0, 1, 1, 2]
    assert list(heun.sigma) == pytest.approx([10, 1, 1, 0.1, 0.1])
    assert list(heun.entered) == [0, -1, 1, -1, 2, -1]
    assert not heun.updates[:, :, 5].any()
    churned = ode_table([10, 1, 0.1], churn=Churn(S_churn=0.3, S_min=0.5))
    assert list(churned.updates[:, 0, 5] != 0) == [True, False, True, False, False, False]
    assert list(churned.sigma) == pytest.approx([11, 1, 1.1, 0.1, 0.1])


def test_churn_is_cut_at_the_papers_bound():
    table = ode_table([10, 1], churn=Churn(S_churn=1e9))
    assert table.sigma[0] == pytest.approx(10 * math.sqrt(2))


def test_churn_acts_on_both_ends_of_its_range():
    churn = Churn(S_churn=1, S_min=1, S_max=10)
    assert [churn.gamma(sigma, 4) for sigma in (0.99, 1, 5, 10, 10.01)] == [0, 0.25, 0.25, 0.25, 0]


def test_a_net_without_attributes():
    table = edm_table(AnyNet(), num_steps=3)
    assert table.sigma[0] == pytest.approx(80)


class Recorder(TorchDispatchMode):
    """Every operator that runs, but not those inside the network."""

    def __init__(self):
        super().__init__()
        self.log: list[str] = []
        self.in_network = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.in_network:
            self.log.append(str(func))
        return func(*args, **(kwargs or {}))


# Operators that launch no kernel: allocation and views.
NO_KERNEL = {"aten.empty_like.default", "aten.select.int"}


def kernels_between_evaluations(net, latents, num_steps, **options):
    recorder = Recorder()
    table = edm_table(net, num_steps=num_steps, S_churn=5)
    evaluation = evaluation_of(net, table, None, latents.device, torch.float64)

    class Marked:
        c_skip, c_out, c_in = evaluation.c_skip, evaluation.c_out, evaluation.c_in
        input_dtype, owns_input = evaluation.input_dtype, evaluation.owns_input
        input_format = evaluation.input_format

        def __call__(self, net_input, index):
            recorder.log.append("network")
            recorder.in_network = True
            output = evaluation(net_input, index)
            recorder.in_network = False
            return output

    with recorder:
        execute(table, Marked(), latents, **options)
    gaps = [
        [name for name in gap if name not in NO_KERNEL]
        for is_network, gap in itertools.groupby(recorder.log, lambda name: name == "network")
        if not is_network
    ]
    assert recorder.log.count("network") == 2 * num_steps - 1
    return gaps[1:]  # the first gap prepares the state


@pytest.mark.parametrize("net", [GaussianDenoiser(), EDMPrecond(**SMALL_NET)], ids=["foreign", "ours"])
def test_exactly_one_kernel_runs_between_evaluations(net):
    gaps = kernels_between_evaluations(net, torch.randn([2, 1, 8, 8]), 4, seeds=torch.arange(2))
    assert gaps == [["edm_fast.solver_step_.default"]] * 7


def test_one_step_is_one_launch_of_the_cuda_source(simt_module):
    table = edm_table(AnyNet(), num_steps=3, S_churn=5)
    evaluation = evaluation_of(AnyNet(), table, None, torch.device("cpu"), torch.float64)
    latents = edm_fast.randn((1, 4, 4), range(2))
    before = simt_module.launch_count()
    emulated = execute(table, evaluation, latents, seeds=torch.arange(2), backend="simt")
    assert simt_module.launch_count() - before == table.evaluations + 1
    assert_same_bits(emulated, execute(table, evaluation, latents, seeds=torch.arange(2)))


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_thread_order_does_not_matter(simt_module, order):
    table = edm_table(AnyNet(), num_steps=2, S_churn=5)
    evaluation = evaluation_of(AnyNet(), table, None, torch.device("cpu"), torch.float64)
    latents = edm_fast.randn((3, 9, 5), range(2), backend="reference")
    simt_module.set_thread_order(getattr(simt_module.ThreadOrder, order), 7)
    try:
        emulated = execute(table, evaluation, latents, seeds=torch.arange(2), backend="simt")
    finally:
        simt_module.set_thread_order(simt_module.ThreadOrder.forward)
    assert_same_bits(emulated, execute(table, evaluation, latents, seeds=torch.arange(2), backend="reference"))
