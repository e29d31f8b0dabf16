"""Notebooks as pages: their cells, and what these give when the site is built."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

SOURCES = Path(__file__).resolve().parents[1] / "src"
LIMIT_S = 600
"""For one cell; they take seconds, but on a machine that is busy."""
NOTE = """!!! note ""

    A notebook, [`{file}`]({file}): run it with Jupyter from a checkout, or read it here, with what its cells gave when
    the site was built.
"""


def read(file: Path) -> NotebookNode:
    """A notebook as it is committed."""
    return nbformat.read(file, as_version=4)


def executed(book: NotebookNode) -> NotebookNode:
    """The notebook with outputs, run from top to bottom in an empty folder that is gone afterwards.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the message holds it and its traceback.
    """
    # The folder is no checkout, so a relative path to the sources would lead nowhere.
    sources = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        place = {"metadata": {"path": folder}}
        # Through files: a port that was free when it was chosen may be another program's a moment later.
        reached = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        client = NotebookClient(book, timeout=LIMIT_S, resources=place, config=reached)
        # One thread: with several, a busy machine makes the small trainings of a notebook ten times slower.
        return client.execute(env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": sources})


def all_executed(files: Iterable[Path]) -> list[NotebookNode]:
    """Several notebooks, run side by side."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda file: executed(read(file)), files))


def page(book: NotebookNode, *, name: str, file: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and the images that it shows by their paths in the site.

    Args:
        name: Of the page, without its suffix; begins the names of the images.
        file: Where the notebook is in the repository, as a link from itself.
    """
    parts, images = [], {}
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if number == 0:
                parts.append(NOTE.format(file=file))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        # Printed lines arrive in pieces; what goes to stderr are bars and warnings.
        printed = "".join(
            output.text for output in cell.outputs if output.get("name") == "stdout"
        ).strip("\n")
        values = [output.data for output in cell.outputs if output.output_type == "execute_result"]
        if printed:
            parts.append(f"```text\n{printed}\n```")
        for value in values:
            if "image/png" in value:
                path = f"notebooks/{name}-{len(images) + 1}.png"
                images[path] = base64.b64decode(value["image/png"])
                # As HTML, since mkdocs would look for the file beside the notebook.
                parts.append(f'<p><img src="{path}" alt="{escape(cell.metadata.alt)}"></p>')
            else:
                parts.append(f"```text\n{value['text/plain']}\n```")
    return "\n\n".join(parts) + "\n", images
