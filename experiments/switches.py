"""Compare Muon with AdamW, with averages of its weights and with the sigmoid loss, at equal processor time.

    python experiments/switches.py runs/switches
    python experiments/switches.py runs/switches-icons --icons runs/findings --out experiments/switches-icons.json

All arms are contrast alone from random weights: the quickstart's, with false captions, or that of icons with names as
experiments/findings.py writes them. Steps follow from an arm's time of a
step, measured once; averages are read from Muon's runs. Settings are chosen on validation with seed 0, and seeds 1 to 5
are tested. The same command goes on.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

import findings_design as design
from findings_report import effect
from vlmo.losses.itc import caption_keys, contrast_logits, same_pairs
from vlmo.recipes import Recipe, find_recipe
from vlmo.run import build
from vlmo.tasks import VisionLanguageTask, evaluate
from vlmo.tasks.result import circumstances
from vlmo.tasks.vision_language import VisionLanguageObjective

ADAMW, MUON, AVERAGE, SIGMOID = "AdamW", "Muon", "Muon, averages", "Muon, sigmoid"
OTHERS = {ADAMW: "", MUON: ADAMW, AVERAGE: MUON, SIGMOID: MUON}
METRICS = {False: ("recall", "sides", "swaps"), True: ("recall at 10", "IR@10", "IR@1")}
"""By whether these are icons; the first is the mean of both recalls at 1, on icons at 10."""
_UNTIMED, _TIMED = 10, 50  # first steps of a run, and all steps of one that only tells their time


class Arm(NamedTuple):
    """Name, full rate and its share at the end, decay of averages, and the bias that the sigmoid loss starts with."""

    name: str
    lr: float
    end: float = 0.05
    decay: float = 0.0
    bias: float = 0.0


RATES = (2e-3, 0.05), (3e-3, 0.05), (3e-3, 0.2), (3e-3, 0.5)
TRIES = (
    *(Arm(ADAMW, *each) for each in ((1e-3, 0.05), (2e-3, 0.05), (1e-3, 0.5))),
    *(Arm(MUON, *each) for each in RATES),
    *(Arm(AVERAGE, *each, decay) for each in RATES for decay in (0.95, 0.98, 0.99)),
    *(
        Arm(SIGMOID, *each, bias=bias)
        for each, bias in ((RATES[0], -5.0), (RATES[1], -10.0), (RATES[3], -5.0))
    ),
)


def sigmoid_loss(logits: Tensor, *, same: Tensor, false: Tensor) -> Tensor:
    """Return SigLIP's loss (Zhai et al. 2023) of a batch of pairs in nats: the mean over images of sums over texts.

    `same` is True for pairs that are no negatives; `false` are logits of images with their false captions.
    """
    own = torch.eye(len(logits), dtype=torch.bool)
    losses = F.softplus(torch.where(own, -logits, logits)).masked_fill(same & ~own, 0)
    return (losses.sum() + F.softplus(false).sum()) / len(logits)


class SigmoidObjective(VisionLanguageObjective):
    """Contrast by the sigmoid loss, with SigLIP's scale of 10 at the start."""

    def __init__(self, model: Any, *, bias: float, **given: Any) -> None:
        super().__init__(model, **given)
        self.bias = nn.Parameter(torch.full((1,), bias))
        nn.init.constant_(model.contrast_head.logit_scale, math.log(10))

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the loss."""
        texts, scale = (
            (batch["input_ids"], batch["attention_mask"]),
            self.model.contrast_head.logit_scale,
        )
        (images,), (vectors,) = self.encode_images(batch["pixel_values"]), self.encode_texts(*texts)
        same = same_pairs(batch["image_ids"], caption_keys(*texts))[slice(None)]
        false = torch.zeros(0)
        if (captions := self._false_captions(batch)[0]) is not None:
            false = (scale.exp() * (images * captions.embeds).sum(dim=1) + self.bias)[
                captions.valid
            ]
        loss = sigmoid_loss(
            contrast_logits(images, vectors, logit_scale=scale) + self.bias, same=same, false=false
        )
        return {
            "loss": loss,
            "temperature": (-scale.detach()).exp()[0],
            "bias": self.bias.detach()[0],
        }


@dataclass(frozen=True)
class SigmoidTask(VisionLanguageTask):
    """Contrast by the sigmoid loss, with a bias that starts as given."""

    bias: float = -10.0

    def step(self, model: Any) -> SigmoidObjective:
        """Return the loss."""
        return SigmoidObjective(model, config=self.losses, bias=self.bias)


def recipe_of(arm: Arm, *, seed: int, steps: int, icons: Path | None = None) -> Recipe:
    """Return the recipe of an arm on scenes, or on the icons in a folder of findings."""
    base = find_recipe("shapes-contrast")
    if icons is not None:
        known = design.stage3(design.ICONS, worlds=icons)
        losses = replace(base.task.losses, itc_false_captions=False)  # a name has none
        model = replace(known.model, num_fusion_layers=0)
        base = replace(
            base,
            task=replace(base.task, losses=losses),
            model=model,
            text=known.text,
            data=known.data,
        )
    return replace(
        base,
        task=SigmoidTask(losses=base.task.losses, bias=arm.bias) if arm.bias else base.task,
        loader=replace(
            base.loader, global_batch_size=128, num_workers=0
        ),  # a worker's time would not be counted
        optimizer=replace(base.optimizer, lr=arm.lr, muon=arm.name != ADAMW),
        schedule=replace(base.schedule, warmup_steps=steps // 20, min_ratio=arm.end),
        trainer=replace(base.trainer, max_steps=steps, save_every=10_000),
        seed=seed,
        init=None,
    )


def averages(
    weights: list[Tensor], optimizer: torch.optim.Optimizer, *, decay: float
) -> list[Tensor]:
    """Return averages of the weights after each step of the optimizer, shares of earlier ones falling by `decay`."""
    means, steps = [each.detach().clone() for each in weights], itertools.count(1)

    def after_step(*_: object) -> None:
        step = next(steps)
        get_ema_multi_avg_fn(1 - (1 - decay) / (1 - decay**step))(means, weights, step)

    optimizer.register_step_post_hook(after_step)
    return means


def trial(
    arms: Sequence[Arm],
    *,
    folder: Path,
    seed: int,
    steps: int,
    split: str,
    icons: Path | None = None,
) -> list[dict[str, Any]]:
    """Train once and measure on a split, for arms that differ in the decay of the average alone."""
    shutil.rmtree(
        folder / "run", ignore_errors=True
    )  # of a command that was cut off, whose time is not known
    recipe = recipe_of(arms[0], seed=seed, steps=steps, icons=icons)
    built = build(recipe, run_dir=folder / "run", title=f"{arms}, {seed}", device="cpu")
    model: Any = built.objective.get_submodule("model")
    weights, times, found = list(model.parameters()), [time.process_time()], []
    means = {
        each.decay: averages(weights, built.optimizer, decay=each.decay)
        for each in arms
        if each.decay
    }
    built.optimizer.register_step_post_hook(lambda *_: times.append(time.process_time()))
    if (done := built.fit()).status == "stopped":
        raise SystemExit("stopped; the same command goes on")
    step = float(
        np.quantile(np.diff(times[_UNTIMED:]), 0.1)
    )  # of the quickest tenth, as other work only adds to it
    about = {
        "seed": seed,
        "steps": steps,
        "seconds": round(times[-1] - times[0], 1),
        "step": round(step, 5),
    }
    for arm in arms:
        with torch.no_grad():
            for weight, mean in zip(weights, means.get(arm.decay, weights), strict=True):
                weight.copy_(mean)
        model.save_pretrained(done.model_dir)
        found.append(arm._asdict() | about | measure(done.model_dir, split=split, icons=icons))
    return found


def measure(model: Path, *, split: str, icons: Path | None) -> dict[str, float]:
    """Return the metrics of a model, as fractions."""
    sources = (
        ("shapes", "shapes-binding") if icons is None else (str(icons / design.ICONS / "pairs"),)
    )
    pairs, *binding = (
        evaluate(model, source=each, split=split, device="cpu", rerank=0).metrics
        for each in sources
    )
    values = (pairs["ir@10"] + pairs["tr@10"]) / 2, pairs["ir@10"], pairs["ir@1"]
    if binding:
        values = (
            (pairs["ir@1"] + pairs["tr@1"]) / 2,
            binding[0]["dual[relation]"],
            binding[0]["dual[swap]"],
        )
    return dict(zip(METRICS[icons is not None], values, strict=True))


def chosen(runs: Sequence[Mapping[str, Any]], name: str) -> Arm:
    """Return the arm with this name that has the highest first metric on validation."""
    tries = [each for each in runs if each["name"] == name and each["seed"] == 0]
    first = _metrics(tries[0])[0]
    return Arm(*[max(tries, key=lambda each: each[first])[field] for field in Arm._fields])


def _metrics(run: Mapping[str, Any]) -> tuple[str, ...]:
    return next(names for names in METRICS.values() if names[0] in run)


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in percent: means, differences to the other arm with 95 % t-intervals, and the first's verdict."""
    metrics, values = _metrics(runs[0]), {}
    rows = [f"| arm | chosen | steps | seconds of a core | {' | '.join(metrics)} | better than |"]
    rows.append("| --- " * 8 + "|")
    for name, other in OTHERS.items():
        own = sorted(
            (each for each in runs if each["name"] == name and each["seed"]),
            key=lambda each: each["seed"],
        )
        values[name] = np.array([[each[metric] for metric in metrics] for each in own])
        cells, verdict = [f"{mean:.1f}" for mean in 100 * values[name].mean(axis=0)], ""
        if other:
            found = [
                effect(*(values[each][:, [column]] for each in (name, other)))
                for column in range(3)
            ]
            cells = [
                f"{cell} ({x.mean:+.1f} ± {x.t[1] - x.mean:.1f})"
                for cell, x in zip(cells, found, strict=True)
            ]
            verdict = f"{other}: {found[0].verdict}"
        settings = ", ".join(
            f"{x} {value:g}" for x, value in [*chosen(runs, name)._asdict().items()][1:] if value
        )
        seconds = " to ".join(f"{pick(each['seconds'] for each in own):.0f}" for pick in (min, max))
        rows.append(
            f"| {name} | {settings} | {own[0]['steps']:,} | {seconds} | {' | '.join(cells)} | {verdict} |"
        )
    return "\n".join(rows)


