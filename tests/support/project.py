"""A copy of the project as after cloning, and the tools run in it."""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.forks import ended, forked
from support.tiny import ROOT

PARTS = ["Snakefile", "workflow", "profiles", "mmnet", "params.yaml"]
PARTS += ["environment.yml", "pyproject.toml"]
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
    "pretrain": {"steps": 2, "batch_size": 8, "captions": ["refcoco"]},
}
BARE_PATH = os.pathsep.join(
    [
        str(Path(sys.executable).parent),
        *(
            folder
            for folder in os.environ["PATH"].split(os.pathsep)
            if not Path(folder, "conda").exists() or Path(folder, "bash").exists()
        ),
    ]
)
"""A PATH without conda."""


def copy_project(folder: Path, *, tiny: bool = True) -> Path:
    """Copy what a user has after cloning, with the mini profile cut down to two quick runs.

    Without MLflow, which has tests of its own: its import takes a second a job.
    """
    folder.mkdir(exist_ok=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, folder / part)
    with edited_params(folder) as params:
        params["mlflow"]["enabled"] = False
        if tiny:
            mini = params["profiles"]["mini"]
            for section, values in TINY.items():
                mini[section].update(values)
            del mini["datasets"]["refcoco+"], mini["archives"]["refcoco+"]
            params["experiments"] = {
                name: params["experiments"][name] for name in ("refcoco_vit_b", "refcocog_vit_b")
            }
    return folder


def copy_as_if_made(folder: Path, **values: Any) -> Path:
    """Copy the project as it would be after everything is made, each output an empty file.

    `values` are keys of params.yaml.
    """
    copy_project(folder, tiny=False)
    with edited_params(folder) as params:
        params.update(values)
    for job in summary(folder):
        path = folder / job["output_file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    touched = snakemake(folder, "--touch", "--forceall", "--cores", "1", "--", "all")
    assert touched.returncode == 0, touched.stderr
    return folder


def needs(program: str) -> None:
    """Skip the test where a program that mmnet does without is not on the PATH."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on the PATH")


class edited_params:
    """Read params.yaml, let it be changed, write it back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "params.yaml"

    def __enter__(self) -> Any:
        self.params = yaml.safe_load(self.path.read_text())
        return self.params

    def __exit__(self, *error: object) -> None:
        self.path.write_text(yaml.safe_dump(self.params, sort_keys=False))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new))


def tool(
    folder: Path, *command: str, timeout: float = 400, path: str | None = None, **environment: str
) -> Any:
    """Run snakemake, dvc or mmnet as a user would, on a PATH without conda unless one is given."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PATH": path or BARE_PATH, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def snakemake(
    folder: Path, *arguments: str, path: str | None = None, lacking: tuple[str, ...] = ()
) -> Any:
    """Run snakemake in a fork, which imports the copy's mmnet, and snakemake not again.

    It is as if the Python lacked some packages.
    """
    from snakemake.cli import main  # for those tests alone that call it

    def act() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mmnet"]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(lacking))  # type: ignore[arg-type]
        warnings.resetwarnings()  # to pytest they are errors
        jobs: Any = sys.modules["snakemake.shell"]
        jobs.STDOUT = None  # this process's, where pytest's was when it was imported
        os.chdir(folder)
        main(["--use-conda", *arguments])

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = ended(forked(act, stdout=out, stderr=err, PATH=path or BARE_PATH))
        said = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess(["snakemake", *arguments], code, *said)


def refused(result: Any) -> str:
    """Return what a command said that failed, as it should: without a traceback."""
    output: str = result.stdout + result.stderr
    assert result.returncode != 0, output
    assert "Traceback" not in output, output
    return output


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


def trainings(result: Any) -> list[str]:
    """Return the runs whose training a dry run plans, as 'nq_1 seed 0'."""
    found = re.findall(r"Training (\w+), (seed \d+)\n", result.stderr + result.stdout)
    return sorted({" ".join(run) for run in found})


def summary(folder: Path) -> list[dict[str, str]]:
    """Return each output file of the whole workflow, with its rule and input files."""
    result = snakemake(folder, "--detailed-summary")
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(result.stdout.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
