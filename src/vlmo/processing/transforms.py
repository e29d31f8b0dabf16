"""Images to tensors: the plain transform that evaluation uses, and training's augmentations.

All randomness comes from the NumPy generator that a call is given, never from a global one, so that
an image's augmentation can be a pure function of (seed, epoch, sample). Augmentations act on 8-bit
images of the final size, and batches stay 8-bit until they are on the model's device: that is
several times faster than float tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from vlmo.types import normalize_pixels

MAX_MAGNITUDE = 10  # strongest RandAugment
# Scales at which JPEG can be decoded, the smallest first.
_REDUCTIONS = (8, 4, 2)
# Longer side of a random crop over its shorter one, at most.
_LONGEST = 4 / 3
# Rectangles that are sampled until one fits, as in torchvision and timm.
_ATTEMPTS = 10

# Left, top, right and bottom edge in pixels.
Box = tuple[int, int, int, int]
# Height and width in pixels.
Shape = tuple[int, int]
Pixels = UInt8[Tensor, "3 height width"]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Encoded(Protocol):
    """An image that is not decoded yet, as `vlmo.data.decoding.EncodedImage`; size is width and height."""

    size: tuple[int, int]

    def decode(self, reduction: int = 1) -> Image.Image:
        """Return the image, at 1 / `reduction` of its size where its format can do that, else whole."""
        ...


AnyImage = Image.Image | Encoded


def patch_shapes(image_size: int, *, patch_size: int) -> tuple[Shape, ...]:
    """Return shapes of at most as many patches as a square of `image_size`, and nearly as many: from 1:4 to 4:1."""
    side = image_size // patch_size
    # From 1:4 to 4:1: half of the side in height gives four times the width of it.
    wide = [(height, side * side // height) for height in range(-(-side // 2), side + 1)]
    tall = [(width, height) for height, width in reversed(wide)]
    return tuple(
        (height * patch_size, width * patch_size) for height, width in dict.fromkeys(wide + tall)
    )


def nearest_shapes(
    sizes: Sequence[tuple[int, int]], shapes: Sequence[Shape]
) -> Int64[np.ndarray, "image"]:
    """Return for each size (width, height) the number of the shape whose aspect ratio is nearest."""
    # Ratios are compared as logarithms: 2:1 is as far from a square as 1:2.
    size_logs = np.log(np.array(sizes, dtype=np.float64).reshape(-1, 2))
    shape_logs = np.log(np.array(shapes, dtype=np.float64))
    aspects = size_logs[:, 0] - size_logs[:, 1]
    return np.abs(aspects[:, None] - (shape_logs[:, 1] - shape_logs[:, 0])).argmin(axis=1)


def by_shape(
    items: Sequence[Item],
    run: Callable[[list[Item]], Iterable[Result]],
    *,
    shape: Callable[..., Sequence[int]] = lambda item: item.shape,
) -> list[Result]:
    """Return a result for each item: `run` gets a list of all items of one shape, and gives as many results."""
    # Numbers of the items by shape, so that results return to their places.
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(tuple(shape(item)), []).append(number)
    results: dict[int, Result] = {}
    for numbers in groups.values():
        results |= zip(numbers, run([items[number] for number in numbers]), strict=True)
    return [results[number] for number in range(len(items))]


@dataclass(frozen=True)
class TransformConfig:
    """Augmentation of a training image: square resize, flip, RandAugment(2, 7) (VLMo, "Implementation Details").

    Everything below `fill` is off by default; the paper's recipes for pairs also crop, as the
    published code does. Fields called a probability are in [0, 1].
    """

    # Of pre-training; VQA takes 480, NLVR2 and retrieval 384 (VLMo, "Fine-Tuning on Downstream
    # Tasks").
    image_size: int = 224
    """Height and width, in pixels."""
    keep_aspect: bool = False
    """Give images the nearest of a few shapes with about as many patches, instead of a square; each batch has one."""
    rand_augment_ops: int = 2
    """Operations of RandAugment per image, each applied with probability 0.5; 0 turns it off."""
    rand_augment_magnitude: int = 7
    """Strength of RandAugment, 0 to 10."""
    rand_augment: Literal["vlmo", "timm"] = "vlmo"
    """Operations to choose from: VLMo's ten, or timm's fifteen, which BEiT is fine-tuned with."""
    horizontal_flip: float = 0.5
    """Probability. Set 0 where left and right matter to the text."""
    fill: int = 255
    """Gray level (0 to 255) of what geometric operations uncover; white suits drawings."""
    min_crop: float = 1.0
    """Smallest share of the area that a random crop keeps, in (0, 1]; 1 never crops. See `crop_box`."""
    reduced_decoding: bool = True
    """Decode JPEG at 1/2, 1/4 or 1/8 where the crop still has `image_size` pixels each way (docs/scaling.md)."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, in [0, 1]."""
    grayscale: float = 0.0
    """Probability of losing color."""
    random_erasing: float = 0.0
    """Probability that a rectangle of 2 to 33 % of the area becomes noise, as by timm's "pixel" mode."""
    affine: float = 0.0
    """Probability of a turn (15 degrees at most), shift (10 %) and scaling (0.8 to 1.2)."""
    blur: float = 0.0
    """Probability of a Gaussian blur, standard deviation 0.5 to 2 % of the image size."""

    def __post_init__(self) -> None:
        """Raise ValueError if a size, a color, a magnitude, a crop or a probability is out of its range."""
        if self.image_size < 1 or self.rand_augment_ops < 0 or not 0 <= self.fill <= 255:
            raise ValueError(
                f"image_size must be positive, rand_augment_ops >= 0, fill in 0 to 255; got {self}"
            )
        if self.rand_augment not in RAND_AUGMENT:
            raise ValueError(
                f"rand_augment is {self.rand_augment!r}: expected one of {', '.join(RAND_AUGMENT)}"
            )
        for name in (
            "min_crop",
            "horizontal_flip",
            "color_jitter",
            "grayscale",
            "random_erasing",
            "affine",
            "blur",
        ):
            if not 0 <= getattr(self, name) <= 1 or not self.min_crop:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: expected a number in [0, 1], of min_crop above 0"
                )
        if not 0 <= self.rand_augment_magnitude <= MAX_MAGNITUDE:
            raise ValueError(
                f"rand_augment_magnitude is {self.rand_augment_magnitude}: expected 0 to {MAX_MAGNITUDE}"
            )


