import json

import numpy as np
import pytest
from tests.retrieval.toy_index import NUM, rows, write_folder, write_parquet, write_tar

from vlmo.retrieval import build_index

# Ray's own doings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def cluster():
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # By default Ray's workers have the lowest priority, and wait for all other tests.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_two_workers_make_the_table_of_the_plain_path(model, cluster, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(10))
    (folder / "bad.jpg").write_text("no image")
    write_tar(tmp_path / "tars" / "0.tar", numbers=range(10, 16))
    write_parquet(tmp_path / "parquet" / "0.parquet", numbers=range(14, NUM))
    inputs = [folder, tmp_path / "tars", tmp_path / "parquet"]

    settings = {"batch": 4, "workers": 2}
    local, on_ray = (
        build_index(model, inputs, out=tmp_path / executor, executor=executor, **settings)
        for executor in ("local", "ray")
    )
    # Two workers may each encode an image that stands twice.
    assert (on_ray.images, on_ray.unchanged, on_ray.deleted, on_ray.bad) == (26, 0, 0, 1)
    assert (local.images, local.bad) == (26, 1)
    plain, found = rows(tmp_path / "local"), rows(tmp_path / "ray")
    assert found.keys() == plain.keys()
    for path, row in plain.items():
        np.testing.assert_allclose(found[path].pop("vector"), row.pop("vector"), atol=CLOSE)
        assert found[path] == row
    (line,) = (tmp_path / "ray" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(folder / "bad.jpg")
