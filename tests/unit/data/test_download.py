"""Fetching: whatever mirrors and networks do, the true file lands in its place, or none does."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mmnet.cli.parser import main
from mmnet.config.schema import SourceConfig
from mmnet.data import download, transfer
from mmnet.data.download import fetch, provide, verify_placed
from mmnet.runtime import progress
from mmnet.runtime.errors import DataError, MMNetError
from support.tiny import ROOT

CONTENT = random.Random(0).randbytes(5000)
OTHER = CONTENT[::-1]
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Request(BaseHTTPRequestHandler):
    """Answers as the script of its path says, one line of it a request, the last for good."""

    protocol_version = "HTTP/1.1"
    server: "Mirror"

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        assert self.headers["Accept-Encoding"] == "identity"
        self.server.asked.append((self.path, self.start))
        script = self.server.scripts[self.path]
        answer = script.pop(0) if len(script) > 1 else script[0]
        with contextlib.suppress(ConnectionError):  # the client had enough
            answer(self)

    def head(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


class Mirror(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.scripts: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, int]] = []

    def serves(self, *script: "Answer", at: str = "/a.zip") -> str:
        self.scripts[at] = list(script)
        return f"http://127.0.0.1:{self.server_port}{at}"

    def starts(self, path: str = "/a.zip") -> list[int]:
        """Where the requests for a path began."""
        return [start for asked, start in self.asked if asked == path]


Answer = Callable[[Request], None]


def part_of(content: bytes, stop: int | None = None) -> Answer:
    """Serve from where one is asked to; hang up at `stop`."""

    def answer(request: Request) -> None:
        body, size = content[request.start :], len(content)
        if request.start:
            extent = f"bytes {request.start}-{size - 1}/{size}"
            request.head(206, Content_Length=len(body), Content_Range=extent)
        else:
            request.head(200, Content_Length=len(body))
        request.wfile.write(content[request.start : stop])
        request.close_connection = stop is not None

    return answer


def stalling(stop: int) -> Answer:
    def answer(request: Request) -> None:
        part_of(CONTENT, stop)(request)
        request.connection.recv(1)  # until the other side hangs up

    return answer


def ignoring_range(stop: int | None = None) -> Answer:
    def answer(request: Request) -> None:
        request.start = 0
        part_of(CONTENT, stop)(request)

    return answer


def claiming(extent: str) -> Answer:
    """Serve something else than what was asked for, as `Content-Range` says."""

    def answer(request: Request) -> None:
        request.head(206, Content_Length=1000, Content_Range=extent)
        request.wfile.write(OTHER[:1000])

    return answer


def without_length(content: bytes) -> Answer:
    def answer(request: Request) -> None:
        request.head(200, Connection="close")
        request.wfile.write(content)

    return answer


def status(code: int, **headers: Any) -> Answer:
    return lambda request: request.head(code, Content_Length=0, **headers)


whole = part_of(CONTENT)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited before trying again; nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr(transfer, "sleep", waited.append)
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.2)
    return waited


def pinned(*urls: str) -> SourceConfig:
    return SourceConfig(urls=list(urls), bytes=len(CONTENT), sha256=SHA256)


def unsized(*urls: str) -> SourceConfig:
    return SourceConfig(urls=list(urls), sha256=SHA256)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def begin(folder: Path, content: bytes) -> Path:
    """Leave what an earlier process had of a.zip; return where a.zip belongs."""
    (folder / ".a.zip.part").write_bytes(content)
    return folder / "a.zip"


def assert_fetched(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [path.name]


# What goes well.


def test_a_file_is_fetched_over_http_and_from_a_file(mirror: Mirror, tmp_path: Path) -> None:
    original = tmp_path / "with a space.zip"
    original.write_bytes(CONTENT)
    urls = mirror.serves(whole), f"file:{original}", f"file:{tmp_path}/with%20a%20space.zip"
    for url in urls:
        fetch(pinned(url), tmp_path / "new" / "a.zip")
        assert_fetched(tmp_path / "new" / "a.zip")
        (tmp_path / "new" / "a.zip").unlink()
    assert original.read_bytes() == CONTENT


def test_its_sha256_is_said(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(pinned(mirror.serves(whole)), tmp_path / "a.zip")
    assert capsys.readouterr().err.endswith(f"{tmp_path}/a.zip: 5.0 kB, sha256 {SHA256}\n")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_it_is_on_the_disk_before_it_has_its_name_and_as_readable_as_the_umask_says(
    umask: int, mode: int, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a.zip", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(path.exists()), real(file)))
    before = os.umask(umask)
    try:
        fetch(pinned(mirror.serves(whole)), path)
    finally:
        os.umask(before)
    assert synced == [False]
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_redirected_mirror_serves(mirror: Mirror, tmp_path: Path) -> None:
    target = mirror.serves(part_of(CONTENT, 2000), whole)
    moved = mirror.serves(status(302, Location=target), at="/moved")
    fetch(pinned(moved), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts() == [0, 2000]


# Connections that break.


def test_a_dropped_connection_is_taken_up_where_it_was(
    mirror: Mirror, tmp_path: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    stops = [500 * number for number in range(1, 10)]  # more than TRIES: each brings something
    url = mirror.serves(*(part_of(CONTENT, stop) for stop in stops), whole)
    fetch(pinned(url), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts() == [0, *stops]
    assert waits == [1.0] * 9
    said = capsys.readouterr().err
    fault = "Connection broken: IncompleteRead(500 bytes read, 4000 more expected), at 1.0 kB"
    assert f"{url}: {fault}. Going on in 1 s\n" in said


def test_a_stalled_connection_is_taken_up_where_it_was(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(unsized(mirror.serves(stalling(2000), whole)), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts() == [0, 2000]
    assert "Read timed out, at 2.0 kB. Going on in 1 s\n" in capsys.readouterr().err


def test_a_body_that_just_ends_was_dropped(mirror: Mirror, tmp_path: Path) -> None:
    fetch(pinned(mirror.serves(without_length(CONTENT[:3000]), whole)), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts() == [0, 3000]


def test_a_mirror_that_brings_nothing_new_is_given_up_and_the_next_goes_on_from_there(
    mirror: Mirror, tmp_path: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    first = mirror.serves(part_of(CONTENT, 2000), at="/first")
    second = mirror.serves(whole, at="/second")
    fetch(pinned(first, second), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts("/first") == [0] + [2000] * transfer.TRIES
    assert mirror.starts("/second") == [2000]
    assert waits == [1, 2, 4, 8, 16, 32]
    said = capsys.readouterr().err
    assert f"no new byte in {transfer.TRIES} tries. Next mirror: {second}\n" in said


def test_a_mirror_that_always_begins_anew_and_breaks_is_given_up(
    mirror: Mirror, tmp_path: Path
) -> None:
    # Each second try is longer than the one before it, none longer than the first.
    url = mirror.serves(*map(ignoring_range, [3000, *[1000, 2000] * 20]))
    with pytest.raises(DataError, match="no new byte in 6 tries"):
        fetch(pinned(url), tmp_path / "a.zip")
    assert len(mirror.starts()) == 1 + transfer.TRIES


def test_a_busy_server_is_asked_again_when_it_says(
    mirror: Mirror, tmp_path: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    url = mirror.serves(status(503, Retry_After=7), status(500), status(429), whole)
    fetch(pinned(url), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert waits == [7, 2, 4]
    assert f"{url}: 503. Going on in 7 s\n" in capsys.readouterr().err


def test_a_server_that_stays_busy_is_given_up(
    mirror: Mirror, tmp_path: Path, waits: list[float]
) -> None:
    busy = mirror.serves(status(503, Retry_After=10**6), at="/busy")
    fetch(pinned(busy, mirror.serves(whole)), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts("/busy") == [0] * transfer.TRIES
    assert max(waits) == transfer.MAX_RETRY_AFTER


def test_a_server_that_cannot_be_reached_is_tried_again_then_given_up(
    mirror: Mirror, tmp_path: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody listens at port 9 of this machine.
    fetch(pinned("http://127.0.0.1:9/a.zip", mirror.serves(whole)), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert waits == [1, 2, 4, 8, 16]
    assert capsys.readouterr().err.count("Connection refused. Going on in ") == 5


# Mirrors that do not have it.


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_mirror_without_the_file_is_asked_once(
    code: int, mirror: Mirror, tmp_path: Path, waits: list[float]
) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    missing = mirror.serves(status(code), at="/missing")
    fetch(pinned(missing, mirror.serves(whole)), path)
    assert_fetched(path)
    assert mirror.asked == [("/missing", 3000), ("/a.zip", 3000)]
    assert waits == []


@pytest.mark.parametrize("source", [pinned, unsized])
def test_a_wrong_file_is_fetched_once(
    source: Callable[..., SourceConfig], mirror: Mirror, tmp_path: Path
) -> None:
    wrong = mirror.serves(part_of(OTHER), at="/wrong")
    fetch(source(wrong, mirror.serves(whole)), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.asked == [("/wrong", 0), ("/a.zip", 0)]


def test_a_file_of_another_size_is_refused_before_its_first_byte(
    mirror: Mirror, tmp_path: Path
) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    url = mirror.serves(part_of(CONTENT + b"more"))
    with pytest.raises(DataError, match=r"a\.zip: has 5004 bytes, expected 5000"):
        fetch(pinned(url), path)
    assert names(tmp_path) == [".a.zip.part"]  # which may yet serve with another mirror
    assert path.with_name(".a.zip.part").read_bytes() == CONTENT[:3000]


def test_a_body_without_end_does_not_fill_the_disk(mirror: Mirror, tmp_path: Path) -> None:
    def endless(request: Request) -> None:
        request.head(200, Transfer_Encoding="chunked")
        while True:
            request.wfile.write(b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT))

    with pytest.raises(DataError, match="sends more than 5000 bytes"):
        fetch(pinned(mirror.serves(endless)), tmp_path / "a.zip")
    assert names(tmp_path) == []
    assert mirror.starts() == [0]


def test_no_true_mirror_is_one_line_that_names_each_and_the_cure(
    mirror: Mirror, tmp_path: Path
) -> None:
    urls = [
        mirror.serves(status(404), at="/missing"),
        mirror.serves(part_of(OTHER), at="/wrong"),
        "http://127.0.0.1:9/a.zip",
        f"file:{tmp_path}/none.zip",
    ]
    with pytest.raises(DataError) as caught:
        fetch(pinned(*urls), tmp_path / "a.zip", cure="set profiles.paper.x to your copy")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("a.zip: no mirror has it: ")
    for url in urls:
        assert url in line
    assert "missing: 404 Not Found." in line
    wrong = hashlib.sha256(OTHER).hexdigest()
    assert f"wrong: sha256 is {wrong}, expected {SHA256}." in line
    put = f"Put the file at {tmp_path}/a.zip yourself, or set profiles.paper.x to your copy."
    assert line.endswith(f"none.zip: not found, or not readable. | {put}")
    assert names(tmp_path) == []


# What an earlier process left.


def test_a_part_of_an_earlier_process_is_gone_on_with(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    path = begin(tmp_path, CONTENT[:3000])
    url = mirror.serves(part_of(CONTENT, 4000), whole)
    fetch(pinned(url), path)
    assert_fetched(path)
    assert mirror.starts() == [3000, 4000]
    said = capsys.readouterr().err
    assert said.startswith(f"{url}: going on from 3.0 kB\na.zip: 4.0/5.0 kB, ")
    assert re.search(r"^a.zip: 5\.0/5\.0 kB, .*B/s, 0 s left$", said, re.MULTILINE)


def test_a_whole_part_needs_no_request(mirror: Mirror, tmp_path: Path) -> None:
    path = begin(tmp_path, CONTENT)
    fetch(pinned(mirror.serves(whole)), path)
    assert_fetched(path)
    assert mirror.asked == []


@pytest.mark.parametrize("wrong", [OTHER[:3000], OTHER, CONTENT + b"more"])
@pytest.mark.parametrize("source", [pinned, unsized])
def test_a_part_of_other_bytes_is_thrown_away_and_the_mirror_asked_from_the_start(
    wrong: bytes, source: Callable[..., SourceConfig], mirror: Mirror, tmp_path: Path
) -> None:
    path = begin(tmp_path, wrong)

    def answer(request: Request) -> None:
        too_far = request.start >= len(CONTENT)
        (status(416, Content_Range="bytes */5000") if too_far else whole)(request)

    fetch(source(mirror.serves(answer)), path)
    assert_fetched(path)
    asked_first = [] if source is pinned and len(wrong) >= 5000 else [len(wrong)]
    assert mirror.starts() == [*asked_first, 0]


def test_after_a_mirror_of_other_bytes_the_next_is_asked_from_the_start(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = mirror.serves(part_of(OTHER, 2000), status(404), at="/other")
    fetch(pinned(other, mirror.serves(whole)), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.asked == [("/other", 0), ("/other", 2000), ("/a.zip", 2000), ("/a.zip", 0)]
    assert "Part of that came from elsewhere: fetched once more, from" in capsys.readouterr().err


def test_a_wrong_mirror_is_asked_from_the_start_once_only(mirror: Mirror, tmp_path: Path) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    with pytest.raises(DataError, match="sha256 is"):
        fetch(pinned(mirror.serves(part_of(OTHER))), path)
    assert mirror.starts() == [3000, 0]
    assert names(tmp_path) == []


def test_a_server_that_ignores_range_serves_from_the_start(mirror: Mirror, tmp_path: Path) -> None:
    path = begin(tmp_path, OTHER[:3000])
    fetch(pinned(mirror.serves(ignoring_range())), path)
    assert_fetched(path)
    assert mirror.starts() == [3000]


def test_a_wrong_file_that_such_a_server_sends_is_not_fetched_again(
    mirror: Mirror, tmp_path: Path
) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    stubborn = mirror.serves(without_length(OTHER), at="/stubborn")
    fetch(pinned(stubborn, mirror.serves(whole)), path)
    assert_fetched(path)
    assert mirror.asked == [("/stubborn", 3000), ("/a.zip", 0)]


@pytest.mark.parametrize("extent", ["bytes 2000-2999/5000", "bytes 9-", "", "bytes */5000"])
def test_bytes_from_another_place_than_asked_for_are_not_believed(
    extent: str, mirror: Mirror, tmp_path: Path
) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    fetch(pinned(mirror.serves(claiming(extent), whole)), path)
    assert_fetched(path)
    assert mirror.starts() == [3000, 0]


def test_416_to_a_whole_part_of_unknown_size_is_its_end(mirror: Mirror, tmp_path: Path) -> None:
    path = begin(tmp_path, CONTENT)
    fetch(unsized(mirror.serves(status(416))), path)
    assert_fetched(path)
    assert mirror.starts() == [5000]


def test_416_of_a_shorter_file_leaves_the_part_to_the_next_mirror(
    mirror: Mirror, tmp_path: Path
) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    short = mirror.serves(status(416, Content_Range="bytes */2000"), at="/short")
    fetch(pinned(short, mirror.serves(whole)), path)
    assert_fetched(path)
    assert mirror.asked == [("/short", 3000), ("/a.zip", 3000)]


FETCH = """
import sys
from pathlib import Path
from mmnet.config.schema import SourceConfig
from mmnet.data.download import fetch
fetch(SourceConfig(urls=[sys.argv[1]], sha256=sys.argv[2]), Path(sys.argv[3]))
"""


@contextlib.contextmanager
def fetching_elsewhere(url: str, path: Path, *, until: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that fetches, and has come as far as its mirror lets it."""
    with subprocess.Popen([sys.executable, "-c", FETCH, url, SHA256, path]) as other:
        try:
            part = path.with_name(f".{path.name}.part")
            deadline = time.monotonic() + 30
            while not (part.exists() and part.stat().st_size == until):
                assert other.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield other
        finally:
            other.kill()


