"""Classes of images without a classifier of their own: a linear probe on features, and classes from words alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PROMPTS = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a bright photo of a {}.",
    "a small {}.",
    "{}",
)
"""Sentences around the name of a class, for models of photographs with captions; a mean of several beats one (CLIP)."""

_L2_GRID = (1e-4, 1e-3, 1e-2, 1e-1)
_LBFGS_STEPS = 200
_HELD_OUT = 5  # every fifth row chooses the strength of the penalty


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of vectors, fitted with a penalty `l2` on the squared weights."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, "classes"]
    l2: float

    def __call__(self, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows classes"]:
        """Return logits."""
        return F.linear(vectors, self.weight, self.bias)


def fit_linear_probe(
    vectors: Float[Tensor, "rows dim"], labels: Int[Tensor, "rows"], *, num_classes: int, l2: float | None = None
) -> LinearProbe:
    """Fit a logistic regression on vectors at mean 0 and deviation 1, by L-BFGS until it converges.

    Args:
        l2: Strength of the penalty, a half of the squared weights times this; None: the one of 1e-4 to 0.1 that
            is best on every fifth row, when fitted on the others.

    Raises:
        ValueError: Rows and labels differ in number, or there are too few.
    """
    if len(vectors) != len(labels) or len(labels) < 2:
        raise ValueError(f"{len(vectors)} vectors and {len(labels)} labels; expected equally many, at least two")
    if l2 is None:
        held_out = torch.arange(len(labels)) % _HELD_OUT == _HELD_OUT - 1
        if not held_out.any():
            raise ValueError(f"{len(labels)} rows are too few to choose l2 by; give at least {_HELD_OUT}, or l2")

        def score(candidate: float) -> float:
            probe = fit_linear_probe(vectors[~held_out], labels[~held_out], num_classes=num_classes, l2=candidate)
            return (probe(vectors[held_out]).argmax(dim=1) == labels[held_out]).double().mean().item()

        l2 = max(_L2_GRID, key=score)
    vectors, strength = vectors.double(), l2
    mean, deviation = vectors.mean(dim=0), vectors.std(dim=0).clamp(min=1e-6)
    inputs = (vectors - mean) / deviation
    weight = torch.zeros(num_classes, vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels) + 0.5 * strength * weight.square().sum()
        loss.backward()
        return loss.item()

    with torch.enable_grad():
        optimizer.step(closure)
    scaled = weight.detach() / deviation
    return LinearProbe(scaled.float(), (bias.detach() - scaled @ mean).float(), l2=l2)


def zero_shot_classifier(
    embed_texts: Callable[[list[str]], Float[Tensor, "texts dim"]],
    names: Sequence[str],
    *,
    prompts: Sequence[str] = PROMPTS,
) -> Float[Tensor, "classes dim"]:
    """Return a vector of length 1 for each class: the mean of its sentences' vectors.

    Args:
        embed_texts: Returns vectors of length 1.
        prompts: Sentences with one `{}` for the name.

    Raises:
        ValueError: A prompt has no place for the name, or there are none.
    """
    if not prompts or any(prompt.count("{}") != 1 for prompt in prompts):
        raise ValueError(f"prompts are {list(prompts)}; give sentences with one {{}} each, where the name goes")
    vectors = [embed_texts([prompt.replace("{}", name) for prompt in prompts]).mean(dim=0) for name in names]
    return F.normalize(torch.stack(vectors), dim=-1)
