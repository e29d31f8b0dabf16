"""The start of a run: its folder, the vocabulary, and settings of the model that follow from both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from vlmo.checkpoints.loading import check_model_folder
from vlmo.data.rows import column
from vlmo.distributed import is_main
from vlmo.folder import JsonObject, read_config
from vlmo.folder.atomic import cached_file, keep_file
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.stages import start_from
from vlmo.processing import VLMoProcessor
from vlmo.progress import Progress
from vlmo.recipes.schema import LEARN_VOCABULARY, Recipe, TextConfig
from vlmo.released import find_model


@dataclass(frozen=True)
class Start:
    """Folder that a run starts from, with its `config.json`; an imported image model has no vocabulary."""

    path: Path
    config: JsonObject
    has_vocabulary: bool

    @classmethod
    def of(cls, recipe: Recipe) -> Start | None:
        """Return the start of a recipe, None for random weights; ValueError if it is no model folder."""
        if recipe.init is None:
            return None
        path = Path(find_model(recipe.init))
        return cls(path, read_config(path), (path / "tokenizer_config.json").is_file())


def check_start(recipe: Recipe, original: Recipe | None = None) -> list[str]:
    """Validate that the start folder fits the recipe's model and that there is a teacher, without any data.

    ValueError if one does not fit, as the run would say, or is no model folder.

    Returns:
        What to do about those that `original`, the recipe before changes, names too and that are not there yet.
    """
    lines = []
    init = recipe.init
    teacher = getattr(recipe.task, "teacher", None)
    if original is not None:
        if teacher == getattr(original.task, "teacher", None) and _is_to_come(teacher):
            lines.append(
                f"Its teacher is {teacher}, which is not there yet: train that first, or give --task.teacher."
            )
            teacher = None
        if init == original.init and _is_to_come(init):
            lines.append(
                f"It starts from {init}, which is not there yet: train that first, or give --init."
            )
            init = None
    if teacher is not None:
        try:
            check_model_folder(teacher, VLMoForImageTextRetrieval)
        except ValueError as error:
            advice = "Name another with --task.teacher, or None"
            raise ValueError(f"task.teacher: {error} {advice}") from None
    if init is not None and (start := Start.of(recipe)) is not None:
        names = ["vocab_size", "id2label"]
        if not recipe.task.reads.text:
            names.append("max_text_positions")
        settings = asdict(recipe.model)
        # The vocabulary and classes come from the start or the data, not from the recipe.
        settings |= {name: start.config[name] for name in names if name in start.config}
        # Shapes alone decide: no memory for weights, which the run loads later.
        with torch.device("meta"):
            model = recipe.task.build_model(settings)
        start_from(model, start.path)
    return lines


def _is_to_come(model: str | None) -> bool:
    return model is not None and not Path(find_model(model)).exists()


def build_processor(recipe: Recipe, start: Start | None) -> VLMoProcessor:
    """Return a processor with the start folder's vocabulary if it has one, else with the recipe's.

    Raises:
        ValueError: The vocabulary cannot be used.
    """
    if start is not None and start.has_vocabulary:
        processor = VLMoProcessor.from_pretrained(start.path)
    elif recipe.text.vocabulary.endswith(".spm"):
        processor = VLMoProcessor.from_sentencepiece(recipe.text.vocabulary)
    elif recipe.text.vocabulary != LEARN_VOCABULARY:
        processor = VLMoProcessor.from_vocabulary(recipe.text.vocabulary)
    else:
        processor = _learn_vocabulary(recipe.text)
    return processor.with_sizes(
        image_size=recipe.model.image_size, max_text_length=recipe.text.max_length
    )


def _learn_vocabulary(text: TextConfig) -> VLMoProcessor:
    """Return a processor whose vocabulary is learned from data sources, once for the same texts."""
    from vlmo.data.sources import open_source  # as in build.py

    texts: list[str] = []
    for name in text.learn_from:
        try:
            rows = open_source(name)
        except ValueError as error:
            raise ValueError(
                f"{error} The run learns its vocabulary from it: give other texts with --text.learn-from, a vocabulary "
                "with --text.vocabulary, or a start that has one with --init"
            ) from error
        for captions in column(rows, "captions"):
            texts += captions
        if "question" in rows.column_names:
            texts += column(rows, "question")
    # By what decides on the result: texts, size, and the version that learns.
    file = cached_file("vocabularies", version("tokenizers"), text.vocab_size, texts)
    if file.is_file():
        return VLMoProcessor.from_vocabulary(file)
    with Progress.on_stderr() if is_main() else Progress(None) as bar:
        bar.update(f"learning a vocabulary from {len(texts):,} texts", 0, None)
        processor = VLMoProcessor.train(texts, vocab_size=text.vocab_size)
    ids = processor.tokenizer.get_vocab()
    lines = "\n".join(sorted(ids, key=ids.__getitem__)) + "\n"
    keep_file(file, lambda path: path.write_text(lines, encoding="utf-8"))
    return processor


def model_settings(
    recipe: Recipe, processor: VLMoProcessor | None, start: Start | None
) -> JsonObject:
    """Return the recipe's settings of the model with those that follow from the vocabulary."""
    settings = asdict(recipe.model)
    config = {} if start is None else start.config
    # The text side, which the task does not read, stays the start folder's.
    if processor is None:
        for name in ("vocab_size", "max_text_positions", "pad_token_id"):
            if name in config:
                settings[name] = config[name]
        return settings
    size = processor.vocab_size
    if start is not None and start.has_vocabulary:
        # The table may have more rows than there are tokens (BEiT-3: 64,010 for 64,002).
        size = max(size, config.get("vocab_size", 0))
    return settings | {"vocab_size": size, "pad_token_id": processor.tokenizer.pad_token_id}
