"""Muon's steps in shares of several processes."""

import torch
from torch import Tensor

from tests.distributed.gloo import run_processes
from vlmo.training import muon


def matrices(count: int, *, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, rows, 24, generator=generator).to(dtype)


# Five make shares of two, two and one; two leave the third process without one.
BATCHES = {
    "wide": matrices(5, rows=8),
    "tall": matrices(2, rows=40),
    "bf16": matrices(4, rows=24, dtype=torch.bfloat16),
}


def in_shares() -> dict[str, Tensor]:
    return {name: muon._orthogonalize_in_shares(batch) for name, batch in BATCHES.items()}


def test_processes_share_the_work_and_all_have_the_result_of_one() -> None:
    alone = {name: muon.orthogonalize(batch) for name, batch in BATCHES.items()}
    for result in run_processes(in_shares, world_size=3):
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=1.6e-2)
    # Singular values of the iteration lie around 1.
    for name, rows in (("wide", 8), ("tall", 40)):
        values = torch.linalg.svdvals(alone[name])
        assert values.shape[1] == min(rows, 24)
        assert 0.6 < values.min() < values.max() < 1.3
