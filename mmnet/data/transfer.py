"""Bring what is missing of a file from one mirror, through what networks do to 13 GB."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from time import sleep
from urllib.parse import unquote

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from mmnet.runtime.errors import DataError
from mmnet.runtime.files import check_room
from mmnet.runtime.progress import readable, say, track

CONNECT_TIMEOUT, READ_TIMEOUT = 20.0, 60.0  # seconds without an answer, without a byte
TRIES = 6  # in a row without a new byte; then the next mirror
BACKOFF, MAX_BACKOFF = 1.0, 60.0  # seconds before the first try again, doubled for each next
MAX_RETRY_AFTER = 600.0  # seconds a server may tell us to wait
CHUNK = 1 << 17


def transfer(url: str, part: Path, expected: int | None) -> bool:
    """Complete `part`; return whether all of it came from this mirror, in this call.

    A connection that breaks or stalls is taken up where it was, and what has come stays in `part`
    for the next mirror; a mirror that can only start from zero writes over it.

    Raises:
        DataError: the mirror does not have the file, or has another size of it, or is not to be
            reached.
        MMNetError: the disk has no room for it.
    """
    if url.startswith("file:"):
        _copy(url, part, expected)
        return True
    return _download(url, part, expected)


def file_name(url: str) -> str:
    return unquote(url).rsplit("/", 1)[-1]


def size_of(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _copy(url: str, part: Path, expected: int | None) -> None:
    original = Path(unquote(url.removeprefix("file:")))
    if not (original.is_file() and os.access(original, os.R_OK)):
        raise DataError(f"{url}: not found, or not readable.")
    size = original.stat().st_size
    if expected not in (None, size):
        raise DataError(f"{url}: has {size} bytes, expected {expected}.")
    part.unlink(missing_ok=True)
    check_room(part, size)
    with original.open("rb") as file:
        _write(iter(lambda: file.read(CHUNK), b""), url, part, 0, size)


def _download(url: str, part: Path, expected: int | None) -> bool:
    """Fetch what `part` lacks; return whether all of it came from here, in this call."""
    farthest = size_of(part)
    is_its_own, tries = farthest == 0, 0
    if farthest:
        say(f"{url}: going on from {readable(farthest)}")
    with _session(url) as session:
        while True:
            have = size_of(part)
            if expected is not None and have >= expected:
                return is_its_own
            with _request(session, url, have) as response:
                start, total = _extent(response, url, have, expected)
                if response.status_code == 416:  # no byte more: complete or wrong, `verify` tells
                    return is_its_own
                if start in (0, have):
                    is_its_own = is_its_own or start == 0
                    check_room(part, (total or have) - have)
                    fault = _receive(response, url, part, start, total)
                else:
                    fault = "sends other bytes than those asked for; starting again"
                    part.unlink()
            if fault is None:
                return is_its_own
            tries = 0 if size_of(part) > farthest else tries + 1
            if tries == TRIES:
                raise DataError(f"{url}: {fault}, and no new byte in {TRIES} tries.")
            farthest = max(farthest, size_of(part))
            _pause(url, f"{fault}, at {readable(size_of(part))}", tries)


def _session(url: str) -> requests.Session:
    """Return a session that tries until it has an answer; it does not see to bodies."""

    class Retries(Retry):
        def sleep(self, response: BaseHTTPResponse | None = None) -> None:
            last = self.history[-1]
            told = self.get_retry_after(response) if response else None
            why = _reason(last.error) if last.error else str(last.status)
            _pause(url, why, len(self.history) - 1, told)

    session = requests.Session()
    retries = Retries(
        total=TRIES - 1, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
    )
    session.mount("http://", HTTPAdapter(max_retries=retries))
    session.mount("https://", HTTPAdapter(max_retries=retries))
    session.headers["Accept-Encoding"] = "identity"
    return session


def _pause(url: str, why: str, tries: int, told: float | None = None) -> None:
    seconds = min(told, MAX_RETRY_AFTER) if told else min(BACKOFF * 2**tries, MAX_BACKOFF)
    say(f"{url}: {why}. Going on in {seconds:.0f} s")
    sleep(seconds)


def _request(session: requests.Session, url: str, have: int) -> requests.Response:
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        return session.get(
            url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)
        )
    except requests.RequestException as error:
        raise DataError(f"{url}: {_reason(error)}.") from None


def _extent(
    response: requests.Response, url: str, have: int, expected: int | None
) -> tuple[int, int | None]:
    """Return where the body starts (-1: nowhere) and the whole file's size, where known."""
    if have and response.status_code in (206, 416):
        header = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", header)
        start, whole = (int(found[1] or -1), found[2]) if found else (-1, "")
    elif response.status_code == 200:
        start, whole = 0, response.headers.get("Content-Length", "")
    else:
        raise DataError(f"{url}: {response.status_code} {response.reason}.")
    total = int(whole) if whole.isdigit() else expected
    if expected is not None and total != expected:
        raise DataError(f"{url}: has {total} bytes, expected {expected}.")
    return start, total


def _receive(
    response: requests.Response, url: str, part: Path, start: int, total: int | None
) -> str | None:
    """Write the body; return why it ended early, if it did."""
    # requests' own iter_content loses what it has of a chunk when the connection breaks.
    chunks = iter(lambda: response.raw.read1(CHUNK, decode_content=False) or b"", b"")
    try:
        _write(chunks, url, part, start, total)
    except HTTPError as error:
        return _reason(error)
    return "ended early" if total is not None and size_of(part) < total else None


def _write(chunks: Iterable[bytes], url: str, part: Path, start: int, total: int | None) -> None:
    shown = track(chunks, name=file_name(url), total=total, done=start, unit="B", size=len)
    with part.open("ab" if start else "wb") as file:
        for chunk in shown:
            start += len(chunk)
            if total is not None and start > total:
                part.unlink()
                raise DataError(f"{url}: sends more than {total} bytes.")
            file.write(chunk)
            file.flush()  # what a killed process has stays


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error of requests or urllib3, in one line."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = str(inner if isinstance(error, HTTPError) else error)
    return " ".join(text.split()).rstrip(".")
