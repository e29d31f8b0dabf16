"""Fine-tune the quickstart's models for captions, and compare captions of new scenes with all true descriptions.

    python experiments/captions.py runs/quickstart-seeds/seed-{0,1,2,3,4} --out experiments/captions.json

Each folder is that of a quickstart. The run of captions lies in it as `shapes-captioning`; the same command goes on.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from rich.console import Console

from vlmo.data.builtin.scenes import RELATED, WORDS, Phrase, Scene
from vlmo.data.builtin.shapes import _COLORS, _FORMS, _NAMES, make_scene, pools
from vlmo.data.decoding import decode_image
from vlmo.data.sources import open_source
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import scaled
from vlmo.run import build
from vlmo.tasks import CaptioningTask
from vlmo.tasks.captioning import describe
from vlmo.tasks.result import circumstances

_THING = re.compile(f"({'|'.join(_COLORS)}) ({'|'.join(_NAMES)})")


@dataclass(frozen=True)
class Options:
    """Quickstarts to start from, and the run of captions."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of quickstarts, one a seed."""
    out: Path = Path("experiments/captions.json")
    """JSON file for the shares of all seeds."""
    scale: float = 1.0
    """Share of the recipe's steps."""
    limit: int = 1000
    """Test scenes."""


def true_captions(scene: Scene) -> set[str]:
    """Return every true description in the wordings of training: by places, by a relation, or by both."""
    placed = sorted(scene.objects, key=lambda each: (each.thing.color or "", each.thing.name))
    texts = {
        " and ".join(
            str(Phrase(each.thing.name, each.thing.color, where=each.where)) for each in placed
        )
    }
    for pair in itertools.permutations(scene.objects, 2):
        relation = pair[0].relation_to(pair[1])
        for form, where, words in itertools.product(
            RELATED, (False, True), WORDS.get(relation or "", ())
        ):
            phrases = [
                Phrase(one.thing.name, one.thing.color, where=one.where if where else None)
                for one in pair
            ]
            texts.add((form % words).format(*phrases))
    return {
        form.format(text)
        for text in texts
        for form in _FORMS["verb" if " is " in text else "no verb"]
    }


def shares(model: Any, processor: Any, *, limit: int, hidden: bool = False) -> dict[str, float]:
    """Return the shares of test scenes whose caption is a true one, and names the right things in their colors."""
    rows = open_source("shapes", split="test")
    rows = rows.select(range(min(limit, len(rows))))
    exact = things = 0
    for start in range(0, len(rows), 100):
        batch: Any = rows[start : start + 100]
        images = [decode_image(cell) for cell in batch["image"]]
        images = (
            [Image.new("RGB", each.size, (128, 128, 128)) for each in images] if hidden else images
        )
        with torch.inference_mode():
            captions = describe(model, processor, images)
        for name, caption in zip(batch["image_id"], captions, strict=True):
            scene, _ = make_scene("test", int(name.rpartition("/")[2]), pools()["test"])
            exact += caption in true_captions(scene)
            things += set(_THING.findall(caption)) == {
                (each.thing.color, each.thing.name) for each in scene.objects
            }
    return {"exact": exact / len(rows), "things": things / len(rows)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure each seed, and write the result."""
    options = tyro.cli(Options, args=list(sys.argv[1:] if arguments is None else arguments))
    seeds: dict[str, Any] = {}
    for number, folder in enumerate(options.folders):
        recipe = scaled(find_recipe("shapes-captioning"), scale=options.scale)
        start = str(folder / "shapes-stage3" / "model")
        recipe = replace(recipe, init=start, evaluate_on=None, seed=number)
        run = folder / "shapes-captioning"
        trained = build(
            recipe, run_dir=run, console=Console(), title="shapes-captioning", device="cpu"
        ).fit()
        model, processor = CaptioningTask.load(trained.model_dir, device="cpu")
        found = {"image": shares(model, processor, limit=options.limit)}
        found["hidden"] = shares(model, processor, limit=options.limit, hidden=True)
        seeds[folder.name] = found
        around = circumstances(trained.model_dir)
        about = {
            name: around[name] for name in ("date", "commit", "versions", "hardware", "training")
        }
        result = about | {
            "steps": recipe.trainer.max_steps,
            "scenes": options.limit,
            "seeds": seeds,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        Console().print(folder.name, found)


if __name__ == "__main__":
    main()
