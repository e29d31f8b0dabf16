"""What mkdocs cannot read from docs/ itself: README and others, notebooks, figures, recipe cards, the reference.

mkdocs calls the functions `on_...` (mkdocs.yml, `hooks`).
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import notebooks
from figures import html  # mkdocs finds what lies beside this file

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vlmo"
OUTSIDE = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "notebook-search.md": "examples/search_own_pictures.ipynb",
    "notebook-inside.md": "examples/inside.ipynb",
}
"""Pages of the site and the files that they are."""
ROOMS = {
    "model": "The Multiway Transformer and its heads",
    "objectives": "Losses, and the modules that hold a model and name its losses",
    "data": "Rows, sampling, masks and batches",
    "training": "The loop",
    "evaluation": "Metrics and reports",
    "processing": "Pictures and texts to tensors",
    "checkpoints": "Published layouts in and out; loading model folders",
    "export": "ONNX",
    "integrations": "transformers pipelines, sentence-transformers, open_clip",
    "tasks": "One file a task: objective, examples, evaluation, prediction",
    "recipes": "Whole runs",
    "folder": "Folders that are whole or not there",
    "retrieval": "An index of own pictures, and search in it",
    "demo": "Quickstart on small real data, and its report",
    "released": "Models that come with the package",
    "serving": "The service over HTTP and its page",
}
"""Rooms that have a page in the reference, and what it is called."""
_FIGURE = re.compile(r"^<!-- figure: (?P<name>\S+) -->$", flags=re.MULTILINE)
_LINK = re.compile(r"(?P<words>!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)")


_COMMANDS: list[str] = []


def on_startup(*, command: str, dirty: bool) -> None:
    """Remembers what mkdocs was asked for."""
    _COMMANDS.append(command)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here, and the result files that pages link to."""
    texts = {name: source for name, source in OUTSIDE.items() if source.endswith(".md")}
    pages = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in texts.items()}
    # A server that builds anew with each saved file shows the cells alone.
    for name, (text, pictures) in notebook_pages(run="build" in _COMMANDS).items():
        pages[name] = text
        for path, content in pictures.items():
            files.append(File.generated(config, path, content=content))
    pages |= {"recipe-cards.md": recipe_cards(), "reference/index.md": reference_index()}
    pages |= {f"reference/{room}.md": reference_of(room) for room in ROOMS}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for result in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        files.append(File.generated(config, f"results/{result.name}", abs_src_path=str(result)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Figures are drawn; links of files elsewhere in the repository lead to their pages, or become plain words."""
    here = page.file.src_uri
    source = OUTSIDE.get(here, f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        words, target = link["words"], link["target"]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        found = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if found is None:
            return words[1:-1]
        there, own_anchor = found
        anchor = anchor or own_anchor
        relative = posixpath.relpath(there, posixpath.dirname(here) or ".")
        return f"{words}({relative}{'#' + anchor if anchor else ''})"

    return _FIGURE.sub(lambda line: html(line["name"]), _LINK.sub(moved, markdown))


def page_of(path: str) -> tuple[str, str] | None:
    """Where a file of the repository is in the site, with an anchor; None if it has no page."""
    for name, source in OUTSIDE.items():
        if path == source:
            return name, ""
    if path.startswith("docs/"):
        return path.removeprefix("docs/"), ""
    if path.startswith("benchmarks/results/"):
        return f"results/{posixpath.basename(path)}", ""
    parts = Path(path).parts
    if parts[:2] == ("src", "vlmo") and len(parts) > 3 and parts[2] in ROOMS and path.endswith(".py"):
        return f"reference/{parts[2]}.md", ".".join(parts[1:]).removesuffix(".py").removesuffix(".__init__")
    return None


def notebook_pages(*, run: bool) -> dict[str, tuple[str, dict[str, bytes]]]:
    """The notebooks' pages, each with its pictures by their paths; with outputs if they are `run`."""
    sources = {name: ROOT / source for name, source in OUTSIDE.items() if source.endswith(".ipynb")}
    books = notebooks.all_executed(sources.values()) if run else map(notebooks.read, sources.values())
    return {
        name: notebooks.page(book, name=name.removesuffix(".md"), file=source.name)
        for (name, source), book in zip(sources.items(), books, strict=True)
    }


def recipe_cards() -> str:
    """A table of all recipes by their cards' first lines, then the cards."""
    from vlmo.recipes import RECIPES, describe

    cards = {name: describe(name).splitlines() for name in RECIPES}
    lines = [
        "# Recipe cards",
        "",
        "As `vlmo recipes` shows them; [recipes](recipes.md) says how to run and change one.",
        "",
    ]
    lines += ["| recipe | what it is |", "| --- | --- |"]
    lines += [f"| [`{name}`](#{name}) | {card[0]} |" for name, card in cards.items()]
    for name, card in cards.items():
        lines += ["", f"## {name}", "", "```text", *card, "```"]
    return "\n".join(lines) + "\n"


def reference_index() -> str:
    """The names that `import vlmo` gives, and the rooms."""
    import vlmo

    lines = ["# Reference", "", "`import vlmo` gives:", ""]
    for name in vlmo.__all__:
        owner: Any = getattr(vlmo, name)
        summary = (inspect.getdoc(owner) or "").splitlines()[0]
        room = owner.__module__.split(".")[1]
        lines.append(f"- [`{name}`]({room}.md#{owner.__module__}.{name}): {summary}")
    lines += ["", "Rooms:", ""] + [f"- [`vlmo.{room}`]({room}.md): {title}" for room, title in ROOMS.items()]
    return "\n".join(lines) + "\n"


def reference_of(room: str) -> str:
    """Every public module of a room."""
    lines = [f"# vlmo.{room}", "", f"{ROOMS[room]}.", ""]
    for module in modules_of(room):
        lines += [f"::: {module}", ""]
    return "\n".join(lines)


def modules_of(room: str) -> Iterator[str]:
    """Names of the modules in a room, those of rooms inside it too; packages that only gather names are left out."""
    for file in sorted((PACKAGE / room).rglob("*.py")):
        if file.name != "__init__.py":
            yield ".".join(("vlmo", *file.relative_to(PACKAGE).with_suffix("").parts))
