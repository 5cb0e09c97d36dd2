"""Training losses of table 1 by the fused kernels: noise, network input, weighting and reduction in two passes.

The classes take the place of those in `edm_fast.reference.losses`, with the same arguments. Noise levels and noise are
functions of a seed per image, so nothing of them is stored for the backward pass. A preconditioned network of this
library is entered past its `forward`, and gets its scaled input in its own dtype; any other callable
net(x, sigma, class_labels) → D(x; σ) is called as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edm_fast.ops.denoising_loss import denoising_loss
from edm_fast.ops.noise_augment import LevelRule, NoisyBatch, noise_augment
from edm_fast.ops.tensors import seed_tensor
from edm_fast.reference import losses as reference
from edm_fast.reference import preconditioning
from edm_fast.samplers.evaluation import checked_output, is_plain_precond


class SampleLoss(NamedTuple):
    """Per image [N], float32: the weighted squared error summed over its pixels, and the σ it was made at."""

    loss: Tensor
    sigma: Tensor


def preconditioning_rule(net: Any) -> LevelRule | None:
    """How the kernels precondition this network; None if they cannot."""
    coefficients = getattr(type(net), "coefficients", None)
    if coefficients is preconditioning.EDMPrecond.coefficients:
        return LevelRule(preconditioning="edm", sigma_data=net.sigma_data)
    if coefficients is preconditioning.VPPrecond.coefficients:
        return LevelRule(preconditioning="vp", beta_d=net.beta_d, beta_min=net.beta_min, levels=net.M)
    if coefficients is preconditioning.VEPrecond.coefficients:
        return LevelRule(preconditioning="ve")
    return None


class _FusedLoss:
    """What the three losses share; a loss adds the distribution of σ and the weight."""

    def distribution(self) -> LevelRule:
        """The rule's source of σ and its weight."""
        raise NotImplementedError

    def __call__(
        self,
        net: Callable[..., Any],
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: reference.AugmentPipe | None = None,
        *,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return λ(σ)·(D(y + n; σ, labels, augment_labels) − y)² of the shape of images [N, C, H, W], float32.

        Raises ValueError when a given `sigma` is not [N, 1, 1, 1] or `noise` does not have the images' shape.
        """
        if sigma is not None and sigma.shape != (images.shape[0], 1, 1, 1):
            raise ValueError(f"sigma must be [{images.shape[0]}, 1, 1, 1], but its shape is {list(sigma.shape)}")
        flat = None if sigma is None else sigma.flatten()
        return self._loss(net, images, labels, augment_pipe, None, 0, flat, noise, None, "none").loss

    def per_sample(
        self,
        net: Callable[..., Any],
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: reference.AugmentPipe | None = None,
        *,
        seeds: Iterable[int] | Tensor | None = None,
        draw: int = 0,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
        network: Callable[..., Tensor] | None = None,
    ) -> SampleLoss:
        """The loss summed over the pixels of each image, and σ.

        Args:
            net: a network of this library, or any callable net(x, sigma, class_labels) → D(x; σ).
            images: y [N, C, H, W], float.
            labels: rows [N, label_dim] or None.
            augment_pipe: called with the images; returns them augmented, with their labels.
            seeds, draw: N integers of 64 bits and the draw from their streams that σ and the noise are; None draws
                seeds from torch's default generator of the images' device.
            sigma: σ [N] in place of a drawn one.
            noise: standard normal numbers like the images, in place of drawn ones.
            network: called in place of net.network_output, as DistributedDataParallel needs; for networks of this
                library.
        """
        return self._loss(net, images, labels, augment_pipe, seeds, draw, sigma, noise, network, "sample")

    def _loss(
        self,
        net: Callable[..., Any],
        images: Tensor,
        labels: Tensor | None,
        augment_pipe: reference.AugmentPipe | None,
        seeds: Iterable[int] | Tensor | None,
        draw: int,
        sigma: Tensor | None,
        noise: Tensor | None,
        network: Callable[..., Tensor] | None,
        reduction: str,
    ) -> SampleLoss:
        if noise is not None and noise.shape != images.shape:
            raise ValueError(f"noise must be {list(images.shape)} as the images, but its shape is {list(noise.shape)}")
        if seeds is None:
            limit = 2**63 - 1
            seeds = torch.randint(-limit, limit, [images.shape[0]], device=images.device)
        keys = seed_tensor(seeds, images.device)
        options: dict[str, Any] = {}
        y = images
        if augment_pipe is not None:
            y, options["augment_labels"] = augment_pipe(images)
        noisy = self._noisy(net, y, keys, draw, sigma, noise)
        # Of a network of ours the loss can read the noise, unless its modules wrote to their input.
        readable = is_plain_precond(net) and not (torch.compiler.is_compiling() or noisy.net_input.is_inference())
        version = noisy.net_input._version if readable else None
        if is_plain_precond(net):
            output = (network or net.network_output)(noisy.net_input, noisy.c_noise, labels, **options)  # type: ignore[attr-defined]
        else:
            output = net(noisy.net_input, noisy.sigma.reshape(-1, 1, 1, 1), labels, **options)
        checked_output(output, noisy.net_input)
        unchanged = noisy.net_input if readable and noisy.net_input._version == version else None
        loss = denoising_loss(output, y, noisy.rows, keys, draw, noise=noise, net_input=unchanged, reduction=reduction)
        return SampleLoss(loss, noisy.sigma)

    def _noisy(
        self, net: Any, y: Tensor, seeds: Tensor, draw: int, sigma: Tensor | None, noise: Tensor | None
    ) -> NoisyBatch:
        rule = self.distribution()
        if sigma is not None:
            rule = rule._replace(source="given")
        if not is_plain_precond(net):
            return noise_augment(y, rule, seeds, draw, sigma=sigma, noise=noise)
        form: dict[str, Any] = {
            "noise": noise,
            "dtype": net.network_dtype(y.device, False),
            "memory_format": torch.channels_last,
        }
        known = preconditioning_rule(net)
        if known is not None:
            rule = known._replace(
                source=rule.source, a=rule.a, b=rule.b, c=rule.c, weight_sigma_data=rule.weight_sigma_data
            )
            return noise_augment(y, rule, seeds, draw, sigma=sigma, **form)
        # σ and the weight alone, and then the network's own coefficients.
        levels = noise_augment(y.new_empty([len(y), 0]), rule, seeds, draw, sigma=sigma)
        c_skip, c_out, c_in, c_noise = net.coefficients(levels.sigma)
        columns = [levels.sigma, c_in, c_noise, levels.weight, c_skip - 1, c_skip * levels.sigma, c_out]
        rows = torch.stack(columns, dim=1).to(torch.float32)
        return noise_augment(y, rule._replace(source="rows"), seeds, draw, rows=rows, **form)


class EDMLoss(_FusedLoss, reference.EDMLoss):
    __doc__ = reference.EDMLoss.__doc__

    def distribution(self) -> LevelRule:
        return LevelRule("log_normal", self.P_mean, self.P_std, weight_sigma_data=self.sigma_data)


class VPLoss(_FusedLoss, reference.VPLoss):
    __doc__ = reference.VPLoss.__doc__

    def distribution(self) -> LevelRule:
        return LevelRule("vp", self.beta_d, self.beta_min, self.epsilon_t)


class VELoss(_FusedLoss, reference.VELoss):
    __doc__ = reference.VELoss.__doc__

    def distribution(self) -> LevelRule:
        return LevelRule("log_uniform", math.log(self.sigma_min), math.log(self.sigma_max / self.sigma_min))
