"""Classes of pixels by windows."""

from types import SimpleNamespace

import pytest
import torch
from tests.toy_model import pictures, toy
from torch import Tensor, nn

from vlmo.model import VLMoForSemanticSegmentation
from vlmo.tasks.segmentation import segment, window_starts

BATCH_ATOL = (
    1e-4  # one window at a time or several in a batch: sums in another order, of logits around 14
)


class Painter(nn.Module):
    """Gives the red channel as the logit of class 1, and notes the size of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=32, num_labels=2)
        self.device = torch.device("cpu")
        self.seen: list[tuple[int, ...]] = []

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        self.seen.append(tuple(pixel_values.shape))
        return SimpleNamespace(
            logits=torch.stack([torch.zeros_like(pixel_values[:, 0]), pixel_values[:, 0]], dim=1)
        )


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (32, [0]),
        (20, [0]),
        (33, [0, 1]),
        (53, [0, 21]),
        (54, [0, 21, 22]),
        (96, [0, 21, 42, 63, 64]),
    ],
)
def test_windows_cover_the_side(length: int, expected: list[int]) -> None:
    assert window_starts(length, window=32) == expected
    if length >= 32:
        assert expected[-1] + 32 == length


@pytest.mark.parametrize("size", [(32, 32), (32, 50), (70, 41), (20, 40), (10, 10)])
def test_windows_give_back_what_each_pixel_gets(size) -> None:
    painter, pixels = Painter(), torch.randn(3, *size)
    logits = segment(painter, pixels)
    assert logits.shape == (2, *size)
    torch.testing.assert_close(logits[1], pixels[0])
    assert all(shape[1:] == (3, 32, 32) for shape in painter.seen)


def test_overlaps_are_averaged() -> None:
    """A model whose answer is the mean of its window: overlapped pixels get the mean of both answers."""

    class Mean(Painter):
        def forward(self, pixel_values: Tensor) -> SimpleNamespace:
            mean = pixel_values[:, 0].mean(dim=(1, 2), keepdim=True).expand_as(pixel_values[:, 0])
            return SimpleNamespace(logits=torch.stack([torch.zeros_like(mean), mean], dim=1))

    pixels = torch.zeros(3, 32, 48)
    pixels[:, :, 32:] = 1.0  # windows from 0 and from 16: means 0 and 0.5
    logits = segment(Mean(), pixels)[1]
    assert logits[:, :16].unique().tolist() == [0.0]
    assert logits[:, 16:32].unique().tolist() == [0.25]
    assert logits[:, 32:].unique().tolist() == [0.5]


def test_one_window_is_the_model_and_batches_of_windows_change_nothing() -> None:
    model = toy(VLMoForSemanticSegmentation, num_labels=3, segmentation_channels=8)
    with torch.no_grad():
        expected = model(pictures(1)).logits[0]
    torch.testing.assert_close(segment(model, pictures(1)[0]), expected)
    pixels = pictures(1, size=(80, 112))[0]
    torch.testing.assert_close(
        segment(model, pixels, batch_size=1), segment(model, pixels), atol=BATCH_ATOL, rtol=0
    )


def test_logits_come_at_the_size_that_is_asked_for_and_nan_is_refused() -> None:
    assert segment(Painter(), torch.randn(3, 32, 40), size=(64, 80)).shape == (2, 64, 80)
    with pytest.raises(ValueError, match="NaN"):
        segment(Painter(), torch.full((3, 32, 32), torch.nan))
