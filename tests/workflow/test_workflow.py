"""The rules: planned for both profiles, run end to end on a cut-down mini, rerun only where due."""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from support.project import copy_project, edited_params, planned, snakemake
from support.tiny import ROOT

pytestmark = pytest.mark.xdist_group("workflow")  # the finished clone is made once


@pytest.fixture
def clone(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished clone, with its times and Snakemake's own records."""
    folder = tmp_path / "clone"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


def test_paper_profile_plans_six_trainings_and_downloads(tmp_path: Path) -> None:
    folder = copy_project(tmp_path, tiny=False)
    result = snakemake(folder, "-n", "--config", "profile=paper", "--", "results/table1.tex")
    assert planned(result) == {
        "fetch_archive": 4,
        "prepare_table": 3,
        "unpack_images": 1,
        "download_clip": 2,
        "train_mmnet": 6,
        "predict_masks": 6,
        "score_run": 6,
        "write_table1": 1,
    }


def test_mini_profile_plans_generation_and_pretraining(tmp_path: Path) -> None:
    result = snakemake(copy_project(tmp_path, tiny=False), "-n", "results/table1.tex")
    plan = planned(result)
    assert plan["draw_shapes"] == 1
    assert plan["pretrain_clip"] == 2
    assert plan["train_mmnet"] == 6
    assert "download_clip" not in plan


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("profile=papper", "Did you mean paper?"),
        ("profil=paper", "profil is unknown. Did you mean profile?"),
        ('experiments={"refcoco_vit_b": {"model": {"num_querys": 3}}}', "Did you mean num_queries"),
    ],
)
def test_mistake_in_params_stops_before_any_job(finished: Path, override: str, advice: str) -> None:
    result = snakemake(finished, "-n", "--config", override)
    assert result.returncode != 0
    assert advice in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_end_to_end_leaves_tables_and_nothing_half_done(finished: Path) -> None:
    for suffix in ("tex", "csv", "md"):
        assert (finished / "results" / f"table1.{suffix}").stat().st_size > 0
    assert not list(finished.glob("runs/**/last.pt"))
    assert not list(finished.glob("**/*.tmp"))


def test_another_folder_and_number_of_cores_give_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    folder = copy_project(tmp_path)
    result = snakemake(folder, "--cores", "1", "results/table1.tex")
    assert result.returncode == 0, result.stderr
    made = [
        path.relative_to(finished)
        for top in ("results", "runs", "rows", "scores", "clip", "data")
        for path in (finished / top).glob("**/*")
        if path.is_file() and path.name != ".lock"
    ]
    assert {path.name for path in made} > {"table1.tex", "table1.csv", "checkpoint.pt"}
    for path in made:
        assert (folder / path).read_bytes() == (finished / path).read_bytes(), path


def test_second_run_has_nothing_to_do(clone: Path) -> None:
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}


def test_changed_key_of_one_experiment_reruns_that_experiment_alone(clone: Path) -> None:
    with edited_params(clone) as params:
        params["experiments"]["refcoco_vit_b"]["train"] = {"lr": 1.0e-3}
    result = snakemake(clone, "-n", "results/table1.tex")
    assert planned(result) == {
        "train_mmnet": 1,
        "predict_masks": 1,
        "score_run": 1,
        "write_table1": 1,
    }
    assert "refcocog_vit_b" not in result.stdout.replace("scores/mini/refcocog_vit_b/seed0", "")


def test_changed_label_trains_nothing(clone: Path) -> None:
    with edited_params(clone) as params:
        params["profiles"]["mini"]["towers"]["vit_b"]["label"] = "Another"
    plan = planned(snakemake(clone, "-n", "results/table1.tex"))
    assert plan == {"score_run": 2, "write_table1": 1}


def test_turning_mlflow_on_trains_nothing(clone: Path) -> None:
    with edited_params(clone) as params:
        params["mlflow"] = {"enabled": True, "require_clean": True}
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}


