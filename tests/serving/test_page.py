import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import encoded
from tests.serving.toy_service import served
from vlmo.retrieval import Index
from vlmo.retrieval.presence import Background
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts
from vlmo.serving.settings import Settings

pytestmark = pytest.mark.browser

FOCUS_IS_SHOWN = """(() => { const e = document.activeElement; return [e, e.parentElement, e.nextElementSibling].some(
  (each) => each && getComputedStyle(each).outlineStyle !== "none"); })()"""
WIDTH = "async (image) => { await image.decode(); return image.naturalWidth; }"
# Nothing to press is lower than 24 pixels: WCAG 2.2, 2.5.8.
SMALL = """[...document.querySelectorAll("button, summary, .switch, .upload, select, .tabs a")].filter(
  (e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML)"""
SIDEWAYS = "document.documentElement.scrollWidth"
ACCESSIBLE = (Path(__file__).parent / "accessible.js").read_text()


@pytest.fixture(scope="module")
def address(parts) -> Iterator[str]:
    with served(create_app(parts)) as address:
        yield address


@pytest.fixture
def page(open_page, address) -> Page:
    return open_page(address)


def cards(page: Page):
    return page.locator("#grid .card")


def ask(page: Page, words: str) -> None:
    page.get_by_label("Words that describe the image").fill(words)
    page.keyboard.press("Enter")


def search(page: Page, words: str) -> None:
    ask(page, words)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"\d+ images? in \d+\.\d\d s"))


def upload(page: Page, image: int | bytes, *, name="mine.png", kind="image/png") -> None:
    data = image if isinstance(image, bytes) else encoded(drawings()[image])
    file = {"name": name, "mimeType": kind, "buffer": data}
    page.get_by_label("Search by an image of yours").set_input_files(file)


def test_words_find_the_right_image_first_reranked_if_wanted(page) -> None:
    expect(page.locator("#strip .card")).to_have_count(12)
    search(page, "a red circle")
    first = cards(page).first
    expect(first).to_contain_text("a red circle")
    expect(first).to_contain_text(re.compile(r"similarity 0\.\d\d"))
    assert first.locator("img").evaluate(WIDTH) > 0
    assert cards(page).count() == 24
    assert page.url.endswith("?q=a+red+circle")
    assert page.title().startswith("a red circle")
    expect(page.get_by_role("status")).to_contain_text("the best 24 reranked")
    expect(first).to_contain_text(re.compile(r"fits \d+(\.\d)? %"))
    page.get_by_text("Rerank", exact=True).click()
    expect(page.get_by_role("status")).not_to_contain_text("reranked")
    page.reload()
    expect(page.get_by_role("switch", name="Rerank")).not_to_be_checked()
    expect(cards(page).first).not_to_contain_text("fits")


@pytest.mark.parametrize(
    ("presence", "text"),
    [(0.18, ["Nothing here looks like this. The nearest:"]), (0.19, [])],
)
def test_line_stands_before_less_likely_images(page, monkeypatch, presence, text) -> None:
    monkeypatch.setattr(Background, "presence", lambda *_: presence)
    search(page, "zebra")
    expect(page.locator("#grid .less-likely")).to_have_text(text)
    assert cards(page).count() == 24


def test_uploaded_image_finds_itself_first(page) -> None:
    upload(page, 14)
    expect(cards(page).first).to_contain_text(CAPTIONS[14][0])
    expect(cards(page).first).to_contain_text("similarity 1.00")
    expect(page.locator("#by-image-name")).to_have_text("mine.png")
    page.get_by_role("button", name="Remove the image and search by words").click()
    expect(page.get_by_label("Words that describe the image")).to_be_focused()
    expect(cards(page)).to_have_count(0)


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_image_that_is_dropped_or_pasted_is_searched_by(page, how) -> None:
    code = """([how, data]) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
      const kind = how === "paste" ? ClipboardEvent : DragEvent;
      const fire = (type, init) => document.dispatchEvent(new kind(type, init));
      if (how === "paste") return fire("paste", { clipboardData: transfer, cancelable: true });
      fire("dragenter", { dataTransfer: transfer, cancelable: true });
      const shown = !document.getElementById("drop").hidden;
      fire("drop", { dataTransfer: transfer, cancelable: true });
      return shown && document.getElementById("drop").hidden;
    }"""
    expect(page.locator("#collection")).to_have_text("24 images")
    done = page.evaluate(code, [how, base64.b64encode(encoded(drawings()[3])).decode()])
    assert done is (how == "drop")
    expect(cards(page).first).to_contain_text(CAPTIONS[3][0])


