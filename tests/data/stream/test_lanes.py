import itertools
import json

import pytest
from tests.toy_shards import write_tars

from vlmo.data.rows import Bad
from vlmo.data.stream import loader
from vlmo.data.stream.loader import START, Lane, Source, read_stream

COUNTS = [5, 0, 9, 1, 7, 12, 3]  # uneven, and one shard empty
LANES = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    return Source(tuple(map(str, write_tars(tmp_path_factory.mktemp("shards"), COUNTS))))


def stream(source, lane=0, *, lanes=LANES, block=4, seed=1, cursor=START):
    return read_stream(source, lane=lane, lanes=lanes, seed=seed, block=block, cursor=cursor)


def epoch_of(records, epoch):
    visits = itertools.takewhile(lambda visit: visit[0] <= epoch, records)
    return [record for visited, record, _ in visits if visited == epoch]


@pytest.mark.parametrize("lanes", [1, 3, 7, 10])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_lanes_of_an_epoch_share_out_its_records_each_once(source, lanes, epoch):
    own = [epoch_of(stream(source, lane, lanes=lanes), epoch) for lane in range(lanes)]
    found = [record.key for records in own for record in records]
    keys = [f"{shard}-{n}" for shard, count in enumerate(COUNTS) for n in range(count)]
    assert sorted(found) == sorted(keys)
    if lanes in {3, 7}:  # whole shards
        for records in own:
            assert sum(record.key.startswith("5-") for record in records) in {0, 12}


def test_epochs_deal_shards_anew_and_evenly(source):
    dealt = [
        [source.of_lane(lane, lanes=LANES, epoch=epoch, seed=1) for lane in range(LANES)]
        for epoch in range(3)
    ]
    assert dealt[0] != dealt[1]
    assert [sum(len(epoch[lane]) for epoch in dealt) for lane in range(LANES)] == [7, 7, 7]


def test_order_is_shuffled_within_blocks_and_by_the_seed(source):
    streams = [stream(source, lanes=1, seed=seed, block=10) for seed in (1, 1, 2)]
    orders = [[record.key for record in epoch_of(each, 0)] for each in streams]
    assert orders[0] == orders[1] != orders[2]
    stored = [record.key for record in epoch_of(stream(source, lanes=1, block=1), 0)]
    assert orders[0] != stored
    for block in (slice(0, 10), slice(10, 20)):
        assert sorted(orders[0][block]) == sorted(stored[block])


@pytest.mark.parametrize("block", [1, 4, 100])
def test_a_stream_goes_on_from_the_cursor_of_any_record(source, block):
    count, saved = 40, START  # more than an epoch of this lane
    whole = list(itertools.islice(stream(source, block=block), count + 5))
    for number in range(count):
        rest = stream(source, block=block, cursor=saved)
        assert list(itertools.islice(rest, 5)) == whole[number : number + 5]
        saved = tuple(part and tuple(part) for part in json.loads(json.dumps(whole[number][2])))


def test_samples_that_vanish_after_the_cursor_was_saved_change_no_other(tmp_path):
    paths = write_tars(tmp_path, [4, 4, 4])
    source = Source(tuple(map(str, paths)))
    running = stream(source, lanes=1, block=8)
    given = [next(running)[1].key for _ in range(3)]
    left = [record.key for record in epoch_of(running, 0)]
    again = stream(source, lanes=1, block=8)
    found = [next(again) for _ in range(3)]
    assert [record.key for _, record, _ in found] == given
    cursor = found[-1][2]
    paths[1].unlink()
    rest = epoch_of(stream(source, lanes=1, block=8, cursor=cursor), 0)
    assert [record.shard for record in rest if isinstance(record, Bad)] in ([str(paths[1])], [])
    found = [record.key for record in rest if not isinstance(record, Bad)]
    assert found == [key for key in left if not key.startswith("1-")]


def lane(sources, *, number=0, state=None, read=None, lanes=1):
    return Lane(
        sources,
        lane=number,
        lanes=lanes,
        seed=3,
        shuffle=6,
        read=read or (lambda sample, epoch: {"key": sample.key, "epoch": epoch}),
        state=state,
    )


def test_weights_are_the_shares_of_the_sources_and_a_small_source_begins_anew(tmp_path):
    small = Source(tuple(map(str, write_tars(tmp_path, [6], name="small"))), weight=1)
    big = Source(tuple(map(str, write_tars(tmp_path, [60, 60, 60, 60, 60], name="big"))), weight=3)
    mixed = lane([small, big])
    drawn = [mixed.next_example([]) for _ in range(300)]
    share = sum(found["key"].startswith("small") for found in drawn) / 300
    assert abs(share - 0.25) < 0.08  # three standard deviations
    of_small = [found["key"] for found in drawn if found["key"].startswith("small")]
    for start in range(0, len(of_small) - 5, 6):
        assert len(set(of_small[start : start + 6])) == 6  # each epoch whole, then the next
    of_big = [found["key"] for found in drawn if found["key"].startswith("big")]
    assert len(set(of_big)) == len(of_big)
    halfway = lane([small, big])
    for _ in range(150):
        halfway.next_example([])
    resumed = lane([small, big], state=json.loads(json.dumps(halfway.state)))
    assert [resumed.next_example([]) for _ in range(150)] == drawn[150:]


def test_a_lane_without_any_good_sample_ends_with_a_reason(source, tmp_path, monkeypatch):
    def read(sample, epoch):
        raise ValueError("no good")

    monkeypatch.setattr(loader, "_MAX_BAD_RECORDS", 100)
    with pytest.raises(ValueError, match=r"lane 0 finds nothing .*, in 100 records; .*: no good"):
        lane([source], read=read).next_example([])
    for count in (2, 200):  # before an epoch has gone by, too
        bad, missing = [], Source(tuple(str(tmp_path / f"{number}.tar") for number in range(count)))
        with pytest.raises(ValueError, match=r"finds nothing .* in 32 records.*No such file"):
            lane([missing]).next_example(bad)
        assert len(bad) == 32
    empty = Source(tuple(map(str, write_tars(tmp_path / "empty", [0, 0]))))
    with pytest.raises(ValueError, match=r"lane 0 of 1 finds no record in its share of 2 shards"):
        lane([empty]).next_example([])
