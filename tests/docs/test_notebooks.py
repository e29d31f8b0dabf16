"""The notebooks run from top to bottom and say what they claim; they are committed without outputs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_client.provisioning import LocalProvisioner
from tests.forkserver import start

import hooks
import notebooks

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.ipynb"))


def kernel(options: list[str]) -> None:
    from ipykernel import kernelapp

    sys.argv = ["ipykernel_launcher", *options]
    kernelapp.launch_new_instance()


@pytest.fixture
def run(monkeypatch) -> Callable[[str], tuple[str, int]]:
    """Run a notebook in a process that has imported torch already: what it prints, and how many images it shows."""

    async def launch_kernel(self, cmd, *, env, cwd, **_):
        process = start(kernel, cmd[cmd.index("-f") :], env=env, cwd=Path(cwd))
        names = ("pid", "wait", "send_signal", "kill", "terminate")
        asked = {name: getattr(process, name) for name in names}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"))
        self.process = SimpleNamespace(poll=lambda: process.exitcode, **asked, **streams)
        self.pid, self.pgid, self.cwd = process.pid, None, cwd  # the group is that of the tests
        return self.connection_info

    def run(name: str) -> tuple[str, int]:
        book = notebooks.executed(notebooks.read(EXAMPLES / name))
        outputs = list(chain.from_iterable(cell.get("outputs", ()) for cell in book.cells))
        printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
        return printed, sum("image/png" in output.get("data", {}) for output in outputs)

    monkeypatch.setattr(LocalProvisioner, "launch_kernel", launch_kernel)
    monkeypatch.delenv("VLMO_MODEL", raising=False)
    return run


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_notebook_is_committed_without_outputs(file):
    book = notebooks.read(file)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            # A cell that ends with a value shows it; images need words for those who do not see them.
            shows = re.search(r"^(sheet|Image\.open\(.*\))$", cell.source.splitlines()[-1])
            assert bool(shows) == bool(cell.metadata.get("alt"))


def test_every_notebook_has_a_page_without_outputs():
    sources = {source for source in hooks.OUTSIDE.values() if source.endswith(".ipynb")}
    assert {str(file.relative_to(EXAMPLES.parent)) for file in FILES} == sources
    for name, (text, images) in hooks.notebook_pages(run=False).items():
        assert "```python\n" in text
        assert "```text\n" not in text
        assert not images
        assert f": {name}\n" in (EXAMPLES.parent / "mkdocs.yml").read_text()


@pytest.mark.slow
def test_search_notebook_finds_what_it_says(run):
    shown, num_images = run("search_own_images.ipynb")
    assert "24 images; 24 were embedded in this run" in shown
    assert re.search(r"^(8|9|1[0-2]) were reranked", shown, flags=re.MULTILINE)
    lines = re.findall(r"^ *(-?\d+\.\d\d)  \S+  (.*)$", shown, flags=re.MULTILINE)
    hits = [caption for _, caption in lines]
    cosine, reranked_score = (float(lines[place][0]) for place in (0, 5))
    assert 0.9 < cosine <= 1 < reranked_score
    words, reranked, picture, blue = hits[:5], hits[5:13], hits[13:17], hits[17:]
    assert words[0] == reranked[0] == "a red circle"
    assert picture[0] == "a green circle"
    assert blue[0] == "a blue circle"
    assert len(blue) == 3
    assert all("blue" in caption for caption in blue)
    assert num_images == 1


@pytest.mark.slow
def test_inside_notebook_shows_routes_losses_and_maps(run):
    shown, num_images = run("inside.ipynb")
    routes = r"^(?:image|text|pair)\n((?:.* tokens: .*\n)+)"
    image, text, pair = re.findall(routes, shown, flags=re.MULTILINE)
    assert re.findall(r"(\d+) tokens: (\w+)", image) == [("17", "vision")] * 3
    assert re.findall(r"(\d+) tokens: (\w+)", text) == [("5", "language")] * 3
    assert re.findall(r"(\d+) tokens: (\w+)", pair)[-1] == ("22", "vision_language")
    assert "75 hidden" in shown
    compared = re.findall(r": (\d+\.\d+); guessing among (\d+) gives (\d+\.\d+)", shown)
    assert len(compared) == 4
    for loss, choices, even in compared:
        assert float(even) == pytest.approx(math.log(int(choices)), abs=0.006)
        assert float(loss) == pytest.approx(float(even), abs=0.2)
    lines = re.findall(r"^step .*$", shown, flags=re.MULTILINE)
    first, last = (dict(re.findall(r"(\w+) (\d\.\d+)", line)) for line in (lines[0], lines[-1]))
    assert float(last["itc"]) < 0.2 < 1.5 < float(first["itc"])
    assert float(last["itm_accuracy"]) > 0.8
    assert "(6, 4, 4)" in shown
    assert num_images == 1
