"""Published weights as model folders in the cache: downloaded once, checked, converted, kept."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import time
import urllib.request
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock
from rich.console import Console

from vlmo.progress import Progress
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
_BLOCK = 2**20
_SLOWEST = 1000
_LONGEST = 300
"""Bytes of a read, bytes a second below which a try ends, and characters of a server's words."""
_TAG = re.compile(r'"[\x21\x23-\x7e]+"|[A-Z][a-z]{2}, [\w :]{21}GMT')
"""A strong ETag, or the date of Last-Modified: a download that has neither begins anew."""


def cache_folder() -> Path:
    """Return the folder of `downloads`, `models`, `checksums.json`, and of `files` that were put there by hand."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vlmo"
    return Path(os.environ.get(CACHE) or usual).expanduser().absolute()


def cached_model(name: str) -> Path:
    """Return the path that the model folder of a published model has once it is here."""
    return cache_folder() / "models" / name


def fetch_model(model: NamedModel) -> Path:
    """Return the model folder of a published model; download and convert it first if it is not here.

    Processes that ask for the same model wait for the first. The published file is deleted after the conversion.

    Raises:
        ValueError: The file cannot be had, is not the one that was pinned, or is no checkpoint of this layout.
    """
    folder = cached_model(model.name)
    is_here = (folder / "config.json").is_file
    if not is_here():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / ".lock"):
            if not is_here():
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
    addresses = [
        model.address,
        *([VOCABULARIES[model.layout]] if model.layout in VOCABULARIES else []),
    ]
    files = [_fetch_file(address) for address in addresses]
    _LOGGER.info("converting %s", files[0].name)
    try:
        # By their names: the conversion stands on the models, whose `from_pretrained` stands on this file.
        importlib.import_module("vlmo.checkpoints.importing").import_checkpoint(
            files[0],
            folder,
            vocabulary=files[1] if files[1:] else None,
            licence=model.licence.lower(),
            address=model.address,
            usage_of=importlib.import_module("vlmo.tasks").usage_of,
        )
    except ValueError as problem:
        for file in files:
            _delete_download(file)
        raise ValueError(
            f"{model.name}, which is published at {model.address}: {problem}"
        ) from None
    sums = {file.name: _sum_of(file) for file in files} | read_sums()  # an earlier pin stays
    partial = _no_link(_sums_file().with_suffix(".partial"))
    partial.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    partial.replace(_sums_file())
    _delete_download(files[0])  # other models need the vocabulary


# ---------------------------------------------------------------------------------------------- files and sums


def _fetch_file(address: str) -> Path:
    name = address.rpartition("/")[2]
    mirror = os.environ.get(MIRROR, "")
    is_folder = bool(mirror) and "://" not in mirror
    folders = [cache_folder() / "files", *([Path(mirror).expanduser()] if is_folder else [])]
    path = next(
        (folder / name for folder in folders if (folder / name).is_file()), _downloads() / name
    )
    if not path.is_file():
        if is_folder:
            raise ValueError(
                f"{mirror}, which {MIRROR} names, holds no {name}; it is published at {address}"
            )
        _download(f"{mirror.rstrip('/')}/{name}" if mirror else address, path)
    found = _sum_of(path)["sha256"]
    pinned = read_sums().get(name, {}).get("sha256")
    if pinned not in {None, found}:
        _delete_download(path)
        raise ValueError(
            f"{name} is another file than the first that was used under this name: its SHA-256 is {found}, not"
            f" {pinned}. If its publisher has replaced it, remove its entry from {_sums_file()}"
        )
    return path


def _downloads() -> Path:
    return cache_folder() / "downloads"


def _delete_download(file: Path) -> None:
    if file.parent == _downloads():  # files of the user stay
        file.unlink()


def _sums_file() -> Path:
    return cache_folder() / "checksums.json"


def _sum_of(file: Path) -> dict[str, str | int]:
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
    parts = urlsplit(address)
    mirror = urlsplit(os.environ.get(MIRROR, ""))
    if parts.scheme != "https" and not (parts.scheme == "http" and parts[:2] == mirror[:2]):
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
            no_network = isinstance(problem, URLError) and not code and number == 0
            if code == 416:  # what is here is no beginning of this file
                partial.unlink(missing_ok=True)
            elif no_network or (0 < code < 500 and code != 429):
                break
        else:
            partial.replace(target)
            _state_of(partial).unlink(missing_ok=True)
            return
    kept = f"; the {partial.stat().st_size:,} bytes that came are kept" if _tag_of(partial) else ""
    raise ValueError(
        f"{address} cannot be downloaded ({reason}){kept}. Try again, or get it by other means and put it into"
        f" {cache_folder() / 'files'}, or into a folder that {MIRROR} names"
    )


def _read_rest(address: str, partial: Path) -> None:
    """Add to `partial` what it lacks; OSError where another try may help."""
    done = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "vlmo"}
    if tag := _tag_of(partial):
        headers |= {"Range": f"bytes={done}-", "If-Range": tag}
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        response = opener.open(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S)
    except ValueError as problem:  # an address that is refused, or is none
        raise ValueError(f"{address} leads elsewhere: {problem}") from None
    with response, Progress(Console(stderr=True), in_bytes=True) as progress:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(
                f"{address} gave a web page instead of a file; open it in a browser, or try again later"
            )
        start, total = _extent(response)
        found = response.headers.get("ETag", "")
        found = found if _TAG.fullmatch(found) else response.headers.get("Last-Modified", "")
        if start not in {0, done} or (start and found != tag):
            partial.unlink(missing_ok=True)
            raise OSError("the file has changed while it was downloaded")
        if (free := shutil.disk_usage(partial.parent).free) < total - start:
            raise ValueError(
                f"{partial.parent} has {free:,} bytes left, {address} needs {total - start:,}"
            )
        if not start:
            partial.unlink(missing_ok=True)
            _state_of(partial).write_text(found)
        done = start
        began = time.monotonic()
        with partial.open("ab") as file:
            while done < total and (block := response.read1(min(_BLOCK, total - done))):
                file.write(block)
                done += len(block)
                progress.update(partial.stem, done, total)
                if (done - start) / _SLOWEST < time.monotonic() - began - _TIMEOUT_S:
                    raise OSError(f"it sends fewer than {_SLOWEST} bytes a second")
    if done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _extent(response: HTTPResponse) -> tuple[int, int]:
    if response.status == 206:
        pattern = r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})"
        header = "Content-Range"
    else:
        pattern = r"()([0-9]{1,18})"
        header = "Content-Length"
    found = re.fullmatch(pattern, response.headers.get(header, ""))
    if found is None or not int(found[2]):
        raise ValueError(f"{response.url} does not state the size of the file; it was not read")
    return int(found[1] or 0), int(found[2])


def _tag_of(partial: Path) -> str:
    """Return what the server must say again for the rest of a part; empty where there is none, or it may be damaged."""
    tag = (
        _state_of(partial).read_text(errors="replace")
        if partial.is_file() and _state_of(partial).is_file()
        else ""
    )
    return tag if _TAG.fullmatch(tag) else ""


def _state_of(partial: Path) -> Path:
    return _no_link(partial.with_suffix(".state"))


def _no_link(path: Path) -> Path:
    """Return a path that is written next; a link there is removed, for what it leads to is not ours."""
    if path.is_symlink():
        path.unlink()
    return path
