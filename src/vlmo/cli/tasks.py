"""`vlmo evaluate`, `vlmo predict` and `vlmo data`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vlmo.cli.parsing import Device, ModelFolder, check_given, check_new_file, check_precision, hide_loading_bars
from vlmo.released import find_model, is_released, notes_folder
from vlmo.released.published import MODELS
from vlmo.terminal import escaped, say, say_json

if TYPE_CHECKING:
    from vlmo.tasks import TaskResult

_STDERR = Console(stderr=True)
_TASK_OPTIONS = ("rerank", "rerank_weight", "rerank_score", "method")
_RECORDED = (*_TASK_OPTIONS, "engine", "precision", "limit")
_SUBMITTING = {"folder", "task", "data", "split", "submission", "device"}
_CHOOSING = {"folder", "task", "data", "split", "limit", "batch_size", "rerank", "device"}


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `vlmo evaluate`."""

    folder: ModelFolder
    task: str | None = None
    """retrieval, vqa, nlvr2, classification or segmentation; by default the task that the model is for."""
    data: str | None = None
    """A built-in name or a path (docs/data.md), such as a folder of vlmo data prepare; retrieval: emoji-pairs."""
    split: str | None = None
    """Part of the data; by default test, and with --choose-rerank-weight and --choose-cutoff validation."""
    limit: int | None = None
    """Read the first rows only."""
    batch_size: int | None = None
    """Rows that go through the model at a time; by default the task's."""
    rerank: int | None = None
    """retrieval: candidates of each query that the fusion encoder reorders (16; 0 leaves it out)."""
    rerank_weight: float | None = None
    """retrieval: share of the matching score in the new order, 0 to 1; by default the model's for each direction."""
    rerank_score: Literal["published"] | None = None
    """retrieval: published is the published code's order of 32 candidates, cosine similarity + logit of a match."""
    engine: Literal["torch", "onnx", "openvino"] | None = None
    """retrieval: what computes vectors and matching scores (torch; for int8 openvino, else onnx)."""
    precision: Literal["float32", "int8"] | None = None
    """retrieval: float32 or int8."""
    choose_rerank_weight: bool = False
    """retrieval: measure recall by weight on a split that was neither trained on nor is measured on afterwards, and
    keep the best of each direction in config.json."""
    choose_cutoff: bool = False
    """retrieval: take out half of the images of such a split, and keep in config.json the probability of a
    match that best separates texts whose image is still there from the others; vlmo search says "no match" below it."""
    method: Literal["head", "linear-probe", "zero-shot"] | None = None
    """classification: the model's own classifier (head), one fitted on the split train, or the classes' names."""
    submission: Path | None = None
    """vqa, nlvr2: write the file that the evaluation server takes instead of measuring."""
    device: Device = None
    out: Path | None = None
    """JSON file for metrics and predictions; by default evaluation_TASK_DATA_SPLIT.json in the model folder, or here if
    the model was given by a name, with the method in its name where one is given."""
    write_card: bool = False
    """Put the metrics into the folder's README.md."""


def evaluate(options: Annotated[EvaluateOptions, tyro.conf.arg(name="")]) -> None:
    """Measure a model: vlmo evaluate MODEL_FOLDER [--task NAME] [--data NAME|DIR] [--split NAME]."""
    check_precision(options.engine, options.precision)
    folder, choosing = Path(find_model(options.folder)), options.choose_rerank_weight or options.choose_cutoff
    writing = ("write_card", "choose_rerank_weight", "choose_cutoff")
    if is_released(folder) and (given := [f"--{_flag(name)}" for name in writing if vars(options)[name]]):
        raise ValueError(
            f"{options.folder} is a published model and stays as it is; copy {folder} and evaluate the copy, or leave "
            f"out {' and '.join(given)}"
        )
    options = replace(options, split=options.split or ("validation" if choosing else "test"))
    check_new_file(options.out, option="--out")
    check_new_file(options.submission, option="--submission")
    hide_loading_bars()
    from vlmo.distributed import is_main
    from vlmo.tasks import evaluate as measure
    from vlmo.tasks import write_submission
    from vlmo.training import launch

    graphs = options.precision == "int8" or options.engine not in {None, "torch"}
    device = options.device or ("cpu" if graphs else None)
    with launch(device) as device:
        where: dict[str, Any] = {"task": options.task, "source": options.data, "split": options.split}
        where |= {"device": str(device), "console": _STDERR if is_main() else None}
        if options.submission is not None:
            _check_read(options, _SUBMITTING, because="--submission writes predictions and measures nothing")
            number = write_submission(folder, options.submission, **where)
            if is_main():
                say(f"{number} predictions in {options.submission}")
        elif choosing:
            _choose(options, folder=folder, **where)
        else:
            own: dict[str, Any] = {name: vars(options)[name] for name in _TASK_OPTIONS}
            loaded, engine = _graphs(options, folder, device=where["device"]) if graphs else (None, {})
            own |= {"limit": options.limit, "batch_size": options.batch_size, "loaded": loaded}
            result = measure(folder, **where, **own)
            result = replace(result, settings=result.settings | engine)
            if is_main():
                _show(result, folder=folder, options=options)


