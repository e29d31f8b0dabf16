"""Data and recipes of `vlmo-small`, outside of the package and on its public API: `vlmo ... --import worlds`."""

from vlmo.data import builtin, prepare
from vlmo.recipes import register
from worlds.recipes import PREPARED, entries

builtin.register("worlds.emoji", "drawings-pairs", "drawings-concepts")
builtin.register("worlds.english", "english-text")
builtin.register(
    "worlds.scenes",
    *(
        "scenes",
        "scenes-binding",
        "scenes-questions",
        "scenes-statements",
        "scenes-masks",
        "scenes-kinds",
    ),
)
for _name in PREPARED:
    prepare.register(_name, f"worlds.{_name}.open_set")
for _name, _entry in entries().items():
    register(_name, _entry)
