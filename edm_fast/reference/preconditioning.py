"""Preconditioned denoisers: D(x; σ) = c_skip(σ)·x + c_out(σ)·F(c_in(σ)·x; c_noise(σ)).

Each class is one row of table 1 of Karras et al. (2022). x, D and σ are float32; F runs in float16 only when
`use_fp16` is set, the input is on CUDA and `force_fp32` is not set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edm_fast.reference.dhariwal_unet import DhariwalUNet
from edm_fast.reference.song_unet import SongUNet

MODEL_TYPES: dict[str, Callable[..., nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class Coefficients(NamedTuple):
    """The four scalars of the preconditioning; each has the shape and dtype of the σ it was computed from."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def _plain(value: Any) -> Any:
    """Turn tuples into lists, so that recorded arguments survive JSON unchanged."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


class Precond(nn.Module):
    """Base of the preconditionings: owns the network `model` and applies the four coefficients.

    `sigma_min`, `sigma_max`: the noise levels that the denoiser accepts. `init_kwargs`: all constructor arguments, with
    those of the network, as a plain dict of strings, numbers and lists.

    Raises ValueError for an unknown `model_type`.
    """

    sigma_min: float
    sigma_max: float
    model_types: Mapping[str, Callable[..., nn.Module]] = MODEL_TYPES

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        model_kwargs: dict[str, Any],
        own_options: dict[str, Any],
        out_channels: int | None = None,
    ) -> None:
        if model_type not in self.model_types:
            raise ValueError(f"model_type must be one of {', '.join(self.model_types)}, but it is {model_type!r}")
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16
        self.init_kwargs: dict[str, Any] = {
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "label_dim": label_dim,
            "use_fp16": use_fp16,
            **own_options,
            "model_type": model_type,
            **{name: _plain(value) for name, value in model_kwargs.items()},
        }
        self.model = self.model_types[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels if out_channels is None else out_channels,
            label_dim=label_dim,
            **model_kwargs,
        )

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return (c_skip, c_out, c_in, c_noise) for a floating-point tensor of noise levels of any shape."""
        raise NotImplementedError

    def round_sigma(self, sigma: float | list[float] | Tensor) -> Tensor:
        """Return the nearest noise level that the network was trained for, as a tensor of sigma's shape."""
        return torch.as_tensor(sigma)

    def network_output(
        self,
        x_in: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """Return F(x_in; c_noise), float32 [N, img_channels, H, W], for an input that c_in has already scaled.

        Args:
            x_in: c_in·x, [N, img_channels, H, W].
            c_noise: one value or N values, any shape.
            class_labels: rows [N, label_dim] or [1, label_dim]; None stands for zeros.
            force_fp32: run F in float32 whatever `use_fp16` says.
            **model_kwargs: passed on to the network (augment_labels).

        Raises ValueError for wrong channels, resolution, labels, or a wrong number of noise levels.
        """
        self._check_input(x_in, c_noise)
        output = self.model(
            x_in.to(self.network_dtype(x_in.device, force_fp32)),
            c_noise.to(torch.float32).flatten(),
            class_labels=self._label_rows(class_labels, x_in),
            **model_kwargs,
        )
        # A slice of all channels would fill and copy its gradient, in another layout.
        if output.shape[1] != self.img_channels:
            output = output[:, : self.img_channels]
        return output.to(torch.float32)

    def network_dtype(self, device: torch.device, force_fp32: bool) -> torch.dtype:
        """Return the dtype that F runs in."""
        half = self.use_fp16 and not force_fp32 and device.type == "cuda"
        return torch.float16 if half else torch.float32

    def _check_input(self, x: Tensor, sigma: Tensor) -> None:
        # Without this a missing batch dimension would come into being by broadcasting against σ.
        if x.ndim != 4 or x.shape[1] != self.img_channels:
            raise ValueError(f"x must be [N, {self.img_channels}, H, W], but its shape is {list(x.shape)}")
        if sigma.numel() not in (1, x.shape[0]):
            raise ValueError(f"sigma must hold 1 or {x.shape[0]} values, but it holds {sigma.numel()}")

    def _label_rows(self, class_labels: Tensor | None, x: Tensor) -> Tensor | None:
        if class_labels is not None and not isinstance(class_labels, Tensor):
            raise TypeError(f"class_labels must be a tensor of rows, but it is a {type(class_labels).__name__}")
        if class_labels is not None and (
            class_labels.ndim != 2
            or class_labels.shape[1] != self.label_dim
            or class_labels.shape[0] not in (1, x.shape[0])
        ):
            raise ValueError(
                f"class_labels must be [{x.shape[0]}, {self.label_dim}] or [1, {self.label_dim}], "
                f"but its shape is {list(class_labels.shape)}"
            )
        if not self.label_dim:
            return None
        if class_labels is None:
            return torch.zeros([1, self.label_dim], device=x.device)
        return class_labels.to(torch.float32)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """Return the denoised images D(x; σ), float32 [N, img_channels, H, W].

        Args:
            x: noisy images [N, img_channels, H, W]; H and W such that every level divides them.
            sigma: noise level, one number or N of them; reshaped to [-1, 1, 1, 1].
            class_labels: rows [N, label_dim] or [1, label_dim]; None stands for zeros.
            force_fp32: run F in float32 whatever `use_fp16` says.
            **model_kwargs: passed on to the network (augment_labels).

        Raises ValueError for wrong channels, resolution, labels, or a wrong number of noise levels.
        """
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        self._check_input(x, sigma)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        output = self.network_output(c_in * x, c_noise, class_labels, force_fp32, **model_kwargs)
        return c_skip * x + c_out * output


class VPPrecond(Precond):
    """Variance preserving: c_skip = 1, c_out = −σ, c_in = 1/√(σ²+1), c_noise = (M−1)·t(σ).

    Args:
        img_resolution, img_channels, label_dim: of the images and labels; 0 for a network without labels.
        use_fp16: run F in float16 on CUDA.
        beta_d, beta_min: of σ(t) = √(exp(½β_d t² + β_min t) − 1).
        M: how many values the noise label of the network has.
        epsilon_t: smallest t; sigma_min is σ(ε_t), sigma_max is σ(1).
        model_type: "SongUNet" or "DhariwalUNet".
        **model_kwargs: those of the network, whose class names them.

    Raises ValueError for an unknown `model_type`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        own = {"beta_d": beta_d, "beta_min": beta_min, "M": M, "epsilon_t": epsilon_t}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own)
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.M = M
        self.epsilon_t = epsilon_t
        self.sigma_min = float(self.sigma(torch.tensor(epsilon_t, device="cpu")))
        self.sigma_max = float(self.sigma(torch.tensor(1.0, device="cpu")))

    def sigma(self, t: float | Tensor) -> Tensor:
        """σ(t) = √(exp(½β_d t² + β_min t) − 1), evaluated as written: checkpoints were trained with its rounding."""
        t = t if isinstance(t, Tensor) else torch.as_tensor(t)
        return ((0.5 * self.beta_d * t**2 + self.beta_min * t).exp() - 1).sqrt()

    def sigma_inv(self, sigma: float | Tensor) -> Tensor:
        """t(σ) = (√(β_min² + 2β_d ln(1+σ²)) − β_min)/β_d, evaluated as written."""
        sigma = sigma if isinstance(sigma, Tensor) else torch.as_tensor(sigma)
        return ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients of the class's row, each of sigma's shape and dtype."""
        c_noise = (self.M - 1) * self.sigma_inv(sigma)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise)


