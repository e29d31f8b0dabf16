import pytest
from tests.benchmarks.toy_benchmarks import number_at, quiet, run_small


@pytest.mark.slow
@quiet
@pytest.mark.parametrize(
    ("name", "arguments", "path"),
    [
        (
            "index_photos",
            "--preset tiny --precision float32 --clip ViT-S-32-alt --photos 2 --size 64 48 --turns 1 --threads 1",
            "ratio",
        ),
        (
            "onnx_speed",
            "--batches 1 3 --turns 1 --seconds 0 --threads 1 --text-length 8",
            "graphs/fusion_encoder/batch 3/onnxruntime/rows_per_second",
        ),
        (
            "search",
            "--size 600 --dim 64 --query-count 8 --turns 1 --threads 1 --clients 3",
            "engines/usearch HNSW, int8/texts/recall@10",
        ),
        (
            "serving",
            "--vectors 300 --drawings 40 --clients 3 --rerank 4 --seconds 0.5 --soak 2",
            "soak/resident_mb_of_the_last_fifth",
        ),
    ],
)
def test_benchmark_writes_what_documents_quote(
    name, arguments, path, tmp_path, shared_folder
) -> None:
    assert number_at(path, run_small(name, arguments, tmp_path, shared_folder))
