"""Atomic writes, checksums, and locks on files and folders."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from mmnet.runtime.errors import MMNetError
from mmnet.runtime.progress import readable, say

IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
NAMES = {
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EBUSY: "Name a folder that is in no use",
}
"""What only another name helps against."""
UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *IN_THE_WAY,
    *NAMES,
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report in one line why `path` cannot be written.

    Raises:
        MMNetError: the disk is full, the folder is read-only, the name is too long, or a file is
            where a folder must be.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        remedy = NAMES.get(error.errno, "Free some space or fix the permissions")
        if error.errno in IN_THE_WAY:
            name = _in_the_way(path)
            remedy = f"Move {name} away" if name else "Move away what is in its place"
        raise MMNetError(
            f"{path}: cannot be written: {os.strerror(error.errno)}. {remedy}, then run again."
        ) from error


def _in_the_way(path: Path) -> Path | None:
    """Return what is where a path needs a folder, or the folder where it needs a file."""
    above = (p for p in reversed(path.parents) if os.path.lexists(p) and not p.is_dir())
    return next(above, path if path.is_dir() else None)


def check_room(path: Path, size: int) -> None:
    """Check that the disk of `path` has room for `size` more bytes.

    Raises:
        MMNetError: it has less.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise MMNetError(
            f"{path}: cannot be written: needs {readable(size)}, and {path.parent} has "
            f"{readable(free)} free. Free some space, then run again."
        )


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, renamed to `path` when the block succeeds.

    A failure, a full disk included, leaves `path` as it was and no temporary file.
    """
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, temporary.open(mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, for writers that take a path instead of an open file."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_hidden(path), suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes private files; results get the permissions of any other file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path`, which takes its place, whatever was there, on success.

    A failure leaves `path` as it was and no temporary folder.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=_hidden(path), suffix=".tmp", dir=path.parent
        ) as outer:
            made, old = Path(outer) / "new", Path(outer) / "old"
            made.mkdir()  # not the outer one, which is private
            yield made
            if path.exists():
                path.rename(old)
            try:
                made.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise


def _hidden(path: Path) -> str:
    """Return how a path's temporary names start: of 255 bytes, they need some more."""
    return f".{path.name.encode(errors='ignore')[:200].decode(errors='ignore')}."


def set_aside(path: Path) -> None:
    """Rename a user's file whose place is needed, and say so."""
    numbers = itertools.count(1)
    own = next(p for n in numbers if not (p := path.with_name(f"{path.name}.own{n}")).exists())
    path.rename(own)
    say(f"{path}: was not the right file; yours is now {own}")


def remedy_for(path: Path, remedy: str) -> str:
    """Return how to fix a wrong file: by `remedy`, unless it is a link to one of the user's own."""
    if not path.is_symlink():
        return remedy
    return (
        f"It is a link to your own {path.resolve()}: replace that file with a whole copy, or name "
        "another copy in profiles.*.data.train2014 in params.yaml (null: download it)."
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's values; none where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Return a file's checksum in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, waiting: str = "") -> Iterator[None]:
    """Lock a file or folder, which need not exist yet, against other processes.

    Where another process has locked it, wait, if told what for.

    Raises:
        MMNetError: another process has locked it, and there is nothing to wait for.
    """
    lock = _lock_of(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if waiting and is_locked(path):
                say(f"{path}: waiting for {waiting}")
            lock.acquire(timeout=-1 if waiting else 0, poll_interval=1.0)
    except Timeout:
        raise MMNetError(
            f"{path}: another process is at work here. Wait for it or end it, then run again."
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # later, it could be another process's
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds a file or folder; writes nothing."""
    lock = _lock_of(path)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False  # a killed process left the file
    except Timeout:
        return True
    except OSError:
        return False


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))
