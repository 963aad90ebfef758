"""Clones with git and DVC, their mini profile cut down to two quick runs and Table 1."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from support.project import copy_project, needs, tool
from support.tiny import ROOT

PARTS = [".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore", "dvc.yaml"]
TARGETS = ["results/table1.tex", "results/curves.csv"]
"""What the two runs suffice for; it stands for `all`."""


def dvc_project(folder: Path) -> Path:
    """Copy what a user has after cloning, dvc.lock left out."""
    return with_dvc(copy_project(folder))


def with_dvc(folder: Path, *, tiny: bool = True) -> Path:
    """Add git and DVC to a copied project."""
    needs("git")
    for part in PARTS:
        (folder / part).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    if tiny:
        stages = yaml.safe_load((folder / "dvc.yaml").read_text())
        del stages["stages"]["figures"], stages["plots"][-1]
        outs = stages["stages"]["data"]["outs"]
        outs.remove({"data/${profile}/refcoco+.parquet": {"persist": True}})
        results = stages["stages"]["results"]
        command, _, target = results["cmd"].rpartition(" -- ")
        assert target == "all"
        results["cmd"] = f"{command} -- {' '.join(TARGETS)}"
        (folder / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "clone")
    return folder


def clone_of(origin: Path, folder: Path) -> Path:
    """Clone as a reader would, with the same remote."""
    subprocess.run(["git", "clone", "--quiet", origin, folder], check=True)
    shutil.copy(origin / ".dvc" / "config.local", folder / ".dvc" / "config.local")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, *arguments: str, **environment: str) -> str:
    """Run DVC, which must succeed; return what it printed."""
    result = tool(folder, "dvc", *arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return str(result.stdout)


def refusal(folder: Path, command: str, *arguments: str, **environment: str) -> str:
    """Return the one line with which `mmnet record` or `adopt` refuses; dvc.lock stays."""
    lock = folder / "dvc.lock"
    before = lock.read_bytes() if lock.exists() else None
    refused = tool(folder, "mmnet", command, *arguments, **environment)
    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert (lock.read_bytes() if lock.exists() else None) == before
    return str(refused.stderr)


def recorded(folder: Path) -> dict[str, Any]:
    """Return dvc.lock's stages."""
    stages: dict[str, Any] = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return stages


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
