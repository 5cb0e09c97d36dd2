"""What is measured of networks and of sampling on a GPU: no match, no time."""

from __future__ import annotations

import importlib
import itertools
import types

import pytest
import torch
from tolerance import SAMPLER_FLOAT32, relative_error

import edm_fast
from edm_fast.reference import unet_block

CPU = torch.device("cpu")
NETWORKS = ("ddpmpp", "ncsnpp", "adm")


def test_the_floor_of_an_operation_is_the_longer_of_its_times(load):
    floor, ceilings = load("gpu_floor"), load("gpu_ceilings").Ceilings
    graph = floor.device_graph("ddpmpp")
    flops, moved = floor.totals(graph, 3, 2)
    assert flops == 3 * sum(floor.flops(operation) for operation in graph.operations)
    assert floor.floor_seconds(graph, 3, 2, ceilings(1e30, 10.0)) == pytest.approx(flops / 10)
    assert floor.floor_seconds(graph, 3, 2, ceilings(10.0, 1e30)) == pytest.approx(moved / 10)
    mixed = floor.floor_seconds(graph, 3, 2, ceilings(1.0, 100.0))
    assert max(flops / 100, moved) < mixed < flops / 100 + moved


def test_the_graph_from_shapes_is_the_plans(load):
    """Its operations are those of a network with weights."""
    lower = importlib.import_module("edm_fast.plan.lowering").lower
    passes = importlib.import_module("edm_fast.plan.passes")
    for name in NETWORKS:
        model = load("variants").build_network(name).model
        graph = passes.for_library_convolutions(lower(model, 8, 8, plain_skips=True)).graph
        counted = load("gpu_floor").device_graph(name)
        assert load("gpu_floor").totals(counted, 1, 2) == load("gpu_floor").totals(graph, 1, 2)
        assert len(counted.operations) == len(graph.operations)


def test_fused_attention_is_the_references(load):
    for channels, heads in ((48, 1), (96, 4)):
        qkv = torch.randn([2, channels, 3, 5], generator=torch.Generator().manual_seed(1))
        fused = load("gpu_networks").fused_attention(qkv, heads)
        assert relative_error(fused, unet_block.self_attention(qkv, heads)) < SAMPLER_FLOAT32


def test_chunks_of_the_float64_network_are_the_whole(load):
    networks = load("gpu_networks")
    net = load("variants").build_network("ddpmpp")
    given = networks.inputs(net, 5, CPU, torch.Generator().manual_seed(2))
    whole = networks.expected(net, *given, chunk=5)
    assert whole.dtype == torch.float64
    assert relative_error(networks.expected(net, *given, chunk=2), whole) < 1e-12
    assert net.model.map_layer0.weight.dtype == torch.float32


RATES = (4e12, 8e14)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_is_ours_over_both_baselines(load, run, compiler, name, kept):
    networks = load("gpu_networks")
    attention = unet_block.self_attention
    assert networks.measure_row(run, f"{name}:2", load("gpu_ceilings").Ceilings(*RATES))
    entries = kept(f"{name}:2")
    assert entries["plan"]["rows_given_s"] == 1.0
    assert entries["plan"]["captured"] is False
    for kind in ("eager", "compiled"):
        entry = entries[kind]
        assert entry["ratio"] == 1.0
        assert entry["match"]
        assert 0 < entry["error"] < entry["error_bound"]
        assert 0 < entry["baseline_error"] < entry["error_bound"]
        assert entry["floor_share"] == pytest.approx(entries["plan"]["floor_s"])
    assert compiler
    for asked in compiler:
        assert asked["options"] == {"triton.cudagraphs": True, "max_autotune_conv_backends": "ATEN"}
        assert asked["fullgraph"]
        assert asked["attention"] is networks.fused_attention
    assert unet_block.self_attention is attention


