"""The page over a collection of photographs: it loads as one scrolls, steps through large images, refines."""

import os
import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from playwright.sync_api import Page, Route, expect

from tests.integrations.toy_gallery import drawings
from tests.serving.conftest import PATIENCE_MS
from tests.serving.test_page import ACCESSIBLE, FOCUS_IS_SHOWN, SIDEWAYS, SMALL, WIDTH, ask, cards
from tests.serving.toy_service import photo_folder, served
from vlmo.retrieval import Index, build_index
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts

pytestmark = pytest.mark.browser

NUM = 110
PHONE = {"width": 390, "height": 844, "is_mobile": True, "has_touch": True}
ROWS = """[...document.querySelectorAll("#grid > li:not(.month, .rest, .less-likely)")].map((li) => {
  const [box, frame] = [li, li.querySelector(".frame")].map((each) => each.getBoundingClientRect());
  return [Math.round(box.top + scrollY), box.left, box.right, Math.round(frame.height)];
})"""


@pytest.fixture(scope="module")
def photos(parts, tmp_path_factory) -> Parts:
    folder = photo_folder(tmp_path_factory.mktemp("photos"), number=NUM)
    build_index(parts.encoder, [folder], out=folder / "index")
    return Parts(parts.encoder, Index(folder / "index", in_memory=True))


@pytest.fixture(scope="module")
def address(photos) -> Iterator[str]:
    with served(create_app(photos)) as address:
        yield address


def names(page: Page) -> list[str]:
    return page.locator("#grid .what").all_inner_texts()


def load_all(page: Page, number: int = NUM) -> None:
    until = time.monotonic() + PATIENCE_MS / 1000
    while (shown := cards(page).count()) < number:
        alerts = page.get_by_role("alert").all_inner_texts()
        assert time.monotonic() < until, f"{shown} of {number} images, {alerts}"
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(50)


def rows_of(page: Page) -> list[list]:
    rows: dict[int, list] = {}
    for top, *others in page.evaluate(ROWS):
        rows.setdefault(top, []).append(others)
    return list(rows.values())


@pytest.mark.parametrize("width", [390, 1280])
def test_grid_is_justified_and_grows_as_one_scrolls(open_page, address, width) -> None:
    page = open_page(f"{address}/?q=a+red+circle&rerank=0", width=width)
    expect(page.locator("#status")).to_contain_text("The first 48 images")
    load_all(page)
    expect(page.locator("#more")).to_be_hidden()
    assert len(set(names(page))) == NUM  # each once
    sides = "(grid) => { const b = grid.getBoundingClientRect(); return [b.left, b.right]; }"
    grid = page.locator("#grid").evaluate(sides)
    *whole, last = rows_of(page)
    ends_early = []
    for row in whole:
        assert max(each[2] for each in row) - min(each[2] for each in row) <= 1  # equally high
        is_whole = (row[0][0], row[-1][1]) == pytest.approx(grid, abs=1)
        ends_early.append(not is_whole)
    # The row before the line of less likely images.
    assert sum(ends_early) <= page.locator("#grid .less-likely").count()
    assert last[-1][1] <= grid[1] + 1
    shown = re.findall(r"similarity (-?0\.\d\d|1\.00)", page.locator("#grid").inner_text())
    similarities = [float(each) for each in shown]
    assert similarities == sorted(similarities, reverse=True)


def test_dates_go_back_month_by_month_and_can_be_entered_anywhere(open_page, address) -> None:
    page = open_page(address)
    page.get_by_role("link", name="Dates").click()
    expect(page.get_by_role("link", name="Dates")).to_have_attribute("aria-current", "page")
    expect(page.locator("#chips button:visible")).to_have_count(0)
    load_all(page)
    months = page.locator("#grid h2").all_inner_texts()
    assert months[:2] == ["November 2021", "October 2021"]
    assert len(months) == len(set(months)) == 11
    page.locator("#months select").select_option("2021-03")
    expect(page.locator("#grid h2").first).to_have_text("March 2021")
    expect(cards(page)).to_have_count(30)
    assert "to=2021-03-31" in page.url
    page.go_back()
    expect(page.locator("#grid h2").first).to_have_text("November 2021")
    assert cards(page).count() == NUM  # as it was left


def test_images_go_on_loading_when_the_browser_tells_of_two_changes(open_page, address) -> None:
    page = open_page("about:blank")
    page.add_init_script(
        """window.IntersectionObserver = class {
          constructor(tell) { window.tell = (...all) => tell(all.map((isIntersecting) => ({ isIntersecting }))); }
          observe() {}
          unobserve() {}
        };"""
    )
    page.goto(f"{address}/?sort=date")
    expect(cards(page)).to_have_count(48)
    page.evaluate("tell(false, true)")
    expect(cards(page)).to_have_count(96)


