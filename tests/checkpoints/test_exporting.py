"""`export_official`: imported files come back bit by bit, and models trained here are readable there."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.folder.test_atomic import full_disk
from tests.parity.cases import reference_file
from tests.parity.plain_vlmo import Sizes, random_checkpoint, write_vocabulary
from tests.toy_model import BEIT3, pictures, texts, toy
from torch import Tensor

from vlmo.checkpoints.importing import import_checkpoint
from vlmo.checkpoints.loading import read_state_dict
from vlmo.checkpoints.official import export_official
from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForPreTraining,
    VLMoModel,
)
from vlmo.processing import VLMoProcessor

# What published files with a position table hold beside what models use.
INDICES = {
    "relative_position_index",
    "text_relative_position_index",
    "text_imag_relative_position_index",
}
UNUSED = {"text_embeddings.position_embeddings.weight"} | INDICES
ATOL = 1e-6  # the same model; tables of other sizes are read in the same order
NUM_MODEL_ROWS, NUM_TABLE_ROWS = (
    64,
    196,
)  # text positions of the toy model, and of every published table


def bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (expected[key].dtype, expected[key].shape), key
        assert torch.equal(
            tensor.reshape(-1).view(torch.uint8), expected[key].reshape(-1).view(torch.uint8)
        ), key


def there_and_back(file: Path, folder: Path, **options: int) -> dict[str, Tensor]:
    vocabulary = write_vocabulary(folder / "vocab.txt")
    import_checkpoint(file, folder / "model", vocabulary=vocabulary, **options)
    export_official(folder / "model", folder / "exported.pt")
    return read_state_dict(folder / "exported.pt")


def weights_of(state: dict[str, Tensor], *, relative: bool = True) -> dict[str, Tensor]:
    """What a model uses of a published file."""
    ids = "text_embeddings.position_ids"
    return {
        key: tensor
        for key, tensor in state.items()
        if key != ids and not (relative and key in UNUSED)
    }


@pytest.mark.parametrize(
    ("name", "sizes", "heads"),
    [
        *(
            (name, Sizes(heads=2, relative=True), ())
            for name in ("pretrain", "vqa", "nlvr2", "irtr")
        ),
        ("absolute", Sizes(), ("pooler", "itc", "itm")),
        ("stage_2", Sizes(relative=True, fusion_layers=0, text_rows=196), ("pooler", "mlm")),
        ("backbone", Sizes(relative=True), ()),
    ],
)
def test_weights_of_an_imported_file_come_back_bit_by_bit(tmp_path, name, sizes, heads):
    file = reference_file(name)
    weights = load_file(file) if file.is_file() else random_checkpoint(sizes, *heads)
    torch.save(
        {"module": {f"module.{key}": tensor for key, tensor in weights.items()}},
        tmp_path / "file.pt",
    )
    back = there_and_back(tmp_path / "file.pt", tmp_path, num_attention_heads=sizes.heads)
    if name == "stage_2":  # it has no use for its pooler
        weights = {key: tensor for key, tensor in weights.items() if "pooler" not in key}
    bit_equal(
        weights_of(back, relative=sizes.relative), weights_of(weights, relative=sizes.relative)
    )


def saved(model, folder: Path, *, text_length: int | None = 40) -> Path:
    """A model folder as a run leaves it."""
    model.save_pretrained(folder)
    if text_length is not None:
        vocabulary = write_vocabulary(folder.with_suffix(".txt"))
        VLMoProcessor.from_vocabulary(
            vocabulary, image_size=64, max_text_length=text_length
        ).save_pretrained(folder)
    return folder


def outputs(model: VLMoForPreTraining) -> list[Tensor]:
    words = texts([40, 17], padded_to=NUM_MODEL_ROWS)
    with torch.no_grad():
        output = model(pixel_values=pictures(), **words)
    kept = words["attention_mask"].bool()
    return [output.image_embeds, output.text_embeds, output.match_logits, output.mlm_logits[kept]]


@pytest.mark.parametrize(
    "changes", [{}, {"position_embedding": "absolute", "layer_scale_init": None}]
)
def test_model_trained_here_is_read_back_with_the_same_outputs(tmp_path, changes):
    model = toy(VLMoForPreTraining, **changes)
    notes = export_official(saved(model, tmp_path / "model"), tmp_path / "file.pt")
    heads = {"num_attention_heads": 2} if changes else {}
    imported = import_checkpoint(
        tmp_path / "file.pt", tmp_path / "back", vocabulary=tmp_path / "model.txt", **heads
    )
    assert imported.model_class is VLMoForPreTraining
    back = VLMoForPreTraining.from_pretrained(tmp_path / "back").eval()
    assert back.config.max_text_positions == (NUM_MODEL_ROWS if changes else NUM_TABLE_ROWS)
    for actual, expected in zip(outputs(back), outputs(model), strict=True):
        torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)
    if not changes:
        assert "zeros for longer ones" in "\n".join(notes)
        used = back.vlmo.position_bias.table.any(dim=1)
        assert torch.equal(back.vlmo.position_bias.table[used], model.vlmo.position_bias.table)


@pytest.mark.parametrize(("text_length", "rows"), [(24, 40), (56, 56)])
def test_what_published_files_hold_beside_is_made_up(tmp_path, text_length, rows):
    model = toy(VLMoForPreTraining, layer_norm_eps=1e-5, text_layer_norm_eps=1e-6)
    notes = export_official(
        saved(model, tmp_path / "model", text_length=text_length), tmp_path / "file.pt"
    )
    found, notes = read_state_dict(tmp_path / "file.pt"), "\n".join(notes)
    assert found["text_embeddings.position_embeddings.weight"].shape == (rows, 32)
    assert not found["text_embeddings.position_embeddings.weight"].any()
    assert torch.equal(found["text_embeddings.position_ids"], torch.arange(rows)[None])
    assert found["logit_scale"].shape == ()
    assert found.keys() == load_file(reference_file("pretrain")).keys() | INDICES
    assert f"max_text_len {rows}" in notes
    assert "computes with layer_norm_eps 1e-06; this model was made with 1e-05" in notes
    assert "text_layer_norm_eps 1e-12; this model was made with 1e-06" in notes


def check_indices(found: dict[str, Tensor], *, grid: int, text_length: int) -> None:
    """Every entry as the published layout says, written down a second time."""
    image, text, pair = (
        found[name] for name in sorted(INDICES, key=lambda name: (len(name), name))
    )
    offsets = (2 * grid - 1) ** 2
    rows = len(found["relative_position_bias_table"])
    num_image = grid**2 + 1
    assert image.shape == (num_image, num_image)
    assert text.shape == (text_length, text_length)
    for query, key in itertools.product(range(1, num_image), repeat=2):
        down, right = (
            (query - 1) // grid - (key - 1) // grid,
            (query - 1) % grid - (key - 1) % grid,
        )
        assert image[query, key] == (down + grid - 1) * (2 * grid - 1) + right + grid - 1
    for index, first in ((image, offsets), (text, rows - 3)):
        assert index[0, 0] == first + 2
        assert (index[0, 1:] == first).all()
        assert (index[1:, 0] == first + 1).all()
    for query, key in itertools.product(range(1, text_length), repeat=2):
        assert text[query, key] == offsets + 5 + NUM_TABLE_ROWS - 2 + key - query
    assert torch.equal(pair[:text_length, :text_length], text)
    assert torch.equal(pair[text_length:, text_length:], image)
    assert (pair[:text_length, text_length:] == offsets + 3).all()
    assert (pair[text_length:, :text_length] == offsets + 4).all()


@pytest.mark.parametrize(
    ("options", "grid", "length"),
    [({}, 4, 40), ({"image_size": 96, "text_length": 24}, 6, 40), ({"text_length": 48}, 4, 48)],
)
def test_index_buffers_are_those_of_the_layout(tmp_path, options, grid, length):
    found = there_and_back(reference_file("irtr"), tmp_path, **options)
    assert found["relative_position_bias_table"].shape == ((2 * grid - 1) ** 2 + 397, 6)
    check_indices(found, grid=grid, text_length=length)


def test_target_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    folder = saved(toy(VLMoModel), tmp_path / "model")
    (tmp_path / "mine.pt").write_text("mine")
    (tmp_path / "a_file").write_text("mine")
    for name, message in (("mine.pt", "exists"), ("file.onnx", r"expected \.pt")):
        with pytest.raises(ValueError, match=message):
            export_official(folder, tmp_path / name)
    assert (tmp_path / "mine.pt").read_text() == "mine"
    with pytest.raises(OSError, match="a_file"):
        export_official(folder, tmp_path / "a_file" / "out.pt")
    with full_disk(), pytest.raises(OSError, match=r"File too large.*out\.pt") as refused:
        export_official(folder, tmp_path / "out.pt")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*out*"))


def test_others_can_read_what_is_written(tmp_path):
    there_and_back(reference_file("irtr"), tmp_path)
    assert torch.load(tmp_path / "exported.pt", weights_only=True).keys() == {"state_dict"}
    (tmp_path / "plain").write_text("")
    usual = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "exported.pt").stat().st_mode == usual
    assert {path.stat().st_mode for path in (tmp_path / "model").iterdir()} == {usual}


def test_backbone_and_stage_1_are_exported_without_what_has_no_place(tmp_path):
    notes = export_official(
        saved(toy(VLMoModel), tmp_path / "model", text_length=None), tmp_path / "backbone.pt"
    )
    assert not any("left out" in note for note in notes)
    notes = export_official(
        saved(toy(VLMoForMaskedImageModeling), tmp_path / "stage1"), tmp_path / "stage1.pt"
    )
    assert any("left out: mim_head.decoder.bias" in note for note in notes)
    for name in ("backbone", "stage1"):
        out, vocabulary = tmp_path / f"{name}-back", tmp_path / "stage1.txt"
        assert (
            import_checkpoint(tmp_path / f"{name}.pt", out, vocabulary=vocabulary).model_class
            is VLMoModel
        )


@pytest.mark.parametrize(
    ("model_class", "config", "message"),
    [
        (VLMoForPreTraining, VLMoConfig.tiny(experts="shared"), "experts 'shared'"),
        (VLMoForPreTraining, VLMoConfig.tiny(attention="separate"), "attention 'separate'"),
        (VLMoForPreTraining, VLMoConfig.tiny(max_text_positions=197), "197 text positions"),
        (VLMoForImageClassification, VLMoConfig.tiny(), "no name for classifier.bias"),
        (
            VLMoForImageTextRetrieval,
            VLMoConfig.tiny(**BEIT3),
            "token_order 'image_first'.*no modality types",
        ),
    ],
)
def test_model_that_the_layout_cannot_hold_is_refused(tmp_path, model_class, config, message):
    saved(model_class(config), tmp_path / "model", text_length=None)
    with pytest.raises(ValueError, match=message) as refused:
        export_official(tmp_path / "model", tmp_path / "file.pt")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "file.pt").exists()
