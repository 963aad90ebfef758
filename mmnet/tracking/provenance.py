"""Where a training runs: git revision, packages, device."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmnet.runtime.errors import ConfigError

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pillow", "pycocotools")
"""Those that a training's numbers may depend on."""


def packages() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def revision(root: Path) -> dict[str, Any]:
    """Return git's revision and the files that differ from it; both None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.check_output(command, cwd=root, stderr=subprocess.DEVNULL, text=True)

    try:
        commit = git("rev-parse", "HEAD").strip()
        # DVC writes its lock after each stage: it says what came out, not what went in.
        changed = git("status", "--porcelain", "--", ".", ":!dvc.lock").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": [line[3:] for line in changed]}


def check_clean(root: Path) -> None:
    """Refuse code that no revision names.

    Raises:
        ConfigError: there are uncommitted changes, or there is no git.
    """
    changed = revision(root)["changed"]
    if changed is None or changed:
        what = "this is not a git repository with a commit, or git is not installed"
        if changed:
            what = f"uncommitted changes are in {len(changed)} files: {', '.join(changed[:5])}"
        raise ConfigError(
            f"mlflow.require_clean is true, and {what}. Commit or stash changes in a clone, or set "
            "it to false."
        )


def describe_device(device: Any) -> str:
    """Return what results depend on: the kind of device, by name."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    known = Path("/proc/cpuinfo")
    text = known.read_text(encoding="utf-8") if known.is_file() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return f"{device.type}, {model[1].strip() if model else platform.machine()}"
