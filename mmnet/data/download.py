"""Fetch an archive, believe its checksum only, and unpack it without leaving its folder."""

import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote

import requests

from mmnet.config import ArchiveConfig
from mmnet.errors import DataError, MMNetError
from mmnet.files import atomic_path, checksum, writing

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20


def fetch(archive: ArchiveConfig, path: Path) -> None:
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


def verify(archive: ArchiveConfig, path: Path, *, name: str) -> None:
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


def verify_placed(archive: ArchiveConfig, path: Path) -> None:
    """Check an archive that lies in its place, whoever put it there.

    Raises:
        DataError: it is missing or not the right one.
    """
    _must_exist(path)
    try:
        verify(archive, path, name=str(path))
    except DataError as error:
        raise DataError(f"{error} Delete it, then run again.") from None


def unpack(archive: Path, folder: Path, *, members: Callable[[str], bool], max_bytes: int) -> int:
    """Unpack the wanted files into `folder`, flat, and return how many there were.

    The folder appears whole or not at all.

    Raises:
        DataError: not a zip, damaged, a wanted member leads out of the folder or is a link, or
            more than `max_bytes` would be written.
    """
    _must_exist(archive)
    building = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(building, ignore_errors=True)
    with writing(folder):
        building.mkdir(parents=True)
    count, total = 0, 0
    try:
        with zipfile.ZipFile(archive) as file:
            for info in _safe(archive, file, members):
                total += info.file_size
                if total > max_bytes:
                    raise DataError(
                        f"{archive}: unpacks to more than {max_bytes} bytes; refused. "
                        "Fetch it again from a source you trust."
                    )
                with (
                    file.open(info) as source,
                    atomic_path(building / PurePosixPath(info.filename).name) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, CHUNK)
                count += 1
        shutil.rmtree(folder, ignore_errors=True)
        with writing(folder):
            building.replace(folder)
    except MMNetError:
        raise
    except Exception as error:  # a damaged zip can raise nearly anything
        raise DataError(
            f"{archive}: damaged or not a zip ({error}). Delete it, then run again."
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return count


def _must_exist(archive: Path) -> None:
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


def _published(archive: ArchiveConfig, name: str) -> str:
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


def _safe(
    archive: Path, file: zipfile.ZipFile, members: Callable[[str], bool]
) -> Iterator[zipfile.ZipInfo]:
    for info in file.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(
                f"{archive}: member {info.filename!r} leads out of its folder; refused. "
                "Fetch the archive again from a source you trust."
            )
        if not info.is_dir() and members(info.filename):
            yield info
