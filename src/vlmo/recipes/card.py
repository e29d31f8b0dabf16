"""The card of the model folder that a run leaves: what went in, and what the run measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from datasets import Dataset

from vlmo.data.sources import open_source, source_names
from vlmo.folder import DataSource, ModelCard, read_data
from vlmo.recipes.vocabulary import LEARN_VOCABULARY, start_with_words
from vlmo.released import find_model

if TYPE_CHECKING:
    from vlmo.recipes.recipe import Recipe

_MOST_LICENCES = 20
_CHUNK = 10_000


def run_card(recipe: Recipe, rows: Dataset, *, title: str | None, about: str, changed: Sequence[str] = ()) -> ModelCard:
    """The card of a run's model, without figures.

    Args:
        rows: What the run trains on.
        title: Name of the recipe.
        about: First line of the recipe's card; it is left out where settings were changed.
        changed: Names of settings that are not those of the recipe called `title`.

    Raises:
        ValueError: The card of a folder that the run starts from cannot be read.
    """
    stage, trainer = recipe.stage, recipe.trainer
    streams = recipe.data.streams.patterns
    data = [DataSource(_stream_name(pattern), stage.title, ()) for pattern in streams]
    data += [] if streams else [data_source(recipe.data.source, rows, use=stage.title)]
    if stage.reads_text and recipe.text.vocabulary == LEARN_VOCABULARY and start_with_words(recipe) is None:
        data += [data_source(name, open_source(name), use="vocabulary") for name in recipe.text.learn_from]
    for folder in (recipe.init, stage.targets):
        data += [] if folder is None else _inherited(folder)
    return ModelCard(
        stage=stage.title,
        recipe=title,
        about="" if changed else about,
        changed=tuple(changed),
        settings=f"`recipe.json` in the run folder; {trainer.max_steps} steps of {recipe.loader.global_batch_size} "
        f"examples, seed {recipe.seed}",
        start="random weights" if recipe.init is None else f"`{_folder_name(recipe.init)}`",
        data=tuple(dict.fromkeys(data)),
    )


def data_name(source: str) -> str:
    """How a card names a source: a person's own data by its last name, as the way there is nobody else's business."""
    return source if source in source_names() else Path(source).expanduser().absolute().name


def _stream_name(pattern: str) -> str:
    """The end of the way to the shards: their folder and how they are called."""
    return "/".join(pattern.rsplit("://", maxsplit=1)[-1].split("/")[-2:])


def data_source(source: str, rows: Dataset, *, use: str) -> DataSource:
    """A source with the licences that its rows state."""
    name = data_name(source)
    pairs: set[tuple[str, str]] = set()
    columns = cast(Dataset, rows.select_columns(["source", "licence"]))  # decorators hide the type
    for batch in columns.iter(batch_size=_CHUNK):
        chunk = cast(dict[str, list[str]], batch)
        pairs.update(zip(chunk["source"], chunk["licence"], strict=True))
    stated = sorted((origin, licence) for origin, licence in pairs if licence and licence != "unknown")
    licences = [licence if origin in {name, source} else f"{origin}: {licence}" for origin, licence in stated]
    if len(licences) > _MOST_LICENCES:
        licences = [*licences[:_MOST_LICENCES], f"and {len(licences) - _MOST_LICENCES} more"]
    return DataSource(name, use, tuple(dict.fromkeys(licences)))


def _inherited(folder: str) -> tuple[DataSource, ...]:
    """What went into the model of a folder; where no card tells, that is said."""
    name = _folder_name(folder)
    unknown = DataSource(name, f"whatever `{name}` was trained on: its card does not say", is_data=False)
    return read_data(find_model(folder)) or (unknown,)


def _folder_name(folder: str) -> str:
    """The end of the way to a folder: enough to tell which one."""
    return "/".join(part for part in Path(folder).parts[-3:] if part != "/")
