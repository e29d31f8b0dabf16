from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.test_building import quarantine
from tests.retrieval.toy_index import build, rows, write_folder
from tests.retrieval.toy_video import write_video

from vlmo.data.rows import Bad
from vlmo.retrieval import Searcher, videos
from vlmo.retrieval.videos import VIDEO_SUFFIXES, read_key_frames


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_key_frames_are_those_of_each_second(suffix, tmp_path):
    path = write_video(tmp_path / f"a{suffix}", seconds=3, first=5)
    frames = list(read_key_frames(str(path)))
    assert [frame.seconds for frame in frames] == [0, 1, 2]
    for number, frame in enumerate(frames, start=5):
        expected = np.asarray(drawings()[number].resize((64, 48)), dtype=float)
        assert np.abs(opened(frame.data) - expected).mean() < 12  # an edge of a color is blurred
    assert sum(frame.size for frame in frames) == path.stat().st_size


def test_key_frames_are_at_least_a_second_apart(tmp_path):
    often = write_video(tmp_path / "often.mov", seconds=4)  # all of them are key frames
    assert [frame.seconds for frame in read_key_frames(str(often))] == [0, 1, 2, 3]
    seldom = write_video(tmp_path / "seldom.webm", seconds=5, key_every=8)
    assert [frame.seconds for frame in read_key_frames(str(seldom))] == [0, 2, 4]


def test_frames_of_a_turned_video_are_upright(tmp_path):
    lying, upright = (
        next(read_key_frames(str(write_video(tmp_path / f"{angle}.mp4", seconds=1, first=3, rotation=angle))))
        for angle in (0, -90)
    )
    assert opened(upright.data).shape == (64, 48, 3)
    assert np.abs(opened(upright.data) - np.rot90(opened(lying.data), -1)).mean() < 3


def test_video_that_breaks_off_gives_the_frames_before_and_the_reason(tmp_path):
    path = write_video(tmp_path / "a.mov", seconds=4)  # a JPEG file for each frame
    data = bytearray(path.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)]
    data[starts[9] : starts[10]] = bytes(starts[10] - starts[9])
    path.write_bytes(data)
    *frames, bad = read_key_frames(str(path))
    assert [frame.seconds for frame in frames] == [0, 1, 2]
    assert bad.kind == "shard"
    assert "the video cannot be read any further than 2 s: Invalid data" in bad.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("junk.mp4", b"junk", "Invalid data"),
        ("empty.mov", b"", "the video cannot be read: "),
        ("list.avi", b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nother.mp4\n#EXT-X-ENDLIST\n", "Invalid data"),
        ("list.mp4", b"ffconcat version 1.0\nfile other.mp4\n", "the video cannot be read: "),
        ("gone.mkv", None, "No such file"),
    ],
)
def test_what_is_no_video_is_told_and_never_opens_other_files(name, content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "other.mp4", seconds=1)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (bad,) = read_key_frames(name)
    assert isinstance(bad, Bad)
    assert (bad.kind, bad.shard) == ("shard", name)
    assert reason in bad.reason


def test_stream_without_a_decoder_is_told(tmp_path):
    path = write_video(tmp_path / "a.mkv", seconds=1)
    data = path.read_bytes()
    assert data.count(b"V_MPEG4/ISO/AVC") == 1
    path.write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/HAS/IT"))
    (bad,) = read_key_frames(str(path))
    assert "no decoder for its video stream" in bad.reason


def test_large_frames_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "MAX_PIXELS", 1000)
    (bad,) = read_key_frames(str(write_video(tmp_path / "a.mp4", seconds=1)))
    assert "the video cannot be read" in bad.reason


def test_index_finds_frames_with_their_path_and_time(encoder, tmp_path):
    folder = write_folder(tmp_path / "mixed", numbers=range(4))
    clip = write_video(folder / "sub" / "clip.mp4", seconds=5, first=8)
    with (folder / "captions.csv").open("a") as table:
        table.write("sub/clip.mp4,drawings in motion,1999,film\n")
    (folder / "bad.mkv").write_text("no video")
    out = tmp_path / "index"
    report = build(encoder, folder, out=out)
    assert (report.images, report.encoded, report.bad, report.unmatched) == (9, 9, 1, None)
    assert [(line["path"], line["kind"]) for line in quarantine(out)] == [(str(folder / "bad.mkv"), "shard")]
    found = rows(out)
    for second in range(5):
        row = found[f"{clip}#{second}.000"]
        assert (row["path"], row["seconds"], row["year"], row["captions"]) == (
            *(str(clip), second, 1999), ["drawings in motion"]
        )  # fmt: skip
        assert (row["width"], row["height"]) == (64, 48)
        assert opened(row["bytes"]).shape == (48, 64, 3)
    assert all(row["seconds"] is None for place, row in found.items() if ".mp4" not in place)
    result = Searcher(encoder, out).search(CAPTIONS[8][0], top=3, rerank=3, where="seconds >= 0")
    assert {hit.path for hit in result.hits} == {str(clip)}
    assert all(hit.metadata["seconds"] in range(5) for hit in result.hits)
    assert result.num_reranked == 3


def test_later_runs_read_changed_videos_alone_and_forget_deleted_ones(encoder, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "index"
    write_video(folder / "a.mp4", seconds=3)
    write_video(folder / "b.webm", seconds=2, first=10)
    assert build(encoder, folder, out=out).encoded == 5
    again = build(encoder, folder, out=out)
    assert (again.encoded, again.reused, again.unchanged, again.deleted) == (0, 0, 5, 0)
    write_video(folder / "b.webm", seconds=4, first=10)
    (folder / "a.mp4").unlink()
    changed = build(encoder, folder, out=out)
    assert (changed.images, changed.deleted) == (4, 3)
    (folder / "b.webm").write_text("damaged")  # its frames stay, as it may be mended
    damaged = build(encoder, folder, out=out)
    assert (damaged.images, damaged.deleted, damaged.bad) == (4, 0, 1)


def test_missing_package_is_told_with_the_command_that_installs_it(encoder, tmp_path, monkeypatch):
    folder, out = write_folder(tmp_path / "mixed", numbers=range(2)), tmp_path / "index"
    write_video(folder / "a.mp4", seconds=2)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "av", None)
        report = build(encoder, folder, out=out)
    assert (report.images, report.bad) == (2, 1)
    (line,) = quarantine(out)
    assert line["reason"].startswith("videos need PyAV: pip install ")
    assert "[video]'" in line["reason"]
    assert build(encoder, folder, out=out).images == 4  # once it is there, the same command reads them
