"""Results of imported checkpoints beside the expected ones: cases for the tests and for `benchmarks/parity.py`.

Each case is the name of an output, what our model gives and what another implementation gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from tests.parity.plain_vlmo import PlainVLMo, Sizes, random_checkpoint, write_vocabulary
from torch import Tensor

from vlmo.checkpoints.importing import import_checkpoint
from vlmo.losses.itc import itc_loss
from vlmo.losses.itm import itm_loss
from vlmo.losses.masked import masked_loss
from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)
from vlmo.model.backbone import VLMoPreTrainedModel

REFERENCE = Path(__file__).parent / "reference"
ABSOLUTE = Sizes()
Case = tuple[str, Tensor, Tensor]
Found = dict[str, Tensor]
Model = TypeVar("Model", bound=VLMoPreTrainedModel)


def reference_file(name: str) -> Path:
    """A checkpoint of the published code."""
    return REFERENCE / f"tiny_rel.{name}.weights.safetensors"


def imported(model_class: type[Model], file: Path, folder: Path, **options: int) -> Model:
    """The model that `vlmo import` makes of a file, loaded from its folder."""
    folder.mkdir(exist_ok=True)
    vocabulary = write_vocabulary(folder / "vocab.txt")
    out = folder / file.name.replace(".", "-")
    import_checkpoint(file, out, vocabulary=vocabulary, **options)
    return model_class.from_pretrained(out).eval()


def outputs() -> dict[str, Tensor]:
    """Inputs (`in.*`) and outputs of the published code."""
    return load_file(REFERENCE / "tiny_rel.cases.safetensors")


def _pretraining(model: VLMoForPreTraining, known: dict[str, Tensor]) -> Found:
    pixels, text = known["in.pixel_values"], _text(known)
    ids, mask = text.values()
    image, negative = known["in.itm_negative_image"], known["in.itm_negative_text"]
    fused = model.vlmo(pixel_values=pixels, **text)
    found = {
        "image.hidden": model.vlmo(pixel_values=pixels).last_hidden_state,
        "text.hidden": model.vlmo(**text).last_hidden_state,
        "fused.text_hidden": fused.text_hidden_state,
        "fused.image_hidden": fused.image_hidden_state,
        "fused.pooled": fused.pooler_output,
        "itc.logits_per_image": model(pixel_values=pixels, **text).logits_per_image,
        "itm.logits": model.match(
            torch.cat([pixels, pixels[image], pixels]),
            torch.cat([ids, ids, ids[negative]]),
            torch.cat([mask, mask, mask[negative]]),
        ),
        "mlm.logits": model.mlm_head(
            model.vlmo(
                pixel_values=pixels, input_ids=known["in.mlm_input_ids"], attention_mask=mask
            ).text_hidden_state
        ),
    }
    vectors = zip(model.image_vectors(pixels), model.text_vectors(**text), strict=True)
    losses = []
    for (image_vector, text_vector), head, name in zip(
        vectors, model.contrast_heads, ("itc", "itc_vl"), strict=True
    ):
        found |= {f"image.{name}": image_vector, f"text.{name}": text_vector}
        losses.append(itc_loss(image_vector, text_vector, logit_scale=head.logit_scale))
    labels = known["in.mlm_labels"]
    hidden = labels != -100
    return found | {
        "itc.loss": sum(losses, torch.zeros(())) / 2,
        "itm.loss": itm_loss(found["itm.logits"], torch.tensor([1] * 4 + [0] * 8)),
        "mlm.loss_times_quarter": masked_loss(found["mlm.logits"][hidden], labels[hidden]) * 0.25,
    }


def _vqa(model: VLMoForVisualQuestionAnswering, known: dict[str, Tensor]) -> Found:
    return {"vqa.logits": model(known["in.pixel_values"], **_text(known)).logits}


def _nlvr2(model: VLMoForVisualReasoning, known: dict[str, Tensor]) -> Found:
    pixels = torch.stack(
        [known["nlvr2.in.pixel_values_0"], known["nlvr2.in.pixel_values_1"]], dim=1
    )
    return {"nlvr2.logits": model(pixels, **_text(known, "nlvr2.")).logits}


def _retrieval(model: VLMoForImageTextRetrieval, known: dict[str, Tensor]) -> Found:
    output = model(pixel_values=known["in.pixel_values"], **_text(known))
    loss = itc_loss(
        output.image_embeds, output.text_embeds, logit_scale=model.contrast_head.logit_scale
    )
    return {"irtr.image": output.image_embeds, "irtr.text": output.text_embeds, "irtr.loss": loss}


def _text(known: dict[str, Tensor], start: str = "") -> dict[str, Tensor]:
    return {name: known[f"{start}in.{name}"] for name in ("input_ids", "attention_mask")}


CHECKPOINTS: dict[
    str, tuple[type[VLMoPreTrainedModel], Callable[[Any, dict[str, Tensor]], Found]]
] = {
    "pretrain": (VLMoForPreTraining, _pretraining),
    "vqa": (VLMoForVisualQuestionAnswering, _vqa),
    "nlvr2": (VLMoForVisualReasoning, _nlvr2),
    "irtr": (VLMoForImageTextRetrieval, _retrieval),
}


@torch.no_grad()
def checkpoint_cases(name: str, folder: Path, *, attention: str = "sdpa") -> Iterator[Case]:
    """Every output of the model that a checkpoint of the published code becomes."""
    model_class, found = CHECKPOINTS[name]
    model, known = imported(model_class, reference_file(name), folder), outputs()
    model.set_attn_implementation(attention)
    for output, actual in found(model, known).items():
        yield output, actual, known[output]


@torch.no_grad()
def resize_cases(model: VLMoForImageTextRetrieval) -> Iterator[Case]:
    """The same at 128 px; `model` was imported with that image size."""
    known = load_file(REFERENCE / "tiny_rel.resize128.cases.safetensors")
    position_bias = model.vlmo.position_bias
    assert position_bias is not None
    yield "resize128.table", position_bias.table, known["relative_position_bias_table"]
    yield "resize128.image", model.get_image_features(known["in.pixel_values"]), known["irtr.image"]
    yield "resize128.text", model.get_text_features(**_text(known)), known["irtr.text"]


def write_absolute(folder: Path) -> Path:
    """A retrieval checkpoint with absolute positions, random weights and a matching head."""
    torch.manual_seed(0)
    file = folder / "absolute.safetensors"
    save_file(random_checkpoint(ABSOLUTE, "pooler", "itc", "itm"), file)
    return file


@torch.no_grad()
def absolute_cases(model: VLMoForImageTextRetrieval, file: Path) -> Iterator[Case]:
    """Beside the plain implementation of `plain_vlmo`; `file` is what `model` was imported from."""
    plain = PlainVLMo(load_file(file), ABSOLUTE)
    torch.manual_seed(1)
    side = ABSOLUTE.grid * ABSOLUTE.patch
    pixels = torch.randn(3, 3, side, side)
    ids = torch.randint(4, ABSOLUTE.vocabulary, (3, 11))
    kept = torch.arange(11) < torch.tensor([11, 6, 1])[:, None]
    ids, mask = ids.masked_fill(~kept, 0), kept.long()
    yield "absolute.image", model.vlmo(pixel_values=pixels).last_hidden_state, plain.image(pixels)
    text = model.vlmo(input_ids=ids, attention_mask=mask).last_hidden_state
    yield "absolute.text", text[kept], plain.text(ids, mask)[kept]
    everything = torch.cat([kept, torch.ones(3, ABSOLUTE.grid**2 + 1, dtype=torch.bool)], dim=1)
    fused = model.vlmo(pixel_values=pixels, input_ids=ids, attention_mask=mask).last_hidden_state
    yield "absolute.fused", fused[everything], plain.fused(pixels, ids, mask)[everything]
    output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    yield "absolute.image_vector", output.image_embeds, plain.image_vector(pixels)
    yield "absolute.text_vector", output.text_embeds, plain.text_vector(ids, mask)
    yield "absolute.match", model.match(pixels, ids, mask), plain.match(pixels, ids, mask)