def test_archive_put_in_place_by_hand_is_verified(clone: Path) -> None:
    archive = clone / "data" / "mini" / "archives" / "refcoco.zip"
    archive.write_bytes(b"junk")
    (clone / "data" / "mini" / "refcoco.parquet").unlink()
    result = snakemake(clone, "--cores", "1", "data/mini/refcoco.parquet")
    assert result.returncode != 0
    assert "refcoco.zip: sha256 is" in result.stdout + result.stderr


def test_archives_that_are_there_are_neither_fetched_again_nor_deleted(clone: Path) -> None:
    archives = clone / "data" / "mini" / "archives"
    before = {path.name: path.stat().st_mtime_ns for path in archives.glob("*.zip")}
    with edited_params(clone) as params:
        source = params["profiles"]["mini"]["archives"]["refcoco"]
        digest = hashlib.sha256((archives / "refcoco.zip").read_bytes()).hexdigest()
        params["profiles"]["mini"]["archives"]["refcoco"] = {
            "urls": source["urls"],
            "sha256": digest,
        }
    for mirror in (clone / "data" / "mini" / "mirror").iterdir():
        mirror.touch()
    target = "data/mini/archives/refcoco.zip.sha256"
    for arguments in ([target], ["--forcerun", "fetch_archive", "--", target]):
        result = snakemake(clone, "--cores", "1", *arguments)
        assert result.returncode == 0, result.stderr
        assert "refcoco.zip: there already" in result.stdout + result.stderr
    assert before == {path.name: path.stat().st_mtime_ns for path in archives.glob("*.zip")}
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}


def test_an_archive_put_in_place_after_a_killed_download_is_kept(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    archive = folder / "data" / "mini" / "archives" / "refcoco.zip"
    with edited_params(folder) as params:
        source = params["profiles"]["mini"]["archives"]["refcoco"]
        source["urls"] = ["http://127.0.0.1:9/refcoco.zip"]
        del source["checksums"]
        source["sha256"] = hashlib.sha256(b"placed").hexdigest()
        params["profiles"]["mini"]["shapes"] = None
    target = "data/mini/archives/refcoco.zip.sha256"
    failed = snakemake(folder, "--cores", "1", target)
    assert failed.returncode != 0
    assert (
        f"put the file at {archive.relative_to(folder)}" in (failed.stdout + failed.stderr).lower()
    )
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(b"placed")
    result = snakemake(folder, "--cores", "1", "--forceall", target)
    assert result.returncode == 0, result.stderr
    assert archive.read_bytes() == b"placed"


def test_changed_seeds_train_the_new_seed_alone(clone: Path) -> None:
    result = snakemake(clone, "-n", "--config", "seeds=[0, 1]", "--", "results/table1.tex")
    assert planned(result)["train_mmnet"] == 2


def test_switching_profiles_and_back_retrains_nothing(clone: Path) -> None:
    paper = snakemake(clone, "-n", "--config", "profile=paper", "--", "results/table1.tex")
    assert planned(paper)["train_mmnet"] == 2
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}


def test_code_edit_reruns_what_uses_it(clone: Path) -> None:
    schedule = clone / "mmnet" / "train" / "schedule.py"
    schedule.write_text(schedule.read_text() + "\n# A comment.\n")
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}
    schedule.write_text(schedule.read_text().replace("1 - step", "1.0 - step"))
    plan = planned(snakemake(clone, "-n", "results/table1.tex"))
    assert plan["train_mmnet"] == 2
    assert "prepare_table" not in plan


def test_damaged_archive_fails_its_rule_and_says_why(clone: Path) -> None:
    mirror = clone / "data" / "mini" / "mirror" / "refcoco.zip"
    mirror.write_bytes(mirror.read_bytes()[:-1])
    (clone / "data" / "mini" / "archives" / "refcoco.zip").unlink()
    result = snakemake(clone, "--cores", "1", "data/mini/refcoco.parquet")
    assert result.returncode != 0
    assert "sha256 is" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