class VEPrecond(Precond):
    """Variance exploding: c_skip = 1, c_out = σ, c_in = 1, c_noise = ln(σ/2).

    Args:
        img_resolution, img_channels, label_dim: of the images and labels; 0 for a network without labels.
        use_fp16: run F in float16 on CUDA.
        sigma_min, sigma_max: the noise levels that the denoiser accepts.
        model_type: "SongUNet" or "DhariwalUNet".
        **model_kwargs: those of the network, whose class names them.

    Raises ValueError for an unknown `model_type`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        own = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients of the class's row, each of sigma's shape and dtype."""
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (0.5 * sigma).log())


class iDDPMPrecond(Precond):
    """Improved DDPM: c_skip = 1, c_out = −σ, c_in = 1/√(σ²+1), c_noise = M − 1 − j, j the index of the nearest u_j.

    The network has 2·img_channels outputs, of which the first half is F. Buffer `u` [M+1] holds the noise levels:
    u_M = 0, u_{j−1} = √((u_j²+1) / max(ᾱ(j−1)/ᾱ(j), C_1) − 1), ᾱ(j) = sin²(½π·j/M/(C_2+1)), in float32.

    Args:
        img_resolution, img_channels, label_dim: of the images and labels; 0 for a network without labels.
        use_fp16: run F in float16 on CUDA.
        C_1, C_2, M: of the noise levels; sigma_min is u_{M−1}, sigma_max is u_0.
        model_type: "SongUNet" or "DhariwalUNet".
        **model_kwargs: those of the network, whose class names them.

    Raises ValueError for an unknown `model_type`.
    """

    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        own = {"C_1": C_1, "C_2": C_2, "M": M}
        super().__init__(
            img_resolution,
            img_channels,
            label_dim,
            use_fp16,
            model_type,
            model_kwargs,
            own,
            out_channels=img_channels * 2,
        )
        self.C_1 = C_1
        self.C_2 = C_2
        self.M = M
        u = torch.zeros(M + 1, device="cpu")
        for j in range(M, 0, -1):
            ratio = (self.alpha_bar(j - 1) / self.alpha_bar(j)).clamp(min=C_1)
            u[j - 1] = ((u[j] ** 2 + 1) / ratio - 1).sqrt()
        self.sigma_min = float(u[M - 1])
        self.sigma_max = float(u[0])
        # Under a device context manager the buffer follows the parameters.
        self.register_buffer("u", u.to(torch.empty(0).device))

    def alpha_bar(self, j: int | Tensor) -> Tensor:
        """ᾱ(j) = sin²(½π·j/M/(C_2+1)), float32."""
        j = torch.as_tensor(j, device="cpu")
        return (0.5 * math.pi * j / self.M / (self.C_2 + 1)).sin() ** 2

    def _nearest(self, sigma: Tensor) -> Tensor:
        """Indices, int64 of sigma's shape, of the nearest entries of u."""
        distance = (sigma.to(torch.float32).to(self.u.device).flatten()[:, None] - self.u[None, :]).abs()
        return distance.argmin(dim=1).reshape(sigma.shape).to(sigma.device)

    def round_sigma(self, sigma: float | list[float] | Tensor) -> Tensor:
        """Return the nearest u_j, of sigma's shape and dtype, on sigma's device."""
        sigma = torch.as_tensor(sigma)
        dtype = sigma.dtype if sigma.is_floating_point() else torch.float32
        return self.u[self._nearest(sigma).to(self.u.device)].to(dtype).to(sigma.device)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients of the class's row, each of sigma's shape and dtype."""
        c_noise = (self.M - 1 - self._nearest(sigma)).to(sigma.dtype)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise)


class EDMPrecond(Precond):
    """EDM: c_skip = σ_d²/(σ²+σ_d²), c_out = σσ_d/√(σ²+σ_d²), c_in = 1/√(σ²+σ_d²), c_noise = ln(σ)/4.

    Args:
        img_resolution, img_channels, label_dim: of the images and labels; 0 for a network without labels.
        use_fp16: run F in float16 on CUDA.
        sigma_min, sigma_max: the noise levels that the denoiser accepts.
        sigma_data: σ_d, the standard deviation of the images in [-1, 1].
        model_type: "SongUNet" or "DhariwalUNet".
        **model_kwargs: those of the network, whose class names them.

    Raises ValueError for an unknown `model_type`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = float("inf"),
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        own = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients of the class's row, each of sigma's shape and dtype."""
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        return Coefficients(c_skip, c_out, 1 / variance.sqrt(), sigma.log() / 4)
