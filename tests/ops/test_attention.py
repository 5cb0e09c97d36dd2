"""Self-attention: as exact as eager PyTorch, for any shape and layout; the same bits however the work is split."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerance import SAMPLER_FLOAT64, assert_as_exact_as_eager, assert_same_bits, relative_error
from torch.nn import functional

from edm_fast.ops import attention, backends
from edm_fast.ops.attention import library_attention
from edm_fast.reference.attention import self_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# samples, heads, channels of a head, height, width: odd and even, tile ± 1, more than one panel, wide heads.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 3, 1, 3),
    (3, 2, 17, 1, 17),
    (1, 2, 24, 10, 10),
    (2, 1, 64, 8, 8),
    (1, 6, 64, 16, 16),
    (1, 1, 192, 5, 13),
    (1, 1, 256, 16, 16),
    (2, 1, 512, 1, 7),
    (257, 1, 2, 1, 5),
    (1, 1, 65, 7, 7),
    (1, 2, 5, 32, 32),
]


@pytest.fixture(params=["reference", "cpu", "library", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """ "library" is what CUDA tensors go through, on CPU tensors."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def attend(backend, qkv, num_heads, packed=False):
    if backend == "library":
        return library_attention(qkv, num_heads, packed)
    return attention(qkv, num_heads, packed=packed, backend=backend)


def eager_attention(backend, qkv, num_heads, packed):
    """What `backend` may err as much as.

    How exact the library's fused kernel is depends on the processor, and is its own affair: ours is that it gets the
    right tensors, and none of float32.
    """
    if backend != "library" or qkv.dtype == torch.float32:
        return self_attention(qkv, num_heads, packed)
    order = (3, num_heads, -1) if packed else (num_heads, -1, 3)
    q, k, v = qkv.flatten(2).unflatten(1, order).movedim(1 if packed else 3, 0).mT
    return functional.scaled_dot_product_attention(q, k, v).mT.reshape(qkv.shape[0], -1, *qkv.shape[2:])


def draw(shape, dtype=torch.float32, device="cpu", *, outputs=3, seed=0):
    """[N, outputs · heads · d, H, W], channels-last."""
    samples, heads, width, *image = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn([samples, outputs * heads * width, *image], generator=generator)
    return values.to(device, dtype).contiguous(memory_format=torch.channels_last)


def gradient(function, qkv, grad_out):
    leaf = qkv.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    [grad] = torch.autograd.grad(function(leaf), leaf, grad_out)
    return grad


@pytest.fixture
def threads():
    """torch.set_num_threads, put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("packed", [False, True])
def test_by_hand(backend, device, packed):
    samples, heads, width, height, columns = shape = (2, 2, 3, 2, 2)
    qkv = draw(shape, device=device)
    out = attend(backend, qkv, heads, packed)
    values = qkv.double().cpu().flatten(2)
    expected = torch.zeros(samples, heads * width, height * columns, dtype=torch.float64)

    def channel(head, c, part):
        return (part * heads + head) * width + c if packed else (head * width + c) * 3 + part

    for n, head, i in itertools.product(range(samples), range(heads), range(height * columns)):
        scores = [
            sum(float(values[n, channel(head, c, 0), i] * values[n, channel(head, c, 1), j]) for c in range(width))
            / math.sqrt(width)
            for j in range(height * columns)
        ]
        weights = [math.exp(score) for score in scores]
        for c in range(width):
            weighted = sum(w * float(values[n, channel(head, c, 2), j]) for j, w in enumerate(weights))
            expected[n, head * width + c, i] = weighted / sum(weights)
    eager = self_attention(qkv, heads, packed)
    assert_as_exact_as_eager(out, eager, expected.view(out.shape))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True], ids=["interleaved", "packed"])
def test_as_exact_as_eager(backend, device, shape, dtype, packed):
    qkv, heads = draw(shape, dtype, device), shape[1]
    eager, exact = eager_attention(backend, qkv, heads, packed), self_attention(qkv.double(), heads, packed)
    assert_as_exact_as_eager(attend(backend, qkv, heads, packed), eager, exact)


@pytest.mark.parametrize("packed", [False, True], ids=["interleaved", "packed"])
def test_the_librarys_yardstick_is_attention(packed):
    qkv = draw((2, 3, 17, 5, 7), torch.float64)
    assert relative_error(eager_attention("library", qkv, 3, packed), self_attention(qkv, 3, packed)) < SAMPLER_FLOAT64


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True], ids=["interleaved", "packed"])
def test_gradients_are_as_exact_as_eager(backend, device, shape, dtype, packed):
    qkv, heads = draw(shape, dtype, device), shape[1]
    grad_out = draw(shape, dtype, device, outputs=1, seed=1)
    eager = gradient(lambda x: self_attention(x, heads, packed), qkv, grad_out)
    exact = gradient(lambda x: self_attention(x, heads, packed), qkv.double(), grad_out.double())
    ours = gradient(lambda x: attend(backend, x, heads, packed), qkv, grad_out)
    assert_as_exact_as_eager(ours, eager, exact, gradient=True)


@pytest.mark.parametrize("packed", [False, True], ids=["interleaved", "packed"])
def test_the_references_gradient_is_the_derivative(packed):
    qkv = draw((2, 2, 3, 2, 2)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: self_attention(x, 2, packed), qkv)


@pytest.mark.parametrize("shape", [(2, 2, 17, 5, 7), (1, 2, 64, 10, 10), (1, 1, 3, 32, 32)], ids=str)
def test_every_instruction_set_is_as_exact_as_eager(isa, shape):
    for name, dtype in itertools.product(isa.available_isas(), DTYPES):
        isa.use_isa(name)
        qkv, grad_out = draw(shape, dtype), draw(shape, dtype, outputs=1, seed=1)
        eager, exact = self_attention(qkv, shape[1]), self_attention(qkv.double(), shape[1])
        assert_as_exact_as_eager(attention(qkv, shape[1]), eager, exact, what=name)
        eager = gradient(lambda x: self_attention(x, shape[1]), qkv, grad_out)
        exact = gradient(lambda x: self_attention(x, shape[1]), qkv.double(), grad_out.double())
        ours = gradient(lambda x: attention(x, shape[1]), qkv, grad_out)
        assert_as_exact_as_eager(ours, eager, exact, gradient=True, what=name)


def test_large_scores_neither_overflow_nor_lose_the_largest(backend, device):
    """Scores of thousands: each row's softmax is nearly one weight, and the sums of e^score are not representable."""
    qkv, heads = draw((1, 2, 8, 6, 6), device=device) * 60, 2
    eager, exact = self_attention(qkv, heads), self_attention(qkv.double(), heads)
    assert_as_exact_as_eager(attend(backend, qkv, heads), eager, exact)


