"""Unpack the wanted files of an archive without leaving its folder."""

import contextlib
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from mmnet.data.download import must_exist
from mmnet.runtime.errors import DataError, MMNetError
from mmnet.runtime.files import atomic_path, check_room, writing
from mmnet.runtime.progress import track

CHUNK = 1 << 20
FEW = 20  # files that need no progress


@contextlib.contextmanager
def rebuilt(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, which replaces `folder` once the block succeeds, or not at all."""
    building = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with writing(folder):
            building.mkdir(parents=True)
        yield building
        shutil.rmtree(folder, ignore_errors=True)
        with writing(folder):
            building.replace(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def unpack(archive: Path, folder: Path, *, members: Callable[[str], bool], max_bytes: int) -> int:
    """Unpack the wanted files into `folder`, without subfolders; return their number.

    The folder appears complete or not at all.

    Raises:
        DataError: the archive is damaged or no zip, a member leads out of the folder or is a link,
            two wanted members have the same name, or more than `max_bytes` would be written.
        MMNetError: the disk has no room for them.
    """
    must_exist(archive)
    try:
        with rebuilt(folder) as building, zipfile.ZipFile(archive) as file:
            wanted = _wanted(archive, file, members)
            size = sum(info.file_size for info in wanted.values())
            if size > max_bytes:
                raise DataError(
                    f"{archive}: unpacks to more than {max_bytes} bytes; refused. "
                    "Fetch it again from a source you trust."
                )
            check_room(folder, size)
            shown: Iterable[tuple[str, zipfile.ZipInfo]] = wanted.items()
            if len(wanted) > FEW:
                shown = track(shown, name="unpacking", total=len(wanted), unit="files")
            for flat, info in shown:
                with (
                    file.open(info) as source,
                    atomic_path(building / flat) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, CHUNK)
    except MMNetError:
        raise
    except Exception as error:  # a damaged zip can raise nearly anything
        raise DataError(f"{archive}: damaged or not a zip ({error}). Fetch it again.") from None
    return len(wanted)


def _wanted(
    archive: Path, file: zipfile.ZipFile, members: Callable[[str], bool]
) -> dict[str, zipfile.ZipInfo]:
    wanted: dict[str, zipfile.ZipInfo] = {}
    for info in file.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(
                f"{archive}: member {info.filename!r} leads out of its folder; refused. "
                "Fetch the archive again from a source you trust."
            )
        if not info.is_dir() and members(info.filename):
            if path.name in wanted:
                raise DataError(
                    f"{archive}: members {wanted[path.name].filename!r} and {info.filename!r} "
                    f"would both be {path.name}; refused. Fetch the archive again from a source "
                    "you trust."
                )
            wanted[path.name] = info
    return wanted
