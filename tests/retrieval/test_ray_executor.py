from __future__ import annotations

import json

import numpy as np
import pytest
from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_index import NAMES, NUM, encoded, rows, write_folder, write_parquet, write_table, write_tar

from vlmo.retrieval import Index, build_index

# Ray's own doings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_two_workers_make_the_table_of_the_plain_path(model, cluster, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(10))
    (folder / "bad.jpg").write_text("no image")
    write_tar(tmp_path / "tars" / "0.tar", numbers=range(10, 16))
    write_parquet(tmp_path / "parquet" / "0.parquet", numbers=range(14, NUM))
    inputs = [folder, tmp_path / "tars", tmp_path / "parquet"]

    def both(*given, workers=1, **expected) -> None:
        counts = []
        for executor in ("ray", "local"):
            settings = {"batch": 4, "executor": executor, "workers": workers, "dim": 8}
            report = build_index(model, given, out=tmp_path / executor, **settings)
            assert vars(report).items() >= expected.items(), executor
            # Two workers may each encode an image that stands twice.
            counts.append((report.images, report.captions, report.unchanged, report.deleted, report.bad))
        assert counts[0] == counts[1]
        found, plain = rows(tmp_path / "ray"), rows(tmp_path / "local")
        assert found.keys() == plain.keys()
        for place, row in plain.items():
            np.testing.assert_allclose(found[place].pop("vector"), row.pop("vector"), atol=CLOSE)
            assert found[place] == row
        lines = [
            sorted(json.loads(line)["path"] for line in (tmp_path / executor / "quarantine.jsonl").open())
            for executor in ("ray", "local")
        ]
        assert lines[0] == lines[1]
        captions = [Index(tmp_path / executor).num_captions for executor in ("ray", "local")]
        assert captions[0] == captions[1]

    both(*inputs, workers=2, images=26, bad=1)
    write_table(folder / "captions.csv", numbers=range(4), year=1900)  # columns alone
    (folder / NAMES[9]).write_bytes(encoded(drawings()[0].transpose(1)))
    write_parquet(tmp_path / "parquet" / "0.parquet", numbers=range(14, 20))
    # What has not changed is not encoded again.
    both(encoded=1, images=22, deleted=4)
