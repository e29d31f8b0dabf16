"""`vlmo evaluate`, `vlmo predict` and `vlmo data`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vlmo.cli.parsing import (
    Device,
    ModelFolder,
    RerankerEngines,
    RerankerOptions,
    check_given,
    check_new_file,
)
from vlmo.released import find_model, is_released, notes_folder
from vlmo.tasks.inputs import Inputs
from vlmo.terminal import escaped, say, say_json

if TYPE_CHECKING:
    from vlmo.tasks.result import TaskResult

_STDERR = Console(stderr=True)
_Images = tyro.conf.Positional[tuple[Path, ...]]


@dataclass(frozen=True)
class MeasureOptions:
    """Task and rows that a model is measured on.

    Attributes:
        task: retrieval, vqa, nlvr2, classification, segmentation or captioning; by default the model's.
        data: A built-in name or a path (docs/data.md), such as a folder of vlmo data prepare; retrieval: emoji-pairs.
        split: Part of the data; by default test, and to choose the weight validation.
        limit: Read the first rows only.
        batch_size: Rows that go through the model at a time; by default the task's.
    """

    task: str | None = None
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class RerankOptions:
    """Share of the fusion encoder in the order of candidates.

    Attributes:
        rerank: retrieval: candidates of each query that the fusion encoder reorders (16; 0 leaves it out).
        rerank_weight: retrieval: share of the matching score in the new order, 0 to 1; by default the model's.
        choose_rerank_weight: retrieval: measure recall by weight on a split that was neither trained on nor is measured
            on afterwards, and keep the best of each direction in config.json.
    """

    rerank: int | None = None
    rerank_weight: float | None = None
    choose_rerank_weight: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError before the data are read."""
        if not 0 <= (self.rerank_weight or 0) <= 1 or (self.rerank or 0) < 0:
            raise ValueError(
                f"--rerank is {self.rerank} and --rerank-weight {self.rerank_weight}; give 0 or more, and 0 to 1"
            )