def test_what_a_killed_process_had_is_gone_on_with(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serves(stalling(2000), whole)
    with fetching_elsewhere(url, tmp_path / "a.zip", until=2000) as other:
        other.send_signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL
    assert not (tmp_path / "a.zip").exists()
    fetch(unsized(url), tmp_path / "a.zip")
    assert_fetched(tmp_path / "a.zip")
    assert mirror.starts() == [0, 2000]


def test_a_second_process_is_refused_the_same_file_only(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serves(stalling(2000), whole)
    with fetching_elsewhere(url, tmp_path / "a.zip", until=2000):
        with pytest.raises(MMNetError, match=r"a\.zip: another process is at work here\. Wait"):
            fetch(unsized(url), tmp_path / "a.zip")
        fetch(unsized(url), tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == CONTENT


def test_interruption_leaves_the_part_and_no_lock(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(pinned(mirror.serves(part_of(CONTENT, 2000))), tmp_path / "a.zip")
    assert names(tmp_path) == [".a.zip.part"]


# Disks.


@pytest.mark.parametrize("source", [pinned, unsized])
def test_room_for_what_is_left_to_come_is_enough(
    source: Callable[..., SourceConfig],
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = begin(tmp_path, CONTENT[:3000])
    free = 1999
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    needs = f"needs 2.0 kB, and {tmp_path} has 2.0 kB free. Free some space, then run again."
    with pytest.raises(MMNetError, match=re.escape(needs)):
        fetch(source(mirror.serves(whole)), path)
    assert path.with_name(".a.zip.part").read_bytes() == CONTENT[:3000]
    free = 2000
    fetch(source(mirror.serves(whole)), path)
    assert_fetched(path)


def test_a_copy_needs_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.zip").write_bytes(CONTENT)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4999))
    with pytest.raises(MMNetError, match=r"needs 5\.0 kB"):
        fetch(pinned(f"file:{tmp_path}/b.zip"), tmp_path / "a.zip")
    assert names(tmp_path) == ["b.zip"]


# Checksums.


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        (f"{SHA256}  b.zip\n", "SHA256SUMS: has no line for a.zip"),
        ("", "SHA256SUMS: has no line for a.zip"),
        (f"{'0' * 64}  a.zip\n", f"sha256 is {SHA256}, expected {'0' * 64}"),
        (None, "SHA256SUMS: cannot be read"),
    ],
)
def test_a_mirror_whose_own_checksums_do_not_vouch_is_refused(
    sums: str | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)
    if sums is not None:
        (tmp_path / "SHA256SUMS").write_text(sums)
    archive = SourceConfig(urls=[f"file:{tmp_path}/a.zip"], checksums=f"{tmp_path}/SHA256SUMS")
    cure = r"Draw the procedural archives first \(mmnet shapes\), or put the file at .* yourself"
    with pytest.raises(DataError, match=cure) as caught:
        fetch(archive, tmp_path / "new" / "a.zip")
    assert reason in str(caught.value)
    assert names(tmp_path / "new") == []


def test_checksums_beside_a_mirror_vouch_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "a+.zip").write_bytes(CONTENT)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a.zip\n{SHA256}  a+.zip\n")
    archive = SourceConfig(urls=[f"file:{tmp_path}/a+.zip"], checksums=f"{tmp_path}/SHA256SUMS")
    fetch(archive, tmp_path / "new.zip")
    assert (tmp_path / "new.zip").read_bytes() == CONTENT
    assert verify_placed(archive, tmp_path / "new.zip") == SHA256


def test_the_sha256_is_recorded_and_where_an_md5_is_pinned_believed_later(
    mirror: Mirror, tmp_path: Path
) -> None:
    source = SourceConfig(urls=[mirror.serves(whole)], md5=MD5)
    path, record = tmp_path / "a.zip", tmp_path / "a.zip.sha256"
    record.write_text(f"{'0' * 64}  a.zip\n")  # of a file that is no more
    provide(source, path, cure="")
    assert names(tmp_path) == ["a.zip", "a.zip.sha256"]
    assert record.read_text() == f"{SHA256}  a.zip\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", record], cwd=tmp_path, check=True)
    assert verify_placed(source, path) == SHA256
    record.write_text(f"{'0' * 64} *a.zip\n")
    with pytest.raises(DataError, match=f"sha256 is {SHA256}, a.zip.sha256 has 000000"):
        verify_placed(source, path)
    record.write_text("of other files\n")
    assert verify_placed(source, path) == SHA256


