"""`vlmo index`, `vlmo embed`, `vlmo search`, `vlmo duplicates` and `vlmo clusters`."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from vlmo.cli.output import say, say_json
from vlmo.cli.parsing import (
    Engine,
    ModelFolder,
    Precision,
    check_given,
    check_new_file,
    hide_loading_bars,
    without_garbage_collection,
)
from vlmo.released import find_model
from vlmo.terminal import without_controls

if TYPE_CHECKING:
    from vlmo.retrieval import BuildReport, ImageGroup, Searcher, SearchResult

_STDERR = Console(stderr=True)
_WIDTH = 200  # of a table that goes into a file
_RERANKED = "(1 - weight) x similarity / temperature + weight x match (log-odds); where match is empty, the similarity"


@dataclass(frozen=True)
class IndexOptions:
    """Build or update an index of own images: vlmo index MODEL_FOLDER IMAGES... --out DIR."""

    folder: ModelFolder
    out: Path
    """Folder of the index."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders, image files, videos, .tar and .parquet files, saved data sets, patterns or URIs of these; what earlier
    runs were given is looked at in any case."""
    metadata: Path | None = None
    """Table (.csv, .tsv, .jsonl) of captions and columns by the names of image files; later runs go by it too."""
    store_bytes: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep the bytes of image files in the index, in later runs too; those of shards and key frames are kept
    in any case."""
    batch: Annotated[int, tyro.conf.arg(name="batch-size")] = 64
    """Images that go through the model at a time."""
    approximate_from: Annotated[int, tyro.conf.arg(name="ann-threshold")] = 50_000
    """Number of images from which on an approximate index is built."""
    forget: Annotated[tuple[str, ...], tyro.conf.arg(name="remove")] = ()
    """Inputs of earlier runs whose images leave the index, or their table of metadata."""
    executor: Literal["local", "ray"] = "local"
    """Embed in this process, or with Ray Data."""
    workers: int = 2
    """ray: models that work side by side."""
    dim: int | None = None
    """Store the first DIM dimensions of each vector, L2-normalised again; a multiple of 8. By default all; later runs
    and searches go by it too."""
    engine: Engine = "auto"
    precision: Precision = "float32"
    device: str | None = None
    """cpu, cuda, cuda:N or mps; by default a GPU if there is one."""


@dataclass(frozen=True)
class EmbedOptions:
    """Write embeddings for other tools: vlmo embed MODEL_FOLDER IMAGES...|--texts FILE --out FILE.parquet|.npy."""

    folder: ModelFolder
    out: Path
    """New .parquet or .npy file."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """As for vlmo index."""
    texts: Path | None = None
    """Text file whose lines are embedded instead of images."""
    batch: Annotated[int, tyro.conf.arg(name="batch-size")] = 64
    """Images that go through the model at a time."""
    dim: int | None = None
    """Write the first DIM dimensions of each vector, L2-normalised again; a multiple of 8. By default all."""
    engine: Engine = "auto"
    precision: Precision = "float32"
    device: str | None = None
    """cpu, cuda, cuda:N or mps; by default a GPU if there is one."""


@dataclass(frozen=True)
class SearchOptions:
    """Search an index by words or by an image: vlmo search INDEX ["a red umbrella"|IMAGE] [--rerank 32]."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    query: Annotated[str | None, tyro.conf.Positional] = None
    """Words, or the file of an image; without, the lines that are typed or piped in, with the model loaded once."""
    model: Path | None = None
    """Model folder; by default the one that the index was made with."""
    top: int = 10
    """Images that are shown."""
    rerank: int | None = None
    """Candidates that the fusion encoder scores, 0 for none; by default 32 for words or captions, if the model can."""
    weight: Annotated[float | None, tyro.conf.arg(name="rerank-weight")] = None
    """Share of its score in the order, 0 to 1; by default the model's."""
    where: str | None = None
    """Filter in SQL over the columns of metadata, such as "year > 2000 and kind = 'cat'"."""
    budget: float | None = None
    """Seconds after which the result is given as far as it has got."""
    cutoff: float | None = None
    """Probability of a match, 0 to 1, which the best candidate must reach; by default the model's (vlmo evaluate
    --choose-cutoff)."""
    image: Path | None = None
    """Image that joins the words: both together are the query, which is not reranked."""
    captions: bool = False
    """Find captions for an image instead of images."""
    json: bool = False
    """Print JSON instead of a table."""
    sheet: Path | None = None
    """PNG or HTML file for a contact sheet of the result."""
    explain: Path | None = None
    """PNG file for the attention of the query's words over the best images."""
    engine: Engine = "auto"
    precision: Precision = "float32"
    device: str | None = None
    """cpu, cuda, cuda:N or mps; by default a GPU if there is one."""


