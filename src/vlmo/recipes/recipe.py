"""A recipe: everything that a run depends on, and how its parts meet."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedModel

from vlmo.data.loader import LoaderConfig, RowLoader, validate_sizes
from vlmo.data.schema import FEATURES
from vlmo.data.sources import open_source
from vlmo.data.stream import StreamLoader, open_sources, validate_lanes
from vlmo.data.validation import filter_invalid_rows
from vlmo.distributed import is_main, world_size
from vlmo.folder import need_writable, write_card
from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.objectives.vision_language import VisionLanguageConfig
from vlmo.processing import image_processor_for
from vlmo.recipes.answering_stages import QuestionStage, ReasoningStage
from vlmo.recipes.card import run_card
from vlmo.recipes.configs import DataConfig, ModelConfig, TextConfig
from vlmo.recipes.pretraining_stages import LanguageStage, TokenizerStage, VisionLanguageStage, VisionStage
from vlmo.recipes.retrieval_stage import RetrievalStage
from vlmo.recipes.stage import Run, last_measurements
from vlmo.recipes.vision_stages import ClassificationStage, SegmentationStage
from vlmo.recipes.vocabulary import build_processor
from vlmo.training import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig, Watchdog, claim_run_folder

_QUARANTINE = "quarantine.jsonl"
_TOLD_ANYWAY = {"init", "seed", "stage.visual_tokenizer"}
AnyStage = (
    TokenizerStage
    | VisionStage
    | LanguageStage
    | VisionLanguageStage
    | RetrievalStage
    | QuestionStage
    | ReasoningStage
    | ClassificationStage
    | SegmentationStage
)


@dataclass(frozen=True)
class Recipe:
    """One run. Derive variants with `dataclasses.replace`."""

    stage: Annotated[AnyStage, tyro.conf.AvoidSubcommands]
    model: ModelConfig
    data: DataConfig
    loader: LoaderConfig
    trainer: TrainerConfig
    text: TextConfig = TextConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    init: str | None = None
    """Model folder to start from, or the name of a model that comes with the package."""
    evaluate_on: str | None = None
    """Stage 3 and fine-tuning: data (a name or a path) that the model is measured on, every trainer.eval_every."""
    evaluate_split: str = "test"
    """Part of `evaluate_on`."""
    seed: int = 0
    """Of data order, augmentation, masks, initial weights and dropout."""

    def to_json(self) -> str:
        """All settings, as they stand in `recipe.json`."""
        return json.dumps({"stage_name": type(self.stage).__name__} | asdict(self), indent=2)


def scaled(recipe: Recipe, *, scale: float) -> Recipe:
    """The recipe with a share of its steps, at least one, and of its warm-up."""
    trainer, schedule = recipe.trainer, recipe.schedule
    return dataclasses.replace(
        recipe,
        trainer=dataclasses.replace(trainer, max_steps=max(1, round(trainer.max_steps * scale))),
        schedule=dataclasses.replace(schedule, warmup_steps=round(schedule.warmup_steps * scale)),
    )


def build(
    recipe: Recipe,
    *,
    run_dir: str | Path,
    console: Console | None = None,
    title: str | None = None,
    about: str = "",
    original: Recipe | None = None,
    device: str | None = None,
    watchdog: Watchdog | None = None,
) -> Trainer:
    """The trainer of a recipe, ready to `fit`; runs that exist in `run_dir` are gone on with.

    Args:
        title: Name of the recipe, before the progress bar and on the card of the model.
        about: First line of the recipe's card.
        original: The recipe of that name, where `recipe` may differ from it; the model's card then says so.
        watchdog: With several processes: entered by the caller, so that what happens in here is watched too.

    Raises:
        ValueError: Something in the recipe cannot be used; the message says what to change.
    """
    run_dir = Path(run_dir)
    check_recipe(recipe, processes=world_size())
    claim_run_folder(run_dir, recipe_json=recipe.to_json(), write=False)  # before anything is written there
    if is_main():
        need_writable(run_dir)  # and before the data are read, which may take long
    torch.manual_seed(recipe.seed)
    stage = recipe.stage
    processor = build_processor(recipe) if stage.reads_text else None
    run = Run(recipe, folder=run_dir, processor=processor, rows=_read(recipe, run_dir=run_dir, watchdog=watchdog))
    objective = stage.objective(run)
    model = cast(PreTrainedModel, objective.get_submodule("model"))
    loader = _loader(run)
    evaluators = stage.evaluators(run)
    # Now, so that what is wrong with the card of a start folder is told before the training.
    card = run_card(recipe, run.rows, title=title, about=about, changed=changed_settings(original or recipe, recipe))

    def save_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        model.save_pretrained(folder, state_dict=weights)
        if processor is not None:
            processor.save_pretrained(folder)
        elif isinstance(model, VLMoPreTrainedModel):
            image_processor_for(model.config.image_size).save_pretrained(folder)
        write_card(folder, dataclasses.replace(card, metrics=last_measurements(evaluators, run_dir=run_dir)))

    return Trainer(
        objective,
        loader,
        run_dir=run_dir,
        save_model=save_model,
        config=recipe.trainer,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        seed=recipe.seed,
        no_weight_decay={f"model.{name}" for name in model.no_weight_decay()}
        if isinstance(model, VLMoPreTrainedModel)
        else (),
        lr_scale={f"model.{name}": scale for name, scale in stage.lr_scale(model).items()},
        evaluators=evaluators,
        after_step=model.clamp_logit_scale_
        if isinstance(model, VLMoForPreTraining | VLMoForImageTextRetrieval)
        else None,
        recipe_json=recipe.to_json(),
        device=device,
        console=console,
        title=title or "training",
        watchdog=watchdog,
    )


def changed_settings(original: Recipe, recipe: Recipe) -> list[str]:
    """Dotted names of settings that differ, but for folders and the seed, which a card tells anyway."""
    return sorted(name for name in _differing(asdict(original), asdict(recipe)) if name not in _TOLD_ANYWAY)


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differing(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}"


def check_recipe(recipe: Recipe, *, processes: int) -> None:
    """Looks for settings that contradict each other, that nothing reads, or that so many processes cannot use.

    Raises:
        ValueError: There are such; the message says what to change.
    """
    stage, loader = recipe.stage, recipe.loader
    validate_sizes(loader)
    if recipe.data.streams.patterns:
        validate_lanes(recipe.data.streams, loader=loader, processes=processes)
    losses = getattr(stage, "losses", None)
    pieces = processes * loader.accumulation
    if isinstance(losses, VisionLanguageConfig) and not loader.global_batch_size % pieces:
        losses.check_batch(loader.global_batch_size // pieces, processes=processes)
    if recipe.init is not None and not stage.can_start:
        raise ValueError(f"init is given, but a {stage.title} starts from nothing; leave it out")
    if recipe.evaluate_on is not None and not stage.can_evaluate:
        raise ValueError(
            f"evaluate_on is given, but {stage.title} has nothing to be measured on it; only stage 3 and fine-tuning do"
        )
    if recipe.data.streams.patterns and not stage.can_stream:
        raise ValueError(f"data.streams is given, but {stage.title} does not read streams; name a data.source instead")
    if recipe.data.streams.patterns and recipe.data.cache_images:
        raise ValueError("data.cache_images is set, but the pictures of data.streams are not kept; leave it out")
    if recipe.trainer.eval_every is not None and recipe.evaluate_on is None:
        raise ValueError("trainer.eval_every is given without evaluate_on; name the data to evaluate on")
    if recipe.text.max_length > recipe.model.max_text_positions:
        raise ValueError(
            f"text.max_length is {recipe.text.max_length}, but the model's position tables end at "
            f"model.max_text_positions {recipe.model.max_text_positions}"
        )


def _loader(run: Run) -> RowLoader | StreamLoader:
    recipe, data = run.recipe, run.recipe.data
    if not data.streams.patterns:
        return RowLoader(recipe.stage.examples(run), config=recipe.loader, seed=recipe.seed)
    examples = recipe.stage.stream_examples(run)
    return StreamLoader(
        open_sources(data.streams.patterns, weights=data.streams.weights, folder=run.folder),
        examples,
        config=data.streams,
        loader=recipe.loader,
        seed=recipe.seed,
        quarantine=run.folder / _QUARANTINE,
        max_bad_share=data.max_bad_share,
    )


def _read(recipe: Recipe, *, run_dir: Path, watchdog: Watchdog | None) -> Dataset:
    """The rows that can be used; the others are named in the run folder's quarantine.jsonl. Of streams, no rows."""
    stage = recipe.stage
    if recipe.data.streams.patterns:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return filter_invalid_rows(
        open_source(recipe.data.source, split=recipe.data.split),
        quarantine=run_dir / _QUARANTINE,
        max_share=recipe.data.max_bad_share,
        needs_image=stage.needs_image,
        needs_caption=stage.needs_caption,
        unique_ids=stage.unique_ids,
        shared=True,
        progress=lambda: None if watchdog is None else watchdog.at("checking the data", timed=False),
    )
