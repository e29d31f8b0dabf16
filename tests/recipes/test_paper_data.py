"""The paper's pre-training data at a thousandth of their size: prepared, joined, and trained on in three stages."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.data.prepare.test_captions import region
from tests.data.prepare.test_captions_shards import members, write_tar
from tests.data.prepare.toy_task_files import coco_record, jpeg, write, write_coco

from vlmo.cli import main
from vlmo.data.examples import Contents, RowExamples
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source
from vlmo.processing import VLMoProcessor
from vlmo.recipes import find_recipe

# Images and pairs of the four sets, in thousands (VLMo, "Pre-Training Setup", and the sets' own papers).
IMAGES = {"coco": 113, "visual_genome": 108, "sbu": 867, "conceptual_captions": 3010}
PAIRS = {"coco": 567, "visual_genome": 5408, "sbu": 867, "conceptual_captions": 3010}
OPTIONS = """
--model.hidden-size 32 --model.num-hidden-layers 2 --model.num-attention-heads 2 --model.image-size 32
--model.patch-size 16 --text.vocabulary learn --text.vocab-size 90 --text.learn-from data/text
--loader.global-batch-size 8 --loader.num-workers 0 --trainer.max-steps 2 --trainer.log-every 1
--trainer.precision float32
"""
SHARED = 51
"""Images of Visual Genome that are COCO's."""


def sentences(source: str, image: int) -> list[str]:
    """Captions of an image, spread evenly over the set."""
    first, last = (PAIRS[source] * number // IMAGES[source] for number in (image, image + 1))
    return [f"{source} {number}" for number in range(first, last)]


def write_publishers_files(root: Path) -> None:
    records = []
    for number in range(IMAGES["coco"]):
        texts = [{"raw": text} for text in sentences("coco", number)]
        records.append(coco_record(number, "train", sentences=texts))
    # Visual Genome has an image of the test split, and one of the validation split.
    records += [coco_record(200, "test"), coco_record(201, "val")]
    write_coco(root / "coco", records)
    facts, regions = [], []
    for number in range(IMAGES["visual_genome"] + 2):
        write(root / "visual_genome" / "VG_100K" / f"{number}.jpg", jpeg(number))
        further = number - IMAGES["visual_genome"]
        coco_id = 200 + further if further >= 0 else number if number < SHARED else None
        url = f"https://example.org/VG_100K/{number}.jpg"
        facts.append({"image_id": number, "url": url, "coco_id": coco_id})
        phrases = sentences("visual_genome", number) if further < 0 else ["seen in a test"]
        parts = [region(number, place, text) for place, text in enumerate(phrases)]
        regions.append({"id": number, "regions": parts})
    (root / "visual_genome" / "VG_100K_2").mkdir()
    write(root / "visual_genome" / "image_data.json", json.dumps(facts))
    write(root / "visual_genome" / "region_descriptions.json", json.dumps(regions))
    for name in ("sbu", "conceptual_captions"):
        pairs = {}
        for number in range(IMAGES[name]):
            (caption,) = sentences(name, number)
            pairs |= members(f"{number:09}", number % 256, caption=caption)
        write_tar(root / name / "00000.tar", pairs)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A working folder with data/ as `vlmo data prepare` leaves it, and images and text for stages 1 and 2."""
    work = tmp_path_factory.mktemp("paper")
    write_publishers_files(work / "published")
    for name, count in IMAGES.items():
        summary = prepare(name, root=work / "published" / name, out=work / "data" / name)
        assert summary.splits["train"]["rows"] == count + 2 * (name == "visual_genome")
    for number in range(16):
        write(work / "data" / "imagenet22k" / f"{number}.jpg", jpeg(number))
    lines = [f"line {number} of a text" for number in range(40)]
    write(work / "data" / "text" / "lines.txt", "\n".join(lines))
    return work


@pytest.fixture
def source(work, monkeypatch) -> str:
    monkeypatch.chdir(work)
    return find_recipe("base-stage3").data.source


def test_an_epoch_has_the_pairs_of_every_source(source):
    rows = open_source(source)
    assert len(rows) == sum(IMAGES.values()) - SHARED
    assert len(set(rows["image_id"])) == len(rows)
    samples = [text for captions in rows["captions"] for text in captions]
    tokenizer = VLMoProcessor.train(samples, vocab_size=90, image_size=32).tokenizer
    assert Counter(text.split()[0] for text in samples) == PAIRS
    examples = RowExamples(rows, Contents(0, tokenizer=tokenizer), unit="pair")
    assert len(examples) == sum(PAIRS.values())
    shown = Counter[str]()
    for number in range(len(examples)):
        ids = examples[0, number]["input_ids"]
        shown[tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")] += 1
    assert shown == Counter(text.lower().replace(" ", "") for text in samples)


def test_rows_of_a_shared_image_are_merged(source):
    rows = open_source(source)
    row = rows[0]
    assert row["image_id"] == "coco/0"
    assert row["captions"] == sentences("coco", 0) + sentences("visual_genome", 0)
    assert row["source"] == "coco + visual_genome"
    assert "CC-BY-4.0" in row["licence"].split(" + ")


def test_images_of_validation_and_test_splits_are_left_out(source):
    measured = {"coco/200", "coco/201"}
    assert measured <= set(open_source("data/visual_genome")["image_id"])
    assert not measured & set(open_source(source)["image_id"])


def test_the_three_stages_run_on_it(source, visual_tokenizer, capsys):
    tokenizer = f"--task.visual-tokenizer {visual_tokenizer}"
    for stage in (1, 2, 3):
        line = f"train base-stage{stage} {OPTIONS} {tokenizer if stage == 1 else ''}"
        main(line.split())
        assert "finished: 2 steps" in capsys.readouterr().out.replace("\n", " ")
    recipe = json.loads(Path("runs/base-stage3/recipe.json").read_text())
    assert (recipe["data"]["unit"], recipe["init"]) == ("pair", "runs/base-stage2/model")
    assert Path("runs/base-stage3/quarantine.jsonl").read_text() == ""
