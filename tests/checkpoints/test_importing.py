"""`import_checkpoint`: what a folder holds, what is reported, and that a refusal leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from tests.parity import plain_beit3
from tests.parity.cases import reference_file
from tests.parity.plain_vlmo import Sizes, random_checkpoint, write_vocabulary
from tests.parity.test_beit import (
    ABSOLUTE_POSITIONS,
    HEADS,
    SHARED_TABLE,
    hugging_face_keys,
    published_keys,
    random_beit,
)
from tests.processing.test_sentencepiece import train as train_sentencepiece
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
)

from vlmo import VLMoProcessor  # registers the Auto classes
from vlmo.checkpoints import importing
from vlmo.checkpoints.importing import import_checkpoint
from vlmo.checkpoints.layout import Conversion
from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForVisualQuestionAnswering,
)

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RELATIVE = Sizes(relative=True)
ABSOLUTE = Sizes()


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    return write_vocabulary(tmp_path / "vocab.txt")


def write(weights: dict[str, Tensor], folder: Path) -> Path:
    file = folder / "checkpoint.pt"
    torch.save({"state_dict": weights}, file)
    return file


@pytest.fixture
def take(tmp_path, vocabulary) -> Callable[..., Conversion]:
    """Imports weights, or the reference file of that name, as the folder `out`."""

    def take(source: str | dict[str, Tensor], out: str = "out", **options: Any) -> Conversion:
        file = reference_file(source) if isinstance(source, str) else write(source, tmp_path)
        return import_checkpoint(file, tmp_path / out, **{"vocabulary": vocabulary} | options)

    return take


def loaded(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_folder_holds_model_processor_and_card(tmp_path, vocabulary):
    torch.save(
        {"state_dict": load_file(reference_file("pretrain")), "epoch": 3}, tmp_path / "file.pt"
    )
    (tmp_path / "out").mkdir()
    report = import_checkpoint(tmp_path / "file.pt", tmp_path / "out", vocabulary=vocabulary)
    model = VLMoForImageTextRetrieval.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(processor, VLMoProcessor)
    assert (processor.image_size, processor.max_text_length, processor.vocab_size) == (64, 40, 96)
    tokens = processor(text="word1 word2", return_tensors="pt")["input_ids"][0, :4].tolist()
    assert tokens == [1, 6, 7, 2]
    assert model.get_text_features(torch.tensor([tokens])).shape == (1, 32)
    assert "`file.pt`" in (tmp_path / "out" / "README.md").read_text()
    unused = report.tensors.unused
    assert sorted(unused) == [
        "text_embeddings.position_embeddings.weight",
        "text_embeddings.position_ids",
    ]
    assert (report.tensors.unknown, report.missing, report.notes) == ([], [], [])
    assert len(report.weights) + len(unused) == len(load_file(reference_file("pretrain")))
    assert all(key in "\n".join(report.lines()) for key in unused)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pt", "out", "vocab.txt"]
    with pytest.raises(ValueError, match="model folder of this project already"):
        import_checkpoint(tmp_path / "out", tmp_path / "again", vocabulary=vocabulary)


def test_labels_become_answers(tmp_path, take):
    answers = [f"answer {number}" for number in range(17)]
    (tmp_path / "answers.txt").write_text("\n".join(answers))
    for labels in (None, tmp_path / "answers.txt"):
        report = take("vqa", str(labels is None), labels=labels)
        assert any("LABEL_0" in note for note in report.notes) == (labels is None)
    model = VLMoForVisualQuestionAnswering.from_pretrained(tmp_path / "False")
    assert [model.config.id2label[number] for number in range(17)] == answers
    assert model.config.label2id["answer 3"] == 3
    assert report.lines()[0].startswith("found: VLMo, fine-tuned on VQA, 0.")
    assert (
        report.lines()[1]
        == "model: VLMoForVisualQuestionAnswering for images of 64 px and texts of up to 40 tokens"
    )


def test_text_length_is_that_of_the_file_or_what_was_asked_for(tmp_path, take):
    stage2 = random_checkpoint(
        Sizes(relative=True, fusion_layers=0, text_rows=196), "pooler", "mlm"
    )
    report = take(stage2)
    assert report.model_class is VLMoForMaskedLM
    assert (
        report.max_text_length
        == AutoProcessor.from_pretrained(tmp_path / "out").max_text_length
        == 192
    )
    weights = random_checkpoint(ABSOLUTE, "pooler", "itc")
    report = take(weights, "short", num_attention_heads=5, text_length=16)
    positions = loaded(tmp_path / "short")["vlmo.text_embeddings.positions"]
    assert torch.equal(positions, weights["text_embeddings.position_embeddings.weight"][:16])
    assert report.config.max_text_positions == report.max_text_length == 16
    model = VLMoForImageTextRetrieval.from_pretrained(tmp_path / "short")
    assert model.get_text_features(torch.full((1, 16), 7)).shape == (1, 30)
    table = load_file(reference_file("irtr"))["relative_position_bias_table"]
    for length in (16, 64):
        take("irtr", str(length), text_length=length)
        assert torch.equal(loaded(tmp_path / str(length))["vlmo.position_bias.table"], table)
        assert AutoProcessor.from_pretrained(tmp_path / str(length)).max_text_length == length


def test_absolute_image_positions_are_resized_bicubically_without_the_class_token(tmp_path, take):
    weights = random_checkpoint(ABSOLUTE, "itc")
    report = take(weights, num_attention_heads=5, image_size=40)
    found, old = (
        loaded(tmp_path / "out")["vlmo.image_embeddings.positions"],
        weights["transformer.pos_embed"][0],
    )
    patches = old[1:].reshape(3, 3, 30).permute(2, 0, 1)[None]
    resized = (
        F.interpolate(patches, size=(5, 5), mode="bicubic")[0].permute(1, 2, 0).reshape(25, 30)
    )
    torch.testing.assert_close(found, torch.cat([old[:1], resized]))
    assert "positions are resized from the 24 px of the file" in report.notes
    assert (
        AutoProcessor.from_pretrained(tmp_path / "out").image_size == report.config.image_size == 40
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", [RELATIVE, ABSOLUTE], ids=["relative", "absolute"])
def test_half_precision_stays_at_another_size_and_a_mixture_becomes_float32(
    tmp_path, take, dtype, sizes
):
    weights = {key: tensor.to(dtype) for key, tensor in random_checkpoint(sizes, "itc").items()}
    options = {"num_attention_heads": None if sizes.relative else 5, "image_size": 40}
    take(weights, **options)
    assert {tensor.dtype for tensor in loaded(tmp_path / "out").values()} == {dtype}
    model = VLMoForImageTextRetrieval.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model.get_image_features(torch.randn(1, 3, 40, 40).to(dtype))).all()
    weights["logit_scale"] = weights["logit_scale"].float()
    assert any(
        ", float32: all is float32" in note for note in take(weights, "mixed", **options).notes
    )
    assert {tensor.dtype for tensor in loaded(tmp_path / "mixed").values()} == {torch.float32}


def test_tensors_that_share_memory_in_the_file_are_both_saved(tmp_path, take):
    weights = random_checkpoint(Sizes(relative=True, fusion_layers=0), "mlm")
    weights["mlm_score.decoder.weight"] = weights["text_embeddings.word_embeddings.weight"]
    take(weights)
    for name in ("mlm_head.decoder.weight", "vlmo.text_embeddings.words.weight"):
        assert torch.equal(loaded(tmp_path / "out")[name], weights["mlm_score.decoder.weight"])


def test_partial_files_are_refused_with_their_keys_in_one_line(tmp_path, take):
    weights = random_checkpoint(RELATIVE, "pooler", "itc")
    del (
        weights["transformer.blocks.1.mlp_text.fc1.weight"],
        weights["transformer.blocks.2.mlp_text.fc1.weight"],
    )
    weights["ema.decay"] = torch.ones(1)
    names = r"ema\.decay.*transformer\.blocks\.\*\.mlp_text\.fc1\.weight \(2\)"
    with pytest.raises(ValueError, match=names) as refused:
        take(weights)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_files_of_a_kind_never_hold_is_always_made_the_same(tmp_path, vocabulary):
    random_beit(BeitModel).save_pretrained(tmp_path / "beit")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        report = import_checkpoint(tmp_path / "beit", tmp_path / name, vocabulary=vocabulary)
        assert torch.equal(torch.get_rng_state(), state)
    one, two = loaded(tmp_path / "one"), loaded(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (
        0 < one["vlmo.blocks.1.experts.language.fc1.weight"].std() < 0.03
    )  # as a new model, not as the file's
    lines = "\n".join(report.lines())
    assert "not in the file, started anew: vlmo.blocks.*.experts.language.fc1.weight (3)" in lines
    assert "vlmo.blocks.*" in (tmp_path / "one" / "README.md").read_text()


NORM = "transformer.norm.bias"
FAILURES = {  # a reference file or its weights, tensors that are changed or left out, options, and the refusal
    "unknown_key": ("irtr", {"who": torch.ones(1)}, {}, "does not have: who"),
    "missing_key": ("irtr", {NORM: None}, {}, r"missing: transformer\.norm\.bias"),
    "other_head": ("vqa", {"itm_score.fc.bias": torch.ones(2)}, {}, "itm_score"),
    "wrong_shape": ("irtr", {NORM: torch.ones(31)}, {}, r"\(31,\), expected \(32,\)"),
    "integers": (
        "irtr",
        {NORM: torch.ones(32, dtype=torch.int8)},
        {},
        r"int8; expected floating-point",
    ),
    "other_model": (lambda: {"bert.weight": torch.ones(2)}, {}, {}, "in no layout of VLMo"),
    "both_positions": (
        *(
            lambda: published_keys(random_beit(BeitForMaskedImageModeling)),
            {"pos_embed": torch.ones(1, 26, 32)},
        ),
        *({"num_attention_heads": HEADS}, "does not have: .*relative_position_bias_table"),
    ),
    "wrong_heads": ("irtr", {}, {"num_attention_heads": 3}, "of 3 heads"),
    "image_no_multiple": ("irtr", {}, {"image_size": 100}, "patch size 16"),
    "text_no_multiple": ("irtr", {}, {"text_length": 20}, "multiple of 8"),
    "text_beyond_table": ("irtr", {}, {"text_length": 200}, "196 positions"),
    "text_beyond_positions": (
        *(lambda: random_checkpoint(ABSOLUTE, "itc"), {}),
        *({"text_length": 48, "num_attention_heads": 5}, "longer than the 40 positions"),
    ),
    "labels_without_classes": ("irtr", {}, {"labels": "answers"}, "no classifier"),
    "labels_missing": ("vqa", {}, {"labels": "answers"}, "no file answers"),
    "vocabulary_missing": ("irtr", {}, {"vocabulary": "none.txt"}, "no vocabulary"),
    "vocabulary_not_given": ("irtr", {}, {"vocabulary": None}, "96 rows, not BERT's"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_refusal_is_one_line_and_leaves_nothing(tmp_path, vocabulary, name):
    source, changes, options, message = FAILURES[name]
    existing = list(FAILURES).index(name) % 2 == 0  # an empty folder is there, or none
    weights = (load_file(reference_file(source)) if isinstance(source, str) else source()) | changes
    weights = {key: tensor for key, tensor in weights.items() if tensor is not None}
    file, out = write(weights, tmp_path), tmp_path / "out"
    if existing:
        out.mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as refused:
        import_checkpoint(file, out, **{"vocabulary": vocabulary} | options)
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value) or "labels" in options
    assert sorted(tmp_path.iterdir()) == before
    assert not existing or not any(out.iterdir())


MUTATED: dict[str, tuple[Callable[[], dict[str, Tensor]], dict[str, object]]] = {
    "vlmo": (lambda: load_file(reference_file("pretrain")), {}),
    "vlmo_absolute": (
        lambda: random_checkpoint(ABSOLUTE, "pooler", "itc"),
        {"num_attention_heads": 5},
    ),
    "beit": (lambda: published_keys(random_beit(BeitForMaskedImageModeling)), {"vocabulary": None}),
    "beit_absolute": (
        lambda: published_keys(random_beit(BeitForMaskedImageModeling, **ABSOLUTE_POSITIONS)),
        {"vocabulary": None, "num_attention_heads": HEADS},
    ),
    "hf-beit": (
        lambda: hugging_face_keys(random_beit(BeitForImageClassification)),
        {"vocabulary": None},
    ),
    "hf-beit_shared": (
        lambda: hugging_face_keys(random_beit(BeitForImageClassification, **SHARED_TABLE)),
        {"vocabulary": None},
    ),
    "beit3": (
        lambda: plain_beit3.random_weights(plain_beit3.Sizes(), contrast=True),
        {"num_attention_heads": 4},
    ),
}
MUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "no_axis": lambda _: torch.tensor(1.0),
    "empty": lambda _: torch.zeros(0),
    "one_row": lambda tensor: tensor[:1] if tensor.ndim else tensor,
    "last_axis": lambda tensor: tensor[..., :1] if tensor.ndim else tensor,
    "one_axis_more": lambda tensor: torch.stack([tensor, tensor]),
    "complex": lambda tensor: torch.zeros(tensor.shape, dtype=torch.complex64),
}
# Of no use to the model, or of any size that the others follow (a shared table: one head).
FREE = re.compile(
    r".*(position_ids|position_embeddings|mask_token|position_index|lm_head|logit_|words?_emb|encoder.relative_position).*"
)
STRIDE = 7  # prime to the number of mutations: nearly each tensor is met, and each mutation


def mutations(weights: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Names of cases, and the weights with one tensor of block 0 or outside of blocks in another shape or type."""
    names = [
        name
        for name in weights
        if not re.search(r"\.(blocks|layers|layer)\.[1-9]|^blocks\.[1-9]", name)
    ]
    for name, label in list(itertools.product(names, MUTATIONS))[::STRIDE]:
        mutated = MUTATIONS[label](weights[name])
        if (mutated.shape, mutated.dtype) != (weights[name].shape, weights[name].dtype):
            yield f"{name} {label}", weights | {name: mutated}


