"""Built-in sets are built once for all tests, and the drawings under them read once in a process."""

import functools
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run; one process of several may find there what another has built."""
    from vlmo.data.builtin import emoji

    for name in ("read_twemoji", "read_openmoji"):  # of three sets
        setattr(emoji, name, functools.cache(getattr(emoji, name)))
    several = "PYTEST_XDIST_WORKER" in os.environ
    return Path(os.environ["VLMO_CACHE"]) if several else tmp_path_factory.mktemp("cache")