class EvalTransform:
    """Bicubic resize to a square and normalization, as by `VLMoProcessor`; ignores the generator it may be given.

    Args:
        shapes: An image gets the nearest of these instead of the square.
        center_crop: Share, in (0, 1], of the shorter side that a central square keeps (BEiT's for
            ImageNet: 224 of 256); None takes the whole image.

    Raises:
        ValueError: `center_crop` is out of range.
    """

    def __init__(
        self,
        config: TransformConfig,
        *,
        center_crop: float | None = None,
        shapes: Sequence[Shape] = (),
    ) -> None:
        if center_crop is not None and not 0 < center_crop <= 1:
            raise ValueError(
                f"center_crop is {center_crop}: expected a share above 0, at most 1, of the shorter side"
            )
        self.config = config
        self.center_crop = center_crop
        self.shapes = shapes or [(config.image_size, config.image_size)]

    @classmethod
    def of(cls, processor: Any, *, center_crop: float | None = None) -> Self:
        """Return the transform of a `VLMoProcessor` or its image processor, whose `aspect_patch_size` gives shapes."""
        images = getattr(processor, "image_processor", processor)
        height = images.size["height"]
        patch_size = getattr(images, "aspect_patch_size", None)
        if patch_size is None:
            shapes = ((height, images.size["width"]),)
        else:
            shapes = patch_shapes(height, patch_size=patch_size)
        return cls(TransformConfig(image_size=height), shapes=shapes, center_crop=center_crop)

    def shape(self, size: tuple[int, int]) -> Shape:
        """Return the shape that an image of this width and height gets."""
        return self.shapes[int(nearest_shapes([size], self.shapes)[0])]

    def pixels(self, image: AnyImage, _: np.random.Generator | None = None) -> Pixels:
        """Apply all but the normalization."""
        if not isinstance(image, Image.Image):
            image = image.decode()
        pixels = _to_tensor(image)
        if self.center_crop is None:
            return _resize(pixels, self.shape(image.size))
        from torchvision.transforms.v2.functional import center_crop

        # First the shorter side, then the cut: 256 and 224 for BEiT's share of 0.875.
        size = self.config.image_size
        return center_crop(_resize(pixels, [int(size / self.center_crop)]), [size, size])

    def __call__(
        self, image: AnyImage, _: np.random.Generator | None = None
    ) -> Float[Tensor, "3 height width"]:
        """Return pixel values in [-1, 1]."""
        return normalize_pixels(self.pixels(image))


