"""The augmentation pipe of EDM: pixel blitting, geometry and colour, and the labels that tell the network of them.

Labels make the augmentation non-leaking: the network learns which images are augmented, and how, and is asked for
plain ones by labels of zeros. `AugmentPipe.draw` draws all parameters, `augment` applies them.

The images' coordinates are in pixels with the origin at the centre of the image, x to the right and y down: pixel
(i, j) is centred at x = i − (W−1)/2, y = j − (H−1)/2.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# h: the low-pass decomposition filter of the wavelet sym6. Its sum is √2, and Σ_k h[k]·h[k + 2m] is 1 for m = 0 and 0
# for all other m, so that going up and down again without a warp in between gives the images back.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
# The taps before the middle of the filter: output j of the doubled grid has the tap h[j − 2i + 5] of pixel i.
_BEFORE = len(SYM6) // 2 - 1
# How far from a position of the doubled grid, in pixels, the pixels lie of which a value between it and the next is
# made: ⌈(j − 6)/2⌉ … ⌊(j + 1 + 5)/2⌋.
_REACH = 3.5


class AugmentParameters(NamedTuple):
    """What happens to each image; None where the pipe has no option of the kind.

    Attributes:
        blit: int32 [N, 5], exact moves of pixels: flip x, flip y, transpose (0 or 1), and then a shift by whole pixels
            to the right and up.
        geometry: float32 [N, 2, 3], from positions (x, y, 1) in the output to positions (x, y) in the input.
        colour: float32 [N, 3, 4], from (red, green, blue, 1) to (red, green, blue).
        labels: float32 [N, columns].
    """

    blit: Tensor | None
    geometry: Tensor | None
    colour: Tensor | None
    labels: Tensor


def augment(
    images: Tensor, blit: Tensor | None = None, geometry: Tensor | None = None, colour: Tensor | None = None
) -> Tensor:
    """Images [N, C, H, W] after `blit`, `geometry` and `colour` in turn, as AugmentParameters has them."""
    if blit is not None:
        images = _moved(images, blit)
    if geometry is not None:
        images = _warped(images, geometry)
    if colour is not None:
        images = _recoloured(images, colour)
    return images


def _moved(images: Tensor, blit: Tensor) -> Tensor:
    flip_x, flip_y, transpose, right, up = blit.long()[:, :, None, None, None].unbind(1)
    samples, channels, height, width = images.shape
    images = torch.where(flip_x != 0, images.flip(3), images)
    images = torch.where(flip_y != 0, images.flip(2), images)
    if height == width:
        images = torch.where(transpose != 0, images.mT, images)
    column = _reflected(torch.arange(width, device=images.device) - right, width)
    row = _reflected(torch.arange(height, device=images.device)[:, None] + up, height)
    images = images.gather(3, column.expand(samples, channels, height, width))
    return images.gather(2, row.expand(samples, channels, height, width))


def _reflected(index: Tensor, extent: int) -> Tensor:
    """Indices into an axis that goes on by reflection about its first and last elements."""
    period = max(2 * extent - 2, 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if extent > 1 else index


def _warped(images: Tensor, geometry: Tensor) -> Tensor:
    """Double the grid, warp it, halve it.

        up:   u[j] = Σ_i h[j − 2i + 5]·x[i]
        warp: v[j] = u at geometry · (position of j), bilinear, 0 outside of the grid
        down: y[i] = Σ_k h[k]·v[2i + k − 5]

    along each axis. The filter's weight is at its tap 5 (its mean is at 5.1), so that element 2i of the doubled grid is
    centred where pixel i is. x is the image and its reflection on all sides, W − 1 and H − 1 pixels wide, and 0 beyond;
    of it no more is made than the samples of the batch need, which changes no result.
    """
    samples, channels, height, width = images.shape
    if samples == 0:
        return images
    geometry = geometry.to(images.dtype)
    columns, rows = (torch.arange(-_BEFORE, 2 * extent + _BEFORE, device=images.device) for extent in (width, height))
    x = columns.to(images.dtype) / 2 - (width - 1) / 2
    y = rows.to(images.dtype) / 2 - (height - 1) / 2
    positions = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x)), x.new_ones(len(y), len(x))], dim=-1)
    positions = (positions.flatten(0, 1) @ geometry.mT).unflatten(1, (len(y), len(x)))

    extents = torch.tensor([width, height], device=images.device)
    wanted = (positions.abs().amax([0, 1, 2]) + _REACH - (extents - 1) / 2).ceil()
    margins = wanted.nan_to_num(0).clamp(torch.zeros_like(wanted), extents - 1).int().tolist()
    padded = functional.pad(images, [margins[0], margins[0], margins[1], margins[1]], mode="reflect")

    taps = torch.tensor(SYM6, dtype=images.dtype, device=images.device)[None, None, None]
    planes = padded.reshape(samples * channels, 1, *padded.shape[2:])
    planes = functional.conv_transpose2d(planes, taps, stride=(1, 2), padding=(0, _BEFORE))
    planes = functional.conv_transpose2d(planes, taps.mT, stride=(2, 1), padding=(_BEFORE, 0))
    doubled = planes.reshape(samples, channels, *planes.shape[2:])

    # Element j of an axis of length L is at (2j + 1)/L − 1 for grid_sample; element 2i is pixel i, from the margin on.
    lengths = torch.tensor([doubled.shape[3], doubled.shape[2]], device=images.device)
    element = 2 * (positions + (extents - 1) / 2 + torch.tensor(margins, device=images.device))
    grid = (2 * element + 1) / lengths - 1
    warped = functional.grid_sample(doubled, grid.to(images.dtype), padding_mode="zeros", align_corners=False)

    planes = warped.reshape(samples * channels, 1, *warped.shape[2:])
    planes = functional.conv2d(planes, taps, stride=(1, 2))
    planes = functional.conv2d(planes, taps.mT, stride=(2, 1))
    return planes.reshape(samples, channels, height, width)


def _recoloured(images: Tensor, colour: Tensor) -> Tensor:
    """Colours [r, g, b] to matrix · [r, g, b, 1]; the grey of one channel to the mean of what [g, g, g] gives."""
    samples, channels, height, width = images.shape
    colour = colour.to(images.dtype)
    linear, offset = colour[:, :, :3], colour[:, :, 3:]
    if channels == 1:
        linear, offset = linear.mean(1, keepdim=True).sum(2, keepdim=True), offset.mean(1, keepdim=True)
    return (linear @ images.reshape(samples, channels, height * width) + offset).reshape(images.shape)


@dataclasses.dataclass
class AugmentPipe:
    """Augmentations by chance; `pipe(images)` returns (images, labels).

    Each option of the first kind is a multiplier of `p` that gives the probability with which an image gets the
    augmentation; 0 leaves it out, with its labels. All are drawn from torch's default generator of the images' device.
    The columns of the labels are those of the enabled options, in this order, 0 in images without the augmentation:

        xflip              w ∈ {0, 1}: the image is mirrored if w = 1; xflip = 1e8 mirrors half of the images
        yflip              w ∈ {0, 1}: turned upside down
        rotate_int         w ∈ {0, 1, 2, 3}: mirrored for 1 and 2, upside down for 2 and 3, transposed for 1 and 3, in
                           that order; columns [w ∈ {1, 2}], [w ∈ {2, 3}]
        translate_int      by tx pixels to the right and ty up, going on by reflection, within ±translate_int_max of the
                           width and the height; columns tx/(W·max), ty/(H·max)
        scale              w ~ N(0, 1): magnified by s = 2^(w·scale_std)
        rotate_frac        θ ~ ±π·rotate_frac_max; columns cos θ − 1, sin θ
        aniso              w ~ N(0, 1): stretched by s = 2^(w·aniso_std) in direction r and by 1/s across, r ~ ±π with
                           probability aniso_rotate_prob and 0 else; columns w·cos r, w·sin r
        translate_frac     w_x, w_y ~ N(0, 1): by w_x·W·translate_frac_std pixels to the right and w_y·H·… down
        brightness         w ~ N(0, 1): w·brightness_std is added
        contrast           w ~ N(0, 1): multiplied by 2^(w·contrast_std)
        lumaflip           w ∈ {0, 1}: reflected about the plane across the axis of greys v = (1, 1, 1)/√3
        hue                θ ~ ±π·hue_max: colours turn about v; columns cos θ − 1, sin θ
        saturation         w ~ N(0, 1): the distance from v is multiplied by 2^(w·saturation_std)

    The geometry from the output to the input is S(1/s)·R(θ)·R(−r)·diag(1/s, s)·R(r)·T(−t) about the image's centre,
    with R(θ) = [[cos θ, −sin θ], [sin θ, cos θ]]. Colours need images of 3 channels, or of 1, which is grey.

    Raises ValueError or TypeError, with the argument's name first, for one that is out of range.
    """

    p: float = 1
    xflip: float = 0
    yflip: float = 0
    rotate_int: float = 0
    translate_int: float = 0
    translate_int_max: float = 0.125
    scale: float = 0
    rotate_frac: float = 0
    aniso: float = 0
    translate_frac: float = 0
    scale_std: float = 0.2
    rotate_frac_max: float = 1
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1
    saturation_std: float = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{field.name}: got {value!r}; it is a number")
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name}: got {value}; it must be 0 or more, and finite")
        if self.translate_int_max == 0:
            raise ValueError("translate_int_max: got 0; it must be more, since the labels are relative to it")
        if self.aniso_rotate_prob > 1:
            raise ValueError(f"aniso_rotate_prob: got {self.aniso_rotate_prob}; it is a probability")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images [N, C, H, W], with the images' dtype and strides, and their labels, float32 [N, columns].

        Raises ValueError or TypeError for images that are not [N, C, H, W], float32 or float64, square if rotate_int is
        on, or of 1 or 3 channels if colours change.
        """
        self.check(images)
        samples, _, height, width = images.shape
        parameters = self.draw(samples, height, width, images.device)
        return self.apply(images, parameters), parameters.labels

    def check(self, images: Tensor) -> None:
        """ValueError or TypeError unless the pipe can be applied to the images."""
        if images.dim() != 4 or 0 in images.shape[1:]:
            raise ValueError(
                f"images: shape is {tuple(images.shape)}; it must be [N, C, H, W] with pixels and channels"
            )
        if images.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"images: dtype is {images.dtype}; it must be float32 or float64")
        _, channels, height, width = images.shape
        if self.rotate_int and height != width:
            raise ValueError(f"images: {height}x{width} pixels; rotate_int needs square images")
        if self._colours and channels not in (1, 3):
            raise ValueError(f"images: got {channels} channels; colours change in images of 1 or 3")

    def apply(self, images: Tensor, parameters: AugmentParameters) -> Tensor:
        """The images after what `draw` drew."""
        return torch.empty_like(images).copy_(augment(images, *parameters[:3]))

    @property
    def _colours(self) -> bool:
        return any((self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation))

    @property
    def _geometry(self) -> bool:
        return any((self.scale, self.rotate_frac, self.aniso, self.translate_frac))

    @property
    def _blit(self) -> bool:
        return any((self.xflip, self.yflip, self.rotate_int, self.translate_int))

    def draw(self, samples: int, height: int, width: int, device: torch.device | str = "cpu") -> AugmentParameters:
        """Draw what happens to so many images of this size; matrices are composed in float64 and then rounded."""
        chance = _Chance(self.p, samples, torch.device(device))
        labels = [torch.zeros([samples, 0], dtype=torch.float64, device=device)]
        blit = self._draw_blit(chance, height, width, labels) if self._blit else None
        geometry = self._draw_geometry(chance, height, width, labels) if self._geometry else None
        colour = self._draw_colour(chance, labels) if self._colours else None
        return AugmentParameters(blit, geometry, colour, torch.cat(labels, dim=1).float())

    def _draw_blit(self, chance: _Chance, height: int, width: int, labels: list[Tensor]) -> Tensor:
        moves = torch.zeros([chance.samples, 5], dtype=torch.int32, device=chance.device)
        for column, multiplier in enumerate((self.xflip, self.yflip)):
            if multiplier:
                w = chance.integers(2, multiplier)
                moves[:, column] = w[:, 0].int()
                labels.append(w)
        if self.rotate_int:
            w = chance.integers(4, self.rotate_int)
            flips = torch.cat([(w == 1) | (w == 2), (w == 2) | (w == 3)], dim=1)
            moves[:, :2] ^= flips.int()
            moves[:, 2] = (w[:, 0] % 2).int()
            labels.append(flips.double())
        if self.translate_int:
            largest = torch.tensor([width, height], device=chance.device) * self.translate_int_max
            shift = (chance.uniform(self.translate_int, columns=2) * largest).round()
            moves[:, 3:] = shift.int()
            labels.append(shift / largest)
        return moves

    def _draw_geometry(self, chance: _Chance, height: int, width: int, labels: list[Tensor]) -> Tensor:
        linear = torch.eye(2, dtype=torch.float64, device=chance.device).expand(chance.samples, 2, 2)
        shift = torch.zeros([chance.samples, 2], dtype=torch.float64, device=chance.device)
        if self.scale:
            w = chance.normal(self.scale)
            linear = linear * (-w * self.scale_std).exp2()[:, :, None]
            labels.append(w)
        if self.rotate_frac:
            theta = chance.uniform(self.rotate_frac) * (math.pi * self.rotate_frac_max)
            linear = linear @ _rotation(theta)
            labels += [theta.cos() - 1, theta.sin()]
        if self.aniso:
            w = chance.normal(self.aniso)
            # 0 where there is no stretching, so that the product is 1 however sums are rounded.
            r = chance.uniform(self.aniso_rotate_prob, of_all=True) * math.pi * (w != 0)
            stretch = torch.cat([-w, w], dim=1).mul(self.aniso_std).exp2().diag_embed()
            linear = linear @ _rotation(-r) @ stretch @ _rotation(r)
            labels += [w * r.cos(), w * r.sin()]
        if self.translate_frac:
            w = chance.normal(self.translate_frac, columns=2)
            shift = w * torch.tensor([width, height], device=chance.device) * self.translate_frac_std
            labels.append(w)
        return torch.cat([linear, -linear @ shift[:, :, None]], dim=2).float()

    def _draw_colour(self, chance: _Chance, labels: list[Tensor]) -> Tensor:
        matrix = torch.eye(3, 4, dtype=torch.float64, device=chance.device).repeat(chance.samples, 1, 1)
        identity = torch.eye(3, dtype=torch.float64, device=chance.device)
        along = torch.full([3, 3], 1 / 3, dtype=torch.float64, device=chance.device)  # vvᵀ
        if self.brightness:
            w = chance.normal(self.brightness)
            matrix[:, :, 3] += w * self.brightness_std
            labels.append(w)
        if self.contrast:
            w = chance.normal(self.contrast)
            matrix = matrix * (w * self.contrast_std).exp2()[:, :, None]
            labels.append(w)
        if self.lumaflip:
            w = chance.integers(2, self.lumaflip)
            matrix = (identity - 2 * along * w[:, :, None]) @ matrix
            labels.append(w)
        if self.hue:
            theta = chance.uniform(self.hue) * (math.pi * self.hue_max)
            cosine, sine = theta.cos()[:, :, None], theta.sin()[:, :, None]
            across = along.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # u ↦ v × u
            matrix = (cosine * identity + sine * across + (1 - cosine) * along) @ matrix
            labels += [cosine[:, :, 0] - 1, sine[:, :, 0]]
        if self.saturation:
            w = chance.normal(self.saturation)
            matrix = (along + (identity - along) * (w * self.saturation_std).exp2()[:, :, None]) @ matrix
            labels.append(w)
        return matrix.float()


