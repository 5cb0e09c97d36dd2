"""The training loop: EDM's recipe on the fused kernels, and a state from which a run goes on to the same bits."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edm_fast import networks
from edm_fast.networks import Precond
from edm_fast.training import losses
from edm_fast.training.augment import AugmentPipe
from edm_fast.training.config import AUGMENT_DIM, TrainConfig
from edm_fast.training.data import ImageData, to_float
from edm_fast.training.distributed import World
from edm_fast.training.ema import EMA
from edm_fast.training.power_ema import PowerEMA
from edm_fast.training.run_log import LossBySigma

logger = logging.getLogger(__name__)

GRADIENT_LIMIT = 1e5
_MASK64 = 2**64 - 1


def replace_nonfinite(gradients: list[Tensor]) -> int:
    """Put 0 for NaN and ±1e5 for ±Inf in place, and return how many values that were."""
    # The largest magnitudes say whether there is anything to count; NaN comes through.
    sized = [gradient for gradient in gradients if gradient.numel()]
    largest = torch._foreach_norm(sized, torch.inf) if sized else []
    if not largest or bool(torch.stack(list(largest)).isfinite().all()):
        return 0
    bad = int(torch.stack([gradient.numel() - gradient.isfinite().sum() for gradient in gradients]).sum())
    if bad:
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=gradient)
    return bad


def stream_key(seed: int, position: int) -> int:
    """64 bits for the image at `position` of a run: other seeds and positions have others. The mixing is splitmix64."""
    word = (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK64
    return ((word ^ (word >> 31)) + position) & _MASK64


def training_augmentation(p: float) -> AugmentPipe:
    """EDM's choice of augmentations; flips are not left to chance."""
    return AugmentPipe(p=p, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)


def _buffers_stay() -> dict[str, Any]:
    """DistributedDataParallel's option not to send buffers before each forward, which newer PyTorch renamed."""
    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class _NetworkOutput(nn.Module):
    """What DistributedDataParallel wraps: the network past the preconditioning, which the loss has applied."""

    def __init__(self, net: Precond) -> None:
        super().__init__()
        self.net = net

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        return self.net.network_output(*arguments, **options)


class Step(NamedTuple):
    """What a step did: the mean weighted loss of an element in this process's share, and the bad gradient values."""

    loss: float
    nonfinite_gradients: int


