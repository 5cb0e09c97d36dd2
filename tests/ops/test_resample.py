"""Resampling: the filter's equation in every backend, its gradient, and any size, layout and dtype."""

from __future__ import annotations

import itertools

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops import backends
from edm_fast.ops.resample import resample
from edm_fast.reference.resample import resample as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FILTERS = [
    ((1, 1), None),
    ((1, 3, 3, 1), None),
    ((1, 3, 3, 1), 0),
    ((1, 3, 3, 1), 2),
    ((1, 5, 10, 10, 5, 1), None),
    ((1, 7, 21, 35, 35, 21, 7, 1), None),
]
SMALL = [(1, 1, 2, 2), (3, 3, 3, 5), (2, 17, 8, 8), (1, 24, 17, 3)]
LARGE = [
    (2, 40, 20, 12),
    (1, 64, 9, 7),
    (1, 256, 6, 5),
    (1, 535, 5, 6),
    (257, 2, 3, 4),
    (1, 100, 9, 21),
    (2, 3, 5, 150),
]
DIRECTIONS = [{"up": True}, {"down": True}]


def images(shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values + 2).to(dtype).contiguous(memory_format=torch.channels_last)


def shapes(backend):
    return SMALL if backend == "simt" else SMALL + LARGE


def fits(shape, options):
    """Whether any pixel is left."""
    k = len(options["taps"])
    p = (k - 2) // 2 if options["padding"] is None else options["padding"]
    extents = (2 * e - 2 + k - 2 * p if "up" in options else (e + 2 * p - k) // 2 + 1 for e in shape[2:])
    return min(extents) > 0


def cases(backend):
    for shape, direction, (taps, padding) in itertools.product(shapes(backend), DIRECTIONS, FILTERS):
        options = {**direction, "taps": taps, "padding": padding}
        if fits(shape, options):
            yield shape, options


@pytest.mark.parametrize(("taps", "padding"), FILTERS)
def test_the_reference_is_the_equation(taps, padding):
    x = images((1, 1, 5, 4), torch.float64)
    f = [tap / sum(taps) for tap in taps]
    p = (len(taps) - 2) // 2 if padding is None else padding
    down, up = reference(x, down=True, taps=taps, padding=padding), reference(x, up=True, taps=taps, padding=padding)

    def pixel(i, j):
        return float(x[0, 0, i, j]) if 0 <= i < 5 and 0 <= j < 4 else 0.0

    for out, i, j in ((down, *ij) for ij in itertools.product(*map(range, down.shape[2:]))):
        expected = sum(
            fa * fb * pixel(2 * i + a - p, 2 * j + b - p) for a, fa in enumerate(f) for b, fb in enumerate(f)
        )
        assert float(out[0, 0, i, j]) == pytest.approx(expected)
    for i, j in itertools.product(*map(range, up.shape[2:])):
        expected = sum(
            4 * fa * fb * pixel((i + p - a) // 2, (j + p - b) // 2)
            for a, fa in enumerate(f)
            for b, fb in enumerate(f)
            if (i + p - a) % 2 == 0 and (j + p - b) % 2 == 0
        )
        assert float(up[0, 0, i, j]) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_gradient(backend, device, guards, dtype):
    for shape, options in cases(backend):
        x = images(shape, dtype)
        eager, exact = (x.to(kind).detach().requires_grad_() for kind in (dtype, torch.float64))
        ours = x.to(device).requires_grad_()
        results = [resample(ours, **options, backend=backend), reference(eager, **options), reference(exact, **options)]
        what = f"{shape} {options}"
        assert_as_exact_as_eager(*results, what=what)
        cotangent = images(results[0].shape, dtype, seed=1)
        for result in results:
            result.backward(cotangent.to(result))
        assert_as_exact_as_eager(ours.grad, eager.grad, exact.grad, gradient=True, what=what)


def test_layouts_do_not_matter(backend, device):
    x = images((2, 6, 8, 6)).to(device)
    wide = torch.zeros([2, 9, 8, 6], device=device).contiguous(memory_format=torch.channels_last)
    wide[:, 2:8] = x
    offset = torch.zeros([x.numel() + 1], device=device)[1:].view(2, 8, 6, 6).permute(0, 3, 1, 2).copy_(x)
    for options in DIRECTIONS:
        expected = resample(x, **options, backend=backend)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        for variant in (x.contiguous(), wide[:, 2:8], offset, x.mT.contiguous().mT):
            assert_same_bits(resample(variant, **options, backend=backend), expected)


def test_a_sample_does_not_depend_on_its_batch_or_threads(backend, device):
    x = images((5, 5, 6, 7)).to(device)
    threads = torch.get_num_threads()
    for options in DIRECTIONS:
        whole = resample(x, **options, backend=backend)
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                parts = [resample(x[i : i + size], **options, backend=backend) for i, size in ((0, 1), (1, 3), (4, 1))]
                assert_same_bits(torch.cat(parts), whole)
        finally:
            torch.set_num_threads(threads)


def test_every_instruction_set(isa, guards):
    for name in isa.available_isas():
        isa.use_isa(name)
        for dtype, (shape, options) in itertools.product(DTYPES, cases("cpu")):
            x = images(shape, dtype)
            exact = reference(x.double(), **options)
            what = f"{name} {shape} {options}"
            assert_as_exact_as_eager(resample(x, **options, backend="cpu"), reference(x, **options), exact, what=what)


def test_nan_reaches_what_it_reaches_in_eager(backend, device):
    x = images((3, 4, 8, 8))
    x[1, 2, 3, 5] = torch.nan
    x[1, 0, 0, 0] = torch.inf
    for options in ({"up": True, "taps": (1, 3, 3, 1)}, {"down": True, "taps": (1, 3, 3, 1)}):
        finite = resample(x.to(device), **options, backend=backend).isfinite().cpu()
        assert torch.equal(finite, reference(x, **options).isfinite())


def test_no_samples(backend, device):
    x = images((0, 3, 4, 4)).to(device).requires_grad_()
    out = resample(x, up=True, backend=backend)
    assert out.shape == (0, 3, 8, 8)
    out.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("x", "options", "error", "name"),
    [
        (torch.zeros(1, 3, 4), {"up": True}, ValueError, "x"),
        (torch.zeros(1, 3, 4, 0), {"up": True}, ValueError, "x"),
        (torch.zeros(1, 3, 1, 4), {"down": True}, ValueError, "x"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), {"up": True}, TypeError, "x"),
        (torch.zeros(1, 3, 4, 4), {}, ValueError, "up"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "down": True}, ValueError, "up"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "taps": (1, 2, 1)}, ValueError, "taps"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "taps": (1, 2)}, ValueError, "taps"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "taps": (1, -1)}, ValueError, "taps"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "taps": (1,) * 10}, ValueError, "taps"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "taps": ()}, ValueError, "taps"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "padding": 2}, ValueError, "padding"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "padding": -1}, ValueError, "padding"),
        (torch.zeros(1, 3, 4, 4), {"up": True, "backend": "tpu"}, ValueError, "backend"),
        (torch.zeros(1, 3, 4, 4, device="meta"), {"up": True}, ValueError, "device"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), {"up": True, "backend": "cpu"}, TypeError, "x"),
    ],
)
def test_bad_arguments_are_named(x, options, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        resample(x, **options)


def test_float64_runs_on_the_reference_with_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(backends, "_warned", set())
    x = images((1, 2, 4, 4), torch.float64)
    for _ in range(2):
        assert_same_bits(resample(x, up=True), reference(x, up=True))
    [warning] = recwarn
    assert "resample has no kernel for torch.float64" in str(warning.message)
    assert warning.filename == __file__


def test_the_gradient_of_the_gradient_is_refused():
    x = images((1, 2, 4, 4)).requires_grad_()
    [grad] = torch.autograd.grad(resample(x, up=True).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_reference_is_differentiable():
    x = images((1, 2, 5, 4), torch.float64).requires_grad_()
    for direction, (taps, padding) in itertools.product(DIRECTIONS, FILTERS):
        torch.autograd.gradcheck(lambda x, o=direction, t=taps, p=padding: reference(x, **o, taps=t, padding=p), x)


def test_the_torch_operator_passes_opcheck_and_checks():
    x, out = images((1, 3, 4, 4)), images((1, 3, 8, 8))
    operator = torch.ops.edm_fast.resample_
    torch.library.opcheck(operator.default, (x, 1, 0, [0.5, 0.5], out))
    with pytest.raises(ValueError, match="^out: shape"):
        operator(x, 1, 0, [0.5, 0.5], x)
    with pytest.raises(ValueError, match="^x: strides"):
        operator(x.contiguous(), 1, 0, [0.5, 0.5], out)


def test_it_compiles_without_graph_breaks():
    def step(x):
        return resample(resample(x, up=True, taps=(1, 3, 3, 1)).sin(), down=True).sum()

    x, y = (images((2, 3, 4, 6)).requires_grad_() for _ in range(2))
    loss, compiled = step(x), torch.compile(step, fullgraph=True, backend="aot_eager")(y)
    assert_same_bits(compiled, loss)
    loss.backward()
    compiled.backward()
    assert_same_bits(y.grad, x.grad)
