"""Files by pattern: paths, wildcards, braces, folders, and URLs of every file system that fsspec knows."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
IMAGE_SUFFIXES = HEIC_SUFFIXES | {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
}
UNREAD_SUFFIXES = frozenset((".jxl", ".jfif", ".jp2", ".svg", ".psd", ".ppm", ".tga", ".ico"))
UNREAD_SUFFIXES |= {
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".raf",
    ".rw2",
    ".pef",
}  # of cameras
SHARD_SUFFIXES = (".tar", ".parquet")
MAX_DEPTH = 100
"""Folders between an input and a file: people nest no more, and deeper paths soon exceed the 4,096 bytes of Linux."""

_WILDCARDS = frozenset("*?[")
_LOGGER = logging.getLogger(__name__)


def source_names(source: str) -> list[str]:
    """Return the names or paths of a data source, which may be several with "+" between them."""
    # A path may hold a "+" of its own.
    return [source] if Path(source).expanduser().exists() else source.split("+")


def is_remote(url: str) -> bool:
    """Return True for a URL."""
    return "://" in url


def has_wildcards(url: str, *, braces: bool = False) -> bool:
    """Return True where a path or URL holds `*`, `?` or `[`, or on demand `{`."""
    return not _WILDCARDS.isdisjoint(url) or (braces and "{" in url)


def expand_braces(pattern: str) -> list[str]:
    """Return every path that braces such as {00000..00331} or {a,b} stand for; ValueError if they do not match."""
    from braceexpand import braceexpand  # of an extra, and folders have no braces

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{pattern}: its braces do not match ({error})") from error


def open_file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path in it; ValueError for unknown URLs or a missing package."""
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # clients of object stores have errors of their own
        raise ValueError(f"{url} cannot be listed: {error}") from error


def warn_of_skipped(folder: str | Path, counts: Iterable[tuple[str, int]]) -> None:
    """Log how many files of a folder are images in formats that are not read, by their suffixes."""
    skipped = dict(counts)
    suffixes = sorted(skipped, key=skipped.__getitem__, reverse=True)
    if skipped:
        _LOGGER.warning(
            "%s: %s files skipped: this format is not read; convert them to JPEG or PNG",
            folder,
            ", ".join(f"{skipped[suffix]} {suffix}" for suffix in suffixes),
        )


def image_named(query: str, *, must_exist: bool = False) -> Path | None:
    """Return the image file that a query names; None for words.

    ValueError for a file that is no image by its suffix, and with `must_exist` for an image that is not there.
    """
    try:
        path = Path(query).expanduser()
        is_there = bool(path.suffix) and path.is_file()
    except (OSError, RuntimeError):  # a text may be too long for a name, or begin with ~
        return None
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    if is_there and not is_image:
        formats = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(
            f"{query} is a file, but no image that is read ({formats}); convert it, or give words"
        )
    if must_exist and is_image and not is_there and (" " not in query.strip() or "/" in query):
        raise ValueError(f"there is no image {query}")
    return path if is_there else None


def regular_file(path: Path) -> os.stat_result:
    """Return the status of a file; OSError for what may never end, such as a pipe or a device."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return status


def walk(
    folder: Path,
    *,
    seen: set[tuple[int, int]] | None = None,
    lost: dict[Path, str] | None = None,
    mounts: set[Path] | None = None,
) -> Iterator[Path]:
    """Yield the files below a folder of this machine, by name; hidden ones are passed over.

    Links to folders are followed; real folders are visited once, and by their real paths if those are below too: tables
    name files by it.

    Args:
        seen: Device and number of folders visited before; gets those of this call.
        lost: Takes reasons by paths, of links that lead nowhere, and of folders below that the system refuses to list
            or that are nested more than `MAX_DEPTH` deep. Without it such folders are errors.
        mounts: Takes folders on another disk than the folder that holds them.
    """
    seen = set() if seen is None else seen
    # Real paths: a link may lead to a folder that is below anyway.
    root = folder.resolve()
    levels = [iter([(folder, True)])]  # a loop, as Python bounds recursion
    while levels:
        path, is_folder = next(levels[-1], (None, False))
        if path is None:
            levels.pop()
        elif not is_folder:
            yield path
        else:
            try:
                if len(levels) > MAX_DEPTH + 1:
                    raise OSError(
                        errno.ENAMETOOLONG, f"it is nested more than {MAX_DEPTH} deep", str(path)
                    )
                if _is_new(path, seen, mounts):
                    levels.append(iter([*_entries(path, root, lost)]))
            except OSError as error:
                if lost is None or path == folder:
                    raise
                lost[path] = f"the folder cannot be listed: {error.strerror or error}"


def _is_new(folder: Path, seen: set[tuple[int, int]], mounts: set[Path] | None) -> bool:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return False
    seen.add((status.st_dev, status.st_ino))
    if mounts is not None and status.st_dev != folder.parent.stat().st_dev:
        mounts.add(folder)
    return True


def _entries(folder: Path, root: Path, lost: dict[Path, str] | None) -> Iterator[tuple[Path, bool]]:
    """Yield files and folders in a folder, the latter with True, without links to what is visible below `root`."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        is_folder = entry.is_dir()
        if entry.is_file() or (
            is_folder and not (entry.is_symlink() and is_visible(entry.resolve(), root))
        ):
            yield entry, is_folder
        elif lost is not None and not entry.exists():
            lost[entry] = "the link leads nowhere"


def is_visible(path: Path, root: Path) -> bool:
    """Return True if a real path is below a real folder, and neither it nor a folder between them is hidden."""
    return path.is_relative_to(root) and not any(
        part.startswith(".") for part in path.relative_to(root).parts
    )


def list_shards(pattern: str) -> tuple[str, ...]:
    """Return the shards that a pattern names, sorted; ValueError if nothing matches, or something that is no shard.

    A pattern is a path or an fsspec URL of .tar or .parquet files, with braces ({00000..00331}, {a,b}) and wildcards
    (*, ?, [0-9], **), or a folder. Files that braces name are not looked for: a missing shard shows when it is read,
    and goes to the quarantine. Of a folder, tar files are taken, or else parquet files.
    """
    urls = expand_braces(pattern)
    # One for all: there may be a hundred thousand of them.
    files, _ = open_file_system(urls[0])
    shards: list[str] = []
    for path in (str(files._strip_protocol(url)) for url in urls):
        try:
            if has_wildcards(path):
                paths = files.glob(path)
            elif path.lower().endswith(SHARD_SUFFIXES):
                paths = [path]
            else:
                # Tars first: beside them, img2dataset leaves parquet files without images.
                paths = files.glob(f"{path}/**/*.tar") or files.glob(f"{path}/**/*.parquet")
        except Exception as error:
            raise ValueError(f"{pattern} cannot be listed: {error}") from error
        if not paths:
            raise ValueError(
                f"{pattern} matches nothing; give shards that are there (.tar or .parquet)"
            )
        if not isinstance(files, LocalFileSystem):
            paths = map(files.unstrip_protocol, paths)
        shards += map(str, paths)
    for shard in shards:
        if not shard.lower().endswith(SHARD_SUFFIXES):
            raise ValueError(
                f"{pattern} names {shard}; shards end with {' or '.join(SHARD_SUFFIXES)}"
            )
    return tuple(sorted(shards))
