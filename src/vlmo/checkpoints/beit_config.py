"""What `config.json` of a Beit folder says: checked, and compared with what the weights say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from vlmo.model import VLMoConfig

_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "image_size",
    "patch_size",
)
_PER_AXIS = ("image_size", "patch_size")  # may be a pair of equal numbers


def checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with sizes of pictures and patches as one number.

    Raises:
        ValueError: It is of another model, or a value is none of its kind.
    """
    given = dict(config)
    if (kind := given.get("model_type", "beit")) != "beit":
        raise ValueError(f"config.json is of a model of type {kind!r}; expected 'beit'.")
    if (activation := given.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"config.json has hidden_act {activation!r}; VLMo computes 'gelu'.")
    for name in _PER_AXIS:
        match given.get(name):
            case [height, width] if height == width:
                given[name] = height
    for name in (*_SIZES, "vocab_size"):
        if name in given and (type(given[name]) is not int or given[name] < 1):
            raise ValueError(f"config.json has {name} {given[name]!r}; expected a whole number of at least 1.")
    for name, least in (("layer_norm_eps", "above 0"), ("layer_scale_init_value", "of at least 0")):
        value = given.get(name, 1.0)
        if type(value) not in {int, float} or value < 0 or (value == 0 and least == "above 0"):
            raise ValueError(f"config.json has {name} {value!r}; expected a number {least}.")
    return given


def check_sizes(given: Mapping[str, Any], config: VLMoConfig) -> None:
    """Refuses a folder whose weights are of another size than it says, as where its top blocks are lost.

    Raises:
        ValueError: They are.
    """
    read = vars(config)
    wrong = [
        f"{name} {given[name]}, the weights {read[name]}"
        for name in _SIZES
        if given.get(name, read[name]) != read[name]
    ]
    if wrong:
        raise ValueError(f"config.json says {'; '.join(wrong)}; expected the same. Is the folder whole?")


def class_names(given: Mapping[str, Any], *, count: int) -> dict[str, Any]:
    """Names of the classes as a configuration takes them; only their number where `config.json` names none.

    Raises:
        ValueError: The names are not those of `count` classes.
    """
    named = given.get("id2label")
    if named is None:
        return {"num_labels": count}
    names: dict[int, str] = {}
    if isinstance(named, dict):
        pairs = cast("dict[Any, Any]", named).items()
        names = {int(number): name for number, name in pairs if str(number).isdecimal() and isinstance(name, str)}
    if sorted(names) != list(range(count)) or len(names) != len(named):
        raise ValueError(
            f"id2label of config.json does not name the {count} classes; expected numbers from 0 and names."
        )
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}
