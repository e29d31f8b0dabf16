"""A recipe: every setting of a run, as plain frozen dataclasses."""

import dataclasses
import json
import logging
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmo.data.config import DataConfig, validate_lanes
from vlmo.data.listing import source_names
from vlmo.data.loader import LoaderConfig
from vlmo.lazy import need_package
from vlmo.model import VLMoConfig
from vlmo.tasks import Task
from vlmo.tasks.tokenizer import plain_fields
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import LoraConfig, OptimizerConfig, ScheduleConfig, TrainerConfig

logger = logging.getLogger(__name__)

LEARN_VOCABULARY = "learn"
# Settings that no pre-training stage reads.
_NOT_PRE_TRAINED = ("use_pooler", "use_match_head", "segmentation_channels", "tie_word_embeddings")
_ON_CARD_ANYWAY = {"init", "seed", "task.visual_tokenizer"}
# Hugging Face configurations cannot be frozen, nor shown as options; a plain dataclass with their fields can.
ModelConfig: Any = dataclasses.make_dataclass(
    "ModelConfig",
    plain_fields(VLMoConfig, leave_out=("pad_token_id", *_NOT_PRE_TRAINED)),
    frozen=True,
    namespace={"__module__": __name__},
)


def model_config(config: VLMoConfig) -> Any:
    """Return a preset in the form of recipes; sizes that follow from hidden_size stay unset."""
    settings = {field.name: vars(config)[field.name] for field in dataclasses.fields(ModelConfig)}
    # They follow hidden_size when a run changes it.
    for name, factor in (("intermediate_size", 4), ("projection_size", 1)):
        if settings[name] == factor * config.hidden_size:
            settings[name] = None
    return ModelConfig(**settings)


@dataclass(frozen=True)
class TextConfig:
    """Vocabulary and length of texts."""

    vocabulary: str = LEARN_VOCABULARY
    """`learn` (WordPiece, on `learn_from`), BERT's `vocab.txt` or a folder that holds it, or BEiT-3's `beit3.spm`."""
    vocab_size: int = 30522
    """Size of a vocabulary that is learned."""
    learn_from: tuple[str, ...] = ()
    """Data sets whose captions and questions a vocabulary is learned on."""
    max_length: int = 40
    """Most tokens of a text; longer ones are cut."""


@dataclass(frozen=True)
class Recipe:
    """One run. Derive variants with `dataclasses.replace`."""

    task: Task
    model: ModelConfig
    data: DataConfig
    loader: LoaderConfig
    trainer: TrainerConfig
    text: TextConfig = TextConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    init: str | None = None
    """Model folder to start from, or the name of a model (`vlmo models`)."""
    lora: LoraConfig = LoraConfig()
    """Adapters to train instead of the whole model; the run then leaves an adapter folder (`vlmo merge`)."""
    evaluate_on: str | None = None
    """Stage 3 and fine-tuning: data (a name or a path) that the model is measured on, every trainer.eval_every."""
    evaluate_split: str = "test"
    """Part of `evaluate_on`."""
    seed: int = 0
    """Seed of data order, augmentation, masks, initial weights and dropout."""

    def to_json(self) -> str:
        """Return all settings, as in `recipe.json`."""
        return json.dumps({"task_name": type(self.task).__name__} | asdict(self), indent=2)


@dataclass(frozen=True)
class Entry:
    """A row of the tables of recipes.

    Attributes:
        about: What it trains, in a sentence that follows `title`.
        expect: Numbers to expect with their conditions, or those that the paper reports.
        data: Note about the data; `{source}` stands for their name.
        command: The command that trains it; `{name}` stands for the recipe's.
        title: Model that it trains, such as "VLMo-Base,"; empty where `about` says it.
        paper: Values that the paper gives, by the path of the setting, such as "optimizer.lr".
    """

    recipe: Recipe
    about: str
    expect: str = ""
    data: str = "{source}."
    command: str = "vlmo train {name}"
    title: str = ""
    paper: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def describe(self, name: str) -> str:
        """Return the description under the recipe's name: what it trains, data, start, command, numbers."""
        recipe = self.recipe
        source = recipe.data.source or recipe.data.streams.patterns[0]
        fields = {"Data:": self.data.format(source=source)}
        tokenizer = getattr(recipe.task, "visual_tokenizer", None)
        if tokenizer:
            fields["Targets:"] = f"tokens of the visual tokenizer in {tokenizer}."
        if recipe.init:
            fields["Start:"] = f"the model folder {recipe.init}."
        teacher = getattr(recipe.task, "teacher", None)
        if teacher:
            fields["Teacher:"] = f"the model folder {teacher}."
        fields |= {"Run:": self.command.format(name=name), "Expect:": self.expect}
        wrapper = textwrap.TextWrapper(
            119, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
        )
        lines = [wrapper.fill(f"{field:<8} {value}") for field, value in fields.items() if value]
        return "\n".join([f"{self.title} {self.about}".lstrip(), *lines])