@pytest.mark.parametrize(
    ("cure", "advice"),
    [(None, "Delete it, then run again."), ("Mend params.yaml.", "Mend params.yaml.")],
)
def test_the_advice_on_a_wrong_file_is_the_callers(
    cure: str | None, advice: str, tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(OTHER)
    with pytest.raises(DataError) as caught:
        verify_placed(unsized("file:a.zip"), tmp_path / "a.zip", cure=cure)
    assert str(caught.value).startswith(f"{tmp_path}/a.zip: sha256 is ")
    assert str(caught.value).endswith(f", expected {SHA256}. {advice}")


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)

    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MMNetError, match=r"a\.zip: cannot be read: Permission denied\. Mend"):
        verify_placed(unsized("file:a.zip"), tmp_path / "a.zip")


def test_verifying_a_large_file_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)
    for limit, shown in ((5000, False), (4999, True)):
        monkeypatch.setattr(download, "LONG", limit)
        verify_placed(unsized("file:a.zip"), tmp_path / "a.zip")
        assert ("verifying a.zip: 5.0/5.0 kB, " in capsys.readouterr().err) == shown


# What is shown meanwhile.


def test_a_log_says_amount_speed_and_time_left_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0, 5, 11, 19, 22])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    chunks = [50 * 10**6] * 4
    total, done = 13_510_573_713, 10**9
    seen = progress.track(
        chunks, name="train2014.zip", total=total, done=done, unit="B", size=lambda size: size
    )
    assert list(seen) == chunks
    assert capsys.readouterr().err.splitlines() == [
        "train2014.zip: 1.1/13.5 GB, 9.1 MB/s, 1365 s left",
        "train2014.zip: 1.2/13.5 GB, 9.1 MB/s, 1354 s left",
    ]


