"""What the card of a model folder says beyond the folder's own files, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "not known"


@dataclass(frozen=True)
class DataSource:
    """Data that went into a model.

    Attributes:
        name: Of the data set; of a person's own, the name of its file or folder, without the way there.
        use: What it was for, such as "stage 3" or "vocabulary".
        licences: Its terms; none if they are not stated.
        is_data: False for a model folder that stands for data which its card does not tell.
    """

    name: str
    use: str
    licences: tuple[str, ...] = ()
    is_data: bool = True


@dataclass(frozen=True)
class Measurement:
    """One measured value, with everything that it takes to read it.

    Attributes:
        metric: Identifier, such as `ir@1`.
        name: For people, such as "IR@1, dual encoder".
        value: A fraction; the card shows percent.
        chance: What guessing reaches; None if that is not known.
        meaning: What the value says, in one sentence.
        data: Name of the data it was measured on.
        split: Part of it.
        measured_by: Command or run that it comes from.
        date: Day of the measurement, YYYY-MM-DD.
        task: Hugging Face's name of the task, or one like it.
    """

    metric: str
    name: str
    value: float
    chance: float | None
    meaning: str
    data: str
    split: str
    measured_by: str
    date: str
    task: str = "image-text-retrieval"


@dataclass(frozen=True)
class ModelCard:
    """What a card says beyond what the folder's `config.json` says; what is left out is said to be unknown.

    Attributes:
        title: Headline; by default the recipe's name, or the class.
        stage: Which part of the training it comes from, such as "Stage 3: contrast, masked words, matching".
        recipe: Name of the recipe.
        changed: Settings that are not those of that recipe.
        about: First line of the recipe's card, or where an imported folder comes from.
        settings: File with every setting of the run.
        start: Folder that the weights started from.
        data: Everything that went in.
        licence: Of the weights, by the hub's identifier, such as "apache-2.0".
        licence_note: What else there is to say about it.
        figures: What was measured.
        limits: What to know before use, beside what every card says.
    """

    title: str | None = None
    stage: str = UNKNOWN
    recipe: str | None = None
    changed: tuple[str, ...] = ()
    about: str = ""
    settings: str | None = None
    start: str | None = None
    data: tuple[DataSource, ...] = ()
    licence: str | None = None
    licence_note: str = ""
    figures: tuple[Measurement, ...] = ()
    limits: tuple[str, ...] = ()
