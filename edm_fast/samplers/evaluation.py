"""How a solver table evaluates a network: which input it makes, and what the output means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from edm_fast.networks import Precond
from edm_fast.ops.tensors import DTYPE_CODES
from edm_fast.plan import Prepared
from edm_fast.plan.cache import prepared_for
from edm_fast.plan.graphs import CapturedPlan
from edm_fast.plan.steps import StepTable
from edm_fast.reference import preconditioning as reference
from edm_fast.samplers.table import SolverTable, whole_steps

# Modulation rows are made for as many evaluations as fit.
_MODULATION_BYTES = 64 << 20


class Evaluation(Protocol):
    """A network prepared for one table: D = c_skip·x/s + c_out·F, F = evaluation(input, k), input = c_in·x/s."""

    c_skip: np.ndarray
    c_out: np.ndarray
    c_in: np.ndarray
    input_dtype: torch.dtype
    input_format: torch.memory_format
    owns_input: bool  # the network may keep or return its input, so each evaluation gets a tensor of its own

    def __call__(self, net_input: torch.Tensor, index: int) -> torch.Tensor: ...


class DenoiserEvaluation:
    """Any callable net(x/s, σ, class_labels) → D: x/s in the state's dtype, σ a float64 scalar tensor on its device."""

    owns_input = True
    input_format = torch.contiguous_format

    def __init__(
        self,
        net: Callable[..., Any],
        table: SolverTable,
        class_labels: torch.Tensor | None,
        device: torch.device,
        state_dtype: torch.dtype,
    ) -> None:
        self.c_skip = np.zeros(table.evaluations)
        self.c_out = np.ones(table.evaluations)
        self.c_in = np.ones(table.evaluations)
        self.input_dtype = state_dtype
        self._net = net
        self._class_labels = class_labels
        self._sigmas = torch.tensor(table.sigma, dtype=torch.float64, device=device)

    def __call__(self, net_input: torch.Tensor, index: int) -> torch.Tensor:
        denoised = self._net(net_input, self._sigmas[index], self._class_labels)
        return checked_output(denoised, net_input)


class PrecondEvaluation:
    """A preconditioned network of this library: the preconditioning runs in `solver_step`, only F in the network."""

    owns_input = False
    input_format = torch.contiguous_format

    def __init__(
        self,
        net: Precond,
        table: SolverTable,
        class_labels: torch.Tensor | None,
        device: torch.device,
        force_fp32: bool = False,
    ) -> None:
        # σ goes through float32, as it does in the network's own forward().
        coefficients = net.coefficients(torch.tensor(table.sigma, dtype=torch.float32, device=device))
        self.c_skip, self.c_out, self.c_in = (
            part.double().cpu().numpy() for part in (coefficients.c_skip, coefficients.c_out, coefficients.c_in)
        )
        self.input_dtype = torch.float16 if runs_in_half(net, device) and not force_fp32 else torch.float32
        self._net = net
        self._class_labels = class_labels
        self._c_noise = coefficients.c_noise
        self._force_fp32 = force_fp32

    def __call__(self, net_input: torch.Tensor, index: int) -> torch.Tensor:
        output = self._net.network_output(
            net_input, self._c_noise[index], self._class_labels, force_fp32=self._force_fp32
        )
        return checked_output(output, net_input)


