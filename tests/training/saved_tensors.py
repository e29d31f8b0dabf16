"""Contents of a training state, read without the run that wrote it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from vlmo.training.checkpoint import _StateReader


def saved_tensors(path: Path) -> dict[str, Tensor]:
    """Whole tensors of a state by their dotted names."""
    contents = _StateReader(path).read_metadata().state_dict_metadata
    assert all(isinstance(entry, TensorStorageMetadata) for entry in contents.values())
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in contents.items()}
    dcp.load(tensors, storage_reader=_StateReader(path), no_dist=True)
    return tensors