def test_ours_without_a_match_gets_no_time(load, run, compiler, monkeypatch, kept):
    plain = edm_fast.plan.Prepared.run
    monkeypatch.setattr(edm_fast.plan.Prepared, "run", lambda self, x, rows: plain(self, x, rows) * 1.5)
    assert not load("gpu_networks").measure_row(run, "ddpmpp:2", load("gpu_ceilings").Ceilings(*RATES))
    [(name, entry)] = kept("ddpmpp:2").items()
    assert name == "plan"
    assert entry["match"] is False
    assert not compiler


@pytest.mark.parametrize("spoilt", ["ours", "eager"])
def test_what_the_turns_spoil_gets_no_time(load, run, compiler, monkeypatch, kept, spoilt):
    """As if the graph of one wrote where the other's weights are."""
    networks = load("gpu_networks")
    plain, damage = networks.paired, []

    def paired(*given):
        result = plain(*given)
        damage.append(1.5)
        return result

    monkeypatch.setattr(networks, "paired", paired)
    own = edm_fast.plan.Prepared.run
    factor = lambda name: damage[-1] if damage and name == spoilt else 1.0  # noqa: E731
    monkeypatch.setattr(edm_fast.plan.Prepared, "run", lambda self, x, rows: own(self, x, rows) * factor("ours"))
    monkeypatch.setattr(networks, "eager", lambda half: lambda *given: half.model(*given) * factor("eager"))
    assert not networks.measure_row(run, "ddpmpp:2", load("gpu_ceilings").Ceilings(*RATES))
    entry = kept("ddpmpp:2")["eager"]
    assert entry["match"] is False
    assert "after the turns" in entry["reason"]


def test_the_baseline_runs_where_nothing_of_ours_does(load, run, compiler, monkeypatch):
    faults = load("gpu_faults")
    monkeypatch.setattr(edm_fast, "prepare", None)
    monkeypatch.setattr(faults, "_BASELINE_CALLS", 3)
    assert faults.run_baseline(run, ["ddpmpp:2"])
    assert len(compiler) == 3
    assert not run.output.exists()
    monkeypatch.setattr(load("gpu_networks"), "expected", lambda net, x, *given: torch.full_like(x, 9.0))
    with pytest.raises(load("gpu_networks").MismatchError):
        faults.run_baseline(run, ["ddpmpp:2"])


def test_the_baseline_runs_without_cudnns_attention(load, run, compiler, monkeypatch):
    faults = load("gpu_faults")
    monkeypatch.setattr(faults, "_BASELINE_CALLS", 1)
    allowed = []
    plain = faults.compiled

    def seen(half):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return plain(half)

    monkeypatch.setattr(faults, "compiled", seen)
    assert faults.run_baseline(run, ["ddpmpp:2"])
    assert faults.run_baseline_without_cudnn(run, ["ddpmpp:2"])
    assert allowed == [True, False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_baseline_without_a_match_or_a_compiler_that_gives_up_leaves_the_rest(load, run, monkeypatch, kept):
    networks = load("gpu_networks")

    def no_compiler(*args, **options):
        raise RuntimeError("no such backend")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(networks, "eager", lambda half: lambda *given: half.model(*given) * 1.5)
    assert not networks.measure_row(run, "ddpmpp:2", load("gpu_ceilings").Ceilings(*RATES))
    entries = kept("ddpmpp:2")
    assert entries["eager"]["match"] is False
    assert "floor_s" in entries["plan"]
    assert "compiled" not in entries


def test_rows_are_named_by_network_or_with_a_batch_size(load):
    selected = load("gpu_rows").selected_rows
    assert selected(["adm", "ddpmpp:7"]) == ["adm:1", "adm:64", "adm:512", "ddpmpp:7"]
    assert len(selected([])) == 9
    with pytest.raises(ValueError, match="^row: got 'vgg'"):
        selected(["vgg"])


def test_the_denoiser_is_the_networks(load):
    sampling = load("gpu_sampling")
    net = load("variants").build_network("ncsnpp")
    x = 3 * torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(1))
    labels, sigma = torch.eye(4)[:2], torch.tensor(3.0)
    for dtype in (torch.float32, torch.float64):
        model = load("gpu_networks").eager(sampling.plain_network(net).to(dtype))
        actual = sampling.Denoiser(net, model, dtype)(x.to(dtype), sigma, labels)
        assert actual.dtype == dtype
        assert relative_error(actual, net(x, sigma, labels)) < SAMPLER_FLOAT32