class Trainer:
    """One run: `net` in training, its averages, and the position `step` in `config.steps`.

    All random numbers of a run follow from `config.seed` and the position of an image in the run: the order of the data
    from (seed, epoch), σ and noise from a stream of the image's own, dropout and augmentation from torch's default
    generators, seeded for each part of a batch.

    Args:
        config: the settings.
        data: training images and their labels.
        world: this process among those that train together, and its device.

    Raises ValueError if the batch cannot be divided among the processes, or the data do not fit the network.
    """

    def __init__(self, config: TrainConfig, data: ImageData, world: World | None = None) -> None:
        self.config = config
        self.data = data
        self.world = world = World() if world is None else world
        if config.batch % world.size:
            raise ValueError(f"batch must be a multiple of the {world.size} processes, but it is {config.batch}")
        self.step = 0
        self.nonfinite_gradients = 0
        self.losses = LossBySigma()
        self.augment_pipe = training_augmentation(config.augment) if config.augment else None
        with self._own_random_numbers():
            torch.manual_seed(config.seed)
            self.net = self._network().to(world.device)
        self.loss = self._loss()
        self.averages = [EMA(self.net, half_life, config.ema_ramp_up) for half_life in config.ema]
        self.power_averages = PowerEMA(self.net, config.power_ema) if config.power_ema else None
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=config.lr, betas=(0.9, config.beta2), eps=1e-8, fused=True
        )
        self.parallel: DistributedDataParallel | None = None
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(_NetworkOutput(self.net), devices, **_buffers_stay())
        self._order: tuple[int, Tensor] | None = None

    def close(self) -> None:
        """Let go of what belongs to the group of processes, before the group is destroyed; no step follows.

        DistributedDataParallel refers to the group. Where that is the last reference, torch destroys the group while it
        holds the interpreter's lock and waits for a thread that may be waiting for that lock.
        """
        self.parallel = None

    def _network(self) -> Precond:
        config, data = self.config, self.data
        cls = {"edm": networks.EDMPrecond, "vp": networks.VPPrecond, "ve": networks.VEPrecond}[config.precond]
        options: dict[str, Any] = {"dropout": config.dropout, **config.network}
        if config.precond == "edm":
            options["sigma_data"] = config.sigma_data
        if config.augment:
            options["augment_dim"] = AUGMENT_DIM
        net = cls(data.resolution, data.num_channels, label_dim=data.label_dim if config.labels else 0, **options)
        net.compute_dtype = getattr(torch, config.dtype)
        # Convolutions on small images train a fifth faster with channels last.
        return net.train().to(memory_format=torch.channels_last)

    def _loss(self) -> Any:
        if self.config.precond == "edm":
            return losses.EDMLoss(self.config.P_mean, self.config.P_std, self.config.sigma_data)
        return losses.VPLoss() if self.config.precond == "vp" else losses.VELoss()

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Leaves the caller's generators as they were."""
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    @property
    def images_seen(self) -> int:
        """Images trained on so far."""
        return self.step * self.config.batch

    def _shuffled(self, epoch: int) -> Tensor:
        """The order in which an epoch visits the images: a function of (seed, epoch)."""
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
            self._order = (epoch, torch.randperm(len(self.data), generator=generator))
        return self._order[1]

    def indices(self, position: int, count: int) -> Tensor:
        """Which images are seen at these positions of the run; one epoch runs on into the next."""
        parts = []
        while count:
            epoch, offset = divmod(position, len(self.data))
            part = self._shuffled(epoch)[offset : offset + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return torch.cat(parts)

    def _parts(self) -> list[tuple[int, int]]:
        """(position, count) of the parts of the current batch that this process takes one after the other."""
        share = self.config.batch // self.world.size
        first = self.images_seen + self.world.rank * share
        size = min(self.config.micro_batch or share, share)
        return [(first + done, min(size, share - done)) for done in range(0, share, size)]

    def train_step(self) -> Step:
        """Do one step."""
        config = self.config
        parts = self._parts()
        self.optimizer.zero_grad(set_to_none=True)
        total, elements = 0.0, 0
        with self._own_random_numbers():
            for number, (position, count) in enumerate(parts):
                last = number == len(parts) - 1
                with contextlib.nullcontext() if self.parallel is None or last else self.parallel.no_sync():
                    sums = self._backward(position, count)
                total += float(sums.sum())
                elements += count * self.data.num_channels * self.data.resolution**2
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        if config.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / config.loss_scale)
        bad = replace_nonfinite(gradients)
        if bad:
            self.nonfinite_gradients += bad
            logger.warning("step %d: replaced %d gradient values that were NaN or infinite", self.step, bad)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step)
        self.optimizer.step()
        for average in self.averages:
            average.update(self.net, self.images_seen, config.batch)
        if self.power_averages is not None:
            self.power_averages.update(self.net, self.images_seen, config.batch)
        self.step += 1
        return Step(total / elements, bad)

    def _backward(self, position: int, count: int) -> Tensor:
        """Add the gradients of a part of the batch, and return the loss of its images [count]."""
        device = self.world.device
        images, labels = self.data.batch(self.indices(position, count))
        keys = [stream_key(self.config.seed, position + i) for i in range(count)]
        torch.manual_seed(keys[0] >> 1)
        made = self.loss.per_sample(
            self.net,
            to_float(images.to(device, non_blocking=True)),
            labels.to(device, non_blocking=True) if self.net.label_dim else None,
            self.augment_pipe,
            seeds=keys,
            network=self.parallel,
        )
        # Gradients are averaged over the processes; the sum over the batch divided by its size is wanted.
        (made.loss.sum() * (self.config.loss_scale * self.world.size / self.config.batch)).backward()
        sums = made.loss.detach()
        self.losses.add(made.sigma, sums / (self.data.num_channels * self.data.resolution**2))
        return sums
