import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.prepare.toy_task_files import write

from vlmo.data.decoding import image_bytes
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source
from worlds import emoji, icons
from worlds.emoji import Emoji
from worlds.naming import Naming, caption_of, with_article

FILL = 'fill="currentColor"'
BELL = f'<path {FILL} d="M4 12V8a4 4 0 018 0v4z"/>'
BELL_LINE = '<path fill="none" stroke="currentColor" d="M4 12V8a4 4 0 018 0v4z"/>'
DISH = f'<path {FILL} d="M1 6h14a7 7 0 01-14 0z"/>'
TOWER = f'<path {FILL} d="M7 1h2v11h3v3h-8v-3h3z"/>'
GATE = f'<path {FILL} d="M1 2h14v13h-3v-9h-8v9h-3z"/>'
BOW = f'<path {FILL} d="M1 3l7 5l7-5v10l-7-5l-7 5z"/>'
KITE = '<path fill="#e00" d="M8 1l5 6l-5 8l-5-8z"/><path fill="#06c" d="M8 1v14l5-8z"/>'
STAIRS = '<path fill="#093" d="M1 15h14v-12h-3v3h-3v3h-4v3h-4z"/>'
RING = '<circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="{}"/>'

SETS = {
    "plain": {"bell-outline": BELL_LINE, "bell": BELL, "tower-2-fill": TOWER, "gone": GATE},
    "material-symbols": {"dish-rounded": DISH, "dish": DISH + BOW, "dish-sharp": DISH + BELL},
    "mdi": {"dish-outline": GATE + BOW, "great-gate-open": GATE, "same-bell": BELL},
    "colors": {"stairs-24": STAIRS, "ring": RING.format(1.8), "kite": KITE, "keep": GATE + TOWER},
    "lucide": {"ring": RING.format(2), "bell": BELL + TOWER, "gate-open": GATE + TOWER},
    "game-icons": {"tower": TOWER + BOW, "bow-tie": BOW, "red-bow": BOW + DISH, "food": BOW + BELL},
    "copyleft": {"bow": BOW},
    "unpaid": {"bow": BOW},
    "signs": {"bow": BOW},
}
TERMS = {
    "plain": ("MIT", "UI 24px"),
    "material-symbols": ("Apache-2.0", "Material"),
    "mdi": ("Apache-2.0", "Material"),
    "colors": ("CC-BY-4.0", "UI Multicolor"),
    "lucide": ("ISC", "UI 24px"),
    "game-icons": ("CC-BY-3.0", "Thematic"),
    "copyleft": ("GPL-3.0", "UI 24px"),
    "unpaid": ("CC-BY-NC-4.0", "UI 24px"),
    "signs": ("CC0-1.0", "Logos"),
    "noto": ("Apache-2.0", "Emoji"),
}
MORE = {
    "plain": {
        "aliases": {
            "alarm-outline": {"parent": "bell-outline"},
            "llab": {"parent": "bell", "hFlip": True},
            "old": {"parent": "bell", "hidden": True},
        },
        "categories": {"Food & Drink": ["tower-2-fill"], "Actions": ["bell"]},
    },
    "material-symbols": {"suffixes": {"": "Regular", "rounded": "Rounded", "sharp": "Sharp"}},
}


def package(root: Path, sets: dict = SETS) -> Path:
    """Write the package as npm leaves it below node_modules."""
    folder, facts = root / "node_modules/@iconify/json", {}
    for name, bodies in sets.items():
        licence, category = TERMS[name]
        facts[name] = {"name": name, "license": {"spdx": licence}, "category": category}
        drawn = {key: {"body": body} for key, body in bodies.items()}
        if "gone" in drawn:
            drawn["gone"]["hidden"] = True
        content = {"prefix": name, "icons": drawn, "width": 16, "height": 16, **MORE.get(name, {})}
        write(folder / "json" / f"{name}.json", json.dumps(content))
    write(folder / "collections.json", json.dumps(facts))
    return root


