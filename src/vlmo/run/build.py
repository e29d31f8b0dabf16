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
from vlmo.training import Trainer, claim_run_folder, lock_run, read_metrics, report_progress
from vlmo.training.lora import add_adapters, save_adapter

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.data.stream.loader import StreamLoader

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
    run_dir, task = Path(run_dir), recipe.task
    check_recipe(recipe, processes=world_size())
    claim_run_folder(run_dir, recipe_json=recipe.to_json(), write=False)  # before anything is written there
    if missing := check_start(recipe, original):
        raise ValueError(" ".join(missing))
    with lock_run(run_dir):
        pass  # `fit` holds it; a second run of the folder, or one without the right to write, ends here
    torch.manual_seed(recipe.seed)
    aspect_patch_size = recipe.model.patch_size if recipe.data.transform.keep_aspect else None
    images = image_processor_for(recipe.model.image_size, aspect_patch_size=aspect_patch_size)
    processor = build_processor(recipe) if task.reads.text else None
    if processor is not None:
        processor.image_processor = images
    rows = _read_rows(recipe, run_dir=run_dir)
    settings = model_settings(recipe, processor)
    run = RunContext(run_dir, recipe.data, rows, processor, settings, init=recipe.init, seed=recipe.seed)
    beside = {name: (part, _run_beside(part, run, name)) for name, part in task.beside(recipe).items()}
    objective = task.objective(run)
    model = cast(PreTrainedModel, objective.get_submodule("model"))
    start, adapted = recipe.init or "", recipe.lora.rank is not None
    if start and Path(start).is_dir():
        start = str(Path(start).absolute())
    if adapted:
        add_adapters(model, recipe.lora, start=start, missing=run.missing)
    loader: Any = _loader(recipe, run)
    if beside:
        loader = JointLoader({"": loader} | {name: _loader(*of_part) for name, of_part in beside.items()})
    evaluator = None if recipe.evaluate_on is None else Evaluator(recipe, run, processor or images)
    # Before the training, so that a damaged card of the start folder is reported now.
    changed = changed_settings(original or recipe, recipe)
    card = dataclasses.replace(
        run_card(recipe, rows, beside=[(part, of_part.rows) for part, of_part in beside.values()]),
        recipe=title,
        about="" if changed else about,
        changed=tuple(changed),
    )

    def save_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        if adapted:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
        else:
            model.save_pretrained(folder, state_dict=weights)
        if processor is not None:
            processor.save_pretrained(folder)
        elif isinstance(model, VLMoPreTrainedModel):
            images.save_pretrained(folder)
        measured = () if evaluator is None else evaluator.measurements()
        write_card(folder, dataclasses.replace(card, metrics=measured), usage_of(folder))
        if adapted:
            save_adapter(folder, model, weights, start=start)

    trainer = Trainer(
        objective,
        loader,
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
        trainer.optimizer.register_step_post_hook(lambda *_: model.clamp_logit_scale_())
    return trainer


class Evaluator:
    """Measures the model in training on the rows that its recipe names.

    What is known of the metrics is kept in the run folder for the model's card: a resumed run may not measure again.
    """

    def __init__(self, recipe: Recipe, run: RunContext, processor: Any) -> None:
        evaluation: Any = recipe.task.evaluation
        given = {"source": recipe.evaluate_on, "split": recipe.evaluate_split, "notes": run.folder}
        self.rows = evaluation.read(processor=processor, **given)
        if names := self.rows.names:
            own = evaluation(run.rows, source=recipe.data.source, split="train").names
            check_names(names, own, owner=f"evaluate_on {self.rows.source}", source=recipe.data.source)
        self.run_dir, self.file = run.folder, run.folder / "measured.json"

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the metrics as "SPLIT/METRIC", without those of parts (`metric[part]`)."""
        metrics = self.rows.metrics(self.rows.outputs(model))
        whole = [each for each in metrics if "[" not in each.name]
        if is_main():
            write_file(self.file, json.dumps([asdict(each) for each in whole]))
        return {f"{self.rows.split}/{each.name}": each.value for each in whole}

    def measurements(self) -> tuple[EvalResult, ...]:
        """Return the last metrics for the card; none if nothing was measured."""
        steps = [line["step"] for line in read_metrics(self.run_dir) if any("/" in name for name in line)]
        if not steps or not self.file.is_file():
            return ()
        result = self.rows.result_of([Metric(**facts) for facts in json.loads(self.file.read_text())])
        return tuple(result.measurements(measured_by=f"last evaluation of the run, step {steps[-1]}"))


def _read_rows(recipe: Recipe, *, run_dir: Path) -> Dataset:
    """Return the valid rows; invalid ones are listed in the run folder's quarantine.jsonl. Streams have no rows yet."""
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
        shared=True,
        progress=lambda: report_progress(slow=True),
        **recipe.task.reads.of_rows,
    )


def _run_beside(recipe: Recipe, run: RunContext, name: str) -> RunContext:
    """Return the context of rows or streams that a step of `run` reads beside its own, in a folder of their own."""
    folder, data, rows = run.folder / name, recipe.data, run.rows
    if data.streams.patterns or data.source != run.data.source:
        try:
            rows = _read_rows(recipe, run_dir=folder)
        except ValueError as error:
            raise ValueError(f"task.{name}: {error}") from error
    return dataclasses.replace(run, folder=folder, data=data, rows=rows, seed=recipe.seed)


def _loader(recipe: Recipe, run: RunContext) -> RowLoader | StreamLoader:
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


def run_card(recipe: Recipe, rows: Dataset, *, beside: Sequence[tuple[Recipe, Dataset]] = ()) -> CardContent:
    """Return the card of a run's model: its stage, settings, start and data, with those that it reads `beside`.

    Raises:
        ValueError: The card of a folder that the run starts from cannot be read.
    """
    task, data, start = recipe.task, list[DataSource](), Start.of(recipe)
    for part, of_part in [(recipe, rows), *beside]:
        streams = part.data.streams.patterns
        # The end of a pattern: the folder of the shards and their names.
        names = ["/".join(pattern.rsplit("://", maxsplit=1)[-1].split("/")[-2:]) for pattern in streams]
        data += [DataSource(name, task.title, ()) for name in names]
        data += [] if streams else [data_source(part.data.source, of_part, use=task.title)]
    if task.reads.text and recipe.text.vocabulary == LEARN_VOCABULARY and not (start and start.has_vocabulary):
        from vlmo.data.sources import open_source

        data += [data_source(name, open_source(name), use="vocabulary") for name in recipe.text.learn_from]
    for folder in filter(None, (recipe.init, task.targets)):
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
    """Return a source with the licences that its rows state, each with the sources of its rows if they name others."""
    name, origins = data_name(source), dict[str, list[str]]()
    columns = ["licence", "source"]
    pairs = arrow_table(rows, columns).group_by(columns).aggregate([]).to_pylist()
    stated = [(each["licence"], each["source"]) for each in pairs if each["licence"] not in {None, "", "unknown"}]
    for licence, origin in sorted(stated):
        origins.setdefault(licence, []).append(origin)
    licences = [
        licence if set(names) <= {name, source} else f"{licence}: {', '.join(names)}"
        for licence, names in origins.items()
    ]
    return DataSource(name, use, tuple(licences))


def _folder_name(folder: str) -> str:
    return "/".join(part for part in Path(folder).parts[-3:] if part != "/")
