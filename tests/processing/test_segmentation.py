from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vlmo.processing.segmentation import (
    IGNORED_CLASS,
    SegmentTrainTransform,
    SegmentTransformConfig,
    change_colors,
    eval_pixel_values,
    scaled_size,
    to_pixel_values,
)

CROP = 48
STILL = SegmentTransformConfig(scale=(1.0, 1.0), horizontal_flip=0.0, photometric=0.0)
PLAIN = replace(STILL, max_class_share=1.0)


def marked(width: int = 96, height: int = 64) -> tuple[Image.Image, np.ndarray]:
    """A picture whose red channel is 100 times the class of the pixel: a left, a middle and a right part."""
    mask = np.repeat(np.arange(3, dtype=np.uint8), width // 3)[None].repeat(height, axis=0)
    pixels = np.stack([100 * mask, np.zeros_like(mask), np.zeros_like(mask)], axis=-1)
    return Image.fromarray(pixels), mask


def transformed(config: SegmentTransformConfig, *, seed: int = 0, crop_size: int = CROP):
    transform = SegmentTrainTransform(config, crop_size=crop_size)
    return transform(*marked(), np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_mask_follows_the_picture(seed: int, flip: float) -> None:
    config = replace(STILL, scale=(0.5, 2.0), horizontal_flip=flip)
    pixels, labels = transformed(config, seed=seed)
    assert pixels.shape == (3, CROP, CROP)
    assert labels.shape == (CROP, CROP)
    counted = labels != IGNORED_CLASS
    levels = (pixels[0] + 1) * 127.5
    near = (levels / 100 - labels).abs() < 0.5
    # Bilinear pixels on an edge belong to neither side; there are two edges, each at most three pixels wide.
    assert near[counted].float().mean() > 1 - 6 / CROP
    assert (pixels[:, ~counted] == 0).all()


def test_small_pictures_are_filled_up_with_grey_that_does_not_count() -> None:
    pixels, labels = transformed(replace(STILL, scale=(0.5, 0.5)))  # 36 x 24 pixels of 48 x 48
    assert (labels[:24, :36] != IGNORED_CLASS).all()
    assert (labels[24:] == IGNORED_CLASS).all()
    assert (labels[:, 36:] == IGNORED_CLASS).all()
    assert (pixels[:, 24:] == 0).all()
    image, mask = marked()
    mask[:] = IGNORED_CLASS
    transform = SegmentTrainTransform(SegmentTransformConfig(), crop_size=CROP)
    _, labels = transform(image, mask, np.random.default_rng(0))
    assert (labels == IGNORED_CLASS).all()


def test_crops_avoid_a_single_class() -> None:
    """The outer parts alone would fill most crops of a third of the width."""
    shares = {}
    for limit in (0.75, 1.0):
        config = replace(PLAIN, max_class_share=limit, short_side=64)
        largest = []
        for seed in range(60):
            _, labels = transformed(config, seed=seed, crop_size=32)
            largest.append(labels.flatten().bincount().max().item() / labels.numel())
        shares[limit] = np.mean([share > 0.75 for share in largest])
    assert shares[1.0] > 0.3
    assert shares[0.75] < 0.05


def test_augmentation_is_a_function_of_the_generator_and_colors_change_no_label() -> None:
    first, again, other = (transformed(SegmentTransformConfig(), seed=seed) for seed in (3, 3, 4))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    plain, colored = transformed(PLAIN), transformed(replace(PLAIN, photometric=1.0))
    assert torch.equal(plain[1], colored[1])
    assert not torch.equal(plain[0], colored[0])


def test_brightness_and_contrast_have_the_usual_strength() -> None:
    """On grey, saturation and hue change nothing: a level becomes (level + shift) x gain, in one order or the other."""
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    levels = []
    for seed in range(300):
        changed = change_colors(grey, probability=1.0, generator=np.random.default_rng(seed))
        levels.append(changed.getpixel((0, 0))[0])
    assert (100 - 32) * 0.5 - 1 <= min(levels) < 50
    assert 170 < max(levels) <= (100 + 32) * 1.5 + 1
    # Contrast changes it in either order.
    assert np.mean([not 68 <= level <= 132 for level in levels]) > 0.3


def test_short_side_is_scaled_and_long_side_bounded() -> None:
    sizes = {(200, 100): (64, 32), (100, 200): (32, 64), (1000, 100): (128, 13), (32, 32): (32, 32)}
    assert {size: scaled_size(size, short_side=32) for size in sizes} == sizes
    image, _ = marked(96, 64)
    assert eval_pixel_values(image, short_side=40).shape == (3, 40, 60)
    image = Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8))
    assert to_pixel_values(image).flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_wrong_strengths_are_refused() -> None:
    wrong = [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"short_side": 0}]
    for settings in [*wrong, {"max_class_share": 1.5}, {"photometric": -0.1}]:
        with pytest.raises(ValueError, match="give"):
            SegmentTransformConfig(**settings)
