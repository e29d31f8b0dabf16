import pytest

from worlds.naming import with_article

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
    shares = [typed.count(words) / 400 for words in ("a bell", "a picture of a bell", "an icon of a bell")]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
