from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlmo.evaluation import AttentionMap, PictureQuery, contact_sheet

GREEN = (31, 138, 76)


def test_attention_map_needs_one_map_a_word() -> None:
    with pytest.raises(ValueError, match="2 words"):
        AttentionMap(Image.new("RGB", (4, 4)), ["a", "b"], torch.rand(3, 2, 2))


def test_contact_sheet_frames_only_the_right_picture() -> None:
    pictures = [Image.new("RGB", (64, 64), "black")] * 5
    queries = [
        PictureQuery("a word that is quite a bit too long for one line of the sheet " * 3, pictures, correct=1, rank=2),
        PictureQuery("missed", pictures, correct=None, rank=40),
    ]
    sheet = contact_sheet(queries)
    assert sheet.width == 900
    pixels = np.asarray(sheet).astype(int)
    # Below the text column: the frame, far from black, white and grey.
    green = (np.abs(pixels[:, 230:] - np.array(GREEN)).sum(axis=-1) < 60).nonzero()
    half = sheet.height // 2
    assert len(green[0]) > 500
    assert green[0].max() < half
    first, last = green[1].min() + 230, green[1].max() + 230
    assert 350 < first < last < 510  # the second of five


def test_contact_sheet_takes_unusual_input() -> None:
    queries = [
        PictureQuery("", [Image.new("LA", (3, 90))], correct=0, rank=1),
        PictureQuery("x" * 300, [], None, rank=9),
    ]
    assert contact_sheet(queries, width=600).width == 600
    with pytest.raises(ValueError, match="needs a query"):
        contact_sheet([])
    with pytest.raises(ValueError, match="200 pixels"):
        contact_sheet(queries, width=200)
