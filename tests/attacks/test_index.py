"""The attack on indexes at its smallest scale."""

import pytest
from attacks.common import Attack

from attacks import index


@pytest.mark.slow
def test_killed_builds_two_writers_and_full_disks_leave_the_same_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(index, "PAUSE_S", 0.05)
    attack, target = Attack("index", [], packages=["vlmo"]), index.Target(tmp_path)
    index.attack_with_kills(attack, target, kills=2)
    index.attack_with_two_writers(attack, target, pairs=1)
    index.attack_with_full_disks(attack, target, disks=2)
    attack.end(None)
