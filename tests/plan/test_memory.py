"""The arena: images that are alive at once never share memory, nothing is left over from a run, and it stays small."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import CONFIGURATIONS, image_size, inputs, tiny
from tolerance import assert_same_bits

import edm_fast
from edm_fast.plan import cpu, memory
from edm_fast.plan.ir import Graph, GroupNormSilu, Image, Residual, reads, writes
from edm_fast.plan.lowering import lower


@st.composite
def graphs(draw):
    """Operations that read any images made so far and make one or two of any size."""
    images = [Image("input", draw(st.integers(1, 40)), 3, 5)]
    operations = []
    for index in range(draw(st.integers(1, 12))):
        sources = [images[draw(st.integers(0, len(images) - 1))] for _ in range(2)]
        out = Image(f"{index}", draw(st.integers(1, 40)), draw(st.integers(1, 9)), 5)
        images.append(out)
        if draw(st.booleans()):
            plain = Image(f"{index}.plain", out.channels, out.height, out.width)
            images.append(plain)
            operations.append(GroupNormSilu(None, tuple(sources), out, plain=plain))
        else:
            operations.append(Residual(*sources, out, 1.0))
    return Graph(images[0], operations[-1].out, operations, [])


def assert_no_overlap(graph, element_bytes):
    """By going through the operations: what is written destroys nothing that is read later, or by the operation."""
    offsets, end = memory.layout(graph, element_bytes)
    inner = {image for operation in graph.operations for image in writes(operation)} - {graph.input, graph.output}
    assert set(offsets) == inner
    spans = {image: (start, start + image.elements * element_bytes) for image, start in offsets.items()}
    assert all(start % memory.ALIGNMENT == 0 and stop <= end for start, stop in spans.values())
    for index, operation in enumerate(graph.operations):
        later = {image for after in graph.operations[index + 1 :] for image in reads(after)}
        before = {image for earlier in graph.operations[:index] for image in writes(earlier)}
        kept = (before & later) | set(reads(operation))
        made = writes(operation)
        for image in made:
            for other in (kept | set(made)) - {image}:
                if image in spans and other in spans:
                    (a, b), (c, d) = spans[image], spans[other]
                    assert b <= c or d <= a, f"{image.name} lies on {other.name} at operation {index}"


@settings(max_examples=150, deadline=None)
@given(graphs(), st.sampled_from([2, 4]))
def test_images_alive_at_once_do_not_overlap(graph, element_bytes):
    assert_no_overlap(graph, element_bytes)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_images_of_networks_do_not_overlap_and_share(name):
    graph = lower(tiny(name).model, *image_size(name))
    assert_no_overlap(graph, 4)
    together = sum(image.elements * 4 for operation in graph.operations for image in writes(operation))
    assert memory.layout(graph, 4)[1] < together


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["ncsnpp", "adm", "encoder skip, decoder skip"])
@pytest.mark.parametrize("small", [True, False], ids=["samples", "team"])
def test_nothing_is_left_over_from_a_run_with_nan(name, dtype, small, monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL_NETWORK", float("inf") if small else 0)
    prepared = edm_fast.prepare(tiny(name), dtype)
    x = inputs(name, samples=3)[0]
    clean = prepared(x, 1.0)
    assert prepared(torch.full_like(x, torch.nan), 1.0).isnan().all()
    assert_same_bits(prepared(x, 1.0), clean)


@pytest.mark.parametrize("small", [True, False], ids=["samples", "team"])
def test_a_sample_of_nan_stays_by_itself(small, monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL_NETWORK", float("inf") if small else 0)
    prepared = edm_fast.prepare(tiny())
    x = inputs("ddpmpp", samples=4)[0]
    clean = prepared(x, 1.0)
    x[2] = torch.inf
    broken = prepared(x, 1.0)
    assert broken[2].isnan().any()
    others = [0, 1, 3]
    assert_same_bits(broken[others], clean[others])


@pytest.mark.parametrize("small", [True, False], ids=["samples", "team"])
def test_working_memory_is_bounded(small, monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL_NETWORK", float("inf") if small else 0)
    monkeypatch.setattr(cpu, "_ARENA_BYTES", 1 << 20)
    plan = edm_fast.prepare(tiny()).plan(8, 8)
    assert plan.memory_bytes(0) == 0
    assert plan.memory_bytes(1) < plan.memory_bytes(4)
    assert plan.memory_bytes(100_000) == plan.memory_bytes(1000)
    assert plan.memory_bytes(100_000) < 4 << 20


def test_parts_of_a_batch_that_go_one_after_the_other(monkeypatch):
    """More samples than go through the steps at once."""
    x = inputs("ddpmpp", samples=23)[0]
    expected = edm_fast.prepare(tiny())(x, 1.0)
    monkeypatch.setattr(cpu, "_SMALL_ARENA_BYTES", 1)
    monkeypatch.setattr(cpu, "_FEWEST_AT_ONCE", 3)
    assert_same_bits(edm_fast.prepare(tiny())(x, 1.0), expected)
