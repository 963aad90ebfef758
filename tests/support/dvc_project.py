"""Clones with git and DVC, their mini profile cut down to two quick runs and Table 1."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from support.project import copy_project, edited_params
from support.tiny import ROOT

PARTS = [".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore", "dvc.yaml"]
STAGES = {"archives", "prepare_table", "unpack_images", "towers"} | {
    *("train_mmnet", "predict_masks", "score_run", "write_table1", "write_curves")
}
"""Those of the two runs; the others' are planned, not run."""
TARGETS = ["results/table1.tex", "results/curves.csv"]


def ledger_project(folder: Path, *, tiny: bool = True) -> Path:
    """Copy what a user has after cloning, dvc.lock left out."""
    return with_ledger(copy_project(folder, tiny=tiny), tiny=tiny)


def with_ledger(folder: Path, *, tiny: bool = True) -> Path:
    """Add git and DVC to a copied project."""
    for part in PARTS:
        (folder / part).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    if tiny:
        cut_ledger(folder)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "clone")
    return folder


def cut_ledger(folder: Path) -> None:
    """Leave the stages of the runs that params.yaml was cut down to."""
    with edited_params(folder) as params:
        kept = params["experiments"]
    ledger = yaml.safe_load((folder / "dvc.yaml").read_text())
    ledger["stages"] = {name: stage for name, stage in ledger["stages"].items() if name in STAGES}
    ledger["plots"] = [plot for plot in ledger["plots"] if isinstance(plot, dict)]
    table = ledger["stages"]["write_table1"]
    table["deps"] = [
        dep for dep in table["deps"] if not dep.startswith("scores/") or Path(dep).name in kept
    ]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(ledger, sort_keys=False))


def clone_of(origin: Path, folder: Path) -> Path:
    """Clone as a reader would, with the same remote."""
    subprocess.run(["git", "clone", "--quiet", origin, folder], check=True)
    shutil.copy(origin / ".dvc" / "config.local", folder / ".dvc" / "config.local")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def tool(folder: Path, *command: str, **environment: str) -> Any:
    """Run dvc or mmnet as a user would, conda not on the PATH."""
    bare = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PATH": bare, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def dvc(folder: Path, *arguments: str, **environment: str) -> str:
    """Run DVC, which must succeed; return what it printed."""
    result = tool(folder, "dvc", *arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return str(result.stdout)


def stages_run(output: str) -> list[str]:
    """Return the stages whose commands `dvc repro` ran."""
    return re.findall(r"Running stage '(.+)'", output)


def jobs_run(output: str) -> list[str]:
    """Return the rules that Snakemake ran."""
    return re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", output)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return times and bytes of all that is not the tools' own."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not {".git", ".dvc", ".snakemake", "__pycache__"} & {*path.parts}
    }
