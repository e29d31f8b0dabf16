"""Training of the visual tokenizer."""

import pytest
import torch
from torch.nn import functional as F

from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.objectives.unimodal import VisualTokenizerObjective, VisualTokenizerObjectiveConfig

PATCH = 8


def patterns(count: int, *, seed: int) -> torch.Tensor:
    """Pictures of 32 px whose patches are stripes, checks or a step of two colours: flat colour says little of them."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(PATCH), torch.arange(PATCH), indexing="ij")
    masks = torch.stack([rows // 2 % 2, columns // 2 % 2, (rows // 2 + columns // 2) % 2, rows // 4, columns // 4])
    kinds = torch.randint(len(masks), (count, 4, 4), generator=generator)
    colours = torch.tensor([[-1.0, -0.5, 0.5], [1.0, 0.0, -1.0], [0.5, 1.0, 1.0]])
    first, second = (torch.randint(3, (count, 4, 4), generator=generator) for _ in range(2))
    mask = masks[kinds].float()[..., None]  # count 4 4 height width 1
    patches = mask * colours[first][:, :, :, None, None] + (1 - mask) * colours[second][:, :, :, None, None]
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(count, 3, 32, 32)


def objective(**changes: float) -> VisualTokenizerObjective:
    config = VQVisualTokenizerConfig(
        patch_size=PATCH, hidden_size=48, intermediate_size=96, num_tokens=64, code_size=24, dead_code_threshold=0.5
    )
    return VisualTokenizerObjective(VQVisualTokenizer(config).train(), config=VisualTokenizerObjectiveConfig(**changes))


def train(module: VisualTokenizerObjective, *, steps: int) -> list[dict[str, torch.Tensor]]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    history = []
    for step in range(steps):
        losses = module({"pixel_values": patterns(32, seed=step)})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(losses)
    return history


def test_tokenizer_learns_patterns_better_than_mean_colours() -> None:
    module = objective()
    history = train(module, steps=100)
    unseen = patterns(64, seed=1000)
    mean_colours = F.mse_loss(F.interpolate(F.avg_pool2d(unseen, PATCH), scale_factor=PATCH), unseen)
    with torch.no_grad():
        output = module.model.eval()(unseen)
    assert output.reconstruction_loss < 0.5 * mean_colours
    assert output.reconstruction_loss < 0.8 * history[0]["reconstruction"]
    assert output.perplexity > 16


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    losses = objective(commitment_weight=0.25)({"pixel_values": patterns(16, seed=0)})
    assert set(losses) == {"loss", "reconstruction", "commitment", "perplexity"}
    assert all(value.shape == () for value in losses.values())
    assert torch.allclose(losses["loss"], losses["reconstruction"] + 0.25 * losses["commitment"])
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]


def test_every_parameter_learns() -> None:
    module = objective()
    history = train(module, steps=2)  # the networks' last layers start at zero and hide the rest in a first step
    assert len(history) == 2
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="commitment_weight"):
        VisualTokenizerObjectiveConfig(commitment_weight=-1.0)
