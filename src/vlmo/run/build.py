"""From a recipe to a trainer: data, objective, evaluation, model card.

What reads data sets is imported where it is used: the dry run beside this file goes without its packages.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import EvalResult
from rich.console import Console
from transformers import PreTrainedModel

from vlmo.data.examples import StreamExamples
from vlmo.data.loader import JointLoader, RowLoader
from vlmo.data.rows import arrow_table
from vlmo.distributed import is_main, world_size
from vlmo.folder.atomic import write_file
from vlmo.folder.card import CardContent, DataSource, read_data, write_card
from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.processing import image_processor_for
from vlmo.recipes.schema import LEARN_VOCABULARY, Recipe, changed_settings, check_recipe
from vlmo.released import find_model
from vlmo.run.start import Start, build_processor, check_start, model_settings
from vlmo.tasks import Metric, RunContext, usage_of
from vlmo.tasks.labels import check_names
from vlmo.tasks.result import data_name
from vlmo.training import (
    Trainer,
    check_not_running,
    claim_run_folder,
    read_metrics,
    report_progress,
)
from vlmo.training.lora import add_adapters, save_adapter
from vlmo.training.trainer import BatchLoader

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BeitImageProcessor

    from vlmo.data.stream.loader import StreamLoader
    from vlmo.processing import VLMoProcessor

_QUARANTINE = "quarantine.jsonl"


def build(
    recipe: Recipe,
    *,
    run_dir: str | Path,
    console: Console | None = None,
    title: str | None = None,
    about: str = "",
    original: Recipe | None = None,
    device: str | None = None,
) -> Trainer:
    """Return the trainer of a recipe, ready to `fit`; a run that exists in `run_dir` is resumed.

    Args:
        title: Name of the recipe, before the progress bar and on the card of the model.
        about: First line of the recipe's description.
        original: The recipe of that name, if `recipe` may differ from it; the model's card then says so.

    Raises:
        ValueError: Something in the recipe cannot be used; the message says what to change.
    """
    run_dir = Path(run_dir)
    task = recipe.task
    check_recipe(recipe, processes=world_size())
    # Before anything is written there: another recipe, or a run that is going on, ends it here.
    claim_run_folder(run_dir, recipe_json=recipe.to_json(), write=False)
    if missing := check_start(recipe, original):
        raise ValueError(" ".join(missing))
    check_not_running(run_dir)

    start = Start.of(recipe)
    run, processor = _inputs(recipe, run_dir=run_dir, start=start)
    beside = [
        (name, part, _run_beside(part, run, name)) for name, part in task.beside(recipe).items()
    ]

    # Objective, with the initial weights of a recipe's seed.
    torch.manual_seed(recipe.seed)
    objective = task.objective(run)
    model = cast(PreTrainedModel, objective.get_submodule("model"))
    if recipe.lora.rank is not None:
        add_adapters(model, recipe.lora, start=_absolute(recipe.init), missing=run.missing)
    evaluator = None
    if recipe.evaluate_on is not None:
        evaluator = Evaluator(recipe, run, processor)

    # Before the training, so that a damaged card of the start folder is reported now.
    changes = changed_settings(original or recipe, recipe)
    rows_beside = [(part, context.rows) for _, part, context in beside]
    card = dataclasses.replace(
        run_card(recipe, run.rows, start, beside=rows_beside),
        recipe=title,
        about="" if changes else about,
        changed=tuple(changes),
    )
    save_model = ModelWriter(recipe, model, processor, card, evaluator)
    trainer = Trainer(
        objective,
        _loader(recipe, run, beside),
        run_dir=run_dir,
        recipe=recipe,
        save_model=save_model,
        lr_scale={f"model.{name}": scale for name, scale in task.lr_scale(model).items()},
        evaluate=evaluator,
        device=device,
        workers=recipe.loader.num_workers,
        console=console,
        title=title or "training",
    )
    if isinstance(model, VLMoForPreTraining | VLMoForImageTextRetrieval):
        # CLIP's bound on the temperature, after every update.
        trainer.optimizer.register_step_post_hook(lambda *_: model.clamp_logit_scale_())
    return trainer


def _inputs(
    recipe: Recipe, *, run_dir: Path, start: Start | None
) -> tuple[RunContext, VLMoProcessor | BeitImageProcessor]:
    """Return the rows and settings of a run, and its processor, of images alone if the task reads no texts."""
    image_processor = image_processor_for(
        recipe.model.image_size,
        aspect_patch_size=recipe.model.patch_size if recipe.data.transform.keep_aspect else None,
    )
    processor = None
    if recipe.task.reads.text:
        processor = build_processor(recipe, start)
        processor.image_processor = image_processor
    run = RunContext(
        run_dir,
        recipe.data,
        _read_rows(recipe, run_dir=run_dir),
        processor,
        model_settings(recipe, processor, start),
        init=recipe.init,
        seed=recipe.seed,
    )
    return run, processor or image_processor


@dataclasses.dataclass(frozen=True)
class ModelWriter:
    """Writer of a run's model folder: weights or adapter, configuration, processor and card."""

    recipe: Recipe
    model: PreTrainedModel
    processor: VLMoProcessor | BeitImageProcessor
    card: CardContent
    evaluator: Evaluator | None

    def __call__(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write the model with `weights`, a state dictionary of it, into an empty folder."""
        model = self.model
        is_adapted = self.recipe.lora.rank is not None
        if is_adapted:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
        else:
            model.save_pretrained(folder, state_dict=weights)
        # A visual tokenizer reads pixels as they are, and has no processor.
        if isinstance(model, VLMoPreTrainedModel) or self.recipe.task.reads.text:
            self.processor.save_pretrained(folder)
        metrics = () if self.evaluator is None else self.evaluator.measurements()
        write_card(folder, dataclasses.replace(self.card, metrics=metrics), usage_of(folder))
        if is_adapted:
            # Last, as it takes `config.json` away and adds a section to the card.
            save_adapter(folder, model, weights, start=_absolute(self.recipe.init))


def _absolute(folder: str | None) -> str:
    """Return a folder as an adapter remembers it; a name of released weights as it is, nothing as ""."""
    if folder is not None and Path(folder).is_dir():
        return str(Path(folder).absolute())
    return folder or ""


class Evaluator:
    """Evaluation of the model in training on the rows that its recipe names.

    The last metrics are kept in the run folder for the model's card: a resumed run may not measure again.
    """

    def __init__(
        self, recipe: Recipe, run: RunContext, processor: VLMoProcessor | BeitImageProcessor
    ) -> None:
        evaluation: Any = recipe.task.evaluation
        self.rows = evaluation.read(
            processor=processor,
            source=recipe.evaluate_on,
            split=recipe.evaluate_split,
            notes=run.folder,
        )
        # Class numbers of both splits must mean the same classes.
        if self.rows.names:
            source = recipe.data.source
            trained_names = evaluation(run.rows, source=source, split="train").names
            owner = f"evaluate_on {self.rows.source}"
            check_names(self.rows.names, trained_names, owner=owner, source=source)
        self.run_dir = run.folder
        self.file = run.folder / "measured.json"

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the metrics as "SPLIT/METRIC", without those of parts (`metric[part]`)."""
        metrics = self.rows.metrics(self.rows.outputs(model))
        metrics = [metric for metric in metrics if "[" not in metric.name]
        # In a file, since a run that goes on after its last evaluation writes the card without
        # measuring.
        if is_main():
            write_file(self.file, json.dumps([asdict(metric) for metric in metrics]))
        return {f"{self.rows.split}/{metric.name}": metric.value for metric in metrics}

    def measurements(self) -> tuple[EvalResult, ...]:
        """Return the last metrics for the card; none if nothing was measured."""
        # Names of evaluations have the split in front; those of steps have none.
        last_step = None
        for line in read_metrics(self.run_dir):
            if any("/" in name for name in line):
                last_step = line["step"]
        if last_step is None or not self.file.is_file():
            return ()
        metrics = [Metric(**values) for values in json.loads(self.file.read_text())]
        measured_by = f"last evaluation of the run, step {last_step}"
        return tuple(self.rows.result_of(metrics).measurements(measured_by=measured_by))


def _read_rows(recipe: Recipe, *, run_dir: Path) -> Dataset:
    """Return the valid rows, none for streams; invalid ones are listed in quarantine.jsonl of the run."""
    from datasets import Dataset

    from vlmo.data.schema import FEATURES
    from vlmo.data.sources import open_source
    from vlmo.data.validation import filter_invalid_rows

    if recipe.data.streams.patterns:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return filter_invalid_rows(
        open_source(recipe.data.source, split=recipe.data.split, weights=recipe.data.weights),
        quarantine=run_dir / _QUARANTINE,
        max_share=recipe.data.max_bad_share,
        progress=lambda: report_progress(slow=True),
        **recipe.task.reads.of_rows,
    )


def _run_beside(recipe: Recipe, run: RunContext, name: str) -> RunContext:
    """Return the context of rows or streams that a step of `run` reads beside its own, in a folder of their own."""
    folder = run.folder / name
    data = recipe.data
    rows = run.rows
    if data.streams.patterns or data.source != run.data.source:
        try:
            rows = _read_rows(recipe, run_dir=folder)
        except ValueError as error:
            raise ValueError(f"task.{name}: {error}") from error
    return dataclasses.replace(run, folder=folder, data=data, rows=rows, seed=recipe.seed)


def _loader(
    recipe: Recipe, run: RunContext, beside: Sequence[tuple[str, Recipe, RunContext]]
) -> BatchLoader:
    """Return the loader of a run, whose steps get batches of the recipes `beside` it too."""
    loader = _loader_alone(recipe, run)
    if not beside:
        return loader
    others = {name: _loader_alone(part, context) for name, part, context in beside}
    return JointLoader({"": loader} | others)


def _loader_alone(recipe: Recipe, run: RunContext) -> RowLoader | StreamLoader:
    data = recipe.data
    if not data.streams.patterns:
        return RowLoader(recipe.task.examples(run), config=recipe.loader, seed=recipe.seed)
    from vlmo.data.stream.loader import StreamLoader, open_sources

    return StreamLoader(
        open_sources(data.streams.patterns, weights=data.streams.weights, folder=run.folder),
        StreamExamples(recipe.task.contents(run)),
        config=data.streams,
        loader=recipe.loader,
        seed=recipe.seed,
        quarantine=run.folder / _QUARANTINE,
        max_bad_share=data.max_bad_share,
    )


def run_card(
    recipe: Recipe,
    rows: Dataset,
    start: Start | None,
    *,
    beside: Sequence[tuple[Recipe, Dataset]] = (),
) -> CardContent:
    """Return the card of a run's model: its stage, settings, start and data.

    `beside` are recipes that a step reads too, with their rows. ValueError if a start folder's card cannot be read.
    """
    task = recipe.task
    data: list[DataSource] = []
    for part, part_rows in [(recipe, rows), *beside]:
        if not part.data.streams.patterns:
            data.append(data_source(part.data.source, part_rows, use=task.title))
        for pattern in part.data.streams.patterns:
            # The end of a pattern: the folder of the shards and their names.
            path = pattern.rsplit("://", maxsplit=1)[-1]
            data.append(DataSource("/".join(path.split("/")[-2:]), task.title, ()))
    has_vocabulary = start is not None and start.has_vocabulary
    if task.reads.text and recipe.text.vocabulary == LEARN_VOCABULARY and not has_vocabulary:
        from vlmo.data.sources import open_source

        data += [
            data_source(name, open_source(name), use="vocabulary")
            for name in recipe.text.learn_from
        ]
    for folder in (recipe.init, task.targets):
        if folder is not None:
            name = _folder_name(folder)
            unknown = DataSource(name, f"whatever `{name}` was trained on: its card does not say")
            data += read_data(find_model(folder)) or [unknown]
    return CardContent(
        stage=task.title,
        settings=f"`recipe.json` in the run folder; {recipe.trainer.max_steps} steps of "
        f"{recipe.loader.global_batch_size} examples, seed {recipe.seed}",
        start="random weights" if recipe.init is None else f"`{_folder_name(recipe.init)}`",
        data=tuple(dict.fromkeys(data)),
    )


def data_source(source: str, rows: Dataset, *, use: str) -> DataSource:
    """Return a source with the licenses that its rows state, and the rows' own sources if they name others."""
    name = data_name(source)
    columns = ["licence", "source"]
    origins_by_license: dict[str, list[str]] = {}
    pairs = arrow_table(rows, columns).group_by(columns).aggregate([]).to_pylist()
    for pair in sorted(pairs, key=lambda pair: (pair["licence"] or "", pair["source"])):
        # An unknown license is none that a card could state.
        if pair["licence"] not in {None, "", "unknown"}:
            origins_by_license.setdefault(pair["licence"], []).append(pair["source"])
    licenses = []
    for license_name, origins in origins_by_license.items():
        is_whole = set(origins) <= {name, source}
        licenses.append(license_name if is_whole else f"{license_name}: {', '.join(origins)}")
    return DataSource(name, use, tuple(licenses))


def _folder_name(folder: str) -> str:
    return "/".join(part for part in Path(folder).parts[-3:] if part != "/")
