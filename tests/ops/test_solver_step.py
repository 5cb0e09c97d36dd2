"""A row of a solver table: the same bits from every backend, whatever the dtype and size."""

from __future__ import annotations

import itertools

import pytest
import torch
from solver_rows import DENOISED, Step, assert_same_step, dense_table, heun_like_table
from tolerance import assert_same_bits

import edm_fast
from edm_fast.ops import backends
from edm_fast.ops.solver_step import (
    DENOISED_FROM_GUIDE,
    DENOISED_FROM_MODEL,
    DENOISED_FROM_STATE,
    NET_INPUT_SCALE,
    REGISTERS,
    ROW_SIZE,
    UPDATE,
    UPDATE_TERMS,
    solver_step,
)

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 4), (3, 1, 8, 8), (1, 3, 17, 5), (2, 2, 33, 31), (257, 1, 1, 3), (5, 19)]


def test_a_dense_row_by_hand(backend, device):
    table, step = dense_table(1), Step((2, 3, 4, 4), device)
    row = table[0].tolist()
    state = [tensor.cpu() for tensor in step.state]
    read = {name: tensor.cpu().double() for name, tensor in step.tensors.items()}
    D = row[0] * state[0] + row[1] * read["model_output"] + row[2] * read["guide_output"]
    terms = [*state, D, read["noise"]]
    expected = []
    for register in range(REGISTERS):
        total = row[UPDATE + register * UPDATE_TERMS] * terms[0]
        for term in range(1, UPDATE_TERMS):
            total = total + row[UPDATE + register * UPDATE_TERMS + term] * terms[term]
        expected.append(total)
    assert_same_step(step.run(table, 0, backend), [*expected, (row[NET_INPUT_SCALE] * expected[0]).float(), D])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32])
def test_every_backend_gives_the_reference_bits(backend, device, shape, state_dtype):
    step = Step(shape, device, state_dtype=state_dtype)
    on_cpu = Step(shape, torch.device("cpu"), state_dtype=state_dtype)
    for table, row in itertools.product((dense_table(), heun_like_table()), range(3)):
        assert_same_step(step.run(table, row, backend), on_cpu.run(table, row, "reference"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32])
