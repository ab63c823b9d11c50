"""Fetching from a mirror: here a server on this machine that gives what each test wants."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nucleate.data import DataError, fetch, load
from nucleate.data.download import FILES, MIRRORS, Remote
from nucleate.spec import DataSpec


class Mirror:
    """A server with a table of answers: bytes, or a status."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | int] = {}
        self.asked: list[str] = []
        self.promise_more = 0
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                mirror.asked.append(name)
                content = mirror.files.get(name, 404)
                if isinstance(content, int):
                    self.send_error(content)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + mirror.promise_more))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/data/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()
    yield made
    made.close()


@pytest.fixture
def originals(idx_bytes: object, images: object) -> dict[str, bytes]:
    made = {}
    for part, n in (("train", 20), ("t10k", 10)):
        made[f"{part}-images-idx3-ubyte.gz"] = idx_bytes(images(n))  # type: ignore[operator]
        made[f"{part}-labels-idx1-ubyte.gz"] = idx_bytes((np.arange(n) % 3).astype(np.uint8))  # type: ignore[operator]
    return made


@pytest.fixture
def files(originals: dict[str, bytes], mirror: Mirror) -> dict[str, list[Remote]]:
    mirror.files.update({name: gzip.compress(content) for name, content in originals.items()})
    return {"mnist": [Remote(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in originals.items()]}


Files = dict[str, list[Remote]]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_was_fetched_is_loaded(tmp_path: Path, mirror: Mirror, files: Files) -> None:
    seen: dict[str, int] = {}
    totals: dict[str, int] = {}

    def progress(name: str, more: int, total: int) -> None:
        seen[name] = seen.get(name, 0) + more
        totals[name] = total

    folder = fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files, progress=progress)
    assert folder == tmp_path / "mnist"
    assert names(folder) == sorted(r.name for r in files["mnist"])
    assert seen == totals == {n: len(c) for n, c in mirror.files.items()}  # type: ignore[arg-type]
    data = load(DataSpec(name="mnist"), tmp_path)
    assert data.train_inputs.shape == (20, 1, 6, 6) and len(data.test_labels) == 10


def test_right_files_are_kept_and_wrong_ones_fetched_again(tmp_path: Path, mirror: Mirror, files: Files) -> None:
    folder = fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files)
    mirror.asked.clear()
    victim = files["mnist"][2].name
    (folder / victim).write_bytes(b"damaged")
    fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files)
    assert mirror.asked == [victim]
    assert (folder / victim).read_bytes() == mirror.files[victim]


def test_the_next_mirror_serves_where_the_first_does_not(tmp_path: Path, mirror: Mirror, files: Files) -> None:
    other = Mirror()
    try:
        other.files = dict.fromkeys(mirror.files, 503)
        fetch("mnist", tmp_path, mirrors={"mnist": [other.url, mirror.url]}, files=files)
    finally:
        other.close()
    assert len(other.asked) == 4 and names(tmp_path / "mnist") == sorted(mirror.files)


def test_another_packing_of_the_same_content_is_right(
    tmp_path: Path, mirror: Mirror, files: Files, originals: dict[str, bytes]
) -> None:
    mirror.files.update({n: gzip.compress(c, compresslevel=1, mtime=1) for n, c in originals.items()})
    fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files)


FIRST = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("status", "HTTP 500"),
        ("html", "not a gzip file"),
        ("empty", "broke off after 0 of"),
        ("cut", "broke off"),
        ("other", "checksum is wrong"),
        ("longer", "more came than"),
        ("trailing", "more came than"),
        ("short connection", "connection broke|broke off"),
    ],
)
def test_a_wrong_answer_leaves_nothing_behind(
    tmp_path: Path, mirror: Mirror, files: Files, originals: dict[str, bytes], answer: str, says: str
) -> None:
    good = originals[FIRST]
    packed = gzip.compress(good)
    mirror.files[FIRST] = {
        "status": 500,
        "html": b"<html>log in first</html>",
        "empty": b"",
        "cut": packed[: len(packed) // 2],
        "other": gzip.compress(bytes(len(good))),
        "longer": gzip.compress(good + bytes(1000)),
        "trailing": packed + b"more",
        "short connection": packed[:-50],
    }[answer]
    mirror.promise_more = 50 if answer == "short connection" else 0
    with pytest.raises(DataError, match=says) as caught:
        fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files)
    assert mirror.url + FIRST in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path / "mnist") == []


def test_a_wrong_answer_keeps_an_older_file(tmp_path: Path, mirror: Mirror, files: Files) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / FIRST).write_bytes(b"what the user put here")
    mirror.files[FIRST] = b"<html>"
    with pytest.raises(DataError):
        fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files)
    assert (tmp_path / "mnist" / FIRST).read_bytes() == b"what the user put here"


def test_nobody_answers(tmp_path: Path, files: Files) -> None:
    closed = Mirror()
    closed.close()
    with pytest.raises(DataError, match=f"no mirror gave {FIRST}.*refused"):
        fetch("mnist", tmp_path, mirrors={"mnist": [closed.url]}, files=files)
    assert names(tmp_path / "mnist") == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, mirror: Mirror, files: Files) -> None:
    def stop(name: str, more: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files, progress=stop)
    assert names(tmp_path / "mnist") == []


def test_a_file_where_the_folder_should_be(tmp_path: Path, mirror: Mirror, files: Files) -> None:
    (tmp_path / "mnist").write_text("")
    with pytest.raises(DataError, match="cannot make the folder"):
        fetch("mnist", tmp_path, mirrors={"mnist": [mirror.url]}, files=files)


@pytest.mark.parametrize(("name", "says"), [("cifar10", "by hand"), ("digits", "there are mnist, fashion")])
def test_what_cannot_be_fetched(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_source_has_mirrors_and_checksums() -> None:
    assert set(MIRRORS) == set(FILES)
    for remotes in FILES.values():
        assert len(remotes) == len({r.name for r in remotes}) == len({r.sha256 for r in remotes}) == 4
        assert all(len(bytes.fromhex(r.sha256)) == 32 for r in remotes)
    # 16 + 60,000 x 28 x 28 and 8 + 60,000 bytes: what an IDX file of that shape takes.
    assert [r.size for r in FILES["mnist"]] == [47_040_016, 60_008, 7_840_016, 10_008]
