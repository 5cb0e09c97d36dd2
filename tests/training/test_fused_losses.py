"""The fused losses around whole networks: those of the reference for given noise, and noise by seeds."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast import networks, randn
from edm_fast.networks import EDMPrecond
from edm_fast.ops.randn import DOMAIN_TRAINING
from edm_fast.ops.residual import residual
from edm_fast.reference import losses as reference_losses
from edm_fast.reference import preconditioning as reference_networks
from edm_fast.training import losses

TINY = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 1], "num_blocks": 1, "label_dim": 3,
        "attn_resolutions": [4], "augment_dim": 2, "dropout": 0}  # fmt: skip
PAIRS = [("EDMLoss", "EDMPrecond"), ("VPLoss", "VPPrecond"), ("VELoss", "VEPrecond"), ("EDMLoss", "iDDPMPrecond")]


def network(cls, **options):
    """With weights that are not zero."""
    torch.manual_seed(0)
    net = cls(8, 3, **TINY, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net


def batch():
    generator = torch.Generator().manual_seed(1)
    y, noise = torch.randn(2, 5, 3, 8, 8, generator=generator)
    sigma = torch.tensor([0.05, 0.3, 1.0, 4.0, 30.0])
    return y, torch.eye(3)[[0, 2, 1, 1, 0]], torch.rand(5, 2, generator=generator), sigma, noise


@pytest.mark.parametrize(("loss", "precond"), PAIRS)
def test_they_are_the_references_for_given_noise(loss, precond):
    y, labels, augment_labels, sigma, noise = batch()

    def by_loss(module, net):
        options = {"sigma": sigma.reshape(-1, 1, 1, 1), "noise": noise}
        return getattr(module, loss)()(net, y, labels, lambda images: (images, augment_labels), **options)

    def exact(net):
        """The same in float64, where Precond.forward would cast to float32."""
        s, n, target = sigma.double().reshape(-1, 1, 1, 1), noise.double(), y.double()
        c_skip, c_out, c_in, _ = net.coefficients(s)
        x = target + s * n
        c_noise = net.coefficients(sigma).c_noise.double()
        output = net.model(c_in * x, c_noise, labels.double(), augment_labels.double())[:, :3]
        return getattr(reference_losses, loss)().weight(s) * (c_skip * x + c_out * output - target) ** 2

    def results(error, net):
        (error.sum() / 5).backward()
        return [error.detach(), *(parameter.grad for parameter in net.parameters())]

    ours, plain = network(getattr(networks, precond)), network(getattr(reference_networks, precond))
    truth = network(getattr(reference_networks, precond)).double()
    found, near = results(by_loss(losses, ours), ours), results(by_loss(reference_losses, plain), plain)
    wanted = results(exact(truth), truth)
    assert_as_exact_as_eager(found[0], near[0], wanted[0], what=precond)
    # All gradients at once, each over its largest value: with a few hundred tensors of some values, eager happens to be
    # exact in one of a thousand.
    sizes = [gradient.abs().max() for gradient in wanted[1:]]
    flat = [
        torch.cat(
            [(gradient / size.to(gradient.dtype)).flatten() for gradient, size in zip(some[1:], sizes, strict=True)]
        )
        for some in (found, near, wanted)
    ]
    assert_as_exact_as_eager(*flat, gradient=True, what=f"{precond}, gradients")


@pytest.mark.parametrize(("loss", "precond"), PAIRS)
def test_a_network_of_ours_is_its_denoiser(loss, precond):
    """Past its forward, or by calls of D(x; σ) as any other network: the same loss but for rounding."""
    y, labels, augment_labels, _, _ = batch()
    net = network(getattr(networks, precond))
    seeds = torch.arange(5)

    def pipe(images):
        return images, augment_labels

    made = getattr(losses, loss)()
    inside = made.per_sample(net, y, labels, pipe, seeds=seeds, draw=4)
    outside = made.per_sample(lambda *a, **k: net(*a, **k), y, labels, pipe, seeds=seeds, draw=4)
    assert_same_bits(inside.sigma, outside.sigma)
    torch.testing.assert_close(inside.loss, outside.loss, rtol=1e-4, atol=0)
    error = made(net, y, labels, pipe, sigma=inside.sigma.reshape(-1, 1, 1, 1),
                 noise=randn((3, 8, 8), seeds, 4, domain=DOMAIN_TRAINING))  # fmt: skip
    torch.testing.assert_close(error.flatten(1).sum(1), inside.loss, rtol=1e-4, atol=0)


class Writes(torch.nn.Module):
    """Writes over its input when it is done."""

    def __init__(self, inner, write):
        super().__init__()
        self.inner = inner
        self.write = write

    def forward(self, x, *arguments, **options):
        output = self.inner(x, *arguments, **options)
        with torch.no_grad():
            self.write(x)
        return output


@pytest.mark.parametrize(
    "write", [torch.Tensor.zero_, lambda x: residual(x, scale=2.0, out=x)], ids=["by PyTorch", "by an op of ours"]
)
def test_noise_is_read_from_an_input_that_nobody_wrote_to(monkeypatch, write):
    y, labels, _, _, _ = batch()
    net = network(EDMPrecond).eval()
    given = []

    def spied(*arguments, net_input=None, **options):
        given.append(net_input)
        return plain(*arguments, net_input=net_input, **options)

    plain = losses.denoising_loss
    monkeypatch.setattr(losses, "denoising_loss", spied)
    read = losses.EDMLoss().per_sample(net, y, labels, seeds=torch.arange(5))
    losses.EDMLoss().per_sample(lambda *a, **k: net(*a, **k), y, labels, seeds=torch.arange(5))
    with torch.no_grad():
        net.model = Writes(net.model, write)
        drawn = losses.EDMLoss().per_sample(net, y, labels, seeds=torch.arange(5))
    assert given[0] is not None
    assert given[1] is None  # it may be anybody's network
    assert given[2] is None
    torch.testing.assert_close(read.loss.detach(), drawn.loss, rtol=1e-5, atol=0)


def test_an_image_has_its_noise_in_any_batch():
    y, labels, _, _, _ = batch()
    net = network(EDMPrecond)
    whole = losses.EDMLoss().per_sample(net, y, labels, seeds=torch.arange(5), draw=1)
    part = losses.EDMLoss().per_sample(net, y[3:], labels[3:], seeds=torch.arange(3, 5), draw=1)
    assert_same_bits(part.sigma, whole.sigma[3:])
    torch.testing.assert_close(part.loss, whole.loss[3:], rtol=1e-5, atol=0)
    other = losses.EDMLoss().per_sample(net, y, labels, seeds=torch.arange(5), draw=2)
    assert not torch.equal(other.sigma, whole.sigma)


def test_the_networks_dtype_is_that_of_its_input(monkeypatch):
    y, labels, _, _, _ = batch()
    net = network(EDMPrecond)
    net.compute_dtype = torch.bfloat16
    seen = []
    monkeypatch.setattr(net.model, "forward", lambda x, *a, **k: seen.append(x) or torch.zeros_like(x))
    losses.EDMLoss().per_sample(net, y, labels)
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_another_callable_takes_the_networks_place():
    y, labels, _, _, _ = batch()
    net = network(EDMPrecond)
    calls = []

    def wrapped(*arguments, **options):
        calls.append(1)
        return net.network_output(*arguments, **options)

    seeds = torch.arange(5)
    found = losses.EDMLoss().per_sample(net, y, labels, seeds=seeds, network=wrapped)
    assert calls == [1]
    assert_same_bits(found.loss, losses.EDMLoss().per_sample(net, y, labels, seeds=seeds).loss)


def test_an_output_of_another_shape_is_named():
    y, _, _, _, _ = batch()
    with pytest.raises(ValueError, match="^net: returned shape"):
        losses.EDMLoss().per_sample(lambda x, sigma, labels: x[:, :1], y)


def test_the_gradient_of_the_network_output_lies_as_the_output_does():
    """What the backward pass of a channels-last network begins with; a copy into another layout would cost it."""
    seen = []
    net = network(EDMPrecond)
    net.model.register_forward_hook(lambda module, inputs, output: output.register_hook(seen.append) and None)
    y, labels, augment_labels, _, _ = batch()
    losses.EDMLoss()(net, y, labels, lambda images: (images, augment_labels)).sum().backward()
    (gradient,) = seen
    assert gradient.is_contiguous(memory_format=torch.channels_last)
