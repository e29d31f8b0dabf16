import contextlib
import threading
from concurrent.futures import CancelledError

import pytest

from vlmo.serving.batcher import Batcher
from vlmo.serving.schemas import StoppingError

PATIENCE_S = 30  # a wait that only a bug uses up


class Doubler:
    """Doubles rows; notes its calls, and waits for `go` in each."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, rows: list[int]) -> list[int]:
        self.calls.append(rows)
        self.entered.set()
        assert self.go.wait(PATIENCE_S)
        if -1 in rows:
            raise ValueError("a bad row")
        return [2 * row for row in rows]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def make(doubler):
    """Makes batchers, and closes them."""
    with contextlib.ExitStack() as made:

        def make_one(*, max_batch=8, calls=(), **options) -> Batcher:
            batcher = Batcher({"double": doubler, **dict(calls)}, max_batch=max_batch, **options)
            made.callback(batcher.close)
            return batcher

        yield make_one


def hold(batcher: Batcher, doubler: Doubler):
    """Keeps the batcher busy until `doubler.go` is set."""
    doubler.go.clear()
    held = batcher.submit("double", [0])
    assert doubler.entered.wait(PATIENCE_S)
    return held


def test_rows_that_wait_go_together_up_to_the_largest_batch(make, doubler) -> None:
    batcher = make(max_batch=4)
    hold(batcher, doubler)
    asked = [batcher.submit("double", rows) for rows in ([1, 2], [3, 4, 5], [6], [7] * 9, [8])]
    doubler.go.set()
    assert [each.result(PATIENCE_S) for each in asked] == [[2, 4], [6, 8, 10], [12], [14] * 9, [16]]
    assert doubler.calls == [[0], [1, 2, 6, 8], [3, 4, 5], [7] * 9]


def test_rows_of_a_caller_who_left_are_not_run(make, doubler) -> None:
    batcher = make()
    held = hold(batcher, doubler)
    gone, stays = batcher.submit("double", [1]), batcher.submit("double", [2])
    assert gone.cancel()
    held.cancel()  # its call runs, and harms nobody
    doubler.go.set()
    assert stays.result(PATIENCE_S) == [4]
    assert doubler.calls == [[0], [2]]
    with pytest.raises(CancelledError):
        gone.result()


def test_a_bad_row_costs_only_its_own_caller(make, doubler) -> None:
    batcher = make()
    hold(batcher, doubler)
    bad, good = batcher.submit("double", [-1, 5]), batcher.submit("double", [6])
    doubler.go.set()
    with pytest.raises(ValueError, match="a bad row"):
        bad.result(PATIENCE_S)
    assert good.result(PATIENCE_S) == [12]


def test_kinds_do_not_mix_and_the_oldest_goes_first(make, doubler) -> None:
    order = []
    batcher = make(calls={"text": lambda rows: order.append(rows) or rows})
    hold(batcher, doubler)
    first, second = batcher.submit("text", ["a"]), batcher.submit("double", [3])
    third = batcher.submit("text", ["b"])
    doubler.go.set()
    found = [each.result(PATIENCE_S) for each in (first, second, third)]
    assert found == [["a"], [6], ["b"]]
    assert order == [["a", "b"]]


def test_close_finishes_what_waits_and_takes_nothing_new(make, doubler) -> None:
    seen = []
    batcher = make(observe=lambda kind, rows, seconds: seen.append((kind, rows, seconds >= 0)))
    future = batcher.submit("double", [1, 2])
    batcher.close()
    assert future.result(0) == [2, 4]
    assert seen == [("double", 2, True)]
    with pytest.raises(StoppingError):
        batcher.submit("double", [2])


def test_a_function_that_loses_rows_is_an_error(make) -> None:
    batcher = make(calls={"bad": lambda rows: rows[:-1]})
    with pytest.raises(RuntimeError, match="2 rows gave 1 results"):
        batcher.submit("bad", [1, 2]).result(PATIENCE_S)
