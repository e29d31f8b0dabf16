"""Published weights by name: downloaded once, checked, converted and kept, whatever the server does."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import socket
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from tests import forkserver
from tests.parity.cases import reference_file
from tests.released.toy_server import COCO, VQA
from tests.retrieval.toy_index import write_folder
from tests.test_cli_tasks import refused

from vlmo import (
    VLMoConfig,
    VLMoForImageTextRetrieval,
    VLMoForVisualQuestionAnswering,
    VLMoProcessor,
    model_path,
    progress,
)
from vlmo.cli import main
from vlmo.released import download, find_model, notes_folder
from vlmo.released.published import MODELS
from vlmo.retrieval import Encoder


def left(cache: Path) -> list[str]:
    """Files and model folders in the cache."""
    return sorted(str(path.relative_to(cache)) for path in cache.glob("*/*"))


def check_weights() -> None:
    model = VLMoForImageTextRetrieval.from_pretrained("vlmo-base-coco")
    source = load_file(reference_file("irtr"))["itc_image_proj.fc.weight"]
    assert torch.equal(model.contrast_head.image_projection.weight, source)


def test_name_is_downloaded_and_converted_once(site, cache, tmp_path, capsys):
    images = write_folder(tmp_path / "images", numbers=range(4))
    main(["index", "vlmo-base-coco", str(images), "--out", "photos"])
    main(["search", "photos", "word1 word2", "--top", "1", "--json"])
    assert site.requests == [(COCO, 0), ("vocab.txt", 0)]
    assert left(cache) == ["downloads/vocab.txt", "models/vlmo-base-coco"]
    folder = find_model("vlmo-base-coco")
    assert Encoder("vlmo-base-coco").fingerprint == Encoder(folder).fingerprint
    check_weights()
    assert VLMoProcessor.from_pretrained("vlmo-base-coco").vocab_size == 96
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert MODELS["vlmo-base-coco"].address in card
    assert len(site.requests) == 2
    assert notes_folder("vlmo-base-coco") == Path()
    main(["models"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    results = "coco test tr@1 74.8, test ir@1 57.2 (VLMo's paper, arXiv 2111.02358)"
    small = VLMoConfig.from_pretrained("vlmo-small")
    assert {
        f"vlmo-base-coco retrieval base, 384 MIT yes {results}",
        "beit3-base backbone base, 224 MIT",
        f"vlmo-small retrieval small, {small.image_size} CC-BY-SA-4.0 yes",
    } <= {*lines}
    find_model("vlmo-base-vqa")
    assert site.requests[2:] == [(VQA, 0)]  # the vocabulary is here already


def test_download_goes_on_where_the_connection_broke(site, cache, published, monkeypatch, capsys):
    size = (published / COCO).stat().st_size
    site.cuts = [1000, 50_000]
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    find_model("vlmo-base-coco")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(COCO)]
    assert lines[0].startswith(f"{COCO}: 1.0 kB of {size / 1000:.1f} kB")
    assert any(line.startswith(f"{COCO}: 51.0 kB of ") for line in lines)
    assert site.requests == [(COCO, 0), (COCO, 1000), (COCO, 51_000), ("vocab.txt", 0)]
    assert json.loads((cache / "checksums.json").read_text())[COCO]["bytes"] == size


CHANGES = ["", "tag", "no ranges", "no tag", "weak tag", "shorter", "damaged state"]


@pytest.mark.parametrize("change", CHANGES)
def test_interrupted_download_goes_on_in_the_next_call_unless_the_file_has_changed(
    site, cache, published, change
):
    """Of a file before, which is as long, nothing may be left: its first bytes are others."""
    right = site.files[COCO]
    site.files[COCO] = bytes(len(right)) if change else right
    site.tag = {"no tag": None, "weak tag": 'W/"first"'}.get(change, site.tag)
    site.cuts = [10_000, 0, 0, 0, 0]
    part = "" if change else "10,000 bytes .* "
    with pytest.raises(ValueError, match=rf"{COCO} cannot be downloaded .* {part}put it into"):
        find_model("vlmo-base-coco")
    site.requests.clear()
    site.files[COCO], partial = right, cache / "downloads" / f"{COCO}.partial"
    if change in {"tag", "shorter"}:
        site.tag = '"second"'
    if change == "no ranges":
        site.ranges = False
    if change == "shorter":  # on the server than what is here
        partial.write_bytes(bytes(len(right) + 1))
    if change == "damaged state":
        partial.with_suffix(".state").write_text('{"tag": "')
    find_model("vlmo-base-coco")
    assert change or site.requests[0] == (COCO, 10_000)
    check_weights()


@pytest.mark.parametrize(
    ("header", "value", "problem"),
    [
        ("Content-Length", "9999999", "connection ended after"),
        ("Content-Length", "5000", "truncated, damaged, no checkpoint"),
        ("Content-Length", "", "does not state the size"),
        ("Content-Length", "12x", "does not state the size"),
        ("Content-Length", str(10**17), "bytes left, .* needs 100,000,000"),
        ("Content-Type", "text/html", "web page instead of a file"),
    ],
)
def test_answer_that_is_not_the_file_is_refused_and_not_pinned(site, cache, header, value, problem):
    site.headers = {header: value}
    with pytest.raises(ValueError, match=problem):
        find_model("vlmo-base-coco")
    assert not (cache / "checksums.json").exists()
    assert not list(cache.glob("models/*"))
    site.headers = {}
    find_model("vlmo-base-coco")


def test_redirects_are_followed_and_give_no_file_name(site, cache):
    site.moved = {f"/{COCO}": f"{site.address}/other/..%2F..%2Fevil.pt"}
    site.files["..%2F..%2Fevil.pt"] = site.files[COCO]
    site.headers = {"Content-Disposition": "attachment; filename=../../evil.pt"}
    find_model("vlmo-base-coco")
    assert left(cache) == ["downloads/vocab.txt", "models/vlmo-base-coco"]


ELSEWHERE = ["http://example.org/x.pt", "ftp://127.0.0.1/x.pt", "file:///etc/passwd", "http://["]


@pytest.mark.parametrize("elsewhere", [*ELSEWHERE, "http://127.0.0.1:1/x.pt"])
def test_redirects_leave_neither_https_nor_the_mirror(site, elsewhere):
    site.moved = {f"/{COCO}": elsewhere}
    message = "leads elsewhere" if ":1/" in elsewhere else r"leads elsewhere|cannot be downloaded"
    with pytest.raises(ValueError, match=message):
        find_model("vlmo-base-coco")


def test_server_that_sends_next_to_nothing_is_left(site, monkeypatch):
    ticks = itertools.count(step=1000)
    clock = SimpleNamespace(sleep=lambda _: None, monotonic=partial(next, ticks))
    monkeypatch.setattr(download, "time", clock)
    monkeypatch.setattr(download, "_BLOCK", 1000)
    with pytest.raises(ValueError, match="fewer than 1000 bytes a second"):
        find_model("vlmo-base-coco")


def test_words_of_a_server_are_cut_and_control_nothing(site, monkeypatch):
    error = OSError("\x1b[2J" + "x" * 5000)
    monkeypatch.setattr(download.HTTPResponse, "begin", Mock(side_effect=error))
    with pytest.raises(ValueError, match="xxx") as refused:
        find_model("vlmo-base-coco")
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_links_in_the_cache_lead_nowhere(site, cache, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    planted = [f"downloads/{COCO}.partial", f"downloads/{COCO}.state", "checksums.partial"]
    for name in planted:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(precious)
    find_model("vlmo-base-coco")
    assert precious.read_text() == "precious"
    (cache / "models" / "vlmo-base-vqa").symlink_to(tmp_path / "here")
    with pytest.raises(ValueError, match="is a link to no model folder"):
        find_model("vlmo-base-vqa")
    (cache / "models" / "vlmo-base-vqa").unlink()
    (cache / "checksums.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"checksums\.json is damaged"):
        find_model("vlmo-base-vqa")


def test_plain_http_is_for_mirrors_only(cache, monkeypatch):
    with pytest.raises(ValueError, match=r"http://example\.org/x is refused"):
        download._download("http://example.org/x", cache / "x")
    monkeypatch.setenv("VLMO_WEIGHTS", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"http://localhost/x is refused"):
        download._download("http://localhost/x", cache / "x")


def test_another_file_under_a_known_name_is_refused(site, cache, tmp_path):
    find_model("vlmo-base-coco")
    (cache / "models" / "vlmo-base-coco").rename(tmp_path / "gone")
    site.files[COCO] = site.files[VQA]
    with pytest.raises(ValueError, match=rf"{COCO} is another file .* remove .*checksums\.json"):
        find_model("vlmo-base-coco")
    assert left(cache) == ["downloads/vocab.txt"]


def test_file_of_another_layout_or_with_code_is_refused_and_deleted(site, cache):
    site.files["beit3_base_itc_patch16_224.pth"] = site.files[COCO]
    site.files["beit3.spm"] = b"no matter"
    with pytest.raises(ValueError, match="beit3-base-itc, which is published at https"):
        find_model("beit3-base-itc")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(cache / "evil"),)

    site.files[COCO] = pickle.dumps({"state_dict": Evil()})
    with pytest.raises(ValueError, match="reading it would run code"):
        find_model("vlmo-base-coco")
    assert not [name for name in left(cache) if name.endswith(("evil", ".pt", ".pth"))]
    assert not (cache / "checksums.json").exists()


def test_without_a_network_one_line_says_where_to_put_it(cache, published, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("VLMO_WEIGHTS", f"http://127.0.0.1:{port}")
    shown = refused(["predict", "vlmo-base-coco", "--image", "x.png", "--text", "a"], capsys)
    assert f"http://127.0.0.1:{port}/{COCO} cannot be downloaded" in shown
    assert f"put it into {cache / 'files'}" in shown
    (cache / "files").mkdir()
    for name in (COCO, "vocab.txt"):
        shutil.copy(published / name, cache / "files")
    find_model("vlmo-base-coco")
    assert left(cache) == [f"files/{COCO}", "files/vocab.txt", "models/vlmo-base-coco"]


def test_mirror_may_be_a_folder_that_stays_as_it_is(cache, published, monkeypatch, tmp_path):
    monkeypatch.setenv("VLMO_WEIGHTS", str(published))
    before = {file.name: file.stat().st_mtime_ns for file in published.iterdir()}
    assert Path(model_path("vlmo-base-vqa")) == cache / "models" / "vlmo-base-vqa"
    assert {file.name: file.stat().st_mtime_ns for file in published.iterdir()} == before
    assert left(cache) == ["models/vlmo-base-vqa"]
    with pytest.raises(ValueError, match=r"holds no vlmo_large_.*\.pt; it is published at"):
        find_model("vlmo-large-vqa")


def test_folder_of_the_hub_is_fetched_without_its_code(cache, toy_release, tmp_path, monkeypatch):
    theirs = shutil.copytree(toy_release / "toy", tmp_path / "theirs")
    (theirs / "modeling.py").write_text("1 / 0")
    (tmp_path / "fetched").mkdir()

    def fetch(repository: str, *, allow_patterns: list[str]) -> str:
        if repository != "someone/tiny":
            raise OSError("no such repository")
        for file in theirs.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, tmp_path / "fetched")
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = {file.name for file in find_model("hf://someone/tiny").iterdir()}
    assert found == {file.name for file in theirs.iterdir()} - {"modeling.py"}
    fingerprint = Encoder(toy_release / "toy").fingerprint
    assert Encoder(Path("hf://someone/tiny")).fingerprint == fingerprint
    assert VLMoForImageTextRetrieval.from_pretrained("hf://someone/tiny").config.hidden_size == 32
    with pytest.raises(ValueError, match=r"hf://someone/none cannot .* \(no such repository\)"):
        find_model("hf://someone/none")


def test_models_command_downloads_now_with_labels(site, cache, capsys):
    main(["models", "vlmo-base-coco", "vlmo-small"])
    shown = capsys.readouterr().out
    assert f"vlmo-base-coco: {cache / 'models' / 'vlmo-base-coco'}" in shown
    answers = [f"answer {number}" for number in range(17)]
    Path("few.txt").write_text("yes\nno\n")
    line = ["models", "vlmo-base-vqa", "--labels"]
    assert "few.txt names 2 answers" in refused([*line, "few.txt"], capsys)
    requests = len(site.requests)
    Path("answers.txt").write_text("\n".join(answers))
    main([*line, "answers.txt"])
    model = VLMoForVisualQuestionAnswering.from_pretrained("vlmo-base-vqa")
    assert list(model.config.id2label.values()) == answers
    assert len(site.requests) == requests  # the model that is here gets its names
    assert "did you mean 'vlmo-large-vqa'" in refused(["models", "vlmo-large-vqb"], capsys)


def test_process_that_asks_for_the_same_model_waits_for_the_first(site, cache):
    site.answers.clear()
    started = [forkserver.start(find_model, "vlmo-base-coco") for _ in range(2)]
    while not site.requests:
        assert all(process.is_alive() for process in started)
        time.sleep(0.05)
    site.answers.set()
    assert [process.wait() for process in started] == [0, 0]
    assert site.requests == [(COCO, 0), ("vocab.txt", 0)]
    assert left(cache) == ["downloads/vocab.txt", "models/vlmo-base-coco"]


def test_table_has_each_file_once_under_the_name_that_its_own_tells():
    addresses = [model.address for model in MODELS.values() if model.address]
    assert len(set(addresses)) == len(addresses) == 74
    for model in MODELS.values():
        if model.address:
            file = model.address.rpartition("/")[2].split("_patch16_")[0]
            family, _, size = file.partition("_")
            assert model.name.startswith(family), model
            assert model.size in size
            assert model.address.startswith("https://github.com/")
            assert model.image_size % 16 == 0
        # Every model that was fine-tuned on a set has its results, and only such a one.
        assert bool(model.data) == bool(model.reported) == bool(model.source)


def test_another_port_of_the_mirror_is_not_the_mirror(site):
    site.moved = {f"/{COCO}": "http://127.0.0.1:1/x.pt"}
    with pytest.raises(ValueError, match="leads elsewhere"):
        find_model("vlmo-base-coco")


def test_published_results_are_those_of_the_publications():
    columns = ("base", "base-indomain", "large", "large-indomain")
    table = {  # BEiT-3's README
        ("in1k", "imagenet validation top1"): (85.4, 85.4, 87.6, 87.5),
        ("vqa", "vqav2 test_dev accuracy"): (77.65, 78.46, 81.85, 82.53),
        ("nlvr2", "nlvr2 validation accuracy"): (83.6, 84.6, 88.5, 89.2),
        ("nlvr2", "nlvr2 test accuracy"): (84.4, 85.3, 89.4, 90.0),
        ("coco-captioning", "coco test cider"): (133.6, 135.0, 143.2),
        ("nocaps", "nocaps validation cider"): (104.4, 105.6, 120.2),
        ("coco", "coco test ir@1"): (61.4, None, 63.4),
        ("coco", "coco test tr@1"): (79.1, None, 82.1),
        ("f30k", "flickr30k test ir@1"): (86.2, None, 88.1),
        ("f30k", "flickr30k test tr@1"): (96.3, None, 97.2),
        ("vqa-768", "vqav2 test_dev accuracy"): (None, None, 82.97),
        ("vqa-768", "vqav2 test_std accuracy"): (None, None, 83.03),
    }
    expected = {
        (f"beit3-{column}-{file}", what): percent
        for (file, what), row in table.items()
        for column, percent in zip(columns, row, strict=False)
        if percent is not None
    }
    found = {
        (model.name, f"{model.data} {split} {metric}"): percent
        for model in MODELS.values()
        for split, metric, percent in model.reported
    }
    assert {
        key: percent for key, percent in found.items() if key[0].startswith("beit3")
    } == expected
    rows = {  # BEiT's README and BEiT-2's guide, in the order of their tables
        "beit-base": (83.7, 85.2, 86.8),
        "beit-large": (86.0, 87.4, 88.4, 88.6),
        "beitv2-base": (85.0, 85.5, 86.5),
        "beitv2-large": (86.6, 87.3, 88.4),
    }
    for family, row in rows.items():
        assert (
            tuple(percent for (name, _), percent in found.items() if name.startswith(f"{family}-"))
            == row
        )
    # Every model that was fine-tuned on a set has its results, and only such a one.
    assert all(
        bool(model.data) == bool(model.reported) == bool(model.source) for model in MODELS.values()
    )
