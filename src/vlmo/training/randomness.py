"""Randomness as a pure function of the step, so that no generator's state needs to be saved."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def step_seed(seed: int, *, step: int, micro: int, rank: int) -> int:
    """Seed of one forward, from 0 to below 2^63: a hash, so that neighbouring steps have unrelated randomness."""
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_generators(seed: int) -> None:
    """Seeds torch (its GPU generators too), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