@pytest.mark.parametrize(("tab", "status"), [("Albums", 200), ("Dates", 200), ("Albums", 500)])
def test_what_comes_late_for_an_earlier_wish_is_not_shown(open_page, address, tab, status) -> None:
    page, held = open_page(address), []
    expect(page.locator("#strip .card")).to_have_count(12)

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/groups", hold)
    with page.expect_request("**/v1/groups"):
        page.get_by_role("link", name=tab).click()
    ask(page, "a red circle")
    expect(page.locator("#status")).to_contain_text("reranked")
    shown, said = names(page), page.locator("#status").inner_text()
    (late,) = held
    with page.expect_response("**/v1/groups"):
        late.fulfill(response=late.fetch(), status=status)
    page.wait_for_timeout(200)
    assert names(page)[: len(shown)] == shown
    assert page.locator("#status").inner_text() == said
    assert page.locator("#months").is_hidden()
    assert page.get_by_role("alert").count() == 0


def test_albums_open_by_date(open_page, address) -> None:
    page = open_page(address)
    page.get_by_role("link", name="Albums").click()
    expect(page.locator("#status")).to_have_text("2 albums")
    expect(cards(page).first).to_contain_text("Italy/Rome")
    expect(cards(page).first).to_contain_text("55 images")
    assert page.evaluate(ACCESSIBLE) == []
    cards(page).first.click()
    expect(page.get_by_role("button", name="Remove the filter album: Italy/Rome")).to_be_visible()
    expect(page.locator("#grid h2").first).to_have_text("November 2021")
    page.go_back()
    expect(page.locator("#status")).to_have_text("2 albums")


