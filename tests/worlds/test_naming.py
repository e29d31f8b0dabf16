import pytest

from worlds.naming import with_article


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("red bell", "a red bell"),
        ("umbrella", "an umbrella"),
        ("icon", "an icon"),
        ("user", "a user"),
        ("usb drive", "a usb drive"),
        ("unicorn", "a unicorn"),
        ("uninstall", "an uninstall"),
        ("one o'clock", "a one o'clock"),
        ("onion", "an onion"),
        ("euro", "a euro"),
        ("ewe", "a ewe"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("3d cube", None),
        ("Japan", None),
    ],
)
def test_names_get_their_article(name: str, typed: str | None) -> None:
    captions = with_article([name, "synonym"], key="x")
    if typed is None:
        assert captions == (name, "synonym")
        return
    assert captions[:2] == (name, "synonym")
    assert captions[2] in {typed, f"a picture of {typed}", f"an icon of {typed}"}


def test_every_way_of_typing_is_used_about_as_often_as_planned() -> None:
    typed = [with_article(["bell"], key=f"set:{number}")[1] for number in range(400)]
    shares = [typed.count(words) / 400 for words in ("a bell", "a picture of a bell", "an icon of a bell")]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
