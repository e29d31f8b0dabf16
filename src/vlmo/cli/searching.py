"""`vlmo index`, `vlmo embed`, `vlmo search`, `vlmo serve` and `vlmo photos`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from vlmo.cli.parsing import (
    EngineOptions,
    Engines,
    IndexModel,
    ModelFolder,
    RerankerEngines,
    RerankerOptions,
    check_given,
    check_new_file,
)
from vlmo.lazy import install_command
from vlmo.released import SMALL, find_model
from vlmo.released.published import MODELS, VOCABULARIES
from vlmo.retrieval.options import IndexOptions, SearchOptions
from vlmo.serving.settings import Settings
from vlmo.terminal import say, say_json, without_controls

if TYPE_CHECKING:
    from vlmo.retrieval import BuildReport, Encoder, SearchResult

_STDERR = Console(stderr=True)
# Of a table that goes into a file.
_WIDTH = 240
_RERANKED = "(1 - weight) x similarity / temperature + weight x match (log-odds); where match is empty, the similarity"


@dataclass(frozen=True)
class ServerAddress:
    """Address that a server listens on, and key of its clients.

    Attributes:
        host: Address to listen on; by default only this machine reaches it. 0.0.0.0: all that do.
        port: 0: any that is free; the log says which.
        api_key_file: File with the key that clients must send; by default the environment's VLMO_API_KEY, or none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None


Address = Annotated[ServerAddress, tyro.conf.arg(name="")]


def index(
    folder: ModelFolder,
    images: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    out: Path,
    store_bytes: tyro.conf.FlagCreatePairsOff[bool] = False,
    ocr: tyro.conf.FlagCreatePairsOff[bool] = False,
    options: Annotated[IndexOptions, tyro.conf.arg(name="")] = IndexOptions(),  # noqa: B008
    engines: Engines = EngineOptions(),  # noqa: B008 - frozen
) -> None:
    """Build or update an index of own images: vlmo index MODEL_FOLDER IMAGES... --out DIR.

    Args:
        images: Folders, image files, .tar and .parquet files, saved data sets, patterns or URIs of these; what earlier
            runs were given is looked at in any case.
        out: Folder of the index.
        store_bytes: Keep the bytes of image files in the index, in later runs too; those of shards are kept in any
            case.
        ocr: Find images by text in them too, in later runs too (extra ocr).
    """
    folder = Path(find_model(folder))
    out = out.expanduser()
    # In an index, an input of an earlier run may be gone.
    if not out.exists():
        check_given(images, expected="a folder, an image, or a .tar or .parquet file")
    from vlmo.data.rows import first_reasons, read_lines
    from vlmo.retrieval import build_index

    # A flag that is not given stands for what the last run did.
    report = build_index(
        engines.encoder(folder),
        images,
        out=out,
        console=_STDERR,
        **vars(replace(options, store_bytes=store_bytes or None, ocr=ocr or None)),
    )
    reasons = first_reasons(read_lines(out / "quarantine.jsonl")) if report.bad else ""
    if report.bad and not report.images:
        raise ValueError(f"none of {report.bad} images can be used: {reasons}")
    _show_report(report, reasons, out=out)


def embed(
    folder: ModelFolder,
    images: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    out: Path,
    texts: Path | None = None,
    engines: Engines = EngineOptions(),  # noqa: B008
) -> None:
    """Write embeddings for other tools: vlmo embed MODEL_FOLDER IMAGES...|--texts FILE --out FILE.parquet.

    Args:
        images: As for vlmo index.
        out: New .parquet file, with the columns path (or text) and vector.
        texts: Text file whose lines are embedded instead of images.
    """
    folder = Path(find_model(folder))
    if (texts is None) == (not images):
        raise ValueError("vlmo embed needs either images or --texts FILE")
    check_new_file(out, option="--out", suffix=".parquet")
    check_given([*images, texts], expected="images, or a file of texts")
    from vlmo.data.rows import first_reasons
    from vlmo.retrieval.vectors import write_vectors

    lines: list[str] = []
    if texts is not None:
        # Empty lines are no texts.
        lines = [*filter(None, map(str.strip, texts.read_text(encoding="utf-8").splitlines()))]
    number, bad = write_vectors(
        engines.encoder(folder), out, images=images, texts=lines, console=_STDERR
    )
    say(f"{number} vectors in {out}")
    if bad:
        say(f"{len(bad)} images could not be used: {first_reasons(row.line() for row in bad)}")


