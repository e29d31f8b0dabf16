"""Data sets by name: the built-in ones, or a path to people's own."""

import difflib
from pathlib import Path

from datasets import Dataset

from vlmo.data import builtin
from vlmo.data.decoding import MAX_PIXELS, ImageCell, decode_image
from vlmo.data.files import open_path
from vlmo.data.schema import FEATURES

__all__ = ["FEATURES", "MAX_PIXELS", "ImageCell", "decode_image", "open_source", "source_names"]


def source_names() -> tuple[str, ...]:
    """Names of the built-in data sets."""
    return builtin.NAMES


def open_source(
    name: str,
    *,
    split: str = "train",
    cache_dir: Path | None = None,
    test_share: float = 0.05,
    max_words: int = 128,
) -> Dataset:
    """Rows with the columns of `FEATURES` (and perhaps more), not yet checked: see `vlmo.data.quarantine.keep_good`.

    A path may be a folder that `datasets` saved; a folder of pictures with `captions.csv`, `.tsv` or `.jsonl`; such a
    table itself; a folder of pictures alone; a `.txt` file or a folder of them, one sentence or document a line.

    Args:
        name: A built-in name (`source_names`) or a path.
        split: "train" or "test"; for data with a `split` column, any value of it.
        cache_dir: Where built-in sets are kept once built; by default `$VLMO_CACHE`, else `~/.cache/vlmo`.
        test_share: Paths without a `split` column only: share of rows, chosen by a hash of `image_id`, that are "test".
        max_words: Text only: longer lines are cut into pieces, at ends of sentences where possible.

    Raises:
        ValueError: Unknown name (the nearest right one is given), unknown split, or data in no known form.
    """
    if not 0 <= test_share < 1 or max_words < 1:
        raise ValueError(f"test_share {test_share} must be in [0, 1), max_words {max_words} at least 1")
    if name in builtin.NAMES:
        return builtin.load(name, split=split, cache_dir=cache_dir)
    path = Path(name).expanduser()
    if path.exists():
        return open_path(path.absolute(), split=split, test_share=test_share, max_words=max_words)
    near = difflib.get_close_matches(name, builtin.NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no data set {name!r}: it is neither a built-in name nor a path that exists.{hint} "
        f"Built-in names: {', '.join(builtin.NAMES)}."
    )