def assert_image_opens_and_downloads(page: Page) -> None:
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download").click()
    assert downloading.value.suggested_filename == "a_red_circle.jpg"
    with Image.open(downloading.value.path()) as image:
        assert (image.format, image.size) == ("JPEG", drawings()[1].size)
    with page.context.expect_page() as opening:
        page.get_by_role("link", name="Open").click()
    expect(opening.value.locator("img")).to_be_visible()
    opening.value.close()


def test_similar_images_and_back_again(page) -> None:
    search(page, "a red circle")
    cards(page).first.click()
    dialog = page.get_by_role("dialog", name="a red circle")
    expect(dialog).to_contain_text("a_red_circle.png")
    expect(dialog).to_contain_text("color")
    expect(dialog.get_by_role("img", name="a red circle")).to_be_visible()
    assert_image_opens_and_downloads(page)
    dialog.get_by_role("button", name="More like this").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text("23 images")
    expect(page.get_by_role("button", name="Remove: like this")).to_be_visible()
    assert "a red circle" not in cards(page).all_inner_texts()[0]
    page.go_back()
    expect(page.get_by_label("Words that describe the image")).to_have_value("a red circle")
    expect(cards(page).first).to_contain_text("a red circle")
    page.go_back()
    expect(page.get_by_role("heading", name="What should the image show?")).to_be_visible()
    page.go_forward()
    expect(cards(page).first).to_contain_text("a red circle")


def sent(page: Page, act: Callable[[], object]) -> dict:
    """The body of the search that an act starts."""
    with page.expect_request("**/v1/search") as asking:
        act()
    return asking.value.post_data_json


IMAGE = {"image": "data:image/png;base64," + base64.b64encode(encoded(drawings()[14])).decode()}


def test_parts_of_a_query_are_typed_beside_words_or_an_image(page) -> None:
    beach, people = {"text": "on a beach", "weight": 1}, {"text": "people", "weight": -1}
    for line, body in (
        ("a dog", {"text": "a dog", "parts": []}),
        ('a dog +"on a beach" -people', {"text": "a dog", "parts": [beach, people]}),
        ("-people black-and-white “a - b”", {"text": "black-and-white a - b", "parts": [people]}),
        ("-red +2*dog", {"text": "dog", "parts": [{"text": "red", "weight": -0.5}]}),
    ):
        asked = sent(page, lambda line=line: ask(page, line))
        assert {name: asked[name] for name in ("text", "parts")} == body
    upload(page, 14)
    expect(cards(page).first).to_contain_text(CAPTIONS[14][0])
    image = IMAGE["image"]
    asked = sent(page, lambda: ask(page, "-0.5*people"))
    assert (asked["image"], asked["parts"]) == (image, [{"text": "people", "weight": -0.5}])
    asked = sent(page, lambda: ask(page, "a star -people"))
    assert (asked["text"], asked["parts"]) == ("a star", [{"image": image, "weight": 1}, people])
    expect(cards(page)).to_have_count(24)
    page.get_by_role("button", name="Remove the image").click()
    expect(page.get_by_label("Words that describe the image")).to_have_value("a star -people")
    assert page.url.endswith("?q=a+star+-people")


def test_link_keeps_parts_and_takes_what_is_not_wanted_away(page) -> None:
    search(page, "a red circle")
    expect(page.get_by_role("switch", name="Rerank")).to_be_enabled()
    assert "red" in cards(page).first.inner_text()
    search(page, "circle -red")
    expect(page.get_by_role("switch", name="Rerank")).to_be_disabled()
    expect(cards(page).first).not_to_contain_text("red")
    assert page.url.endswith("?q=circle+-red")
    first = cards(page).first.inner_text()
    page.reload()
    expect(page.get_by_label("Words that describe the image")).to_have_value("circle -red")
    expect(cards(page).first).to_have_text(first, use_inner_text=True)
    cards(page).first.click()
    page.get_by_role("button", name="More like this").click()
    expect(page.get_by_role("button", name="Remove: like this")).to_be_visible()
    expect(cards(page)).to_have_count(23)
    like = page.url.partition("&like=")[2]
    asked = sent(page, lambda: page.goto(f"{page.url.partition('?')[0]}?q=-red&like={like}"))
    assert (asked["like"], asked["parts"]) == ([like], [{"text": "red", "weight": -1}])
    expect(cards(page)).to_have_count(23)


