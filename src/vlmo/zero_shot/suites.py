"""Readers of published sets of true and false captions, in the files that their authors give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from vlmo.data.decoding import ImageCell, image_at
from vlmo.data.tables import table_records
from vlmo.folder import read_json

Pair = tuple[int, int]
"""Numbers of an image and of a caption of an example."""


class Example(NamedTuple):
    """Images and captions that are compared with each other; all of a suite have as many.

    Attributes:
        kind: Part of the suite, such as "swap_att".
        box: Left, top, right and bottom of the part of the images that is read; None: all.
    """

    name: str
    kind: str
    images: Sequence[ImageCell]
    captions: Sequence[str]
    box: tuple[int, int, int, int] | None = None


class Condition(NamedTuple):
    """Comparisons that an example fulfills or not.

    Attributes:
        comparisons: Pairs that must all score above other pairs.
        chance: Share of examples that random scores fulfill.
    """

    comparisons: Sequence[tuple[Pair, Pair]]
    chance: float


@dataclass(frozen=True)
class Suite:
    """A published set.

    Attributes:
        dataset: Name of the set in results of CLIP_benchmark.
        read: Returns the examples of data (a path or built-in name) with images in a folder.
        conditions: By the names of their metrics in results of CLIP_benchmark.
        published: Published shares by the names of metrics.
        source: Their model and publication.
    """

    dataset: str
    read: Callable[[str, Path | None], Iterator[Example]]
    conditions: Mapping[str, Condition]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


# The first caption is true, the second false.
_CHOICE = {"acc": Condition([((0, 0), (0, 1))], 1 / 2)}
_TEXT = [((0, 0), (0, 1)), ((1, 1), (1, 0))]
_IMAGE = [((0, 0), (1, 0)), ((1, 1), (0, 1))]


def _read_sugar_crepe(data: str, images: Path | None) -> Iterator[Example]:
    folder = _images_folder(data, images, "val2017")
    for file in _files(data, "add_*.json", "replace_*.json", "swap_*.json"):
        for number, row in _json_rows(file):
            where = f"{file}, {number}"
            yield Example(
                f"{file.stem}/{number}",
                file.stem,
                [_cell(row, "filename", folder, where=where)],
                [_text(row, "caption", where=where), _text(row, "negative_caption", where=where)],
            )


def _read_aro(data: str, images: Path | None) -> Iterator[Example]:
    folder = _images_folder(data, images)
    for file in _files(data, "visual_genome_relation.json", "visual_genome_attribution.json"):
        kind = file.stem.rpartition("_")[2]
        for number, row in _json_rows(file):
            where = f"{file}, {number}"
            sides = [int(_field(row, f"bbox_{name}", where=where)) for name in "xywh"]
            left, top, width, height = sides
            yield Example(
                f"{kind}/{number}",
                kind,
                [_cell(row, "image_path", folder, where=where)],
                [_text(row, "true_caption", where=where), _text(row, "false_caption", where=where)],
                (left, top, left + width, top + height),
            )


def _read_winoground(data: str, images: Path | None) -> Iterator[Example]:
    folder = _images_folder(data, images)
    for where, row in _records(_files(data, "examples.jsonl", "*.parquet")):
        yield Example(
            str(_field(row, "id", where=where)),
            str(row.get("collapsed_tag") or "all"),
            [_cell(row, f"image_{number}", folder, where=where) for number in range(2)],
            [_text(row, f"caption_{number}", where=where) for number in range(2)],
        )


def _read_half_truths(data: str, images: Path | None) -> Iterator[Example]:
    captions = ("anchor", "half_truth", "full_truth")
    folder = _images_folder(data, images)
    for where, row in _records(_files(data, "*.jsonl", "*.parquet")):
        yield Example(
            str(_field(row, "id", where=where)),
            _text(row, "triplet_type", where=where),
            [_cell(row, "image", folder, where=where)],
            [_text(row, name, where=where) for name in captions],
        )


def _read_composition(data: str, _images: Path | None) -> Iterator[Example]:
    from vlmo.data.sources import open_source
    from vlmo.tasks.pair_sets import CompositionSet

    rows = open_source(data, split="test")
    CompositionSet.check_rows(rows, data)
    for row in rows:
        assert isinstance(row, dict)
        captions = [row["captions"][0], row["false_caption"]]
        yield Example(row["image_id"], row["kind"], [row["image"]], captions)


SUITES = {
    "sugarcrepe": Suite("sugar_crepe", _read_sugar_crepe, _CHOICE),
    "aro": Suite("aro", _read_aro, _CHOICE),
    "winoground": Suite(
        "winoground",
        _read_winoground,
        {
            "text_acc": Condition(_TEXT, 1 / 4),
            "image_acc": Condition(_IMAGE, 1 / 4),
            # Of 24 orders of four scores, 4 have both true pairs in front.
            "acc": Condition([*_TEXT, *_IMAGE], 1 / 6),
        },
        {"text_acc": 0.3075, "image_acc": 0.105, "acc": 0.08},
        "CLIP ViT-B/32, https://arxiv.org/abs/2204.03162",
    ),
    # The true caption over a longer one with one wrong detail; and a longer true one over both.
    "half-truths": Suite(
        "half_truths",
        _read_half_truths,
        {
            "acc": Condition([((0, 0), (0, 1))], 1 / 2),
            "order_acc": Condition([((0, 2), (0, 0)), ((0, 0), (0, 1))], 1 / 6),
        },
        {"acc": 0.406, "acc[relation]": 0.329},
        "CLIP on COCO's part, https://arxiv.org/abs/2602.23906",
    ),
    "composition": Suite("composition", _read_composition, _CHOICE),
}
"""Suites by name; composition takes rows of `vlmo.data.schema.COMPOSITION_FEATURES`."""


def _files(data: str, *patterns: str) -> list[Path]:
    path = Path(data).expanduser()
    if path.is_file():
        return [path]
    for folder in (path, path / "data"):
        files = sorted(chain.from_iterable(folder.glob(pattern) for pattern in patterns))
        if files:
            return files
    raise ValueError(f"{path}: expected {' or '.join(patterns)}, there or in data/")


def _images_folder(data: str, images: Path | None, *names: str) -> Path:
    """Return the folder that was given, or one beside the files: `images`, `names`, or their own."""
    if images is not None:
        return images.expanduser()
    path = Path(data).expanduser()
    root = path.parent if path.is_file() else path
    folders = [root / name for name in ("images", *names, "data/images")]
    return next(filter(Path.is_dir, folders), root)


def _json_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a list or of an object of rows, with their numbers or keys."""
    content = read_json(file)
    if not isinstance(content, dict | list):
        raise ValueError(f"{file}: expected a list or an object of examples")
    rows = content.items() if isinstance(content, dict) else enumerate(content)
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{file}, {number}: expected an object with captions, not {row!r:.60}")
        yield str(number), row