class PlanEvaluation:
    """A prepared network: the modulation rows of a `window` of evaluations come from one product, F from one call."""

    owns_input = False
    input_format = torch.channels_last

    def __init__(self, prepared: Prepared, table: SolverTable, class_labels: torch.Tensor | None) -> None:
        prepared.refresh()
        coefficients = prepared.net.coefficients(torch.tensor(table.sigma, dtype=torch.float32))
        self.c_skip, self.c_out, self.c_in = (
            part.double().numpy() for part in (coefficients.c_skip, coefficients.c_out, coefficients.c_in)
        )
        self.input_dtype = prepared.dtype
        self._prepared = prepared
        # Modulation rows are made where they are used, without waiting for a copy.
        self._c_noise = coefficients.c_noise.to(prepared.device)
        self._labels: torch.Tensor | None = None
        self._of_sample: torch.Tensor | None = None
        if class_labels is not None and prepared.label_dim:
            self._labels, self._of_sample = class_labels.unique(dim=0, return_inverse=True)
        # Windows lie where they lie however the table is run: libraries sum differently for other numbers of rows.
        each = whole_steps(table)[1]
        fitting = _MODULATION_BYTES // max(4 * self.distinct * prepared.columns, 1)
        self.window = min(max(each, fitting // each * each), table.evaluations)
        self._first = 0
        self._table: StepTable | None = None

    def __call__(self, net_input: torch.Tensor, index: int) -> torch.Tensor:
        if self._table is None or not self._first <= index < self._first + self._table.steps:
            self._first = index // self.window * self.window
            self._table = StepTable(*self.modulations(self._first))
        self._table.seek(index - self._first)
        return self._prepared.run(net_input, self._table)

    def modulations(self, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows [evaluations, distinct labels, columns] of the window from `first` on, and which each sample has."""
        c_noise = self._c_noise[first : first + self.window]
        labels = None if self._labels is None else self._labels.repeat(len(c_noise), 1)
        rows = self._prepared.modulation(c_noise.repeat_interleave(self.distinct), labels)
        return rows.view(len(c_noise), self.distinct, -1), self._of_sample if self.distinct > 1 else None

    @property
    def distinct(self) -> int:
        """Number of distinct labels."""
        return 1 if self._labels is None else self._labels.shape[0]

    def plan(self, height: int, width: int) -> CapturedPlan | None:
        """The plan, if its forwards are captured."""
        plan = self._prepared.plan(height, width)
        return plan if isinstance(plan, CapturedPlan) else None


def runs_in_half(net: Precond, device: torch.device) -> bool:
    """True if the network computes in float16 on this device."""
    return net.use_fp16 and device.type == "cuda"


def is_plain_precond(net: Any) -> bool:
    """True if F may be called past net.forward(): nobody has overridden, compiled or hooked into it."""
    return (
        isinstance(net, Precond)
        and type(net).forward is Precond.forward
        and "forward" not in vars(net)
        and net._compiled_call_impl is None
        and not (net._forward_hooks or net._forward_pre_hooks)
    )


def evaluation_of(
    net: Any,
    table: SolverTable,
    class_labels: torch.Tensor | None,
    device: torch.device,
    state_dtype: torch.dtype,
    force_fp32: bool = False,
    prepare: bool = True,
) -> Evaluation:
    """The evaluation for a network: by its plan or its F where they are known, by its denoised output otherwise.

    Args:
        net: a network of this library, a `Prepared`, or any callable net(x, sigma, class_labels) → D(x; σ).
        table: the run that it is evaluated for.
        class_labels: rows [N, label_dim] or [1, label_dim], or None.
        device, state_dtype: of the run's state; other callables get x in this dtype.
        force_fp32: compute in float32, whatever the network's own rule says.
        prepare: let a network of this library be prepared; a `Prepared` is used as it is.

    Raises nothing of its own. Labels that do not fit are found when the network is evaluated: ValueError then, from
    networks of this library.
    """
    prepared = net if isinstance(net, Prepared) else prepared_for(net, device, force_fp32) if prepare else None
    if prepared is not None:
        return PlanEvaluation(prepared, table, class_labels)
    if is_plain_precond(net):
        return PrecondEvaluation(net, table, class_labels, device, force_fp32)
    return DenoiserEvaluation(in_float32(net) if force_fp32 else net, table, class_labels, device, state_dtype)


def in_float32(net: Any) -> Any:
    """The network, made to compute in float32 if that can be asked of it."""
    return functools.partial(net, force_fp32=True) if isinstance(net, reference.Precond) else net


def checked_output(output: Any, net_input: torch.Tensor, name: str = "net") -> torch.Tensor:
    """What a function of the caller's gave for `net_input`, if `solver_step` can take it; errors begin with `name`."""
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"{name}: returned {type(output).__name__}; a tensor like its input is needed")
    if output.shape != net_input.shape:
        raise ValueError(f"{name}: returned shape {tuple(output.shape)} for an input of {tuple(net_input.shape)}")
    if output.device != net_input.device:
        raise ValueError(f"{name}: returned a tensor on {output.device}; its input is on {net_input.device}")
    if output.dtype not in DTYPE_CODES or output.layout != torch.strided:
        got = f"{output.dtype} of layout {output.layout}"
        raise TypeError(f"{name}: returned {got}; strided float64, float32, float16 or bfloat16 is needed")
    return output