def test_malformed_parts_are_one_line(page) -> None:
    for line, words in (
        ('dog -"people', '-"people is no part of a query.'),
        ("cats - dogs", "- is no part of a query."),
        ("dog -0.5*", "-0.5* is no part of a query."),
        ("dog +tree*", "+tree* is no part of a query."),
        ("-people", "There is nothing to subtract from."),
        ("dog -20*red", "greater than or equal to -10"),
        ("dog" + " -a" * 9, "at most 8 items"),
    ):
        ask(page, line)
        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(cards(page)).to_have_count(0)
        expect(page.get_by_label("Words that describe the image")).to_have_value(line)


def test_mode_of_search_is_chosen_and_kept_in_the_link(open_page, address) -> None:
    page = open_page(address, width=390)
    mode = page.get_by_label("Find by")
    expect(mode).to_have_value("auto")
    assert sent(page, lambda: ask(page, "a red circle"))["mode"] == "auto"
    assert sent(page, lambda: mode.select_option("words"))["mode"] == "words"
    expect(cards(page).first).to_contain_text("words 100 %")
    expect(page.get_by_role("switch", name="Rerank")).to_be_disabled()
    assert page.url.endswith("?q=a+red+circle&mode=words")
    assert page.evaluate(ACCESSIBLE) == []
    assert page.evaluate(SIDEWAYS) <= 390
    page.reload()
    expect(mode).to_have_value("words")
    ask(page, "flurble")
    expect(page.locator("#grid")).to_contain_text("Nothing here")
    upload(page, 14)
    expect(mode).to_be_disabled()
    expect(cards(page)).to_have_count(24)
    page.goto(f"{address}/?q=a+dog&mode=nonsense")
    expect(page.get_by_role("alert")).to_contain_text("'auto', 'vectors', 'words' or 'hybrid'")


def test_mode_needs_texts(open_page, parts, monkeypatch) -> None:
    monkeypatch.setattr(Index, "has_texts", property(lambda _: False))
    with served(create_app(parts)) as address:
        page = open_page(f"{address}/?q=a+red+circle&mode=hybrid")
        expect(page.get_by_role("alert")).to_contain_text("This index has no words to look up.")
        expect(page.locator("#mode-option")).to_be_hidden()
        page.context.close()


def test_filters_narrow_the_search_and_can_be_removed(page) -> None:
    search(page, "a red circle")
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("color").fill("BLU")
    page.get_by_label("number from").fill("9")
    page.get_by_label("even").select_option("yes")
    page.get_by_role("button", name="Apply").click()
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first).to_contain_text("a blue bar")
    filters = {"f.color=BLU", "f.number.from=9", "f.even=true"}
    assert filters <= {*page.url.partition("?")[2].split("&")}
    page.get_by_role("button", name="Remove the filter even: yes").click()
    expect(cards(page)).to_have_count(3)
    page.reload()
    expect(cards(page)).to_have_count(3)
    for nobody in ("b%25e", "b_ue"):  # % and _ are characters like others
        page.goto(page.url.replace("BLU", nobody))
        expect(page.locator("#grid")).to_contain_text("Nothing here")
        page.go_back()
        expect(cards(page)).to_have_count(3)


MONTHS = ["Date unknown (file of April 2020)", "Date unknown (file of March 2020)"]


