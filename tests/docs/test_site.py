"""The site is built without a warning; what pages name (files, commands, options, anchors, numbers) exists."""

from __future__ import annotations

import pkgutil
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

import figures
import hooks
import tables
import vlmo
from figures.images import images
from vlmo.cli import main
from vlmo.recipes import RECIPES, describe
from vlmo.released.published import MODELS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "log.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """All pages; the notebooks without outputs, since only the command itself runs them."""
    folder = tmp_path_factory.mktemp("site")
    # Strict by mkdocs.yml: a link or an anchor that leads nowhere ends the build.
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_site_has_its_pages_figures_images_and_no_sources(site):
    page = (site / "explained.html").read_text()
    assert page.count('<figure class="vlmo"') == len(figures.FIGURES)
    for name in re.findall(r": (\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE):
        assert (site / f"{name}.html").is_file(), name
    assert not [file for file in site.rglob("*") if file.suffix in {".py", ".pyc"}]
    for page in site.glob("*.html"):
        for image in re.findall(r"<img [^>]*>", page.read_text()):
            assert re.search(r'alt="[^"]+"', image), (page.name, image)
            source = re.search(r'src="([^"]+)"', image)[1]
            assert source.startswith("https://") or (site / source).is_file(), (page.name, image)


def test_made_pages_have_everything():
    assert all(f"## {file.stem}\n" in hooks.scripts() for file in (ROOT / "examples").glob("*.py"))
    cards = hooks.recipe_cards()
    for name in RECIPES:
        assert f"| [`{name}`](#{name}) | {describe(name).splitlines()[0]} |" in cards
    assert all(f"[`{name}`](" in hooks.reference_index() for name in vlmo.__all__)
    packages = {file.parent.name for file in (ROOT / "src" / "vlmo").glob("*/__init__.py")}
    assert packages - {"cli"} == set(hooks.REFERENCE)
    assert tables.published_models().count("\n") == len(MODELS) + 1


def test_images_of_readme_are_made_from_data_and_code():
    """`python docs/figures/images.py` writes them anew."""
    for name, svg in images().items():
        assert (ROOT / "docs" / "images" / name).read_text() == svg, name


def commands() -> list[tuple[str, list[str]]]:
    """Calls of `vlmo` in blocks and inline code, with the page of each; those of the table of models too."""
    found = [("table", tables.command(model)) for model in MODELS.values()]
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
        lines = [*blocks.splitlines(), *re.findall(r"`(vlmo [^`]+)`", text)]
        found += [(page.name, line) for line in lines]
    call = re.compile(r"(?:vlmo|\S*torchrun .*-m vlmo\.cli) ([a-z][^#]*)")
    calls = [(page, call.match(line)) for page, line in found]
    return [(page, words[1].split()) for page, words in calls if words]


def test_readme_starts_with_commands_that_a_clone_has():
    block = (ROOT / "README.md").read_text().partition("\n```sh\n")[2].partition("\n```")[0]
    first, *targets = [line.partition("#")[0].split() for line in block.splitlines()]
    assert first == ["pip", "install", "'.[quickstart]'"]
    assert {target for _, target in targets} == {"quickstart", "fast", "test"}
    makefile = (ROOT / "Makefile").read_text()
    for command, target in targets:
        assert command == "make"
        assert f"\n{target}: $(VENV)/.installed-" in makefile, target


def test_commands_options_and_recipes_of_the_pages_exist(capsys):
    helps: dict[str, str] = {}

    def help_of(command: str) -> str:
        if command not in helps:
            with pytest.raises(SystemExit) as ended:
                main([*command.split(), "--help"])
            assert ended.value.code == 0, command
            helps[command] = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
        return helps[command]

    for page, words in commands():
        command = " ".join(words[:2] if words[0] in {"train", "data"} else words[:1])
        if words[0] == "train" and (len(words) == 1 or words[1] not in RECIPES):
            named = len(words) > 1 and re.fullmatch(r"[a-z0-9-]+", words[1])
            assert not named or "--import" in words, f"{page}: no recipe {words[1]!r}"
            continue
        also = ["train shapes-stage3", "finetune"] if words[0] in {"train", "finetune"} else []
        shown = " ".join(["--import", "--help", *map(help_of, [command, *also])])
        for option in [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]:
            assert option in shown, f"{page}: vlmo {command} has no {option}"
    # the latter is timm's
    known = " ".join(["--import", "--imagenet_default_mean_and_std", *helps.values()])
    for page in PAGES:
        alone = " ".join(re.findall(r"`(--[^`]+)`", page.read_text()))
        for option in re.findall(r"--[a-z][\w.-]*", alone):
            assert option in known, f"{page.name}: no command has {option}"


def test_version_of_the_citation_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["version"]


@pytest.mark.parametrize("repository", [None, "https://github.com/someone/vlmo"])
def test_site_takes_the_repository_from_the_project(repository, monkeypatch, tmp_path):
    line = f'Repository = "{repository}"' if repository else ""
    (tmp_path / "pyproject.toml").write_text(f"[project.urls]\n{line}\n")
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert hooks.on_config(SimpleNamespace(repo_url=None)).repo_url == repository


def test_no_address_has_a_placeholder_for_the_owner():
    files = [*PAGES, *(ROOT / "examples").glob("*.*"), *(ROOT / ".github").rglob("*.yml")]
    files += [
        ROOT / name for name in ("pyproject.toml", "CITATION.cff", "SECURITY.md", "mkdocs.yml")
    ]
    for file in files:
        assert "github.com/OWNER" not in file.read_text(), file


def test_files_modules_and_tests_that_pages_name_exist():
    """Links are checked by the site; these are words between backticks."""
    folders = "src|tests|docs|benchmarks|experiments|attacks|worlds"
    others = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")]
    for page in [*PAGES, *others]:
        text = page.read_text()
        for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)", text):
            assert any((root / name).exists() for root in (ROOT, ROOT / "tests")), (page, name)
        for name in re.findall(r"`(vlmo(?:\.\w+)+)`", text):
            assert resolved(name), (page, name)
    paper = (ROOT / "docs" / "paper.md").read_text()
    for module, symbol in re.findall(r"`([a-z_]+(?:\.\w+)*):([\w.]+)`", paper):
        assert resolved(f"vlmo.{module}.{symbol}"), (module, symbol)


def resolved(name: str) -> bool:
    with suppress(ImportError, AttributeError):
        pkgutil.resolve_name(name)
        return True
    return False
