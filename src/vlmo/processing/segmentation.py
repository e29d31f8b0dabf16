"""Images together with the class of each pixel: augmentation for training, and the plain way for evaluation.

The steps and their strengths are those with which BEiT is fine-tuned on ADE20K (mmsegmentation's
usual ones).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from vlmo.types import IGNORED_CLASS, normalize_pixels

# Times the wanted short side, for the long side of an image.
_LONGEST = 4
_CROP_TRIES = 10
_BRIGHTNESS = 32
_HUE = 18 / 360

Mask = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class SegmentTransformConfig:
    """Augmentation of a training image and its mask; fields called a probability are in [0, 1]."""

    short_side: int | None = None
    """Pixels of the short side before the random scale; None: the side of the crop."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random scale."""
    max_class_share: float = 0.75
    """Largest share of one class in a crop; after ten crops above it, the last one is taken. 1 takes the first."""
    horizontal_flip: float = 0.5
    """Probability."""
    photometric: float = 0.5
    """Probability of each change of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        """Raise ValueError if a scale or side is not above 0, or a probability not from 0 to 1."""
        shares = (self.max_class_share, self.horizontal_flip, self.photometric)
        sides = 0 < self.scale[0] <= self.scale[1] and (
            self.short_side is None or self.short_side >= 1
        )
        if not sides or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"{self}; give two rising scales and a short_side above 0, and probabilities in [0, 1]"
            )


class SegmentTrainTransform:
    """Random scale, crop, flip and colors, in this order; what a crop lacks is gray and ignored."""

    def __init__(self, config: SegmentTransformConfig, *, crop_size: int) -> None:
        self.config = config
        self.crop_size = crop_size

    def __call__(
        self, image: Image.Image, mask: Mask, generator: np.random.Generator
    ) -> tuple[Float[Tensor, "3 crop crop"], Int64[Tensor, "crop crop"]]:
        """Pixel values in [-1, 1] and classes, a pure function of the arguments and the generator's state."""
        config = self.config
        side = self.crop_size
        # The order of mmsegmentation's pipeline for ADE20K, and of the generator's numbers.
        scale = generator.uniform(*config.scale)
        size = scaled_size(image.size, short_side=config.short_side or side, scale=scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
        # Nearest: between two classes there is none.
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        left, top = self._corner(mask, generator)
        mask = mask[top : top + side, left : left + side]
        height, width = mask.shape
        image = image.crop((left, top, left + width, top + height))
        if generator.random() < config.horizontal_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask[:, ::-1]
        image = change_colors(image, probability=config.photometric, generator=generator)
        # Crops of small images are filled to the right and below.
        padding = (0, side - width, 0, side - height)
        classes = torch.from_numpy(mask.astype(np.int64))
        return pad(to_pixel_values(image), padding), pad(classes, padding, value=IGNORED_CLASS)

    def _corner(self, mask: Mask, generator: np.random.Generator) -> tuple[int, int]:
        side = self.crop_size
        height, width = mask.shape
        left = top = 0
        for _ in range(_CROP_TRIES):
            left = int(generator.integers(max(width - side, 0) + 1))
            top = int(generator.integers(max(height - side, 0) + 1))
            crop = mask[top : top + side, left : left + side]
            # Pixels without a class do not count.
            counts = np.bincount(crop[crop != IGNORED_CLASS])
            if counts.any() and counts.max() <= self.config.max_class_share * counts.sum():
                break
        return left, top


def eval_pixel_values(image: Image.Image, *, short_side: int) -> Float[Tensor, "3 height width"]:
    """Return the image at evaluation's size, proportions kept."""
    return to_pixel_values(
        image.resize(scaled_size(image.size, short_side=short_side), Image.Resampling.BILINEAR)
    )


def to_pixel_values(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """Pixels in [-1, 1]."""
    return normalize_pixels(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def scaled_size(size: tuple[int, int], *, short_side: int, scale: float = 1.0) -> tuple[int, int]:
    """Width and height with `short_side` x `scale` as the short side; a very long side is kept to four times that."""
    # mmsegmentation's `Resize` of (2048, 512): a long side is bounded by four short ones.
    factor = min(short_side / min(size), _LONGEST * short_side / max(size)) * scale
    # Halves up, where Python takes the even neighbor.
    width, height = (max(1, math.floor(side * factor + 0.5)) for side in size)
    return width, height


def change_colors(
    image: Image.Image, *, probability: float, generator: np.random.Generator
) -> Image.Image:
    """Brightness, contrast (first or last), saturation and hue, each changed with this probability."""
    if probability == 0:
        return image
    # Contrast comes before or after the other colors, as in mmsegmentation.
    contrast_first = generator.random() < 0.5
    brightness, contrast, saturation, hue = generator.random(4) < probability
    shift = generator.uniform(-_BRIGHTNESS, _BRIGHTNESS) if brightness else 0.0
    gain = generator.uniform(0.5, 1.5) if contrast else 1.0
    saturation_gain = generator.uniform(0.5, 1.5) if saturation else 1.0
    turn = round(256 * generator.uniform(-_HUE, _HUE)) if hue else 0
    image = _map_levels(image, gain=gain if contrast_first else 1.0, shift=shift)
    if saturation or hue:
        # Pillow's HSV has 256 levels for all three, the hue's circle among them.
        angle, colorfulness, value = image.convert("HSV").split()
        angle = angle.point([(level + turn) % 256 for level in range(256)])
        colorfulness = _map_levels(colorfulness, gain=saturation_gain)
        image = Image.merge("HSV", (angle, colorfulness, value)).convert("RGB")
    return image if contrast_first else _map_levels(image, gain=gain)


def _map_levels(image: Image.Image, *, gain: float, shift: float = 0.0) -> Image.Image:
    if gain == 1 and shift == 0:
        return image
    # A table of 256 entries, once for an image.
    levels = [min(255, max(0, round((level + shift) * gain))) for level in range(256)]
    return image.point(levels * len(image.getbands()))
