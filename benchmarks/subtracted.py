"""Queries with a minus: of "a star" without "red", and all other shapes and colors, how many first hits obey.

    python benchmarks/subtracted.py --models runs/seed-0/shapes-stage3/model --out subtracted.json

Scenes are those of the quickstart's test split, of two things each, in three indexes of a third each. A first hit obeys
if it shows the shape, and nothing of the color.
"""

import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from surroundings import surroundings, write_result
from vlmo.data.builtin.compose import compose
from vlmo.data.builtin.shapes import make_scene, pools, scene_row
from vlmo.retrieval import Encoder, Index, Searcher, build_index

_GALLERIES = 3


@dataclass(frozen=True)
class Options:
    """Searches scenes for a shape without a color."""

    models: tuple[str, ...]
    """Model folders of stage 3 of the quickstart."""
    scenes: int = 999
    """Scenes."""
    weights: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """Weights of the color, which is subtracted."""
    out: Path | None = None
    """JSON file for the result."""


def measure(encoder: Encoder, scenes: Sequence[Any], weights: Sequence[float]) -> dict[str, int]:
    """Return the number of first hits that obey, by the weight of the color."""
    things = [[each.thing for each in scene.objects] for scene in scenes]
    names, colors = (
        {getattr(each, kind) for scene in things for each in scene} for kind in ("name", "color")
    )
    counts = {"queries": 0} | dict.fromkeys(map(str, (0.0, *weights)), 0)
    for gallery in range(_GALLERIES):
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder) / "images"
            images.mkdir()
            for number, scene in list(enumerate(scenes))[gallery::_GALLERIES]:
                compose(scene_row("shapes", scene, captions=[])["image"]["bytes"]).save(
                    images / f"{number}.png"
                )
            build_index(encoder, [images], out=Path(folder) / "index")
            searcher = Searcher(encoder, Index(Path(folder) / "index", in_memory=True))
            for name, color in itertools.product(sorted(names), sorted(colors)):
                counts["queries"] += 1
                for weight in (0.0, *weights):
                    parts = [(color, -weight)] if weight else []
                    hit = searcher.search(
                        f"a {name}", parts=parts, top=1, rerank=0, mode="vectors"
                    ).hits[0]
                    shown = things[int(Path(hit.path).stem)]
                    obeys = any(each.name == name for each in shown) and all(
                        each.color != color for each in shown
                    )
                    counts[str(weight)] += obeys
    return counts


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print counts, and write the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    result = surroundings("subtracted.py", arguments, packages=("torch", "numpy"))
    scenes = [make_scene("test", number, pools()["test"])[0] for number in range(options.scenes)]
    result["first hits that obey, by weight"] = [
        measure(Encoder(model), scenes, options.weights) for model in options.models
    ]
    print(result["first hits that obey, by weight"])
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
