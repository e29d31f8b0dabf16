"""Windows, and the three figures of a segmentation."""

from types import SimpleNamespace

import pytest
import torch
from tests.toy_model import pictures, toy
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from vlmo.evaluation.segmentation import count_pixels, segment, segmentation_metrics, window_starts
from vlmo.model import VLMoForSemanticSegmentation

IGNORED = 255
BATCH_ATOL = 1e-4  # one window at a time or several in a batch: sums in another order, of logits around 14


def segmenter() -> VLMoForSemanticSegmentation:
    return toy(VLMoForSemanticSegmentation, num_labels=3, segmentation_channels=8)


class Painter(nn.Module):
    """Gives the red channel as the logit of class 1, and notes the size of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=32, num_labels=2)
        self.device = torch.device("cpu")
        self.seen: list[tuple[int, ...]] = []

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        self.seen.append(tuple(pixel_values.shape))
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(pixel_values[:, 0]), pixel_values[:, 0]], dim=1))


@pytest.mark.parametrize(
    ("length", "expected"),
    [(32, [0]), (20, [0]), (33, [0, 1]), (53, [0, 21]), (54, [0, 21, 22]), (96, [0, 21, 42, 63, 64])],
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


def test_one_window_is_the_model() -> None:
    model, pixels = segmenter(), pictures(1)[0]
    with torch.no_grad():
        expected = model(pixels[None]).logits[0]
    torch.testing.assert_close(segment(model, pixels), expected)


def test_batches_of_windows_change_nothing() -> None:
    model, pixels = segmenter(), pictures(1, size=(80, 112))[0]
    torch.testing.assert_close(segment(model, pixels, batch_size=1), segment(model, pixels), atol=BATCH_ATOL, rtol=0)


def test_logits_come_at_the_size_that_is_asked_for() -> None:
    assert segment(Painter(), torch.randn(3, 32, 40), size=(64, 80)).shape == (2, 64, 80)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        segment(Painter(), torch.full((3, 32, 32), torch.nan))


def test_figures_by_hand() -> None:
    target = torch.tensor([[0, 0, 0, 0], [1, 1, 2, IGNORED]])
    predicted = torch.tensor([[0, 0, 0, 1], [1, 0, 2, 3]])
    metrics, iou = segmentation_metrics(count_pixels(predicted, target, num_classes=4))
    # Class 0: 3 of 4 right, one more called so: 3/5. Class 1: 1/3. Class 2: 1. Class 3 only where nothing counts.
    assert iou == [pytest.approx(0.6), pytest.approx(1 / 3), 1.0, None]
    assert metrics == {
        "miou": pytest.approx((0.6 + 1 / 3 + 1) / 3),
        "aacc": pytest.approx(5 / 7),
        "macc": pytest.approx(0.75),
    }


def test_a_class_that_is_only_predicted_counts_for_iou_alone() -> None:
    metrics, iou = segmentation_metrics(torch.tensor([[2, 2], [0, 0]]))
    assert iou == [0.5, 0.0]
    assert metrics == {"miou": 0.25, "aacc": 0.5, "macc": 0.5}


def test_pictures_are_counted_together() -> None:
    """Intersections and unions are summed over pictures before they are divided."""
    counts = torch.zeros(2, 2, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(0, 2, (2, 5, 5), generator=generator) for _ in range(3)]
    peer = MulticlassJaccardIndex(num_classes=2, ignore_index=IGNORED)
    for predicted, target in pairs:
        target[0] = IGNORED
        counts += count_pixels(predicted, target, num_classes=2)
        peer.update(predicted, target)
    assert segmentation_metrics(counts)[0]["miou"] == pytest.approx(peer.compute().item())


def test_nothing_to_count_is_refused() -> None:
    ignored = count_pixels(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), IGNORED), num_classes=2)
    with pytest.raises(ValueError, match="no pixel counts"):
        segmentation_metrics(ignored)
