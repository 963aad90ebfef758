"""Calls that not every operating system has, and settings of the user's shell, with fallbacks."""

import getpass
import os
import re
import shutil
import signal
import site
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

from mmnet.runtime.errors import MMNetError


def check_supported() -> None:
    """Refuse to run on Windows.

    Raises:
        MMNetError: this is Windows.
    """
    if sys.platform == "win32":
        raise MMNetError("Windows is not supported. Install WSL (wsl --install), and run there.")


def cpu_count() -> int:
    """Return how many CPUs this process may use; where the system cannot say, how many it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user_id() -> str:
    """Return what tells this user's files in a shared folder from those of others."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals by which a queue announces that it will end a job."""
    names = ("SIGTERM", "SIGUSR1")
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def start_method() -> str | None:
    """Return how readers of images are started: forked on Linux, by Python's default elsewhere.

    Python 3.14 no longer forks by default, and every reader would import torch again.
    """
    return "fork" if sys.platform == "linux" else None


def shared_memory() -> tuple[int, int] | None:
    """Return the free and all bytes of the memory that processes share; None where unlimited."""
    if not (folder := Path("/dev/shm")).is_dir():
        return None
    usage = shutil.disk_usage(folder)
    return (usage.free, usage.total) if usage.total else None


def use_own_settings() -> None:
    """Set what libraries read from the shell and the user's folders, for children too.

    Before libraries are imported. Caches go to the temporary folder where the user's own cannot be
    written, as in a read-only or full home.

    Raises:
        MMNetError: no temporary folder can be written.
    """
    try:
        temporary = Path(tempfile.gettempdir())  # the first of several that takes a file
    except FileNotFoundError:
        raise MMNetError(
            f"{os.environ.get('TMPDIR', '/tmp')}: no temporary folder can be written. Free some "
            "space there, or set TMPDIR to another folder."
        ) from None
    for name in ("TMPDIR", *({"TEMP", "TMP"} & os.environ.keys())):
        os.environ[name] = str(temporary)
    for name in ("BASH_ENV", "ENV"):  # what a shell reads first, which may change PATH
        os.environ.pop(name, None)
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's is not installed here
    matplotlib = find_spec("matplotlib")
    if matplotlib and matplotlib.origin:
        os.environ["MATPLOTLIBRC"] = str(Path(matplotlib.origin).with_name("mpl-data"))
    caches = {"XDG_CACHE_HOME": "~/.cache", "MPLCONFIGDIR": "~/.config/matplotlib"}
    for name, default in caches.items():
        # Path.expanduser refuses a user without a home.
        given = os.environ.get(name) or os.path.expanduser(default)  # noqa: PTH111
        if not _is_writable(Path(given)):
            own = temporary / f"mmnet-cache-{user_id()}"
            os.environ[name] = str(own if _is_writable(own) else temporary)
    _use_own_python()


def _use_own_python() -> None:
    """Undo what Python itself read: packages outside the environment, filters of warnings."""
    others = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for folder in [*map(os.path.abspath, others), site.getusersitepackages()]:
        if folder in sys.path:  # last: it may hold other versions of what is installed here
            sys.path.remove(folder)
            sys.path.append(folder)
    if os.environ.pop("PYTHONWARNINGS", None):
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
    for stream in (sys.stdout, sys.stderr):  # whose encoding may lack a letter
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def fault_of_shell(error: Exception) -> MMNetError | None:
    """Return in one line an error of a library that names a variable of the shell; else None."""
    text = " ".join(str(error).split())
    for name in filter(lambda name: "_" in name[1:], os.environ):
        if re.search(rf"\b{re.escape(name)}\b", text):
            value = os.environ[name][:100]
            return MMNetError(f"{name}={value}, a variable of the shell: {text[:300]} Unset it.")
    return None


def _is_writable(folder: Path) -> bool:
    """Whether a folder, made if need be, takes a file."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"test")
    except (OSError, ValueError):
        return False
    return True
