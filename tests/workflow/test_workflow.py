"""The rules: what they plan in both profiles, what a change makes again, and what they leave."""

import ast
import builtins
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import snakemake.api  # its parser cannot be imported first
import yaml
from snakemake.parser import parse
from snakemake.sourcecache import LocalSourceFile

from support.project import (
    BARE_PATH,
    copy_project,
    edit,
    edited_params,
    planned,
    refused,
    snakemake,
    tool,
    trainings,
)
from support.tiny import ROOT, Tiny

pytestmark = pytest.mark.xdist_group("workflow")  # the finished clone is made once
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
TABLE1, PARAMETERS = "results/table1.tex", "results/parameters.md"
ODD = """{b} {{c}} é 'q' "r" $x `y` & ; # % ! ~ () [] * ? <> | = , @ ^ \\ +"""
"""What a folder's name may have, of shells, of Snakemake and of URLs."""


@pytest.fixture
def clone(made: Path, tmp_path: Path) -> Path:
    """A copy of `made`, with its times and Snakemake's own records."""
    return shutil.copytree(made, tmp_path / "clone", symlinks=True)


# Plans.


def test_both_profiles_plan_everything_from_any_folder(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "project", tiny=False)
    from_elsewhere = ("-s", str(folder / "Snakefile"), "-d", str(folder), "-n")
    mini = snakemake(tmp_path, *from_elsewhere)
    plan = planned(mini)
    runs = {"train_mmnet": 20, "predict_masks": 20, "score_run": 20}
    data = {"fetch_archive": 4, "prepare_table": 3, "unpack_images": 1}
    assert plan.items() > {**runs, **data, "draw_shapes": 1, "pretrain_clip": 3}.items()
    assert "No conda on the PATH" in mini.stdout + mini.stderr
    paper = planned(snakemake(tmp_path, *from_elsewhere, "--config", "profile=paper"))
    assert paper.items() > {**runs, **data, "download_clip": 3}.items()
    only_mini = {"draw_shapes", "pretrain_clip"}
    assert plan.keys() - only_mini == paper.keys() - {"download_clip"}
    assert not only_mini & paper.keys()


def test_mistakes_stop_before_any_job(made: Path) -> None:
    override = '{"mini": {"train": {"device": "auto", "processes": 2}}}'
    asked = ("-n", "--config", f"profiles={override}", "--", TABLE1)
    output = refused(snakemake(made, *asked))
    assert "train.processes is 2" in output
    assert "gpu=2" in output
    assert planned(snakemake(made, "--resources", "gpu=2", *asked))["train_mmnet"] == 6
    assert f"Did you mean {TABLE1}?" in refused(snakemake(made, "-n", "results/tabel1.tex"))
    assert "Did you mean write_table1?" in refused(snakemake(made, "-n", "write_tabel1"))
    score = "scores/mini/{}/seed3.json".format
    assert f"No rule makes {score('nq_88')}." in refused(snakemake(made, "-n", score("nq_88")))


def test_params_yaml_that_cannot_be_read_is_refused_with_its_line(clone: Path) -> None:
    path = clone / "params.yaml"
    path.write_bytes(b"# A comment.\n# \xe9\n" + path.read_bytes())
    assert "line 2 has the byte 0xe9" in refused(snakemake(clone, "-n"))


def test_a_python_with_snakemake_alone_says_what_it_lacks(made: Path) -> None:
    said = refused(snakemake(made, "-n", lacking=("pydantic",)))
    assert "lacks pydantic" in said
    assert "make" in said


def test_locks_of_a_killed_snakemake_are_removed(clone: Path) -> None:
    lock = clone / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(PARAMETERS)
    asked = ("--cores", "1", "--force", "--", PARAMETERS)
    marks = clone / ".snakemake" / "running"
    shutil.rmtree(marks, ignore_errors=True)
    assert "--unlock" in refused(snakemake(clone, *asked))
    # The process that was just refused is dead, and was the only one.
    done = snakemake(clone, *asked)
    assert done.returncode == 0, done.stderr
    assert "Removed the locks" in done.stderr


