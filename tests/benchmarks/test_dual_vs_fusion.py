"""Dual against fusion encoder at tiny size: measured and extrapolated times are marked, and crossings are right."""

from __future__ import annotations

import json

import dual_vs_fusion


def test_times_and_crossings_are_written(tmp_path, capsys) -> None:
    out = tmp_path / "results" / "dual_vs_fusion.json"
    small = ["--preset", "tiny", "--counts", "2", "3", "5", "--shortlist", "2", "--batch", "4", "--threads", "1"]
    dual_vs_fusion.main([*small, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["rows_measured"] == {"images": 5, "texts": 5, "pairs": 25}
    assert [row["count"] for row in result["rows"]] == [2, 3, 5]
    for row in result["rows"]:
        assert {row[way]["kind"] for way in ("dual", "fusion", "rerank")} == {"measured"}
        assert row["dual"]["seconds"] < row["rerank"]["seconds"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3 + 4


def test_crossing_points_by_hand() -> None:
    found = dual_vs_fusion.crossings(image=3.0, text=1.0, pair=3.0, product=1.0, shortlist=5)
    assert found == {
        "dual_faster_than_fusion_from": 3,  # at 2 both take 12
        "rerank_faster_than_fusion_from": 10,  # at 9: 36 + 135 + 81 = 252 > 243; at 10: 40 + 150 + 100 < 300
        "product_longer_than_embedding_from": 5,
        "reranking_longer_than_embedding_from_shortlist": 2,
    }
    never = dual_vs_fusion.crossings(image=1.0, text=1.0, pair=1.0, product=1.0, shortlist=1)
    assert never["dual_faster_than_fusion_from"] is None