pytestmark = pytest.mark.usefixtures("no_emoji")

BARE = {
    "home-outline": "home",
    "arrow-left-20-filled": "arrow left",
    "folder-2-duotone": "folder",
    "dice-4": "dice 4",
    "user-circle-02": "user circle",
    "cloud-light": "cloud",
    "traffic-light": "traffic light",
    "waving-hand-medium-dark-skin-tone": "waving hand",
    "baseline-lock": "lock",
    "x": None,
    "f053": None,
    "uni7121-box": None,
}


def test_names_lose_their_style_size_and_serial_number():
    names = ["cloud", *(f"name{number}" for number in range(30))]
    found = {"icons": dict.fromkeys(names), "prefixes": {"baseline": "Baseline"}}
    assert {name: caption_of(Naming.of(found, {}).bare(name)) for name in BARE} == BARE


TYPED = (
    "a red bell, an umbrella, an icon, a user, a usb drive, a unicorn, an uninstall, a one o'clock, an onion, a euro, "
    "a ewe, an hourglass, a house"
)


def test_names_get_their_article() -> None:
    for typed in TYPED.split(", "):
        name = typed.partition(" ")[2]
        *known, last = with_article([name, "synonym"], key="x")
        assert known == [name, "synonym"]
        assert last in {typed, f"a picture of {typed}", f"an icon of {typed}"}
    for name in ("3d cube", "Japan"):
        assert with_article([name, "synonym"], key="x") == (name, "synonym")


def test_every_way_of_typing_is_used_about_as_often_as_planned() -> None:
    typed = [with_article(["bell"], key=f"set:{number}")[1] for number in range(400)]
    kinds = ("a bell", "a picture of a bell", "an icon of a bell")
    shares = [typed.count(words) / 400 for words in kinds]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.08)


def test_names_lose_a_category_that_most_of_them_begin_with():
    found = {"icons": dict.fromkeys(("food-drink-tea", "food-drink-cake", "pen"))}
    by_icon = {key: ["FoodDrink"] for key in ("food-drink-tea", "food-drink-cake")}
    assert Naming.of(found, by_icon).bare("food-drink-tea", ["FoodDrink"]) == "tea"
    rare = Naming.of(found, {**by_icon, "a": [], "b": []})
    assert rare.bare("food-drink-tea", ["FoodDrink"]) == "food-drink-tea"


def test_captions_are_names_synonyms_and_categories_and_tests_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(icons, "KNOWN_FROM", 1)  # one training image makes a name known
    monkeypatch.setattr(icons, "PAINT", ((1.0, icons.PLAIN),))
    prepare("icons", root=package(tmp_path / "in"), out=tmp_path / "out")
    captions = {}
    for split in ("train", "test", "new_names"):
        rows = open_source(str(tmp_path / "out"), split=split)
        captions[split] = dict(zip(rows["image_id"], rows["captions"], strict=True))
    assert captions["train"] == {
        "plain:bell-outline": ["bell", "alarm", "a bell"],
        "plain:bell": ["bell", "same bell", "a picture of a bell"],  # mdi's is the same drawing
        "plain:tower-2-fill": ["tower", "tower, food and drink", "a tower"],
        "material-symbols:dish-rounded": ["dish", "a dish"],
        "mdi:dish-outline": ["dish", "an icon of a dish"],  # two of a family, whose sets have four
        "mdi:great-gate-open": ["great gate open", "a great gate open"],
        # No "ring", which is lucide's in a thinner line, and no "keep": lucide's "gate open", for `lucide-icons`.
        "colors:kite": ["kite", "an icon of a kite"],
        "colors:stairs-24": ["stairs", "a stairs"],
    }
    tested = {"lucide:bell": ["bell"], "lucide:ring": ["ring"], "game-icons:tower": ["tower"]}
    assert captions["test"] == tested
    # "gate open" stands in training's "great gate open", "food" in a category, "red bow" could in "a red bow ... on".
    assert captions["new_names"] == {"game-icons:bow-tie": ["bow tie"]}
    train = open_source(str(tmp_path / "out"), split="train")
    for source, licence in zip(train["source"], train["licence"], strict=True):
        assert licence == TERMS[source][0]