class AcceptedError(Exception):
    """Raised at the start of writing."""


@pytest.mark.parametrize("kind", MUTATED)
def test_tensor_of_any_other_shape_is_one_line(tmp_path, vocabulary, monkeypatch, capfd, kind):
    make, options = MUTATED[kind]
    monkeypatch.setattr(
        importing, "_make_processor", lambda *_, **__: None
    )  # slow, and not what is asked here
    monkeypatch.setattr(importing, "write_folder", Mock(side_effect=AcceptedError))
    cases = dict(mutations(make()))
    assert len(cases) > 12
    capfd.readouterr()  # transformers' progress
    for case, weights in cases.items():
        monkeypatch.setattr(importing, "read_state_dict", Mock(return_value=weights))
        with pytest.raises((ValueError, AcceptedError)) as ended:
            import_checkpoint("file.pt", tmp_path / "out", **{"vocabulary": vocabulary} | options)
        assert ended.type is ValueError or FREE.fullmatch(case), f"accepted: {case}"
        assert "\n" not in str(ended.value)
    assert capfd.readouterr().err == ""


def test_folder_that_is_not_empty_is_left_as_it_is(tmp_path, take):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for taken in ("out", "out/notes.txt"):
        with pytest.raises(ValueError, match="exists and is no empty folder"):
            take("irtr", taken)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_vocabulary_must_be_that_of_the_word_table(vocabulary, take):
    tokens = vocabulary.read_text().splitlines()
    changed = (
        (tokens[:-1], r"95 tokens.*96 rows"),
        (tokens[1:] + tokens[:1], "padding is number 95"),
    )
    for others, message in changed:
        vocabulary.write_text("\n".join(others) + "\n")
        with pytest.raises(ValueError, match=message):
            take("irtr")


