"""Unpack the wanted files of an archive without leaving its folder."""

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mmnet.data.download import must_exist
from mmnet.errors import DataError, MMNetError
from mmnet.files import atomic_path, writing

CHUNK = 1 << 20


def unpack(archive: Path, folder: Path, *, members: Callable[[str], bool], max_bytes: int) -> int:
    """Unpack the wanted files into `folder`, flat, and return how many there were.

    The folder appears whole or not at all.

    Raises:
        DataError: not a zip, damaged, a wanted member leads out of the folder or is a link, or
            more than `max_bytes` would be written.
    """
    must_exist(archive)
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
