"""GroupNorm and its surroundings: as exact as eager whatever is fused, for any backend, size and layout."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from tolerance import FLOOR_ULPS, assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops import backends
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.reference.group_norm_silu import group_norm_silu as reference
from edm_fast.reference.residual import residual as reference_residual

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# N, C, groups, H, W; groups have several elements and, for the embedding's gradient not to vanish, several channels.
SMALL = [(1, 24, 3, 1, 1), (3, 15, 1, 3, 5), (2, 34, 17, 4, 4), (1, 24, 6, 17, 3)]
LARGE = [
    (2, 40, 10, 20, 12),
    (1, 64, 16, 8, 8),
    (1, 256, 32, 20, 12),
    (1, 711, 3, 4, 6),
    (257, 8, 2, 3, 2),
    (2, 17, 1, 8, 8),
]
# How much of what surrounds the norm is there; the names of tensors select those that a case gets.
OPTIONS = {
    "alone": {},
    "without SiLU": {"silu": False},
    "concatenation": {"x2": True, "plain": True},
    "sum": {"addend": True, "sum_scale": 0.75},
    "embedding": {"pre_bias": "rows"},
    "one embedding": {"pre_bias": "row"},
    "modulation": {"scale": "rows", "shift": "rows"},
    "one modulation": {"scale": "row", "shift": "row", "eps": 0.1},
    "up": {"up": True, "plain": True},
    "down with 4 taps": {"down": True, "taps": (1, 3, 3, 1), "plain": True},
    "moments": {"moments": True, "pre_bias": "rows"},
    "everything": {
        "x2": True,
        "pre_bias": "rows",
        "scale": "rows",
        "shift": "rows",
        "up": True,
        "taps": (1, 3, 3, 1),
        "plain": True,
        "moments": True,
    },
    "everything with a sum": {
        "addend": True,
        "sum_scale": 0.75,
        "pre_bias": "row",
        "scale": "rows",
        "shift": "rows",
        "down": True,
        "plain": True,
    },
}
TENSORS = ("x", "x2", "addend", "weight", "bias", "pre_bias", "scale", "shift")


def draw(shape, dtype, seed):
    """Channels with means and deviations of their own; channels-last if they are images."""
    generator = torch.Generator().manual_seed(700 + seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) < 4:
        return values.to(dtype)
    mean, deviation = (torch.randn([1, shape[1], 1, 1], generator=generator, dtype=torch.float64) for _ in range(2))
    return (values * deviation + 2 * mean).to(dtype).contiguous(memory_format=torch.channels_last)


class Case:
    """Inputs and options for one call; the second source begins inside of a group where that is possible."""

    def __init__(self, shape, dtype, options):
        samples, channels, self.groups, height, width = shape
        first = max(1, (2 * channels) // 5) if options.get("x2") and channels > 1 else channels
        self.options = {name: value for name, value in options.items() if name not in (*TENSORS, "moments")}
        self.what = f"{shape} {options}"

        def rows(name, seed):
            given = options.get(name)
            return {name: draw((samples if given == "rows" else 1, channels), torch.float32, seed)} if given else {}

        self.tensors = {
            "x": draw((samples, first, height, width), dtype, 0),
            "weight": draw((channels,), torch.float32, 1),
            "bias": draw((channels,), torch.float32, 2),
            **rows("pre_bias", 3),
            **rows("scale", 4),
            **rows("shift", 5),
        }
        if first < channels:
            self.tensors["x2"] = draw((samples, channels - first, height, width), dtype, 6)
        if options.get("addend"):
            self.tensors["addend"] = draw((samples, channels, height, width), dtype, 7)
        self.moments = None
        if options.get("moments"):
            sources = [self.tensors[name].double() for name in ("x", "x2") if name in self.tensors]
            self.moments = [reference_residual(source, moments=True)[1].float() for source in sources]

    def leaves(self, kind):
        """Copies in another dtype or place that take gradients."""
        return {name: tensor.detach().to(kind, copy=True).requires_grad_() for name, tensor in self.tensors.items()}

    def run(self, backend, device=None, tensors=None):
        """What the op gives, as a tuple."""
        device = device or torch.device("cpu")
        tensors = tensors or {name: tensor.to(device) for name, tensor in self.tensors.items()}
        moments = self.moments and [part.to(device) for part in self.moments]
        result = group_norm_silu(**tensors, num_groups=self.groups, **self.options, moments=moments, backend=backend)
        return result if isinstance(result, tuple) else (result,)

    def expected(self, tensors):
        result = reference(**tensors, num_groups=self.groups, **self.options)
        return result if isinstance(result, tuple) else (result,)


def cases(backend, dtype, options):
    for shape in SMALL if backend == "simt" else SMALL + LARGE:
        if not options.get("down") or min(shape[3:]) > 1:
            yield Case(shape, dtype, options)


def weighted_sum(results, dtype):
    """Of all results, with fixed weights that `dtype` holds exactly; in float64."""
    cotangents = [draw(tuple(result.shape), dtype, 10 + i) for i, result in enumerate(results)]
    pairs = zip(results, cotangents, strict=True)
    return sum((result * cotangent.to(result)).double().sum() for result, cotangent in pairs)


def gradients(results, tensors, dtype):
    """Of the weighted sum, by name."""
    loss = weighted_sum(results, dtype)
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def test_the_reference_is_the_equation():
    """In float64, written out: two sources, groups across them, all the rest of it."""
    case = Case((2, 6, 2, 3, 4), torch.float64, {"x2": True, "pre_bias": "rows", "scale": "rows", "shift": "row"})
    tensors = {name: tensor.double() for name, tensor in case.tensors.items()}
    h = torch.cat([tensors["x"], tensors["x2"]], dim=1) + tensors["pre_bias"][:, :, None, None]
    for n, c in itertools.product(range(2), range(6)):
        group = h[n, 3 * (c // 3) : 3 * (c // 3) + 3]
        variance = ((group - group.mean()) ** 2).mean()
        u = (h[n, c] - group.mean()) / (variance + 1e-5).sqrt() * tensors["weight"][c] + tensors["bias"][c]
        v = u * (1 + tensors["scale"][n, c]) + tensors["shift"][0, c]
        torch.testing.assert_close(case.expected(tensors)[0][n, c], v / (1 + (-v).exp()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_forward_and_gradients(backend, device, guards, options, dtype):
    for case in cases(backend, dtype, options):
        ours, eager, exact = case.leaves(device), case.leaves(torch.device("cpu")), case.leaves(torch.float64)
        results = case.run(backend, device, ours), case.expected(eager), case.expected(exact)
        for name, *parts in zip(("out", "second", "third"), *results, strict=False):
            assert_as_exact_as_eager(*parts, what=f"{case.what} {name}")
        without = case.run(backend, device)
        for with_gradient, inference in zip(results[0], without, strict=True):
            assert_same_bits(inference, with_gradient.detach())
        grads = [gradients(given, leaves, dtype) for given, leaves in zip(results, (ours, eager, exact), strict=True)]
        for name in case.tensors:
            parts = [grad[name] for grad in grads]
            assert_as_exact_as_eager(*parts, gradient=True, what=f"{case.what} gradient of {name}")


@pytest.mark.parametrize("shape", [(2, 1, 1, 4, 5), (2, 3, 1, 3, 5), (1, 3, 3, 8, 8), (1, 4, 1, 1, 1)], ids=str)
def test_a_few_channels(backend, device, guards, shape):
    """Forward alone: the gradients of so few numbers are a matter of luck, in eager PyTorch too."""
    for dtype in DTYPES:
        case = Case(shape, dtype, {"pre_bias": "rows", "scale": "rows", "shift": "row", "up": True, "plain": True})
        exact = case.expected({name: tensor.double() for name, tensor in case.tensors.items()})
        for parts in zip(case.run(backend, device), case.expected(case.tensors), exact, strict=True):
            assert_as_exact_as_eager(*parts, what=case.what)


def test_means_far_from_zero_do_not_spoil_the_variance(backend, device):
    """A mean of a thousand deviations, in the images and in the embedding."""
    case = Case((2, 16, 4, 8, 8), torch.float32, {"pre_bias": "rows"})
    for name in ("x", "pre_bias"):
        tensors = {**case.tensors, name: case.tensors[name] + 1000}
        exact = case.expected({key: tensor.double() for key, tensor in tensors.items()})
        [out] = case.run(backend, device, {key: tensor.to(device) for key, tensor in tensors.items()})
        assert_as_exact_as_eager(out, *case.expected(tensors), *exact, what=name)


def test_groups_without_variance_give_the_bias(backend, device):
    """But for x/√eps, which must cancel, and is rounded."""
    x, bias = draw((2, 5, 1, 1), torch.float32, 0).to(device), torch.arange(5.0, device=device)
    out = group_norm_silu(x, torch.ones(5, device=device), bias, 5, silu=False, backend=backend)
    rounding = FLOOR_ULPS * torch.finfo(torch.float32).eps * x.abs() / 1e-5**0.5
    assert bool(((out - bias.reshape(1, 5, 1, 1)).abs() <= rounding).all())


def test_moments_are_used(backend, device):
    """The kernels take what is given; the reference has no need of it."""
    case = Case((2, 8, 2, 4, 4), torch.float32, {"x2": True})
    case.moments = [
        torch.full([2, tensor.shape[1], 2], 4.0) for name, tensor in case.tensors.items() if name in ("x", "x2")
    ]
    [out] = case.run(backend, device)
    if backend == "reference":
        assert_same_bits(out, *case.run("reference"))
        return
    t = case.tensors
    u = (torch.cat([t["x"], t["x2"]], dim=1) - 4) / (4 + 1e-5) ** 0.5
    y = torch.nn.functional.silu(u * t["weight"][:, None, None] + t["bias"][:, None, None])
    torch.testing.assert_close(out.cpu(), y)


def test_gradients_of_some_inputs_alone(backend, device):
    """Each input's gradient is the same whether or not the others are asked for."""
    case = Case((2, 10, 2, 3, 5), torch.float32, OPTIONS["everything"])
    tensors = case.leaves(device)
    everything = gradients(case.run(backend, device, tensors), tensors, torch.float32)
    for name in tensors:
        if backend == "reference" and name in ("weight", "bias"):
            continue  # PyTorch 2.13's channels-last group_norm crashes when asked for one of these alone
        alone = {key: tensor.detach().requires_grad_(key == name) for key, tensor in tensors.items()}
        results = case.run(backend, device, alone)
        loss = weighted_sum(results, torch.float32)
        [grad] = torch.autograd.grad(loss, [alone[name]])
        assert_same_bits(grad, everything[name])