def test_network_tensors_of_every_dtype(backend, device, state_dtype, dtype):
    step = Step((2, 3, 9, 7), device, state_dtype=state_dtype, dtype=dtype)
    on_cpu = Step((2, 3, 9, 7), torch.device("cpu"), state_dtype=state_dtype, dtype=dtype)
    assert_same_step(step.run(dense_table(), 1, backend), on_cpu.run(dense_table(), 1, "reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_of_extreme_values_are_pytorchs(backend, device, dtype):
    """Ties, subnormals, overflow to infinity, NaN, through an identity row."""
    values = torch.tensor(
        [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e6, 3e38, 3.4e38, 1e-8, 5.96e-8, 2.98e-8, 2.9802322e-8, 6.1e-5,
         1e-40, float("inf"), float("-inf"), float("nan"), 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    )  # fmt: skip
    values = torch.cat([values, -values])[None]
    table = torch.zeros([1, ROW_SIZE], dtype=torch.float64, device=device)
    table[0, UPDATE] = table[0, NET_INPUT_SCALE] = 1
    net_input = torch.empty_like(values, dtype=dtype, device=device)
    solver_step([values.to(device)], table, 0, net_input=net_input, backend=backend)
    assert_same_bits(net_input, values.to(dtype))
    table[0] = 0
    table[0, DENOISED_FROM_MODEL] = table[0, UPDATE + DENOISED] = 1
    state = torch.empty_like(values, device=device)
    solver_step([state], table, 0, model_output=net_input, backend=backend)
    assert_same_bits(state, values.to(dtype).float())


def test_the_torch_operator_checks_its_arguments_too():
    state, table = torch.zeros(2, 400, dtype=torch.float64), dense_table()
    with pytest.raises(ValueError, match="^model_output"):
        torch.ops.edm_fast.solver_step_([state], table, 0, None, torch.zeros(1, 1), None, None, None, None, None, None)
    with pytest.raises(ValueError, match="^seeds"):
        torch.ops.edm_fast.randn_(torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64), 0, 0)


def test_a_row_of_zeros_gives_a_denoised_of_zeros(backend, device):
    step, table = Step((2, 3, 4, 4), device), torch.zeros([1, ROW_SIZE], dtype=torch.float64)
    *state, net_input, denoised = step.run(table, 0, backend)
    for register, before in zip(state, step.state, strict=True):
        assert_same_bits(register, before.cpu())
    assert (denoised == 0).all()
    assert (net_input == 0).all()


def test_own_noise_is_the_rows_draw(backend, device):
    seeds = torch.tensor([3, -7], device=device)
    step = Step((2, 3, 5, 5), device)
    for row in range(3):
        noise = edm_fast.randn((3, 5, 5), seeds.cpu(), row + 1, dtype=torch.float64).to(device)
        assert_same_step(
            step.run(dense_table(), row, backend, noise=None, seeds=seeds),
            step.run(dense_table(), row, backend, noise=noise),
        )


def test_row_offset_moves_through_the_table(backend, device):
    step = Step((2, 1, 4, 4), device)
    offset = torch.tensor([2], device=device)
    assert_same_step(step.run(dense_table(), 0, backend, row_offset=offset), step.run(dense_table(), 2, backend))


def test_absent_terms_are_not_read(backend, device):
    """A coefficient of 0 hides NaN, and registers without coefficients keep their value."""
    step = Step((2, 3, 4, 4), device)
    clean = step.run(heun_like_table(), 0, backend)
    step.state[2].fill_(torch.nan)
    step.tensors["guide_output"].fill_(torch.nan)
    poisoned = step.run(heun_like_table(), 0, backend, noise=None)
    for index in (0, 1, 4, 5):
        assert_same_bits(poisoned[index], clean[index])
    assert poisoned[2].isnan().all()
    assert_same_bits(poisoned[3], step.state[3].cpu())


def test_a_missing_tensor_shows_as_nan(backend, device):
    step = Step((1, 1, 4, 4), device)
    for name in ("model_output", "guide_output", "noise"):
        x, *_ = step.run(dense_table(), 0, backend, **{name: None})
        assert x.isnan().all(), name


def test_missing_registers_read_as_nan_and_are_not_written(backend, device):
    step = Step((2, 3, 4, 4), device)
    step.state = step.state[:2]
    assert all(tensor.isnan().all() for tensor in step.run(dense_table(), 0, backend)[:3])
    table = dense_table()
    table[0, UPDATE + 2], table[0, UPDATE + 3] = 0, 0
    x, kept, *_ = step.run(table, 0, backend)
    assert not x.isnan().any()
    assert kept.isnan().all()


def test_nan_stays_in_its_element(backend, device):
    step = Step((2, 3, 4, 4), device)
    step.tensors["model_output"][1, 2, 3, 0] = torch.nan
    for tensor in step.run(dense_table(), 0, backend):
        assert tensor.isnan().sum() == 1
        assert tensor[1, 2, 3, 0].isnan()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32])
def test_first_bad_is_lowered_where_a_sample_has_a_bad_d(backend, device, state_dtype, value):
    """Wherever in the sample it is, and not by other samples; never raised; only by rows that have a D."""
    step = Step((5, 3, 33, 31), device, state_dtype=state_dtype)
    for sample, element in ((0, 0), (2, 1500), (3, 3 * 33 * 31 - 1)):
        step.tensors["model_output"][sample].view(-1)[element] = value
    offset = torch.tensor([1], device=device)

    def first_bad(table, row, before=(9, 9, 9, 1, 9), **overrides):
        numbers = torch.tensor(before, device=device)
        step.run(table, row, backend, first_bad=numbers, row_offset=offset, **overrides)
        return numbers.tolist()

    assert first_bad(dense_table(), 1) == [2, 9, 2, 1, 9]
    assert first_bad(heun_like_table(), 1, denoised=None) == [2, 9, 2, 1, 9]
    without = torch.zeros([3, ROW_SIZE], dtype=torch.float64)
    without[:, UPDATE] = without[:, DENOISED_FROM_MODEL] = 1
    assert first_bad(without, 1, denoised=None) == [9, 9, 9, 1, 9]
    assert first_bad(without, 1) == [2, 9, 2, 1, 9]


