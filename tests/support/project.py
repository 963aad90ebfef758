"""A copy of the project as after cloning, and Snakemake run in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from support.tiny import ROOT

PARTS = ["Snakefile", "workflow", "profiles", "mmnet", "params.yaml", "environment.yml"]


TINY: dict[str, Any] = {
    "shapes": {
        "seed": 0,
        "image_sizes": [[64, 48]],
        "images": {
            "refcoco": {"train": 6, "val": 2, "testA": 2, "testB": 2},
            "refcocog": {"train": 6, "val": 2, "test": 2},
        },
    },
    "model": {"image_size": 64, "width": 16, "channels": [16, 16, 16], "num_queries": 2},
    "train": {"epochs": 1, "batch_size": 4},
    "pretrain": {"steps": 2, "batch_size": 8},
}


def copy_project(folder: Path, *, tiny: bool = True) -> Path:
    """Copy what a user has after cloning, with the mini profile cut down to two quick runs.

    Without MLflow, whose own tests are in test_tracking.py: its import takes a second a job.
    """
    folder.mkdir(exist_ok=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, folder / part)
    params_file = folder / "params.yaml"
    params_file.write_text(params_file.read_text().replace("{enabled: true", "{enabled: false"))
    if tiny:
        with edited_params(folder) as params:
            for section, values in TINY.items():
                params["profiles"]["mini"][section].update(values)
            params["experiments"] = {
                name: params["experiments"][name] for name in ("refcoco_vit_b", "refcocog_vit_b")
            }
    return folder


class edited_params:
    """Read params.yaml, let it be changed, write it back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "params.yaml"

    def __enter__(self) -> Any:
        self.params = yaml.safe_load(self.path.read_text())
        return self.params

    def __exit__(self, *error: object) -> None:
        self.path.write_text(yaml.safe_dump(self.params))


def snakemake(folder: Path, *arguments: str, path: str | None = None, timeout: float = 400) -> Any:
    """Run Snakemake as a user would, on a PATH without conda unless one is given."""
    bare = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--use-conda", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path or bare},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def planned(result: Any) -> dict[str, int]:
    """Return the jobs of a dry run, by rule."""
    assert result.returncode == 0, result.stderr
    stats = re.search(r"Job stats:\n.*\n-.*\n((?:\w+ +\d+\n)+)", result.stderr + result.stdout)
    if stats is None:
        assert "Nothing to be done" in result.stderr + result.stdout
        return {}
    counts = {name: int(count) for name, count in re.findall(r"(\w+) +(\d+)", stats[1])}
    counts.pop("total")
    return counts
