from tests.data.prepare.toy_task_files import quarantined, write

from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source
from worlds import glosses

NOTICE = "  1 A licence, at the head of each file.  \n"
FILES = {
    "data.noun": NOTICE
    + '00000001 03 n 02 toy_dog 0 lap_dog 1 001 @ 00000002 n 0000 | a dog that fits on a lap; "the | bar"  \n',
    "data.verb": NOTICE
    + "00000002 29 v 0b "
    + " ".join(f"w{n} 0" for n in range(11))
    + " 000 00 | eleven words  \n",
    "data.adj": NOTICE
    + "00000003 00 a 01 afraid(p) 0 000 | feeling fear  \nno line of this kind\n",
    "data.adv": NOTICE,
}


def test_glosses_give_a_row_a_meaning(tmp_path, monkeypatch) -> None:
    for name, text in FILES.items():
        write(tmp_path / "wordnet" / name, text)
    monkeypatch.setattr(glosses, "TEST_SHARE", 0)
    prepare("glosses", root=tmp_path / "wordnet", out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert dict(zip(rows["image_id"], [text for (text,) in rows["captions"]], strict=True)) == {
        "data.noun:2": 'toy dog, lap dog: a dog that fits on a lap; "the | bar"',
        "data.verb:2": ", ".join(f"w{n}" for n in range(11)) + ": eleven words",
        "data.adj:2": "afraid: feeling fear",
    }
    assert set(rows["licence"]) == {"WordNet-3.0"}
    assert list(quarantined(tmp_path / "out")) == ["data.adj:3"]