def _records(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of .jsonl and .parquet files, with words for errors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        if file.suffix != ".parquet":
            for line, row in table_records(file):
                yield f"{file}:{line}", row
            continue
        try:
            # Few at a time, as they hold images.
            for part in pq.ParquetFile(file).iter_batches(batch_size=64):
                for row in part.to_pylist():
                    yield str(file), row
        except pa.ArrowException as error:
            raise ValueError(f"{file}: no readable parquet file ({error})") from error


def _field(row: Mapping[str, Any], name: str, *, where: str) -> Any:
    if row.get(name) is None:
        raise ValueError(f"{where}: no {name}; its fields are {', '.join(row)}")
    return row[name]


def _text(row: Mapping[str, Any], name: str, *, where: str) -> str:
    text = str(_field(row, name, where=where)).strip()
    if not text:
        raise ValueError(f"{where}: {name} is empty; expected a text")
    return text


def _cell(row: Mapping[str, Any], name: str, folder: Path, *, where: str) -> ImageCell:
    """Return an image that a row holds, or that it names in a folder, maybe without a suffix."""
    value = _field(row, name, where=where)
    if isinstance(value, dict):
        return {"bytes": _field(value, "bytes", where=where), "path": None}
    path = Path(str(value))
    file = folder / path
    if not path.suffix:
        suffixes = (".png", ".jpg")
        file = next(filter(Path.is_file, map(file.with_suffix, suffixes)), file)
    if path.is_absolute() or ".." in path.parts or not file.is_file():
        raise ValueError(
            f"{where}: no image {value!r:.200} in {folder}; name its folder (--images)"
        )
    return image_at(file)
