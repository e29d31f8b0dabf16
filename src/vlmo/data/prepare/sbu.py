"""SBU Captions, as img2dataset downloads them."""

import functools

from vlmo.data.prepare.image_text_shards import open_shards

NAME = "sbu"
LICENCE = "captions for research; images under the Flickr terms of their owners"
KNOWN_SIZES: dict[str, int] = {}  # links die, so everyone has another number of images

open_set = functools.partial(open_shards, name=NAME, licence=LICENCE)
