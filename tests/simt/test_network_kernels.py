"""Each way that the CUDA kernels of group_norm_silu can go is taken and right, in every order of threads."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops.backends import kernels
from edm_fast.ops.conv2d_split import conv2d_split
from edm_fast.reference.conv2d_split import chunk_moments
from edm_fast.reference.conv2d_split import conv2d_split as reference_conv2d_split

EPS, FLOAT32 = 1e-5, 1
ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
# What is asked for, and how many kernels that takes.
RESIDENT = {"channels": 32, "groups": 8, "size": 6, "launches": 1}
STREAMING = {"channels": 32, "groups": 1, "size": 64, "launches": 2}
WITH_MOMENTS = {"channels": 32, "groups": 8, "size": 6, "launches": 1, "moments": True}


class Case:
    """Tensors of one call, channels-last; the results are poisoned before each."""

    def __init__(self, channels, groups, size, moments=False, launches=0):
        generator = torch.Generator().manual_seed(0)
        self.groups, self.launches = groups, launches
        self.x = torch.randn([2, channels, size, size], generator=generator).to(memory_format=torch.channels_last)
        self.grad = torch.randn([2, channels, size, size], generator=generator).to(memory_format=torch.channels_last)
        self.weight, self.bias = torch.randn([2, channels], generator=generator)
        self.mean, self.rstd = torch.empty([2, 2, groups])
        self.moments = torch.stack([self.x.mean([2, 3]), self.x.var([2, 3], unbiased=False)], -1) if moments else None

    def arguments(self, out):
        samples, channels, height, width = self.x.shape
        absent = (0, 0)
        return (
            (samples, height, width),
            FLOAT32,
            (self.x.data_ptr(), channels, channels),
            (0, 0, 0),
            (0, 1.0, 0),
            (0 if self.moments is None else self.moments.data_ptr(), 0, height * width),
            (self.weight.data_ptr(), self.bias.data_ptr(), self.groups, EPS, True),
            absent,
            absent,
            absent,
            (0, 0, []),
            (0 if out is None else out.data_ptr(), 0, self.mean.data_ptr(), self.rstd.data_ptr()),
        )

    def forward(self, module):
        out = torch.full_like(self.x, torch.nan)
        self.mean.fill_(torch.nan)
        self.rstd.fill_(torch.nan)
        before = module.launch_count()
        module.group_norm_silu(*self.arguments(out), 0, 0)
        assert module.launch_count() - before == self.launches
        return [out, self.mean.clone(), self.rstd.clone()]

    def backward(self, module):
        samples, channels = self.x.shape[:2]
        grad_x = torch.full_like(self.x, torch.nan)
        grad_weight, grad_bias = torch.full([2, samples, channels], torch.nan)
        results = (grad_x.data_ptr(), 0, 0, grad_weight.data_ptr(), grad_bias.data_ptr(), 0, 0)
        module.group_norm_silu_grad(*self.arguments(None), (self.grad.data_ptr(), 0, 0), results, 0, 0)
        return [grad_x, grad_weight.sum(0), grad_bias.sum(0)]

    def by_pytorch(self, dtype):
        inputs = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in (self.x, self.weight, self.bias)]
        x, weight, bias = inputs
        out = torch.nn.functional.silu(torch.nn.functional.group_norm(x, self.groups, weight, bias, EPS))
        out.backward(self.grad.to(dtype))
        return out.detach(), [tensor.grad for tensor in inputs]


@pytest.fixture
def in_every_order(simt_module):
    """Runs a function of the module in every order of threads, and checks that all give the same bits."""

    def run(function):
        results = []
        for name, seed in ORDERS:
            simt_module.set_thread_order(getattr(simt_module.ThreadOrder, name), seed)
            results.append(function(simt_module))
        for other in results[1:]:
            for got, wanted in zip(other, results[0], strict=True):
                assert_same_bits(got, wanted)
        return results[0]

    yield run
    simt_module.set_thread_order(simt_module.ThreadOrder.forward, 0)


@pytest.mark.parametrize("kind", [RESIDENT, STREAMING, WITH_MOMENTS], ids=["resident", "streaming", "with_moments"])
def test_group_norm_silu(in_every_order, kind):
    case = Case(**kind)
    out, *_ = in_every_order(case.forward)
    eager, exact = case.by_pytorch(torch.float32), case.by_pytorch(torch.float64)
    assert_as_exact_as_eager(out, eager[0], exact[0])
    for got, of_eager, wanted in zip(in_every_order(case.backward), eager[1], exact[1], strict=True):
        assert_as_exact_as_eager(got, of_eager, wanted, gradient=True)


def test_both_sides_of_the_limit_of_shared_memory(in_every_order):
    """Images that just fit by slabs of 64 bytes, and by slabs of 32, and some that just do not."""
    for size, launches in ((59, 1), (60, 1), (85, 1), (86, 2)):
        case = Case(16, 2, size, launches=launches)
        out, *_ = in_every_order(case.forward)
        eager, exact = case.by_pytorch(torch.float32), case.by_pytorch(torch.float64)
        assert_as_exact_as_eager(out, eager[0], exact[0])


@pytest.mark.parametrize(("channels", "kernel", "parts"), [(40, 1, 1), (24, 3, 3), (520, 3, 10)])
def test_conv2d_split(in_every_order, channels, kernel, parts):
    """Also where the last block to arrive is another one, and where copies arrive at once or as late as they may."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([1, channels, 5, 9], generator=generator).half().to(memory_format=torch.channels_last)
    weight = torch.randn([70, channels, kernel, kernel], generator=generator).half() / channels**0.5
    floats = kernels("simt").conv2d_split_partial(1, 45, channels, 70, kernel)
    assert floats == (2 * parts * 64 * 64 if parts > 1 else 0)
    out, moments = in_every_order(lambda module: conv2d_split(x, weight, moments=True, backend="simt"))
    assert_as_exact_as_eager(out, reference_conv2d_split(x, weight), reference_conv2d_split(x.double(), weight))
    wanted = chunk_moments(out.double())
    assert_as_exact_as_eager(moments[..., 0], chunk_moments(out.float())[..., 0], wanted[..., 0])