@pytest.mark.parametrize("offset", [-200.0, 200.0])
def test_scores_that_are_all_far_from_zero(isa, offset):
    """Softmax does not change by a constant: neither log_sum_exp's rounding nor a last vector's padding shows."""
    qkv, grad_out = draw((1, 1, 4, 1, 5)), draw((1, 1, 4, 1, 5), outputs=1, seed=1)
    parts = qkv.unflatten(1, (4, 3)).clone()
    parts[:, 0, 0], parts[:, 0, 1] = offset, 2.0
    qkv = parts.flatten(1, 2)
    eager, exact = self_attention(qkv, 1), self_attention(qkv.double(), 1)
    eager_grad = gradient(lambda x: self_attention(x, 1), qkv, grad_out)
    exact_grad = gradient(lambda x: self_attention(x, 1), qkv.double(), grad_out.double())
    for name in isa.available_isas():
        isa.use_isa(name)
        assert_as_exact_as_eager(attention(qkv, 1), eager, exact, what=name)
        ours = gradient(lambda x: attention(x, 1), qkv, grad_out)
        assert_as_exact_as_eager(ours, eager_grad, exact_grad, gradient=True, what=name)


def test_log_sum_exp():
    """What the backward reads: the logarithm of each row's denominator."""
    samples, heads, width, height, columns = shape = (2, 3, 17, 5, 7)
    qkv, tokens = draw(shape), height * columns
    log_sum_exp = torch.full([samples, heads, tokens], torch.nan)
    out = torch.empty_like(draw(shape, outputs=1))
    torch.ops.edm_fast.attention_(qkv, heads, True, out, log_sum_exp)

    def expected(dtype):
        q, k, _ = qkv.to(dtype).reshape(samples, 3, heads, width, tokens).unbind(1)
        return (q.mT @ (k / math.sqrt(width))).logsumexp(dim=-1)

    assert_as_exact_as_eager(log_sum_exp, expected(torch.float32), expected(torch.float64))


def test_layouts_do_not_matter(backend, device):
    shape = (2, 2, 20, 6, 5)
    qkv = draw(shape, device=device)
    expected = attend(backend, qkv, 2)
    doubled = torch.cat([torch.full_like(qkv, torch.nan), qkv], dim=1)
    shifted = torch.empty(qkv.numel() + 1, device=device)[1:].as_strided(qkv.shape, qkv.stride()).copy_(qkv)
    for variant in (
        qkv.contiguous(),
        qkv.contiguous().transpose(2, 3).contiguous().transpose(2, 3),
        doubled[:, qkv.shape[1] :],
        torch.stack([qkv, qkv * torch.nan], dim=1)[:, 0],
        shifted,
    ):
        assert_same_bits(attend(backend, variant, 2), expected)


