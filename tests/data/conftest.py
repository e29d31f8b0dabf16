"""Built-in sets are built once for all tests of this folder, and the drawings under them read once."""

import functools
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlmo.data.builtin import emoji

    for name in ("read_twemoji", "read_openmoji"):  # of three sets
        setattr(emoji, name, functools.cache(getattr(emoji, name)))
    return tmp_path_factory.mktemp("cache")
