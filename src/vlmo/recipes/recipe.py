"""A recipe: everything that a run depends on, and how its parts meet."""

import dataclasses
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
import tyro
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedModel

from vlmo.data.examples import Examples, ImageExamples, PairExamples, TextExamples
from vlmo.data.loader import Loader, LoaderConfig
from vlmo.data.masking import BlockMaskConfig
from vlmo.data.quarantine import keep_good
from vlmo.data.sources import open_source
from vlmo.distributed import is_main
from vlmo.folder import write_card
from vlmo.model import VLMoConfig, VLMoForMaskedImageModeling, VLMoForMaskedLM, VLMoForPreTraining
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.start import FusionStart, StartReport, start_from
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig, load_visual_tokenizer
from vlmo.objectives.pretraining import (
    LanguageObjective,
    VisionLanguageConfig,
    VisionLanguageObjective,
    VisionObjective,
)
from vlmo.objectives.tokenizer import VisualTokenizerObjective, VisualTokenizerObjectiveConfig
from vlmo.processing import TransformConfig, VLMoProcessor, train_transform
from vlmo.recipes.card import run_card
from vlmo.recipes.retrieval import Evaluator, last_measurements, read_rows
from vlmo.recipes.vocabulary import LEARN_VOCABULARY, build_processor, num_word_rows
from vlmo.training import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig, claim_run_folder

logger = logging.getLogger(__name__)

# What no pre-training stage reads.
_NOT_PRE_TRAINED = ("use_pooler", "use_match_head", "segmentation_layers", "segmentation_channels")


def _declared(config_class: type, *, leave_out: Iterable[str] = ()) -> list[tuple[str, Any, Any]]:
    """Fields that a Hugging Face configuration declares itself: (name, type, field with default)."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    return [
        (name, kind, dataclasses.field(default=fields[name].default))
        for name, kind in config_class.__annotations__.items()
        if name in fields and name not in leave_out
    ]


# Plain dataclasses with the fields of the Hugging Face configurations: those cannot be frozen, nor shown as options.
ModelConfig: Any = dataclasses.make_dataclass(
    "ModelConfig",
    _declared(VLMoConfig, leave_out=("pad_token_id", *_NOT_PRE_TRAINED)),
    frozen=True,
    namespace={"__module__": __name__},
)
VisualTokenizerConfig: Any = dataclasses.make_dataclass(
    "VisualTokenizerConfig", _declared(VQVisualTokenizerConfig), frozen=True, namespace={"__module__": __name__}
)


def model_config(config: VLMoConfig) -> Any:
    """The recipe's form of a preset; sizes that follow from hidden_size are left to follow it."""
    settings = {field.name: vars(config)[field.name] for field in dataclasses.fields(ModelConfig)}
    for name, factor in (("intermediate_size", 4), ("projection_size", 1)):
        if settings[name] == factor * config.hidden_size:
            settings[name] = None
    return ModelConfig(**settings)


@dataclass(frozen=True)
class TextConfig:
    """From words to ids."""

    vocabulary: str = LEARN_VOCABULARY
    """`learn` (WordPiece, on `learn_from`), or BERT's `vocab.txt` or a folder that holds it."""
    vocab_size: int = 30522
    """Size of a vocabulary that is learnt."""
    learn_from: tuple[str, ...] = ()
    """Data sets whose captions a vocabulary is learnt on."""
    max_length: int = 40
    """Most tokens of a text; longer ones are cut."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is made ready."""

    source: str
    """A built-in name or a path (docs/data.md)."""
    split: str = "train"
    """Part of the source."""
    transform: TransformConfig = TransformConfig()
    """Augmentation; its image_size follows the model's."""
    mlm_probability: float = 0.15
    """Share of text tokens that are masked, as whole words."""
    max_bad_share: float = 0.01
    """Share of unreadable samples above which the run does not start."""
    cache_images: bool = False
    """Keep decoded pictures in memory (small sets)."""

    def __post_init__(self) -> None:
        if not 0 < self.mlm_probability <= 1 or not 0 <= self.max_bad_share <= 1:
            raise ValueError(
                f"mlm_probability is {self.mlm_probability} and max_bad_share {self.max_bad_share}; give shares, "
                "from 0 to 1 (the former above 0)"
            )


@dataclass(frozen=True)
class TokenizerStage:
    """Trains the visual tokenizer whose tokens stage 1 predicts."""

    title: ClassVar[str] = "visual tokenizer"
    tokenizer: VisualTokenizerConfig = VisualTokenizerConfig()
    """Sizes of the tokenizer."""
    losses: VisualTokenizerObjectiveConfig = VisualTokenizerObjectiveConfig()
    """Weights of its losses."""