def test_interleaved_and_packed_channels_are_two_orders_of_the_same():
    qkv = draw((2, 3, 20, 4, 5))
    reordered = qkv.unflatten(1, (60, 3)).transpose(1, 2).flatten(1, 2)
    assert_same_bits(attention(reordered, 3, packed=True), attention(qkv, 3))
    grad_out = draw((2, 3, 20, 4, 5), outputs=1, seed=1)
    packed = gradient(lambda x: attention(x, 3, packed=True), reordered, grad_out)
    interleaved = gradient(lambda x: attention(x, 3), qkv, grad_out)
    assert_same_bits(packed, interleaved.unflatten(1, (60, 3)).transpose(1, 2).flatten(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_take_any_strides(dtype):
    """Images whose channels are not side by side, and outputs in the middle of larger tensors, whose rims stay NaN."""
    shape = (2, 2, 20, 5, 4)
    qkv, grad_out = draw(shape, dtype), draw(shape, dtype, outputs=1, seed=1)
    expected = attention(qkv, 2)
    expected_grad = gradient(lambda x: attention(x, 2), qkv, grad_out)

    def inside(like, memory_format):
        rim = torch.full([4, like.shape[1] + 2, *like.shape[2:]], torch.nan, dtype=dtype)
        rim = rim.contiguous(memory_format=memory_format)
        return rim, rim[1:3, 1:-1]

    formats = (torch.contiguous_format, torch.channels_last)
    for source, target in itertools.product(formats, formats):
        out_rim, out = inside(expected, target)
        grad_rim, grad = inside(expected_grad, target)
        log_sum_exp = torch.full([2, 2, 20], torch.nan)
        given = qkv.contiguous(memory_format=source)
        torch.ops.edm_fast.attention_(given, 2, False, out, log_sum_exp)
        given_grad = grad_out.contiguous(memory_format=source)
        torch.ops.edm_fast.attention_grad_(given_grad, given, log_sum_exp, 2, False, grad)
        for rim, inner, wanted in ((out_rim, out, expected), (grad_rim, grad, expected_grad)):
            assert_same_bits(inner.contiguous(), wanted.contiguous())
            inner.fill_(torch.nan)
            assert rim.isnan().all()


# More heads than are packed at a time; more queries than the gradients keep the scores of; small and odd.
@pytest.mark.parametrize("shape", [(20, 2, 128, 16, 16), (1, 1, 8, 50, 50), (3, 2, 40, 9, 9)], ids=str)
def test_threads_and_batches_do_not_matter(isa, threads, shape):
    qkv, grad_out = draw(shape), draw(shape, outputs=1, seed=1)
    heads = shape[1]

    def both(part):
        return attention(qkv[part], heads), gradient(lambda x: attention(x, heads), qkv[part], grad_out[part])

    for name in isa.available_isas():
        isa.use_isa(name)
        threads(1)
        whole = both(slice(None))
        for count in (2, 5):
            threads(count)
            for result, expected in zip(both(slice(None)), whole, strict=True):
                assert_same_bits(result, expected)
        if shape[0] > 1:
            for part in (slice(0, 1), slice(1, 3), slice(3, None)):
                for result, expected in zip(both(part), whole, strict=True):
                    assert_same_bits(result, expected[part])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_reach_what_they_reach_in_eager(backend, device, value):
    shape = (3, 2, 20, 5, 4)
    for channel in (0, 1, 2):
        qkv = draw(shape, device=device)
        qkv[1, channel, 2, 2] = value
        out, eager = attend(backend, qkv, 2), self_attention(qkv, 2)
        assert torch.equal(out.isfinite(), eager.isfinite())
        assert out[[0, 2]].isfinite().all()
        assert not out[1].isfinite().all()
        grad = gradient(lambda x: attend(backend, x, 2), qkv, torch.ones_like(out))
        assert grad[[0, 2]].isfinite().all()
        assert not grad[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 2, 3, 0, 4), (2, 2, 3, 4, 0)], ids=str)
def test_empty_tensors(backend, device, shape):
    qkv = draw(shape, device=device)
    grad_out = draw(shape, device=device, outputs=1)
    assert attend(backend, qkv, 2).shape == grad_out.shape
    assert gradient(lambda x: attend(backend, x, 2), qkv, grad_out).shape == qkv.shape


def test_float64_goes_to_the_reference_with_one_warning():
    qkv = draw((2, 2, 3, 4, 4)).double()
    with pytest.warns(UserWarning, match="^attention: float64") as caught:
        out = attention(qkv, 2)
    assert len(caught) == 1
    assert_same_bits(out, self_attention(qkv, 2))


