"""Where a training runs: git revision, packages, device."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmnet.runtime.errors import ConfigError

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pillow", "pycocotools")
"""Those that a training's numbers may depend on."""


def packages() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def revision(root: Path) -> dict[str, Any]:
    """Return git's revision and the files that differ from it; both None outside a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    # DVC writes its lock after each stage: it says what came out, not what went in.
    status = _git(root, "status", "--porcelain", "--", ".", ":!dvc.lock")
    if commit is None or status is None:
        return {"commit": None, "changed": None}
    return {"commit": commit.strip(), "changed": [line[3:] for line in status.splitlines()]}


def check_clean(root: Path) -> None:
    """Refuse code that no revision names.

    Raises:
        ConfigError: there are uncommitted changes, or there is no git.
    """
    found = revision(root)
    if found["commit"] is None:
        raise ConfigError(
            "mlflow.require_clean is true, but this is not a git repository with a commit, or git "
            "is not installed. Work in a clone, or set it to false."
        )
    if changed := found["changed"]:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"mlflow.require_clean is true, and there are uncommitted changes: "
            f"{', '.join(changed[:5])}{more}. Commit or stash them, or set it to false."
        )


def describe_device(device: Any) -> str:
    """Return what results depend on: the kind of device, by name."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.machine()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
