"""A small retrieval model in both variants, three pairs, and comparisons of what models say and learn."""

import torch
from tests import toy_model
from tests.toy_model import pictures, texts
from torch import Tensor, nn
from torch.nn import functional as F

BEIT3 = toy_model.BEIT3
VARIANTS = {"vlmo": {}, "beit3": BEIT3}


def pairs() -> dict[str, Tensor]:
    return {"pixel_values": pictures(3), **texts([5, 8, 3])}


def outputs(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a retrieval model says about the pairs."""
    with torch.no_grad():
        return {**model(**pairs()), "match_logits": model.match(**pairs())}


def check_equal(given: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 0.0) -> None:
    assert given.keys() == expected.keys()
    for name, value in given.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol, msg=name)


def match_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model.match(**pairs()), torch.tensor([1, 0, 1]))


def contrast_and_match_loss(model: nn.Module) -> Tensor:
    output = model(**pairs())
    own = torch.arange(3)
    contrast = F.cross_entropy(output.logits_per_image, own) + F.cross_entropy(output.logits_per_text, own)
    return contrast + match_loss(model)


def gradients(model: nn.Module, loss_of=contrast_and_match_loss) -> dict[str, Tensor]:
    model.train()
    loss_of(model).backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
