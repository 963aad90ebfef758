"""Fetch a file from its mirrors, whatever the network does, and believe its checksum only."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mmnet.config.paths import Paths
from mmnet.config.schema import SourceConfig
from mmnet.data.transfer import file_name, size_of, transfer
from mmnet.runtime.errors import DataError, MMNetError
from mmnet.runtime.files import atomic_write, locked, writing
from mmnet.runtime.progress import readable, say, track

CHUNK = 1 << 20
LONG = 10**9  # bytes; to verify more takes so long that its progress is shown


def fetch(source: SourceConfig, path: Path, *, cure: str | None = None) -> str:
    """Place a verified copy of the file at `path`, from the first mirror that has it; return
    its SHA-256.

    What has come of it lies in a dot-file beside `path`: an interrupted fetch goes on from there,
    in another process too, and from another mirror. `cure` says what else one can do.

    Raises:
        DataError: no mirror has it; the line says what was wrong with each.
        MMNetError: the disk is full, or another process fetches this very file.
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
            part.replace(path)
            say(f"{path}: {readable(path.stat().st_size)}, sha256 {sha256}")
            return sha256
        if not size_of(part):
            part.unlink(missing_ok=True)
    put = f"the file at {path} yourself, or {cure or 'mend profiles.*.archives in params.yaml'}."
    draw = (
        "Draw the procedural archives first (mmnet shapes), or put" if source.checksums else "Put"
    )
    raise DataError(f"{path.name}: no mirror has it: {' | '.join(faults)} | {draw} {put}")


def verify(source: SourceConfig, path: Path, *, name: str) -> str:
    """Check size and checksum; return the SHA-256.

    Raises:
        DataError: they differ; `name` says of what.
        MMNetError: the file may not be read.
    """
    algorithm = "md5" if source.md5 else "sha256"
    expected = source.md5 or source.sha256 or _published(source)
    try:
        size = path.stat().st_size
        if source.bytes is not None and size != source.bytes:
            raise DataError(f"{name}: has {size} bytes, expected {source.bytes}.")
        found = _checksums(path, {algorithm, "sha256"}, name)
    except OSError as error:
        raise MMNetError(
            f"{name}: cannot be read: {error.strerror}. Mend its permissions, then run again."
        ) from None
    if found[algorithm] != expected:
        raise DataError(f"{name}: {algorithm} is {found[algorithm]}, expected {expected}.")
    return found["sha256"]


def verify_placed(source: SourceConfig, path: Path, *, cure: str | None = None) -> str:
    """Check a file that lies in its place, whoever put it there; return the SHA-256.

    `cure` is what to do about it, where the file is not ours to be deleted and fetched again.

    Raises:
        DataError: it is missing or not the right one.
    """
    must_exist(path, cure)
    try:
        sha256 = verify(source, path, name=str(path))
        sums = Paths.fetched(path)
        recorded = _sums(sums).get(path.name) if source.md5 and sums.is_file() else None
        if recorded not in (None, sha256):
            raise DataError(f"{path}: sha256 is {sha256}, {sums.name} has {recorded}.")
    except DataError as error:
        raise DataError(f"{error} {cure or 'Delete it, then run again.'}") from None
    return sha256


def provide(source: SourceConfig, path: Path, *, cure: str) -> None:
    """As `fetch`, unless the right file is there already; its SHA-256 is written beside it."""
    sha256 = None
    if path.is_file():
        try:
            sha256 = verify_placed(source, path, cure="Fetching it again.")
            say(f"{path}: there already, sha256 {sha256}")
        except DataError as error:
            say(str(error))
    sha256 = sha256 or fetch(source, path, cure=cure)
    with atomic_write(Paths.fetched(path)) as file:
        file.write(f"{sha256}  {path.name}\n")


def check(source: SourceConfig, path: Path, *, cure: str) -> str:
    """Return a line on what lies at `path`.

    Raises:
        DataError: it is the wrong file.
    """
    if path.is_dir():
        return f"{path}: there; a folder, which nothing can verify"
    if not path.exists():
        has = size_of(_part(path))
        return f"{path}: not there" + (f"; {readable(has)} of it are, to go on from" if has else "")
    return f"{path}: right, sha256 {verify_placed(source, path, cure=cure)}"


def must_exist(archive: Path, cure: str | None = None) -> None:
    if not archive.is_file():
        cure = cure or f"Fetch it first: mmnet download {archive.stem}."
        raise DataError(f"{archive}: not found. {cure}")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _fetch_from(url: str, source: SourceConfig, part: Path) -> str:
    """Complete `part` from this mirror and verify it; a wrong one is deleted."""
    is_its_own = transfer(url, part, source.bytes)
    try:
        return verify(source, part, name=url)
    except DataError as error:
        part.unlink()
        if is_its_own:
            raise
        say(f"{error} Part of that came from elsewhere: fetched once more, from its start.")
        return _fetch_from(url, source, part)


def _checksums(path: Path, algorithms: set[str], name: str) -> dict[str, str]:
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    size = path.stat().st_size
    with path.open("rb") as file:
        chunks: Iterable[bytes] = iter(lambda: file.read(CHUNK), b"")
        if size > LONG:
            chunks = track(
                chunks, name=f"verifying {file_name(name)}", total=size, unit="B", size=len
            )
        for chunk in chunks:
            for value in hashes.values():
                value.update(chunk)
    return {algorithm: value.hexdigest() for algorithm, value in hashes.items()}


def _published(source: SourceConfig) -> str:
    sums, name = Path(source.checksums or ""), file_name(source.urls[0])
    digest = _sums(sums).get(name)
    if digest is None:
        raise DataError(f"{sums}: has no line for {name}. Make the mirror again.")
    return digest


def _sums(path: Path) -> dict[str, str]:
    """Return the digests of a file as `sha256sum` writes it, by name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", text, re.M)}