@dataclass(frozen=True)
class VisionStage:
    """Stage 1, masked image modelling."""

    title: ClassVar[str] = "stage 1, masked image modelling"
    visual_tokenizer: str
    """Model folder of a visual tokenizer, or of DALL-E's (`FlavaImageCodebook`)."""
    masked_share: float = 75 / 196
    """Share of patches that are masked, in blocks."""

    def __post_init__(self) -> None:
        if not 0 < self.masked_share < 1:
            raise ValueError(f"masked_share is {self.masked_share}; give a share between 0 and 1")


@dataclass(frozen=True)
class LanguageStage:
    """Stage 2, masked language modelling."""

    title: ClassVar[str] = "stage 2, masked language modelling"
    freeze: bool = True
    """Keep attention and vision experts as stage 1 left them."""


@dataclass(frozen=True)
class VisionLanguageStage:
    """Stage 3, contrast, masked language modelling and matching."""

    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    losses: VisionLanguageConfig = VisionLanguageConfig()
    """Weights and switches."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""


Stage = TokenizerStage | VisionStage | LanguageStage | VisionLanguageStage


@dataclass(frozen=True)
class Recipe:
    """One run. Derive variants with `dataclasses.replace`."""

    stage: Annotated[Stage, tyro.conf.AvoidSubcommands]
    model: ModelConfig
    data: DataConfig
    loader: LoaderConfig
    trainer: TrainerConfig
    text: TextConfig = TextConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    init: str | None = None
    """Model folder to start from."""
    evaluate_on: str | None = None
    """Stage 3: pairs (a name or a path) whose `test` part the dual encoder is measured on, every trainer.eval_every."""
    seed: int = 0
    """Of data order, augmentation, masks, initial weights and dropout."""

    def to_json(self) -> str:
        """All settings, as they stand in `recipe.json`."""
        return json.dumps({"stage_name": type(self.stage).__name__} | asdict(self), indent=2)


def build(
    recipe: Recipe,
    *,
    run_dir: str | Path,
    console: Console | None = None,
    title: str | None = None,
    about: str = "",
    device: str | None = None,
) -> Trainer:
    """The trainer of a recipe, ready to `fit`; runs that exist in `run_dir` are gone on with.

    Args:
        title: Name of the recipe, before the progress bar and on the card of the model.
        about: First line of the recipe's card.

    Raises:
        ValueError: Something in the recipe cannot be used; the message says what to change.
    """
    run_dir = Path(run_dir)
    _check(recipe)
    claim_run_folder(run_dir, recipe_json=recipe.to_json(), write=False)  # before anything is written there
    torch.manual_seed(recipe.seed)
    processor = None if isinstance(recipe.stage, TokenizerStage) else build_processor(recipe)
    data = _read(recipe, run_dir=run_dir)
    objective = _objective(recipe, processor, run_dir=run_dir)
    model = cast(PreTrainedModel, objective.get_submodule("model"))
    loader = Loader(_examples(recipe, data, processor), config=recipe.loader, seed=recipe.seed)
    evaluators = _evaluators(recipe, processor, run_dir=run_dir)
    targets = recipe.stage.visual_tokenizer if isinstance(recipe.stage, VisionStage) else None
    # Now, so that what is wrong with the card of a start folder is told before the training.
    card = run_card(recipe, data, title=title, about=about, targets=targets, has_words=processor is not None)

    def save_model(folder: Path) -> None:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        write_card(folder, dataclasses.replace(card, figures=last_measurements(evaluators, run_dir=run_dir)))

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
        evaluators=evaluators,
        after_step=model.clamp_logit_scale_ if isinstance(model, VLMoForPreTraining) else None,
        recipe_json=recipe.to_json(),
        device=device,
        console=console,
        title=title or "training",
    )


def _check(recipe: Recipe) -> None:
    """Settings that contradict each other, or that this stage would not read."""
    if isinstance(recipe.stage, TokenizerStage) and recipe.init is not None:
        raise ValueError("init is given, but a visual tokenizer starts from nothing; leave it out")
    if recipe.evaluate_on is not None and not isinstance(recipe.stage, VisionLanguageStage):
        raise ValueError("evaluate_on is given, but only stage 3 has a dual encoder to evaluate; leave it out")
    if recipe.trainer.eval_every is not None and recipe.evaluate_on is None:
        raise ValueError("trainer.eval_every is given without evaluate_on; name the pairs to evaluate on")
    if recipe.text.max_length > recipe.model.max_text_positions:
        raise ValueError(
            f"text.max_length is {recipe.text.max_length}, but the model's position tables end at "
            f"model.max_text_positions {recipe.model.max_text_positions}"
        )


def _read(recipe: Recipe, *, run_dir: Path) -> Dataset:
    """The rows that can be used; the others are named in the run folder's quarantine.jsonl."""
    return keep_good(
        open_source(recipe.data.source, split=recipe.data.split),
        quarantine=run_dir / "quarantine.jsonl",
        max_share=recipe.data.max_bad_share,
        needs_image=not isinstance(recipe.stage, LanguageStage),
        needs_caption=isinstance(recipe.stage, LanguageStage | VisionLanguageStage),
    )


