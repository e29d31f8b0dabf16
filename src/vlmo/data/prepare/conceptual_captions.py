"""Conceptual Captions 3M and 12M, as img2dataset downloads them; sets such as LAION have the same form."""

import functools

from vlmo.data.prepare.image_text_shards import open_shards

NAME = "conceptual_captions"
LICENCE = "captions free to use, naming Google LLC as their source; images belong to their owners"
KNOWN_SIZES: dict[str, int] = {}  # links die, so everyone has another number of images

open_set = functools.partial(open_shards, name=NAME, licence=LICENCE)