class TrainTransform:
    """Crop or resize, flip, style, color, RandAugment, erasing, normalization, in this order."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def pixels(
        self, image: AnyImage, generator: np.random.Generator, *, shape: Shape | None = None
    ) -> Pixels:
        """Apply all but the normalization, a pure function of the image and the generator's state.

        With a `shape`, the image gets it instead of the square, and random crops vary about its own
        aspect ratio.
        """
        config = self.config
        box = None
        if config.min_crop < 1 and shape is None:
            box = crop_box(image.size, config=config, generator=generator)
        elif config.min_crop < 1:
            # A crop of the square, stretched as the image is.
            side = max(image.size)
            square_box = crop_box((side, side), config=config, generator=generator)
            low, high = np.array(square_box).reshape(2, 2) * image.size // side
            box = cast(Box, (*low.tolist(), *np.maximum(high, low + 1).tolist()))
        shape = shape or (config.image_size, config.image_size)
        pixels = _crop_and_resize(
            image, box=box, shape=shape, reduced_decoding=config.reduced_decoding
        )
        # The generator is asked in this order: another one would change all augmentations.
        if generator.random() < config.horizontal_flip:
            pixels = pixels.flip(-1)
        resized = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        augmented = _change_style_and_color(resized, config=config, generator=generator)
        augmented = rand_augment(augmented, config=config, generator=generator)
        # Most images are left as they are, and need no second copy.
        if augmented is not resized:
            pixels = _to_tensor(augmented)
        if generator.random() < config.random_erasing:
            _erase(pixels, generator)
        return pixels

    def __call__(
        self, image: AnyImage, generator: np.random.Generator
    ) -> Float[Tensor, "3 height width"]:
        """Return pixel values in [-1, 1]: `pixels`, normalized."""
        return normalize_pixels(self.pixels(image, generator))


def crop_box(
    size: tuple[int, int], *, config: TransformConfig, generator: np.random.Generator
) -> Box:
    """Sample a part of an image of this width and height: area from `min_crop` to 1, aspect from 3/4 to 4/3, position.

    A box that does not fit is cut to the image. Where that leaves less than `min_crop` of an image
    longer than 4/3, another is sampled, as by torchvision's `RandomResizedCrop`: ten at most, then
    the longest central part of 4/3.
    """
    width, height = size
    longest = round(min(size) * _LONGEST)
    # Areas evenly, aspects evenly in their logarithm: a wide crop is as likely as a tall one.
    for _ in range(_ATTEMPTS):
        area = height * width * generator.uniform(config.min_crop, 1)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(_LONGEST)))
        crop_width = max(1, round(math.sqrt(area * aspect)))
        crop_height = max(1, round(math.sqrt(area / aspect)))
        is_cut = crop_width > width or crop_height > height
        crop_width = min(width, crop_width)
        crop_height = min(height, crop_height)
        too_small = is_cut and crop_width * crop_height < config.min_crop * width * height
        # Only images longer than the longest crop can be left with too little.
        if not too_small or max(size) <= _LONGEST * min(size):
            top = int(generator.integers(height - crop_height + 1))
            left = int(generator.integers(width - crop_width + 1))
            break
    else:
        crop_width = min(width, longest)
        crop_height = min(height, longest)
        left = (width - crop_width) // 2
        top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _to_tensor(image: Image.Image, box: Box | None = None) -> Pixels:
    pixels = np.asarray(image)
    if box is not None:
        left, top, right, bottom = box
        pixels = pixels[top:bottom, left:right]
    # A copy, because PIL's own memory is read-only; in height-width-channel order, in which resizing is faster.
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)


def _resize(pixels: Pixels, size: Sequence[int]) -> Pixels:
    """Resize to height and width, or to one number of pixels on the shorter side."""
    # The import takes seconds.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    return resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _crop_and_resize(
    image: AnyImage, *, box: Box | None, shape: Shape, reduced_decoding: bool
) -> Pixels:
    """Resize the part of the image in `box`, or all of it; decoded no larger than that needs."""
    if not isinstance(image, Image.Image):
        reduction = 1
        reduced_box = box
        if reduced_decoding:
            reduction, reduced_box = _reduced(image.size, box=box, shape=shape)
        decoded = image.decode(reduction)
        # Formats other than JPEG come whole, whatever they are asked for.
        if decoded.size != image.size:
            box = reduced_box
        image = decoded
    return _resize(_to_tensor(image, box), shape)


def _reduced(size: tuple[int, int], *, box: Box | None, shape: Shape) -> tuple[int, Box | None]:
    """Return the strongest reduction that leaves the box as large as `shape`, and the box at that scale.

    Its edges are the nearest to the true ones: at most half a pixel of the reduced image beside
    them.
    """
    edges = np.array(box or (0, 0, *size))
    # The smaller the scale, the less is decoded and resized.
    for reduction in _REDUCTIONS:
        # Halves up: every edge rounds alike.
        nearest = (2 * edges + reduction) // (2 * reduction)
        nearest[2:] = np.minimum(nearest[2:], -(-np.array(size) // reduction))
        if (nearest[2:] - nearest[:2] >= shape[::-1]).all():
            return reduction, cast(Box, tuple(nearest.tolist())) if box else None
    return 1, box


def _change_style_and_color(
    image: Image.Image, *, config: TransformConfig, generator: np.random.Generator
) -> Image.Image:
    size = config.image_size
    if generator.random() < config.affine:
        degrees = generator.uniform(-15, 15)
        scale = generator.uniform(0.8, 1.2)
        right = size * generator.uniform(-0.1, 0.1)
        down = size * generator.uniform(-0.1, 0.1)
        matrix = _affine_matrix(image, degrees=degrees, scale=scale, right=right, down=down)
        image = _warp(image, matrix, fill=config.fill)
    if generator.random() < config.blur:
        image = image.filter(ImageFilter.GaussianBlur(size * generator.uniform(0.005, 0.02)))
    if config.color_jitter > 0:
        # Always in this order; torchvision's ColorJitter shuffles it.
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(
                1 + generator.uniform(-config.color_jitter, config.color_jitter)
            )
    if generator.random() < config.grayscale:
        image = image.convert("L").convert("RGB")
    return image


def _affine_matrix(
    image: Image.Image, *, degrees: float, scale: float, right: float, down: float
) -> tuple[float, ...]:
    """Turn clockwise and scale about the center, then shift, in pixels.

    PIL asks where an output pixel comes from, so this is the inverse map.
    """
    # The inverse of a turn and scaling: the angle turned back, sizes divided.
    cos = math.cos(math.radians(degrees)) / scale
    sin = math.sin(math.radians(degrees)) / scale
    x = image.width / 2
    y = image.height / 2
    back_x = x + right
    back_y = y + down
    return cos, sin, x - cos * back_x - sin * back_y, -sin, cos, y + sin * back_x - cos * back_y


def _warp(
    image: Image.Image,
    matrix: Sequence[float],
    *,
    fill: int,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=(fill, fill, fill)
    )


def _erase(pixels: Pixels, generator: np.random.Generator) -> None:
    """Replace a rectangle by normal noise of deviation 1 once pixels are normalized, cut to what 8 bits can hold."""
    rows, columns = pixels.shape[1:]
    for _ in range(_ATTEMPTS):
        # timm's RandomErasing: area, aspect and number of attempts.
        share = generator.uniform(0.02, 1 / 3)
        aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
        height = round(rows * math.sqrt(share * aspect))
        width = round(columns * math.sqrt(share / aspect))
        if height < rows and width < columns:
            top = generator.integers(rows - height + 1)
            left = generator.integers(columns - width + 1)
            # [-1, 1] -> 0 to 255
            noise = 127.5 + 127.5 * generator.standard_normal((3, height, width))
            levels = noise.round().clip(0, 255).astype(np.uint8)
            pixels[:, top : top + height, left : left + width] = torch.from_numpy(levels)
            return


RAND_AUGMENT = {
    "vlmo": [
        "auto_contrast",
        "equalize",
        "rotate",
        "shear_x",
        "shear_y",
        "identity",
        "brightness",
        "sharpness",
        "translate_x",
        "translate_y",
    ],
    "timm": [
        "auto_contrast",
        "equalize",
        "rotate",
        "shear_x",
        "shear_y",
        "invert",
        "posterize",
        "solarize",
        "solarize_add",
        "color",
        "contrast",
        "brightness",
        "sharpness",
        "translate_x",
        "translate_y",
    ],
}
"""Names of the operations of each set."""
_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def apply_operation(
    image: Image.Image,
    name: str,
    strength: float,
    *,
    operations: str,
    fill: int,
    resample: Image.Resampling,
) -> Image.Image:
    """Apply one operation of RandAugment.

    Args:
        strength: From -1 to 1; operations without a direction take its absolute value.
        operations: Set of the operation, a key of `RAND_AUGMENT`.
        fill: Gray level of what geometric operations uncover.
    """
    level = abs(strength)
    # VLMo's factors go from 0.1 to 1.9 and its shifts are in pixels; timm's have a direction and are
    # shares of the side.
    if operations == "vlmo":
        factor = 0.1 + 1.8 * level
        right = down = -10 * strength
    else:
        factor = 1 + 0.9 * strength
        right = 0.45 * strength * image.width
        down = 0.45 * strength * image.height
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(factor)
    if name == "rotate":
        return image.rotate(30 * strength, resample=resample, fillcolor=(fill, fill, fill))
    matrices = {
        "shear_x": (1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": (1, 0, right, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, down),
    }
    if name in matrices:
        return _warp(image, matrices[name], fill=fill, resample=resample)
    return _change_levels(image, name, level)


def _change_levels(image: Image.Image, name: str, level: float) -> Image.Image:
    """Apply an operation on the levels of pixels; "identity" is the one that does nothing."""
    match name:
        case "auto_contrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
        case "posterize":
            # At least one bit: with none the image would be black.
            return ImageOps.posterize(image, max(1, 4 - int(4 * level)))
        case "solarize":
            return ImageOps.solarize(image, 256 - int(256 * level))
        case "solarize_add":
            # Dark levels alone are raised, as by timm.
            levels = [value + int(110 * level) * (value < 128) for value in range(256)]
            return image.point(levels * 3)
    return image


def rand_augment(
    image: Image.Image, *, config: TransformConfig, generator: np.random.Generator
) -> Image.Image:
    """Choose `rand_augment_ops` operations evenly and apply each with probability 0.5 (RandAugment, "Methods").

    Set "vlmo": the ten operations of VLMo's published code. AutoContrast and Equalize stretch each
    channel by itself, so flat colors of drawings may still change. Set "timm": the fifteen of
    timm's `rand-m9-mstd0.5-inc1`, which BEiT is fine-tuned with; their strength varies with a
    deviation of 0.5.
    """
    names = RAND_AUGMENT[config.rand_augment]
    for _ in range(config.rand_augment_ops):
        name = names[generator.integers(len(names))]
        if generator.random() < 0.5:
            continue
        magnitude: float = config.rand_augment_magnitude
        resample = Image.Resampling.BILINEAR
        if config.rand_augment == "timm":
            # mstd0.5: a deviation of half a step of magnitude.
            magnitude = min(max(generator.normal(magnitude, 0.5), 0), MAX_MAGNITUDE)
            resample = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[generator.integers(2)]
        strength = magnitude / MAX_MAGNITUDE
        # Left or right, darker or brighter.
        if generator.random() >= 0.5:
            strength = -strength
        image = apply_operation(
            image,
            name,
            strength,
            operations=config.rand_augment,
            fill=config.fill,
            resample=resample,
        )
    return image
