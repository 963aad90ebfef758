"""Downloads: whatever mirrors and networks do, the right file gets into its place, or none."""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmnet.config.profile import SourceConfig
from mmnet.data import download
from mmnet.data.download import ATTEMPTS, fetch, provide, verify_placed
from mmnet.runtime import progress
from mmnet.runtime.errors import DataError, MMNetError
from support.mirror import (
    CONTENT,
    OTHER,
    SHA256,
    Answer,
    Mirror,
    claiming,
    endless,
    ignoring_range,
    part_of,
    pinned,
    stalling,
    status,
    whole,
    without_length,
)

pytestmark = pytest.mark.usefixtures("pauses")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def begin(folder: Path, content: bytes) -> Path:
    """Leave what an earlier process had of a.zip; return the place of a.zip."""
    if content:
        (folder / ".a.zip.part").write_bytes(content)
    return folder / "a.zip"


def assert_fetched(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [path.name]


# One mirror.

STOPS = [500 * number for number in range(1, 10)]  # more than ATTEMPTS: each brings something


@pytest.mark.parametrize(
    ("begun", "script", "starts"),
    [
        (b"", [whole], [0]),
        (b"", [*(part_of(CONTENT, stop) for stop in STOPS), whole], [0, *STOPS]),
        (b"", [stalling(2000), without_length(CONTENT[:2500]), whole], [0, 2000, 2500]),
        (b"", [status(503), status(500), status(429), whole], [0, 0, 0, 0]),
        # What an earlier process left.
        (CONTENT[:3000], [part_of(CONTENT, 4000), whole], [3000, 4000]),
        (CONTENT, [whole], []),
        (OTHER[:3000], [ignoring_range()], [3000]),
        # Other bytes are thrown away, however many they are.
        (OTHER[:3000], [whole], [3000, 0]),
        (OTHER, [whole], [0]),
        (CONTENT + b"more", [whole], [0]),
        # Bytes from another place than requested are not used.
        *(
            (CONTENT[:3000], [claiming(extent), whole], [3000, 0])
            for extent in ("bytes 2000-2999/5000", "bytes 9-", "", "bytes */5000")
        ),
    ],
)
def test_a_mirror_is_asked_for_what_is_missing_until_the_file_is_right(
    begun: bytes, script: list[Answer], starts: list[int], mirror: Mirror, tmp_path: Path
) -> None:
    path = begin(tmp_path, begun)
    assert fetch(pinned(mirror.serves(*script)), path) == SHA256
    assert_fetched(path)
    assert mirror.starts() == starts


def test_a_file_is_copied_from_a_path(tmp_path: Path) -> None:
    original = tmp_path / "with a space.zip"
    original.write_bytes(CONTENT)
    for url in (f"file:{original}", f"file:{tmp_path}/with%20a%20space.zip"):
        folder = tmp_path / "new"
        folder.mkdir()
        fetch(pinned(url), begin(folder, OTHER[:10]))
        assert_fetched(folder / "a.zip")
        (folder / "a.zip").unlink()
        folder.rmdir()
    assert original.read_bytes() == CONTENT


def test_it_is_on_the_disk_before_it_has_its_name(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a.zip", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(path.exists()), real(file)))
    fetch(pinned(mirror.serves(whole)), path)
    assert synced == [False]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([part_of(CONTENT, 2000), part_of(CONTENT, 2000)], [1, 1, 2, 4, 8, 16]),
        ([part_of(CONTENT, 2000), status(503), part_of(CONTENT, 3000), whole], [1, 1, 1]),
    ],
)
def test_pauses_grow_without_progress(
    script: list[Answer],
    expected: list[float],
    mirror: Mirror,
    tmp_path: Path,
    pauses: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with contextlib.suppress(DataError):
        fetch(pinned(mirror.serves(*script)), tmp_path / "a.zip")
    assert pauses == expected
    assert len(re.findall(r"Trying again in \d+ s", capsys.readouterr().err)) == len(expected)


# Several mirrors.


@pytest.mark.parametrize(
    ("begun", "script", "first", "second"),
    [
        *((CONTENT[:3000], [status(code)], [3000], [3000]) for code in (403, 404, 410)),
        # A mirror of another file is asked from the start, once.
        (b"", [part_of(OTHER)], [0], [0]),
        (CONTENT[:3000], [part_of(OTHER)], [3000, 0], [0]),
        (CONTENT[:3000], [ignoring_range(OTHER)], [3000, 0], [0]),
        # What another file's mirror began is not blamed on the next one.
        (b"", [part_of(OTHER, 2000), status(404)], [0, 2000], [2000, 0]),
        # One of another size is refused before its first byte.
        (CONTENT[:3000], [part_of(CONTENT + b"more")], [3000], [3000]),
        (CONTENT[:3000], [status(416, Content_Range="bytes */2000")], [3000], [3000]),
        (b"", [status(416)], [0], [0]),
        # One that sends without end does not fill the disk.
        (b"", [endless], [0], [0]),
        # One that brings nothing new is given up.
        (b"", [part_of(CONTENT, 2000)], [0] + [2000] * ATTEMPTS, [2000]),
        (b"", [status(503)], [0] * ATTEMPTS, [0]),
        # Each second attempt is longer than the one before it, none longer than the first.
        (
            b"",
            [ignoring_range(stop=stop) for stop in (3000, *[1000, 2000] * 3)],
            [0, 3000, 1000, 2000, 1000, 2000, 1000],
            [2000],
        ),
    ],
)
def test_the_next_mirror_goes_on_where_one_fails(
    begun: bytes,
    script: list[Answer],
    first: list[int],
    second: list[int],
    mirror: Mirror,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = begin(tmp_path, begun)
    urls = mirror.serves(*script, at="/first"), mirror.serves(whole, at="/second")
    fetch(pinned(*urls), path)
    assert_fetched(path)
    assert mirror.starts("/first") == first
    assert mirror.starts("/second") == second
    assert f"Next mirror: {urls[1]}\n" in capsys.readouterr().err


def test_if_no_mirror_has_it_one_line_names_each_reason_and_a_remedy(
    mirror: Mirror, tmp_path: Path, pauses: list[float]
) -> None:
    reasons = {
        mirror.serves(status(404), at="/missing"): "404 Not Found",
        mirror.serves(part_of(OTHER), at="/wrong"): hashlib.sha256(OTHER).hexdigest(),
        mirror.serves(part_of(OTHER + b"0"), at="/longer"): "5001 bytes, expected 5000",
        mirror.serves(endless, at="/endless"): "more than 5000 bytes",
        "http://127.0.0.1:9/a.zip": "Connection refused",  # nobody listens at port 9
        f"file:{tmp_path}/none.zip": "not found",
    }
    with pytest.raises(DataError) as caught:
        fetch(pinned(*reasons), tmp_path / "a.zip", remedy="set profiles.paper.x to your copy")
    line = str(caught.value)
    assert "\n" not in line
    for part, (url, reason) in zip(line.split(" | "), reasons.items(), strict=False):
        assert url in part
        assert reason in part
    assert f"{tmp_path}/a.zip" in line.split(" | ")[-1]
    assert line.endswith("set profiles.paper.x to your copy.")
    assert pauses == [1, 2, 4, 8, 16]
    assert names(tmp_path) == []


# Processes and disks.

FETCH = """
import sys
from pathlib import Path
from mmnet.config.profile import SourceConfig
from mmnet.data import download
download.TIMEOUT = 1e4, 1e4  # the file is not closed, and so not written, meanwhile
download.fetch(SourceConfig(urls=[sys.argv[1]], bytes=5000, sha256=sys.argv[2]), Path(sys.argv[3]))
"""


@contextlib.contextmanager
def fetching_elsewhere(url: str, path: Path, *, until: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that downloads, and has come as far as its mirror lets it."""
    with subprocess.Popen([sys.executable, "-c", FETCH, url, SHA256, path]) as other:
        try:
            part = path.with_name(f".{path.name}.part")
            patience = time.monotonic() + 120  # should it never come so far
            while not (part.exists() and part.stat().st_size == until):
                assert other.poll() is None
                assert time.monotonic() < patience
                time.sleep(0.01)
            yield other
        finally:
            other.kill()


def test_a_second_process_is_refused_the_file_and_resumes_it_when_the_first_is_killed(
    mirror: Mirror, tmp_path: Path
) -> None:
    url = mirror.serves(stalling(2000), whole)
    with fetching_elsewhere(url, tmp_path / "a.zip", until=2000) as other:
        with pytest.raises(MMNetError, match=r"a\.zip: another process"):
            fetch(pinned(url), tmp_path / "a.zip")
        fetch(pinned(url), tmp_path / "b.zip")
        other.send_signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL
    assert not (tmp_path / "a.zip").exists()
    fetch(pinned(url), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.zip", "b.zip"]
    assert mirror.starts() == [0, 0, 2000]


def test_interruption_leaves_the_part_and_no_lock(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(pinned(mirror.serves(part_of(CONTENT, 2000))), tmp_path / "a.zip")
    assert names(tmp_path) == [".a.zip.part"]


@pytest.mark.parametrize(("is_local", "needed"), [(False, 2000), (True, 5000)])
def test_the_disk_needs_room_for_what_is_still_to_come(
    is_local: bool, needed: int, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "original.zip").write_bytes(CONTENT)
    (tmp_path / "new").mkdir()
    path = begin(tmp_path / "new", CONTENT[:3000])
    url = f"file:{tmp_path}/original.zip" if is_local else mirror.serves(whole)
    free = needed - 1
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(MMNetError, match=rf"needs {needed / 1000} kB"):
        fetch(pinned(url), path)
    assert not path.exists()
    free = needed
    fetch(pinned(url), path)
    assert_fetched(path)


# Checksums.


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        (f"{SHA256}  b.zip\n", "SHA256SUMS: has no line for a+.zip"),
        (f"{'0' * 64}  a+.zip\n", f"sha256 is {SHA256}, expected {'0' * 64}"),
        (None, "SHA256SUMS: cannot be read"),
        (f"{'0' * 64}  a.zip\n{SHA256}  a+.zip\n", None),
    ],
)
def test_a_local_mirrors_own_checksums_must_be_right(
    sums: str | None, reason: str | None, tmp_path: Path
) -> None:
    (tmp_path / "a+.zip").write_bytes(CONTENT)
    if sums is not None:
        (tmp_path / "SHA256SUMS").write_text(sums)
    source = SourceConfig(urls=[f"file:{tmp_path}/a+.zip"], checksums=f"{tmp_path}/SHA256SUMS")
    path = tmp_path / "new" / "a.zip"
    if reason is None:
        assert fetch(source, path) == verify_placed(source, path) == SHA256
        assert_fetched(path)
        return
    with pytest.raises(DataError, match="mmnet shapes") as caught:
        fetch(source, path)
    assert reason in str(caught.value)
    assert names(path.parent) == []


def test_the_sha256_is_recorded_where_an_md5_is_pinned(mirror: Mirror, tmp_path: Path) -> None:
    source = SourceConfig(
        urls=[mirror.serves(whole)], bytes=5000, md5=hashlib.md5(CONTENT).hexdigest()
    )
    path, record = tmp_path / "a.zip", tmp_path / "a.zip.sha256"
    record.write_text(f"{'0' * 64}  a.zip\n")  # of a file that is gone
    provide(source, path, remedy="")
    assert names(tmp_path) == ["a.zip", "a.zip.sha256"]
    assert record.read_text() == f"{SHA256}  a.zip\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", record], cwd=tmp_path, check=True)
    assert verify_placed(source, path) == SHA256


@pytest.mark.parametrize(("remedy", "end"), [(None, "run again."), ("Fix it.", " Fix it.")])
def test_a_wrong_file_in_place_is_refused_with_the_callers_remedy(
    remedy: str | None, end: str, tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(OTHER)
    with pytest.raises(DataError) as caught:
        verify_placed(pinned("file:a.zip"), tmp_path / "a.zip", remedy=remedy)
    assert str(caught.value).startswith(f"{tmp_path}/a.zip: sha256 is ")
    assert str(caught.value).endswith(end)
    assert (tmp_path / "a.zip").read_bytes() == OTHER


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)

    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MMNetError, match=r"a\.zip: cannot be read: Permission denied"):
        verify_placed(pinned("file:a.zip"), tmp_path / "a.zip")


# Progress.


def test_a_log_shows_how_far_a_download_is_and_a_terminal_a_bar(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    url = mirror.serves(part_of(CONTENT, 4000), whole)
    fetch(pinned(url), begin(tmp_path, CONTENT[:3000]))
    log = capsys.readouterr().err
    assert f"{url}: resuming at 3.0 kB\na.zip: 4.0/5.0 kB, " in log
    assert re.search(r"^a.zip: 5\.0/5\.0 kB, .*B/s, 0 s left$", log, re.MULTILINE)
    assert log.endswith(f"{tmp_path}/a.zip: 5.0 kB, sha256 {SHA256}\n")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(pinned(url), begin(tmp_path, CONTENT[:3000]))
    assert re.search(r"a\.zip:  60%\|.*\| 3\.00k/5\.00k", capsys.readouterr().err)


def test_a_mirror_from_which_hardly_anything_arrives_is_given_up(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 60)  # a minute a look
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    urls = [
        mirror.serves(*(part_of(CONTENT, stop) for stop in range(1, 100)), at="/slow/a.zip"),
        mirror.serves(whole, at="/a.zip"),
    ]
    assert fetch(pinned(*urls), tmp_path / "a.zip") == SHA256
    assert 1 < len(mirror.starts("/slow/a.zip")) < 20
    assert mirror.starts("/a.zip")[0] > 0
