"""The denoising loss: its equation in every backend, its gradient, and the noise that is made again."""

from __future__ import annotations

import itertools

import pytest
import torch
from rgb_layouts import EXTENTS, PLACES, interleaved
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast import randn
from edm_fast.ops.denoising_loss import denoising_loss
from edm_fast.ops.noise_augment import LevelRule, noise_augment
from edm_fast.ops.randn import DOMAIN_TRAINING

SHAPES = [(1, 1, 1, 1), (3, 3, 5, 4), (2, 5, 17, 3), (4, 7), (2, 3, 40, 30)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EDM = LevelRule("log_normal", -1.2, 1.2, preconditioning="edm", sigma_data=0.5, weight_sigma_data=0.5)


class Case:
    """Images, an output F of a network, and the row of every sample."""

    def __init__(self, shape, dtype=torch.float32, device="cpu", rule=EDM):
        generator = torch.Generator().manual_seed(2)
        y, output, grad = torch.randn([3, *shape], generator=generator, dtype=torch.float64)
        self.y, self.output = y.float().to(device), output.to(device, dtype)
        self.seeds = torch.arange(shape[0], device=device) * 31 - 5
        made = noise_augment(self.y.cpu(), rule, self.seeds.cpu(), 3, backend="reference")
        self.net_input, self.rows = (tensor.to(device) for tensor in made)
        self.error_grad = grad.float().to(device)
        self.loss_grad = self.error_grad.flatten(1)[:, 0].contiguous()

    def loss(self, backend, reduction, output=None, read=False):
        output = self.output if output is None else output
        options = {"net_input": self.net_input if read else None, "reduction": reduction, "backend": backend}
        return denoising_loss(output, self.y, self.rows, self.seeds, 3, **options)

    def as_written(self, output, dtype):
        """w·(c_skip·(y + σ·n) + c_out·F - y)², as eager PyTorch would have it."""
        sigma, weight, c_out = (self.rows[:, i].to(dtype).reshape(-1, *[1] * (self.y.dim() - 1)) for i in (0, 3, 6))
        n = randn(self.y.shape[1:], self.seeds, 3, domain=DOMAIN_TRAINING, device=self.y.device)
        x = self.y.to(dtype) + sigma * n.to(dtype)
        c_skip = 0.25 / (sigma**2 + 0.25)
        return weight * (c_skip * x + c_out * output.to(dtype) - self.y.to(dtype)) ** 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_the_loss_is_the_equation(backend, device, reduction, dtype, guards):
    for shape in SHAPES:
        case = Case(shape, dtype, device)
        exact, eager = (case.as_written(case.output, t) for t in (torch.float64, torch.float32))
        if reduction == "sample":
            exact, eager = exact.flatten(1).sum(dim=1), eager.flatten(1).sum(dim=1)
        assert_as_exact_as_eager(case.loss(backend, reduction), eager, exact, what=str(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_the_gradient_is_the_equations(backend, device, reduction, dtype, guards):
    for shape, last in itertools.product(SHAPES, (False, True)):
        case = Case(shape, dtype, device)
        if last and len(shape) == 4:
            case.output = case.output.contiguous(memory_format=torch.channels_last)
        grad = case.loss_grad if reduction == "sample" else case.error_grad

        def gradient(loss, output, grad=grad):
            return torch.autograd.grad(loss, output, grad.to(loss.dtype))[0]

        ours = case.output.clone().requires_grad_()
        found = gradient(case.loss(backend, reduction, ours), ours)
        expected = []
        for compute in (torch.float32, torch.float64):
            leaf = case.output.to(dtype if compute == torch.float32 else compute).requires_grad_()
            error = case.as_written(leaf, compute)
            expected.append(gradient(error.flatten(1).sum(dim=1) if reduction == "sample" else error, leaf))
        assert_as_exact_as_eager(found, *expected, gradient=True, what=str(shape))


def test_no_digits_are_lost_at_small_sigma(backend, device):
    """D - y is a difference of numbers thousands of times as large, if it is taken as written."""
    rule = EDM._replace(source="given")
    y, noise = torch.full((1, 8), 100.0, device=device), torch.ones(1, 8, device=device)
    rows = noise_augment(y, rule, sigma=torch.tensor([1e-4], device=device), noise=noise, backend=backend).rows
    output = torch.zeros(1, 8, device=device)
    loss = denoising_loss(output, y, rows, noise=noise, reduction="none", backend=backend)
    sigma = float(torch.tensor(1e-4))
    c_skip = 0.25 / (sigma**2 + 0.25)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * ((c_skip - 1) * 100 + c_skip * sigma) ** 2
    assert float(loss[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_given_noise_takes_the_place_of_drawn_noise(backend, device):
    case = Case((3, 3, 5, 4), device=device)
    noise = randn((3, 5, 4), case.seeds, 3, domain=DOMAIN_TRAINING, device=device)
    given = denoising_loss(case.output, case.y, case.rows, noise=noise, backend=backend)
    assert_same_bits(given, case.loss(backend, "sample"))


# Just below the least σ whose noise is read, that one, and the ends of what is trained on.
LEVELS = torch.tensor([0.002, 0.0624, 0.0625, 0.5, 80.0])


def read_case(device, rule=EDM, backend=None):
    """Five images at those levels, and the network's input that they got; the reference draws all noise."""
    if backend == "reference":
        pytest.skip("the reference draws all noise")
    case = Case((5, 3, 6, 8), device=device)
    made = noise_augment(
        case.y.cpu(), rule._replace(source="given"), case.seeds.cpu(), 3, sigma=LEVELS, backend="reference"
    )
    case.net_input, case.rows = (tensor.to(device) for tensor in made)
    return case


@pytest.mark.parametrize("rule", [EDM, LevelRule(preconditioning="vp", beta_d=19.9, beta_min=0.1, levels=1000)],
                         ids=["edm", "vp"])  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_noise_is_read_from_the_networks_input(backend, device, layout, rule, guards):
    """Each level's elements and gradients against D - y as eager PyTorch takes it, and against the exact one."""
    case = read_case(device, rule, backend)

    def results(dtype, net_input):
        leaf = case.output.to(dtype).requires_grad_()
        if net_input is None:
            n = randn((3, 6, 8), case.seeds, 3, domain=DOMAIN_TRAINING, device=device).to(dtype)
            c = [case.rows[:, i].to(dtype).reshape(-1, 1, 1, 1) for i in range(7)]
            y = case.y.to(dtype)
            as_written = c[5] / c[0] * (y + c[0] * n) + c[6] * leaf - y
            # c_skip - 1 and c_skip σ are rounded each for itself, so the exact error is of them.
            error = c[3] * (as_written if dtype == torch.float32 else c[4] * y + c[5] * n + c[6] * leaf) ** 2
        else:
            options = {"net_input": net_input, "reduction": "none", "backend": backend}
            error = denoising_loss(leaf, case.y, case.rows, case.seeds, 3, **options)
        return error.detach(), torch.autograd.grad(error.sum(), leaf)[0]

    ours = results(torch.float32, case.net_input.contiguous(memory_format=layout))
    for which, three in enumerate(zip(ours, results(torch.float32, None), results(torch.float64, None), strict=True)):
        for i in range(len(LEVELS)):
            assert_as_exact_as_eager(*(part[i] for part in three), gradient=which == 1, what=str(LEVELS[i]))


@pytest.mark.parametrize("reduction", ["sample", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extents", EXTENTS, ids=str)
def test_images_may_lie_pixel_by_pixel(backend, device, extents, dtype, reduction):
    """The same bits of the loss and of its gradient, whether the noise is read or drawn."""
    if backend == "reference":
        pytest.skip("PyTorch's sums depend on the layout")
    case = Case((3, 3, *extents), dtype, device)

    def results(place, read):
        output, y, net_input = (
            tensor.detach() if place is None else interleaved(tensor, *place)
            for tensor in (case.output, case.y, case.net_input)
        )
        output.requires_grad_()
        options = {"net_input": net_input if read else None, "reduction": reduction, "backend": backend}
        loss = denoising_loss(output, y, case.rows, case.seeds, 3, **options)
        return loss.detach().contiguous(), torch.autograd.grad(loss.sum(), output)[0].contiguous()

    for read in (False, True):
        expected = results(None, read)
        for place in PLACES:
            for found, wanted in zip(results(place, read), expected, strict=True):
                assert_same_bits(found, wanted)


def test_what_is_read_has_one_rounding(backend, device):
    """The quotient by c_in is no product with a rounded reciprocal: y is much larger than what is left of it."""
    if backend == "reference":
        pytest.skip("the reference draws all noise")
    generator = torch.Generator().manual_seed(4)
    c_in = (0.5 + torch.rand(64, generator=generator)).to(device)
    y = (1 + torch.rand(64, 16, generator=generator)).to(device)
    net_input = c_in[:, None] * (y + 0.0625 * torch.randn(64, 16, generator=generator).to(device))
    rows = torch.zeros(64, 7, device=device)
    rows[:, 0], rows[:, 1], rows[:, 3], rows[:, 5] = 0.0625, c_in, 1, 0.0625  # so the loss is (σ n)²
    options = {"net_input": net_input, "reduction": "none", "backend": backend}
    found = denoising_loss(torch.zeros_like(y), y, rows, range(64), **options)
    exact = net_input.double() / c_in.double()[:, None] - y.double()
    torch.testing.assert_close(found, exact.float() ** 2, rtol=2**-21, atol=0)


def test_only_large_noise_is_read(backend, device):
    """Another input is seen by the samples that read it, and by no other; 16 bits are never read."""
    case = read_case(device, backend=backend)

    def loss(net_input, **options):
        return denoising_loss(
            case.output, case.y, case.rows, case.seeds, 3, net_input=net_input, backend=backend, **options
        )

    drawn, other = loss(None), loss(case.net_input + 1)
    assert_same_bits(other[:2], drawn[:2])
    assert ((other - drawn)[2:].abs() > 1e-5 * drawn[2:]).all()
    assert_same_bits(loss((case.net_input + 1).bfloat16()), drawn)
    noise = randn((3, 6, 8), case.seeds, 3, domain=DOMAIN_TRAINING, device=device)
    assert_same_bits(loss(case.net_input + 1, noise=noise), drawn)
    for c_in in (0.0, -1.0, 1e-42, 1e38, torch.inf, torch.nan):  # nothing can be divided by these
        case.rows[:, 1] = c_in
        assert_same_bits(loss(case.net_input), drawn)


def test_a_graph_can_be_gone_through_again(backend, device):
    case = read_case(device, backend=backend)
    leaf = case.output.clone().requires_grad_()
    loss = denoising_loss(leaf, case.y, case.rows, case.seeds, 3, net_input=case.net_input, backend=backend)
    (first,) = torch.autograd.grad(loss, leaf, case.loss_grad, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, 2 * case.loss_grad, retain_graph=True)
    assert_same_bits(second, 2 * first)
    (each,) = torch.autograd.grad(loss, leaf, torch.diag(case.loss_grad), is_grads_batched=True)
    assert_same_bits(each.sum(dim=0), first)


@pytest.mark.parametrize("read", [False, True], ids=["drawn", "read"])
def test_a_sample_does_not_depend_on_its_batch_or_threads(backend, device, read):
    case = Case((5, 3, 40, 40), device=device)
    whole = case.loss(backend, "sample", read=read)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same_bits(case.loss(backend, "sample", read=read), whole)
    finally:
        torch.set_num_threads(threads)
    for i in range(5):
        one = slice(i, i + 1)
        options = {"net_input": case.net_input[one] if read else None, "backend": backend}
        alone = denoising_loss(case.output[one], case.y[one], case.rows[one], case.seeds[one], 3, **options)
        if backend != "reference":  # torch's sums depend on the shape
            assert_same_bits(alone, whole[i : i + 1])


@pytest.mark.parametrize("read", [False, True], ids=["drawn", "read"])
def test_every_instruction_set_gives_the_same_bits(isa, read):
    case = Case((3, 3, 40, 30))
    results = []
    for name in isa.available_isas():
        isa.use_isa(name)
        output = case.output.clone().requires_grad_()
        loss = case.loss(None, "sample", output, read)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), output)[0]))
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            assert_same_bits(found, expected)


@pytest.mark.parametrize("read", [False, True], ids=["drawn", "read"])
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_nan_stays_in_its_sample(backend, device, reduction, read):
    case = Case((3, 2, 4, 4), device=device)
    expected = case.loss(backend, reduction, read=read)
    case.output[1, 1, 2, 3] = torch.nan
    found = case.loss(backend, reduction, read=read)
    where = (1,) if reduction == "sample" else (1, 1, 2, 3)
    assert found[where].isnan()
    expected[where] = torch.nan
    assert_same_bits(found, expected)


def test_no_samples_and_no_pixels(backend, device):
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        y = torch.zeros(shape, device=device)
        rows = noise_augment(y, EDM, range(shape[0]), backend=backend).rows
        for net_input in (None, y):
            loss = denoising_loss(y, y, rows, range(shape[0]), net_input=net_input, backend=backend)
            assert loss.tolist() == [0] * shape[0]


def test_float64_with_gradients_runs_on_the_reference_with_one_warning():
    case = Case((2, 3), torch.float64)
    output = case.output.requires_grad_()
    torch.autograd.gradcheck(lambda F: case.loss("reference", "sample", F), [output])
    torch.autograd.gradcheck(lambda F: case.loss("reference", "none", F), [output])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seeds": None}, "seeds"),
        ({"seeds": [1]}, "seeds"),
        ({"draw": 2**32}, "draw"),
        ({"rows": torch.ones(2, 6)}, "rows"),
        ({"rows": torch.ones(2, 7, dtype=torch.float64)}, "rows"),
        ({"images": torch.zeros(2, 3, 4, 5)}, "images"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "images"),
        ({"noise": torch.zeros(2, 3, 4, 5)}, "noise"),
        ({"net_input": torch.zeros(2, 3, 4, 5)}, "net_input"),
        ({"net_input": torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16)}, "net_input"),
        ({"net_input": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "net_input"),
        ({"net_input": torch.tensor(0.0)}, "net_input"),
        ({"net_input": torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16, device="meta")}, "net_input"),
        ({"model_output": torch.tensor(0.0)}, "model_output"),
        ({"images": torch.tensor(0.0)}, "images"),
        ({"model_output": torch.zeros(2)}, "model_output"),
        ({"model_output": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "model_output"),
        ({"reduction": "mean"}, "reduction"),
    ],
)
def test_bad_arguments_are_named(options, named):
    zeros = torch.zeros(2, 3, 4, 4)
    arguments = {"model_output": zeros, "images": zeros, "rows": torch.ones(2, 7), "seeds": [1, 2], **options}
    with pytest.raises((ValueError, TypeError), match=rf"^{named}"):
        denoising_loss(**arguments)


def test_the_torch_operators_pass_opcheck():
    case = Case((2, 3, 4, 4))
    inputs = (case.output, case.y, case.rows, 3, case.seeds, None, case.net_input)
    loss, images = torch.empty(2), torch.empty(2, 2, 3, 4, 4)
    torch.library.opcheck(torch.ops.edm_fast.denoising_loss_.default, (*inputs, loss, None, None))
    torch.library.opcheck(torch.ops.edm_fast.denoising_loss_.default, (*inputs, None, *images))


@pytest.mark.parametrize("read", [False, True], ids=["drawn", "read"])
def test_it_compiles_without_graph_breaks(read):
    case = Case((2, 3, 4, 4))

    def loss_of(F):
        return case.loss(None, "sample", F, read)

    results = []
    for function in (torch.compile(loss_of, fullgraph=True, backend="aot_eager"), loss_of):
        output = case.output.clone().requires_grad_()
        loss = function(output)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), output)[0]))
    for found, expected in zip(*results, strict=True):
        assert_same_bits(found, expected)
