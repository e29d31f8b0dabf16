import pytest
from tests.recipes.conftest import pictures, sets, visual_tokenizer  # noqa: F401

from worlds import clipart, icons
from worlds.emoji import Concepts, Emoji


@pytest.fixture
def no_emoji(monkeypatch):
    """None is installed, and so no name hidden."""
    for module in (icons, clipart):
        monkeypatch.setattr(module, "read_emoji", lambda: Emoji({}, {}, {}, Concepts((), ())))
