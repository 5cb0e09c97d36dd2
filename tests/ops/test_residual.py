"""The end of a residual branch: exact sums in every backend, the moments of what was written, slices, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from tolerance import VARIANCE, assert_as_exact_as_eager, assert_same_bits, relative_error

from edm_fast.ops import backends
from edm_fast.ops.residual import residual
from edm_fast.reference.residual import residual as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = [(1, 1, 1, 1), (3, 3, 3, 5), (2, 17, 8, 8), (1, 24, 17, 3)]
LARGE = [(2, 40, 20, 12), (1, 64, 8, 8), (1, 256, 20, 12), (257, 4, 3, 5)]


def draw(shape, dtype, seed):
    """Channels with means and deviations of their own; channels-last if they are images."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) < 4:
        return values.to(dtype)
    mean, deviation = (torch.randn([1, shape[1], 1, 1], generator=generator, dtype=torch.float64) for _ in range(2))
    return (values * deviation + 2 * mean).to(dtype).contiguous(memory_format=torch.channels_last)


def inputs(shape, dtype):
    return {
        "a": draw(shape, dtype, 0),
        "b": draw(shape, dtype, 1),
        "bias": draw(shape[1:2], torch.float32, 2),
    }


def cast(tensors, kind):
    """The same values in another dtype or place, as leaves; the bias stays float32 but for float64."""
    if kind == torch.float64:
        return {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    return {name: tensor.detach().clone().to(kind).requires_grad_() for name, tensor in tensors.items()}


def assert_moments(moments, out, what):
    """They are those of `out`."""
    _, eager = reference(out.cpu(), moments=True)
    _, exact = reference(out.cpu().double(), moments=True)
    assert_as_exact_as_eager(moments[..., 0], eager[..., 0], exact[..., 0], what=f"{what} means")
    if out.shape[2:] == (1, 1):
        assert (moments[..., 1] == 0).all()
    else:
        assert relative_error(moments[..., 1], exact[..., 1]) < VARIANCE, what


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("present", ["a", "ab", "a bias", "ab bias"])
def test_forward_moments_and_gradients(backend, device, guards, present, dtype):
    for shape in SMALL if backend == "simt" else SMALL + LARGE:
        tensors = {name: tensor for name, tensor in inputs(shape, dtype).items() if name in present}
        ours, eager, exact = cast(tensors, device), cast(tensors, torch.device("cpu")), cast(tensors, torch.float64)
        out, moments = residual(**ours, scale=0.75, moments=True, backend=backend)
        expected = [reference(**eager, scale=0.75), reference(**exact, scale=0.75)]
        assert_as_exact_as_eager(out, *expected, what=str(shape))
        assert_moments(moments, out.detach(), str(shape))
        assert not moments.requires_grad
        cotangent = draw(shape, dtype, 3)
        for result in (out, *expected):
            result.backward(cotangent.to(result))
        for name in tensors:
            assert_as_exact_as_eager(
                ours[name].grad, eager[name].grad, exact[name].grad, gradient=True, what=f"{shape} {name}"
            )


def test_means_far_from_zero_do_not_spoil_the_variance(backend, device):
    a = (draw((2, 3, 8, 8), torch.float32, 0) + 300).to(device)
    out, moments = residual(a, moments=True, backend=backend)
    assert_moments(moments, out, "far")


def test_a_slice_of_a_wider_image_is_written_and_nothing_beside_it(backend, device):
    tensors = {name: tensor.to(device) for name, tensor in inputs((2, 5, 4, 3), torch.float32).items()}
    expected, moments = residual(**tensors, scale=0.5, moments=True, backend=backend)
    for first in (0, 2, 6):
        wide = torch.full([2, 11, 4, 3], torch.nan, device=device).contiguous(memory_format=torch.channels_last)
        out, of_slice = residual(**tensors, scale=0.5, moments=True, out=wide[:, first : first + 5], backend=backend)
        assert_same_bits(out, expected)
        assert_same_bits(of_slice, moments)
        out.fill_(torch.nan)
        assert wide.isnan().all()


def test_the_output_may_be_the_first_input(backend, device):
    tensors = {name: tensor.to(device) for name, tensor in inputs((2, 5, 4, 3), torch.float32).items()}
    expected = residual(**tensors, scale=0.5, backend=backend)
    out = residual(**tensors, scale=0.5, out=tensors["a"], backend=backend)
    assert out is tensors["a"]
    assert_same_bits(out, expected)


def test_layouts_do_not_matter(backend, device):
    tensors = {name: tensor.to(device) for name, tensor in inputs((2, 6, 4, 3), torch.float32).items()}
    expected = residual(**tensors, backend=backend)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    for name in ("a", "b"):
        x = tensors[name]
        wide = torch.zeros([2, 9, 4, 3], device=device).contiguous(memory_format=torch.channels_last)
        wide[:, 2:8] = x
        offset = torch.zeros([x.numel() + 1], device=device)[1:].view(2, 4, 3, 6).permute(0, 3, 1, 2).copy_(x)
        for variant in (x.contiguous(), wide[:, 2:8], offset, x.double()):
            if variant.dtype == x.dtype or name == "b":
                assert_same_bits(residual(**{**tensors, name: variant}, backend=backend), expected)
    bias = torch.stack([tensors["bias"]] * 2, dim=1)[:, 0]
    assert_same_bits(residual(**{**tensors, "bias": bias}, backend=backend), expected)


def test_a_sample_does_not_depend_on_its_batch_or_threads(backend, device):
    tensors = {name: tensor.to(device) for name, tensor in inputs((5, 9, 6, 7), torch.float32).items()}
    whole = residual(**tensors, moments=True, backend=backend)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            parts = [
                residual(tensors["a"][part], tensors["b"][part], tensors["bias"], moments=True, backend=backend)
                for part in (slice(0, 1), slice(1, 4), slice(4, 5))
            ]
            for index in range(2):
                assert_same_bits(torch.cat([part[index] for part in parts]), whole[index])
    finally:
        torch.set_num_threads(threads)


def test_every_instruction_set(isa, guards):
    for name in isa.available_isas():
        isa.use_isa(name)
        for dtype, shape in itertools.product(DTYPES, SMALL + LARGE):
            tensors = inputs(shape, dtype)
            out, moments = residual(**tensors, scale=0.75, moments=True, backend="cpu")
            what = f"{name} {shape}"
            exact = reference(**cast(tensors, torch.float64), scale=0.75)
            assert_as_exact_as_eager(out, reference(**tensors, scale=0.75), exact, what=what)
            assert_moments(moments, out, what)


def test_nan_stays_in_its_element_and_its_channels_moments(backend, device):
    tensors = inputs((3, 4, 3, 5), torch.float32)
    tensors["b"][1, 2, 2, 4] = torch.nan
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    out, moments = residual(**tensors, moments=True, backend=backend)
    assert out.isnan().sum() == 1
    assert out[1, 2, 2, 4].isnan()
    assert moments.isnan().sum() == 2
    assert moments[1, 2].isnan().all()


def test_no_samples(backend, device):
    tensors = cast(inputs((0, 3, 4, 4), torch.float32), device)
    out, moments = residual(**tensors, moments=True, backend=backend)
    assert out.shape == (0, 3, 4, 4)
    assert moments.shape == (0, 3, 2)
    out.sum().backward()
    assert tensors["a"].grad.shape == out.shape
    assert (tensors["bias"].grad == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"a": torch.zeros(3, 4, 4)}, ValueError, "a"),
        ({"a": torch.zeros(2, 0, 4, 4)}, ValueError, "a"),
        ({"a": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, TypeError, "a"),
        ({"a": torch.zeros(2, 3, 4, 4, dtype=torch.float64), "backend": "cpu"}, TypeError, "a"),
        ({"b": torch.zeros(1, 3, 4, 4)}, ValueError, "b"),
        ({"b": torch.zeros(2, 3, 4, 4, device="meta")}, ValueError, "b"),
        ({"bias": torch.zeros(4)}, ValueError, "bias"),
        ({"bias": torch.zeros(1, 3)}, ValueError, "bias"),
        ({"out": torch.zeros(2, 3, 4, 5)}, ValueError, "out"),
        ({"out": torch.zeros(2, 3, 4, 4)}, ValueError, "out"),
        ({"out": torch.zeros(2, 4, 4, 3, dtype=torch.float16).permute(0, 3, 1, 2)}, TypeError, "out"),
        ({"out": torch.zeros(2, 1, 4, 4).expand(2, 3, 4, 4)}, ValueError, "out"),
        ({"bias": torch.zeros(3, requires_grad=True), "out": torch.zeros(2, 3, 4, 4)}, ValueError, "out"),
        ({"backend": "tpu"}, ValueError, "backend"),
    ],
)
def test_bad_arguments_are_named(change, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        residual(**{"a": torch.zeros(2, 3, 4, 4), **change})


def test_float64_runs_on_the_reference_with_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(backends, "_warned", set())
    a = draw((1, 2, 4, 4), torch.float64, 0)
    for _ in range(2):
        out, moments = residual(a, scale=0.5, moments=True)
    assert_same_bits(out, a * 0.5)
    assert moments.dtype == torch.float32
    [warning] = recwarn
    assert "residual has no kernel for torch.float64" in str(warning.message)


def test_the_reference_is_differentiable():
    tensors = cast(inputs((2, 3, 2, 2), torch.float64), torch.float64)
    torch.autograd.gradcheck(lambda *args: reference(*args, 0.7), tuple(tensors.values()))


def test_the_torch_operator_passes_opcheck_and_checks():
    tensors = inputs((2, 3, 4, 4), torch.float32)
    out, operator = torch.zeros_like(tensors["a"]), torch.ops.edm_fast.residual_
    torch.library.opcheck(operator.default, (*tensors.values(), 0.5, out, torch.zeros(2, 3, 2)))
    with pytest.raises(ValueError, match="^moments: shape"):
        operator(*tensors.values(), 0.5, out, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="^b: strides"):
        operator(tensors["a"], tensors["b"].contiguous(), None, 0.5, out, None)


def test_it_compiles_without_graph_breaks():
    def step(a, b, bias):
        out, moments = residual(a, b, bias, 0.7, moments=True)
        return (out.sin() * moments[:, :, :1, None]).sum()

    tensors, copies = (cast(inputs((2, 3, 4, 6), torch.float32), torch.float32) for _ in range(2))
    loss, compiled = step(**tensors), torch.compile(step, fullgraph=True, backend="aot_eager")(**copies)
    assert_same_bits(compiled, loss)
    loss.backward()
    compiled.backward()
    for name in tensors:
        assert_same_bits(copies[name].grad, tensors[name].grad)
