"""Images to tensors: the plain transform that evaluation uses, and training's augmentations.

All randomness comes from the NumPy generator that a call is given, never from a global one, so that an image's
augmentation can be a pure function of (seed, epoch, sample). Augmentations act on 8-bit images of the final size, and
batches stay 8-bit until they are on the model's device: that is several times faster than float tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from vlmo.types import normalize_pixels

MAX_MAGNITUDE = 10  # strongest RandAugment
_REDUCTIONS = (8, 4, 2)  # scales at which JPEG can be decoded, the smallest first
_LONGEST = 4 / 3  # longer side of a random crop over its shorter one, at most
_ATTEMPTS = 10  # rectangles that are sampled until one fits, as in torchvision and timm

Box = tuple[int, int, int, int]  # left, top, right and bottom edge in pixels
Shape = tuple[int, int]  # height and width in pixels


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
    wide = [(height, side * side // height) for height in range(-(-side // 2), side + 1)]
    both = dict.fromkeys([*wide, *((width, height) for height, width in reversed(wide))])
    return tuple((height * patch_size, width * patch_size) for height, width in both)


def nearest_shapes(
    sizes: Sequence[tuple[int, int]], shapes: Sequence[Shape]
) -> Int64[np.ndarray, "image"]:
    """Return for each size (width, height) the number of the shape whose aspect ratio is nearest."""
    aspects, wanted = (
        np.log(np.array(each, dtype=np.float64).reshape(-1, 2)) for each in (sizes, shapes)
    )
    return np.abs((aspects[:, 0] - aspects[:, 1])[:, None] - (wanted[:, 1] - wanted[:, 0])).argmin(
        axis=1
    )


def by_shape(
    items: Sequence[Any],
    run: Callable[[list[Any]], Any],
    *,
    shape: Callable[[Any], Any] = lambda item: item.shape,
) -> list[Any]:
    """Return a result for each item: `run` gets a list of all items of one shape, and gives as many results."""
    groups: dict[Any, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(tuple(shape(item)), []).append(number)
    results: dict[int, Any] = {}
    for numbers in groups.values():
        results |= zip(numbers, run([items[number] for number in numbers]), strict=True)
    return [results[number] for number in range(len(items))]


@dataclass(frozen=True)
class TransformConfig:
    """Augmentation of a training image: square resize, flip, RandAugment(2, 7) (VLMo, "Implementation Details").

    Everything below `fill` is off by default; the paper's recipes for pairs also crop, as the published code does.
    Fields called a probability are in [0, 1].
    """

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
    """Grey level (0 to 255) of what geometric operations uncover; white suits drawings."""
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
        for name in [
            "min_crop",
            "horizontal_flip",
            "color_jitter",
            "grayscale",
            "random_erasing",
            "affine",
            "blur",
        ]:
            if not 0 <= getattr(self, name) <= 1 or not self.min_crop:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: expected a number in [0, 1], of min_crop above 0"
                )
        if not 0 <= self.rand_augment_magnitude <= MAX_MAGNITUDE:
            raise ValueError(
                f"rand_augment_magnitude is {self.rand_augment_magnitude}: expected 0 to {MAX_MAGNITUDE}"
            )


class EvalTransform:
    """Bicubic resize to a square and normalisation, as by `VLMoProcessor`; ignores the generator it may be given.

    Args:
        shapes: An image gets the nearest of these instead of the square.
        center_crop: Share, in (0, 1], of the shorter side that a central square keeps (BEiT's for ImageNet: 224 of
            256); None takes the whole image.

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
    def of(cls, processor: Any, **options: Any) -> Self:
        """Return the transform of a `VLMoProcessor` or its image processor, whose `aspect_patch_size` gives shapes."""
        images = getattr(processor, "image_processor", processor)
        height, width, patch = (
            *map(images.size.get, ("height", "width")),
            getattr(images, "aspect_patch_size", None),
        )
        shapes = ((height, width),) if patch is None else patch_shapes(height, patch_size=patch)
        return cls(TransformConfig(image_size=height), shapes=shapes, **options)

    def shape(self, size: tuple[int, int]) -> Shape:
        """Return the shape that an image of this width and height gets."""
        return self.shapes[int(nearest_shapes([size], self.shapes)[0])]

    def pixels(
        self, image: AnyImage, _: np.random.Generator | None = None
    ) -> UInt8[Tensor, "3 height width"]:
        """Apply all but the normalisation."""
        decoded = image if isinstance(image, Image.Image) else image.decode()
        pixels = _to_tensor(decoded)
        size = self.config.image_size
        if self.center_crop is None:
            return _resize(pixels, [*self.shape(decoded.size)])
        from torchvision.transforms.v2.functional import center_crop

        return center_crop(_resize(pixels, [int(size / self.center_crop)]), [size, size])

    def __call__(
        self, image: AnyImage, _: np.random.Generator | None = None
    ) -> Float[Tensor, "3 height width"]:
        """Return pixel values in [-1, 1]."""
        return normalize_pixels(self.pixels(image))