def search(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    query: tyro.conf.Positional[str] = "",
    parts: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    options: Annotated[SearchOptions, tyro.conf.arg(name="")] = SearchOptions(),  # noqa: B008
    json: bool = False,
    sheet: Path | None = None,
    model: Annotated[IndexModel, tyro.conf.arg(name="")] = IndexModel(),  # noqa: B008
) -> None:
    """Search an index by words or by an image: vlmo search INDEX ["a red umbrella"|IMAGE] ["+at night" "-0.5*people"].

    Args:
        folder: Folder of the index.
        query: Words, or the file of an image; left out with --sort date, which lists all images then.
        parts: More words, or files of images, to add (+) or subtract (-), maybe with a weight and a * before them.
        json: Print JSON instead of a table.
        sheet: PNG file for a contact sheet of the result.
    """
    from vlmo.data.listing import image_named

    check_new_file(sheet, option="--sheet", suffix=".png")
    image = image_named(query, must_exist=True) if query else None
    weighted_parts = [_read_part(part) for part in parts]
    from vlmo.retrieval import Index, Searcher

    index = Index(folder)
    searcher = Searcher(model.encoder(index), index)
    result = searcher.search(image or query or None, parts=weighted_parts, **vars(options))
    # As it was typed, for the heading of the result.
    query = " ".join([query, *(part.strip() for part in parts)])
    # Printed before the images are drawn, which may fail.
    _show_result(query, result, is_json=json)
    if sheet is not None:
        from vlmo.retrieval.results import write_sheet

        write_sheet(sheet, query=query, result=result, index=index)
        if not json:
            say(f"image {sheet}")


def _read_part(text: str) -> tuple[str | Path, float]:
    from vlmo.data.listing import image_named

    match = re.fullmatch(r"\s*([+-])(?:(\d+(?:\.\d+)?)\*)?\s*([^\s*][^*]*)", text)
    if match is None:
        raise ValueError(
            f"{text.strip()!r} follows the query; parts begin with + or -: '+on a beach' '-people' '-0.5*red'"
        )
    sign, weight, words = match.groups()
    return image_named(words, must_exist=True) or words, float(f"{sign}{weight or 1}")


def serve(
    folder: ModelFolder,
    *,
    index: Path | None = None,
    vqa: Path | None = None,
    captioning: Path | None = None,
    address: Address = ServerAddress(),
    engines: RerankerEngines = RerankerOptions(),  # noqa: B008 - frozen
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings(),  # noqa: B008
) -> None:
    """Serve a model over HTTP, with a web page: vlmo serve MODEL_FOLDER [--index DIR] [--vqa VQA_MODEL_FOLDER].

    Args:
        index: Index that vlmo index has made with this model; without it nothing is searched.
        vqa: Folder of another model, which answers questions about images.
        captioning: Folder of another model, which describes images.
    """
    folder = Path(find_model(folder))
    check_given([index], expected="an index that vlmo index has made")
    from vlmo.serving.parts import load_parts
    from vlmo.serving.server import bind, read_key
    from vlmo.serving.server import serve as run

    settings = replace(settings, api_key=read_key(address.api_key_file))
    # The port is taken first: loading a model for nothing takes long.
    with bind(address.host, address.port) as bound:
        parts = load_parts(
            folder,
            index=index,
            vqa=vqa,
            captioning=captioning,
            engine=engines.engine,
            precision=engines.precision,
            device=engines.device,
            reranker=engines.reranker,
        )
        run(bound, parts, settings)


