"""Download files from their mirrors: resumed where they broke off, accepted by checksum only."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from time import sleep
from urllib.parse import unquote

import requests
from urllib3.exceptions import HTTPError

from mmnet.config.paths import Paths
from mmnet.config.profile import SourceConfig
from mmnet.runtime.errors import DataError, MMNetError
from mmnet.runtime.files import atomic_write, check_room, locked, set_aside, writing
from mmnet.runtime.progress import Pace, duration, readable, say, track

TIMEOUT = (20.0, 60.0)  # seconds without a connection, without a byte
ATTEMPTS = 6  # in a row without a new byte; then the next mirror. Pauses double from 1 s.
BUSY = (429, 500, 502, 503, 504)
CHUNK = 1 << 17
SLOWEST = 1000.0  # bytes a second, over SLOW_FOR seconds; below, the next mirror
SLOW_FOR = 300.0


class _Interrupted(Exception):
    """An attempt that failed and may be repeated."""


def fetch(
    source: SourceConfig, path: Path, *, remedy: str = "fix profiles.*.archives in params.yaml"
) -> str:
    """Place a verified copy of the file at `path`, from the first mirror that has it.

    What has arrived is kept in a dot-file beside `path`; an interrupted download resumes from it,
    in another process and from another mirror too. `remedy` says what else the user can do.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: no mirror has it; the message gives the reason for each.
        MMNetError: the disk is full, or another process is downloading this file.
    """
    part = _part(path)
    faults = []
    with locked(path), writing(path):
        for number, url in enumerate(source.urls, start=1):
            try:
                sha256 = _fetch_from(url, source, part)
            except DataError as error:
                faults.append(str(error))
                if number < len(source.urls):
                    say(f"{error} Next mirror: {source.urls[number]}")
                continue
            with part.open("rb") as whole:
                os.fsync(whole.fileno())
            if path.is_file() and not Paths.fetched(path).exists():
                set_aside(path)  # it was not fetched: it is the user's
            part.replace(path)
            say(f"{path}: {readable(path.stat().st_size)}, sha256 {sha256}")
            return sha256
        if not _size(part):
            part.unlink(missing_ok=True)
    first = "Draw the procedural archives (mmnet shapes), or put" if source.checksums else "Put"
    raise DataError(
        f"{path.name}: no mirror has it: {' | '.join(faults)} | "
        f"{first} the file at {path} yourself, or {remedy}."
    )


def provide(source: SourceConfig, path: Path, *, remedy: str) -> None:
    """Fetch the file unless the right one is at `path`; write its SHA-256 beside it."""
    sha256 = None
    if path.is_file():
        try:
            sha256 = verify_placed(source, path, remedy="Fetching it again.")
            say(f"{path}: there already, sha256 {sha256}")
        except DataError as error:
            say(str(error))
    sha256 = sha256 or fetch(source, path, remedy=remedy)
    with atomic_write(Paths.fetched(path)) as file:
        file.write(f"{sha256}  {path.name}\n")


def check(source: SourceConfig, path: Path, *, remedy: str) -> str:
    """Return a line on the file at `path`.

    Raises:
        DataError: it is the wrong file.
    """
    if path.is_dir():
        return f"{path}: a folder, not verified"
    if not path.exists():
        size = _size(_part(path))
        return f"{path}: missing" + (f"; {readable(size)} of it downloaded" if size else "")
    return f"{path}: correct, sha256 {verify_placed(source, path, remedy=remedy)}"


def must_exist(archive: Path, remedy: str | None = None) -> None:
    if not archive.is_file():
        remedy = remedy or f"Fetch it first: mmnet download {archive.stem}."
        raise DataError(f"{archive}: not found. {remedy}")


def verify_placed(source: SourceConfig, path: Path, *, remedy: str | None = None) -> str:
    """Check the file at its final place, whoever put it there; return its SHA-256.

    Raises:
        DataError: it is missing or the wrong one; the message ends with `remedy`.
    """
    must_exist(path, remedy)
    try:
        return _verify(source, path, name=str(path))
    except DataError as error:
        raise DataError(f"{error} {remedy or 'Delete it, then run again.'}") from None


def _verify(source: SourceConfig, path: Path, *, name: str) -> str:
    """Check size and checksum, calling the file `name` in messages; return the SHA-256."""
    algorithm = "md5" if source.md5 else "sha256"
    expected = source.md5 or source.sha256 or _published(source)
    hashes = {key: hashlib.new(key) for key in (algorithm, "sha256")}
    try:
        size = path.stat().st_size
        _check_size(name, size, source.bytes)
        if size > 1e9:
            say(f"{path}: verifying {readable(size)}")
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                for value in hashes.values():
                    value.update(chunk)
    except OSError as error:
        raise MMNetError(
            f"{name}: cannot be read: {error.strerror}. Fix its permissions, then run again."
        ) from None
    if (found := hashes[algorithm].hexdigest()) != expected:
        raise DataError(f"{name}: {algorithm} is {found}, expected {expected}.")
    return hashes["sha256"].hexdigest()


def _published(source: SourceConfig) -> str:
    """Return the SHA-256 in the SHA256SUMS of a local mirror."""
    sums, name = Path(source.checksums or ""), _file_name(source.urls[0])
    try:
        text = sums.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{sums}: cannot be read ({error}).") from None
    found = re.search(rf"^([0-9a-f]{{64}}) [ *]{re.escape(name)}$", text, re.MULTILINE)
    if found is None:
        raise DataError(f"{sums}: has no line for {name}. Make the mirror again.")
    return found[1]


def _check_size(name: str, size: int | None, expected: int | None) -> None:
    if expected not in (None, size):
        raise DataError(f"{name}: has {size} bytes, expected {expected}.")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _file_name(url: str) -> str:
    return unquote(url).rsplit("/", 1)[-1]


def _fetch_from(url: str, source: SourceConfig, part: Path) -> str:
    """Complete `part` from this mirror and verify it; a wrong one is deleted."""
    if is_local := url.startswith("file:"):
        part.unlink(missing_ok=True)
    if begun := _size(part):
        say(f"{url}: resuming at {readable(begun)}")
    if is_local:
        _copy(url, part, source.bytes)
    else:
        assert source.bytes is not None  # of http(s) addresses
        _download(url, part, source.bytes)
    try:
        return _verify(source, part, name=url)
    except DataError as error:
        part.unlink()
        if not begun:
            raise
        say(f"{error} Its beginning came from elsewhere: downloading all of it from here.")
    return _fetch_from(url, source, part)


def _copy(url: str, part: Path, expected: int | None) -> None:
    original = Path(unquote(url.removeprefix("file:")))
    if not (original.is_file() and os.access(original, os.R_OK)):
        raise DataError(f"{url}: not found, or not readable.")
    size = original.stat().st_size
    _check_size(url, size, expected)
    with original.open("rb") as file:
        _write(iter(lambda: file.read(CHUNK), b""), url, part, 0, size)


def _download(url: str, part: Path, size: int) -> None:
    """Download what `part` lacks, until ATTEMPTS in a row bring no new byte."""
    largest, failed, pace = _size(part), 0, Pace(SLOWEST, SLOW_FOR)
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"
        while (have := _size(part)) < size:
            headers = {"Range": f"bytes={have}-"} if have else {}
            try:
                with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                    _receive(response, url, part, size, pace)
                fault = "ended early"
            except (_Interrupted, HTTPError, requests.ConnectionError, requests.Timeout) as error:
                fault = _reason(error)
            except requests.RequestException as error:
                raise DataError(f"{url}: {_reason(error)}.") from None
            except OSError as error:  # of a certificate bundle that a variable of the shell names
                if error.errno is not None:
                    raise
                raise DataError(
                    f"{url}: {_reason(error)}. Unset REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE."
                ) from None
            if (now := _size(part)) == size:
                return
            failed = 0 if now > largest else failed + 1
            if failed == ATTEMPTS:
                raise DataError(f"{url}: {fault}; no new byte in {ATTEMPTS} attempts.")
            largest, pause = max(largest, now), 2 ** max(failed - 1, 0)
            say(f"{url}: {fault}, at {readable(now)}. Trying again in {pause} s")
            sleep(pause)


def _receive(response: requests.Response, url: str, part: Path, size: int, pace: Pace) -> None:
    """Write the body to `part`, from zero where the server ignores Range.

    Raises:
        DataError: the mirror does not have the file, or has one of another size.
        _Interrupted: the server is busy, or sends another part than requested.
    """
    have, status = _size(part), response.status_code
    if status in BUSY:
        raise _Interrupted(f"{status} {response.reason}")
    if status not in ((200, 206) if have else (200,)):
        raise DataError(f"{url}: {status} {response.reason}.")
    extent = response.headers.get("Content-Range", "")
    found = extent.rpartition("/")[2] if status == 206 else response.headers.get("Content-Length")
    _check_size(url, int(found) if found and found.isdigit() else size, size)
    if status == 206 and not extent.startswith(f"bytes {have}-"):
        part.unlink()
        raise _Interrupted("sent other bytes than requested; starting from zero")
    # requests' iter_content drops what it has of a chunk when the connection breaks.
    chunks = iter(lambda: response.raw.read1(CHUNK, decode_content=False) or b"", b"")
    _write(chunks, url, part, have if status == 206 else 0, size, pace)


def _write(
    chunks: Iterable[bytes], url: str, part: Path, start: int, size: int, pace: Pace | None = None
) -> None:
    check_room(part, size - _size(part))
    shown = track(chunks, name=_file_name(url), total=size, done=start, unit="B", size=len)
    with part.open("ab" if start else "wb") as file:
        for chunk in shown:
            start += len(chunk)
            if start > size:
                part.unlink()
                raise DataError(f"{url}: sends more than {size} bytes.")
            file.write(chunk)
            file.flush()  # what a killed process has received is kept
            if pace and pace.is_too_slow(start):
                raise DataError(f"{url}: under {readable(SLOWEST)}/s for {duration(SLOW_FOR)}.")


def _reason(error: BaseException) -> str:
    """Return the innermost cause of an error of requests or urllib3, in one line."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = str(inner if isinstance(error, HTTPError) else error)
    return " ".join(text.split()).rstrip(".")