class _Chance:
    """Random numbers, float64 [N, columns] made of float32: drawn for all images, then 0 in those that go without."""

    def __init__(self, p: float, samples: int, device: torch.device) -> None:
        self.p, self.samples, self.device = p, samples, device

    def _gated(self, values: Tensor, probability: float) -> Tensor:
        return values.double() * (torch.rand([self.samples, 1], device=self.device) < probability)

    def normal(self, multiplier: float, columns: int = 1) -> Tensor:
        return self._gated(torch.randn([self.samples, columns], device=self.device), self.p * multiplier)

    def uniform(self, multiplier: float, columns: int = 1, of_all: bool = False) -> Tensor:
        """Between −1 and 1; with `of_all` the multiplier is the probability itself."""
        values = torch.rand([self.samples, columns], device=self.device) * 2 - 1
        return self._gated(values, multiplier if of_all else self.p * multiplier)

    def integers(self, below: int, multiplier: float) -> Tensor:
        """From 0 to below − 1."""
        return self._gated((torch.rand([self.samples, 1], device=self.device) * below).floor(), self.p * multiplier)


def _rotation(theta: Tensor) -> Tensor:
    """R(θ) [N, 2, 2] for θ [N, 1]."""
    cosine, sine = theta.cos(), theta.sin()
    return torch.cat([cosine, -sine, sine, cosine], dim=1).unflatten(1, (2, 2))