def _choose(options: EvaluateOptions, *, folder: Path, task: str | None, source: str | None, **where: Any) -> None:
    from vlmo.distributed import is_main
    from vlmo.tasks import RetrievalTask, find_task, task_of
    from vlmo.tasks.calibration import choose_cutoff, choose_rerank_weight
    from vlmo.tasks.registry import source_of

    name = "choose_cutoff" if options.choose_cutoff else "choose_rerank_weight"
    _check_read(options, {*_CHOOSING, name}, because=f"--{_flag(name)} chooses a setting and measures nothing else")
    found = task_of(folder) if task is None else find_task(task)
    if found is not RetrievalTask:
        raise ValueError(f"--{_flag(name)} belongs to the task retrieval; this is {found.name}")
    sizes = {"rerank": options.rerank, "batch_size": options.batch_size}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    choose = choose_cutoff if options.choose_cutoff else choose_rerank_weight
    choice = choose(folder, source=source_of(source, task=found), limit=options.limit, **where, **given)
    if is_main():
        Console(soft_wrap=True).print(choice.table)
        say(f"{choice.summary()} in {folder / 'config.json'}")


def _graphs(options: EvaluateOptions, folder: Path, *, device: str) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """Return model and processor of a folder's graphs, and what the result says of them."""
    from vlmo.checkpoints.loading import load_processor
    from vlmo.export.onnx import OnnxRetrievalModel
    from vlmo.model import VLMoConfig
    from vlmo.retrieval.encoder import Encoder
    from vlmo.retrieval.engines import graph_engine
    from vlmo.tasks import RetrievalTask, find_task, task_of

    if (found := task_of(folder) if options.task is None else find_task(options.task)) is not RetrievalTask:
        name = "engine" if options.engine else "precision"
        raise ValueError(f"--{name} belongs to the task retrieval; this is {found.name}")
    how: dict[str, Any] = {"engine": options.engine or graph_engine(), "precision": options.precision or "float32"}
    encoder = Encoder(folder, **how, device=device)
    model = OnnxRetrievalModel(encoder.graphs, config=VLMoConfig.from_pretrained(encoder.folder))
    return (model, load_processor(encoder.folder)), how


def predict(
    folder: ModelFolder,
    *,
    image: tuple[Path, ...] = (),
    question: str | None = None,
    text: tuple[str, ...] = (),
    top: int = 5,
    save: Path | None = None,
    json: bool = False,
    device: Device = None,
) -> None:
    """Answer about own images: vlmo predict MODEL_FOLDER --image FILE [--question TEXT | --text TEXT ...].

    Args:
        image: Image; two for a sentence about two, any number for retrieval and classification.
        question: Question about the image.
        text: Sentence about two images, or texts to compare with images.
        top: Answers, classes, or texts of an image that are shown.
        save: PNG file: attention of the question over the image, or the classes of the pixels.
        json: Print JSON instead of a table.
    """
    folder = Path(find_model(folder))
    check_given(image, expected="an image")
    check_new_file(save, option="--save")
    hide_loading_bars()
    from vlmo.tasks import Inputs
    from vlmo.tasks import predict as ask

    found = ask(folder, Inputs(image, text, question, top=top, save=save), device=device)
    if json:
        say_json(found.rows)
        return
    Console(soft_wrap=True).print(found.table())
    if found.image is not None:
        say(f"image {found.image}")


def prepare(name: tyro.conf.Positional[str], *, root: Path, out: Path, num_proc: int = 1) -> None:
    """Turn the files of a published data set into a folder that every command reads.

    Args:
        name: coco, flickr30k, visual_genome, sbu, conceptual_captions, vqav2, nlvr2, sugarcrepe, imagenet, ade20k,
            text.
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


def _check_read(options: EvaluateOptions, read: set[str], *, because: str) -> None:
    given = [field.name for field in fields(options) if vars(options)[field.name] != field.default]
    if unread := [name for name in given if name not in read]:
        raise ValueError(f"{because}; leave out --{_flag(unread[0])}")


def _show(result: TaskResult, *, folder: Path, options: EvaluateOptions) -> None:
    from vlmo.data.prepare import name_of
    from vlmo.released.download import cached_model
    from vlmo.tasks.result import data_name

    model = MODELS.get(str(options.folder))
    comparable = (
        model is not None
        and Path(folder) == cached_model(model.name)
        and name_of(Path(result.source)) == model.data
        and options.limit is None
    )
    Console().print(result.table(reported=model.reported if model is not None and comparable else ()))
    parts = [result.task, _plain(data_name(result.source)), _plain(result.split), options.method]
    out = options.out or notes_folder(folder) / f"evaluation_{'_'.join(part for part in parts if part)}.json"
    result.write_json(out, folder=folder)
    say(f"metrics and {len(result.predictions)} predictions in {out}")
    if options.write_card:
        given = [f" --{_flag(name)} {value}" for name in _RECORDED if (value := vars(options)[name]) is not None]
        from vlmo.tasks import usage_of

        command = f"`vlmo evaluate --split {options.split}{''.join(given)}`"
        result.write_card(folder, measured_by=command, usage=usage_of(folder))


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _plain(name: str) -> str:
    """Return the last name of a path, in letters that every file system takes."""
    return re.sub(r"[^\w.-]+", "-", Path(name).name)
