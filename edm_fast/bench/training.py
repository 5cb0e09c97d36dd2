"""The parts of training around a network, against the plain PyTorch of `edm_fast.reference`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edm_fast.bench.free_network import free_net
from edm_fast.bench.layers import LAYOUTS
from edm_fast.bench.names import named
from edm_fast.bench.registry import Entry
from edm_fast.bench.turns import Case, Peer
from edm_fast.networks import EDMPrecond
from edm_fast.ops.randn import DOMAIN_TRAINING
from edm_fast.reference.augment import AugmentPipe as ReferencePipe
from edm_fast.reference.losses import EDMLoss as ReferenceLoss
from edm_fast.reference.preconditioning import EDMPrecond as ReferencePrecond
from edm_fast.reference.randn import randn
from edm_fast.training import AugmentPipe
from edm_fast.training.losses import EDMLoss

# The pipe of the training presets for CIFAR-10.
PRESET = {"p": 0.12, "xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
SHAPES = ((16, 3, 32, 32), (64, 3, 32, 32), (128, 3, 32, 32), (512, 3, 32, 32), (64, 3, 64, 64))


def entries() -> Iterator[Entry]:
    for shape in SHAPES:
        name = f"noise_augment and denoising_loss {named(shape, torch.float32)}"
        yield Entry("noise augmentation", name, partial(loss_case, shape), shape[0] == 128)
    shape = (64, 3, 32, 32)
    yield Entry("augmentation pipe", f"AugmentPipe {named(shape, torch.float32)}", partial(augment_case, shape), True)


def augment_case(shape: tuple[int, ...]) -> Case:
    """The whole pipe, drawing included."""
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    reference, ours = ReferencePipe(**PRESET), AugmentPipe(**PRESET)

    def seeded(pipe: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor) -> Callable[[], Tensor]:
        def result() -> Tensor:
            torch.manual_seed(1)
            return pipe(images)[0]

        return result

    peer, fused = seeded(reference, images), seeded(ours, images)
    exact = seeded(reference, images.double())
    return Case(fused, fused, exact, 1e-5, {"reference": Peer(peer, peer)}, targets={"reference": 3.0}, most_rounds=25)


def loss_case(shape: tuple[int, ...]) -> Case:
    """From images to the gradient of the network's output: all of a step's work around the network."""
    count = shape[0]
    images, output, seeds = torch.randn(shape), torch.randn(shape), torch.arange(count)

    def given(precond: Any, layout: torch.memory_format) -> tuple[Any, Tensor]:
        return free_net(precond, output.clone(memory_format=layout)), images.contiguous(memory_format=layout)

    def gradient(net: Any, loss: Tensor) -> Tensor:
        net.model.output.grad = None
        loss.backward()
        return net.model.output.grad

    def peer(layout: torch.memory_format) -> Peer:
        net, y = given(ReferencePrecond, layout)
        loss = ReferenceLoss()
        return Peer(graded(lambda: gradient(net, loss(net, y).sum() / count)))

    net, y = given(EDMPrecond, torch.channels_last)
    rule = EDMLoss()

    def ours() -> Tensor:
        return gradient(net, rule.per_sample(net, y, seeds=seeds).loss.sum() / count)

    def result() -> Tensor:
        made = rule.per_sample(net, y, seeds=seeds)
        return torch.cat([made.loss.detach() / images[0].numel(), ours().flatten()])

    def expected() -> Tensor:
        sigma = rule.per_sample(net, y, seeds=seeds).sigma.double().reshape(-1, 1, 1, 1)
        noise = randn(shape[1:], seeds, 0, DOMAIN_TRAINING).double()
        F = output.double().requires_grad_()
        c_skip, c_out, _, _ = net.coefficients(sigma)
        denoised = c_skip * (images.double() + sigma * noise) + c_out * F
        losses = (ReferenceLoss().weight(sigma) * (denoised - images.double()) ** 2).sum(dim=[1, 2, 3])
        (losses.sum() / count).backward()
        assert F.grad is not None
        return torch.cat([losses.detach() / images[0].numel(), F.grad.contiguous().flatten()])

    peers = {f"reference {name}": peer(layout) for name, layout in LAYOUTS.items()}
    return Case(graded(ours), graded(result), graded(expected), 1e-5, peers, targets={"reference": 3.0})


def graded(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """With gradients, whatever the surroundings say."""
    return torch.enable_grad()(function)