@pytest.mark.parametrize(
    ("qkv", "num_heads", "options", "error", "message"),
    [
        (torch.zeros(2, 12, 4), 2, {}, ValueError, "qkv"),
        (torch.zeros(2, 10, 4, 4), 2, {}, ValueError, "qkv"),
        (torch.zeros(2, 0, 4, 4), 2, {}, ValueError, "qkv"),
        (torch.zeros(2, 12, 4, 4, dtype=torch.int32), 2, {}, TypeError, "qkv"),
        (torch.zeros(2, 12, 4, 4), 0, {}, ValueError, "num_heads"),
        (torch.zeros(2, 12, 4, 4), 2, {"backend": "tpu"}, ValueError, "backend"),
        (torch.zeros(2, 12, 4, 4), 2, {"backend": "cuda"}, ValueError, "backend"),
        (torch.zeros(2, 12, 4, 4, device="meta"), 2, {}, ValueError, "device"),
    ],
)
def test_bad_arguments_are_named(qkv, num_heads, options, error, message):
    with pytest.raises(error, match=f"^{message}:"):
        attention(qkv, num_heads, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": torch.zeros(2, 12, 4, 4).double()}, TypeError, "qkv"),
        ({"out": torch.zeros(2, 4, 4, 5)}, ValueError, "out"),
        ({"out": torch.zeros(2, 4, 4, 4).half()}, TypeError, "out"),
        ({"out": torch.zeros(1, 4, 4, 4).expand(2, 4, 4, 4)}, ValueError, "out"),
        ({"log_sum_exp": torch.zeros(2, 2, 15)}, ValueError, "log_sum_exp"),
        ({"log_sum_exp": torch.zeros(2, 2, 16).double()}, TypeError, "log_sum_exp"),
        ({"log_sum_exp": torch.zeros(2, 16, 2).mT}, ValueError, "log_sum_exp"),
        ({"grad_out": torch.zeros(2, 4, 4, 5)}, ValueError, "grad_out"),
        ({"grad_out": torch.zeros(2, 4, 4, 4).half()}, TypeError, "grad_out"),
        ({"grad_qkv": torch.zeros(2, 4, 4, 4)}, ValueError, "grad_qkv"),
        ({"grad_qkv": torch.zeros(1, 12, 4, 4).expand(2, 12, 4, 4)}, ValueError, "grad_qkv"),
    ],
)
def test_the_torch_operators_check_their_arguments(change, error, message):
    tensors = {
        "qkv": torch.zeros(2, 12, 4, 4),
        "out": torch.zeros(2, 4, 4, 4),
        "log_sum_exp": torch.zeros(2, 2, 16),
        "grad_out": torch.zeros(2, 4, 4, 4),
        "grad_qkv": torch.zeros(2, 12, 4, 4),
        **change,
    }
    if message in ("grad_out", "grad_qkv"):
        operator, order = torch.ops.edm_fast.attention_grad_, ("grad_out", "qkv", "log_sum_exp", None, "grad_qkv")
    else:
        operator, order = torch.ops.edm_fast.attention_, ("qkv", None, "out", "log_sum_exp")
    arguments = []
    for name in order:
        arguments += [2, False] if name is None else [tensors[name]]
    with pytest.raises(error, match=f"^{message}:"):
        operator(*arguments)


def test_the_torch_operators_pass_opcheck():
    shape = (2, 2, 3, 4, 4)
    qkv, out, log_sum_exp = draw(shape), draw(shape, outputs=1), torch.zeros(2, 2, 16)
    operators = torch.ops.edm_fast
    for written in (None, log_sum_exp):
        torch.library.opcheck(operators.attention_.default, (qkv, 2, False, out, written))
    torch.library.opcheck(
        operators.attention_grad_.default, (out.clone(), qkv, log_sum_exp, 2, True, torch.zeros_like(qkv))
    )


def test_compiles_without_graph_breaks():
    shape = (2, 2, 3, 4, 4)
    qkv, grad_out = draw(shape), draw(shape, outputs=1, seed=1)
    compiled = torch.compile(lambda x: attention(x * 2, 2) + 1, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(qkv), attention(qkv * 2, 2) + 1)
    expected = gradient(lambda x: attention(x * 2, 2) + 1, qkv, grad_out)
    assert_same_bits(gradient(compiled, qkv, grad_out), expected)


def test_cuda_tensors_do_not_ask_for_our_cuda_kernels():
    """There are none of attention; see the op's page."""
    assert not hasattr(backends.extension().cuda, "attention")
