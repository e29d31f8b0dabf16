"""Recipes: names and numbers of runs."""

from vlmo.recipes.paper import PAPER
from vlmo.recipes.quickstart import QUICKSTART
from vlmo.recipes.schema import Entry, Recipe
from vlmo.terminal import suggestion

__all__ = [
    "RECIPES",
    "Entry",
    "Recipe",
    "describe",
    "find_entry",
    "find_recipe",
    "register",
    "task_table",
]

SIZES = ("shapes", "base", "base-plus", "large", "large-plusplus", "giant")
"""Sizes of models, with which names of recipes begin; "shapes" is that of the quickstart."""
_ENTRIES: dict[str, Entry] = {}
RECIPES: dict[str, Recipe] = {}
"""Every recipe by its name; `register` adds some."""


def register(name: str, entry: Entry | Recipe) -> None:
    """Make a recipe known by a name, or with its description."""
    _ENTRIES[name] = entry if isinstance(entry, Entry) else Entry(entry, f"{entry.task.title}.")
    RECIPES[name] = _ENTRIES[name].recipe


for _name, _entry in (QUICKSTART | PAPER).items():
    register(_name, _entry)


def find_entry(name: str) -> Entry:
    """Return the recipe called `name` with its description; ValueError names the nearest if there is none."""
    if name in RECIPES:
        return _ENTRIES[name]
    raise ValueError(f"no recipe {name!r}{suggestion(name, RECIPES)} All: vlmo recipes")


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; ValueError names the nearest if there is none."""
    return find_entry(name).recipe


def describe(name: str) -> str:
    """Return the description of the recipe called `name`: what it trains, data, start, command, numbers to expect."""
    return find_entry(name).describe(name)


def task_table() -> list[tuple[str, str, str]]:
    """Return a row for each task: the name of its recipes without the size, the sizes, and what they train."""
    sizes_of_task: dict[str, list[str]] = {}
    about: dict[str, str] = {}
    for name, entry in _ENTRIES.items():
        # "base-plus-vqa" begins with "base-" too, so the longest size counts.
        size = max((size for size in SIZES if name.startswith(f"{size}-")), key=len, default="")
        task = name.removeprefix(f"{size}-")
        # A recipe's own description names its size or data.
        about[task] = f"{entry.recipe.task.title}." if task in about else entry.about
        sizes_of_task.setdefault(task, []).append(size)
    return [(task, ", ".join(sizes), about[task]) for task, sizes in sizes_of_task.items()]