STAND_IN = """#!{python}
# A stand-in for conda, which this machine cannot install: it makes an "environment" by linking
# this Python's, and answers what Snakemake asks.
import json, os, sys
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


def test_conda_on_the_path_is_used_for_the_jobs(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    copy_project(folder)
    stand_in = tmp_path / "bin" / "conda"
    stand_in.parent.mkdir()
    (tmp_path / "prefix" / "bin").mkdir(parents=True)
    (tmp_path / "prefix" / "bin" / "activate").write_text("")
    calls = tmp_path / "calls"
    stand_in.write_text(
        STAND_IN.format(python=sys.executable, calls=str(calls), prefix=str(tmp_path / "prefix"))
    )
    stand_in.chmod(0o755)
    path = os.pathsep.join(
        [str(stand_in.parent), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
    )
    result = snakemake(
        folder, "--cores", "1", "--", "data/mini/archives/refcoco.zip.sha256", path=path
    )
    assert result.returncode == 0, result.stderr
    assert "env create" in calls.read_text()
    assert (folder / "data" / "mini" / "archives" / "refcoco.zip").exists()


def test_without_conda_the_same_command_works_and_says_so(tmp_path: Path) -> None:
    result = snakemake(copy_project(tmp_path), "-n", "data/mini/archives/refcoco.zip.sha256")
    assert planned(result) == {"draw_shapes": 1, "fetch_archive": 1}
    assert "No conda on the PATH" in result.stdout + result.stderr


SLURM_STAND_IN = """#!/bin/sh
# A stand-in for Slurm's commands: sbatch keeps what it was asked and refuses. (tests/slurm/run
# submits to a real one.)
[ "${{0##*/}}" != sbatch ] || echo "$@" >> {calls}
exit 1
"""


def test_slurm_is_asked_for_what_params_say(clone: Path, tmp_path: Path) -> None:
    with edited_params(clone) as params:
        mini = params["profiles"]["mini"]
        mini["cluster"]["train"] = {"partition": "long", "memory_mb": 7000, "minutes": 99}
        mini["train"] |= {"device": "auto", "lr": 1.0e-3}  # the rate: so that it trains again
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "sacct", "sinfo", "scontrol", "squeue"):
        (folder / name).write_text(SLURM_STAND_IN.format(calls=calls))
        (folder / name).chmod(0o755)
    result = snakemake(
        clone,
        *("--workflow-profile", "profiles/slurm", "--retries", "0"),
        *("--", "runs/mini/refcoco_vit_b/seed0/checkpoint.pt"),
        path=os.pathsep.join([str(folder), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
    )
    assert result.returncode != 0
    assert calls.exists(), result.stderr
    (asked,) = calls.read_text().splitlines()
    for option in ("-p long", "-t 99", "--mem 7000", "--gpus=1", "--requeue"):
        assert f" {option} " in asked, asked


def test_what_jobs_ask_of_a_cluster_reruns_nothing(clone: Path) -> None:
    with edited_params(clone) as params:
        for job in params["profiles"]["mini"]["cluster"].values():
            job.update(partition="another", memory_mb=1, minutes=1)
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}


def test_every_rule_runs_here_or_says_what_it_asks_of_a_cluster() -> None:
    local = (ROOT / "Snakefile").read_text().partition("localrules:")[2].partition("rule all")[0]
    rules = []
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        rules += re.split(r"^ *rule (?=\w)", path.read_text(), flags=re.MULTILINE)[1:]
    assert len(rules) > 15
    for rule in rules:
        name = rule.partition(":")[0]
        assert (f" {name}," in local) != ("**asks(" in rule), name


def test_both_profiles_of_snakemake_rerun_for_the_same_reasons() -> None:
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        for name in ("default", "slurm")
    )
    assert {*default} - {*slurm} == {"cores", "resources"}
    assert all(slurm[key] == default[key] for key in {*default} & {*slurm})


def test_more_processes_than_gpus_are_refused_before_any_job(finished: Path) -> None:
    override = '{"mini": {"train": {"device": "auto", "processes": 2}}}'
    asked = ("-n", "--config", f"profiles={override}", "--", "results/table1.tex")
    refused = snakemake(finished, *asked)
    assert refused.returncode != 0
    said = refused.stdout + refused.stderr
    assert "train.processes is 2, more GPUs than there are for all jobs" in said
    assert snakemake(finished, "--resources", "gpu=2", *asked).returncode == 0
