"""The linear probe and zero-shot classes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vlmo.evaluation.classification import PROMPTS, fit_linear_probe, zero_shot_classifier

PROBE_ATOL = 2e-3  # L-BFGS of two programs stops at slightly different points


def clouds(*, per_class: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds in five dimensions of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * per_class) % 3
    centres = torch.tensor([[0.0, 0, 0, 0, 0], [2, 0, 0, 0, 1], [0, 2, 0, 0, -1]])
    vectors = centres[labels] + torch.randn(len(labels), 5, generator=generator)
    return vectors * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3, labels


def test_probe_equals_logistic_regression() -> None:
    vectors, labels = clouds()
    l2 = 0.01
    probe = fit_linear_probe(vectors, labels, num_classes=3, l2=l2)
    standardised = ((vectors - vectors.mean(dim=0)) / vectors.std(dim=0)).double().numpy()
    # scikit-learn sums the losses and halves the squared weights: C = 1 / (l2 x rows).
    peer = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=1000).fit(standardised, labels.numpy())
    found = probe(vectors).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, peer.predict_proba(standardised), atol=PROBE_ATOL)


def test_probe_generalises_and_chooses_a_penalty() -> None:
    vectors, labels = clouds()
    others, other_labels = clouds(seed=1)
    probe = fit_linear_probe(vectors, labels, num_classes=3)
    assert probe.l2 in (1e-4, 1e-3, 1e-2, 1e-1)
    assert (probe(others).argmax(dim=1) == other_labels).double().mean() > 0.7


def test_probe_knows_classes_that_do_not_occur() -> None:
    vectors, labels = clouds()
    assert fit_linear_probe(vectors, labels, num_classes=7, l2=0.01)(vectors).shape[1] == 7


def test_probe_is_fitted_inside_an_evaluation_too() -> None:
    vectors, labels = clouds()
    with torch.no_grad():
        probe = fit_linear_probe(vectors, labels, num_classes=3, l2=0.01)
    assert not probe.weight.requires_grad
    assert probe.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("rows", "labels", "l2", "message"), [(3, 4, None, "equally many"), (1, 1, 0.1, "two"), (4, 4, None, "too few")]
)
def test_probe_refuses_too_few_rows(rows, labels, l2, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(torch.randn(rows, 2), torch.zeros(labels, dtype=torch.long), num_classes=2, l2=l2)


def test_zero_shot_classes_are_means_of_their_sentences() -> None:
    known = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [0.0, -1.0], "the dog": [0.0, -1.0]}
    found = zero_shot_classifier(
        lambda texts: torch.tensor([known[text] for text in texts]), ["cat", "dog"], prompts=("a {}", "the {}")
    )
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[half, half], [0.0, -1.0]]))


def test_every_prompt_has_one_place_for_the_name() -> None:
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)
    for prompts in ((), ("a cat",), ("{} {}",)):
        with pytest.raises(ValueError, match="where the name goes"):
            zero_shot_classifier(lambda texts: torch.ones(len(texts), 2), ["cat"], prompts=prompts)