def test_layouts_do_not_matter(backend, device):
    if backend == "reference":
        pytest.skip("eager PyTorch rounds differently in every layout")
    case = Case((2, 10, 2, 4, 6), torch.float32, {"x2": True, "pre_bias": "rows", "scale": "rows", "shift": "rows"})
    tensors = {name: tensor.to(device) for name, tensor in case.tensors.items()}
    with_sum = Case((2, 10, 2, 4, 6), torch.float32, {"addend": True})
    [expected] = case.run(backend, device)
    assert expected.is_contiguous(memory_format=torch.channels_last)

    def images(x):
        wide = torch.full([2, x.shape[1] + 3, 4, 6], torch.nan, device=device).contiguous(
            memory_format=torch.channels_last
        )
        wide[:, 1 : 1 + x.shape[1]] = x
        offset = torch.zeros([x.numel() + 1], device=device)[1:].view(2, 4, 6, -1).permute(0, 3, 1, 2).copy_(x)
        return [x.contiguous(), wide[:, 1 : 1 + x.shape[1]], offset, x.mT.contiguous().mT]

    def rows(x):
        return [
            torch.cat([torch.full_like(x, torch.nan), x], dim=1)[:, 10:],
            torch.stack([x, x], dim=2)[:, :, 1],
            x.double(),
        ]

    for name, tensor in tensors.items():
        for variant in (
            images(tensor) if tensor.dim() == 4 else rows(tensor) if tensor.dim() == 2 else [tensor.double()]
        ):
            assert_same_bits(*case.run(backend, device, {**tensors, name: variant}), expected)
    outputs = with_sum.run(backend, device)
    for variant in images(with_sum.tensors["x"].to(device)):
        moved = {**{name: tensor.to(device) for name, tensor in with_sum.tensors.items()}, "x": variant}
        for actual, wanted in zip(with_sum.run(backend, device, moved), outputs, strict=True):
            assert_same_bits(actual, wanted)


