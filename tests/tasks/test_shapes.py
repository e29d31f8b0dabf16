"""Images that keep their aspect ratio, from training to every task's evaluation and prediction."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from PIL import Image
from tests.data.test_loader import TRANSFORM
from tests.recipes.toy_recipes import shrunk
from tests.toy_questions import write_prepared

from vlmo import VLMoForImageTextRetrieval
from vlmo.checkpoints.loading import load_processor
from vlmo.data.config import DataConfig, StreamConfig
from vlmo.data.examples import Contents, RowExamples
from vlmo.data.loader import LoaderConfig, RowLoader
from vlmo.data.sampler import shaped_batches
from vlmo.export.onnx import write_onnx
from vlmo.processing import EvalTransform, TrainTransform, TransformConfig, image_processor_for
from vlmo.processing.transforms import by_shape, nearest_shapes, patch_shapes
from vlmo.recipes import find_recipe
from vlmo.retrieval import Encoder
from vlmo.run import build
from vlmo.serving.parts import ImageModel, answer_scores
from vlmo.tasks import Inputs, VQATask, evaluate, predict
from vlmo.types import normalize_pixels

CLOSE = 1e-5
SIZES = [
    (64, 64),
    (200, 50),
    (40, 160),
    (64, 60),
    (90, 45),
    (30, 61),
    (128, 64),
    (64, 64),
]  # width, height
SHAPES = [
    (64, 64),
    (32, 128),
    (128, 32),
    (64, 64),
    (48, 80),
    (80, 48),
    (48, 80),
    (64, 64),
]  # with patches of 16


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cell(image: Image.Image) -> dict:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def shaped(folders, tmp_path_factory) -> dict[str, Path]:
    """The toy folders of all tasks, whose processors keep the aspect ratio."""
    copies = {}
    for task in ("retrieval", "vqa", "classification", "captioning"):
        copies[task] = Path(
            shutil.copytree(folders[task], tmp_path_factory.mktemp("shaped") / task)
        )
        images = image_processor_for(64, aspect_patch_size=16)
        if task == "classification":
            images.save_pretrained(copies[task])
        else:
            processor = load_processor(copies[task])
            processor.image_processor = images
            processor.save_pretrained(copies[task])
    return copies


@pytest.fixture(scope="module")
def data(sources, tmp_path_factory) -> dict[str, Path]:
    """The toy sets with images of eight sizes."""
    root, written = tmp_path_factory.mktemp("data"), {}
    for task in ("vqa", "classification"):
        rows = load_from_disk(str(sources[task]))["test"].select(range(8))
        images = [cell(noise(size, number)) for number, size in enumerate(SIZES)]
        rows = Dataset.from_list(
            [row | {"image": image} for row, image in zip(rows, images, strict=True)], rows.features
        )
        labels = json.loads((sources[task] / "prepared.json").read_text())["labels"]
        written[task] = write_prepared(root / task, {"test": rows, "train": rows}, labels=labels)
    written["retrieval"] = written["captioning"] = root / "pairs"
    (root / "pairs").mkdir()
    lines = ["file_name,caption,split"]
    for number, size in enumerate(SIZES * 2):
        noise(size, number).save(root / "pairs" / f"{number}.png")
        lines.append(f"{number}.png,what color is number {number}?,train")
    (root / "pairs" / "captions.csv").write_text("\n".join(lines) + "\n")
    return written


def test_shapes_have_nearly_as_many_patches_as_the_square():
    assert patch_shapes(64, patch_size=16) == ((32, 128), (48, 80), (64, 64), (80, 48), (128, 32))
    for side in (3, 7, 14, 30):
        shapes = patch_shapes(16 * side, patch_size=16)
        assert all(
            0.75 * side**2 < (height // 16) * (width // 16) <= side**2 for height, width in shapes
        )
        assert [(width, height) for height, width in reversed(shapes)] == list(shapes)
    shapes = patch_shapes(64, patch_size=16)
    assert [shapes[number] for number in nearest_shapes(SIZES, shapes)] == SHAPES
    processor = image_processor_for(64, aspect_patch_size=16)
    assert [EvalTransform.of(processor)(noise(size, 0)).shape[1:] for size in SIZES] == SHAPES


def test_results_stay_in_order_whatever_the_shapes():
    calls = []
    items = [torch.full(shape, float(number)) for number, shape in enumerate(SHAPES)]
    found = by_shape(
        items, lambda part: calls.append(len(part)) or torch.stack(part).mean(dim=(1, 2))
    )
    assert [float(each) for each in found] == list(range(8))
    assert sorted(calls) == [1, 1, 1, 2, 3]
    assert by_shape([], lambda part: part) == []


@pytest.mark.parametrize("task", ["retrieval", "vqa", "classification", "captioning"])
def test_batches_of_mixed_shapes_give_what_each_image_gives_alone(task, shaped, data):
    where = {"source": str(data[task]), "split": "train", "device": "cpu", "limit": 8}
    options = {"rerank": 4} if task == "retrieval" else {}
    alone, together = (
        evaluate(shaped[task], **where, **options, batch_size=size) for size in (1, 64)
    )
    for one, other in zip(alone.predictions, together.predictions, strict=True):
        numbers = [name for name in one if isinstance(one[name], float)]
        assert [one.pop(name) for name in numbers] == pytest.approx(
            [other.pop(name) for name in numbers], abs=2e-4
        )
        assert one == other
    assert alone.metrics == pytest.approx(together.metrics)


def test_tasks_read_the_shape_of_the_processor(shaped, folders, tmp_path):
    """The prediction is that of the model on an image of this shape, not on the square."""
    noise((200, 50), 1).save(tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as image:
        wide = image.convert("RGB")
    model, processor = VQATask.load(shaped["vqa"])
    asked = "what color is it?"
    inputs = processor(images=wide, text=asked, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 128)
    torch.testing.assert_close(
        inputs["pixel_values"][0], EvalTransform.of(processor)(wide), atol=0.02, rtol=0
    )
    for same in (wide.convert("L"), np.zeros((50, 200, 3), dtype=np.uint8)):
        assert processor(images=same, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 128)
    with torch.inference_mode():
        scores = model(**inputs).logits[0].sigmoid()
    best = max(scores.tolist())
    found = predict(
        shaped["vqa"], Inputs((tmp_path / "wide.png",), question=asked), device="cpu"
    ).rows
    assert found[0]["confidence"] == pytest.approx(best, abs=1e-3)
    square = predict(
        folders["vqa"], Inputs((tmp_path / "wide.png",), question=asked), device="cpu"
    ).rows
    assert [row["confidence"] for row in square] != pytest.approx(
        [row["confidence"] for row in found], abs=1e-3
    )
    answerer = ImageModel(VQATask, shaped["vqa"], device="cpu")
    mixed = [(answerer.pixels(noise(size, 0)), asked) for size in SIZES]
    one_by_one = torch.cat([answer_scores(answerer, [each]) for each in mixed])
    torch.testing.assert_close(answer_scores(answerer, mixed), one_by_one, atol=CLOSE, rtol=0)
    both = [wide, noise((64, 64), 0)]
    with pytest.raises(ValueError, match="several shapes"):
        processor(images=both, return_tensors="pt")
    pixels = processor(images=both, size={"height": 48, "width": 64}, return_tensors="pt")[
        "pixel_values"
    ]
    assert pixels.shape == (2, 3, 48, 64)


def test_predictions_compare_images_of_several_shapes(shaped, tmp_path):
    for number, size in enumerate(SIZES[:3]):
        noise(size, number).save(tmp_path / f"{number}.png")
    files = tuple(tmp_path / f"{number}.png" for number in range(3))
    together = predict(
        shaped["retrieval"], Inputs(files, texts=("one", "two"), top=2), device="cpu"
    ).rows
    alone = [
        row
        for file in files
        for row in predict(
            shaped["retrieval"], Inputs((file,), texts=("one", "two"), top=2), device="cpu"
        ).rows
    ]
    assert len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert {one["image"], one["text"]} == {other["image"], other["text"]}
        assert [one["similarity"], one["match"]] == pytest.approx(
            [other["similarity"], other["match"]], abs=2e-4
        )


@pytest.mark.parametrize("size", [None, (32, 96)])
def test_index_embeds_images_in_their_shape(shaped, folders, tmp_path, size):
    """With buckets, and with one size that is no square."""
    folder = shaped["retrieval"]
    if size is not None:
        folder = Path(shutil.copytree(folders["retrieval"], tmp_path / "model"))
        settings = json.loads((folder / "processor_config.json").read_text())
        settings["image_processor"]["size"] = {"height": size[0], "width": size[1]}
        (folder / "processor_config.json").write_text(json.dumps(settings))
    encoder, images = (
        Encoder(folder, device="cpu"),
        [noise(size, number) for number, size in enumerate(SIZES)],
    )
    assert [encoder.pixels(image).shape[1:] for image in images] == ([size] * 8 if size else SHAPES)
    model = VLMoForImageTextRetrieval.from_pretrained(folder).eval()
    texts = [f"number {number}" for number in range(8)]
    with torch.inference_mode():
        values = [
            normalize_pixels(torch.from_numpy(encoder.pixels(image).copy()))[None]
            for image in images
        ]
        expected = torch.cat([model.get_image_features(each) for each in values]).numpy()
        words = [load_processor(folder)(text=[text], return_tensors="pt") for text in texts]
        logits = torch.cat(
            [model.match(each, **text) for each, text in zip(values, words, strict=True)]
        )
    np.testing.assert_allclose(encoder.embed_images(images), expected, atol=CLOSE)
    np.testing.assert_allclose(
        encoder.match(images, texts), (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-4
    )
    with pytest.raises(ValueError, match="no squares of 64 px"):
        write_onnx(folder, tmp_path / "graphs")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"height": 40, "width": 64}}, "multiples of 16"),
        ({"aspect_patch_size": 8}, "aspect_patch_size is 8"),
        ({"aspect_patch_size": 16, "size": {"height": 32, "width": 64}}, "a square"),
    ],
)
def test_sizes_that_are_no_patches_are_refused(folders, tmp_path, settings, words):
    folder = Path(shutil.copytree(folders["retrieval"], tmp_path / "model"))
    read = json.loads((folder / "processor_config.json").read_text())
    read["image_processor"] |= settings
    (folder / "processor_config.json").write_text(json.dumps(read))
    with pytest.raises(ValueError, match=words):
        Encoder(folder)


def test_steps_have_one_shape_and_epochs_each_row_once():
    shapes = np.array([0] * 11 + [1] * 6 + [2] * 9)
    stream = shaped_batches(0, shapes=shapes, batch_size=4, seed=3)
    steps = [next(stream) for _ in range(15)]  # of 2 + 1 + 2 batches an epoch
    assert all(len({shapes[row] for _, row in step}) == 1 for step in steps)
    for epoch in range(3):
        keys = [key for step in steps[5 * epoch : 5 * epoch + 5] for key in step]
        assert len(set(keys)) == 20
        assert {number for number, _ in keys} == {epoch}
    assert steps[:5] != steps[5:10]
    later = shaped_batches(7, shapes=shapes, batch_size=4, seed=3)
    assert [next(later) for _ in range(8)] == steps[7:]


def test_processes_share_steps_of_one_shape_and_rare_shapes_join_the_nearest():
    images = [cell(noise(size, number)) for number, size in enumerate([*SIZES[:3] * 4, (80, 48)])]
    rows = [
        {"image": image, "image_id": str(number), "captions": []}
        for number, image in enumerate(images)
    ]
    transform = dataclasses.replace(TRANSFORM, image_size=64, min_crop=0.5, keep_aspect=True)
    contents = Contents(7, TrainTransform(transform), shapes=patch_shapes(64, patch_size=16))
    examples = RowExamples(Dataset.from_list(rows), contents)

    def loader(rank: int, world: int) -> RowLoader:
        config = LoaderConfig(global_batch_size=4, num_workers=0)
        return RowLoader(examples, config=config, seed=1, rank=rank, world_size=world)

    whole, *parts = (loader(rank, world)(2) for rank, world in ((0, 1), (0, 2), (1, 2)))
    seen = set()
    for _ in range(6):
        (batch,), *both = (next(each) for each in (whole, *parts))
        joined = torch.cat([part[0]["pixel_values"] for part in both])
        assert torch.equal(batch["pixel_values"], joined)
        seen.add(tuple(joined.shape[2:]))
    # One image of 5:3 fills no batch: it gets the square, which is nearer than 4:1.
    assert seen == {(64, 64), (32, 128), (128, 32)}
    assert examples.fit_shapes(4)[-1] == examples.fit_shapes(4)[0]


def test_crops_of_a_shape_vary_about_the_aspect_ratio_of_the_image():
    left = Image.new("RGB", (300, 100), "black")
    left.paste("white", (0, 0, 150, 100))
    config = TransformConfig(image_size=64, min_crop=0.5, rand_augment_ops=0, horizontal_flip=0)
    seen = [
        TrainTransform(config).pixels(left, np.random.default_rng(seed), shape=(32, 96))
        for seed in range(20)
    ]
    assert {each.shape for each in seen} == {(3, 32, 96)}
    assert len({each.float().mean().item() for each in seen}) > 10
    whole = TrainTransform(dataclasses.replace(config, min_crop=1.0))
    pixels = whole.pixels(left, np.random.default_rng(0), shape=(32, 96))
    assert pixels[:, :, :46].min() > 250 > 5 > pixels[:, :, 50:].max()


@pytest.mark.parametrize("name", ["shapes-stage3", "shapes-questions"])
def test_training_in_shapes_leaves_a_folder_that_keeps_them(name, data, tmp_path):
    recipe = shrunk(
        find_recipe(name),
        source=data["retrieval"],
        visual_tokenizer=tmp_path,
        sets={"vqa": data["vqa"]},
    )
    source = dataclasses.replace(recipe.data, transform=TransformConfig(keep_aspect=True))
    recipe = dataclasses.replace(
        recipe,
        data=source,
        loader=LoaderConfig(global_batch_size=4, num_workers=0),
        trainer=dataclasses.replace(recipe.trainer, max_steps=3),
        evaluate_on=recipe.data.source,
        evaluate_split="train",
    )
    result = build(recipe, run_dir=tmp_path / "run").fit()
    processor = load_processor(result.model_dir)
    assert processor.image_processor.aspect_patch_size == 16
    assert EvalTransform.of(processor).shape((200, 50)) == (32, 128)
    assert evaluate(
        result.model_dir, source=recipe.data.source, split="train", device="cpu"
    ).metrics


def test_what_cannot_keep_the_aspect_is_one_line(sources, data, tmp_path, visual_tokenizer):
    transform = TransformConfig(keep_aspect=True)
    with pytest.raises(ValueError, match="keep_aspect needs to know all shapes"):
        DataConfig(streams=StreamConfig(patterns=("a.tar",)), transform=transform)
    for name in ("shapes-stage1", "shapes-statements"):
        recipe = shrunk(
            find_recipe(name),
            source=data["retrieval"],
            visual_tokenizer=visual_tokenizer,
            sets=sources,
        )
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, transform=transform)
        )
        recipe = dataclasses.replace(recipe, evaluate_on=None)
        with pytest.raises(ValueError, match="keep_aspect is for one image without masked patches"):
            build(recipe, run_dir=tmp_path / name)
