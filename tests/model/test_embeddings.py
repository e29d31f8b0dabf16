"""Rows of the relative table pair by pair, and both kinds of tables at other picture sizes."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tests.toy_model import pictures, texts, toy

from vlmo.model import VLMoConfig, VLMoModel
from vlmo.model.embeddings import (
    RelativePositionBias,
    num_offset_rows,
    relative_position_index,
    resize_absolute_positions,
    resize_bias_table,
    sincos_positions,
)

SPLINE_ATOL = 1e-4  # the positions come from a bisection that stops at 1e-6; the table is float32


def expected_row(query, key, *, grid: tuple[int, int], max_text: int) -> int:
    """The rule of the table for one pair of tokens: ("text", position) or ("image", None for the class, or (y, x))."""
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    total = offsets + 3 + 2 + 2 * max_text
    if query[0] != key[0]:
        return offsets + 3 if query[0] == "text" else offsets + 4
    if query[0] == "text":
        if query[1] == 0 or key[1] == 0:
            return total - 1 if query == key else total - 3 if query[1] == 0 else total - 2
        return offsets + 5 + (max_text - 2) + key[1] - query[1]
    if query[1] is None or key[1] is None:
        return offsets + 2 if query == key else offsets if query[1] is None else offsets + 1
    (query_y, query_x), (key_y, key_x) = query[1], key[1]
    return (query_y - key_y + grid[0] - 1) * (2 * grid[1] - 1) + query_x - key_x + grid[1] - 1


@pytest.mark.parametrize("num_text", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("grid", [None, (1, 1), (4, 4), (2, 5), (3, 1)])
def test_index_names_the_row_of_each_pair_of_tokens(num_text, grid):
    tokens = [("text", position) for position in range(num_text)]
    if grid is not None:
        tokens += [
            ("image", None),
            *(("image", place) for place in itertools.product(range(grid[0]), range(grid[1]))),
        ]
    table_grid = (4, 4)
    index = relative_position_index(num_text=num_text, grid=grid, max_text=7, table_grid=table_grid)
    expected = [
        [expected_row(q, k, grid=grid or table_grid, max_text=7) for k in tokens] for q in tokens
    ]
    assert index.tolist() == expected


def test_index_made_without_gradients_serves_training():
    relative_position_index.cache_clear()
    bias = RelativePositionBias(VLMoConfig.tiny())
    with torch.inference_mode():
        bias(num_text=3, grid=(5, 5))
    sum(layer.sum() for layer in bias(num_text=3, grid=(5, 5))).backward()
    # Each of 3 * 26 text queries and image keys reads one row, in each layer.
    assert torch.all(bias.table.grad[num_offset_rows((4, 4)) + 3] == 3 * 26)


def geometric_positions(source: int, target: int) -> np.ndarray:
    """0, +-1, +-(1 + q), ... with the last one at target // 2, as far as q between 1.01 and 1.5 allows."""
    steps = np.arange(source // 2)
    low, high = ((q**steps).sum() - target // 2 for q in (1.01, 1.5))
    q = (
        1.01
        if low > 0
        else 1.5
        if high < 0
        else brentq(lambda q: (q**steps).sum() - target // 2, 1.01, 1.5)
    )
    right = np.cumsum(q**steps)
    return np.concatenate([-right[::-1], [0], right])


def cubic(y: np.ndarray, x: np.ndarray) -> torch.Tensor:
    y, x = y[:, None] / 24, x[None, :] / 24
    values = [1 + y - 2 * x, x**3 - y**2 * x + 0.5, y**3 * x**3 + y * x]
    return torch.tensor(np.stack(np.broadcast_arrays(*values), axis=-1), dtype=torch.float32)


@pytest.mark.parametrize(
    ("source", "target"),
    [((8, 8), (10, 10)), ((14, 14), (24, 24)), ((14, 14), (7, 7)), ((8, 14), (10, 5))],
)
def test_resized_table_is_exact_for_cubic_polynomials(source, target):
    sides = [(2 * s - 1, 2 * t - 1) for s, t in zip(source, target, strict=True)]
    (y, x), fixed = (geometric_positions(*side) for side in sides), torch.randn(9, 3)
    table = torch.cat([cubic(y, x).flatten(0, 1), fixed])
    resized = resize_bias_table(table, source=source, target=target)
    wanted = cubic(*(np.arange(-(side // 2), side // 2 + 1.0) for _, side in sides)).flatten(0, 1)
    assert torch.equal(resized[len(wanted) :], fixed)
    torch.testing.assert_close(resized[: len(wanted)], wanted, atol=SPLINE_ATOL, rtol=0)


def test_an_axis_that_keeps_its_size_keeps_its_offsets():
    down = (
        torch.linspace(-1, 1, 27)[:, None].expand(27, 27).flatten()[:, None]
    )  # depends on the first axis alone
    resized = resize_bias_table(
        torch.cat([down, torch.zeros(9, 1)]), source=(14, 14), target=(14, 28)
    )
    expected = torch.linspace(-1, 1, 27)[:, None].expand(27, 55)
    torch.testing.assert_close(resized[: 27 * 55].view(27, 55), expected, atol=1e-6, rtol=0)


def test_resized_table_repeats_its_edge_where_positions_fall_short():
    # From 7 offsets to 15: the farthest position is 1 + 1.5 + 2.25 = 4.75, the farthest target 7.
    offsets = resize_bias_table(torch.randn(49 + 9, 1), source=(4, 4), target=(8, 8))[:225].view(
        15, 15
    )
    centre = slice(3, 12)
    for edge in (
        offsets[:3, centre],
        offsets[12:, centre],
        offsets[centre, :3].T,
        offsets[centre, 12:].T,
    ):
        torch.testing.assert_close(edge, edge[:1].expand_as(edge))
    assert not torch.allclose(offsets[2, centre], offsets[3, centre], atol=1e-3)


def test_resized_absolute_positions_keep_the_class_token_and_the_rows():
    heights = torch.arange(4.0).repeat_interleave(4)  # row of each patch
    positions = torch.stack(
        [torch.full((17,), 7.0), torch.cat([torch.tensor([-5.0]), heights])], dim=1
    )
    resized = resize_absolute_positions(positions, source=(4, 4), target=(8, 3))
    assert resized.shape == (25, 2)
    assert torch.equal(resized[0], positions[0])
    torch.testing.assert_close(resized[1:, 0], torch.full((24,), 7.0))
    rows = resized[1:, 1].view(8, 3)
    torch.testing.assert_close(
        rows, rows[:, :1].expand(8, 3)
    )  # what depends on height alone still does
    assert torch.all(rows[1:] > rows[:-1])
    torch.testing.assert_close(
        rows + rows.flip(0), torch.full((8, 3), 3.0)
    )  # 0 + 3 at mirrored places


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_text_longer_than_the_table_is_refused(kind):
    model = toy(VLMoModel, position_embedding=kind, max_text_positions=8)
    assert model(pixel_values=pictures(1), **texts([8])).text_hidden_state.shape == (1, 8, 32)
    with pytest.raises(ValueError, match=r"shape \(1, 9\).*at most 8 tokens"):
        model(**texts([9]))


def test_sines_and_cosines_of_a_line_and_a_grid():
    line = sincos_positions(4, dim=4)
    fast, slow = 2 * np.arange(4), 2 * np.arange(4) / 2  # frequencies 2 and 2 / sqrt(4)
    expected = np.stack([np.sin(fast), np.sin(slow), np.cos(fast), np.cos(slow)], axis=1)
    assert line.numpy() == pytest.approx(expected, abs=1e-6)
    grid = sincos_positions(3, 2, dim=8).view(3, 2, 8)
    for row, column in itertools.product(range(3), range(2)):
        assert torch.equal(grid[row, column, :4], sincos_positions(3, dim=4)[row])
        assert torch.equal(grid[row, column, 4:], sincos_positions(2, dim=4)[column])
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(3, 3, dim=6)


def test_positions_may_start_as_sines_and_cosines_and_are_learnt():
    config = VLMoConfig.small(
        position_embedding="absolute", position_init="sincos", initializer_range=0.1
    )
    model = VLMoModel(config)
    images, words = model.image_embeddings, model.text_embeddings
    assert torch.equal(images.positions[1:], sincos_positions(*config.grid, dim=config.hidden_size))
    assert not images.positions[0].any()
    assert float(words.positions.detach().square().mean().sqrt()) == pytest.approx(0.1, rel=1e-4)
    assert images.positions.requires_grad
    assert words.positions.requires_grad
