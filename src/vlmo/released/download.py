"""Published weights as model folders in the cache: downloaded once, checked, converted, kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock
from rich.console import Console

from vlmo.progress import Progress
from vlmo.released.converter import registered_converter
from vlmo.released.published import VOCABULARIES, NamedModel
from vlmo.terminal import without_controls

MIRROR = "VLMO_WEIGHTS"
"""Environment variable: folder or address that has the published files, instead of their publishers."""
CACHE = "VLMO_CACHE"
"""Environment variable: folder for downloads and model folders; by default ~/.cache/vlmo."""

_LOGGER = logging.getLogger(__name__)
_TRIES = 5
_PAUSE_S = 1.0
_TIMEOUT_S = 30.0
# Bytes of a read, bytes a second below which a try ends, and characters of a server's words.
_BLOCK = 2**20
_SLOWEST = 1000
_LONGEST = 300
# A strong ETag, or the date of Last-Modified: a download that has neither begins anew.
_TAG = re.compile(r'"[\x21\x23-\x7e]+"|[A-Z][a-z]{2}, [\w :]{21}GMT')


def cache_folder() -> Path:
    """Return the folder of `downloads`, `models`, `checksums.json`, and of `files` that were put there by hand."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE) or f"{base}/vlmo").expanduser().absolute()


def cached_model(name: str) -> Path:
    """Return the path that the model folder of a published model has once it is here."""
    return cache_folder() / "models" / name


def fetch_model(model: NamedModel) -> Path:
    """Return the model folder of a published model; download and convert it first if it is not here.

    Processes that ask for the same model wait for the first. The published file is deleted after
    the conversion.

    Raises:
        ValueError: The file cannot be had, is not the one that was pinned, or is no checkpoint of
            this layout.
    """
    folder = cached_model(model.name)
    config = folder / "config.json"
    if not config.is_file():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / ".lock"):
            # Another process may have been faster.
            if not config.is_file():
                _fetch_and_convert(model, folder)
    return folder