def settings(part: Any, *, defaults: bool, prefix: str = "") -> dict[str, object]:
    """Return a recipe's settings by their paths, such as "optimizer.lr"; without `defaults` those that are none."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(part):
        path = prefix + field.name
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            values |= settings(value, defaults=defaults, prefix=f"{path}.")
        elif defaults or value != field.default:
            values[path] = value
    return values


def scaled(recipe: Recipe, *, scale: float) -> Recipe:
    """Return the recipe with a share of its steps, at least one, and of its warm-up."""
    steps = max(1, round(recipe.trainer.max_steps * scale))
    warmup_steps = round(recipe.schedule.warmup_steps * scale)
    return dataclasses.replace(
        recipe,
        trainer=dataclasses.replace(recipe.trainer, max_steps=steps),
        schedule=dataclasses.replace(recipe.schedule, warmup_steps=warmup_steps),
    )


def changed_settings(original: Recipe, recipe: Recipe) -> list[str]:
    """Return dotted names of settings that differ, but for folders and the seed, which are on the card anyway."""
    from vlmo.training.checkpoint import differences

    return [
        name
        for name, _ in differences(asdict(original), asdict(recipe))
        if name not in _ON_CARD_ANYWAY
    ]


def without_void_defaults(original: Recipe, recipe: Recipe) -> Recipe:
    """Return a recipe derived from `original` without settings of that one which another setting makes void.

    Nobody gave them, so no error should ask to leave them out.
    """
    data = recipe.data
    before = original.data
    if data.source == before.source and data.streams.patterns == before.streams.patterns:
        return recipe
    # Weights are one for each source, and these sources are others.
    if data.weights == before.weights:
        data = dataclasses.replace(data, weights=())
    measured = recipe.evaluate_on
    if measured is not None and measured == original.evaluate_on and missing_sources(measured):
        logger.info(
            "%s is not there, so the run is not measured on it; --evaluate-on names other data",
            measured,
        )
        measured = None
    return dataclasses.replace(recipe, data=data, evaluate_on=measured)


def missing_sources(source: str) -> list[str]:
    """Return the parts of a data source that are no built-in set and not there."""
    from vlmo.data import builtin

    return [
        name
        for name in source_names(source)
        if name not in builtin.SETS and not Path(name).expanduser().exists()
    ]


def check_recipe(recipe: Recipe, *, processes: int) -> None:
    """Validate that settings agree with each other, with the task, and with the number of processes.

    Raises:
        ValueError: They do not; the message says what to change.
        ModuleNotFoundError: PEFT, for adapters, is not installed.
    """
    task = recipe.task
    batch = recipe.loader.global_batch_size
    has_adapters = recipe.lora.rank is not None
    # BEiT-3's images and texts alone are recipes of their own.
    for part in task.beside(recipe).values():
        check_recipe(part, processes=processes)
    _check_data(recipe, processes=processes)
    losses = getattr(task, "losses", None)
    pieces = processes * recipe.loader.accumulation
    # A batch that cannot be divided is refused where the processes are known.
    if isinstance(losses, VisionLanguageConfig) and not batch % pieces:
        losses.check_batch(batch // pieces, processes=processes)
    if recipe.init is not None and not task.reads.start:
        raise ValueError(f"init is given, but a {task.title} starts from nothing; leave it out")
    if has_adapters:
        need_package("peft", extra="lora", user="LoRA")
    if has_adapters and (recipe.init is None or task.evaluation is None):
        raise ValueError(
            "lora.rank is given; adapters need a model to start from (init), and fine-tuning or stage 3"
        )
    if has_adapters and recipe.optimizer.muon:
        raise ValueError(
            "optimizer.muon and lora.rank are given; Muon is for whole matrices: leave one of them out"
        )
    if recipe.evaluate_on is not None and task.evaluation is None:
        raise ValueError(
            f"evaluate_on is given for {task.title}; only stage 3 and fine-tuning are measured, leave it out"
        )
    if recipe.text.max_length > recipe.model.max_text_positions:
        raise ValueError(
            f"text.max_length is {recipe.text.max_length}, but the model's position tables end at "
            f"model.max_text_positions {recipe.model.max_text_positions}"
        )


def _check_data(recipe: Recipe, *, processes: int) -> None:
    data = recipe.data
    if data.streams.patterns:
        validate_lanes(data.streams, loader=recipe.loader, processes=processes)
        if data.weights:
            raise ValueError(
                "data.weights is given, but data.streams are read; give data.streams.weights instead"
            )
        if not recipe.task.reads.streams:
            raise ValueError(
                f"data.streams is given, but {recipe.task.title} does not read streams; name a data.source instead"
            )
    # Sources are joined by "+".
    sources = len(source_names(data.source))
    if data.weights and len(data.weights) != sources:
        raise ValueError(
            f"data.weights is {data.weights} for {sources} sources; give a number above 0 for each"
        )
