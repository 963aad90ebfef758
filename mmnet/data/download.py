"""Fetch a file from its mirrors, and believe its checksum only."""

import os
import shutil
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import requests

from mmnet.config import SourceConfig
from mmnet.errors import DataError
from mmnet.files import atomic_path, checksum

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20


def fetch(archive: SourceConfig, path: Path) -> None:
    """Place a verified copy of the archive at `path`, from the first mirror that has it.

    Raises:
        DataError: no mirror has it; the line says what was wrong with each.
    """
    faults = []
    for url in archive.urls:
        try:
            with atomic_path(path) as temporary:
                with temporary.open("wb") as file:
                    _copy(url, file)
                verify(archive, temporary, name=url)
        except DataError as error:
            faults.append(str(error))
        else:
            return
    draw = "Draw the procedural archives first (mmnet shapes), or mend "
    raise DataError(
        f"{path.name}: no mirror has it: {' | '.join(faults)} | "
        f"{draw if archive.checksums else 'Mend '}profiles.*.archives in params.yaml, or put the "
        f"file at {path} yourself."
    )


def verify(archive: SourceConfig, path: Path, *, name: str) -> None:
    """Check size and checksum.

    Raises:
        DataError: they differ; `name` says of what.
    """
    size = path.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        raise DataError(f"{name}: has {size} bytes, expected {archive.bytes}.")
    algorithm = "md5" if archive.md5 else "sha256"
    expected = archive.md5 or archive.sha256 or _published(archive, name)
    found = checksum(path, algorithm)
    if found != expected:
        raise DataError(f"{name}: {algorithm} is {found}, expected {expected}.")


def verify_placed(archive: SourceConfig, path: Path) -> None:
    """Check an archive that lies in its place, whoever put it there.

    Raises:
        DataError: it is missing or not the right one.
    """
    must_exist(path)
    try:
        verify(archive, path, name=str(path))
    except DataError as error:
        raise DataError(f"{error} Delete it, then run again.") from None


def must_exist(archive: Path) -> None:
    if not archive.is_file():
        raise DataError(f"{archive}: not found. Fetch it first: mmnet download {archive.stem}.")


def _copy(url: str, file: IO[bytes]) -> None:
    if url.startswith("file:"):
        path = Path(unquote(url.removeprefix("file:")))
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise DataError(f"{url}: not found, or not readable.")
        with path.open("rb") as source:
            shutil.copyfileobj(source, file, CHUNK)
        return
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            if not response.ok:
                raise DataError(f"{url}: {response.status_code} {response.reason}.")
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
    except requests.RequestException as error:
        raise DataError(f"{url}: {' '.join(str(error).split())}.") from None


def _published(archive: SourceConfig, name: str) -> str:
    sums = Path(archive.checksums or "")
    wanted = unquote(name).rsplit("/", 1)[-1]
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{sums}: cannot be read ({error}).") from None
    for line in lines:
        digest, _, file = line.partition("  ")
        if file == wanted:
            return digest
    raise DataError(f"{sums}: has no line for {wanted}. Make the mirror again.")
