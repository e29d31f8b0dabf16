"""Pages of the site that are not in docs/: README and others, notebooks, scripts, figures, recipes, the reference.

mkdocs calls the functions `on_...` (mkdocs.yml, `hooks`).
"""

from __future__ import annotations

import inspect
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import browser_page
import notebooks
from figures import html  # mkdocs finds what lies beside this file
from tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vlmo"
OUTSIDE = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "effects.md": "experiments/findings.md",
    "log.md": "experiments/log.md",
    "notebook-search.md": "examples/search_own_images.ipynb",
    "notebook-inside.md": "examples/inside.ipynb",
}
"""Pages of the site and the files that they are."""
REFERENCE = {
    "model": "The Multiway Transformer and its heads",
    "losses": "Losses, hard negatives and the gradient cache",
    "data": "Rows, sampling, masks and batches",
    "training": "The loop",
    "evaluation": "Metrics and reports",
    "processing": "Images and texts to tensors",
    "checkpoints": "Import of published layouts; loading model folders",
    "export": "ONNX",
    "integrations": "Registration with transformers, examples for its Trainer, sentence-transformers",
    "tasks": "One file a task: objective, examples, evaluation, prediction",
    "recipes": "Names and numbers of whole runs",
    "run": "From a recipe to its trainer; the dry run",
    "folder": "Atomic writes and model cards",
    "retrieval": "Index of images, and search",
    "demo": "Quickstart on generated scenes, and its report",
    "released": "Models by name",
    "serving": "The service over HTTP and its page",
    "zero_shot": "Class names as texts, and true against false captions",
}
"""Packages with a page in the reference, and its title."""
LANGUAGES = {".py": "python", ".sh": "sh"}
"""Suffixes of the example scripts, and what highlights them."""
_FIGURE = re.compile(r"^\*Figure: (?P<name>\S+) \(drawn by `make docs`\)\*$", flags=re.MULTILINE)
_TABLE = re.compile(r"^\*Table: (?P<name>.+) \(written by `make docs`\)\*$", flags=re.MULTILINE)
_BADGES = re.compile(r"<!-- badges -->.*?<!-- /badges -->\n", flags=re.DOTALL)
_LINK = re.compile(r"(?P<words>!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)")


_COMMANDS: list[str] = []


def on_startup(*, command: str, dirty: bool) -> None:
    """Remember the command of mkdocs."""
    _COMMANDS.append(command)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the repository's address from pyproject.toml, where a release sets it."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    config.repo_url = urls.get("Repository")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the result files that pages link to."""
    texts = {name: source for name, source in OUTSIDE.items() if source.endswith(".md")}
    pages = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in texts.items()}
    # A server that builds anew with each saved file shows the cells alone.
    for name, (text, images) in notebook_pages(run="build" in _COMMANDS).items():
        pages[name] = text
        for path, content in images.items():
            files.append(File.generated(config, path, content=content))
    pages |= {
        "recipe-cards.md": recipe_cards(),
        "reference/index.md": reference_index(),
        "scripts.md": scripts(),
    }
    pages |= {f"reference/{package}.md": reference_of(package) for package in REFERENCE}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for result in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        files.append(File.generated(config, f"results/{result.name}", abs_src_path=str(result)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert figures and tables; turn links to files outside docs/ into links to their pages, or into plain text."""
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

    text = _LINK.sub(moved, _BADGES.sub("", markdown))
    return _FIGURE.sub(
        lambda line: html(line["name"]), _TABLE.sub(lambda line: TABLES[line["name"]](), text)
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Write the model and the images of the page that searches in the browser."""
    if "build" in _COMMANDS:
        browser_page.write_page(Path(config.site_dir) / "browser")


def page_of(path: str) -> tuple[str, str] | None:
    """Return page and anchor of a file of the repository; None if it has no page."""
    for name, source in OUTSIDE.items():
        if path == source:
            return name, ""
    if path.startswith("docs/"):
        return path.removeprefix("docs/"), ""
    if path.startswith("benchmarks/results/"):
        return f"results/{posixpath.basename(path)}", ""
    parts = Path(path).parts
    if parts[0] == "examples" and Path(path).suffix in LANGUAGES:
        return "scripts.md", Path(path).stem
    if (
        parts[:2] == ("src", "vlmo")
        and len(parts) > 3
        and parts[2] in REFERENCE
        and path.endswith(".py")
    ):
        return f"reference/{parts[2]}.md", ".".join(parts[1:]).removesuffix(".py").removesuffix(
            ".__init__"
        )
    return None


def notebook_pages(*, run: bool) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Return the notebooks' pages, each with its images by path; with outputs if they are `run`."""
    sources = {name: ROOT / source for name, source in OUTSIDE.items() if source.endswith(".ipynb")}
    books = (
        notebooks.all_executed(sources.values()) if run else map(notebooks.read, sources.values())
    )
    return {
        name: notebooks.page(book, name=name.removesuffix(".md"), file=source.name)
        for (name, source), book in zip(sources.items(), books, strict=True)
    }


def scripts() -> str:
    """Return the page of the example scripts, each whole."""
    trainer = "[`Trainer`](interoperability.md#transformers-trainer)"
    about = f"Training with transformers' {trainer}, search, ONNX, and a task of your own."
    lines = ["# Example scripts", "", about]
    for file in sorted(file for file in (ROOT / "examples").iterdir() if file.suffix in LANGUAGES):
        script = file.read_text(encoding="utf-8").rstrip("\n")
        lines.append(f"\n## {file.stem}\n\n```{LANGUAGES[file.suffix]}\n{script}\n```")
    return "\n".join(lines) + "\n"


def recipe_cards() -> str:
    """Return a table of all recipes, then their descriptions."""
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
    """Return the page of the names that `import vlmo` gives, and of the packages."""
    import vlmo

    lines = ["# Reference", "", "`import vlmo` gives:", ""]
    for name in vlmo.__all__:
        owner: Any = getattr(vlmo, name)
        summary = (inspect.getdoc(owner) or "").splitlines()[0]
        package = owner.__module__.split(".")[1]
        lines.append(f"- [`{name}`]({package}.md#{owner.__module__}.{name}): {summary}")
    lines += ["", "Packages:", ""] + [
        f"- [`vlmo.{package}`]({package}.md): {title}" for package, title in REFERENCE.items()
    ]
    return "\n".join(lines) + "\n"


def reference_of(package: str) -> str:
    """Return the page of all public modules of a package."""
    lines = [f"# vlmo.{package}", "", f"{REFERENCE[package]}.", ""]
    for module in modules_of(package):
        lines += [f"::: {module}", ""]
    return "\n".join(lines)


def modules_of(package: str) -> Iterator[str]:
    """Yield the names of the modules in a package and its subpackages; modules that only re-export are left out."""
    for file in sorted((PACKAGE / package).rglob("*.py")):
        name = ".".join(("vlmo", *file.relative_to(PACKAGE).with_suffix("").parts))
        if file.name != "__init__.py" or "\ndef " in file.read_text(encoding="utf-8"):
            yield name.removesuffix(".__init__")
