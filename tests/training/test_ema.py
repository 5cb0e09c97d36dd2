"""The weight average and its half-life."""

from __future__ import annotations

import copy

import pytest
import torch

from edm_fast.training.ema import EMA, average_in, ema_decay


def test_weight_halves_in_a_half_life():
    decay = 1.0
    for _ in range(10):
        decay *= ema_decay(batch=50, images_seen=10**9, half_life=500)
    assert decay == pytest.approx(0.5)


def test_half_life_ramps_up_with_the_images_seen():
    assert ema_decay(64, images_seen=10_000, half_life=100_000) == pytest.approx(0.5 ** (64 / 500))
    assert ema_decay(64, images_seen=10_000_000, half_life=100_000) == pytest.approx(0.5 ** (64 / 100_000))
    assert ema_decay(64, images_seen=10_000, half_life=100_000, ramp_up=None) == pytest.approx(0.5 ** (64 / 100_000))
    assert ema_decay(64, images_seen=0, half_life=100_000) == 0


def test_average_follows_the_recurrence_and_copies_buffers():
    net = torch.nn.BatchNorm1d(2)
    ema = EMA(net, half_life=100, ramp_up=None)
    assert not ema.net.training
    assert not any(parameter.requires_grad for parameter in ema.net.parameters())
    expected, decay = torch.ones(2), 0.5 ** (30 / 100)
    for step in range(3):
        with torch.no_grad():
            net.weight.fill_(step + 5.0)
            net.running_mean.fill_(step)
        ema.update(net, images_seen=30 * step, batch=30)
        expected = decay * expected + (1 - decay) * (step + 5.0)
        torch.testing.assert_close(ema.net.weight, expected)
        assert torch.equal(ema.net.running_mean, net.running_mean)
    assert torch.equal(net.weight, torch.full([2], 7.0))


def test_one_call_for_all_parameters_has_the_bits_of_one_for_each():
    torch.manual_seed(0)
    net = torch.nn.ModuleList([torch.nn.Linear(17, 3), torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(1, 1).bfloat16()])
    net[1].to(memory_format=torch.channels_last)
    for decay in (0.0, 0.3, 0.5, 0.9999, 1.0):
        average, expected = copy.deepcopy(net), copy.deepcopy(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
            for parameter, current in zip(expected.parameters(), net.parameters(), strict=True):
                parameter.lerp_(current, 1 - decay)
        average_in(average, net, decay)
        for parameter, wanted in zip(average.parameters(), expected.parameters(), strict=True):
            assert torch.equal(parameter, wanted)


def test_a_network_without_parameters_has_nothing_to_average():
    average_in(torch.nn.ReLU(), torch.nn.ReLU(), 0.5)


def test_networks_of_different_lengths_are_refused():
    with pytest.raises(RuntimeError, match="same number of tensors"):
        average_in(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, bias=False), 0.5)


def test_first_step_replaces_the_initial_weights():
    net = torch.nn.Linear(2, 2)
    ema = EMA(net, half_life=1000)
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(net, images_seen=0, batch=10)
    assert torch.equal(ema.net.weight, net.weight)


def test_negative_settings_are_refused():
    with pytest.raises(ValueError, match=r"half_life.*-1"):
        EMA(torch.nn.Linear(1, 1), half_life=-1)
    with pytest.raises(ValueError, match=r"ramp_up.*nan"):
        EMA(torch.nn.Linear(1, 1), half_life=1, ramp_up=float("nan"))
