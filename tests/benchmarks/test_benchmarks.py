"""Every benchmark runs at its smallest and writes the figures that documents quote; their arithmetic by hand."""

from __future__ import annotations

import importlib
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.benchmarks.toy_benchmarks import MAKE_SMALL, value_at
from tests.tasks.toy_vision import PIXELS, write_segment_set

import clip_peer
import dual_vs_fusion
import onnx_speed
import quality_vs_clip
import search
import stage3_step
import vision_tasks
from surroundings import surroundings
from vectors import MadeVectors, Neighbours
from vlmo.processing import VLMoProcessor
from vlmo.tasks.segmentation import SegmentSet

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
# Sums in another order.
TOLERANCE = 1e-5
SMALLEST = {
    "busy_machine": ("--turns 1", ["commands/train/alone/seconds", "commands/index/beside two busy loops/seconds"]),
    "contrastive_memory": (
        "--batches 4 --layers 1 --image-size 32 --text-length 4 --chunk 2 --threads 1 --matching",
        ["steps/0/peak_above_state_bytes", "steps/0/peak_bytes", "steps/0/losses/itm", "steps/0/gradient_norm"],
    ),
    "dual_vs_fusion": (
        "--preset tiny --counts 2 3 5 --shortlist 2 --batch 4 --threads 1",
        ["rows/2/dual/seconds", "rows/2/fusion/seconds", "rows/2/rerank/seconds", "rows/2/fusion_by_dual", "crossings"],
    ),
    "input_pipeline": (
        "--samples 18 --image-size 64 --long-side 200 --batch-size 18 --turns 1 --min-crop 1",
        [
            "pipelines/vlmo/images_per_second_by_cpu_time",
            "pipelines/vlmo/ratio_to_open_clip_wall",
            "mean_and_deviation/vlmo",
        ],
    ),
    "onnx_speed": (
        "--batches 1 3 --turns 1 --seconds 0 --threads 1 --text-length 8",
        [
            f"graphs/{graph}/batch 3/{engine}/rows_per_second"
            for graph in ("image_encoder", "text_encoder", "fusion_encoder")
            for engine in (onnx_speed.TORCH, *onnx_speed.GRAPHS)
        ],
    ),
    "parity": (
        "--base --repeats 1 --threads 1",
        ["parity/10/checkpoint", "parity/10/outputs", "import_base/seconds", "import_base/peak_gib"],
    ),
    "quality_vs_clip": (
        "--seeds 0 5 --clip-width 64 --clip-layers 1 --lrs 1e-3 5e-4 --seconds 0.3",
        [f"{side}/{field}" for side in quality_vs_clip.SIDES for field in ("runs/1/metrics", "validation_ir@1", "lr")],
    ),
    "search": (
        "--sizes 600 300 --dim 32 --query-count 4 --seconds 60 --threads 1 --clients 3",
        [
            *("bar/recall@10", "sizes/600/lancedb index/bytes/index", "sizes/600/lancedb exact/3 clients"),
            *(f"sizes/600/faiss {kind}/one by one/texts/recall@10" for kind in ("exact", "RaBitQ", "SQ8", "HNSW")),
            *(f"sizes/300/lancedb index/one by one/pictures/{field}" for field in ("recall@10", "p50_ms", "p99_ms")),
        ],
    ),
    "serving": (
        "--vectors 300 --drawings 40 --clients 3 --rerank 4 --seconds 0.5 --soak 2",
        [
            *(f"search/{row}/{field}" for row in (0, 1) for field in ("requests", "p50_ms", "p99_ms", "statuses/200")),
            *("soak/resident_mb_highest", "soak/resident_mb_of_the_last_fifth"),
        ],
    ),
    "stage3_step": (
        "--preset tiny --pairs 4 --rounds 1 --threads 1",
        [f"precisions/{precision}/memory_ratio" for precision in ("float32", "bf16")]
        + ["operations_ratio", "precisions/bf16/time_ratio"],
    ),
    "vision_tasks": (
        "--scale 0.001 --threads 1",
        [
            "tasks/scenes-kinds/models/scenes-kinds/metrics/top1",
            "tasks/scenes-kinds/models/linear probe of the start, mean/metrics/top1",
            "tasks/scenes-kinds/models/logistic regression on pixels/metrics/top1",
            "tasks/scenes-masks/models/class of each color/metrics/miou",
        ],
    ),
}


# webdataset leaves its tars to be closed by the collector, and libraries call what is being phased out.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_benchmark_writes_what_documents_quote(name, tmp_path, shared_folder, monkeypatch) -> None:
    script = importlib.import_module(name)
    arguments, fields = SMALLEST[name]
    more = MAKE_SMALL[name](script, monkeypatch, tmp_path, shared_folder) or []
    out, cores, threads = tmp_path / "results" / "result.json", os.sched_getaffinity(0), torch.get_num_threads()
    script.main([*arguments.split(), *more, "--out", str(out)])
    torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    for field in fields:
        assert value_at(result, field), field
    assert os.sched_getaffinity(0) == cores


def test_results_and_commands_name_no_folder_of_a_machine(tmp_path) -> None:
    given = ["--out", str(tmp_path / "some results.json"), "--index", "runs/index", "--clients", "32"]
    command = surroundings("serving.py", given, packages=[])["command"]
    assert command == "python benchmarks/serving.py --out 'some results.json' --index runs/index --clients 32"
    commands = [json.loads(file.read_text()).get("command", "") for file in RESULTS.glob("*.json")]
    assert any(commands)
    assert not [word for command in commands for word in shlex.split(command) if word.startswith("/")]


