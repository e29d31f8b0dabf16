import json

import pytest
import torch

import input_pipeline


# webdataset leaves its tars to be closed by the collector, and both libraries still call what is being phased out.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_input_pipeline_compares_the_same_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(input_pipeline, "_SHARD", 9)
    out = tmp_path / "result.json"
    arguments = ["--samples", "18", "--image-size", "64", "--long-side", "200", "--batch-size", "18", "--turns", "1"]
    arguments += ["--min-crop", "1"]  # one batch is all pictures: without crops of random sizes, roundings alone differ
    threads = torch.get_num_threads()
    input_pipeline.main([*arguments, "--out", str(out)])
    torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert result["data"]["mean_bytes"] > 2000
    mean, deviation = result["mean_and_deviation"]["open_clip"]
    assert result["mean_and_deviation"]["vlmo"] == [pytest.approx(mean, abs=0.01), pytest.approx(deviation, abs=0.01)]
    assert result["pipelines"]["open_clip"]["ratio_to_open_clip_wall"] == 1
    for figures in result["pipelines"].values():
        assert figures["images_per_second_by_cpu_time"] > 0
        assert len(figures["turns_wall"]) == 1
