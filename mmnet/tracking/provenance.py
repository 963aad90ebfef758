"""Where a training runs: git revision, packages, device."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmnet.runtime.errors import ConfigError
from mmnet.runtime.progress import say

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pillow", "pycocotools")
"""Those that a training's numbers may depend on."""

OF_ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def packages() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def revision(root: Path) -> dict[str, Any]:
    """Return git's revision and the files that differ from it; where it has none, the reason."""
    # Those that a git hook sets are of another repository.
    environment = {k: v for k, v in os.environ.items() if k not in OF_ANOTHER_REPOSITORY}

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=True
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        if not git("ls-files", "--", ".").strip():  # an archive unpacked in a clone of another
            top = git("rev-parse", "--show-toplevel").strip()
            reason = f"{top}, the repository around this folder, does not hold its files"
            return {"commit": None, "changed": None, "reason": reason}
        # DVC writes its lock after each stage: it says what came out, not what went in.
        changed = git("status", "--porcelain", "--", ".", ":!dvc.lock").splitlines()
    except OSError:
        return {"commit": None, "changed": None, "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["git failed"]
        reason = next((line for line in lines if line.startswith("fatal:")), lines[-1])
        return {
            "commit": None,
            "changed": None,
            "reason": reason.removeprefix("fatal: ")[:200].rstrip("."),
        }
    return {"commit": commit, "changed": [line[3:] for line in changed]}


def say_revision(root: Path) -> None:
    """Say where no revision will be on record."""
    if reason := revision(root).get("reason"):
        say(
            f"No git revision is on record for this run: {reason}. Results are the same; to have "
            "one, run in a git clone."
        )


def check_clean(root: Path) -> None:
    """Refuse code that no revision names.

    Raises:
        ConfigError: there are uncommitted changes, or there is no git.
    """
    found = revision(root)
    changed = found["changed"]
    if changed is None or changed:
        what = f"git has no revision ({found.get('reason')})"
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
