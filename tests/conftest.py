"""One thread, one seed and no network for every test."""

from __future__ import annotations

import os

# Set before torch and huggingface_hub are imported, and inherited by the processes that tests start. One thread keeps
# sums in the same order on every machine, and keeps test processes out of each other's way.
os.environ.update(
    CUBLAS_WORKSPACE_CONFIG=":4096:8",  # what deterministic matrix products need on a GPU
    HF_DATASETS_OFFLINE="1",
    HF_HUB_OFFLINE="1",
    MKL_NUM_THREADS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import random

import numpy as np
import pytest
import torch

SEED = 0

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """Start each test from the same state of all generators, whatever ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with modules that have slow tests, so that short ones fill the end of a run in several processes.

    Tests that need a GPU are deselected on a machine without one.
    """
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
