"""Atomic writes, checksums, and locks on files and folders."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from mmnet.runtime.errors import MMNetError
from mmnet.runtime.progress import readable

UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report in one line why `path` cannot be written.

    Raises:
        MMNetError: the disk is full, the folder is read-only, or a file is where a folder must be.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise MMNetError(
            f"{path}: cannot be written: {os.strerror(error.errno)}. "
            "Free some space or fix the permissions, then run again."
        ) from error


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
    with atomic_path(path) as temporary:
        encoding = None if "b" in mode else "utf-8"
        with temporary.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, for writers that take a path instead of an open file."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
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


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Return a file's checksum in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file or folder, which need not exist yet, against other processes.

    Raises:
        MMNetError: another process has locked it.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        raise MMNetError(
            f"{path}: another process is at work here. Wait for it or end it, then run again."
        ) from None
    try:
        yield
    finally:
        # While it is still locked: later, the file could be another process's.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