def _run_of(arm: Arm) -> Arm:
    """Return the arm that is trained: averages and Muon's own weights are read from one run."""
    return arm._replace(name=AVERAGE if arm.name == MUON else arm.name, decay=0)


def main(
    folder: Path,
    *,
    icons: Path | None = None,
    seconds: float = 50,
    out: Path = Path("experiments/switches.json"),
) -> None:
    """Train and measure what the file lacks, each run for so many seconds of a core, and show the table.

    Args:
        icons: --run-dir of findings.py, which has the world of icons; by default scenes of shapes.
    """
    if icons is not None and not (icons / design.ICONS / "pairs").is_dir():
        raise SystemExit(
            f"{icons} has no {design.ICONS}/pairs; python experiments/findings.py icons writes them"
        )
    world = design.SCENES if icons is None else design.ICONS
    known = {"seconds": seconds, "world": world, "step": {}, "runs": []}
    known |= json.loads(out.read_text()) if out.is_file() else {}
    if (known["seconds"], known["world"]) != (seconds, world):
        raise SystemExit(
            f"{out} holds runs of {known['seconds']} s on {known['world']}; name another file by --out"
        )
    if not known["step"]:
        firsts = 2 * [
            next(each for each in TRIES if each.name == name) for name in (ADAMW, AVERAGE, SIGMOID)
        ]
        timed = [
            trial([arm], folder=folder, seed=0, steps=_TIMED, split="validation", icons=icons)[0]
            for arm in firsts
        ]
        known["step"] = {
            arm.name: min(each["step"] for each in timed if each["name"] == arm.name)
            for arm in firsts
        }
    for seed in range(6):
        arms = TRIES if seed == 0 else [chosen(known["runs"], name) for name in OTHERS]
        done = [
            tuple(each[field] for field in Arm._fields)
            for each in known["runs"]
            if each["seed"] == seed
        ]
        left = sorted((each for each in arms if each not in done), key=_run_of)
        for trained, group in itertools.groupby(left, key=_run_of):
            steps, split = (
                round(seconds / known["step"][trained.name]),
                "validation" if seed == 0 else "test",
            )
            known["runs"] += trial(
                [*group], folder=folder, seed=seed, steps=steps, split=split, icons=icons
            )
            about = circumstances(folder)
            known |= {key: about[key] for key in ("date", "commit", "versions", "hardware")}
            out.write_text(json.dumps(known, indent=1) + "\n")
    print(report(known["runs"]))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.PositionalRequiredArgs,))
