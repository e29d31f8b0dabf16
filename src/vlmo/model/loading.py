"""Errors of reading a model folder, in one line that names the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import logging


@contextmanager
def loading(folder: str | Path) -> Iterator[None]:
    """Turns what transformers and safetensors raise inside into one line; their report of tensors is not printed.

    Raises:
        ValueError: Something inside failed on a folder that is damaged or not whole.
    """
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ValueError(f"{folder}: its tensors have other shapes than its config.json says") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    finally:
        logging.set_verbosity(before)
