"""A network prepared for inference: the interface of a net, and a plan behind it."""

from __future__ import annotations

import threading

import torch

from edm_fast.ops.backends import extension
from edm_fast.plan.algorithms import CHOICES
from edm_fast.plan.costs import describe
from edm_fast.plan.cpu import CpuPlan
from edm_fast.plan.device import DevicePlan
from edm_fast.plan.embedding import DeviceModulation, Modulation
from edm_fast.plan.graphs import CapturedPlan
from edm_fast.plan.lowering import lower
from edm_fast.plan.split import SplitPlan
from edm_fast.plan.steps import StepTable
from edm_fast.plan.versions import Versions
from edm_fast.reference.preconditioning import Precond

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def prepare(net: Precond, dtype: torch.dtype = torch.float32, conv_algorithm: str = "auto") -> Prepared:
    """A copy of `net` for inference: weights packed, norms and residuals fused, memory laid out once.

    Args:
        net: a preconditioned network of this library, on the CPU or a CUDA device. Changed weights are noticed and
            packed again.
        dtype: storage of activations, float32, bfloat16 or float16. Sums are float32 in each, and so are products but
            for convolutions in bfloat16 on processors that multiply pairs of it (AVX512_BF16): there weights, and
            what Winograd's forms multiply, are rounded to bfloat16. On CUDA the libraries' convolutions follow
            `torch.backends.cudnn.allow_tf32`, which PyTorch sets.
        conv_algorithm: "auto" (by each layer's shape), "winograd4", "winograd2x4", "winograd2", "direct" or "tiles".
            Winograd's weights take 4×, 2.7× and 1.8× the memory of the direct form's. "tiles" is the direct form by
            the processor's matrix tiles, where it has them (AMX), for bfloat16 and channels in 32s; other layers then
            go by "auto". That takes tiles where it can, and else Winograd's forms where they err at most
            twice as much as eager PyTorch, and with bfloat16 products, where rounding adds up in the wider forms, takes
            "winograd2". On CUDA "auto" is cuDNN's choice, and "split", for few images in float16 or bfloat16, our own
            kernel, `edm_fast.ops.conv2d_split`; what that gains has not been measured on a GPU yet.

    On the CPU the result of a sample does not depend, to the bit, on the batch it is in or on the number of threads. On
    CUDA forwards are captured as CUDA graphs, one for each batch size, and libraries may sum differently for each.

    Raises:
        TypeError: net is not a network with a plan, or the dtype is not one of the three.
        ValueError: an unknown algorithm, one that the device does not have, or a net on another device.
    """
    return Prepared(net, dtype, conv_algorithm)


