import sysconfig
from pathlib import Path

from vlmo.data.schema import FEATURES
from worlds import english


def test_english_text_has_each_sentence_once(monkeypatch) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    monkeypatch.setattr(english.sysconfig, "get_path", lambda _: str(library / "email"))
    features, splits = english.english_text()
    assert features == FEATURES
    sentences = [row["captions"][0] for rows in splits.values() for row in rows]
    # The number depends on the version of Python, whose documentation this is.
    assert len(sentences) > 2_000
    assert 0.03 < len(splits["test"]) / len(sentences) < 0.07
    assert len(set(sentences)) == len(sentences)
    assert len({row["image_id"] for rows in splits.values() for row in rows}) == len(sentences)
    assert {row["source"] for row in splits["train"]} == {"python", "easy-vqa"}
    assert not any(character in sentence for sentence in sentences for character in "`*\n_=<>{}")
    assert all(4 <= len(sentence.split()) <= 50 for sentence in sentences)