def test_gradients_through_slices(backend, device):
    """Sources that are slices of one wider tensor, as a decoder's buffers are."""
    case = Case((2, 10, 2, 3, 4), torch.float32, {"x2": True})
    wide = torch.cat([case.tensors["x"], case.tensors["x2"]], dim=1).to(device)
    wide = wide.contiguous(memory_format=torch.channels_last).requires_grad_()
    tensors = {name: tensor.to(device) for name, tensor in case.tensors.items()}
    split = case.tensors["x"].shape[1]
    [sliced] = case.run(backend, device, {**tensors, "x": wide[:, :split], "x2": wide[:, split:]})
    sliced.square().sum().backward()
    leaves = case.leaves(device)
    [apart] = case.run(backend, device, leaves)
    apart.square().sum().backward()
    assert_same_bits(sliced, apart)
    assert_same_bits(wide.grad, torch.cat([leaves["x"].grad, leaves["x2"].grad], dim=1))


@pytest.mark.parametrize("options", ["everything", "everything with a sum"])
def test_a_sample_does_not_depend_on_its_batch_or_threads(backend, device, options):
    case = Case((5, 20, 4, 6, 4), torch.float32, OPTIONS[options])

    def outcome(part):
        tensors = {
            name: (tensor[part] if tensor.dim() > 1 and tensor.shape[0] == 5 else tensor).to(device).requires_grad_()
            for name, tensor in case.tensors.items()
        }
        of_part = Case((1, 1, 1, 1, 1), torch.float32, {})
        of_part.groups, of_part.options = case.groups, case.options
        of_part.moments = case.moments and [moments[part] for moments in case.moments]
        results = of_part.run(backend, device, tensors)
        loss = sum((result.sin()).sum() for result in results)
        per_sample = [
            tensor for tensor in tensors.values() if tensor.dim() > 1 and tensor.shape[0] == results[0].shape[0]
        ]
        return [*results, *torch.autograd.grad(loss, per_sample)]

    whole = outcome(slice(0, 5))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3) if backend == "cpu" else (1,):
            torch.set_num_threads(count)
            parts = [outcome(part) for part in (slice(0, 2), slice(2, 5))]
            for first, second, expected in zip(*parts, whole, strict=True):
                assert_same_bits(torch.cat([first, second]), expected)
    finally:
        torch.set_num_threads(threads)


