"""One thread, one seed and no network for every test."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Set before torch and huggingface_hub are imported, and inherited by the processes that tests start. One thread keeps
# sums in the same order on every machine, and keeps test processes out of each other's way.
os.environ.update(
    CUBLAS_WORKSPACE_CONFIG=":4096:8",  # what deterministic matrix products need on a GPU
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",  # as commands set it before these imports
    HF_HUB_OFFLINE="1",
    MKL_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

# Processes that tests start share compiled files, also where the machine keeps none.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import random

import numpy as np
import pytest
import torch

SEED = 0

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Look for no garbage during imports, and keep built-in sets in one folder for all processes of a run."""
    gc.disable()  # a million objects that live to the end: a quarter of the time went into this
    if config.getoption("numprocesses", None):
        os.environ["VLMO_CACHE"] = tempfile.mkdtemp(prefix="vlmo-cache-")  # inherited by them


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # a process that was killed may still write
        shutil.rmtree(os.environ["VLMO_CACHE"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Look for garbage again, but only among what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run; one process of several may find there what another has made."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    return Path(os.environ["VLMO_CACHE"]) if several else tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Start each test with one thread and the same state of all generators, whatever ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    yield
    torch.set_num_threads(1)  # benchmarks choose a number and keep it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with modules that have slow tests, so that short ones fill the end of a run in several processes.

    Tests that need a GPU are deselected on a machine without one.
    """
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(
            items=[item for item in items if item.get_closest_marker("gpu")]
        )
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
