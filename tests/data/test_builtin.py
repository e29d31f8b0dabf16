"""Built-in sets are built once, and anew when what they are made of changes; this module registers a toy."""

import pytest

from vlmo.data import builtin
from vlmo.data.schema import FEATURES, Built, make_row
from vlmo.data.sources import open_source

PACKAGES = ("numpy",)
LABELS = {"toy": ("no", "yes")}


def toy() -> Built:
    return FEATURES, {"train": [make_row("1", captions=["a text"], source="test", licence="CC0")]}


def broken() -> Built:
    features, splits = toy()
    return features, splits | {"test": None}


SETS = {"toy": toy, "broken": broken}


@pytest.fixture(autouse=True)
def _registered(monkeypatch) -> None:
    monkeypatch.setattr(builtin, "SETS", dict(builtin.SETS))
    builtin.register(__name__, *SETS)


def test_a_registered_set_is_known_by_its_name(tmp_path) -> None:
    assert open_source("toy", cache_dir=tmp_path)["captions"][:] == [["a text"]]
    assert builtin.labels("toy") == ["no", "yes"]
    with pytest.raises(ValueError, match="toy: no split 'val'; it has train"):
        open_source("toy", split="val", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="broken has no answers"):
        builtin.labels("broken")


def test_cache_is_built_anew_when_a_package_changes(tmp_path, monkeypatch) -> None:
    for versions in ({"numpy": "1"}, {"numpy": "1"}, {"numpy": "2"}):
        monkeypatch.setattr(builtin, "version", versions.get)
        builtin.load("toy", split="train", cache_dir=tmp_path)
    assert len(list((tmp_path / "builtin").iterdir())) == 2
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "here"))
    builtin.load("toy", split="train")
    assert (tmp_path / "here" / "builtin").is_dir()


def test_failed_build_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ValueError, match="Keys mismatch"):
        builtin.load("broken", split="train", cache_dir=tmp_path)
    assert list((tmp_path / "builtin").iterdir()) == []


def test_missing_package_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.data.test_builtin.PACKAGES", ("no-such-package",))
    with pytest.raises(ModuleNotFoundError, match=r"no-such-package.*\[quickstart\]'"):
        builtin.load("toy", split="train", cache_dir=tmp_path)