def test_threads_do_not_matter_and_every_instruction_set_is_exact(isa, guards):
    threads = torch.get_num_threads()
    for name, options in itertools.product(isa.available_isas(), ("concatenation", "everything", "sum")):
        isa.use_isa(name)
        for dtype, shape in itertools.product(DTYPES, [(3, 15, 1, 3, 5), (1, 64, 16, 20, 12), (2, 40, 8, 9, 7)]):
            case = Case(shape, dtype, OPTIONS[options])
            outcomes = []
            try:
                for count in (1, 2, 5):
                    torch.set_num_threads(count)
                    leaves = case.leaves(torch.device("cpu"))
                    results = case.run("cpu", None, leaves)
                    outcomes.append([*results, *gradients(results, leaves, dtype).values()])
            finally:
                torch.set_num_threads(threads)
            for other, part in itertools.product(outcomes[1:], range(len(outcomes[0]))):
                assert_same_bits(other[part], outcomes[0][part])
            eager, exact = case.leaves(torch.device("cpu")), case.leaves(torch.float64)
            expected = [case.expected(eager), case.expected(exact)]
            expected = [
                [*results, *gradients(results, t, dtype).values()]
                for results, t in zip(expected, (eager, exact), strict=True)
            ]
            for index, parts in enumerate(zip(outcomes[0], *expected, strict=True)):
                assert_as_exact_as_eager(*parts, gradient=index >= len(results), what=f"{name} {case.what} {index}")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_reaches_what_it_reaches_in_eager(backend, device, value):
    """The group of one sample, and nothing else; the gradients likewise."""
    case = Case((3, 8, 4, 4, 4), torch.float32, {"plain": True})
    clean = case.run(backend, device)
    case.tensors["x"][1, 2, 3, 0] = value
    leaves, eager = case.leaves(device), case.leaves(torch.device("cpu"))
    results, expected = case.run(backend, device, leaves), case.expected(eager)
    for actual, wanted, before in zip(results, expected, clean, strict=True):
        assert torch.equal(actual.isfinite().cpu(), wanted.isfinite())
        for sample in (0, 2):
            assert_same_bits(actual[sample], before[sample])
    grad, wanted = gradients(results, leaves, torch.float32)["x"], gradients(expected, eager, torch.float32)["x"]
    assert torch.equal(grad.isfinite().cpu(), wanted.isfinite())


