from tests.mutations import MUTATIONS, applies


def test_every_known_fault_can_still_be_made() -> None:
    assert [mutation.name for mutation in MUTATIONS if not applies(mutation)] == []
