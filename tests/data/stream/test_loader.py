import itertools
import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.processing.test_tokenizers import BERT_FOLDER
from tests.toy_shards import picture, tar_bytes, write_parquet, write_tars

from vlmo.data.config import StreamConfig
from vlmo.data.examples import Contents, StreamExamples
from vlmo.data.loader import LoaderConfig
from vlmo.data.masking import BlockMaskConfig, WordMaskConfig
from vlmo.data.rows import read_lines
from vlmo.data.stream import loader
from vlmo.data.stream.loader import Source, StreamLoader, open_sources
from vlmo.data.stream.records import read_shard, sample_id
from vlmo.processing import TrainTransform, TransformConfig, VLMoProcessor

# More workers than cores is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

COUNTS = [8, 11, 3, 10, 7, 9]
BROKEN = frozenset({"0-3", "3-0", "3-1", "5-8"})
LANES = 4
STREAMS = StreamConfig(patterns=("any",), lanes=LANES, shuffle=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Uneven shards with broken pictures, one shard cut off, and one that is no tar."""
    folder = tmp_path_factory.mktemp("shards")
    paths = write_tars(folder, COUNTS, broken=BROKEN)
    (folder / "00006.tar").write_bytes(b"not found" * 500)
    paths[1].write_bytes(paths[1].read_bytes()[: 11 * 3 * 1024 // 2])
    return folder


@pytest.fixture(scope="module")
def source(folder) -> Source:
    """With a shard that is missing."""
    return Source(tuple(str(folder / f"{number:05d}.tar") for number in range(8)))


@pytest.fixture(scope="module")
def examples() -> StreamExamples:
    tokenizer = VLMoProcessor.from_vocabulary(BERT_FOLDER, image_size=32).tokenizer
    transform = TrainTransform(TransformConfig(image_size=32))
    return StreamExamples(Contents(5, transform, tokenizer=tokenizer, words=WordMaskConfig()))


def make(source, examples, tmp_path, *, workers=0, batch=8, accumulation=1, **settings):
    config = LoaderConfig(global_batch_size=batch, num_workers=workers, accumulation=accumulation)
    return StreamLoader(
        source if isinstance(source, list) else [source],
        examples,
        config=settings.pop("config", STREAMS),
        loader=config,
        seed=5,
        quarantine=tmp_path / "quarantine.jsonl",
        **settings,
    )


def on_ranks(world_size, *args, **settings):
    """A loader for each process."""
    ranks = range(world_size)
    return [make(*args, rank=rank, world_size=world_size, **settings) for rank in ranks]


def take(stream_loader, count, *, start=0):
    iterator = stream_loader(start)
    steps = list(itertools.islice(iterator, count))
    iterator.close()
    return steps


def ids(steps):
    return [[number for batch in step for number in batch["sample_ids"].tolist()] for step in steps]


def quarantined(folder):
    lines = read_lines(folder / "quarantine.jsonl")
    return {(line["kind"], line["row"], Path(line["path"]).name): line for line in lines}


@pytest.fixture(scope="module")
def whole(source, examples, tmp_path_factory):
    """The first steps with no workers, and what they left in quarantine."""
    folder = tmp_path_factory.mktemp("whole")
    return take(make(source, examples, folder), 12), quarantined(folder)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_tensor(whole, source, examples, tmp_path, workers):
    found = take(make(source, examples, tmp_path, workers=workers), 12)
    for (expected,), (batch,) in zip(whole[0], found, strict=True):
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, batch[name]), name
    assert quarantined(tmp_path) == whole[1]


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_steps_divide_the_same_samples(
    whole, source, examples, tmp_path, world_size, accumulation
):
    loaders = on_ranks(world_size, source, examples, tmp_path, accumulation=accumulation)
    shares = [take(each, 6) for each in loaders]
    for number, (batch,) in enumerate(whole[0][:6]):
        parts = [share[number][micro] for micro in range(accumulation) for share in shares]
        for name in ("sample_ids", "pixel_values"):
            assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
        for micro in range(accumulation):
            assert len({share[number][micro]["step_seed"].item() for share in shares}) == 1


def test_shards_that_cannot_be_read_are_logged_again_when_they_are_twice_as_many(
    examples, tmp_path, caplog
):
    paths = write_tars(tmp_path, [4, 4])
    missing = [str(tmp_path / f"gone-{number}.tar") for number in range(7)]
    source = Source((str(paths[0]), *missing, str(paths[1])))
    one_lane = StreamConfig(patterns=("any",), lanes=1, shuffle=1)
    with caplog.at_level("WARNING"):
        take(make(source, examples, tmp_path, batch=8, config=one_lane), 1)  # all that is there
    logged = [each.getMessage() for each in caplog.records if each.name == loader.__name__]
    assert [line.rpartition("; ")[2].split()[0] for line in logged] == ["1", "2", "4"]
    assert all("gone-" in line and "No such file" in line for line in logged)


class Noting(StreamExamples):
    """Keeps the visits that gave an example."""

    def __call__(self, sample, epoch):
        example = super().__call__(sample, epoch)
        self.visits = [*getattr(self, "visits", []), (epoch, Path(sample.shard).name, sample.index)]
        return example


def test_workers_without_a_lane_are_named(source, examples, tmp_path, caplog):
    def warnings(workers):
        caplog.clear()
        take(make(source, examples, tmp_path, workers=workers), 1)
        return [each.getMessage() for each in caplog.records if "no lane" in each.getMessage()]

    assert warnings(STREAMS.lanes) == []
    (warning,) = warnings(STREAMS.lanes + 1)
    assert f"1 of {STREAMS.lanes + 1} workers" in warning
    assert f"loader.num-workers to {STREAMS.lanes}" in warning


def test_an_epoch_is_every_good_sample_once_and_every_bad_one_in_quarantine(source, tmp_path):
    noting = Noting(Contents(5, TrainTransform(TransformConfig(image_size=32))))
    stream_loader = make(source, noting, tmp_path, batch=LANES)
    iterator = stream_loader(0)
    for step in itertools.count(1):  # lanes come to the end of the epoch at different steps
        next(iterator)
        cursors = [state["streams"][0] for state in stream_loader.cursor(step).values()]
        if all(start[0] > 0 for start, _, _ in cursors):
            break
    lines = quarantined(tmp_path)
    bad = {(name, row) for kind, row, name in lines if kind == "row"}
    ends = {name: row for kind, row, name in lines if kind == "shard"}
    broken = {(f"{int(key[0]):05d}.tar", int(key[2:])) for key in BROKEN}
    assert bad - {("00001.tar", ends["00001.tar"] - 1)} == broken
    assert ends.keys() == {"00001.tar", "00006.tar", "00007.tar"}
    assert 4 <= ends["00001.tar"] <= 6  # of 11, cut in the middle
    counts = {f"{number:05d}.tar": count for number, count in enumerate(COUNTS)} | ends
    good = {(name, row) for name, count in counts.items() for row in range(count)} - bad
    assert Counter(visit[1:] for visit in noting.visits if visit[0] == 0) == Counter(good)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_from_the_cursor_on_another_number_of_processes(
    whole, source, examples, tmp_path, workers
):
    cursor = {}
    for stream_loader in on_ranks(2, source, examples, tmp_path, workers=workers):
        take(stream_loader, 5)
        cursor |= stream_loader.cursor(5)
    saved = json.loads(json.dumps(cursor))
    for world_size, accumulation in ((1, 1), (4, 1), (1, 4)):
        rest = on_ranks(world_size, source, examples, tmp_path, accumulation=accumulation)
        for stream_loader in rest:
            stream_loader.go_on_from(5, saved)
        found = [ids(take(stream_loader, 4, start=5)) for stream_loader in rest]
        joined = [list(itertools.chain(*parts)) for parts in zip(*found, strict=True)]
        assert joined == ids(whole[0])[5:9]
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines))


def test_a_start_without_its_cursor_is_refused(source, examples, tmp_path):
    stream_loader = make(source, examples, tmp_path)
    with pytest.raises(ValueError, match=r"start_step is 3, but the cursor of .* is that of 0"):
        next(stream_loader(3))
    with pytest.raises(ValueError, match="the saved cursor has no lane 0"):
        stream_loader.go_on_from(3, {})


def test_impossible_sizes_and_streams_are_refused(source, examples, tmp_path):
    for settings, message in (
        ({"rank": 0, "world_size": 3}, "streams.lanes is 4, not a multiple of 3 processes x 1 mi"),
        ({"accumulation": 8}, "change it to a multiple of 8"),
        ({"batch": 6}, "global_batch_size is 6, not a multiple of 4 lanes"),
    ):
        with pytest.raises(ValueError, match=message):
            make(source, examples, tmp_path, **settings)
    for settings in ({"lanes": 0}, {"shuffle": 0}, {"weights": (1, 2)}, {"weights": (0,)}):
        with pytest.raises(ValueError, match="streams: "):
            StreamConfig(**{"patterns": ("a",)} | settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_end_the_run(source, examples, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(loader, "_ENOUGH", 20)
    with pytest.raises(ValueError, match=r"of \d+ samples are bad, a larger share than 0.01"):
        take(make(source, examples, tmp_path, workers=workers, max_bad_share=0.01), 12)
    with pytest.raises(ValueError, match=r"lane \d finds nothing that can be used"):
        take(make(Source((str(tmp_path / "0.tar"),)), examples, tmp_path, workers=workers), 1)
    assert not multiprocessing.active_children()


def test_sources_of_other_file_systems_and_formats_mix(tmp_path, examples):
    memory = fsspec.filesystem("memory")
    for number in range(LANES):
        memory.pipe(f"/mix/{number}.tar", tar_bytes([f"m{number}-{sample}" for sample in range(6)]))
    write_parquet(tmp_path / "0.parquet", [f"p{number}" for number in range(40)])
    patterns = ["memory://mix/*.tar", f"{tmp_path}/*.parquet"]
    sources = open_sources(patterns, weights=(1, 3), folder=tmp_path)
    found, same = (
        ids(take(make(sources, examples, tmp_path, workers=workers), 10)) for workers in (0, 2)
    )
    assert found == same
    numbers = list(itertools.chain(*found))
    of_memory = {sample_id(shard, index) for shard in sources[0].shards for index in range(6)}
    of_parquet = {sample_id(sources[1].shards[0], index) for index in range(40)}
    assert of_memory.isdisjoint(of_parquet)
    assert set(numbers) <= of_memory | of_parquet
    assert 0.1 < sum(number in of_memory for number in numbers) / len(numbers) < 0.4
    assert (tmp_path / "quarantine.jsonl").read_text() == ""


def test_images_are_read_from_their_paths_beside_a_shard(examples, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture(0))
    pq.write_table(pa.table({"image": ["in/a.png"], "caption": ["x"]}), tmp_path / "0.parquet")
    ((sample, _),) = read_shard(str(tmp_path / "0.parquet"))
    held = replace(sample, image=picture(0), path=None)
    assert torch.equal(examples(sample, 0)["pixel_values"], examples(held, 0)["pixel_values"])
    for without in (replace(sample, shard="memory://0.parquet"), replace(sample, path=None)):
        with pytest.raises(ValueError, match="it has no image"):
            examples(without, 0)


def test_images_alone_and_texts_alone(source, examples, tmp_path):
    contents = examples.contents
    images = StreamExamples(Contents(5, contents.transform, BlockMaskConfig.for_grid(4, width=4)))
    ((batch,),) = take(make(source, images, tmp_path), 1)
    assert batch.keys() == {
        "pixel_values",
        "bool_masked_pos",
        "image_ids",
        "sample_ids",
        "step_seed",
        "step",
    }
    texts = StreamExamples(Contents(5, tokenizer=contents.tokenizer, words=WordMaskConfig(0.5)))
    ((batch,),) = take(make(source, texts, tmp_path), 1)
    names = {"input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"}
    assert batch.keys() == {*names, "sample_ids", "step_seed", "step"}
    assert "picture of thing" in contents.tokenizer.decode(batch["input_ids"][0])
