"""Built-in sets are built once for all tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(shared_folder: Path) -> Path:
    return shared_folder
