"""A U-Net that is not ours, through edm_fast's samplers: diffusers' UNet2DModel, which knows nothing of σ.

    python examples/foreign_unet.py --outdir out
    python examples/foreign_unet.py --outdir out --pipeline FOLDER

Such a network was trained like DDPM's (Ho et al. 2020): at timestep t it gets √ᾱ_t y + √(1 - ᾱ_t) n, n ~ N(0, I), and
predicts n, or v = √ᾱ_t n - √(1 - ᾱ_t) y (Salimans and Ho 2022). Its input divided by √ᾱ_t is the EDM paper's (Karras et
al. 2022), x = y + σ n with σ² = (1 - ᾱ_t)/ᾱ_t, and √ᾱ_t = 1/√(1 + σ²). So, with F = unet(x/√(1 + σ²), t(σ)),

    D(x; σ) = x - σ F                           if F predicts the noise ("epsilon")
    D(x; σ) = x/(1 + σ²) - σ/√(1 + σ²) F        if F predicts v ("v_prediction")

t(σ) is a real number: between the noise levels of training it is linear in ln σ. Without --pipeline the weights are
random: the images then mean nothing, but they show that both samplers make the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import edm_fast
from edm_fast import images
from edm_fast.cli.options import Folder, Number, SeedList
from edm_fast.files import atomic_write
from edm_fast.samplers import edm_sampler

try:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
except ImportError as error:
    raise ImportError(
        f"examples/foreign_unet.py needs the package diffusers, which cannot be imported ({error}): "
        "pip install 'edm-fast[diffusers]'"
    ) from error


class DDPMDenoiser(nn.Module):
    """net(x, sigma, class_labels) → D(x; σ), in x's dtype, by a network that predicts noise or v at a timestep.

    Args:
        unet: called as unet(sample, timestep [N], class_labels=ids or None).sample; computes in its own `dtype`.
        alphas_cumprod: ᾱ_t [M], falling.
        prediction_type: "epsilon" or "v_prediction".
        label_dim: number of classes; the id label_dim, one more, stands for no class. 0 if the network takes none.
    """

    log_sigmas: Tensor

    def __init__(self, unet: Any, alphas_cumprod: Tensor, prediction_type: str = "epsilon", label_dim: int = 0) -> None:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type: got {prediction_type!r}; it is 'epsilon' or 'v_prediction'")
        super().__init__()
        self.unet = unet
        self.prediction_type = prediction_type
        self.label_dim = label_dim
        alpha_bar = alphas_cumprod.double()
        self.register_buffer("log_sigmas", ((1 - alpha_bar) / alpha_bar).log() / 2)
        # The samplers keep to the noise levels that the network was trained for.
        self.sigma_min, self.sigma_max = self.log_sigmas[[0, -1]].exp().tolist()

    def timestep(self, sigma: Tensor) -> Tensor:
        """t(σ) in [0, M - 1], float64 of sigma's shape."""
        log_sigma, levels = sigma.double().log(), self.log_sigmas
        above = torch.searchsorted(levels, log_sigma).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        return (above - 1 + (log_sigma - low) / (high - low)).clamp(0, len(levels) - 1)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        scale = (1 + sigma**2).sqrt()
        timestep = self.timestep(sigma).flatten().expand(len(x))
        prediction = self.unet((x / scale).to(self.unet.dtype), timestep, class_labels=self.ids(x, class_labels))
        output = prediction.sample.to(x.dtype)
        if self.prediction_type == "epsilon":
            return x - sigma * output
        return x / scale**2 - sigma / scale * output

    def ids(self, x: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """The class ids [N] of one-hot rows [1 or N, label_dim], as the samplers pass them, or of None."""
        if not self.label_dim:
            return None
        if class_labels is None:
            return torch.full([len(x)], self.label_dim, device=x.device)
        return class_labels.argmax(dim=1).expand(len(x))


def random_unet() -> UNet2DModel:
    """Ten classes and "no class", colour images of 16x16 pixels, random weights."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=11,
    )


@click.command()
@click.option(
    "--pipeline", help="A DDPMPipeline, folder or name; its last class, if any, means none.  [default: random weights]"
)
@click.option("--outdir", type=Folder(), default="out", show_default=True, help="Where the contact sheet goes.")
@click.option("--seeds", type=SeedList(), default="0-7", show_default=True, help="Seeds, such as 1,2,5-10.")
@click.option("--steps", type=click.IntRange(min=1), default=18, show_default=True, help="Number of steps.")
@click.option("--guidance", type=Number(), default=3, show_default=True, help="Weight w of D_g + w (D - D_g).")
def main(pipeline: str | None, outdir: Path, seeds: list[int], steps: int, guidance: float) -> None:
    """Write OUTDIR/foreign_unet.png: a row by sample, one by edm_sampler and, if there are classes, one guided."""
    loaded = DDPMPipeline.from_pretrained(pipeline) if pipeline else DDPMPipeline(random_unet(), DDPMScheduler())
    unet, scheduler = loaded.unet, loaded.scheduler
    label_dim = (unet.config.num_class_embeds or 1) - 1
    net = DDPMDenoiser(unet, scheduler.alphas_cumprod, scheduler.config.prediction_type, label_dim).eval()

    size = unet.config.sample_size
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    classes = [seed % label_dim for seed in seeds] if label_dim else None
    by_seed = edm_fast.sample(net, seeds, classes, num_steps=steps, shape=shape)
    # The latents that `sample` takes for these seeds; any others would do.
    by_latents = edm_sampler(net, edm_fast.randn(shape, seeds), classes, num_steps=steps).float()
    rows = [by_seed, by_latents]
    if label_dim:
        rows.append(edm_fast.sample(net, seeds, classes, num_steps=steps, shape=shape, guidance=guidance))
    outdir.mkdir(parents=True, exist_ok=True)
    with atomic_write(outdir / "foreign_unet.png") as file:
        file.write(images.png_bytes(images.contact_sheet(images.to_bytes(torch.cat(rows)), columns=len(seeds))))
    click.echo(f"{len(rows)} rows of {len(seeds)} images in {outdir / 'foreign_unet.png'}")
    click.echo(f"sample and edm_sampler differ by {float((by_seed - by_latents).abs().max()):.1e} at most")


if __name__ == "__main__":
    main()
