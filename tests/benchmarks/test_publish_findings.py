"""The page of findings shows the committed results, and its script keeps what was written by hand."""

import json
import re
from pathlib import Path

import pytest
from tests.recipes.test_findings import TWO

import findings as script
from vlmo.recipes.findings import Findings, charts

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "findings.md"


def published():
    (name,) = re.findall(r"\]\(\.\./benchmarks/results/(ablations_[^)]*\.json)\)", PAGE.read_text())
    return Findings(json.loads((ROOT / "benchmarks" / "results" / name).read_text()))


def test_page_shows_the_committed_results():
    page, found = PAGE.read_text(), published()
    assert script.page_of(found, page) == page
    drawn = charts(found)
    assert {file.name for file in (PAGE.parent / "images").glob("findings-*.svg")} == drawn.keys()
    for name, svg in drawn.items():
        assert (PAGE.parent / "images" / name).read_text() == svg, name


def test_what_is_written_by_hand_stays(tmp_path):
    docs, out = tmp_path / "docs", tmp_path / "results" / "ablations.json"
    (docs / "images").mkdir(parents=True)
    (docs / "findings.md").write_text(f"# By hand\n\nWords.\n\n{script.MARK}\n\nold tables\n")
    out.parent.mkdir()
    out.write_text(json.dumps(TWO.results))
    for _ in range(2):  # a second time changes nothing
        script.main(["--out", str(out), "--docs", str(docs)])
        text = (docs / "findings.md").read_text()
        assert text.startswith(f"# By hand\n\nWords.\n\n{script.MARK}\n\n4 jobs, 2 seeds")
        assert "old tables" not in text
        assert "# Ablations" not in text
        assert (docs / "images" / "findings-attention.svg").read_text() == charts(TWO)["findings-attention.svg"]


def test_page_without_its_mark_is_left_alone(tmp_path):
    (tmp_path / "findings.md").write_text("# By hand\n")
    out = tmp_path / "ablations.json"
    out.write_text(json.dumps(TWO.results))
    with pytest.raises(ValueError, match=r"needs the line .* once, it has it 0 times"):
        script.main(["--out", str(out), "--docs", str(tmp_path)])
    assert (tmp_path / "findings.md").read_text() == "# By hand\n"


@pytest.mark.parametrize("given", [[], ["--run-dir", "nothing"]])
def test_nothing_to_publish_leaves_the_page_alone(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("findings.md").write_text(page := f"# By hand\n{script.MARK}\n")
    with pytest.raises(SystemExit, match=r"is not there; give a file of results|no job has finished in nothing"):
        script.main(["--out", "ablations.json", "--docs", ".", *given])
    assert Path("findings.md").read_text() == page
    assert not Path("ablations.json").exists()
