"""Tensors that published VLMo files hold and our model does not use, at the sizes of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlmo.checkpoints.official import INDEX, POSITION_IDS, TEXT_POSITIONS
from vlmo.checkpoints.shapes import DEFAULT_TEXT_LENGTH, MAX_TEXT_POSITIONS
from vlmo.model import VLMoConfig
from vlmo.model.position import relative_position_index


def fit_unused(
    unused: Mapping[str, Tensor], *, config: VLMoConfig, resized: bool, text_length: int | None
) -> dict[str, Tensor]:
    """Unused tensors for a model of other sizes: text positions of the new length, and index buffers made anew.

    Args:
        config: Of the model at its new sizes.
        resized: Whether the picture has another size than in the file.
        text_length: Longest text that was asked for; None leaves that of the file.
    """
    fitted = dict(unused)
    if text_length is not None:
        if TEXT_POSITIONS in fitted:
            old = fitted[TEXT_POSITIONS]
            kept = old[:text_length]
            fitted[TEXT_POSITIONS] = torch.cat([kept, old.new_zeros(text_length - len(kept), old.shape[1])])
        if POSITION_IDS in fitted:
            fitted[POSITION_IDS] = torch.arange(text_length)[None]
    if resized or text_length is not None:
        indexed = [key for key in fitted if INDEX.fullmatch(key)]
        fitted = {key: tensor for key, tensor in fitted.items() if key not in indexed}
        if config.position_embedding == "relative" and (resized or indexed):
            length = text_length or DEFAULT_TEXT_LENGTH
            if TEXT_POSITIONS in fitted:
                length = len(fitted[TEXT_POSITIONS])
            fitted |= index_buffers(config, text_length=min(length, MAX_TEXT_POSITIONS))
    return fitted


def index_buffers(config: VLMoConfig, *, text_length: int) -> dict[str, Tensor]:
    """Rows of the table for each (query, key) of images, texts and pairs.

    The published code makes them anew, but drops them without looking when it resizes a table: they must be there.
    """
    pair = relative_position_index(
        num_text=text_length, grid=config.grid, max_text=MAX_TEXT_POSITIONS, table_grid=config.grid
    )
    return {
        "relative_position_index": pair[text_length:, text_length:].clone(),
        "text_relative_position_index": pair[:text_length, :text_length].clone(),
        "text_imag_relative_position_index": pair.clone(),
    }