def test_photographs_are_listed_by_month_and_their_link_keeps_the_query(page) -> None:
    page.get_by_text("Filters", exact=True).click()
    page.locator("[name=from]").fill("2020-03-11")
    page.locator("[name=to]").fill("2020-04-30")
    page.get_by_role("button", name="Apply").click()
    expect(cards(page)).to_have_count(3)
    expect(page.locator("#grid h2")).to_have_text(MONTHS)
    expect(cards(page).last).to_contain_text("2020-03-11 12:00")
    assert page.url.endswith("?from=2020-03-11&to=2020-04-30")
    search(page, "a red circle")
    expect(cards(page)).to_have_count(3)
    expect(page.locator("#grid h2")).to_have_count(0)
    page.locator("#filters summary").click()
    page.locator("[name=sort]").select_option("date")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#grid h2")).to_have_text(MONTHS)
    expect(cards(page).first).to_contain_text("2020-04-11")
    page.goto(page.url)
    expect(page.locator("#grid h2")).to_have_text(MONTHS)
    assert page.evaluate(ACCESSIBLE) == []
    page.get_by_role("button", name="Remove the filter to: 2020-04-30").click()
    expect(cards(page)).to_have_count(19)
    open_first = "(heading) => heading.nextElementSibling.querySelector('button').click()"
    page.locator("#grid .month").first.evaluate(open_first)
    expect(page.get_by_role("dialog")).to_contain_text("2020-12-11")


def test_question_about_a_found_and_about_an_own_image(page) -> None:
    search(page, "a red circle")
    cards(page).first.click()
    page.get_by_label("Ask about this image").fill("what color is it?")
    page.keyboard.press("Enter")
    expect(page.locator("#answers li")).to_have_count(3)
    expect(page.locator("#answers li").first).to_contain_text("%")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(cards(page).first).to_be_focused()
    upload(page, 5)
    page.get_by_role("button", name="Ask about it").click()
    page.get_by_label("Ask about this image").fill("what color is it?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answers li")).to_have_count(3)


def test_all_of_it_works_with_the_keyboard_alone(page) -> None:
    expect(page.get_by_label("Words that describe the image")).to_be_focused()
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    expect(cards(page).first).to_contain_text("a red circle")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        focused = "document.activeElement.id || document.activeElement.className"
        reached.append(page.evaluate(focused))
        assert page.evaluate(FOCUS_IS_SHOWN), f"nothing shows that {reached[-1]} has the focus"
        if reached[-1] == "card":
            break
    assert reached[:3] == ["file", "go", "rerank"]
    assert reached[-1] == "card"
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="a red circle")).to_be_visible()
    within = "document.activeElement.matches('body, #detail, #detail *')"
    for _ in range(10):
        page.keyboard.press("Tab")
        assert page.evaluate(within)
    page.get_by_role("button", name="More like this").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("23 images")
    expect(page.locator("#results")).to_be_focused()


def test_phone_has_no_sideways_scroll(open_page, address) -> None:
    phone = {"width": 360, "height": 740, "is_mobile": True, "has_touch": True}
    page = open_page(f"{address}/?q={'x' * 400}&f.color=red", **phone)
    expect(page.locator("#collection")).to_have_text("24 images")
    expect(cards(page).first).to_be_visible()
    assert page.evaluate(SIDEWAYS) <= 360
    page.get_by_text("Filters").tap()
    assert page.evaluate(SIDEWAYS) <= 360
    page.keyboard.press("Escape")
    page.locator("#filters summary").evaluate("(summary) => (summary.parentElement.open = false)")
    cards(page).first.tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(SIDEWAYS) <= 360
    assert page.evaluate(SMALL) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(open_page, address, scheme) -> None:
    page = open_page(address, color_scheme=scheme)
    page.wait_for_selector("#strip .card")
    assert page.evaluate(ACCESSIBLE) == []
    search(page, "a red circle")
    expect(cards(page).first).to_contain_text("fits")
    page.get_by_text("Filters", exact=True).click()
    assert page.evaluate(ACCESSIBLE) == []
    page.keyboard.press("Escape")
    cards(page).first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(ACCESSIBLE) == []
    page.goto(f"{address}/docs")
    page.wait_for_selector("article")
    assert page.evaluate(ACCESSIBLE) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 128) is (scheme == "dark")


def test_page_of_the_api_shows_bodies_answers_and_statuses(open_page, address) -> None:
    page = open_page(f"{address}/docs")
    search_route = page.locator("article", has=page.get_by_role("heading", name="/v1/search"))
    for row in (
        "top integer, at least 1, at most 200 Number of results. By default 10.",
        "weight number, at least 0, at most 1",
        "image string An image file in base64",
        "503 The queue is full, the server is stopping, or the index cannot be read; `Retry-After`",
    ):
        expect(search_route.get_by_role("row", name=row)).to_have_count(1)
    for each in page.locator("article").all():
        assert {"Answer", "Statuses"} <= set(each.locator("h3").all_inner_texts())
        assert "undefined" not in each.inner_text()