class Prepared:
    """What `prepare` returns; see there. Called like the net: D = prepared(x, sigma, class_labels)."""

    def __init__(self, net: Precond, dtype: torch.dtype, conv_algorithm: str) -> None:
        if not isinstance(net, Precond):
            raise TypeError(f"net: got {type(net).__name__}; a preconditioned network of edm_fast is needed")
        if type(net).forward is not Precond.forward or type(net).network_output is not Precond.network_output:
            raise TypeError(f"net: {type(net).__name__} has a forward of its own, which a plan would not run")
        if dtype not in _DTYPES:
            raise TypeError(f"dtype: got {dtype}; it is float32, bfloat16 or float16")
        self.device = next(net.parameters()).device
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"net: is on {self.device}; prepare() runs on the CPU and on CUDA")
        choices = CHOICES[self.device.type]
        if conv_algorithm not in choices:
            where = "the CPU" if self.device.type == "cpu" else "CUDA"
            raise ValueError(f"conv_algorithm: got {conv_algorithm!r}; on {where} it is one of {', '.join(choices)}")
        if conv_algorithm == "split" and dtype == torch.float32:
            raise ValueError(f"conv_algorithm: got 'split' with {dtype}; that is for float16 and bfloat16")
        self.net = net
        self.dtype = dtype
        self.conv_algorithm = conv_algorithm
        self.sigma_min, self.sigma_max = net.sigma_min, net.sigma_max
        self.img_resolution, self.img_channels, self.label_dim = net.img_resolution, net.img_channels, net.label_dim
        self._plans: dict[tuple[int, int], CpuPlan | CapturedPlan] = {}
        self._modulation: Modulation | DeviceModulation | None = None
        self._versions = Versions(net)
        self._lock = threading.Lock()
        self.plan(net.img_resolution, net.img_resolution)

    def round_sigma(self, sigma: float | list[float] | torch.Tensor) -> torch.Tensor:
        """As the net's."""
        return self.net.round_sigma(sigma)

    def refresh(self) -> None:
        """Forget packed weights if the net's have changed since they were packed; compares every value."""
        self._refresh(contents=True)

    def _refresh(self, contents: bool) -> None:
        # The modulation stays for those who are about to use it: the next plan brings its own.
        with self._lock:
            if self._versions.changed(contents):
                for plan in self._plans.values():
                    if not isinstance(plan, CpuPlan):
                        plan.close()
                self._plans.clear()

    def plan(self, height: int, width: int) -> CpuPlan | CapturedPlan:
        """The plan for images of this size; made at the first use."""
        with self._lock:
            found = self._plans.get((height, width))
            if found is None or (isinstance(found, CpuPlan) and found.isa != extension().cpu.isa()):
                make = self._make_cpu_plan if self.device.type == "cpu" else self._make_device_plan
                found = self._plans[height, width] = make(height, width)
            return found

    def _make_cpu_plan(self, height: int, width: int) -> CpuPlan | CapturedPlan:
        graph = lower(self.net.model, height, width)
        self._modulation = Modulation(self.net.model, graph.affines)
        return CpuPlan(graph, self.dtype, self.conv_algorithm)

    def _make_device_plan(self, height: int, width: int) -> CpuPlan | CapturedPlan:
        graph = lower(self.net.model, height, width, plain_skips=True)
        kind = SplitPlan if self.conv_algorithm == "split" else DevicePlan
        plan = kind(graph, self.dtype, self.device)
        self._modulation = DeviceModulation(self.net.model, graph.affines, plan.column_biases)
        return CapturedPlan(plan)

    @property
    def columns(self) -> int:
        """Width of a modulation row."""
        return self.plan(self.img_resolution, self.img_resolution).graph.columns

    def modulation(
        self,
        c_noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Modulation rows [R, columns] for `network`: c_noise [R], labels [R, …] or [1, …] or None (zeros)."""
        rows = c_noise.numel()
        if self.label_dim and class_labels is None:
            class_labels = torch.zeros([1, self.label_dim], dtype=torch.float32, device=self.device)
        self.plan(self.img_resolution, self.img_resolution)
        assert self._modulation is not None
        augment_dim = int(self.net.model.augment_dim)  # type: ignore[arg-type]
        return self._modulation(
            c_noise,
            _rows("class_labels", class_labels, rows, self.label_dim) if self.label_dim else None,
            _rows("augment_labels", augment_labels, rows, augment_dim) if augment_dim else None,
        )

    def network(
        self,
        x_in: torch.Tensor,
        c_noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """F(x_in; c_noise) [N, img_channels, H, W] in the plan's dtype; 1 or N values in c_noise, 1 or N labels."""
        samples = x_in.shape[0]
        if c_noise.numel() not in (1, samples):
            raise ValueError(f"c_noise: got {c_noise.numel()} values; 1 or {samples} are needed")
        self.net._check_input(x_in, c_noise)
        labels = self.net._label_rows(class_labels, x_in)
        if samples == 0:
            return self.run(x_in, torch.zeros([1, self.columns], dtype=torch.float32, device="cpu"))
        alone = all(part is None or part.shape[0] == 1 for part in (labels, augment_labels))
        rows = 1 if alone and c_noise.numel() == 1 else samples
        return self.run(x_in, self.modulation(c_noise.flatten().expand(rows), labels, augment_labels))

    def run(self, x_in: torch.Tensor, modulation: torch.Tensor | StepTable) -> torch.Tensor:
        """F for modulation rows [N or 1, columns], or those of a table's step."""
        plan = self.plan(x_in.shape[2], x_in.shape[3])
        if isinstance(plan, CpuPlan):
            output = plan.run(x_in, modulation.read() if isinstance(modulation, StepTable) else modulation)
        else:
            output = plan.run(x_in, modulation)
        return output[:, : self.img_channels]

    def __call__(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        force_fp32: bool = False,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The denoised images D(x; σ), float32 [N, img_channels, H, W]; arguments as the net's.

        `force_fp32` is refused by a plan that stores activations in 16 bits.
        """
        if force_fp32 and self.dtype != torch.float32:
            raise ValueError(f"force_fp32: this plan stores {self.dtype}; prepare the net with float32")
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x: got {type(x).__name__}; it is a tensor [N, {self.img_channels}, H, W]")
        if x.device != self.device:
            raise ValueError(f"x: is on {x.device}; the network is on {self.device}")
        self._refresh(contents=False)
        with torch.no_grad():
            x = x.to(torch.float32)
            sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
            self.net._check_input(x, sigma)
            c_skip, c_out, c_in, c_noise = self.net.coefficients(sigma)
            output = self.network(c_in * x, c_noise.flatten(), class_labels, augment_labels)
            return c_skip * x + c_out * output.to(torch.float32)

    def describe(self) -> str:
        """The plan, a line per operation with shapes, bytes and operations; then sums, memory and packed weights."""
        plan = self.plan(self.img_resolution, self.img_resolution)
        text = describe(plan.graph, self.dtype.itemsize, plan.algorithms)
        return (
            f"{text}\n{plan.arena_bytes_per_sample / 1e6:.2f} MB of memory for activations per sample, "
            f"{plan.weight_bytes / 1e6:.1f} MB of packed weights"
        )


def _rows(name: str, labels: torch.Tensor | None, rows: int, width: int) -> torch.Tensor | None:
    if labels is None:
        return None
    if labels.dim() != 2 or labels.shape[0] not in (1, rows) or labels.shape[1] != width:
        raise ValueError(f"{name}: got shape {list(labels.shape)}; [{rows}, {width}] or [1, {width}] is needed")
    return labels.expand(rows, -1)