def fetch_hub_folder(repository: str) -> Path:
    """Return the files of a model folder on the Hugging Face hub, in its cache; only data, no code.

    Raises:
        ValueError: It cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError as HubError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "README.md"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, HubError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"hf://{repository} cannot be downloaded from the hub ({reason})"
        ) from None


def _fetch_and_convert(model: NamedModel, folder: Path) -> None:
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link to no model folder, and would be replaced behind the link; remove it"
        )
    file = _fetch_file(model.address)
    files = [file]
    vocabulary = None
    if model.layout in VOCABULARIES:
        vocabulary = _fetch_file(VOCABULARIES[model.layout])
        files.append(vocabulary)
    _LOGGER.info("converting %s", file.name)
    convert = registered_converter()
    try:
        convert(
            file,
            folder,
            vocabulary=vocabulary,
            licence=model.licence.lower(),
            address=model.address,
        )
    except ValueError as problem:
        for used in files:
            _delete_download(used)
        raise ValueError(
            f"{model.name}, which is published at {model.address}: {problem}"
        ) from None
    # An earlier pin stays.
    sums = {used.name: sum_of(used) for used in files} | read_sums()
    partial = _no_link(_sums_file().with_suffix(".partial"))
    partial.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    partial.replace(_sums_file())
    # Other models need the vocabulary.
    _delete_download(file)


# ---------------------------------------------------------------------------------------------- files and sums


def _fetch_file(address: str) -> Path:
    name = address.rpartition("/")[2]
    path = _downloads() / name
    mirror = os.environ.get(MIRROR, "")
    # Files that were put there by hand come before the network.
    folders = [cache_folder() / "files"]
    if mirror and "://" not in mirror:
        folders.append(Path(mirror).expanduser())
    for folder in folders:
        if (folder / name).is_file():
            path = folder / name
            break
    if not path.is_file():
        if len(folders) > 1:
            raise ValueError(
                f"{mirror}, which {MIRROR} names, holds no {name}; it is published at {address}"
            )
        _download(f"{mirror.rstrip('/')}/{name}" if mirror else address, path)
    digest = sum_of(path)["sha256"]
    # The first file that is used under a name pins it.
    pinned = read_sums().get(name, {}).get("sha256", digest)
    if pinned != digest:
        _delete_download(path)
        raise ValueError(
            f"{name} is another file than the first that was used under this name: its SHA-256 is {digest}, not"
            f" {pinned}. If its publisher has replaced it, remove its entry from {_sums_file()}"
        )
    return path


def _downloads() -> Path:
    return cache_folder() / "downloads"


def _delete_download(file: Path) -> None:
    # Files of the user stay.
    if file.parent == _downloads():
        file.unlink()


def _sums_file() -> Path:
    return cache_folder() / "checksums.json"


def sum_of(file: Path) -> dict[str, str | int]:
    """Return SHA-256 and number of bytes of a file."""
    with file.open("rb") as stream:
        return {
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            "bytes": file.stat().st_size,
        }


def read_sums() -> dict[str, dict[str, str | int]]:
    """Return the sums of files that were used (every later one must have the same); ValueError if they are damaged."""
    if not _sums_file().is_file():
        return {}
    try:
        return {
            name: dict(facts)
            for name, facts in json.loads(_sums_file().read_text(encoding="utf-8")).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(
            f"{_sums_file()} is damaged ({problem}); restore it, or remove it to pin files anew"
        ) from None


# ---------------------------------------------------------------------------------------------- HTTP


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(address: str) -> None:
    url = urlsplit(address)
    mirror = urlsplit(os.environ.get(MIRROR, ""))
    is_mirror = url.scheme == "http" and (url.scheme, url.netloc) == (mirror.scheme, mirror.netloc)
    if url.scheme != "https" and not is_mirror:
        raise ValueError(
            f"{address} is refused: expected https, or http from the mirror that {MIRROR} names"
        )


def _download(address: str, target: Path) -> None:
    """Download a file; go on where an earlier try ended."""
    _check_address(address)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _no_link(target.with_name(f"{target.name}.partial"))
    reason = ""
    for number in range(_TRIES):
        time.sleep(_PAUSE_S * number)
        try:
            _read_rest(address, partial)
        except (OSError, HTTPException) as problem:
            reason = without_controls(f"{problem}"[:_LONGEST]).strip() or type(problem).__name__
            code = problem.code if isinstance(problem, HTTPError) else 0
            # Without a network another try would fail as well; servers may be busy for a moment.
            no_network = isinstance(problem, URLError) and not code and number == 0
            # Range not satisfiable: what is here is no beginning of this file.
            if code == 416:
                partial.unlink(missing_ok=True)
            elif no_network or (0 < code < 500 and code != 429):
                break
        else:
            partial.replace(target)
            _state_of(partial).unlink(missing_ok=True)
            return
    kept = ""
    if _tag_of(partial):
        kept = f"; the {partial.stat().st_size:,} bytes that came are kept"
    raise ValueError(
        f"{address} cannot be downloaded ({reason}){kept}. Try again, or get it by other means and put it into"
        f" {cache_folder() / 'files'}, or into a folder that {MIRROR} names"
    )


def _read_rest(address: str, partial: Path) -> None:
    """Add to `partial` what it lacks; OSError where another try may help."""
    size = partial.stat().st_size if partial.is_file() else 0
    tag = _tag_of(partial)
    with (
        _open(address, size=size, tag=tag) as response,
        Progress(Console(stderr=True), in_bytes=True) as progress,
    ):
        if response.headers.get_content_type() == "text/html":
            raise ValueError(
                f"{address} gave a web page instead of a file; open it in a browser, or try again later"
            )
        start, total = _extent(response)
        new_tag = response.headers.get("ETag", "")
        if not _TAG.fullmatch(new_tag):
            new_tag = response.headers.get("Last-Modified", "")
        # The server may send the rest of another version of the file.
        if start not in {0, size} or (start and new_tag != tag):
            partial.unlink(missing_ok=True)
            raise OSError("the file has changed while it was downloaded")
        # Before the first byte: a full disk would stop other work, too.
        free = shutil.disk_usage(partial.parent).free
        if free < total - start:
            raise ValueError(
                f"{partial.parent} has {free:,} bytes left, {address} needs {total - start:,}"
            )
        if not start:
            partial.unlink(missing_ok=True)
            _state_of(partial).write_text(new_tag)
        started_at = time.monotonic()
        with partial.open("ab") as file:
            for done in _copy(response, file, start=start, total=total):
                progress.update(partial.stem, done, total)
                # A server that sends a byte now and then would never time out.
                seconds = time.monotonic() - started_at
                if (done - start) / _SLOWEST < seconds - _TIMEOUT_S:
                    raise OSError(f"it sends fewer than {_SLOWEST} bytes a second")


def _open(address: str, *, size: int, tag: str) -> HTTPResponse:
    """Ask for a file; with a `tag`, for what follows its first `size` bytes."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "vlmo"}
    if tag:
        # The server sends the whole file if the tag is that of another version.
        headers |= {"Range": f"bytes={size}-", "If-Range": tag}
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        request = urllib.request.Request(address, headers=headers)
        return opener.open(request, timeout=_TIMEOUT_S)
    except ValueError as problem:
        # An address that is refused, or is none.
        raise ValueError(f"{address} leads elsewhere: {problem}") from None


def _copy(response: HTTPResponse, file: IO[bytes], *, start: int, total: int) -> Iterator[int]:
    """Write the bytes of a response from `start` on; yield how many there are after each block."""
    done = start
    while done < total:
        block = response.read1(min(_BLOCK, total - done))
        if not block:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
        file.write(block)
        done += len(block)
        yield done


def _extent(response: HTTPResponse) -> tuple[int, int]:
    """Return the first byte of a response in its file, and the file's size."""
    pattern = r"()([0-9]{1,18})"
    extent = response.headers.get("Content-Length", "")
    if response.status == 206:
        pattern = r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})"
        extent = response.headers.get("Content-Range", "")
    match = re.fullmatch(pattern, extent)
    if match is None or not int(match[2]):
        raise ValueError(f"{response.url} does not state the size of the file; it was not read")
    return int(match[1] or 0), int(match[2])


def _tag_of(partial: Path) -> str:
    """Return what the server must say again for the rest of a part; empty where there is none, or it may be damaged."""
    state = _state_of(partial)
    if not partial.is_file() or not state.is_file():
        return ""
    tag = state.read_text(errors="replace")
    return tag if _TAG.fullmatch(tag) else ""


def _state_of(partial: Path) -> Path:
    return _no_link(partial.with_suffix(".state"))


def _no_link(path: Path) -> Path:
    """Return a path that is written next; a link there is removed, for what it leads to is not ours."""
    if path.is_symlink():
        path.unlink()
    return path
