"""Where a picture is: a path or a file:// address. Imports neither torch nor NumPy."""

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

from mmnet.runtime.errors import DataError


def path_of(source: str | Path) -> Path:
    """Return the path of a name or a file:// address.

    Raises:
        DataError: it is empty, or an address of another kind.
    """
    text = str(source)
    if not text:
        raise DataError("no picture named.")
    if isinstance(source, str) and source.startswith("file://"):
        return Path(unquote(urlparse(source).path))
    if text.startswith(("http://", "https://")):
        raise DataError(f"{text}: addresses are not fetched. Download the picture, then name it.")
    return Path(source)


def is_folder(path: Path) -> bool:
    """Whether a folder is there; Path.is_dir raises an error for a name that is too long."""
    return os.path.isdir(path)  # noqa: PTH112


def real_path(source: str | Path) -> str | None:
    """Return a picture's path without links; None where it cannot be one."""
    try:
        return os.path.realpath(path_of(source))
    except (DataError, ValueError):
        return None
