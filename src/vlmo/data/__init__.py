"""Data sets, from files to batches."""

GENERATORS = {b"scene:": "vlmo.data.builtin.compose"}
"""Modules whose function `compose` makes an image of bytes that begin so and describe it, for `decoding`."""
