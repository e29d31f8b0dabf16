import itertools
import shutil
import signal
import threading
import webbrowser
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
import watchfiles

from tests.integrations.toy_gallery import drawings
from tests.killing import wait_until
from tests.retrieval.toy_index import NAMES, NUM, nested_folders, rows, write_folder
from tests.serving.toy_service import ServerProcess
from tests.test_cli_tasks import refused
from vlmo.cli import main
from vlmo.released import download
from vlmo.retrieval import Encoder, Searcher, building, store
from vlmo.serving import photos

PATIENCE_S = 60


@pytest.fixture(scope="module")
def encoder(gallery) -> Encoder:
    return Encoder(gallery.model)


@contextmanager
def updates(encoder: Encoder, folder: Path, index: Path, *, ocr: bool = False):
    thread = photos._Updates(encoder, folder, index, ocr=ocr)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
    assert not thread.is_alive()


def holds(index: Path, *names: str) -> bool:
    return {Path(row["path"]).name for row in rows(index).values()} == set(names)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of three images."""
    return write_folder(tmp_path / "images", table=False, numbers=range(3))


def wait(condition: Callable[[], bool]) -> None:
    wait_until(condition, within_s=PATIENCE_S)


@pytest.fixture(autouse=True)
def hasty(monkeypatch) -> None:
    monkeypatch.setattr(photos, "_SETTLED_S", 0.1)
    monkeypatch.setattr(store, "_READ_EVERY", timedelta(0))


def test_index_follows_new_changed_renamed_and_deleted_files(encoder, tmp_path, caplog) -> None:
    folder = write_folder(tmp_path / "images", table=False, numbers=range(4))
    index = folder / "index"
    first, second, third, fourth = NAMES[:4]
    with updates(encoder, folder, index) as thread:
        opened = thread.open_index()
        wait(lambda: opened.complete and opened.num_images == 4)
        caplog.clear()
        caplog.set_level("INFO", photos.__name__)
        (folder / first).rename(folder / "renamed.png")
        (folder / second).unlink()
        drawings()[20].save(folder / third)
        (folder / "more" / "below").mkdir(parents=True)
        drawings()[21].save(folder / "more" / "below" / "new.png")
        (folder / "bad.jpg").write_text("no image")
        now = ("renamed.png", Path(third).name, Path(fourth).name, "new.png")
        wait(lambda: holds(index, *now) and "1 unusable" in caplog.text)
        hits = Searcher(encoder, index).search(drawings()[20], top=1).hits
        assert Path(hits[0].path).name == Path(third).name
        (folder / "notes.txt").write_text("nothing that is read")
        (index / "a.png").write_text("nor what lies in the index")
        number = len(caplog.messages)
        threading.Event().wait(0.5)
        assert len(caplog.messages) == number
    assert "Traceback" not in caplog.text


def test_first_images_are_found_while_others_are_embedded(encoder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(building, "_FIRST_WRITTEN_S", 0.0)
    monkeypatch.setattr(photos, "_BATCH", 4)
    go, embed, calls = threading.Event(), encoder.embed_pixels, []

    def embed_in_time(pixels):
        calls.append(len(pixels))
        assert len(calls) < 4 or go.wait(PATIENCE_S)
        return embed(pixels)

    monkeypatch.setattr(encoder, "embed_pixels", embed_in_time)
    folder, index = write_folder(tmp_path / "images"), tmp_path / "index"
    with updates(encoder, folder, index) as thread:
        opened = thread.open_index()
        wait(lambda: len(calls) == 4)
        assert 0 < opened.num_images <= 12
        assert not opened.complete
        assert Searcher(encoder, opened).search("a red circle", rerank=0).hits
        go.set()
        wait(lambda: opened.complete)
        assert opened.num_images == NUM
    assert caplog.messages == []
    go.clear()
    calls.clear()
    with updates(encoder, folder, tmp_path / "other") as thread:
        wait(lambda: len(calls) == 4)
        thread._stopped.set()
        go.set()
        thread.join(PATIENCE_S)
    assert len(rows(tmp_path / "other")) == 16  # all that was embedded is kept
    assert building.build_index(encoder, [folder], out=tmp_path / "other").encoded == NUM - 16


@pytest.mark.parametrize("name", ["movie.mp4", "0.png"])
def test_folder_that_never_rests_is_indexed(name, encoder, folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    seen, stop = list[bool](), threading.Event()

    def noted(_):
        seen.append((folder / "new.png").exists())

    monkeypatch.setattr(photos._Updates, "_update", noted)

    def write() -> None:
        while not stop.wait(0.01):
            (folder / name).write_bytes(b"0")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with updates(encoder, folder, tmp_path / "index"):
            wait(lambda: bool(seen))
            drawings()[20].save(folder / "new.png")
            wait(lambda: seen[-1])
    finally:
        stop.set()
        writer.join()
    assert caplog.messages == []


def test_folder_that_cannot_be_watched_is_searched(encoder, folder, tmp_path, monkeypatch, caplog):
    refused = Mock(side_effect=RuntimeError("inotify watch limit reached"))
    monkeypatch.setattr(watchfiles.main, "RustNotify", refused)
    monkeypatch.setattr(photos, "_UNWATCHED_S", 1.0)
    names = [Path(name).name for name in NAMES[:3]]
    with updates(encoder, folder, tmp_path / "index") as thread:
        assert thread.open_index().num_images == 3
        monkeypatch.undo()
        monkeypatch.setattr(photos, "_SETTLED_S", 0.1)
        drawings()[20].save(folder / "new.png")
        wait(lambda: holds(tmp_path / "index", "new.png", *names))
    assert f"{folder} is not watched" in caplog.text
    assert "inotify watch limit reached" in caplog.text


# A panic of Rust is no Exception; an update waits for a change, or is tried again after a while.
@pytest.mark.parametrize(("kind", "waits"), [(RuntimeError, True), (BaseException, False)])
def test_error_beside_an_index_is_logged_and_the_next_update_runs(
    kind, waits, encoder, folder, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(photos, "_AGAIN_S", 3600.0 if waits else 0.5)
    index = tmp_path / "index"
    building.build_index(encoder, [folder], out=index)
    go, update, calls = threading.Event(), photos._Updates._update, []

    def fail_once(thread) -> None:
        calls.append(thread)
        if len(calls) == 1:
            go.wait(PATIENCE_S)
        if len(calls) <= 2:
            raise kind("out of order")
        update(thread)

    monkeypatch.setattr(photos._Updates, "_update", fail_once)
    with updates(encoder, folder, index) as thread:
        opened = thread.open_index()
        go.set()
        wait(lambda: "the index stays as it is: out of order" in caplog.text)
        assert thread.problem == "out of order"
        for number in range(2):
            if waits:
                drawings()[20].save(folder / f"new {number}.png")
            wait(lambda: len(calls) >= 2 + number)  # noqa: B023
        wait(lambda: not thread.problem)
        assert opened.num_images == (5 if waits else 3)
    assert caplog.text.count("out of order") == 1  # told once


def test_emptied_folder_forgets_its_images_and_one_whose_disk_is_gone_keeps_them(
    encoder, folder, tmp_path, caplog
) -> None:
    index = tmp_path / "index"
    with updates(encoder, folder, index) as thread:
        opened = thread.open_index()
        wait(lambda: opened.complete)
        folder.rename(tmp_path / "elsewhere")  # as if its disk was taken out
        wait(lambda: "its images stay in the index" in caplog.text)
        folder.mkdir()
        wait(lambda: "its disk may not be mounted" in caplog.text)
        assert (opened.num_images, bool(thread.problem)) == (3, True)
        assert "--remove" not in caplog.text  # which this command has not
        assert str(index) in caplog.text
        folder.rmdir()
        (tmp_path / "elsewhere").rename(folder)  # it is back, and watched again
        wait(lambda: not thread.problem)
        drawings()[20].save(folder / "new.png")
        wait(lambda: opened.num_images == 4)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        wait(lambda: opened.num_images == 0)
        drawings()[21].save(folder / "newer.png")
        wait(lambda: opened.num_images == 1)


def photos_line(encoder: Encoder, folder: Path) -> list[str]:
    index = folder.parent / "index"
    return f"photos {folder} --model {encoder.folder} --index {index} --port 0".split()


def test_words_in_images_are_found(encoder, folder, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(photos, "serve_photos", lambda *_, ocr, **__: asked.append(ocr))
    for option in ([], ["--no-ocr"], ["--ocr"]):
        main([*photos_line(encoder, folder), *option])
    assert asked == [True, False, True]
    monkeypatch.setattr(building, "load_reader", lambda: None)
    monkeypatch.setattr("vlmo.retrieval.embedding.read_text", lambda _: "Invoice Acme Corp.")
    with updates(encoder, folder, tmp_path / "index", ocr=True) as thread:
        opened = thread.open_index()
        wait(lambda: opened.complete)
        assert len(Searcher(encoder, opened).search("invoice", mode="words").hits) == 3


def test_neither_the_index_nor_hidden_folders_are_changes(encoder, tmp_path, monkeypatch) -> None:
    folder = write_folder(tmp_path / "real" / "images", numbers=range(1))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    changed = {"sub/new.png": True, ".thumbnails/new.png": False, "index/index.json": False}
    changed["sub"] = True

    def watch(root, **_):
        return [[(1, f"{root}/{name}")] for name in changed]

    monkeypatch.setattr(watchfiles, "watch", watch)
    index = tmp_path / "link" / "images" / ".." / "images" / "index"
    for given in (folder, tmp_path / "link" / "images"):
        seen = photos._Updates(encoder, given, index, ocr=False)._watch()
        assert list(itertools.islice(seen, len(changed))) == list(changed.values())


def test_folder_with_the_longest_name_has_an_index(gallery, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(photos, "serve_photos", lambda *_, index, **__: index.mkdir(parents=True))
    (tmp_path / ("ü" * 127)).mkdir()
    main(["photos", str(tmp_path / ("ü" * 127)), "--model", str(gallery.model), "--port", "0"])
    (index,) = (tmp_path / "cache" / "photos").iterdir()
    assert index.name.startswith("ü" * 60 + "-")


@pytest.mark.slow
def test_command_serves_until_ctrl_c(gallery, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "my images", numbers=range(5))
    with ServerProcess(folder, "--model", gallery.model, command="photos") as server:
        wait(lambda: "5 new, 0 gone" in server.process.stderr)
        assert httpx.get(f"{server.address}/v1/about").json()["can_search"] is True
        server.stop(signal.SIGINT)
        assert server.process.wait(PATIENCE_S) == 0
    (index,) = (tmp_path / "cache" / "photos").iterdir()
    assert index.name.startswith("my images-")
    assert f"index: {index}" in server.process.stdout
    assert "No image is sent anywhere" in server.process.stdout
    assert "Traceback" not in server.process.stderr


def test_page_is_opened_where_there_is_a_screen(encoder, folder, monkeypatch, caplog) -> None:
    caplog.set_level("INFO", photos.__name__)
    opened, served = [], []

    def noted(_, parts, *__):
        served.append(parts.index.num_images)
        # The end of the server stops the update.
        wait(lambda: len(caplog.messages) == len(served))

    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(photos, "serve", noted)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    main(photos_line(encoder, folder))
    monkeypatch.setenv("DISPLAY", ":0")
    main([*photos_line(encoder, folder), "--no-open"])
    assert opened == []
    main(photos_line(encoder, folder))
    wait(lambda: len(opened) == 1)
    assert opened[0].startswith("http://127.0.0.1:")
    assert served == [3, 3, 3]
    # The same command goes on.
    assert [": 3 new" in each for each in caplog.messages] == [True, False, False]


def test_missing_network_names_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLMO_WEIGHTS", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(download, "_TRIES", 1)
    with pytest.raises(SystemExit):
        main(["photos", str(tmp_path)])
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "cannot be downloaded" in first
    assert str(tmp_path / "cache" / "files") in first
    for words in ("vlmo_base_patch16_384_coco.pt", "vocab.txt", "--model vlmo-small"):
        assert words in second


def test_wrong_use_is_one_line(gallery, folder, tmp_path, capsys) -> None:
    model, other, folder = str(gallery.model), tmp_path / "other", str(folder)
    (tmp_path / "empty").mkdir()
    main(["index", "vlmo-small", folder, "--out", str(other)])
    for words, reason in (
        ([str(tmp_path / "nowhere")], "is no folder; name the one"),
        ([str(tmp_path / "empty"), "--model", model], "holds no image"),
        ([folder, "--model", model, "--index", str(other)], "was made with another model"),
        ([folder, "--model", "vlmo-smal"], "did you mean 'vlmo-small'?"),
    ):
        assert reason in refused(["photos", *words, "--port", "0", "--no-open"], capsys)


def test_folder_nested_a_thousand_deep_beside_others_stops_no_update(
    encoder, tmp_path, caplog
) -> None:
    folder = write_folder(tmp_path / "images", table=False, numbers=range(1))
    deep = folder / "d"
    with updates(encoder, folder, tmp_path / "index") as thread, nested_folders(tmp_path):
        opened = thread.open_index()
        wait(lambda: opened.complete)
        # It comes and goes at once: of one that grows, the system may watch each level a thousand times.
        (tmp_path / "d").rename(deep)
        try:
            drawings()[20].save(folder / "new.png")
            wait(lambda: opened.num_images == 2 and opened.num_skipped == 1)
            drawings()[21].save(folder / "newer.png")
            wait(lambda: opened.num_images == 3)
        finally:
            deep.rename(tmp_path / "d")
        wait(lambda: opened.num_skipped == 0)
    assert caplog.messages == []