def test_folders_of_the_users_that_cannot_be_written_stop_nothing(
    clone: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    names = ("HOME", "XDG_CACHE_HOME", "TMPDIR", "TEMP", "TMP")
    handed = {name: str(tmp_path / "file" / name) for name in names}
    asked = ("snakemake", "--cores", "1", "--force", "--", PARAMETERS)
    (tmp_path / "profile").write_text("export PATH=/nowhere; cd /\n")
    handed |= {"MPLBACKEND": "module://nowhere", "BASH_ENV": str(tmp_path / "profile")}
    done = tool(clone, *asked, **handed)
    assert done.returncode == 0, done.stderr


# Changes.


def no_numbers(clone: Path) -> None:
    with edited_params(clone) as params:
        params["mlflow"] = {"enabled": True, "require_clean": True}
        for job in params["profiles"]["mini"]["cluster"].values():
            job.update(partition="another", memory_mb=1, minutes=1)
    field = "require_clean: bool\n"
    edit(clone / "mmnet" / "config" / "profile.py", field, f"{field}    another: int = 1\n")
    loop = clone / "mmnet" / "train" / "loop.py"
    text, reworded = re.subn(r'(\bsay\(f?")', r"\1reworded ", loop.read_text())
    assert reworded
    loop.write_text(f"{text}\n# A comment.\n")
    (clone / "environment.yml").write_text("dependencies: [python]\n")


def threshold_and_splits(clone: Path) -> None:
    with edited_params(clone) as params:
        params["profiles"]["mini"]["evaluate"]["threshold"] = 0.4
        params["profiles"]["mini"]["datasets"]["refcoco"]["splits"] = ["val", "testA"]


def label(clone: Path) -> None:
    with edited_params(clone) as params:
        params["profiles"]["mini"]["towers"]["vit_b"]["label"] = "Another"


def one_experiment(clone: Path) -> None:
    with edited_params(clone) as params:
        params["experiments"]["nq_1"]["train"] = {"lr": 1.0e-3}


def one_more_seed(clone: Path) -> None:
    with edited_params(clone) as params:
        params["seeds"] = [0, 1]


def resnet(clone: Path) -> None:
    new_number(clone / "mmnet" / "model" / "backbone_resnet.py")


def ablations(clone: Path) -> None:
    new_number(clone / "mmnet" / "model" / "ablations.py")


def new_number(path: Path) -> None:
    path.write_text(path.read_text() + "\n_NEW = 1\n")


VIT = [f"{data}_vit_{size}" for data in ("refcoco", "refcoco_plus", "refcocog") for size in "bl"]
ABLATED = ["nq_24_no_mmp", "nq_16_no_mmp", "nq_8_no_mmp", "no_mqe", "no_f_vg", "no_mqe_no_f_vg"]
ABLATED += ["no_mqe_mean"]
RN50 = [*(f"nq_{n}" for n in (32, 24, 16, 8, 4, 2, 1)), *ABLATED]


@pytest.mark.parametrize(
    ("change", "trained", "jobs"),
    [
        (no_numbers, [], {"train_mmnet": 0, "predict_masks": 0, "write_table1": 0}),
        (label, [], {"predict_masks": 0, "score_run": 3, "write_table1": 1, "write_table2": 0}),
        (threshold_and_splits, [], {"predict_masks": 20, "score_run": 20}),
        (one_experiment, ["nq_1"], {"predict_masks": 1, "write_table1": 0, "write_table2": 1}),
        (resnet, RN50, {"predict_masks": 14, "prepare_table": 0, "write_table1": 0}),
        (ablations, ABLATED, {"predict_masks": 7, "pretrain_clip": 0}),
        (one_more_seed, [*VIT, *RN50], {"predict_masks": 20, "pretrain_clip": 0}),
    ],
)
def test_a_change_makes_again_what_depends_on_it(
    change: Callable[[Path], None], trained: list[str], jobs: dict[str, int], clone: Path
) -> None:
    change(clone)
    result = snakemake(clone, "-n")
    seed = 1 if change is one_more_seed else 0
    plan = planned(result)
    assert trainings(result) == sorted(f"{name} seed {seed}" for name in trained)
    assert plan.get("train_mmnet", 0) == len(trained)
    assert {rule: plan.get(rule, 0) for rule in jobs} == jobs
    if change is no_numbers:
        assert plan.keys() <= {"write_parameters", "all"}


def test_slurm_is_asked_for_what_params_say(clone: Path, tmp_path: Path) -> None:
    with edited_params(clone) as params:
        mini = params["profiles"]["mini"]
        mini["cluster"]["train"] = {"partition": "long", "memory_mb": 7000, "minutes": 99}
        mini["train"] |= {"device": "auto", "lr": 1.0e-3}  # the rate: so that it trains again
    # A stand-in for Slurm's commands: sbatch notes what it is asked and fails. (tests/slurm/run
    # submits to a real one.)
    calls = tmp_path / "calls"
    script = f'[ "${{0##*/}}" != sbatch ] || echo "$@" >> {calls}; exit 1'
    for name in ("sbatch", "sacct", "sinfo", "scontrol", "squeue"):
        executable(tmp_path / "bin" / name, f"#!/bin/sh\n{script}\n")
    result = snakemake(
        clone,
        *("--workflow-profile", "profiles/slurm", "--retries", "0"),
        *("--", "runs/mini/refcoco_vit_b/seed0/checkpoint.pt"),
        path=f"{tmp_path / 'bin'}{os.pathsep}{BARE_PATH}",
    )
    refused(result)
    assert calls.exists(), result.stderr
    (asked,) = calls.read_text().splitlines()
    for option in ("-p long", "-t 99", "--mem 7000", "--gpus=1", "--requeue"):
        assert f" {option} " in asked, asked


# Runs.


def test_all_is_left_whole(finished: Path) -> None:
    assert not list(finished.glob("**/last.pt"))
    assert not list(finished.glob("**/*.tmp"))


def test_jobs_use_overrides_wherever_they_are_given(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "project")
    place = ("-s", str(folder / "Snakefile"), "-d", str(folder), "--cores", "1")
    override = 'profiles={"mini": {"label": "on: 2024", "train": {"lr": 1.0e-5}}}'
    target = "results/parameters.md"
    made = snakemake(tmp_path, *place, "--config", override, "--", target)
    assert made.returncode == 0, made.stderr
    assert "on: 2024" in (folder / target).read_text()
    (used,) = (folder / ".snakemake" / "mmnet").iterdir()
    assert yaml.safe_load(used.read_text())["profiles"]["mini"]["train"]["lr"] == 1e-05


def test_an_archive_is_verified_and_never_fetched_again_or_deleted(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    archive = folder / "data" / "mini" / "archives" / "refcoco.zip"
    with edited_params(folder) as params:
        source = params["profiles"]["mini"]["archives"]["refcoco"]
        source["urls"] = ["file:/nowhere/refcoco.zip"]
        del source["checksums"]
        source["sha256"] = hashlib.sha256(b"right").hexdigest()
        params["profiles"]["mini"]["shapes"] = None
    fetch = (folder, "--cores", "1", "--forceall", "data/mini/archives/refcoco.zip.sha256")
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(b"wrong")
    assert source["sha256"] in refused(snakemake(*fetch))
    archive.write_bytes(b"right")
    before = archive.stat().st_mtime_ns
    result = snakemake(*fetch)
    assert result.returncode == 0, result.stderr
    assert archive.stat().st_mtime_ns == before
    assert archive.read_bytes() == b"right"


def test_copies_of_ones_own_are_read_where_they_lie(tiny: Tiny, tmp_path: Path) -> None:
    folder, own = copy_project(tmp_path / "project"), tmp_path / "own"
    for name in ("refcoco", "train2014"):
        with ZipFile(tiny.archives[name]) as archive:
            archive.extractall(own)
    shutil.copy(tiny.archives["refcocog"], own)
    zipped = own / "refcocog.zip"
    with edited_params(folder) as params:
        mini = params["profiles"]["mini"]
        mini["data"] = {"refcoco": f"{own}/refcoco", "refcocog": str(zipped)}
        mini["data"]["train2014"] = str(own)  # the folder around train2014/
        mini["archives"]["refcocog"] = {
            "urls": ["http://127.0.0.1:9/dead.zip"],
            "bytes": zipped.stat().st_size,
            "sha256": hashlib.sha256(zipped.read_bytes()).hexdigest(),
        }
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    result = snakemake(folder, "--cores", "2", "data/mini/images.tsv")
    assert result.returncode == 0, result.stderr
    data = folder / "data" / "mini"
    assert {path.name for path in data.iterdir()} >= {"refcoco.parquet", "refcocog.parquet"}
    assert not {"archives", "mirror"} & {path.name for path in data.iterdir()}
    images = list((data / "images").iterdir())
    assert images
    assert all(image.resolve().is_relative_to(own) for image in images)
    assert before == {path: path.stat().st_mtime_ns for path in own.rglob("*")}


STAND_IN = """#!{python}
# A stand-in for conda, which this machine cannot install: it makes an "environment" by linking
# this Python's, and answers what Snakemake asks.
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
with open({calls!r}, "a") as file:
    file.write(" ".join(arguments) + "\\n")
if arguments[:1] == ["--version"]:
    print("conda 25.1.0")
elif arguments[:1] == ["info"]:
    print(json.dumps({{"conda_version": "25.1.0", "conda_prefix": {prefix!r},
                       "root_prefix": {prefix!r}, "platform": "linux-64"}}))
elif arguments[:1] == ["config"]:
    print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
elif arguments[:2] == ["env", "create"]:
    prefix = Path(arguments[arguments.index("--prefix") + 1])
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.symlink_to(sys.prefix)
"""


WITHOUT_NETWORK = """    print("CondaHTTPError: HTTP 000 CONNECTION FAILED\\nElapsed: -")
    sys.exit(1)
"""


@pytest.mark.parametrize("works", [True, False])
def test_conda_on_the_path_is_used_for_the_jobs_if_it_works(works: bool, tmp_path: Path) -> None:
    # Snakemake formats the path of the environment's file.
    folder = copy_project(tmp_path / "a {clone} {{ b")
    calls, prefix = tmp_path / "calls", tmp_path / "prefix"
    executable(prefix / "bin" / "activate", "")
    script = STAND_IN.format(python=sys.executable, calls=str(calls), prefix=str(prefix))
    executable(tmp_path / "bin" / "conda", script + ("" if works else WITHOUT_NETWORK))
    result = snakemake(
        folder,
        *("--cores", "1", "--", PARAMETERS),
        path=f"{tmp_path / 'bin'}{os.pathsep}{BARE_PATH}",
    )
    assert result.returncode == 0, result.stderr
    assert "env create" in calls.read_text()
    assert ("CondaHTTPError: HTTP 000" in result.stderr) != works
    assert ("Activating conda environment" in result.stderr) == works
    assert (folder / PARAMETERS).exists()


def test_no_character_of_the_checkouts_path_is_taken_for_syntax(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / ODD)
    done = snakemake(folder, "--cores", "1", "--", PARAMETERS)
    assert done.returncode == 0, done.stderr
    assert planned(snakemake(folder, "-n"))["train_mmnet"] == 2
    reported = snakemake(folder, "--report", "results/report.html", "--", PARAMETERS)
    assert reported.returncode == 0, reported.stderr
    helped = subprocess.run(
        ["make", "-sf", ROOT / "Makefile", "-f", "-", "where"],
        input='where: ; @$(RUN) && echo "$${PATH%%:*}"\n',
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert helped.stdout.strip() == f"{folder}/.venv/bin", helped.stderr


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)


# The files themselves.


def test_the_rules_use_no_name_that_they_do_not_define_or_import() -> None:
    """Snakemake's own imports, such as `re`, are in scope by accident."""
    opened: Any = SimpleNamespace(
        sourcecache=SimpleNamespace(open=lambda file: io.StringIO(Path(str(file)).read_text()))
    )
    defined, used = set(dir(builtins)), set()
    for path in RULES:
        source, _ = parse(LocalSourceFile(str(path)), opened, {})
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            elif isinstance(node, ast.Name):
                defined.add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.ExceptHandler | ast.alias):
                defined.add(getattr(node, "asname", None) or str(node.name))
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
    assert used - defined <= {"config", "report", "shell", "unpack", "workflow"}


def test_every_rule_runs_here_or_says_what_it_asks_of_a_cluster() -> None:
    local = RULES[0].read_text().partition("localrules:")[2].partition("rule all")[0]
    rules = [
        rule
        for path in RULES[1:]
        for rule in re.split(r"^ *rule (?=\w)", path.read_text(), flags=re.MULTILINE)[1:]
    ]
    assert len(rules) > 15
    for rule in rules:
        name = rule.partition(":")[0]
        assert (f" {name}," in local) != ("**WORKFLOW.resources(" in rule), name


def test_both_profiles_of_snakemake_rerun_for_the_same_reasons() -> None:
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        for name in ("default", "slurm")
    )
    assert {*default} - {*slurm} == {"cores", "resources"}
    assert all(slurm[key] == default[key] for key in {*default} & {*slurm})