def test_large_values_saturate_silu(backend, device):
    """No overflow in e^-v: y is v for large v and 0 for very negative v."""
    x = draw((1, 4, 4, 4), torch.float32, 0).to(device)
    weight, bias = torch.zeros(4, device=device), torch.tensor([-2e4, -100.0, 100.0, 2e4], device=device)
    out = group_norm_silu(x, weight, bias, 2, backend=backend)
    expected = torch.tensor([0.0, 0.0, 100.0, 2e4]).reshape(1, 4, 1, 1).expand(1, 4, 4, 4)
    torch.testing.assert_close(out.cpu(), expected)


def test_no_samples(backend, device):
    case = Case((0, 8, 2, 4, 4), torch.float32, OPTIONS["everything"])
    leaves = case.leaves(device)
    out, plain = case.run(backend, device, leaves)
    assert out.shape == plain.shape == (0, 8, 8, 8)
    (out.sum() + plain.sum()).backward()
    assert leaves["x"].grad.shape == leaves["x"].shape
    assert (leaves["weight"].grad == 0).all()


def test_it_computes_in_the_dtype_of_x_under_autocast(backend, device):
    case = Case((1, 8, 2, 4, 4), torch.bfloat16, {"x2": True})
    case.tensors["x2"] = case.tensors["x2"].float()
    expected = case.run(backend, device)
    with torch.autocast(device.type, torch.bfloat16):
        for actual, wanted in zip(case.run(backend, device), expected, strict=True):
            assert_same_bits(actual, wanted)


IMAGE = torch.zeros(2, 8, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"x": torch.zeros(8, 4, 4)}, ValueError, "x"),
        ({"x": torch.zeros(2, 8, 0, 4)}, ValueError, "x"),
        ({"x": torch.zeros(2, 8, 1, 4), "down": True}, ValueError, "x"),
        ({"x": IMAGE.int()}, TypeError, "x"),
        ({"x": IMAGE.double(), "backend": "cpu"}, TypeError, "x"),
        ({"x2": torch.zeros(2, 4, 4)}, ValueError, "x2"),
        ({"x2": torch.zeros(2, 4, 4, 5)}, ValueError, "x2"),
        ({"x2": torch.zeros(1, 4, 4, 4)}, ValueError, "x2"),
        ({"x2": IMAGE.to("meta")}, ValueError, "x2"),
        ({"addend": torch.zeros(2, 4, 4, 4)}, ValueError, "addend"),
        ({"addend": IMAGE, "x2": IMAGE}, ValueError, "addend"),
        ({"weight": torch.zeros(7)}, ValueError, "weight"),
        ({"bias": torch.zeros(1, 8)}, ValueError, "bias"),
        ({"num_groups": 3}, ValueError, "num_groups"),
        ({"num_groups": 0}, ValueError, "num_groups"),
        ({"pre_bias": torch.zeros(3, 8)}, ValueError, "pre_bias"),
        ({"pre_bias": torch.zeros(8)}, ValueError, "pre_bias"),
        ({"scale": torch.zeros(2, 8)}, ValueError, "shift"),
        ({"shift": torch.zeros(2, 8)}, ValueError, "scale"),
        ({"scale": torch.zeros(2, 9), "shift": torch.zeros(2, 8)}, ValueError, "scale"),
        ({"up": True, "down": True}, ValueError, "up"),
        ({"up": True, "taps": (1, 2, 1)}, ValueError, "taps"),
        ({"moments": [torch.zeros(2, 8)]}, ValueError, r"moments\[0\]"),
        ({"moments": [torch.zeros(2, 8, 2).double()]}, TypeError, r"moments\[0\]"),
        ({"moments": [torch.zeros(2, 8, 2)] * 2}, ValueError, "moments"),
        ({"moments": [torch.zeros(2, 8, 2)], "addend": IMAGE}, ValueError, "moments"),
        ({"backend": "tpu"}, ValueError, "backend"),
    ],
)
def test_bad_arguments_are_named(change, error, name):
    arguments = {"x": IMAGE, "weight": torch.zeros(8), "bias": torch.zeros(8), "num_groups": 2, **change}
    with pytest.raises(error, match=f"^{name}:"):
        group_norm_silu(**arguments)


