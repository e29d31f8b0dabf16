"""The pages that the site makes itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

import vlmo
from vlmo.recipes import RECIPES, describe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", ("index.md", "")),
        ("docs/data.md", ("data.md", "")),
        ("benchmarks/results/parity.json", ("results/parity.json", "")),
        ("src/vlmo/losses/itc.py", ("reference/losses.md", "vlmo.losses.itc")),
        ("examples/train_vqa.py", ("scripts.md", "train_vqa")),
        ("tests/losses/test_itc.py", None),
        ("LICENSE", None),
    ],
)
def test_page_of_a_file(hooks, path, page):
    assert hooks.page_of(path) == page


@pytest.mark.parametrize(
    ("here", "before", "after"),
    [
        ("index.md", "see [the log](docs/log.md#now)", "see [the log](log.md#now)"),
        ("index.md", "![queries](docs/images/a.png)", "![queries](images/a.png)"),
        ("log.md", "[result](../benchmarks/results/a.json)", "[result](results/a.json)"),
        ("log.md", "[ITC](../src/vlmo/losses/itc.py)", "[ITC](reference/losses.md#vlmo.losses.itc)"),
        ("log.md", "a [test](../tests/test_cli.py) and [`code`](../tests/x.py)", "a test and `code`"),
        (
            "log.md",
            "[there](https://example.org/a.md), [here](#now)",
            "[there](https://example.org/a.md), [here](#now)",
        ),
        ("benchmarks.md", "[scaling](../docs/scaling.md)", "[scaling](scaling.md)"),
    ],
)
def test_links_lead_to_pages(hooks, here, before, after):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=here))
    assert hooks.on_page_markdown(before, page=page, config=None, files=None) == after


def test_every_script_is_shown_whole(hooks):
    page = hooks.scripts()
    for file in (ROOT / "examples").glob("*.py"):
        assert f"## {file.stem}\n\n```python\n{file.read_text()}```\n" in page


def test_every_recipe_has_its_card(hooks):
    cards = hooks.recipe_cards()
    for name in RECIPES:
        first = describe(name).splitlines()[0]
        assert f"| [`{name}`](#{name}) | {first} |" in cards
        assert f"## {name}\n\n```text\n{first}\n" in cards


def test_reference_names_everything_public(hooks):
    index = hooks.reference_index()
    assert all(f"[`{name}`](" in index for name in vlmo.__all__)
    assert "::: vlmo.data.prepare.vqav2" in hooks.reference_of("data")
    packages = {folder.name for folder in (ROOT / "src" / "vlmo").iterdir() if (folder / "__init__.py").is_file()}
    assert packages - {"cli"} == set(hooks.REFERENCE)