def test_the_reference_network_of_a_fused_one_has_its_weights(load):
    net = edm_fast.load().eval()
    plain = load("gpu_sampling").plain_network(net)
    assert type(plain).__module__ == "edm_fast.reference.preconditioning"
    x, labels = torch.randn([2, 1, 8, 8], generator=torch.Generator().manual_seed(1)), torch.eye(10)[:2]
    assert relative_error(plain(x, 1.0, labels), net(x, 1.0, labels)) < SAMPLER_FLOAT32


@pytest.fixture
def sampling(load, monkeypatch):
    module = load("gpu_sampling")
    few = {"digits": module.Sampled(2, 3), "adm": module.Sampled(2, 2), "ddpmpp": module.Sampled(1, 2)}
    monkeypatch.setattr(module, "SAMPLED", few)
    return module


def test_images_are_the_reference_samplers_with_the_same_noise(sampling, run, kept):
    assert sampling.check(run)
    found = kept("images")
    assert len(found) == 9
    for name, entry in found.items():
        assert entry["good"]
        assert 0 < entry["error"] <= entry["error_bound"]
        if "bfloat16" not in name:
            assert entry["error"] < sampling.ERROR_BOUNDS["float32"]


def test_images_of_other_seeds_are_bad(sampling, run, monkeypatch, kept):
    sample = edm_fast.sample
    monkeypatch.setattr(
        edm_fast, "sample", lambda net, seeds, *args, **options: sample(net, seeds + 1, *args, **options)
    )
    assert not sampling.check(run, ["digits"])
    assert not any(entry["good"] for entry in kept("images").values())


def test_noise_that_is_drawn_once_more_is_bad(sampling, run, monkeypatch):
    """The comparison depends on every draw."""
    draws = types.SimpleNamespace(count=lambda first: itertools.count(first + 1))
    monkeypatch.setattr(sampling, "itertools", draws)
    assert not sampling.check(run, ["digits"])


def test_sampling_is_timed_from_seeds_to_images(sampling, run, compiler, kept):
    assert sampling.measure_row(run, "ddpmpp:3", num_steps=2)
    found = kept("sampling")
    assert set(found) == {"ddpmpp:3, eager", "ddpmpp:3, compiled"}
    for entry in found.values():
        assert entry["ratio"] == 1.0
        assert entry["num_steps"] == 2
        assert 0 < entry["error"] <= entry["error_bound"]
        assert 0 < entry["baseline_error"] <= entry["error_bound"]
    assert compiler


def test_sampling_something_else_gets_no_time(sampling, run, compiler, monkeypatch, kept):
    sample = edm_fast.sample
    monkeypatch.setattr(edm_fast, "sample", lambda *args, **options: sample(*args, **options) * 1.5)
    assert not sampling.measure_row(run, "ddpmpp:2", num_steps=2)
    for entry in kept("sampling").values():
        assert entry["match"] is False
        assert "ours_s" not in entry


def test_sampling_that_the_turns_spoil_gets_no_time(sampling, run, compiler, monkeypatch, kept):
    plain, turned = sampling.paired, []
    monkeypatch.setattr(sampling, "paired", lambda *given: turned.append(1) or plain(*given))
    sample = edm_fast.sample
    monkeypatch.setattr(
        edm_fast, "sample", lambda net, seeds, *args, **options: sample(net, seeds + len(turned), *args, **options)
    )
    assert not sampling.measure_row(run, "ddpmpp:3", num_steps=2)
    entry = kept("sampling")["ddpmpp:3, eager"]
    assert entry["match"] is False
    assert "after the turns" in entry["reason"]


def test_only_the_first_images_of_a_large_batch_are_compared(sampling, run):
    subject = sampling.Subject(run, "ddpmpp", 6, 2, 0.0)
    assert len(subject.expected) == 4
    images = subject.sample(subject.net)
    assert len(images) == 6
    assert subject.error(images) < SAMPLER_FLOAT32
