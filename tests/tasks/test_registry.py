"""Any folder is measured by its task; what belongs to another task is refused by name."""

import json
import shutil

import pytest
from tests.tasks.toy_folders import TASKS

from vlmo.cli import main
from vlmo.released import published_model
from vlmo.released.published import MODELS
from vlmo.tasks import evaluate, task_of

FIRST = {
    "retrieval": "tr@1",
    "vqa": "accuracy",
    "nlvr2": "accuracy",
    "classification": "top1",
    "segmentation": "miou",
    "captioning": "cider",
}
SPLITS = {"retrieval": "train", "captioning": "train"}


def evaluated(task, folders, sources, **options):
    split = SPLITS.get(task, "test")
    return evaluate(folders[task], source=str(sources[task]), split=split, device="cpu", **options)


@pytest.mark.parametrize("task", TASKS)
def test_folder_tells_its_task(task, folders, sources, tmp_path):
    result = evaluated(task, folders, sources)
    assert result.task == task_of(folders[task]).name == task
    assert next(iter(result.metrics)) == FIRST[task]
    assert result.chance.keys() <= result.metrics.keys()
    shares = {**result.metrics, "cider": 0}
    assert all(0 <= value <= 1 for value in (*shares.values(), *result.chance.values()))
    file = result.write_json(tmp_path / "figures.json", folder=folders[task])
    read = json.loads(file.read_text())
    assert read["metrics"] == result.metrics
    assert len(read["predictions"]) == read["num_predictions"] > 0
    assert read["published"] is None


PUBLISHED = {
    "beit3-base-coco": ("test 79.1", "test 61.4"),
    "beit3-large-vqa-768": ("test_dev 82.97", "test_std 83.03"),
    "vlmo-base-nlvr2": ("validation 82.77", "test 83.34"),
    "beit3-base-in1k": ("validation 85.4",),
    "beit3-base-nocaps": ("validation 104.4",),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_stand_beside_the_measured_ones(
    name, folders, sources, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    model = MODELS[name]
    shutil.copytree(folders[model.task], tmp_path / "cache" / "models" / name)
    split = SPLITS.get(model.task, "test")
    line = ["evaluate", name, "--data", str(sources[model.task]), "--split", split]
    main([*line, "--device", "cpu", "--out", "figures.json"])
    shown = capsys.readouterr().out
    cells = [[cell.strip() for cell in row.split("│")] for row in shown.splitlines()]
    assert [row[4] for row in cells if len(row) > 4 and row[4]] == list(PUBLISHED[name])
    assert f"published: {model.data}, {model.source}" in shown
    read = json.loads((tmp_path / "figures.json").read_text())
    assert read["published"]["reported"] == [list(value) for value in model.reported]
    # Every model of this task that has published values is measured by the same metrics.
    values = [
        value for other in MODELS.values() if other.task == model.task for value in other.reported
    ]
    assert {metric for _, metric, _ in values} <= set(read["metrics"])
    shutil.copytree(folders[model.task], tmp_path / name)  # an own folder of this name goes first
    assert published_model(name) is None


def test_limit_reads_the_first_rows(folders, sources):
    # Captions and images are both queries of retrieval.
    assert len(evaluated("retrieval", folders, sources, limit=3, batch_size=2).predictions) == 6
    assert len(evaluated("nlvr2", folders, sources, limit=3).predictions) == 3
    with pytest.raises(ValueError, match="limit is 0"):
        evaluated("vqa", folders, sources, limit=0)
    with pytest.raises(ValueError, match="rerank_weight"):
        evaluated("retrieval", folders, sources, rerank_weight=1.5)


@pytest.mark.parametrize("prefix", ["", "rerank_"])
def test_retrieval_can_be_scored_again_from_its_rows(prefix, folders, sources):
    result = evaluated("retrieval", folders, sources, rerank=4, rerank_weight=1.0)
    assert result.settings == {"rerank": 4, "rerank_weight": 1.0}
    for direction, query in (("ir", "caption"), ("tr", "image")):
        ranks = [row[f"{prefix}rank"] for row in result.predictions if row["query"] == query]
        assert len(ranks) == 32
        for k in (1, 5, 10):
            recall = sum(rank <= k for rank in ranks) / 32
            assert recall == result.metrics[f"{prefix}{direction}@{k}"]
    for row in result.predictions:
        right = row["image_id"]
        if row["query"] == "image":
            right = f"number {right.partition('.')[0]}"
        names = row[f"{prefix}found"]
        places = [place for place, name in enumerate(names, 1) if name.endswith(right)]
        assert len(names) == 10
        # Ties count against the model: the rank may be behind the place, never before it.
        assert not places or row[f"{prefix}rank"] >= places[0]


@pytest.mark.parametrize("task", TASKS)
def test_folder_of_another_task_is_refused(task, folders, sources):
    other = "vqa" if task == "retrieval" else "retrieval"
    with pytest.raises(ValueError, match=r"holds VLMoFor\w+; expected"):
        evaluate(folders[other], task=task, source=str(sources[task]), device="cpu")


def test_folder_for_no_task_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="holds VLMoForMaskedLM, which is for none of the tasks"):
        evaluate(folders["words"])
    with pytest.raises(ValueError, match=r"is no model folder: it has no config\.json"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        task_of(tmp_path)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("retrieval", "16 of 16 rows are"),  # no captions
        ("vqa", "no questions about images: they lack question, "),
        ("nlvr2", "no sentences about two images: they lack second_image, "),
        ("classification", "these rows have no classes"),
        ("segmentation", "no images with masks: they lack mask "),
        ("captioning", "16 of 16 rows are"),
    ],
)
def test_data_of_another_task_are_refused(task, words, folders, sources):
    other = "vqa" if task != "vqa" else "classification"
    with pytest.raises(ValueError, match=words):
        evaluate(folders[task], source=str(sources[other]), split="test", device="cpu")
