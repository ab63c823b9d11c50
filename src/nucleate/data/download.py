"""Download a data set from its official mirrors, checked byte for byte."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nucleate.data.dataset import DataError
from nucleate.data.folders import FOLDERS, data_root
from nucleate.data.readers import read_bytes

CHUNK = 1 << 16
TIMEOUT = 30.0
"""Seconds without an answer after which a mirror is given up."""


@dataclass(frozen=True)
class Remote:
    """One gzip file to fetch: its name, and the size and SHA-256 of what it unpacks to.

    The checksum is of the unpacked content, so that it holds whichever way a mirror packed it.
    """

    name: str
    size: int
    sha256: str


MIRRORS: dict[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
}
"""Addresses that hold the files of each source that can be fetched, tried in order."""

FILES: dict[str, tuple[Remote, ...]] = {
    "mnist": (
        Remote(
            "train-images-idx3-ubyte.gz",
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        Remote(
            "train-labels-idx1-ubyte.gz",
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        Remote(
            "t10k-images-idx3-ubyte.gz",
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        Remote(
            "t10k-labels-idx1-ubyte.gz",
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion": (
        Remote(
            "train-images-idx3-ubyte.gz",
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        Remote(
            "train-labels-idx1-ubyte.gz",
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        Remote(
            "t10k-images-idx3-ubyte.gz",
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        Remote(
            "t10k-labels-idx1-ubyte.gz",
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that came since the last call, and its packed size (0 if not said)."""


def fetch(
    name: str,
    root: Path | None = None,
    *,
    mirrors: Mapping[str, Sequence[str]] = MIRRORS,
    files: Mapping[str, Sequence[Remote]] = FILES,
    progress: Progress | None = None,
) -> Path:
    """Folder below the data root that now holds a data set's files, each equal to the original byte for byte.

    Files that are there and right are kept. A file appears under its name only when it is whole and its checksum is
    right; whatever else happens leaves nothing behind, and the same call goes on with the files that lack.

    Raises:
        DataError: for a name that cannot be fetched, a folder that cannot be written, or a file that no mirror gives;
            the message says what each mirror answered.
    """
    if name not in files:
        by_hand = " (CIFAR is not fetched: get its binary version by hand)" if name.startswith("cifar") else ""
        raise DataError(f"{name!r} cannot be fetched{by_hand}; there are {', '.join(files)}")
    folder = data_root(root) / FOLDERS[name][0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    for remote in files[name]:
        if not _is_right(folder / remote.name, remote):
            _fetch_file(remote, folder, mirrors[name], progress)
    return folder


def _is_right(path: Path, remote: Remote) -> bool:
    if not path.is_file():
        return False
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest() == remote.sha256
    except DataError:
        return False


def _fetch_file(remote: Remote, folder: Path, mirrors: Sequence[str], progress: Progress | None) -> None:
    answers = []
    for mirror in mirrors:
        url = mirror.rstrip("/") + "/" + remote.name
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{remote.name}.", suffix=".part", dir=folder)
        except OSError as error:
            raise DataError(f"cannot write into {folder}: {error.strerror or error}") from None
        try:
            _download(url, descriptor, remote, progress)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(folder / remote.name)
            return
        except _Refused as error:
            answers.append(f"{url}: {error}")
        except OSError as error:
            raise DataError(f"cannot write {folder / remote.name}: {error.strerror or error}") from None
        finally:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
    raise DataError(f"no mirror gave {remote.name}: {'; '.join(answers)}")


class _Refused(Exception):
    """What a mirror answered instead of the file."""


def _download(url: str, descriptor: int, remote: Remote, progress: Progress | None) -> None:
    """Write a URL's content to an open file while its unpacked content is measured and summed."""
    unpack, total, size = zlib.decompressobj(wbits=31), hashlib.sha256(), 0
    with os.fdopen(descriptor, "wb") as file, _open(url) as answer:
        expected = int(answer.headers.get("Content-Length") or 0)
        while chunk := _read(answer):
            try:
                content = unpack.decompress(chunk)
            except zlib.error:
                raise _Refused("what came is not a gzip file") from None
            size += len(content)
            if size > remote.size or unpack.unused_data:
                raise _Refused(f"more came than the {remote.size:,} bytes of the original")
            total.update(content)
            file.write(chunk)
            if progress is not None:
                progress(remote.name, len(chunk), expected)
        if not unpack.eof:
            raise _Refused(f"the download broke off after {size:,} of {remote.size:,} bytes")
        if total.hexdigest() != remote.sha256:
            raise _Refused(f"the checksum is wrong: SHA-256 {total.hexdigest()[:16]}..., not {remote.sha256[:16]}...")


def _open(url: str) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise _Refused(str(reason)) from None


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read(CHUNK)
        return chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Refused(f"the connection broke: {error}") from None
