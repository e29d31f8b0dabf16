from pathlib import Path

from tests.data.prepare.toy_task_files import quarantined, write

from vlmo.data.prepare import prepare, text
from vlmo.data.schema import FEATURES, hash_share
from vlmo.data.sources import open_source


def prepared(root: Path, out: Path) -> dict[str, str]:
    """Text by image_id, of all splits."""
    found = {}
    for split in prepare("text", root=root, out=out).splits:
        rows = open_source(str(out), split=split)
        texts = [captions[0] for captions in rows["captions"]]
        found |= zip(rows["image_id"], texts, strict=True)
    return found


def test_text_files_give_a_row_a_line_and_more_of_a_long_one(tmp_path) -> None:
    pieces = [" ".join([f"w{number}"] * 128) for number in range(3)]
    write(tmp_path / "in" / "b.txt", (" ".join(pieces) + "\nshort\ndéjà\n").encode("latin-1"))
    write(tmp_path / "in" / "a" / "c.TXT", b"\xef\xbb\xbfFirst line.\r\n\r\n  Second line. \n")
    write(tmp_path / "in" / "notes.md", "No text file.")
    names = ("b.txt:1", "b.txt:1:1", "b.txt:1:2", "b.txt:2")
    of_b = dict(zip(names, (*pieces, "short"), strict=True))
    of_c = {"a/c.TXT:1": "First line.", "a/c.TXT:3": "Second line."}
    assert prepared(tmp_path / "in", tmp_path / "out") == of_c | of_b
    assert "b.txt:3: not UTF-8" in quarantined(tmp_path / "out")["b.txt:3"]
    assert prepared(tmp_path / "in" / "b.txt", tmp_path / "one") == of_b
    rows = open_source(str(tmp_path / "out"))
    assert rows.features == FEATURES
    assert rows[0]["image"] is None
    assert (rows[0]["source"], rows[0]["licence"]) == ("in", "unknown")


def test_text_in_pieces_is_the_text_as_a_whole(tmp_path, monkeypatch) -> None:
    lines = [f"Sentence {number} {'é' * (number % 7)}." for number in range(60)]
    lines[::5] = [""] * 12
    write(tmp_path / "in" / "a.txt", "\n".join(lines))
    whole = prepared(tmp_path / "in", tmp_path / "whole")
    assert whole == {f"a.txt:{number}": line for number, line in enumerate(lines, start=1) if line}
    for size in (1, 100, 1000):
        monkeypatch.setattr(text, "_BLOCK_BYTES", size)
        assert prepared(tmp_path / "in", tmp_path / f"pieces{size}") == whole


def test_text_is_split_by_a_hash_of_the_line(tmp_path) -> None:
    lines = [f"Sentence {number % 600}." for number in range(1000)]
    write(tmp_path / "in" / "a.txt", "\n".join(lines))
    prepare("text", root=tmp_path / "in", out=tmp_path / "out")
    train, test = (open_source(str(tmp_path / "out"), split=split) for split in ("train", "test"))
    assert len(train) + len(test) == 1000
    assert 0 < len(test) < 30
    held_out = {captions[0] for captions in test["captions"]}
    assert held_out == {line for line in lines if hash_share(line) < text.TEST_SHARE}
    assert held_out.isdisjoint(captions[0] for captions in train["captions"])