def test_crossing_points_by_hand() -> None:
    assert dual_vs_fusion.crossings(image=3.0, text=1.0, pair=3.0, product=1.0, shortlist=5) == {
        "dual_faster_than_fusion_from": 3,  # at 2 both take 12
        "rerank_faster_than_fusion_from": 10,  # at 9: 36 + 135 + 81 = 252 > 243; at 10: 40 + 150 + 100 < 300
        "product_longer_than_embedding_from": 5,
        "reranking_longer_than_embedding_from_shortlist": 2,
    }


def test_ratio_of_engines_is_the_median_of_the_turns(monkeypatch) -> None:
    monkeypatch.setattr(onnx_speed, "PAUSE", 0)
    rates = iter([10.0, 20.0, 30.0, 90.0, 40.0, 40.0])  # PyTorch first, then the other first, and so on
    monkeypatch.setattr(onnx_speed, "rate", lambda *_, **__: next(rates))
    calls = {onnx_speed.TORCH: lambda: None, "onnxruntime": lambda: None}
    found = onnx_speed.by_turns(calls, rows=1, turns=3, seconds=0.0)
    assert found[onnx_speed.TORCH] == {"rows_per_second": 40.0, "ratio_to_pytorch": 1.0, "turns": [10.0, 90.0, 40.0]}
    assert found["onnxruntime"] == {"rows_per_second": 30.0, "ratio_to_pytorch": 1.0, "turns": [20.0, 30.0, 40.0]}


class Knows:
    """Finds the first neighbours of every query, and nothing else."""

    def __init__(self, asked: search.Questions, *, knows: int) -> None:
        self.asked, self.knows = asked, knows

    def search(self, query):
        return self.asked.truth[int(np.flatnonzero((self.asked.vectors == query).all(axis=1))[0]), : self.knows]


def test_recall_is_the_share_of_the_true_neighbours() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    asked = search.Questions(vectors, np.arange(400).reshape(40, 10))
    found = search.one_by_one(Knows(asked, knows=7), asked, seconds=10)
    assert (found["queries"], found["recall@10"]) == (40, 0.7)


def test_neighbours_are_those_of_all_blocks_together() -> None:
    among = np.concatenate(list(MadeVectors(dim=32).blocks(500)))
    neighbours = Neighbours(queries := MadeVectors(dim=32).queries(20)["texts"])
    for start, end in ((0, 4), (4, 200), (200, 500)):
        neighbours.see(among[start:end])
    np.testing.assert_array_equal(neighbours.rows.numpy(), np.argsort(-(queries @ among.T), axis=1)[:, :10])


def test_both_sides_of_a_stage_3_step_have_the_same_losses_and_gradients() -> None:
    options = stage3_step.Options(preset="tiny", pairs=5)
    model = stage3_step.make_model(options).double()
    sides = (stage3_step.OURS, stage3_step.PLAIN)
    steps = {side: stage3_step.make_step(side, model, precision="float32", options=options) for side in sides}
    ours, plain = (steps[side]() for side in sides)
    assert ours == pytest.approx(plain, abs=TOLERANCE)
    assert all(value > 0 for value in ours.values())
    assert stage3_step.compare_gradients(model, steps) < TOLERANCE  # the plain step's scores are float32


def test_colors_tell_these_squares_apart(tmp_path) -> None:
    source = str(write_segment_set(tmp_path / "segments"))
    rows = {split: SegmentSet.read(source=source, split=split, notes=tmp_path) for split in ("train", "test")}
    table = vision_tasks.color_table(rows["train"])
    assert table[((220 // 16) * 16 + 40 // 16) * 16 + 40 // 16] == PIXELS.index("red")
    assert table[0] == 0  # black is never seen
    assert vision_tasks.segment_by_color(rows["test"], table).metrics["miou"] == 1.0


def test_difference_to_clip_has_an_interval_over_queries_and_seeds() -> None:
    half = np.arange(100) % 2.0
    assert quality_vs_clip.difference({"vlmo": [half, half], "clip": [half, half]})[0] == 0
    mean, low, high = quality_vs_clip.difference({"vlmo": [half, np.ones(100)], "clip": [np.zeros(100)]})
    assert (mean, high) == (0.75, 1)
    assert low == pytest.approx(0.42, abs=0.04)  # the first seed twice, a tenth of a share of queries below its half


@torch.inference_mode()
def test_clip_pools_at_the_end_token_and_padding_changes_nothing() -> None:
    processor = VLMoProcessor.train(["a big red line", "a small ellipse"] * 2, vocab_size=100, image_size=64)
    peer, text = clip_peer.Peer(processor, patch_size=16, width=64, layers=2).eval(), ["a big red line", "a line"]
    given = processor(text=text, return_tensors="pt")
    short = peer.get_text_features(**given)
    full = processor(text=text, padding="max_length", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(peer.clip.encode_text(full, normalize=True), short, rtol=0, atol=TOLERANCE)
    last = given["attention_mask"].sum(dim=1) - 2
    given["input_ids"][torch.arange(2), last] = processor.tokenizer.unk_token_id
    assert ((short - peer.get_text_features(**given)).abs().amax(dim=1) > 100 * TOLERANCE).all()
