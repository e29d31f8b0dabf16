import random
import string
from pathlib import Path

import pytest
from tests.integrations.toy_gallery import drawings

from vlmo.data.sources import open_source
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Searcher, build_index

COUNT = 100
PAGE = " ".join((Path(__file__).parents[2] / "docs" / "search.md").read_text().split())


def made_up_word(choose: random.Random) -> str:
    word = ""
    for _ in range(choose.randint(2, 4)):
        word += choose.choice("bcdfghjklmnpqrstvwxyz") + choose.choice("aeiou")
    return word + choose.choice(["", "n", "x", "k"])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(SMALL)


def share_unknown(encoder: Encoder, texts: list[str]) -> float:
    counts = zip(texts, encoder.count_tokens(texts), strict=True)
    return sum(encoder.is_unknown(text, tokens=tokens) for text, tokens in counts) / len(texts)


def test_nonsense_is_unknown_and_names_are_known(encoder) -> None:
    choose = random.Random(0)
    words = [made_up_word(choose) for _ in range(COUNT)]
    pairs = [f"{made_up_word(choose)} {made_up_word(choose)}" for _ in range(COUNT)]
    letters = []
    for _ in range(COUNT):
        drawn = choose.choices(string.ascii_lowercase, k=choose.randint(5, 10))
        letters.append("".join(drawn))
    found = [round(COUNT * share_unknown(encoder, texts)) for texts in (words, pairs, letters)]
    names, captions = (
        sorted({text for texts in open_source(name, split="test")["captions"] for text in texts})
        for name in ("lucide-icons", "emoji-pairs")
    )
    numbers = "{} of 100 made-up words of two to four syllables, {} of 100 pairs of them, {} of 100 strings"
    assert numbers.format(*found) in PAGE
    assert f"{100 * share_unknown(encoder, captions):.1f} % of {len(captions):,} captions" in PAGE
    assert f"{100 * share_unknown(encoder, names):.1f} % of Lucide's {len(names):,} names" in PAGE


def test_search_for_nonsense_says_no_match(encoder, tmp_path) -> None:
    for number, drawing in enumerate(drawings()[:4]):
        drawing.save(tmp_path / f"{number}.png")
    build_index(encoder, [tmp_path], out=tmp_path / "index")
    searcher = Searcher(encoder, tmp_path / "index")
    for rerank in (None, 0):
        result = searcher.search("flibbertigibbet", rerank=rerank)
        assert (result.no_match, len(result.hits)) == (True, 4)
        assert "no match: the model does not know these words" in (result.note or "")
        assert not searcher.search("a red square", rerank=rerank).no_match
    assert not searcher.search("红色的大方块和圆").no_match  # scripts without blanks
