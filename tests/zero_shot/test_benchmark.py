"""Suites of true and false captions, in files of the published forms, beside scores one by one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, NUM_IMAGES, drawings, trained_folder
from tests.retrieval.toy_dual_encoders import write_dual_encoder
from tests.retrieval.toy_index import encoded
from tests.tasks.test_composition import write_rows
from tests.test_cli import refused

from vlmo.cli import main
from vlmo.retrieval import Encoder
from vlmo.tasks import evaluate
from vlmo.zero_shot import run_suite

NAMES = [f"{number:012d}.png" for number in range(NUM_IMAGES)]
TRUE = [captions[0] for captions in CAPTIONS]
# The caption of another color, and a longer one of which a part is wrong.
FALSE = [*TRUE[4:], *TRUE[:4]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(trained_folder(tmp_path_factory.mktemp("trained")), device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_dual_encoder("clip", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "images"
    folder.mkdir()
    for name, image in zip(NAMES, drawings(), strict=True):
        image.save(folder / name)
    return folder


def scores(encoder, image, captions):
    """Similarity, log-odds and mixture for captions of an image, one pair at a time."""
    similarity, match = [], []
    for caption in captions:
        similarity.append(
            float(encoder.embed_images([image])[0] @ encoder.embed_texts([caption])[0])
        )
        match.append(float(encoder.match([image], [caption])[0]))
    share = encoder.rerank_weight_image_to_text
    scale = encoder.inverse_temperature
    mixed = [(1 - share) * scale * a + share * b for a, b in zip(similarity, match, strict=True)]
    return {"": similarity, "fusion_": match, "reranked_": mixed}


def write_sugar_crepe(folder):
    """The first half of the drawings in one file, the others in another."""
    for kind, numbers in (("swap_att", range(12)), ("add_obj", range(12, NUM_IMAGES))):
        rows = {}
        for number in numbers:
            texts = {"caption": TRUE[number], "negative_caption": FALSE[number]}
            rows[str(number)] = {"filename": NAMES[number], **texts}
        (folder / f"{kind}.json").write_text(json.dumps(rows))
    return folder


def test_sugar_crepe(encoder, images, tmp_path):
    data = write_sugar_crepe(tmp_path)
    benchmark = run_suite(encoder, "sugarcrepe", str(data), images=images)
    result = benchmark.result
    order = [*range(12, NUM_IMAGES), *range(12)]
    for prefix in ("", "fusion_", "reranked_"):
        right = []
        for number in order:
            values = scores(encoder, drawings()[number], [TRUE[number], FALSE[number]])[prefix]
            right.append(values[0] > values[1])
        metric = result[f"{prefix}acc"]
        assert metric.value == pytest.approx(np.mean(right))
        assert metric.value > 0.5  # the model has learned something
        assert (metric.chance, metric.n) == (0.5, NUM_IMAGES)
        assert result[f"{prefix}acc[add_obj]"].value == pytest.approx(np.mean(right[:12]))
        assert result[f"{prefix}acc[swap_att]"].value == pytest.approx(np.mean(right[12:]))
    table = benchmark.table()
    headings = [column.header for column in table.columns]
    assert headings == ["", "n", "dual", "fusion", "reranked", "chance"]
    assert [row["name"] for row in result.predictions] == [
        f"{'add_obj' if number >= 12 else 'swap_att'}/{number}" for number in order
    ]


def test_aro_reads_the_box_of_an_image(encoder, tmp_path):
    both = Image.new("RGB", (128, 64), "white")
    both.paste(drawings()[1].resize((64, 64)), (64, 0))
    (tmp_path / "images").mkdir()
    both.save(tmp_path / "images" / "0.png")
    row = {"image_path": "0.png", "true_caption": TRUE[1], "false_caption": FALSE[1]}
    row |= {"bbox_x": 64, "bbox_y": 0, "bbox_w": 64, "bbox_h": 64, "relation_name": "on"}
    (tmp_path / "visual_genome_relation.json").write_text(json.dumps([row]))
    result = run_suite(encoder, "aro", str(tmp_path)).result
    expected = scores(encoder, both.crop((64, 0, 128, 64)), [TRUE[1], FALSE[1]])
    found = result.predictions[0]
    np.testing.assert_allclose(found["similarity"], [expected[""]], atol=1e-5)
    np.testing.assert_allclose(found["match"], [expected["fusion_"]], atol=1e-3)
    whole = scores(encoder, both, [TRUE[1], FALSE[1]])
    assert abs(whole[""][0] - expected[""][0]) > 1e-3
    assert found["kind"] == "relation"


def test_published_values_stand_beside_those_measured(
    encoder, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    content = {"bytes": (images / NAMES[0]).read_bytes(), "path": ""}
    row = {"id": 0, "image_0": content, "image_1": content, "caption_0": "a", "caption_1": "b"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    out = tmp_path / "out.json"
    line = ["benchmark", str(encoder.folder), "--suite", "winoground", "--data", str(tmp_path)]
    main([*line, "--out", str(out), "--device", "cpu"])
    shown = " ".join(capsys.readouterr().out.split())
    # One image twice: for each caption both score alike, which is wrong.
    assert "│ image_acc │ 1 │ 0.0 (0.0-79.3) │ 0.0 (0.0-79.3) │ 0.0 (0.0-79.3) │ 25.0 │" in shown
    assert "10.5" in shown
    assert json.loads(out.read_text())["published"]["metrics"]["image_acc"] == 0.105


@pytest.mark.parametrize("is_parquet", [False, True])
def test_winoground(encoder, images, tmp_path, is_parquet):
    rows = []
    for number in range(12):
        pair = number, number + 12
        row = {"id": number, "collapsed_tag": "Both" if number % 2 else "Object"}
        for place, drawing in enumerate(pair):
            content = (images / NAMES[drawing]).read_bytes()
            cell = {"bytes": content, "path": NAMES[drawing]}
            row[f"image_{place}"] = cell if is_parquet else NAMES[drawing].removesuffix(".png")
            row[f"caption_{place}"] = TRUE[drawing]
        rows.append(row)
    if is_parquet:
        (tmp_path / "data").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test-0.parquet")
    else:
        lines = [json.dumps(row) for row in rows]
        (tmp_path / "examples.jsonl").write_text("\n".join(lines))
    result = run_suite(encoder, "winoground", str(tmp_path), images=images).result
    for prefix in ("", "fusion_"):
        counts = np.zeros(3)
        for number in range(12):
            texts = [TRUE[number], TRUE[number + 12]]
            first = scores(encoder, drawings()[number], texts)[prefix]
            second = scores(encoder, drawings()[number + 12], texts)[prefix]
            text = first[0] > first[1] and second[1] > second[0]
            image = first[0] > second[0] and second[1] > first[1]
            counts += [text, image, text and image]
        for name, count in zip(("text_acc", "image_acc", "acc"), counts, strict=True):
            assert result[prefix + name].value == pytest.approx(count / 12)
    assert result["text_acc"].value > 0
    assert result.chance["text_acc"] == 1 / 4
    assert result.chance["acc"] == 1 / 6
    assert result["acc[Both]"].n == 6


def test_chances_are_those_of_random_scores(encoder):
    from vlmo.zero_shot.benchmark import _fulfilled
    from vlmo.zero_shot.suites import SUITES

    random = np.random.default_rng(0).normal(size=(40_000, 2, 3))
    for suite in SUITES.values():
        for condition in suite.conditions.values():
            share = _fulfilled(encoder, condition, random, None)["dual"].mean()
            # Four standard deviations.
            assert share == pytest.approx(condition.chance, abs=0.01)
            ties = _fulfilled(encoder, condition, np.zeros((5, 2, 3)), None)["dual"]
            assert not ties.any()


@pytest.mark.parametrize("is_parquet", [False, True])
def test_half_truths(encoder, images, tmp_path, is_parquet):
    rows = []
    for number in range(0, NUM_IMAGES, 2):
        content = (images / NAMES[number]).read_bytes()
        row = {"id": str(number), "triplet_type": "entity" if number < 12 else "relation"}
        row["image"] = {"bytes": content, "path": ""} if is_parquet else NAMES[number]
        row["anchor"] = TRUE[number].rpartition(" ")[0]
        row["half_truth"] = f"{row['anchor']} {FALSE[number].split()[1]}"
        row["full_truth"] = TRUE[number]
        rows.append(row)
    file = tmp_path / ("coco.parquet" if is_parquet else "coco.jsonl")
    if is_parquet:
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    result = run_suite(encoder, "half-truths", str(file), images=images).result
    for prefix in ("", "fusion_", "reranked_"):
        right, ordered = [], []
        for row, image in zip(rows, drawings()[::2], strict=True):
            texts = [row["anchor"], row["half_truth"], row["full_truth"]]
            anchor, half, full = scores(encoder, image, texts)[prefix]
            right.append(anchor > half)
            ordered.append(full > anchor > half)
        assert result[f"{prefix}acc"].value == pytest.approx(np.mean(right))
        assert result[f"{prefix}order_acc"].value == pytest.approx(np.mean(ordered))
        assert result[f"{prefix}acc[entity]"].value == pytest.approx(np.mean(right[:6]))


def test_rows_of_composition_score_as_in_their_evaluation(encoder, tmp_path):
    source = write_rows(tmp_path / "set")
    metrics = run_suite(encoder, "composition", source).result.metrics
    expected = evaluate(encoder.folder, source=source, device="cpu").metrics
    assert metrics["acc"] == expected["dual"]
    assert metrics["fusion_acc"] == expected["fusion"]
    assert metrics["acc[color]"] == expected["dual[color]"]


def test_command_writes_the_fields_of_clip_benchmark(encoder, clip, images, tmp_path, capsys):
    data = write_sugar_crepe(tmp_path)
    line = ["benchmark", str(clip), "--suite", "sugarcrepe", "--data", str(data)]
    line += ["--images", str(images), "--device", "cpu", "--out", str(tmp_path / "out.json")]
    main(line)
    shown = capsys.readouterr().out
    assert "dual" in shown
    assert "fusion" not in shown
    read = json.loads((tmp_path / "out.json").read_text())
    assert {"model", "pretrained", "language", "versions"} <= set(read)
    assert (read["dataset"], read["task"]) == ("sugar_crepe", "image_caption_selection")
    assert set(read["metrics"]) == {"acc", "acc[add_obj]", "acc[swap_att]"}
    low, high = read["intervals"]["acc"]
    assert low < read["metrics"]["acc"] < high

    main([*line, "--reranker", str(encoder.folder), "--limit", "5"])
    assert "reranked" in capsys.readouterr().out
    read = json.loads((tmp_path / "out.json").read_text())
    assert {"acc", "fusion_acc", "reranked_acc"} <= set(read["metrics"])
    assert len(read["predictions"]) == 5


def test_files_of_another_form_are_refused(encoder, images, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"expected add_\*\.json"):
        run_suite(encoder, "sugarcrepe", str(tmp_path))
    with pytest.raises(ValueError, match="no suite 'sugarcrape'; did you mean 'sugarcrepe'"):
        run_suite(encoder, "sugarcrape", str(tmp_path))
    file = tmp_path / "swap_obj.json"
    row = {"filename": NAMES[0], "caption": "a"}
    file.write_text(json.dumps({"0": row}))
    with pytest.raises(ValueError, match=r"swap_obj\.json, 0: no negative_caption"):
        run_suite(encoder, "sugarcrepe", str(tmp_path), images=images)
    row["negative_caption"] = "b"
    for name in ("9.png", "../images/" + NAMES[0]):
        file.write_text(json.dumps({"0": row | {"filename": name}}))
        with pytest.raises(ValueError, match="no image"):
            run_suite(encoder, "sugarcrepe", str(tmp_path), images=images)
    file.write_text("3")
    with pytest.raises(ValueError, match="expected a list or an object"):
        run_suite(encoder, "sugarcrepe", str(tmp_path), images=images)
    file.write_text("{}")
    with pytest.raises(ValueError, match="has no examples"):
        run_suite(encoder, "sugarcrepe", str(tmp_path), images=images)
    (tmp_path / "x.parquet").write_bytes(encoded(drawings()[0]))
    with pytest.raises(ValueError, match="no readable parquet"):
        run_suite(encoder, "half-truths", str(tmp_path), images=images)
    line = ["benchmark", str(encoder.folder), "--suite", "aro", "--data", str(tmp_path)]
    assert "visual_genome_relation.json" in refused(line, capsys)