class TrainTransform:
    """Crop or resize, flip, style, color, RandAugment, erasing, normalisation, in this order."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def pixels(
        self, image: AnyImage, generator: np.random.Generator, *, shape: Shape | None = None
    ) -> UInt8[Tensor, "3 height width"]:
        """Apply all but the normalisation, a pure function of the image and the generator's state.

        With a `shape`, the image gets it instead of the square, and random crops vary about its own aspect ratio.
        """
        config = self.config
        box = None
        if config.min_crop < 1:
            square = (max(image.size), max(image.size))
            box = crop_box(
                image.size if shape is None else square, config=config, generator=generator
            )
            if shape is not None:  # a crop of the square, stretched as the image is
                low, high = np.array(box).reshape(2, 2) * image.size // square
                box = cast(Box, (*low.tolist(), *np.maximum(high, low + 1).tolist()))
        pixels = _crop_and_resize(
            image, box=box, shape=shape or (config.image_size, config.image_size), config=config
        )
        if generator.random() < config.horizontal_flip:
            pixels = pixels.flip(-1)
        before = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        after = _change_style_and_color(before, config=config, generator=generator)
        after = rand_augment(after, config=config, generator=generator)
        if after is not before:
            pixels = _to_tensor(after)
        if generator.random() < config.random_erasing:
            _erase(pixels, generator=generator)
        return pixels

    def __call__(
        self, image: AnyImage, generator: np.random.Generator
    ) -> Float[Tensor, "3 height width"]:
        """Return pixel values in [-1, 1]: `pixels`, normalised."""
        return normalize_pixels(self.pixels(image, generator))


def crop_box(
    size: tuple[int, int], *, config: TransformConfig, generator: np.random.Generator
) -> Box:
    """Sample a part of an image of this width and height: area from `min_crop` to 1, aspect from 3/4 to 4/3, position.

    A box that does not fit is cut to the image. Where that leaves less than `min_crop` of an image longer than 4/3,
    another is sampled, as by torchvision's `RandomResizedCrop`: ten at most, then the longest central part of 4/3.
    """
    width, height = size
    for _ in range(_ATTEMPTS):
        area = height * width * generator.uniform(config.min_crop, 1)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(_LONGEST)))
        wanted = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        crop_width = min(width, wanted[0])
        crop_height = min(height, wanted[1])
        too_small = (
            crop_width,
            crop_height,
        ) != wanted and crop_width * crop_height < config.min_crop * width * height
        if not too_small or max(size) <= _LONGEST * min(size):
            top = int(generator.integers(height - crop_height + 1))
            left = int(generator.integers(width - crop_width + 1))
            return left, top, left + crop_width, top + crop_height
    longest = round(min(size) * _LONGEST)
    crop_width = min(width, longest)
    crop_height = min(height, longest)
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _to_tensor(image: Image.Image, *, box: Box | None = None) -> UInt8[Tensor, "3 height width"]:
    pixels = np.asarray(image)
    if box is not None:
        left, top, right, bottom = box
        pixels = pixels[top:bottom, left:right]
    # A copy, because PIL's own memory is read-only; in height-width-channel order, in which resizing is faster.
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)


def _resize(
    pixels: UInt8[Tensor, "3 height width"], size: list[int]
) -> UInt8[Tensor, "3 new_height new_width"]:
    """Resize to height and width, or to one number of pixels on the shorter side."""
    from torchvision.transforms import InterpolationMode  # takes seconds
    from torchvision.transforms.v2.functional import resize

    return resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)


def _crop_and_resize(
    image: AnyImage, *, box: Box | None, shape: Shape, config: TransformConfig
) -> UInt8[Tensor, "3 height width"]:
    """Resize the part of the image in `box`, or all of it; decoded no larger than that needs."""
    if not isinstance(image, Image.Image):
        reduction = 1
        reduced = box
        if config.reduced_decoding:
            reduction, reduced = _reduced(image.size, box=box, shape=shape)
        whole = image.size
        image = image.decode(reduction)
        # Formats other than JPEG come whole, whatever they are asked for.
        box = reduced if image.size != whole else box
    return _resize(_to_tensor(image, box=box), [*shape])


def _reduced(size: tuple[int, int], *, box: Box | None, shape: Shape) -> tuple[int, Box | None]:
    """Return the strongest reduction that leaves the box as large as `shape`, and the box at that scale.

    Its edges are the nearest to the true ones: at most half a pixel of the reduced image beside them.
    """
    edges = np.array(box or (0, 0, *size))
    for reduction in _REDUCTIONS:
        nearest = (2 * edges + reduction) // (2 * reduction)  # halves up: every edge rounds alike
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
        shift = (size * generator.uniform(-0.1, 0.1), size * generator.uniform(-0.1, 0.1))
        image = _affine(image, degrees=degrees, scale=scale, shift=shift, fill=config.fill)
    if generator.random() < config.blur:
        image = image.filter(ImageFilter.GaussianBlur(size * generator.uniform(0.005, 0.02)))
    if config.color_jitter > 0:
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(
                1 + generator.uniform(-config.color_jitter, config.color_jitter)
            )
    if generator.random() < config.grayscale:
        image = image.convert("L").convert("RGB")
    return image


def _affine(
    image: Image.Image, *, degrees: float, scale: float, shift: tuple[float, float], fill: int
) -> Image.Image:
    """Turn clockwise and scale about the centre, then shift (pixels to the right and down)."""
    cos = math.cos(math.radians(degrees)) / scale
    sin = math.sin(math.radians(degrees)) / scale
    x = image.width / 2
    y = image.height / 2
    # PIL asks where an output pixel comes from, so this is the inverse map.
    back_x = x + shift[0]
    back_y = y + shift[1]
    matrix = (cos, sin, x - cos * back_x - sin * back_y, -sin, cos, y + sin * back_x - cos * back_y)
    return _shift(image, matrix, {"resample": Image.Resampling.BILINEAR, "fillcolor": (fill,) * 3})


def _erase(pixels: UInt8[Tensor, "3 rows columns"], *, generator: np.random.Generator) -> None:
    """Replace a rectangle by normal noise of deviation 1 once pixels are normalised, cut to what 8 bits can hold."""
    rows, columns = pixels.shape[1:]
    for _ in range(_ATTEMPTS):
        area = generator.uniform(0.02, 1 / 3)
        aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
        height = round(rows * math.sqrt(area * aspect))
        width = round(columns * math.sqrt(area / aspect))
        if height < rows and width < columns:
            top = generator.integers(rows - height + 1)
            left = generator.integers(columns - width + 1)
            noise = (
                (127.5 + 127.5 * generator.standard_normal((3, height, width))).round().clip(0, 255)
            )
            pixels[:, top : top + height, left : left + width] = torch.from_numpy(
                noise.astype(np.uint8)
            )
            return


# An operation gets the image, its strength from 0 to 1, a sign of +1 or -1, and the geometric part of its arguments.
_Operation = Callable[[Image.Image, float, int, dict[str, Any]], Image.Image]


def _shift(image: Image.Image, matrix: tuple[float, ...], options: dict[str, Any]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **options)


_SHARED: dict[str, _Operation] = {
    "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "rotate": lambda image, level, sign, options: image.rotate(30 * sign * level, **options),
    "shear_x": lambda image, level, sign, options: _shift(
        image, (1, 0.3 * sign * level, 0, 0, 1, 0), options
    ),
    "shear_y": lambda image, level, sign, options: _shift(
        image, (1, 0, 0, 0.3 * sign * level, 1, 0), options
    ),
}
RAND_AUGMENT: dict[str, dict[str, _Operation]] = {
    "vlmo": _SHARED
    | {
        "identity": lambda image, *_: image,
        "brightness": lambda image, level, *_: ImageEnhance.Brightness(image).enhance(
            0.1 + 1.8 * level
        ),
        "sharpness": lambda image, level, *_: ImageEnhance.Sharpness(image).enhance(
            0.1 + 1.8 * level
        ),
        "translate_x": lambda image, level, sign, options: _shift(
            image, (1, 0, -10 * sign * level, 0, 1, 0), options
        ),
        "translate_y": lambda image, level, sign, options: _shift(
            image, (1, 0, 0, 0, 1, -10 * sign * level), options
        ),
    },
    "timm": _SHARED
    | {
        "invert": lambda image, *_: ImageOps.invert(image),
        "posterize": lambda image, level, *_: ImageOps.posterize(image, max(1, 4 - int(4 * level))),
        "solarize": lambda image, level, *_: ImageOps.solarize(image, 256 - int(256 * level)),
        "solarize_add": lambda image, level, *_: image.point(
            [value + int(110 * level) * (value < 128) for value in range(256)] * 3
        ),
        "color": lambda image, level, sign, _: ImageEnhance.Color(image).enhance(
            1 + 0.9 * sign * level
        ),
        "contrast": lambda image, level, sign, _: ImageEnhance.Contrast(image).enhance(
            1 + 0.9 * sign * level
        ),
        "brightness": lambda image, level, sign, _: ImageEnhance.Brightness(image).enhance(
            1 + 0.9 * sign * level
        ),
        "sharpness": lambda image, level, sign, _: ImageEnhance.Sharpness(image).enhance(
            1 + 0.9 * sign * level
        ),
        "translate_x": lambda image, level, sign, options: _shift(
            image, (1, 0, 0.45 * sign * level * image.width, 0, 1, 0), options
        ),
        "translate_y": lambda image, level, sign, options: _shift(
            image, (1, 0, 0, 0, 1, 0.45 * sign * level * image.height), options
        ),
    },
}
"""Operations of each set by name."""


def rand_augment(
    image: Image.Image, *, config: TransformConfig, generator: np.random.Generator
) -> Image.Image:
    """Choose `rand_augment_ops` operations evenly and apply each with probability 0.5 (RandAugment, "Methods").

    Set "vlmo": the ten operations of VLMo's published code. AutoContrast and Equalize stretch each channel by itself,
    so flat colors of drawings may still change. Set "timm": the fifteen of timm's `rand-m9-mstd0.5-inc1`, which BEiT
    is fine-tuned with; their strength varies with a deviation of 0.5.
    """
    operations = list(RAND_AUGMENT[config.rand_augment].values())
    options = {"resample": Image.Resampling.BILINEAR, "fillcolor": (config.fill,) * 3}
    for _ in range(config.rand_augment_ops):
        operation = operations[generator.integers(len(operations))]
        if generator.random() < 0.5:
            continue
        level: float = config.rand_augment_magnitude
        if config.rand_augment == "timm":
            level = min(max(generator.normal(level, 0.5), 0), MAX_MAGNITUDE)
            options["resample"] = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[
                generator.integers(2)
            ]
        image = operation(
            image, level / MAX_MAGNITUDE, 1 if generator.random() < 0.5 else -1, options
        )
    return image