def test_texts_of_the_index_are_shown_as_text(open_page, address) -> None:
    page = open_page(f"{address}/?q=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E&f.color=%3Cb%3E")
    expect(page.locator("#grid")).to_contain_text("Nothing here")
    expect(page.get_by_role("button", name="Remove the filter color: <b>")).to_be_visible()
    assert page.locator("main b").count() == 0


def test_error_is_shown_with_its_hint_and_can_be_tried_again(page) -> None:
    refused = {"error": {"message": "the queue is full"}, "detail": "try again in a second"}
    page.route("**/v1/search", lambda route: route.fulfill(status=503, json=refused))
    ask(page, "a red circle")
    expect(page.get_by_role("alert")).to_contain_text("The queue is full.Try again in a second.")
    expect(cards(page)).to_have_count(0)
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    expect(cards(page).first).to_contain_text("a red circle")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.context.set_offline(True)
    ask(page, "a blue bar")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")


@pytest.mark.parametrize(
    ("name", "kind", "data", "words"),
    [
        ("notes.txt", "text/plain", b"words", "That is no image."),
        ("a.heic", "", b"words", "No usable image"),
        ("mine.png", "image/png", encoded(Image.new("L", (200, 200))), "at most 5,000 pixels"),
        ("mine.png", "image/png", b"x" * 200_000, "more than 104,857 bytes"),
    ],
)
def test_file_that_cannot_be_searched_by_is_refused(open_page, parts, name, kind, data, words):
    with served(create_app(parts, Settings(max_pixels=5000, max_request_mb=0.1))) as address:
        page = open_page(address)
        expect(page.locator("#collection")).to_have_text("24 images")
        upload(page, 14)
        expect(page.locator("#by-image-name")).to_have_text("mine.png")
        upload(page, data, name=name, kind=kind)
        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(page.locator("#by-image")).to_be_hidden()
        expect(cards(page)).to_have_count(0)
        search(page, "a red circle")
        expect(page.get_by_role("alert")).to_be_hidden()
        page.context.close()


def test_results_without_a_match_are_marked(page, parts, monkeypatch) -> None:
    monkeypatch.setattr(parts.encoder, "is_unknown", lambda *_, **__: True)
    search(page, "flurble snorkwist")  # no word of the captions
    expect(page.get_by_role("status")).to_contain_text("No match · the nearest 24 images")
    expect(page.locator("#note")).to_contain_text("no match: the model does not know these words")
    expect(page.locator("#grid")).to_have_class(re.compile("no-match"))
    expect(cards(page)).to_have_count(24)


def test_key_is_kept_when_the_service_has_taken_it(open_page, parts) -> None:
    with served(create_app(parts, Settings(api_key="open sesame"))) as address:
        page = open_page(address)
        for key, words in (("schlüssel", "no other characters"), ("wrong", "That is not the key.")):
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#key-wrong")).to_contain_text(words)
            assert page.evaluate("sessionStorage.length") == 0
        page.get_by_label("API key").fill("open sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#key-dialog")).to_be_hidden()
        search(page, "a red circle")
        image = cards(page).first.locator("img")
        expect(image).to_have_attribute("src", re.compile("^blob:"))
        page.reload()
        expect(cards(page).first).to_contain_text("a red circle")
        cards(page).first.click()
        assert_image_opens_and_downloads(page)
        page.get_by_role("button", name="More like this").click()
        expect(page.locator("#chips img")).to_have_attribute("src", re.compile("^blob:"))
        page.context.close()


def test_service_without_an_index_only_answers_questions(open_page, parts) -> None:
    with served(create_app(Parts(answerer=parts.answerer))) as address:
        page = open_page(address)
        expect(page.get_by_role("heading", name="Ask about an image.")).to_be_visible()
        upload(page, 5)
        page.get_by_label("Ask about this image").fill("what color is it?")
        page.keyboard.press("Enter")
        expect(page.locator("#answers li")).to_have_count(3)
        page.context.close()
