"""Calls that not every operating system has, each with a fallback. Only Windows has too few."""

import getpass
import os
import shutil
import signal
import sys
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