def test_painted_icons_have_the_colors_that_their_words_say():
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 4, 8))
    kinds = set()
    for number in range(200):
        image, words = icons.paint(drawing, key=f"set:{number}")
        assert words == icons.paint(drawing, key=f"set:{number}")[1]
        ink, ground = image.convert("RGBA").getpixel((1, 1)), image.convert("RGBA").getpixel((6, 6))
        if words is None:
            kinds.add("plain")
            assert (ink, ground) == ((0, 0, 0, 255), (0, 0, 0, 0))
            continue
        color, _, name = words.removeprefix("an ").removeprefix("a ").partition(" {}")
        kinds.add(name[:3])
        assert ink == (*icons.COLORS[color], 255)
        below = icons.COLORS[name.removeprefix(" on ")] if name else icons.COLORS["white"]
        assert ground == ((*below, 255) if name else (*ink[:3], 0))
        assert np.linalg.norm(np.subtract(ink[:3], below)) > 100
    assert kinds == {"plain", "", " on"}


def test_painted_icons_keep_their_name_as_a_caption(tmp_path, monkeypatch):
    monkeypatch.setattr(icons, "PAINT", ((1.0, icons.GROUND),))
    prepare("icons", root=package(tmp_path / "in"), out=tmp_path / "out")
    train = {row["image_id"]: row["captions"] for row in open_source(str(tmp_path / "out"))}
    name, *_, painted, with_article = train["plain:bell"]
    assert (name, with_article) == ("bell", "a picture of a bell")
    assert " bell on " in painted
    assert train["colors:kite"] == ["kite", "an icon of a kite"]  # it has colors of its own


def test_emoji_that_are_held_out_are_left_out_by_name_and_by_look(tmp_path, monkeypatch):
    png = image_bytes(Image.new("RGBA", (40, 40), (0, 0, 255, 255)), "PNG")
    drawings = {"1f400": emoji.Drawing("openmoji", "1f400", "", png, np.zeros(1, np.float32))}
    names = {"1f436": ("dog face",), "1f400": ("rat",), "1f468-1f3fb": ("man: light", "côte d'or")}
    concepts = emoji.Concepts(("1f436", "1f400"), ("1f400", "1f468"))
    monkeypatch.setattr(emoji, "NUM_TEST", 0)
    twemoji = drawings | {"1f468": replace(drawings["1f400"], codes="1f468")}
    monkeypatch.setattr(icons, "read_emoji", lambda: Emoji(names, twemoji, drawings, concepts))
    blue = '<path fill="#00f" d="M2 2h9v9h-9z"/>'
    sets = {
        "noto": {"dog-face": BELL, "rat": DISH, "cote-dor": TOWER, "square": blue},
        "plain": {"rat-fill": GATE, "rat-trap": BOW},
    }
    prepare("icons", root=package(tmp_path / "in", sets), out=tmp_path / "out")
    left = set(open_source(str(tmp_path / "out"))["image_id"])
    assert left == {"noto:dog-face", "plain:rat-trap"}


def test_the_package_is_found_where_npm_leaves_it_and_else_asked_for(tmp_path):
    root = package(tmp_path / "in", {"plain": SETS["plain"]})
    for number, place in enumerate(("node_modules", "node_modules/@iconify/json")):
        summary = prepare("icons", root=root / place, out=tmp_path / f"out{number}")
        assert summary.splits["train"]["rows"] == 3
    with pytest.raises(ValueError, match="npm pack @iconify/json"):
        prepare("icons", root=tmp_path, out=tmp_path / "no")
    (root / "node_modules/@iconify/json/json/plain.json").unlink()
    with pytest.raises(ValueError, match=r"plain\.json; get the package again"):
        prepare("icons", root=root, out=tmp_path / "no")