def test_large_view_steps_with_arrows_and_past_what_was_loaded(open_page, address) -> None:
    page = open_page(f"{address}/?sort=date")
    expect(cards(page)).to_have_count(48)
    cards(page).first.click()
    expect(page.get_by_role("button", name="Previous image")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(cards(page).first).to_be_focused()  # given back a moment after the large view is closed
    cards(page).nth(44).focus()
    page.keyboard.press("Enter")
    title = page.locator("#detail-title")
    seen = [title.inner_text()]
    for _ in range(6):
        expect(page.get_by_role("button", name="Next image")).to_be_visible()
        page.keyboard.press("ArrowRight")
        seen.append(title.inner_text())
    assert seen == names(page)[44:51]
    page.get_by_role("button", name="Previous image").click()
    assert title.inner_text() == seen[-2]
    expect(page.locator("#detail-image")).to_have_attribute("src", re.compile("^/v1/images/"))
    page.keyboard.press("Escape")
    expect(cards(page).nth(49)).to_be_focused()


def test_more_and_not_like_this_change_the_results_and_can_be_taken_back(
    open_page, address
) -> None:
    page = open_page(f"{address}/?q=a+red+circle")
    expect(cards(page)).to_have_count(48)
    first = names(page)[0]
    cards(page).first.click()
    page.get_by_role("button", name="Not like this").click()
    chip = page.get_by_role("button", name="Remove: not like this")
    expect(chip).to_be_visible()
    expect(page.locator("#grid")).not_to_contain_text(first)
    less = names(page)
    cards(page).nth(1).click()
    page.get_by_role("button", name="More like this").click()
    expect(page.get_by_role("button", name="Remove: like this", exact=True)).to_be_visible()
    expect(page.locator("#grid")).not_to_contain_text(less[1])
    assert page.evaluate(ACCESSIBLE) == []
    assert re.search(r"\?q=a\+red\+circle&like=\w+&unlike=\w+$", page.url)
    page.reload()
    expect(chip).to_be_visible()
    chip.click()
    expect(chip).to_be_hidden()
    page.get_by_role("button", name="Remove: like this").click()
    expect(page.locator("#status")).to_contain_text("reranked")
    assert names(page)[0] == first
    page.get_by_role("link", name="Dates").click()
    expect(page.locator("#grid h2").first).to_be_visible()
    cards(page).first.click()
    expect(page.get_by_role("button", name="More like this")).to_be_visible()
    expect(page.get_by_role("button", name="Not like this")).to_be_hidden()  # than what?


def test_keys_go_from_image_to_image(open_page, address) -> None:
    page = open_page(f"{address}/?sort=date")
    expect(cards(page)).to_have_count(48)
    cards(page).first.focus()
    place = "[...document.querySelectorAll('#grid .card')].indexOf(document.activeElement)"
    seen = []
    for key in ("ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "End", "Home"):
        page.keyboard.press(key)
        assert page.evaluate(FOCUS_IS_SHOWN), key
        seen.append(page.evaluate(place))
    right, below, above, left, last, first = seen
    assert (right, left, last, first) == (1, 0, 47, 0)
    assert below > right
    assert above in {0, right}  # whichever middle is nearer


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_shows_all_of_it(open_page, address, scheme) -> None:
    page = open_page(f"{address}/?sort=date", color_scheme=scheme, **PHONE)
    expect(cards(page)).to_have_count(48)

    def check() -> None:
        assert page.evaluate(SIDEWAYS) <= 390
        assert page.evaluate(SMALL) == []
        assert page.evaluate(ACCESSIBLE) == []

    check()
    cards(page).nth(1).tap()
    title = page.locator("#detail-title")
    before = title.inner_text()
    check()
    swipe = """([from, to]) => { const area = document.querySelector(".detail-image");
      const touch = (x) => new Touch({ identifier: 1, target: area, clientX: x, clientY: 200 });
      area.dispatchEvent(new TouchEvent("touchstart", { touches: [touch(from)], changedTouches: [touch(from)] }));
      area.dispatchEvent(new TouchEvent("touchend", { touches: [], changedTouches: [touch(to)] })); }"""
    page.evaluate(swipe, [300, 100])
    assert title.inner_text() == names(page)[2]
    page.evaluate(swipe, [100, 300])
    assert title.inner_text() == before
    page.evaluate(swipe, [100, 110])  # a tap
    assert title.inner_text() == before
    page.get_by_role("button", name="Close").tap()
    page.get_by_role("link", name="Albums").tap()
    expect(page.locator("#status")).to_have_text("2 albums")
    check()


def test_page_counts_images_while_they_are_indexed(open_page, address, photos, monkeypatch) -> None:
    monkeypatch.setattr(Index, "complete", property(lambda _: False))
    page = open_page(address)
    expect(page.locator("#collection")).to_have_text("110 images, more are being indexed")
    monkeypatch.undo()
    expect(page.locator("#collection")).to_have_text("110 images")


MOVED = "getComputedStyle(document.querySelector('#map .world')).transform"


@pytest.mark.parametrize(("size", "scheme"), [({}, "light"), (PHONE, "dark")])
def test_map_is_drawn_and_goes_by_keys(open_page, photos, size, scheme) -> None:
    with served(create_app(photos)) as address:  # which has drawn no map yet
        page = open_page(address, color_scheme=scheme, **size)
        page.get_by_role("link", name="Map").click()
        expect(page.locator("#status")).to_contain_text("Drawing the map: ")
        expect(page.locator("#status")).to_have_text("110 images on the map")
        expect(page.get_by_role("link", name="Map")).to_have_attribute("aria-current", "page")
        images = page.locator("#map .world button")
        assert images.count() == NUM
        assert images.last.locator("img").evaluate(WIDTH) > 0
        assert page.evaluate(SIDEWAYS) <= size.get("width", 1200)
        assert page.evaluate(ACCESSIBLE) == []
        assert page.evaluate(SMALL) == []
        places = [page.evaluate(MOVED)]
        page.locator("#map").focus()
        for key in ("ArrowRight", "+", "0"):
            page.keyboard.press(key)
            places.append(page.evaluate(MOVED))
        assert places[0] == places[3]
        assert len({*places}) == 3
        page.locator("#map-groups button").first.press("Enter")
        assert page.evaluate(MOVED) != places[0]
        page.locator("#map").focus()
        page.keyboard.press("Tab")
        reached = []
        for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
            reached.append(page.evaluate("document.activeElement.dataset.id"))
            assert page.evaluate(FOCUS_IS_SHOWN)
            page.keyboard.press(key)
        assert len({*reached}) > 1
        page.keyboard.press("Enter")
        expect(page.locator("#detail")).to_contain_text("photo ")
        before = page.locator("#detail").get_attribute("data-id")
        page.keyboard.press("ArrowRight" if page.locator("#next").is_visible() else "ArrowLeft")
        after = page.locator("#detail").get_attribute("data-id")
        assert before != after
        page.keyboard.press("Escape")
        expect(page.locator(f"#map [data-id='{after}']")).to_be_focused()
        page.keyboard.press("Enter")
        place = page.evaluate(MOVED)
        page.get_by_role("button", name="More like this").click()
        expect(page.locator("#map")).to_be_hidden()
        expect(cards(page)).to_have_count(48)
        page.go_back()
        expect(page.locator("#map")).to_be_visible()
        assert page.evaluate(MOVED) == place  # as it was left
        page.context.close()


def test_map_moves_with_the_pointer_and_a_drag_opens_nothing(open_page, address) -> None:
    page = open_page(f"{address}/?view=map")
    image = page.locator("#map .world button").first
    box = image.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 20)
    page.mouse.up()
    moved = image.bounding_box()
    assert (moved["x"] - box["x"], moved["y"] - box["y"]) == pytest.approx((30, 20), abs=0.5)
    page.mouse.wheel(0, -400)
    assert image.bounding_box()["width"] > moved["width"]
    expect(page.locator("#detail")).to_be_hidden()
    image.click()
    expect(page.locator("#detail")).to_be_visible()


def test_map_that_cannot_be_drawn_is_one_line(open_page, address) -> None:
    page = open_page(address)
    refused = {"error": {"message": "the index has 1 image"}, "detail": "add images to it"}
    page.route("**/v1/map", lambda route: route.fulfill(status=404, json=refused))
    page.get_by_role("link", name="Map").click()
    expect(page.get_by_role("alert")).to_have_text("The index has 1 image.Add images to it.")
    expect(page.locator("#map")).to_be_hidden()


@pytest.fixture(scope="module")
def mixed(parts, tmp_path_factory) -> Parts:
    """Two dated photographs of January 2021, two of which only the files have dates, and what cannot be used."""
    folder = photo_folder(tmp_path_factory.mktemp("mixed"), number=2)
    for number, day in enumerate((datetime(2021, 1, 30), datetime(2022, 3, 4))):
        drawings()[number + 5].save(file := folder / f"copy {number}.png")
        os.utime(file, (day.timestamp(), day.timestamp()))
    for name in ("a.dng", "b.dng", "c.cr2"):
        (folder / name).touch()
    (folder / "Winter" / "bad.jpg").write_bytes(b"no image")
    build_index(parts.encoder, [folder], out=folder / "index")
    return Parts(parts.encoder, Index(folder / "index", in_memory=True), is_behind=lambda: True)


def test_images_without_a_date_of_their_own_are_in_no_month_and_say_so(open_page, mixed) -> None:
    with served(create_app(mixed)) as address:
        page = open_page(f"{address}/?sort=date")
        unknown = [f"Date unknown (file of {month})" for month in ("March 2022", "January 2021")]
        groups = ["January 2021", *unknown]
        expect(page.locator("#grid h2")).to_have_text(groups)
        assert names(page) == ["photo 001.png", "photo 000.png", "copy 1.png", "copy 0.png"]
        expect(cards(page).last).to_contain_text("file of 2021-01-30 00:00")
        months = page.locator("#months select")
        expect(months.locator("option")).to_have_text(["January 2021 (2)", "Date unknown (2)"])
        months.select_option("Date unknown (2)")
        expect(page.locator("#grid h2")).to_have_text(unknown)
        expect(page.get_by_role("button", name="Remove the filter date unknown")).to_be_visible()
        assert months.evaluate("(e) => e.selectedOptions[0].text") == "Date unknown (2)"
        cards(page).first.click()
        expect(page.locator("#detail-facts")).to_contain_text("unknown (file of 2022-03-04 00:00)")
        page.keyboard.press("Escape")
        months.select_option("January 2021 (2)")
        expect(page.locator("#grid h2")).to_have_text([groups[0], groups[2]])
        page.goto(f"{address}/?q=a+red+circle&from=2022-01-01")
        expect(page.locator("#note")).to_contain_text("1 of 1 have no date of their own")
        expect(cards(page).first).to_contain_text("file of 2022-03-04")
        page.context.close()


@pytest.mark.parametrize(("size", "scheme"), [({}, "light"), (PHONE, "dark")])
def test_what_is_left_out_is_counted_with_reasons_a_click_away(
    open_page, mixed, address, size, scheme
):
    with served(create_app(mixed)) as mixed_address:
        page = open_page(mixed_address, color_scheme=scheme, **size)
        count = page.get_by_role("button", name="not up to date, 4 left out")
        expect(page.locator(".collection")).to_contain_text("4 images")
        count.focus()
        assert page.evaluate(FOCUS_IS_SHOWN)
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="4 left out")
        reasons = ["2 .dngthis format is not", "1 .cr2this format is not", "Winter/bad.jpgnot an"]
        expect(dialog.get_by_role("listitem")).to_have_text([re.compile(f"^{r}") for r in reasons])
        expect(dialog).to_contain_text("The last update failed")
        assert page.evaluate(ACCESSIBLE) == []
        assert page.evaluate(SIDEWAYS) <= size.get("width", 1200)
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(count).to_be_focused()
        page.goto(address)
        expect(page.locator("#collection")).to_have_text("110 images")
        expect(page.locator("#skipped")).to_be_hidden()  # where nothing is left out
        page.context.close()


def test_index_without_columns_of_photographs_has_the_map_alone(open_page, parts) -> None:
    class Plain(Index):
        columns = {"year": "number"}

    with served(create_app(Parts(parts.encoder, Plain(parts.index.folder)))) as address:
        page = open_page(address)
        expect(page.locator("#collection")).to_have_text("24 images")
        expect(page.locator("#tabs a:visible")).to_have_text(["Map"])
        page.context.close()