@dataclass(frozen=True)
class ResultOptions:
    """Files that a measurement writes.

    Attributes:
        submission: vqa: write the file that the evaluation server takes instead of measuring.
        out: JSON file for metrics and predictions; by default evaluation_TASK_DATA_SPLIT.json in the model folder, or
            here if the model was given by a name.
        write_card: Put the metrics into the folder's README.md.
    """

    submission: Path | None = None
    out: Path | None = None
    write_card: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a file that cannot be written."""
        check_new_file(self.out, option="--out")
        check_new_file(self.submission, option="--submission")


@dataclass(frozen=True)
class ZeroShotOptions:
    """Images with classes for a dual encoder, whose class names it reads as texts.

    Attributes:
        zero_shot: Images with classes: a folder of a folder for each class, or a table; by default all rows of data
            without splits. MODEL_FOLDER may be a CLIP or SigLIP of transformers.
        classes: Text file with a class name a line, by number (folders in the order of their names); by default the
            data's names.
        templates: Text file with a template a line, {} where the name goes; by default "a photo of a {}."
    """

    zero_shot: str | None = None
    classes: Path | None = None
    templates: Path | None = None


def evaluate(
    folder: ModelFolder,
    *,
    rows: Annotated[MeasureOptions, tyro.conf.arg(name="")] = MeasureOptions(),
    zero_shot: Annotated[ZeroShotOptions, tyro.conf.arg(name="")] = ZeroShotOptions(),
    reranking: Annotated[RerankOptions, tyro.conf.arg(name="")] = RerankOptions(),
    results: Annotated[ResultOptions, tyro.conf.arg(name="")] = ResultOptions(),
    device: Device = None,
) -> None:
    """Measure a model: vlmo evaluate MODEL_FOLDER [--task NAME] [--data NAME|DIR] [--split NAME]."""
    # A published model lies in the cache, for all commands that use it by its name.
    path = Path(find_model(folder))
    chooses = reranking.choose_rerank_weight
    if is_released(path) and (results.write_card or chooses):
        raise ValueError(
            f"{folder} is a published model and stays as it is; copy {path}, and evaluate the copy"
        )
    from vlmo.distributed import is_main
    from vlmo.tasks import write_submission
    from vlmo.training import launch

    if zero_shot.zero_shot is not None:
        _measure_zero_shot(path, zero_shot.zero_shot, zero_shot, rows, results, device=device)
        return
    # A weight must not be chosen on the rows that the model is measured on.
    split = rows.split or ("validation" if chooses else "test")
    with launch(device) as chosen:
        if chooses:
            _choose(path, rows, reranking, split=split, device=str(chosen))
        elif results.submission is not None:
            number = write_submission(
                path,
                results.submission,
                task=rows.task,
                source=rows.data,
                split=split,
                device=str(chosen),
                console=_progress_console(),
            )
            if is_main():
                say(f"{number} predictions in {results.submission}")
        else:
            _measure(path, rows, reranking, results, split=split, device=str(chosen))


def _progress_console() -> Console | None:
    """Return where progress is shown: one process of several shows it."""
    from vlmo.distributed import is_main

    return _STDERR if is_main() else None


def _measure(
    folder: Path,
    rows: MeasureOptions,
    reranking: RerankOptions,
    results: ResultOptions,
    *,
    split: str,
    device: str,
) -> None:
    """Measure a model; print its metrics, and write them with the predictions."""
    from vlmo.distributed import is_main
    from vlmo.tasks import evaluate as measure

    result = measure(
        folder,
        task=rows.task,
        source=rows.data,
        split=split,
        limit=rows.limit,
        batch_size=rows.batch_size,
        device=device,
        console=_progress_console(),
        rerank=reranking.rerank,
        rerank_weight=reranking.rerank_weight,
    )
    # All processes measure, one writes.
    if not is_main():
        return
    _show(result, results.out, folder=folder)
    if results.write_card:
        result.write_card(folder, measured_by=f"`{_command(rows, reranking, split=split)}`")


def _show(result: TaskResult, out: Path | None, *, folder: Path) -> None:
    """Print a result, and write it with its predictions."""
    from vlmo.tasks.result import data_name

    Console().print(result.table())
    names = [result.task, _plain(data_name(result.source)), _plain(result.split)]
    out = out or notes_folder(folder) / f"evaluation_{'_'.join(names)}.json"
    result.write_json(out, folder=folder)
    say(f"metrics and {len(result.predictions)} predictions in {out}")


def _measure_zero_shot(
    folder: Path,
    source: str,
    zero_shot: ZeroShotOptions,
    rows: MeasureOptions,
    results: ResultOptions,
    *,
    device: str | None,
) -> None:
    for option, value in (
        ("--task", rows.task),
        ("--data", rows.data),
        ("--submission", results.submission),
        ("--write-card", results.write_card),
    ):
        if value:
            raise ValueError(f"{option} does not go with --zero-shot; leave one of them out")
    from vlmo.retrieval import Encoder
    from vlmo.zero_shot import DEFAULT_TEMPLATES, evaluate_zero_shot, read_lines

    classes = None if zero_shot.classes is None else read_lines(zero_shot.classes)
    templates: Sequence[str] = DEFAULT_TEMPLATES
    if zero_shot.templates is not None:
        templates = read_lines(zero_shot.templates)
    result = evaluate_zero_shot(
        Encoder(folder, device=device),
        source,
        split=rows.split or "test",
        classes=classes,
        templates=templates,
        limit=rows.limit,
        console=_STDERR,
    )
    _show(result, results.out, folder=folder)


def benchmark(
    folder: ModelFolder,
    *,
    suite: Literal["sugarcrepe", "aro", "winoground", "half-truths", "composition"],
    data: str,
    images: Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
    engines: RerankerEngines = RerankerOptions(),  # noqa: B008
) -> None:
    """Measure true against false captions: vlmo benchmark MODEL_FOLDER --suite NAME --data DIR.

    Args:
        suite: Published set; composition: rows with a column false_caption (docs/data.md).
        data: Folder with the set's files as its publisher gives them, or a file; composition: data.
        images: Folder of the images; by default images/ in the folder.
        limit: Read the first examples only.
        out: JSON file; by default benchmark_SUITE.json in the model folder, or here if the model was given by a name.
    """
    check_new_file(out, option="--out")
    path = Path(find_model(folder))
    from vlmo.zero_shot import run_suite

    encoder = engines.encoder(path)
    result = run_suite(encoder, suite, data, images=images, limit=limit, console=_STDERR)
    Console(soft_wrap=True).print(result.table())
    out = out or notes_folder(path) / f"benchmark_{suite}.json"
    result.write_json(out, folder=path)
    say(f"metrics and the scores of {len(result.result.predictions)} examples in {out}")


def _command(rows: MeasureOptions, reranking: RerankOptions, *, split: str) -> str:
    """Return the command with the options that metrics depend on, for those who repeat it."""
    words = [f"vlmo evaluate --split {split}"]
    options = {
        "--rerank": reranking.rerank,
        "--rerank-weight": reranking.rerank_weight,
        "--limit": rows.limit,
    }
    for name, value in options.items():
        if value is not None:
            words.append(f"{name} {value}")
    return " ".join(words)


def _choose(
    folder: Path,
    rows: MeasureOptions,
    reranking: RerankOptions,
    *,
    split: str,
    device: str,
) -> None:
    from vlmo.distributed import is_main
    from vlmo.tasks.calibration import choose_rerank_weight

    choice = choose_rerank_weight(
        folder,
        source=rows.data,
        split=split,
        rerank=reranking.rerank,
        batch_size=rows.batch_size,
        limit=rows.limit,
        device=device,
        console=_progress_console(),
    )
    if is_main():
        Console(soft_wrap=True).print(choice.table)
        for name, value in choice.settings.items():
            say(f"{name} {value:.4g} (before: {choice.before[name]}) in {folder / 'config.json'}")


def predict(
    folder: ModelFolder,
    *,
    inputs: Annotated[Inputs, tyro.conf.arg(name="")] = Inputs(),  # noqa: B008 - frozen
    json: bool = False,
    device: Device = None,
) -> None:
    """Answer about own images: vlmo predict MODEL_FOLDER --image FILE [--question TEXT | --text TEXT ... | --caption].

    Args:
        json: Print JSON instead of a table.
    """
    folder = Path(find_model(folder))
    check_given(inputs.images, expected="an image")
    for file in filter(Path.is_dir, inputs.images):
        raise ValueError(f"--image {file} is a folder; name the images in it, such as {file}/*.jpg")
    check_new_file(inputs.save, option="--save")
    from vlmo.tasks import predict as answer_inputs

    answer = answer_inputs(folder, inputs, device=device)
    if json:
        say_json(answer.rows)
        return
    Console(soft_wrap=True).print(answer.table())
    if answer.image is not None:
        say(f"image {answer.image}")


def caption(
    folder: ModelFolder, images: _Images, *, out: Path, num_beams: int = 3, device: Device = None
) -> None:
    """Describe all images of folders: vlmo caption MODEL_FOLDER IMAGES... --out captions.jsonl.

    Args:
        images: Folders, whose images are taken at any depth, and image files.
        out: .jsonl file above the images, a table for vlmo index and vlmo finetune; its images are passed over.
        num_beams: Captions of an image that are held at a time; 1 is fastest.
    """
    # Refused before torch is imported.
    check_given(images, expected="a folder or an image")
    check_new_file(out, option="--out", suffix=".jsonl")
    from vlmo.tasks.captioning import caption_files

    number, bad = caption_files(
        folder, images, out, device=device, console=_STDERR, num_beams=num_beams
    )
    say(f"{number} new captions in {out}", *(f"no caption: {reason}" for reason in bad))


def prepare(name: tyro.conf.Positional[str], *, root: Path, out: Path, num_proc: int = 1) -> None:
    """Turn the files of a published data set into a folder that every command reads.

    Args:
        name: coco, flickr30k, visual_genome, sbu, conceptual_captions, vqav2, nlvr2, imagenet, ade20k, text.
        root: Folder with the set's files as its publisher gives them.
        out: New folder.
        num_proc: Processes that read and decode.
    """
    from vlmo.data.prepare import prepare as convert
    from vlmo.progress import Progress

    with Progress(_STDERR) as progress:
        summary = convert(name, root=root, out=out, num_proc=num_proc, progress=progress)
    table = Table("split", title=summary.name)
    for heading in ("rows", "captions", "quarantined", "known"):
        table.add_column(heading, justify="right")
    for split, counts in summary.splits.items():
        table.add_row(escaped(split), *(f"{number:,}" for number in counts.values()))
    Console(soft_wrap=True).print(table)
    say(*summary.lines(), f"{out} is ready")


def _plain(name: str) -> str:
    # Part of a file name: a source may be a path, or several joined by "+".
    return re.sub(r"[^\w.-]+", "-", Path(name).name)
