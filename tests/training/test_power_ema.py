"""Power-function averages follow their profiles, and stored ones combine to averages of other widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edm_fast.training.ema_reconstruction import combination, inner_products, reconstruct
from edm_fast.training.ema_snapshots import Snapshot
from edm_fast.training.power_ema import PowerEMA, gamma_of, power_decay

OUT_OF_RANGE = [0.0, -0.1, 1e-4, 12**-0.5, 0.5, float("nan"), float("inf")]

SWINGS = np.linspace(2, 100, 25)


class Scalar(nn.Module):
    """One parameter and one buffer, in float64; or a few of them."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.register_buffer("constant", torch.zeros(1, dtype=torch.float64))

    def set(self, value: float) -> None:
        self.weight.data.fill_(value)
        self.constant.fill_(value)


def snapshot(sigma_rel: float, images_seen: int, net: nn.Module, architecture: str = "same") -> Snapshot:
    return Snapshot(f"snapshot {sigma_rel:g} at {images_seen}", sigma_rel, images_seen, architecture, lambda: net)


def tracked(sigma_rels, snapshots: int, steps: int = 4800) -> tuple[list[Snapshot], dict[float, Scalar]]:
    """Averages of swings of many lengths, of size 1: (some stored in equal distances, the last ones by width)."""
    net = Scalar(SWINGS.size)
    ema = PowerEMA(net, sigma_rels)
    stored = []
    for step in range(steps):
        time = (step + 1) / steps
        net.set(time)
        net.weight.data.copy_(torch.from_numpy(np.sin(SWINGS * time)))
        ema.update(net, step, 1)
        if (step + 1) % (steps // snapshots) == 0:
            for sigma_rel, average in zip(ema.sigma_rels, ema.nets, strict=True):
                copied = Scalar(SWINGS.size)
                copied.load_state_dict(average.state_dict())
                stored.append(snapshot(sigma_rel, step + 1, copied))
    return stored, dict(zip(ema.sigma_rels, ema.nets, strict=True))


def profile(gamma: float, t: float, points: int = 200_000, end: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(times in (0, end), the values there of (γ + 1) τ^γ / t^(γ+1) up to t and 0 beyond)."""
    times = (np.arange(points) + 0.5) * end / points
    return times, np.where(times <= t, (gamma + 1) * (times / t) ** gamma / t, 0.0)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.2, 0.285])
def test_gamma_gives_a_profile_of_the_width(sigma_rel):
    times, values = profile(gamma_of(sigma_rel), 1.0)
    values = values / values.sum()
    mean = (times * values).sum()
    assert np.sqrt(((times - mean) ** 2 * values).sum()) == pytest.approx(sigma_rel, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", OUT_OF_RANGE)
def test_a_width_out_of_range_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=rf"sigma_rel must be at least 0.001 and less than 0.2887.*{sigma_rel}"):
        gamma_of(sigma_rel)
    with pytest.raises(ValueError, match=r"sigma_rel must"):
        reconstruct([snapshot(0.05, 5, Scalar())], sigma_rel)


@pytest.mark.parametrize("sigma_rels", [(), (0.1, 0.1)], ids=str)
def test_widths_must_be_there_and_differ(sigma_rels):
    with pytest.raises(ValueError, match=r"sigma_rels must be one width or more, all different"):
        PowerEMA(Scalar(), sigma_rels)


def test_average_weighs_each_step_by_the_integral_of_the_profile_over_it():
    batches, values = [3, 5, 2, 2, 8], [1.0, -2.0, 4.0, 0.5, 3.0]
    net = Scalar()
    net.set(100.0)
    ema = PowerEMA(net, (0.07, 0.2))
    seen = 0
    for batch, value in zip(batches, values, strict=True):
        net.set(value)
        ema.update(net, seen, batch)
        seen += batch
    for sigma_rel, average in zip(ema.sigma_rels, ema.nets, strict=True):
        times, density = profile(gamma_of(sigma_rel), seen, end=seen)
        trajectory = np.repeat(values, batches)[np.floor(times).astype(int)]
        assert average.weight.item() == pytest.approx((trajectory * density).mean() * seen, rel=1e-6)


def test_buffers_are_copied_and_the_network_is_left_alone():
    net = Scalar().train()
    ema = PowerEMA(net)
    for step in range(3):
        net.set(float(step))
        ema.update(net, step, 1)
    assert ema.sigma_rels == (0.05, 0.10)
    for average in ema.nets:
        assert average.constant.item() == 2
        assert 1 < average.weight.item() < 2
        assert not average.training
        assert not average.weight.requires_grad
    assert net.weight.item() == 2
    assert net.training


def test_first_step_replaces_the_initial_weights():
    assert power_decay(batch=64, images_seen=0, gamma=6.94) == 0
    assert power_decay(batch=10, images_seen=30, gamma=2.0) == pytest.approx(0.75**3)


@pytest.mark.parametrize(("t_a", "t_b"), [(1.0, 1.0), (0.5, 0.9), (0.9, 0.5)])
def test_inner_products_are_integrals_of_products(t_a, t_b):
    gamma_a, gamma_b = 6.9, 1.3
    product = (profile(gamma_a, t_a)[1] * profile(gamma_b, t_b)[1]).mean()
    found = inner_products(*(np.array(value) for value in (gamma_a, t_a, gamma_b, t_b)))
    assert float(found) == pytest.approx(product, rel=1e-4)


def test_the_combination_of_a_stored_average_is_itself():
    times = [100, 100, 200, 200, 300, 300]
    for index in (0, 3, 5):
        weights = combination([0.05, 0.10] * 3, times, [0.05, 0.10][index % 2], times[index])
        np.testing.assert_allclose(weights, np.eye(6)[index], atol=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.25])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_weights_sum_to_one(count, sigma_rel):
    times = np.linspace(1, count, count) * 1000
    weights = combination([0.05, 0.10] * count, np.repeat(times, 2), sigma_rel, times[-1])
    assert weights.shape == (2 * count,)
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_weights_minimise_the_distance_of_profiles():
    gammas, times = [gamma_of(0.05), gamma_of(0.10)] * 2, [0.5, 0.5, 1.0, 1.0]
    stored = np.stack([profile(gamma, t)[1] for gamma, t in zip(gammas, times, strict=True)], axis=1)
    solution = np.linalg.lstsq(stored, profile(gamma_of(0.07), 1.0)[1], rcond=None)[0]
    found = combination([0.05, 0.10] * 2, [500, 500, 1000, 1000], 0.07, 1000)
    np.testing.assert_allclose(found, solution / solution.sum(), atol=1e-3)


def test_reconstruction_of_a_stored_width_returns_it():
    stored, last = tracked((0.05, 0.10), snapshots=4, steps=48)
    for sigma_rel in (0.05, 0.10):
        state = reconstruct(stored, sigma_rel)
        torch.testing.assert_close(state["weight"], last[sigma_rel].weight.data, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15])
def test_reconstruction_of_another_width_comes_closer_with_more_snapshots(sigma_rel):
    errors = []
    for snapshots in (4, 12, 48):
        stored, last = tracked((0.05, 0.10, sigma_rel), snapshots)
        state = reconstruct([item for item in stored if item.sigma_rel != sigma_rel], sigma_rel)
        errors.append(float((state["weight"] - last[sigma_rel].weight).norm() / last[sigma_rel].weight.norm()))
    assert errors[0] < 0.2
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_reconstruction_at_an_earlier_time_uses_what_was_stored_up_to_it():
    stored, _ = tracked((0.05, 0.10, 0.07), snapshots=24, steps=480)
    for item in stored:
        if item.images_seen > 240:
            object.__setattr__(item, "load", None)
    [wanted] = [item for item in stored if item.images_seen == 240 and item.sigma_rel == 0.07]
    state = reconstruct([item for item in stored if item.sigma_rel != 0.07], 0.07, t=240)
    torch.testing.assert_close(state["weight"], wanted.load().weight.data, rtol=0, atol=5e-3)
    assert state["constant"].item() == wanted.load().constant.item()


def test_buffers_of_a_reconstruction_are_those_of_the_last_snapshot():
    stored, last = tracked((0.05, 0.10), snapshots=4, steps=48)
    assert reconstruct(stored[::-1], 0.08)["constant"].item() == last[0.05].constant.item()


def test_reconstruction_keeps_the_dtype_of_the_parameters():
    nets = [nn.Linear(3, 2) for _ in range(2)]
    state = reconstruct([snapshot(0.05, 10, nets[0]), snapshot(0.10, 10, nets[1])], 0.07)
    assert {name: tensor.dtype for name, tensor in state.items()} == {"weight": torch.float32, "bias": torch.float32}


@pytest.mark.parametrize(
    ("snapshots", "t", "message"),
    [
        ([], None, "snapshots must be one or more, but there are none"),
        ([(0.05, 10), (0.10, 10), (0.05, 10)], None, "snapshots must differ.*0.05 at 10 and snapshot 0.05 at 10"),
        ([(0.05, 10), (0.10, 20)], 21, "t must be at most 20.*21"),
        ([(0.05, 10), (0.10, 20)], 9, "t must be a time after the first snapshot, but it is 9"),
    ],
    ids=["none", "twice", "beyond", "before"],
)
def test_bad_sets_of_snapshots_are_refused(snapshots, t, message):
    with pytest.raises(ValueError, match=message):
        reconstruct([snapshot(*item, Scalar()) for item in snapshots], 0.07, t)


def test_snapshots_of_different_networks_are_named():
    first = snapshot(0.05, 10, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"one network, but snapshot 0.05 at 10 and snapshot 0.1 at 10 are not"):
        reconstruct([first, snapshot(0.10, 10, nn.Linear(2, 2), "other")], 0.07)
    for other in (nn.Linear(2, 3), nn.Linear(2, 2, bias=False)):
        with pytest.raises(ValueError, match=r"one network, but snapshot 0.1 at 10 has other parameters"):
            reconstruct([first, snapshot(0.10, 10, other)], 0.07)
