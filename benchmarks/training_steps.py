"""A training step of DDPM++ on the CPU: EDM's recipe in plain PyTorch, and ours."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edm_fast.bench import Case, Peer
from edm_fast.bench.layers import LAYOUTS
from edm_fast.ops.randn import DOMAIN_TRAINING
from edm_fast.reference.losses import EDMLoss
from edm_fast.reference.noise_augment import drawn_sigma
from edm_fast.reference.preconditioning import EDMPrecond
from edm_fast.reference.randn import randn
from edm_fast.training import losses
from edm_fast.training.config import TrainConfig
from edm_fast.training.data.image_data import ArrayData, to_float
from edm_fast.training.data.labels import no_labels
from edm_fast.training.ema import ema_decay
from edm_fast.training.loop import Trainer, stream_key
from edm_fast.training.presets import preset

STEP_TARGET = 1.3
# Of gradients, each over its norm; bfloat16 rounds every activation.
BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
IMAGES = 256
ROUNDS = {8: 9, 16: 7, 128: 3}
STEPS = ((8, "float32"), (16, "float32"), (16, "bfloat16"), (128, "float32"))
PART = 16  # images of a batch that go through the network at once


def data() -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, [IMAGES, 32, 32, 3], generator=generator, dtype=torch.uint8)
    return ArrayData("random images", images.permute(0, 3, 1, 2), no_labels(IMAGES), "none")


def settings(batch: int, dtype: str, dropout: float) -> TrainConfig:
    """The preset of CIFAR-10's DDPM++ with 64 channels."""
    usual = preset("cifar10-ddpmpp")
    network = {**usual.network, "model_channels": 64}
    options = {"augment": 0.0, "dropout": dropout, "network": network, "dtype": dtype, "warmup": 0}
    return preset("cifar10-ddpmpp", batch=batch, micro_batch=min(batch, PART), **options)


class PlainTrainer:
    """What `Trainer` does, by the reference's network and loss and PyTorch's own ops.

    bfloat16 by autocast.
    """

    def __init__(self, config: TrainConfig, images: ArrayData, layout: torch.memory_format) -> None:
        self.config, self.data, self.layout = config, images, layout
        torch.manual_seed(config.seed)
        net = EDMPrecond(32, 3, dropout=config.dropout, sigma_data=config.sigma_data, **config.network)
        self.net = net.train().to(memory_format=layout)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        betas = (0.9, config.beta2)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=betas, eps=1e-8, fused=True)
        self.loss, self.done = EDMLoss(config.P_mean, config.P_std, config.sigma_data), 0

    def step(self) -> None:
        config = self.config
        order = torch.randint(len(self.data), [config.batch])
        self.optimizer.zero_grad(set_to_none=True)
        for part in order.split(PART):
            y = to_float(self.data.batch(part)[0]).contiguous(memory_format=self.layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
                loss = self.loss(self.net, y)
            loss.sum().mul(1 / config.batch).backward()
        for gradient in [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]:
            torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
        self.optimizer.step()
        decay = ema_decay(config.batch, self.done, config.ema[0], config.ema_ramp_up)
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.net.parameters()], 1 - decay)
        self.done += config.batch


def exact_gradients(config: TrainConfig, images: ArrayData) -> list[Tensor]:
    """Of `Trainer`'s first step, in float64."""
    order = Trainer(config, images).indices(0, config.batch)
    keys = torch.tensor([as_signed(stream_key(config.seed, position)) for position in range(config.batch)])
    rule = losses.EDMLoss(config.P_mean, config.P_std, config.sigma_data).distribution()
    sigmas = drawn_sigma(rule, keys, 0).reshape(-1, 1, 1, 1)
    noise = randn([3, 32, 32], keys, 0, DOMAIN_TRAINING).double()
    plain = PlainTrainer(config, images, torch.contiguous_format)
    fill(plain.net)
    net = plain.net.double()
    for position in range(config.batch):
        part = slice(position, position + 1)
        sigma, y = sigmas[part].double(), to_float(images.batch(order[part])[0]).double()
        c_skip, c_out, c_in, _ = net.coefficients(sigma)
        x, c_noise = y + sigma * noise[part], net.coefficients(sigmas[part]).c_noise.double()
        denoised = c_skip * x + c_out * net.model(c_in * x, c_noise.flatten(), None)
        (plain.loss.weight(sigma) * (denoised - y) ** 2).sum().mul(1 / config.batch).backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def flat(gradients: list[Tensor]) -> Tensor:
    """All gradients, each over its norm, so that they weigh alike."""
    return torch.cat([(gradient / gradient.norm()).contiguous().flatten() for gradient in gradients])


def step_case(batch: int, dtype: str, most_rounds: int | None = None) -> Case:
    """Ours by `Trainer`, over the reference in both memory layouts; all gradients of a step are compared."""
    images = data()
    config = settings(batch, dtype, 0.13)
    peers = {f"reference {name}": Peer(PlainTrainer(config, images, layout).step) for name, layout in LAYOUTS.items()}
    trainer = Trainer(config, images)

    def result() -> Tensor:
        checked = Trainer(settings(batch, dtype, 0.0), images)
        fill(checked.net)
        checked.train_step()
        return flat([p.grad for p in checked.net.parameters() if p.grad is not None])

    def expected() -> Tensor:
        return flat(exact_gradients(settings(batch, "float32", 0.0), images))

    targets = {"reference": STEP_TARGET} if dtype == "float32" else {}
    rounds = ROUNDS[batch] if most_rounds is None else most_rounds
    return Case(trainer.train_step, result, expected, BOUNDS[dtype], peers, targets=targets, most_rounds=rounds)


def fill(net: nn.Module) -> None:
    """Weights that are not zero, so that every layer has a gradient."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)


def as_signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