@dataclass(frozen=True)
class DuplicatesOptions:
    """Find groups of nearly equal images in an index: vlmo duplicates INDEX [--threshold 0.95]."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    threshold: float = 0.95
    """Cosine similarity, above 0 up to 1, from which on two images are in one group."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class ClustersOptions:
    """Divide the images of an index into clusters: vlmo clusters INDEX [--number 20]."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    number: int = 20
    """Number of clusters."""
    json: bool = False
    """Print JSON with all images instead of a table with the three most central ones of each cluster."""


def index_command(options: IndexOptions) -> None:
    """Run `vlmo index`."""
    folder = Path(find_model(options.folder))
    if is_new := not options.out.expanduser().exists():  # else it may be an input of an earlier run
        check_given(options.images, expected="a folder, an image, a video, or a .tar or .parquet file")
    hide_loading_bars()
    from vlmo.data.quarantine import first_reasons
    from vlmo.retrieval import build_index
    from vlmo.retrieval.encoder import prepare_searches

    given = {name: value for name, value in vars(options).items() if name not in {"folder", "images"}}
    given["store_bytes"] = options.store_bytes or None
    report = build_index(folder, options.images, **given, console=_STDERR)
    if report.bad and not report.images:
        lines = (options.out.expanduser() / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
        if is_new:
            shutil.rmtree(options.out.expanduser())
        raise ValueError(f"none of {report.bad} images can be used: {first_reasons(map(json.loads, lines))}")
    _show_report(report, out=options.out)
    if options.engine == "auto":
        prepare_searches(folder, images=report.images, device=options.device)


def embed_command(options: EmbedOptions) -> None:
    """Run `vlmo embed`."""
    folder = Path(find_model(options.folder))
    if (options.texts is None) == (not options.images):
        raise ValueError("vlmo embed needs either images or --texts FILE")
    check_new_file(options.out, option="--out", suffixes=(".parquet", ".npy"))
    check_given([*options.images, options.texts], expected="images, or a file of texts")
    hide_loading_bars()
    from vlmo.retrieval.encoder import Encoder
    from vlmo.retrieval.vectors import embed_images, embed_texts

    chosen = {"engine": options.engine, "precision": options.precision, "device": options.device}
    encoder = Encoder(folder, dim=options.dim, **chosen)
    if options.texts is None:
        written = embed_images(encoder, options.images, out=options.out, batch=options.batch, console=_STDERR)
    else:
        try:
            with options.texts.open(encoding="utf-8") as file:
                lines = (line.strip() for line in file)
                written = embed_texts(encoder, (line for line in lines if line), out=options.out)
        except UnicodeDecodeError as error:
            raise ValueError(f"{options.texts}: not UTF-8 ({error}); give a file of texts, one a line") from error
    bad = f"; {written.bad} bad images" if written.bad else ""
    files = ", ".join(map(str, written.files))
    say(f"{written.rows} vectors in {files}{bad}")


@without_garbage_collection()
def search_command(options: SearchOptions) -> None:
    """Run `vlmo search`."""
    if options.query is None and options.image is not None:
        options = replace(options, query=str(options.image), image=None)  # it is the query, as without `--image`
    _check_search(options)  # before models are loaded
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of "Loading weights", if transformers gets imported
    from vlmo.retrieval import Index, Searcher

    index = Index(options.index)
    model = Path(index.model_folder) if options.model is None else Path(find_model(options.model))
    if options.model is None and not model.is_dir():
        raise ValueError(f"the model of this index was in {model}, which is gone; give --model with its folder")
    settings = {"engine": options.engine, "precision": options.precision, "device": options.device}
    searcher = Searcher(model, index, **settings)
    if options.query is not None:
        _search(searcher, options, options.query)
        return
    gc.enable()  # this may go on for hours
    for query in _queries():
        try:
            _check_search(replace(options, query=query))
            _search(searcher, options, query)
        except ValueError as error:  # the next one may be right
            _STDERR.print(without_controls(f"vlmo: {error}"), markup=False, highlight=False)


def duplicates_command(options: DuplicatesOptions) -> None:
    """Run `vlmo duplicates`."""
    from vlmo.retrieval import find_duplicates

    _show_groups(find_duplicates(options.index, threshold=options.threshold, console=_STDERR), is_json=options.json)


def clusters_command(options: ClustersOptions) -> None:
    """Run `vlmo clusters`."""
    from vlmo.retrieval import find_clusters

    _show_groups(find_clusters(options.index, options.number), is_json=options.json, most=3)


def _queries() -> Iterator[str]:
    """Yield lines until they end; at a terminal, an empty one ends them."""
    is_typed = sys.stdin.isatty()
    while True:
        try:
            line = _STDERR.input("search> " if is_typed else "").strip()
        except EOFError:
            return
        if line:
            yield line
        elif is_typed:
            return


def _search(searcher: Searcher, options: SearchOptions, query: str) -> None:
    from vlmo.data.listing import image_named
    from vlmo.retrieval.results import write_explanation, write_sheet

    image = image_named(query, must_exist=True)
    if options.budget is not None and options.rerank != 0:
        searcher.warm_up()
    given: dict[str, Any] = {name: getattr(options, name) for name in ("top", "rerank", "weight", "budget")}
    if image is not None and options.captions:
        result = searcher.captions(image, **given)
    else:
        given |= {"where": options.where, "cutoff": options.cutoff, "image": options.image}
        result = searcher.search(query if image is None else image, **given)
    _show_result(query, result, is_json=options.json)  # before the images are drawn, which may fail
    lines: list[str] = []
    if options.sheet is not None:
        write_sheet(options.sheet, query=query, result=result, index=searcher.index)
        lines.append(f"image {options.sheet}")
    if options.explain is not None:
        lost = write_explanation(options.explain, query=query, result=result, searcher=searcher)
        left_out = f", without {', '.join(hit.place for hit in lost)}, which cannot be read" if lost else ""
        lines.append(f"image {options.explain}{left_out}")
    if not options.json:
        say(*lines)


def _check_search(options: SearchOptions) -> None:
    from vlmo.data.listing import image_named

    check_new_file(options.sheet, option="--sheet", suffixes=(".png", ".html"))
    check_new_file(options.explain, option="--explain", suffixes=(".png",))
    if options.query is None:
        if options.sheet is not None or options.explain is not None:
            raise ValueError("--sheet and --explain are files of one search; give its words or image")
        return
    image = image_named(options.query, must_exist=True)
    if options.captions and image is None:
        raise ValueError("--captions finds captions for an image; give the file of one as the query")
    if options.captions and not (options.where is options.sheet is options.cutoff is options.image is None):
        raise ValueError(
            "--captions finds captions; leave out --where, --sheet, --cutoff and --image: they find images"
        )
    if options.explain is not None and image is not None:
        raise ValueError("--explain shows where words look; the query is an image")


def _show_result(query: str, result: SearchResult, *, is_json: bool) -> None:
    from vlmo.retrieval.results import as_json, as_table

    if is_json:
        say_json(as_json(query, result))
        return
    if result.hits:
        _wide_console().print(as_table(query, result))
        say(f"score: {_RERANKED if result.num_reranked else 'similarity (cosine)'}")
    else:
        say("nothing was found")
    parts = ", ".join(f"{part} {1000 * seconds:.0f} ms" for part, seconds in result.seconds.items())
    reranked = f"{result.num_reranked} reranked by the fusion encoder; " if result.num_reranked else ""
    say(f"{reranked}{parts}", *filter(None, [result.note]))


def _show_groups(groups: Sequence[ImageGroup], *, is_json: bool, most: int | None = None) -> None:
    from vlmo.retrieval.results import groups_as_table

    if is_json:
        say_json([asdict(group) for group in groups])
        return
    if groups:
        _wide_console().print(groups_as_table(groups, most=most))
    say(f"{len(groups)} groups of {sum(len(group.ids) for group in groups)} images")


def _wide_console() -> Console:
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)


def _show_report(report: BuildReport, *, out: Path) -> None:
    lines = [
        f"{report.images} images with {report.captions} captions in {out} ({report.seconds:.0f} s)",
        ", ".join(
            (
                f"embedded {report.encoded}",
                f"with bytes that were known {report.reused}",
                f"unchanged {report.unchanged}",
                f"gone {report.deleted}",
            )
        ),
    ]
    if report.bad:
        lines.append(f"{report.bad} could not be used; each has its reason in {out / 'quarantine.jsonl'}")
    if report.unmatched is not None:
        lines.append(report.unmatched)
    if (recall := report.recall) is None:
        lines.append("search compares with every vector (exact)")
    else:
        lines.append(
            f"approximate index: recall@{recall.at} {100 * recall.value:.1f} % against exact search, {recall.queries} "
            f"queries by {recall.asked_with}"
        )
    if recall is not None and recall.is_low:
        lines.append(
            f"this recall is low: search misses some of the nearest. --ann-threshold {report.images + 1} "
            "makes it compare with every vector"
        )
    say(*lines)