def test_the_largest_finite_d_is_not_bad(backend, device):
    step = Step((2, 3, 4, 4), device, state_dtype=torch.float32)
    step.tensors["model_output"][0] = torch.finfo(torch.float32).max
    table = torch.zeros([1, ROW_SIZE], dtype=torch.float64)
    table[0, DENOISED_FROM_MODEL] = table[0, UPDATE + DENOISED] = 1
    numbers = torch.tensor([9, 9], device=device)
    step.run(table, 0, backend, first_bad=numbers)
    assert numbers.tolist() == [9, 9]


def test_instruction_sets_and_threads_do_not_matter(isa):
    step = Step((3, 3, 64, 64), torch.device("cpu"))
    seeds = torch.arange(3)
    expected = step.run(dense_table(), 0, "reference", noise=None, seeds=seeds)
    threads = torch.get_num_threads()
    try:
        for name, count in itertools.product(isa.available_isas(), (1, 2, 5)):
            isa.use_isa(name)
            torch.set_num_threads(count)
            assert_same_step(step.run(dense_table(), 0, "cpu", noise=None, seeds=seeds), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_sample_does_not_depend_on_its_batch(backend, device):
    step = Step((5, 3, 7, 7), device)
    seeds = torch.arange(5, device=device)
    whole = step.run(dense_table(), 1, backend, noise=None, seeds=seeds)
    for n in range(5):
        single = Step((5, 3, 7, 7), device)
        single.state = [tensor[n : n + 1] for tensor in single.state]
        single.tensors = {name: tensor[n : n + 1] for name, tensor in single.tensors.items()}
        part = single.run(dense_table(), 1, backend, noise=None, seeds=seeds[n : n + 1])
        assert_same_step(part, [tensor[n : n + 1] for tensor in whole])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_empty_tensors(backend, device, shape):
    for tensor in Step(shape, device).run(dense_table(), 0, backend):
        assert tuple(tensor.shape) == shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": []}, ValueError, "state"),
        ({"state": [torch.zeros(2, 3)] * 5}, ValueError, "state"),
        ({"state": [torch.zeros(2, 3, dtype=torch.float16)]}, TypeError, "state"),
        ({"state": [torch.zeros(2, 3), torch.zeros(2, 4)]}, ValueError, r"state\[1\]"),
        ({"state": [torch.zeros(2, 3), torch.zeros(2, 3).double()]}, TypeError, r"state\[1\]"),
        ({"table": torch.zeros(3, 31, dtype=torch.float64)}, ValueError, "table"),
        ({"table": torch.zeros(3, 32)}, ValueError, "table"),
        ({"row": 3}, ValueError, "row"),
        ({"row": -1}, ValueError, "row"),
        ({"model_output": torch.zeros(2, 4)}, ValueError, "model_output"),
        ({"model_output": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "model_output"),
        ({"noise": torch.zeros(2, 3, device="meta")}, ValueError, "noise"),
        ({"net_input": torch.zeros(3, 2)}, ValueError, "net_input"),
        ({"denoised": torch.zeros(2, 3, 1)}, ValueError, "denoised"),
        ({"seeds": torch.zeros(2)}, ValueError, "seeds"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, "seeds"),
        ({"first_bad": torch.zeros(3, dtype=torch.int64)}, ValueError, "first_bad"),
        ({"first_bad": torch.zeros(2)}, ValueError, "first_bad"),
        ({"first_bad": torch.zeros(4, dtype=torch.int64)[::2]}, ValueError, "first_bad"),
        ({"row_offset": torch.zeros(1)}, ValueError, "row_offset"),
        ({"row_offset": torch.zeros(2, dtype=torch.int64)}, ValueError, "row_offset"),
        ({"row_offset": torch.tensor([3])}, ValueError, "row_offset"),
        ({"row_offset": torch.tensor([-1])}, ValueError, "row_offset"),
        ({"state": [torch.zeros(1, 3).expand(2, 3)]}, ValueError, r"state\[0\]"),
        ({"net_input": torch.zeros(1, 3).expand(2, 3)}, ValueError, "net_input"),
        ({"denoised": torch.zeros(1, 3).expand(2, 3)}, ValueError, "denoised"),
        ({"backend": "tpu"}, ValueError, "backend"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(change, error, message):
    arguments = {"state": [torch.zeros(2, 3)], "table": dense_table(), "row": 0, **change}
    before = [tensor.clone() for tensor in arguments["state"]]
    with pytest.raises(error, match=f"^{message}:"):
        solver_step(**arguments)
    for tensor, copy in zip(arguments["state"], before, strict=True):
        assert_same_bits(tensor, copy)


def test_the_torch_operator_passes_opcheck():
    step = Step((2, 3, 4, 4), torch.device("cpu"))
    tensors = step.tensors
    args = (
        step.state,
        dense_table(),
        0,
        None,
        tensors["model_output"],
        tensors["guide_output"],
        None,
        tensors["noise"],
    )
    written = (tensors["net_input"], tensors["denoised"], torch.tensor([9, 9]))
    torch.library.opcheck(torch.ops.edm_fast.solver_step_.default, (*args, *written))


def test_the_row_layout_is_the_headers():
    """The kernel reads what the names here mean: each named column alone does what it says."""
    x = torch.full([1, 4], 2.0, dtype=torch.float64)
    for column, value in (
        (DENOISED_FROM_STATE, 2.0),
        (DENOISED_FROM_MODEL, 3.0),
        (DENOISED_FROM_GUIDE, 5.0),
    ):
        table = torch.zeros([1, ROW_SIZE], dtype=torch.float64)
        table[0, column] = 1
        denoised = torch.full([1, 4], torch.nan, dtype=torch.float64)
        solver_step(
            [x.clone()],
            table,
            0,
            model_output=torch.full([1, 4], 3.0),
            guide_output=torch.full([1, 4], 5.0),
            denoised=denoised,
        )
        assert (denoised == value).all()


def test_a_build_without_cuda_kernels_says_so(monkeypatch):
    class Compiled:
        class cuda:
            architectures = ""
            missing = "no CUDA compiler was found when it was built"

    monkeypatch.setattr(backends, "extension", lambda: Compiled)
    monkeypatch.setattr(backends, "_kernels", {})
    with pytest.raises(RuntimeError, match=r"no CUDA compiler was found .*EDM_FAST_CUDA=ON"):
        backends.kernels("cuda")


def test_ops_compile_without_graph_breaks():
    """torch.compile(fullgraph=True) traces both ops and gives eager's bits; the state is updated in place there too."""
    table = dense_table()

    def step(x, seeds):
        noise = edm_fast.randn((3, 4, 4), seeds, 2, dtype=torch.float64)
        state = [x + noise, x * 2, x * 3, x * 4]
        net_input = torch.empty_like(x, dtype=torch.float32)
        solver_step(state, table, 1, model_output=noise.float(), guide_output=noise, seeds=seeds, net_input=net_input)
        return [*state, net_input]

    x, seeds = torch.randn([2, 3, 4, 4], dtype=torch.float64), torch.arange(2)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same_step(compiled(x, seeds), step(x, seeds))
