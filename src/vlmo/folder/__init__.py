"""Folders that are whole or not there, and the card of a model folder."""

from vlmo.folder.atomic import (
    atomic_file,
    need_writable,
    path_aside,
    remove_folder,
    remove_leftovers,
    write_file,
    write_folder,
)
from vlmo.folder.card import add_figures, add_section, read_data, rename_card, write_card
from vlmo.folder.classes import architectures
from vlmo.folder.contents import DataSource, Measurement, ModelCard

__all__ = [
    "DataSource",
    "Measurement",
    "ModelCard",
    "add_figures",
    "add_section",
    "architectures",
    "atomic_file",
    "need_writable",
    "path_aside",
    "read_data",
    "remove_folder",
    "remove_leftovers",
    "rename_card",
    "write_card",
    "write_file",
    "write_folder",
]