def test_long_lists_of_names_are_cut_and_control_characters_written_out(take):
    weights = load_file(reference_file("irtr")) | {
        f"who{number:04}": torch.ones(1) for number in range(2000)
    }
    with pytest.raises(ValueError, match="who0018 and 1981 more") as refused:
        take(weights | {"a\nb\x1b[31m": torch.ones(1)})
    assert r"a\nb\x1b[31m, who0000" in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_berts_vocabulary_comes_from_the_hub_or_the_refusal_is_one_line(
    tmp_path, take, monkeypatch
):
    asked, weights = [], random_checkpoint(Sizes(relative=True, vocabulary=30522), "itc")

    def fetch(repository: str, file: str, **options: object) -> str:
        asked.append((repository, file, *options))
        if not (tmp_path / "fetched.txt").exists():
            raise LocalEntryNotFoundError("no network\nand no cache")
        return str(tmp_path / "fetched.txt")

    monkeypatch.setattr(importing, "hf_hub_download", fetch)
    with pytest.raises(ValueError, match=r"could not be fetched.*--vocabulary") as refused:
        take(weights, vocabulary=None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    write_vocabulary(tmp_path / "fetched.txt", size=30522)
    take(weights, vocabulary=None)
    assert asked == 2 * [("google-bert/bert-base-uncased", "vocab.txt", "etag_timeout")]
    assert AutoProcessor.from_pretrained(tmp_path / "out").vocab_size == 30522


def test_beit_without_a_vocabulary_gets_a_processor_of_images_only(tmp_path):
    random_beit(BeitModel).save_pretrained(tmp_path / "beit")
    report = import_checkpoint(tmp_path / "beit", tmp_path / "out", image_size=32)
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 32
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    assert report.max_text_length is None
    assert any("images only" in note for note in report.notes)
    with pytest.raises(ValueError, match="no text side"):
        import_checkpoint(tmp_path / "beit", tmp_path / "again", text_length=40)
    options = {"vocabulary": write_vocabulary(tmp_path / "vocab.txt"), "text_length": 24}
    report = import_checkpoint(tmp_path / "beit", tmp_path / "again", **options)
    assert loaded(tmp_path / "again")["vlmo.text_embeddings.words.weight"].shape == (96, 32)
    assert AutoProcessor.from_pretrained(tmp_path / "again").max_text_length == 24
    assert "vlmo.text_embeddings.words.weight" in report.missing
    torch.save(
        published_keys(random_beit(BeitForMaskedImageModeling, **ABSOLUTE_POSITIONS)),
        tmp_path / "file.pth",
    )
    import_checkpoint(
        tmp_path / "file.pth", tmp_path / "absolute", num_attention_heads=HEADS, **options
    )
    assert loaded(tmp_path / "absolute")["vlmo.text_embeddings.positions"].shape == (24, 32)


def test_beit3_takes_its_sentencepiece_file_and_keeps_spare_rows_of_its_word_table(tmp_path):
    spm = train_sentencepiece(tmp_path / "toy.spm")
    tokens = VLMoProcessor.from_sentencepiece(spm).vocab_size
    for spare in (8, 9, -1):
        sizes = plain_beit3.Sizes(vocabulary=tokens + spare)
        file, out = tmp_path / f"{spare}.pth", tmp_path / f"out{spare}"
        torch.save({"model": plain_beit3.random_weights(sizes, contrast=True)}, file)
        with pytest.raises(ValueError, match=r"--vocabulary beit3\.spm"):
            import_checkpoint(file, out, num_attention_heads=4)
        options = {"vocabulary": spm, "num_attention_heads": 4, "text_length": 16}
        if spare != 8:
            with pytest.raises(ValueError, match=f"{tokens + spare} rows"):
                import_checkpoint(file, out, **options)
            continue
        assert import_checkpoint(file, out, **options).config.vocab_size == tokens + 8
        assert loaded(out)["vlmo.text_embeddings.positions"].shape == (16, 32)
        assert AutoProcessor.from_pretrained(out)(text="a b")["input_ids"][0] == 0


@pytest.mark.parametrize("task", ["vqa", "imagenet", "nlvr2", "captions"])
def test_fine_tuned_beit3_is_whole(tmp_path, task):
    spm = train_sentencepiece(tmp_path / "toy.spm")
    sizes = plain_beit3.Sizes(vocabulary=VLMoProcessor.from_sentencepiece(spm).vocab_size)
    torch.save({"model": plain_beit3.fine_tuned_weights(sizes, task)}, tmp_path / "file.pth")
    report = import_checkpoint(
        tmp_path / "file.pth", tmp_path / "out", vocabulary=spm, num_attention_heads=4
    )
    assert (report.tensors.unknown, report.missing) == ([], [])
    model, loading = report.model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    # The published code norms pixels by ImageNet's mean for the classifier of images alone.
    images = torch.randint(0, 256, (2, 3, *[model.config.image_size] * 2), dtype=torch.uint8)
    norm = IMAGENET if task == "imagenet" else ((0.5,) * 3, (0.5,) * 3)
    plain = report.model_class(model.config)
    plain.load_state_dict(report.weights)
    expected = plain.backbone.image_embeddings(normed(images, mean=norm[0], deviation=norm[1]))
    torch.testing.assert_close(
        model.backbone.image_embeddings(images), expected, atol=1e-5, rtol=1e-5
    )


def normed(images: Tensor, *, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    return (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[
        :, None, None
    ]


@pytest.mark.parametrize(
    ("name", "settings", "option", "norm"),
    [
        ("beit_base_patch16_224_pt22k_ft1k.pth", None, True, IMAGENET),
        ("beitv2_base_patch16_224_pt1k.pth", None, False, IMAGENET),
        ("beitv2_large_patch16_224_pt1k_ft21kto1k.pth", None, False, IMAGENET),
        ("beit_base_patch16_224_pt1k_800ep.pth", None, False, IMAGENET),
        ("beit", {}, False, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ("beit", {"do_normalize": False}, False, ((0.0,) * 3, (1.0,) * 3)),
        (
            "beit",
            {"image_mean": 0.4, "image_std": 0.25, "rescale_factor": 1 / 255},
            False,
            ((0.4,) * 3, (0.25,) * 3),
        ),
        ("beit", {}, True, IMAGENET),
    ],
)
@torch.no_grad()
def test_other_normalisation_of_pixels_moves_into_the_projection(
    tmp_path, name, settings, option, norm
):
    """The imported model sees an image as the file's own code, which norms it in another way."""
    file = tmp_path / "plain"
    if settings is None:
        positions = ABSOLUTE_POSITIONS if name.endswith("800ep.pth") else {}
        torch.save(published_keys(random_beit(BeitForMaskedImageModeling, **positions)), file)
    else:
        random_beit(BeitModel).save_pretrained(file)
    import_checkpoint(file, tmp_path / "plain-model", num_attention_heads=HEADS)
    file = file.rename(tmp_path / name)
    if settings is not None:
        settings = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)} | settings
        (file / "preprocessor_config.json").write_text(json.dumps(settings))
    import_checkpoint(file, tmp_path / "out", num_attention_heads=HEADS, imagenet_pixels=option)
    folders = [tmp_path / "plain-model", tmp_path / "out"]
    plain, model = (VLMoForMaskedImageModeling.from_pretrained(folder).eval() for folder in folders)
    images = torch.randint(0, 256, (2, 3, *[model.config.image_size] * 2), dtype=torch.uint8)
    expected = plain(normed(images, mean=norm[0], deviation=norm[1])).reconstruction
    torch.testing.assert_close(model(images).reconstruction, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(plain(images).reconstruction, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_rescale": False}, "does not rescale pixels by 1/255"),
        ({"rescale_factor": 1.0}, "does not rescale pixels by 1/255"),
        ({"image_mean": [0.5], "image_std": 0.5}, r"image_mean \[0\.5\]"),
        ({"image_mean": 0.5, "image_std": [0.5, 0, 0.5]}, r"image_std \[0\.5, 0, 0\.5\]"),
        ({"image_mean": ["a", 1, 1], "image_std": 0.5}, "image_mean"),
    ],
)
def test_pixels_that_no_projection_can_take_are_refused(tmp_path, settings, message):
    random_beit(BeitModel).save_pretrained(tmp_path / "beit")
    (tmp_path / "beit" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        import_checkpoint(tmp_path / "beit", tmp_path / "out", num_attention_heads=HEADS)
    assert not (tmp_path / "out").exists()