def photos(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "vlmo-base-coco",
    index: Path | None = None,
    address: Address = ServerAddress(),
    no_open: tyro.conf.FlagCreatePairsOff[bool] = False,
    ocr: bool = find_spec("rapidocr") is not None,
    engines: RerankerEngines = RerankerOptions(),  # noqa: B008 - frozen
) -> None:
    """Search the photographs in a folder on a web page, which follows its changes: vlmo photos DIR [--model NAME].

    Args:
        folder: Folder with photographs, also in folders below it.
        model: A name that vlmo models lists, or a model folder.
        index: Folder of the index; by default one in the cache, which the output names.
        no_open: Do not show the page in a browser.
        ocr: Find images by text in them too; by default where the extra ocr is installed. Indexing takes longer.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the one that holds your photographs")
    from vlmo.serving.photos import serve_photos
    from vlmo.serving.server import bind, read_key

    settings = Settings(api_key=read_key(address.api_key_file))
    with bind(address.host, address.port) as bound:
        encoder = engines.encoder(_find_or_explain(model))
        index = (index or _cached_index(folder, encoder)).expanduser()
        say(
            f"index: {index}",
            "No image is sent anywhere but to your browser. Ctrl-C ends; the same command goes on.",
        )
        if not ocr:
            say(f"Text in images is not read; --ocr reads it ({install_command('ocr')}).")
        screens = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        opens = not no_open and (sys.platform != "linux" or bool(screens))
        serve_photos(
            encoder, folder, index=index, bound=bound, settings=settings, ocr=ocr, open_page=opens
        )


def _cached_index(folder: Path, encoder: Encoder) -> Path:
    """Return the folder in the cache for the index of a folder by a model: another model needs another index."""
    from vlmo.released.download import cache_folder

    source = f"{folder.absolute()}\n{encoder.fingerprint}"
    # Names of files need not be valid UTF-8.
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    return cache_folder() / "photos" / f"{folder.absolute().name[:60]}-{digest[:12]}"


def _find_or_explain(name: str) -> Path:
    """Find a model; if it can only be had from a network that is not there, say in two lines what to do."""
    try:
        return Path(find_model(name))
    except ValueError as error:
        model = MODELS.get(name)
        if model is None or not model.address:
            raise
        _STDERR.print(
            f"vlmo: {without_controls(str(error))}", markup=False, highlight=False, soft_wrap=True
        )
        files = " and ".join(filter(None, (model.address, VOCABULARIES.get(model.layout))))
        raise ValueError(
            f"{name} is made of {files}. Or name another model: --model FOLDER, or --model {SMALL}, which is here "
            "(icons and drawings; it knows no photographs)"
        ) from error


def _show_result(query: str, result: SearchResult, *, is_json: bool) -> None:
    from vlmo.retrieval.results import as_json, as_table

    if is_json:
        say_json(as_json(query, result))
        return
    shown = result
    if result.less_likely and not result.hits:
        say(f"Nothing here looks like {query!r}. The nearest:")
        shown = replace(result, hits=[*result.less_likely])
    if shown.hits:
        # rich takes 80 columns where there is no terminal, and would break all paths.
        width = None if sys.stdout.isatty() else _WIDTH
        Console(soft_wrap=True, width=width).print(as_table(query, shown))
        if query:
            score = _RERANKED if result.num_reranked else "similarity (cosine)"
            if result.num_matched:
                score = "sum of reciprocal ranks, by words and by the model"
            say(f"score: {score}")
        if result.hits and result.less_likely:
            say(
                f"less likely images that are left out (--min-probability): {len(result.less_likely)}"
            )
    else:
        say("nothing was found")
    facts = ", ".join(f"{part} {1000 * seconds:.0f} ms" for part, seconds in result.seconds.items())
    if result.num_reranked:
        facts = f"{result.num_reranked} reranked by the fusion encoder; {facts}"
    say(facts, *filter(None, [result.note]))


def _show_report(report: BuildReport, reasons: str, *, out: Path) -> None:
    from vlmo.retrieval.approximate import ENOUGH

    say(
        f"{report.images} images in {out} ({report.seconds:.0f} s)",
        f"embedded {report.encoded}, with bytes that were known {report.reused}, "
        f"unchanged {report.unchanged}, gone {report.deleted}",
    )
    if report.bad:
        say(
            f"{report.bad} could not be used ({reasons}); all reasons are in {out / 'quarantine.jsonl'}"
        )
    recall = report.recall
    if recall is None:
        say("search compares with every vector (exact)")
        return
    say(
        f"approximate index: recall@{recall['at']} {100 * recall['value']:.1f} % against exact search, "
        f"{recall['queries']} queries by {recall['asked_with']}"
    )
    if recall["value"] < ENOUGH:
        say(
            "this recall is low: search misses some of the nearest. "
            f"--ann-threshold {report.images + 1} makes it compare with every vector"
        )
