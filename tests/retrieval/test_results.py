import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console
from tests.folder.test_atomic import full_disk

from vlmo.retrieval import SearchResult
from vlmo.retrieval.results import as_json, as_table, write_sheet

QUERY = "a red <b>square</b> [bold]"


@pytest.fixture(scope="module")
def result(searcher):
    return searcher.search("a red square", top=6, rerank=3)


def test_json_says_everything(result):
    found = json.loads(json.dumps(as_json("a red square", result)))
    assert found["query"] == "a red square"
    assert (found["num_reranked"], found["note"]) == (3, None)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in result.hits]
    pixels, scores = {"width", "height"}, {"score", "similarity", "match"}
    assert found["hits"][0].keys() == {"id", "path", "captions", "metadata"} | pixels | scores


def test_table_shows_no_control_characters_of_captions(result):
    captions = ("\x1b]0;title\x07 gr\u00fcn \x9b31m \u202e", *result.hits[0].captions)
    hostile = replace(result, hits=[replace(result.hits[0], captions=captions)])
    console = Console(file=io.StringIO(), width=300)
    console.print(as_table("\x1b[31m", hostile))
    assert "gr\u00fcn" in console.file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", console.file.getvalue())


def test_sheet_is_an_image_of_all_hits_and_says_no_match(result, searcher, tmp_path):
    heights, contents = [], []
    no_match = replace(result, no_match=True)
    assert as_json(QUERY, no_match)["no_match"] is True
    assert as_table("a red square", no_match).title == "No match: a red square"
    for number, found in enumerate((result, no_match, replace(result, hits=result.hits[:2]), SearchResult([]))):
        file = tmp_path / "new" / f"{number}.png"
        write_sheet(file, query=QUERY, result=found, index=searcher.index)
        contents.append(file.read_bytes())
        with Image.open(file) as sheet:
            heights.append(sheet.height)
            assert number == 3 or len(sheet.getcolors(maxcolors=2**20)) > 50
    assert heights[0] == heights[1] > heights[2] >= heights[3]
    assert contents[0] != contents[1]


def test_sheet_that_a_full_disk_refuses_is_named_and_leaves_nothing(result, searcher, tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large") as raised:
        write_sheet(tmp_path / "sheet.png", query=QUERY, result=result, index=searcher.index)
    assert raised.value.filename == str(tmp_path / "sheet.png")
    assert not [*tmp_path.iterdir()]