@pytest.mark.parametrize(
    ("unit", "total", "line"),
    [("B", None, "x: 4.0 kB, 4.0 kB/s"), ("images", 8, "x: 4/8, 4.0 images/s, 1 s left loss 2")],
)
def test_a_log_says_what_it_knows(
    unit: str,
    total: int | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = iter([0, 1])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(progress, "LINE_EVERY", 1)
    size, state = (4000, "") if unit == "B" else (4, "loss 2")
    items = progress.track(
        [None], name="x", total=total, unit=unit, size=lambda item: size, state=lambda: state
    )
    assert list(items) == [None]
    assert capsys.readouterr().err == f"{line}\n"


def test_a_terminal_has_a_bar_that_starts_where_the_part_ends(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    path = begin(tmp_path, CONTENT[:3000])
    fetch(pinned(mirror.serves(whole)), path)
    assert re.search(r"a\.zip:  60%\|.*\| 3\.00k/5\.00k", capsys.readouterr().err)


# Commands.


@pytest.fixture
def project(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose params.yaml names our mirror, and a tower of OpenAI's."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    mini = params["profiles"]["mini"]
    for name in mini["archives"]:
        url = mirror.serves(whole, at=f"/{name}.zip")
        mini["archives"][name] = {"urls": [url], "bytes": len(CONTENT), "sha256": SHA256}
    mini["towers"]["vit_b"]["pretrained"] = "openai"
    url = mirror.serves(whole, at="/ViT-B-16.pt")
    # The second tower's file is one that we made: nothing to fetch or to verify it by.
    mini["weights"] = {name: {"urls": [url], "sha256": SHA256} for name in ("vit_b", "vit_l")}
    mini["data"] = {"train2014": None}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


NO_COPY = ["refcoco", "refcoco+", "refcocog"]
COPY = ["--set", "profiles.mini.data.train2014=mine"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = main(list(arguments))
    output, error = capsys.readouterr()
    return code, output.splitlines(), error


def test_download_fetches_all_but_local_copies_and_the_second_time_nothing(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine").write_bytes(CONTENT)
    code, output, error = run(capsys, "download", *COPY)
    assert (code, output) == (0, [])
    assert mirror.asked == [(f"/{name}.zip", 0) for name in NO_COPY]
    zips = [f"{name}.zip" for name in NO_COPY]
    assert names(project / "data/mini/archives") == sorted(
        [*zips, *(f"{name}.sha256" for name in zips)]
    )
    skipped = "train2014: not fetched, since profiles.mini.data.train2014 names your copy, mine\n"
    assert skipped in error
    code, _, error = run(capsys, "download", *COPY)
    assert code == 0
    assert f"data/mini/archives/refcocog.zip: there already, sha256 {SHA256}\n" in error
    assert len(mirror.asked) == len(NO_COPY)


def test_download_fetches_what_is_named_and_fetches_a_wrong_one_again(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("data/mini/archives/refcoco+.zip")
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    code, _, error = run(capsys, "download", "refcoco+")
    assert code == 0
    assert path.read_bytes() == CONTENT
    assert f"expected {SHA256}. Fetching it again.\n" in error
    assert mirror.asked == [("/refcoco+.zip", 0)]


@pytest.mark.parametrize(
    ("command", "file", "place", "cure"),
    [
        (
            ["download", "refcoco"],
            "/refcoco.zip",
            "data/mini/archives/refcoco.zip",
            "name your copy in profiles.mini.data.refcoco in params.yaml.",
        ),
        (
            ["download-clip", "vit_b"],
            "/ViT-B-16.pt",
            "clip/mini/vit_b.pt",
            "set profiles.mini.towers.vit_b.pretrained in params.yaml to the path of your file.",
        ),
    ],
)
def test_what_no_mirror_has_may_be_put_in_place_or_named(
    command: list[str],
    file: str,
    place: str,
    cure: str,
    project: Path,
    mirror: Mirror,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirror.serves(status(404), at=file)
    code, _, error = run(capsys, *command)
    assert code == 1
    assert error.endswith(f"404 Not Found. | Put the file at {place} yourself, or {cure}\n")
    Path(place).write_bytes(CONTENT)
    assert run(capsys, *command)[0] == 0


def test_download_clip_fetches_once(project: Path, mirror: Mirror, capsys: Any) -> None:
    assert run(capsys, "download-clip", "vit_b")[0] == 0
    assert Path("clip/mini/vit_b.pt").read_bytes() == CONTENT
    code, _, error = run(capsys, "download-clip", "vit_b")
    assert (code, error) == (0, f"clip/mini/vit_b.pt: there already, sha256 {SHA256}\n")
    assert mirror.asked == [("/ViT-B-16.pt", 0)]


def test_check_says_of_each_file_what_it_is_and_fetches_nothing(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = Path("data/mini/archives")
    for path in (archives / "refcoco.zip", Path("clip/mini/vit_b.pt"), Path("clip/mini/vit_l.pt")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(OTHER if "vit_l" in path.name else CONTENT)
    (project / "mine").mkdir()
    right = [
        f"{archives}/refcoco.zip: right, sha256 {SHA256}",
        f"{archives}/refcoco+.zip: not there",
        f"{archives}/refcocog.zip: not there",
        "mine: there; a folder, which nothing can verify",
        f"clip/mini/vit_b.pt: right, sha256 {SHA256}",
    ]
    assert run(capsys, "download", "--check", *COPY) == (0, right, "")
    assert run(capsys, "download", "--check", "refcoco+") == (0, right[1:2], "")
    assert mirror.asked == []


def test_check_fails_on_wrong_files_after_it_has_named_them_all(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (Path("data/mini/archives/refcoco.zip"), Path("clip/mini/vit_b.pt"), Path("mine")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(OTHER)
    copies = [*COPY, "--set", "profiles.mini.data.refcocog=nowhere"]
    code, output, error = run(capsys, "download", "--check", *copies)
    assert code == 1
    is_wrong = f"sha256 is {hashlib.sha256(OTHER).hexdigest()}, expected {SHA256}."
    assert output == [
        f"data/mini/archives/refcoco.zip: {is_wrong} Fetch it again: mmnet download refcoco.",
        "data/mini/archives/refcoco+.zip: not there",
        "params.yaml: profiles.mini.data.refcocog: nowhere: No such file or directory. Name the "
        "zip or the folder it unpacks to, or null.",
        f"mine: {is_wrong} Mend it, or profiles.mini.data.train2014 in params.yaml.",
        f"clip/mini/vit_b.pt: {is_wrong} Fetch it again: mmnet download-clip vit_b.",
    ]
    assert error == "mmnet: 4 of 5 wrong; their lines say how to mend them.\n"
    assert Path("mine").read_bytes() == OTHER
    assert mirror.asked == []
