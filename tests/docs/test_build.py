"""The site is built without a warning, and holds what its pages show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import figures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """All pages; the notebooks without outputs, since only the command itself runs them."""
    folder = tmp_path_factory.mktemp("site")
    # Strict by mkdocs.yml: a link or an anchor that leads nowhere ends the build.
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_site_has_its_pages_figures_and_no_sources(site):
    page = (site / "explained.html").read_text()
    assert page.count('<figure class="vlmo"') == len(figures.FIGURES)
    assert 'href="stylesheets/figures.css"' in page
    assert "Search in own images" in (site / "notebook-search.html").read_text()
    for name in re.findall(r": (\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE):
        assert (site / f"{name}.html").is_file(), name
    assert not [file for file in site.rglob("*") if file.suffix in {".py", ".pyc"}]


@pytest.mark.slow
def test_pictures_of_pages_are_there_and_have_words(site):
    for page in site.glob("*.html"):
        for image in re.findall(r"<img [^>]*>", page.read_text()):
            assert re.search(r'alt="[^"]+"', image), (page.name, image)
            assert (site / re.search(r'src="([^"]+)"', image)[1]).is_file(), (page.name, image)