def test_float64_runs_on_the_reference_with_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(backends, "_warned", set())
    case = Case((1, 4, 2, 4, 4), torch.float64, {})
    for _ in range(2):
        assert_same_bits(*case.run(None), *case.expected(case.tensors))
    [warning] = recwarn
    assert "group_norm_silu has no kernel for torch.float64" in str(warning.message)


def test_the_gradient_of_the_gradient_is_refused():
    leaves = Case((1, 4, 2, 4, 4), torch.float32, {}).leaves(torch.device("cpu"))
    loss = group_norm_silu(**leaves, num_groups=2).square().sum()
    [grad] = torch.autograd.grad(loss, leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("options", ["everything", "everything with a sum"])
def test_the_reference_is_differentiable(options):
    case = Case((2, 4, 2, 2, 2), torch.float64, OPTIONS[options])
    leaves = case.leaves(torch.float64)
    call = functools.partial(reference, num_groups=2, **case.options)
    torch.autograd.gradcheck(lambda *values: call(**dict(zip(leaves, values, strict=True))), tuple(leaves.values()))


def test_the_torch_operators_pass_opcheck_and_check():
    x, x2, rows, vector = (
        draw((2, 4, 4, 4), torch.float32, 0),
        draw((2, 2, 4, 4), torch.float32, 1),
        torch.ones(2, 6),
        torch.ones(6),
    )
    settings = (1.0, 2, 1e-5, True, 1, 0, [0.5, 0.5])
    out, plain = (torch.zeros(2, 8, 8, 6).permute(0, 3, 1, 2) for _ in range(2))
    mean, rstd = torch.zeros(2, 2), torch.ones(2, 2)
    inputs = (x, x2, None, vector, vector.clone(), rows, rows.clone(), rows.clone())
    forward, backward = torch.ops.edm_fast.group_norm_silu_, torch.ops.edm_fast.group_norm_silu_grad_
    arguments = (*inputs, *settings, [torch.ones(2, 4, 2), torch.ones(2, 2, 2)], out, plain, None, mean, rstd)
    torch.library.opcheck(forward.default, arguments)
    results = [torch.zeros_like(x), torch.zeros_like(x2), *(torch.zeros(2, 6) for _ in range(5))]
    torch.library.opcheck(backward.default, (*inputs, *settings, mean, rstd, out, plain, None, *results))
    with pytest.raises(ValueError, match="^out: shape"):
        forward(*inputs, *settings, [], x, None, None, None, None)
    with pytest.raises(ValueError, match="^x2: strides"):
        forward(x, x2.contiguous(), *inputs[2:], *settings, [], out, None, None, None, None)
    with pytest.raises(ValueError, match="^grad_out: shape"):
        backward(*inputs, *settings, mean, rstd, x, None, None, *results)


@pytest.mark.parametrize("options", ["everything", "everything with a sum"])
def test_it_compiles_without_graph_breaks(options):
    case = Case((2, 8, 2, 4, 4), torch.float32, OPTIONS[options])

    def step(tensors):
        return sum(result.sin().sum() for result in case.run(None, None, tensors))

    leaves, copies = (case.leaves(torch.device("cpu")) for _ in range(2))
    loss, compiled = step(leaves), torch.compile(step, fullgraph=True, backend="aot_eager")(copies)
    assert_same_bits(compiled, loss)
    loss.backward()
    compiled.backward()
    for name in leaves:
        assert_same_bits(copies[name].grad, leaves[name].grad)
