"""A diffusion transformer of your own, through edm_fast's sampler.

    python examples/dit.py --outdir out

trains a small DiT (Peebles and Xie 2022) on scikit-learn's handwritten digits and writes an image per seed, of class
seed mod 10, to OUTDIR/dit.png. The sampler knows nothing of transformers: it expects D(x; σ) from
net(x, sigma, class_labels), which EDM's preconditioning makes of a network F (Karras et al. 2022, table 1):

    D(x; σ) = c_skip x + c_out F(c_in x; c_noise)
    c_skip = σ_data²/(σ² + σ_data²)    c_out = σ σ_data/√(σ² + σ_data²)
    c_in = 1/√(σ² + σ_data²)           c_noise = ln(σ)/4
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

import edm_fast
from edm_fast import images
from edm_fast.cli.options import Folder, Number, SeedList
from edm_fast.files import atomic_write
from edm_fast.reference.losses import EDMLoss
from edm_fast.training.data import NUM_CLASSES, split_digits


def modulated_norm(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of tokens [N, T, width] with scale and shift [N or 1, 1, width] in place of weights."""
    return functional.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with all its weights 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Block(nn.Module):
    """Attention and an MLP, both modulated by the condition; with adaLN-zero's initial weights the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = self.modulation(condition).chunk(6, dim=-1)
        normed = modulated_norm(tokens, scale, shift)
        tokens = tokens + gate * self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + mlp_gate * self.mlp(modulated_norm(tokens, mlp_scale, mlp_shift))


class DiT(nn.Module):
    """F(x_in; c_noise, class_labels) [N, C, R, R]; c_noise is [N or 1], the labels rows [N or 1, label_dim] or None."""

    patch = 2
    frequencies: Tensor

    def __init__(self, channels: int, resolution: int, label_dim: int = 0, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, self.patch, stride=self.patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (resolution // self.patch) ** 2, width))
        self.register_buffer("frequencies", torch.logspace(-0.5, 1.5, width // 2), persistent=False)
        self.noise_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label_embedding = nn.Linear(label_dim, width, bias=False) if label_dim else None
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, channels * self.patch**2))

    def forward(self, x_in: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        dtype = self.positions.dtype
        angles = c_noise.to(dtype)[:, None] * self.frequencies
        condition = self.noise_embedding(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.label_embedding is not None and class_labels is not None:
            condition = condition + self.label_embedding(class_labels.to(dtype))
        condition = functional.silu(condition)[:, None]
        grid = self.patches(x_in.to(dtype))
        tokens = grid.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        pixels = self.output(modulated_norm(tokens, scale, shift))
        return functional.pixel_shuffle(pixels.transpose(1, 2).unflatten(2, grid.shape[2:]), self.patch)


class Preconditioned(nn.Module):
    """net(x, sigma, class_labels) → D(x; σ), in x's dtype, of a network F(x_in, c_noise, class_labels)."""

    def __init__(self, model: nn.Module, label_dim: int = 0, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.model = model
        self.label_dim = label_dim  # lets the sampler turn class ids into rows
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        c_in = 1 / variance.sqrt()
        c_noise = sigma.log().flatten() / 4
        return c_skip * x + c_out * self.model(c_in * x, c_noise, class_labels).to(x.dtype)


def train(net: Preconditioned, data: Tensor, labels: Tensor, steps: int, batch: int = 64) -> None:
    """Minimise EDM's loss on images and label rows; a tenth of the labels is dropped, which guidance needs."""
    loss_function = EDMLoss(sigma_data=net.sigma_data)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    net.train()
    for _ in trange(steps, unit="step", disable=None):
        chosen = torch.randint(len(data), [batch])
        kept = torch.rand([batch, 1]) >= 0.1
        optimizer.zero_grad()
        loss_function(net, data[chosen], labels[chosen] * kept).mean().backward()
        optimizer.step()
        schedule.step()
    net.eval()


@click.command()
@click.option("--outdir", type=Folder(), default="out", show_default=True, help="Where the contact sheet goes.")
@click.option("--seeds", type=SeedList(), default="0-49", show_default=True, help="Seeds, such as 1,2,5-10.")
@click.option("--steps", type=click.IntRange(min=1), default=18, show_default=True, help="Sampling steps.")
@click.option("--train-steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Training steps.")
@click.option("--guidance", type=Number(), default=1, show_default=True, help="Weight w of D_g + w (D - D_g).")
def main(outdir: Path, seeds: list[int], steps: int, train_steps: int, guidance: float) -> None:
    """Train a small DiT on handwritten digits and write samples to OUTDIR/dit.png."""
    torch.manual_seed(0)
    data, labels = split_digits()[0]
    net = Preconditioned(DiT(data.shape[1], data.shape[2], NUM_CLASSES), NUM_CLASSES)
    train(net, data, functional.one_hot(labels, NUM_CLASSES).float(), train_steps)
    classes = [seed % NUM_CLASSES for seed in seeds]
    made = edm_fast.sample(net, seeds, classes, num_steps=steps, shape=data.shape[1:], guidance=guidance)
    outdir.mkdir(parents=True, exist_ok=True)
    with atomic_write(outdir / "dit.png") as file:
        file.write(images.png_bytes(images.contact_sheet(images.to_bytes(made), columns=NUM_CLASSES)))
    click.echo(f"{len(seeds)} images in {outdir / 'dit.png'}")


if __name__ == "__main__":
    main()