def _evaluators(recipe: Recipe, processor: VLMoProcessor | None, *, run_dir: Path) -> list[Evaluator]:
    if recipe.evaluate_on is None or processor is None or not isinstance(recipe.stage, VisionLanguageStage):
        return []
    quarantine = run_dir / "test.quarantine.jsonl"
    rows = read_rows(recipe.evaluate_on, split="test", processor=processor, quarantine=quarantine)
    return [Evaluator(rows, source=recipe.evaluate_on, split="test")]


def _examples(recipe: Recipe, data: Dataset, processor: VLMoProcessor | None) -> Examples:
    config, seed = recipe.data, recipe.seed
    transform = train_transform(dataclasses.replace(config.transform, image_size=recipe.model.image_size))
    pictures: dict[str, Any] = {"transform": transform, "seed": seed, "cache_images": config.cache_images}
    if processor is None:
        return ImageExamples(data, **pictures)
    if isinstance(recipe.stage, VisionStage):
        return ImageExamples(data, **pictures, mask=_block_mask(recipe, recipe.stage))
    if isinstance(recipe.stage, LanguageStage):
        return TextExamples(data, tokenizer=processor.tokenizer, seed=seed, mlm_probability=config.mlm_probability)
    return PairExamples(data, tokenizer=processor.tokenizer, mlm_probability=config.mlm_probability, **pictures)


def _block_mask(recipe: Recipe, stage: VisionStage) -> BlockMaskConfig:
    side = recipe.model.image_size // recipe.model.patch_size
    mask = BlockMaskConfig.for_grid(side, width=side)
    return dataclasses.replace(mask, num_masked=round(stage.masked_share * side * side))


def _objective(recipe: Recipe, processor: VLMoProcessor | None, *, run_dir: Path) -> torch.nn.Module:
    stage = recipe.stage
    if isinstance(stage, TokenizerStage):
        model = VQVisualTokenizer(VQVisualTokenizerConfig(**asdict(stage.tokenizer)))
        return VisualTokenizerObjective(model, config=stage.losses)
    settings = asdict(recipe.model)
    if processor is not None:
        settings["vocab_size"] = num_word_rows(recipe, processor)
        settings["pad_token_id"] = processor.tokenizer.pad_token_id
    if isinstance(stage, VisionStage):
        tokenizer = load_visual_tokenizer(stage.visual_tokenizer)
        settings["num_visual_tokens"] = tokenizer.num_tokens
        model = VLMoForMaskedImageModeling(VLMoConfig(**settings))
        _start(model, recipe, run_dir=run_dir)
        return VisionObjective(model, tokenizer=tokenizer)
    if isinstance(stage, LanguageStage):
        model = VLMoForMaskedLM(VLMoConfig(**settings))
        _start(model, recipe, run_dir=run_dir)
        return LanguageObjective(model, freeze=stage.freeze)
    model = VLMoForPreTraining(VLMoConfig(**settings))
    _start(model, recipe, run_dir=run_dir, fusion_experts_from=stage.fusion_experts_from)
    return VisionLanguageObjective(model, config=stage.losses)


def _start(
    model: VLMoPreTrainedModel, recipe: Recipe, *, run_dir: Path, fusion_experts_from: FusionStart = "language"
) -> None:
    """Loads the start folder, and lists in `start.txt` what it did not hold."""
    if recipe.init is None:
        return
    report: StartReport = start_from(model, recipe.init, fusion_experts_from=fusion_experts_from)
    if is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "start.txt").write_text("\n".join(report.lines()) + "\n")
    logger.info(
        "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there (see %s)",
        recipe.init, len(report.loaded), len(report.resized), len(report.filled), len(report.missing),
        run_dir / "start.txt",
    )  # fmt: skip
