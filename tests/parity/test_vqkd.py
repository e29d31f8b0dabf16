"""BEiT-2's visual tokenizer: its published keys give the tokens of a plain implementation, by file and by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.parity.plain import Shapes, attend, gelu, linear_shapes, norm_shapes, random_tensors
from tests.recipes.toy_recipes import shrunk
from torch import Tensor
from torch.nn import functional as F

from vlmo.checkpoints.importing import import_checkpoint
from vlmo.model.visual_tokenizer import VQKDVisualTokenizer, load_visual_tokenizer
from vlmo.recipes import find_recipe
from vlmo.released.published import MODELS
from vlmo.run import build

WIDTH, HEADS, DEPTH, INNER, PATCH, GRID, CODES, CODE = (
    768,
    12,
    2,
    64,
    16,
    2,
    24,
    8,
)  # the width tells the heads
NAME = "vqkd-base-3x768-clip"


def file_of_toy() -> dict[str, Tensor]:
    """A file with its decoder, the teacher and the counts of its training."""
    shapes: Shapes = {
        "encoder.cls_token": (1, 1, WIDTH),
        "encoder.pos_embed": (1, 1 + GRID * GRID, WIDTH),
        "encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": (WIDTH,),
        **norm_shapes("encoder.fc_norm", WIDTH),
        **linear_shapes("encode_task_layer.0", WIDTH, WIDTH),
        **linear_shapes("encode_task_layer.2", CODE, WIDTH),
        "quantize.embedding.weight": (CODES, CODE),
        "quantize.embedding.embed_avg": (CODES, CODE),
        "quantize.embedding.cluster_size": (CODES,),
        "quantize.embedding.initted": (1,),
        "quantize.cluster_size": (CODES,),
        "decoder.blocks.0.attn.q_bias": (WIDTH,),
        "decode_task_layer.0.bias": (WIDTH,),
        "teacher_model.visual.proj": (4, 4),
        "scaling_layer.shift": (1, 3, 1, 1),
    }
    for layer in range(DEPTH):
        block = f"encoder.blocks.{layer}"
        shapes |= {**norm_shapes(f"{block}.norm1", WIDTH), **norm_shapes(f"{block}.norm2", WIDTH)}
        shapes |= {f"{block}.attn.{name}": (WIDTH,) for name in ("q_bias", "v_bias")}
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            **linear_shapes(f"{block}.attn.proj", WIDTH, WIDTH),
        }
        shapes |= {
            **linear_shapes(f"{block}.mlp.fc1", INNER, WIDTH),
            **linear_shapes(f"{block}.mlp.fc2", WIDTH, INNER),
        }
    torch.manual_seed(0)
    weights = random_tensors(shapes, scale=0.05)
    weights["quantize.embedding.weight"] *= torch.linspace(6, 8, CODES)[
        :, None
    ]  # of different lengths
    return weights


def plain_tokens(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Tokens of images of the published size, one image after another."""

    def linear(states: Tensor, name: str) -> Tensor:
        return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(states: Tensor, name: str) -> Tensor:
        spread = states - states.mean(-1, keepdim=True)
        scaled = spread / (spread.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    found = []
    for image in pixels:
        patches = (
            image.unfold(1, PATCH, PATCH)
            .unfold(2, PATCH, PATCH)
            .permute(1, 2, 0, 3, 4)
            .flatten(2)
            .flatten(0, 1)
        )
        states = patches @ weights["encoder.patch_embed.proj.weight"].flatten(1).T
        states = states + weights["encoder.patch_embed.proj.bias"]
        states = (
            torch.cat([weights["encoder.cls_token"][0], states]) + weights["encoder.pos_embed"][0]
        )
        states = states[None]
        for layer in range(DEPTH):
            block = f"encoder.blocks.{layer}"
            bias = (
                weights[f"{block}.attn.q_bias"],
                torch.zeros(WIDTH),
                weights[f"{block}.attn.v_bias"],
            )
            joint = norm(states, f"{block}.norm1") @ weights[
                f"{block}.attn.qkv.weight"
            ].T + torch.cat(bias)
            attended = attend(
                *joint.split(WIDTH, dim=-1), heads=HEADS, mask=torch.ones(1, 1 + GRID * GRID)
            )
            states = states + linear(attended, f"{block}.attn.proj")
            states = states + linear(
                gelu(linear(norm(states, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2"
            )
        states = norm(states[0, 1:], "encoder.fc_norm")
        vectors = linear(linear(states, "encode_task_layer.0").tanh(), "encode_task_layer.2")
        vectors = vectors / vectors.square().sum(-1, keepdim=True).sqrt()
        found.append(
            (vectors[:, None] - weights["quantize.embedding.weight"]).square().sum(-1).argmin(-1)
        )
    return torch.stack(found)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return file_of_toy()


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vqkd")
    torch.save({"model": weights, "epoch": 99}, root / "toy.pth")
    conversion = import_checkpoint(root / "toy.pth", root / "model")
    assert "decoder.blocks.0.attn.q_bias" in conversion.tensors.unused
    assert conversion.missing == []
    return root / "model"


def test_tokens_are_those_of_a_plain_implementation(weights, folder) -> None:
    tokenizer = load_visual_tokenizer(folder)
    assert isinstance(tokenizer, VQKDVisualTokenizer)
    assert tokenizer.num_tokens == CODES
    images = torch.rand(16, 3, PATCH * GRID, PATCH * GRID) * 2 - 1
    tokens = tokenizer.tokenize(images, grid=(GRID, GRID))
    assert torch.equal(tokens, plain_tokens(weights, images))
    assert len(tokens.unique()) > 4
    # A grid of patches of another size, as those of 14 pixels, has the tokens of resized images.
    small = F.interpolate(images, size=(28, 28), mode="bicubic", antialias=True)
    resized = F.interpolate(small, size=(32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(tokenizer.tokenize(small, grid=(GRID, GRID)), plain_tokens(weights, resized))
    assert tokenizer.tokenize(images, grid=(4, 4)).shape == (16, 16)


def test_stages_train_on_published_tokens_by_name(weights, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cache" / "files" / MODELS[NAME].address.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save({"model": weights}, file)
    recipe = shrunk(find_recipe("base-stage1"), source=pictures, visual_tokenizer=Path(NAME))
    trainer = build(
        replace(recipe, trainer=replace(recipe.trainer, max_steps=2)), run_dir=tmp_path / "run"
    )
    assert isinstance(trainer.objective.tokenizer, VQKDVisualTokenizer)
    assert trainer.objective.model.config.num_visual_tokens == CODES
    assert trainer.fit().status == "finished"
    assert "BEiT-2" in (tmp_path / "cache" / "models" / NAME / "README.md").read_text()


def test_other_models_are_no_visual_tokenizers_and_cut_files_are_named(weights, tmp_path) -> None:
    with pytest.raises(ValueError, match="holds a model of type 'vlmo', no visual tokenizer"):
        load_visual_tokenizer("vlmo-small")
    del weights["encode_task_layer.2.bias"]
    torch.save(weights, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"keys that are missing: encode_task_layer\.2\.bias"):
        import_checkpoint(tmp_path / "cut.pth", tmp_path / "out")
