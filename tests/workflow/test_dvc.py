"""DVC: its stages cover Snakemake's jobs, and neither tool makes again what the other has made."""

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from mmnet.cli.parser import main
from support.dvc_project import (
    TARGETS,
    clone_of,
    dvc,
    dvc_project,
    git,
    jobs_run,
    recorded,
    refusal,
    stages_run,
    state,
    with_dvc,
)
from support.project import copy_project, edited_params, planned, snakemake, summary, tool
from support.tiny import ROOT

pytestmark = pytest.mark.xdist_group("workflow")  # the finished clone is made once
RUN = "mini-refcoco_vit_b-0"
MADE = ("results", "runs", "rows", "scores", "clip", "data")


def within(path: str, places: set[str]) -> bool:
    return any(Path(path).is_relative_to(place) for place in places)


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_each_output_is_in_one_stage_that_depends_on_its_inputs(
    profile: str, tmp_path: Path
) -> None:
    folder = copy_project(tmp_path / "clone", tiny=False)
    with edited_params(folder) as params:
        params |= {"profile": profile, "seeds": [0, 1]}
    with_dvc(folder, tiny=False)
    with Repo(folder) as repo:
        outs = {s.name: {out.def_path for out in s.outs} for s in repo.index.stages}
        deps = {s.name: {dep.def_path for dep in s.deps} for s in repo.index.stages}
    files = summary(folder)
    assert len(files) > 100
    not_recorded = {
        f["output_file"] for f in files if f["rule"] in ("draw_shapes", "fetch_archive")
    }
    for file in files:
        path, inputs = file["output_file"], set(file["input-file(s)"].split(",")) - {"", "-"}
        stages = [name for name in outs if within(path, outs[name])]
        assert len(stages) == (path not in not_recorded), f"{path}: {stages}"
        for stage in stages:
            known = outs[stage] | deps[stage]
            # Both the figures' data and the figures depend on the runs.
            known |= {f"figures/{profile}"} if stage.startswith("results@") else set()
            lacking = {p for p in inputs - not_recorded if not within(p, known)}
            assert not lacking, f"{stage} does not depend on {lacking}"
    written = [file["output_file"] for file in files]
    for stage, places in outs.items():
        assert deps[stage] >= {"mmnet", "workflow", "Snakefile"}
        for place in places - {f"data/{profile}/images"}:  # Snakemake knows it by images.tsv
            assert any(within(path, {place}) for path in written), place


@pytest.fixture(scope="module")
def authors(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' clone: made by Snakemake, recorded, pushed into a folder."""
    folder = tmp_path_factory.mktemp("authors") / "clone"
    with_dvc(shutil.copytree(finished, folder, symlinks=True))
    result = tool(folder, "mmnet", "record")
    assert result.returncode == 0, result.stderr
    dvc(folder, "remote", "add", "--local", "--default", "store", str(folder.parent / "store"))
    dvc(folder, "push")
    git(folder, "add", "dvc.lock")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


@pytest.fixture
def work(authors: Path, tmp_path: Path) -> Path:
    """A copy of the authors' clone, with its times and both tools' own records."""
    return shutil.copytree(authors, tmp_path / "work", symlinks=True)


# What one tool has made, the other accepts.


def test_after_record_dvc_runs_nothing_and_shows_metrics_and_curves(authors: Path) -> None:
    assert stages_run(dvc(authors, "repro")) == []
    assert git(authors, "status", "--porcelain") == ""
    ignoring = {path.parent.name for path in authors.rglob(".gitignore")}
    assert ignoring == {"clone", ".dvc"}  # DVC would write more where ours lacked something
    assert not [path for path in recorded(authors) if "work" in path]

    metrics: dict[str, Any] = json.loads(dvc(authors, "metrics", "show", "--json"))[""]["data"]
    assert {Path(path).parts[2] for path in metrics} == {"refcoco_vit_b", "refcocog_vit_b"}
    values = metrics["scores/mini/refcoco_vit_b/seed0.percent.json"]["data"]
    scores = json.loads((authors / "scores/mini/refcoco_vit_b/seed0.json").read_text())
    assert set(values) == {"val", "testA", "testB"}
    assert values["val"]["mIoU"] == pytest.approx(100 * scores["splits"]["val"]["mIoU"], abs=5e-3)
    plots: dict[str, Any] = json.loads(dvc(authors, "plots", "show", "--json"))
    assert not plots.get("errors")
    for name, column in (("Training loss", "loss"), ("mIoU on val", "val_mIoU")):
        content = plots["data"][name][0]["content"]
        points = {(p["run"], int(p["epoch"])) for p in content["data"]["values"] if p[column]}
        assert points == {("refcoco_vit_b seed 0", 1), ("refcocog_vit_b seed 0", 1)}
        assert content["encoding"]["y"]["field"] == column
        assert content["encoding"]["color"]["field"] == "run"


def test_repro_from_nothing_gives_the_same_bytes_and_the_same_record(
    authors: Path, tmp_path: Path
) -> None:
    folder = dvc_project(tmp_path / "elsewhere")
    assert len(stages_run(dvc(folder, "repro"))) == len(recorded(authors))
    files = [
        path.relative_to(authors)
        for top in MADE
        for path in (authors / top).rglob("*")
        if path.is_file() and "work" not in path.parts
    ]
    assert {path.name for path in files} > {"table1.tex", "curves.csv", "checkpoint.pt"}
    for path in files:
        assert (folder / path).read_bytes() == (authors / path).read_bytes(), path
    assert recorded(folder) == recorded(authors)
    assert planned(snakemake(folder, "-n", *TARGETS)) == {}


def test_a_changed_key_runs_its_experiment_alone(work: Path) -> None:
    before = state(work)
    with edited_params(work) as params:
        params["experiments"]["refcoco_vit_b"]["train"] = {"lr": 1.0e-3}
    again = tool(work, "dvc", "repro")
    assert again.returncode == 0, again.stderr
    output = again.stdout + again.stderr
    assert jobs_run(output)[:3] == ["train_mmnet", "predict_masks", "score_run"]
    assert sorted(jobs_run(output)[3:]) == ["write_curves", "write_table1"]
    # Which towers are in use depends on the experiments: Snakemake finds nothing to do.
    ours = ["towers@mini", f"runs@{RUN}", f"scores@{RUN}", "results@mini"]
    assert stages_run(output) == ours
    after = state(work)
    changed = {path for path in after if before.get(path) != after[path]}
    assert not [path for path in changed if "refcocog_vit_b" in path]
    assert planned(snakemake(work, "-n", *TARGETS)) == {}
    assert "experiments.refcoco_vit_b.train.lr" in dvc(work, "params", "diff")
    assert "scores/mini/refcoco_vit_b" in dvc(work, "metrics", "diff")


def test_no_value_counts_for_snakemake_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each changes what the stage's jobs make (test_workflow.py)."""
    monkeypatch.chdir(work)  # DVC names stages from here
    for key, value, stage in (
        ("shapes.seed", 1, "data@mini"),
        ("pretrain.steps", 3, "towers@mini"),
        ("train.lr", 1.0e-3, f"runs@{RUN}"),
        ("evaluate.threshold", 0.4, f"runs@{RUN}"),
        ("datasets.refcoco.max_length", 18, f"runs@{RUN}"),
        ("datasets.refcoco.splits", ["val"], f"scores@{RUN}"),
        ("towers.vit_b.label", "Another", f"scores@{RUN}"),
        ("label", "another benchmark", "results@mini"),
    ):
        text = (work / "params.yaml").read_text()
        with edited_params(work) as params:
            section = params["profiles"]["mini"]
            *parents, last = key.split(".")
            for parent in parents:
                section = section[parent]
            assert section[last] != value
            section[last] = value
        with Repo(work) as repo:
            changed = repo.status()
        assert stage in changed, (key, list(changed))
        (work / "params.yaml").write_text(text)


# What `mmnet record` refuses.


def test_record_refuses_what_snakemake_would_make_again(work: Path) -> None:
    # Snakemake's own mark, which a job that ends takes away.
    output = base64.urlsafe_b64encode(b"runs/mini/refcoco_vit_b/seed0/checkpoint.pt").decode()
    mark = work / ".snakemake" / "incomplete" / output
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    assert "interrupted" in refusal(work, "record")
    mark.unlink()
    with edited_params(work) as params:
        params["profiles"]["mini"]["towers"]["vit_b"]["label"] = "Another"
    line = refusal(work, "record")
    assert "scores/mini/refcoco_vit_b/seed0.json" in line
    assert "checkpoint.pt" not in line


def test_record_refuses_what_was_changed_by_hand(work: Path) -> None:
    table = work / "results" / "table1.tex"
    mine = table.read_text()
    table.write_text(mine + "% 99.9\n")
    (work / "clip" / "mini" / "of_another_table.pt").write_bytes(b"no damage")
    line = refusal(work, "record")
    assert "results/table1.tex" in line
    assert "of_another_table" not in line
    table.write_text(mine)
    image, another, *_ = sorted((work / "data" / "mini" / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"damage")
    another.unlink()
    line = refusal(work, "record")
    for named in (f"images/{image.name}", f"images/{another.name}", "dvc checkout"):
        assert named in line


# A fresh clone.


def test_pulled_files_are_adopted_and_others_refused(authors: Path, tmp_path: Path) -> None:
    clone = clone_of(authors, tmp_path / "clone")
    dvc(clone, "pull")
    for checkpoint in clone.glob("runs/mini/*/seed0/checkpoint.pt"):
        os.utime(checkpoint, (0, 0))  # pulled before its inputs: DVC's order is by chance
    assert planned(snakemake(clone, "-n", *TARGETS))["train_mmnet"] == 2
    table, rows = clone / "results" / "table1.csv", clone / "rows/mini/refcoco_vit_b/seed0.parquet"
    mine = table.read_text()
    table.write_text(mine + "\n")
    rows.rename(clone / "aside")
    before = state(clone)
    line = refusal(clone, "adopt")
    assert "results/table1.csv (modified)" in line
    assert f"{rows.relative_to(clone)} (deleted)" in line
    assert "results/table1.tex" not in line
    assert state(clone) == before
    table.write_text(mine)
    (clone / "aside").rename(rows)
    adopted = tool(clone, "mmnet", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert planned(snakemake(clone, "-n", *TARGETS)) == {}
    assert stages_run(dvc(clone, "repro")) == []
    assert git(clone, "status", "--porcelain") == ""


def test_a_table_of_pulled_scores_runs_its_rule_alone(authors: Path, tmp_path: Path) -> None:
    clone = clone_of(authors, tmp_path / "clone")
    dvc(clone, "pull", "scores")
    assert not (clone / "runs").exists()
    made = snakemake(clone, "--cores", "1", "results/table1.tex")
    assert jobs_run(made.stdout + made.stderr) == ["write_table1"]
    for suffix in ("tex", "csv", "md"):
        name = f"results/table1.{suffix}"
        assert (clone / name).read_bytes() == (authors / name).read_bytes()


def test_one_table_is_recorded_and_adopted_without_the_others(work: Path, tmp_path: Path) -> None:
    whole = set(recorded(work))
    (work / "dvc.lock").unlink()
    (work / "results" / "curves.csv").unlink()
    with edited_params(work) as params:  # of Table 2: not trained, its tower not there
        more = {"dataset": "refcoco", "tower": "rn50", "tables": ["table2"]}
        params["experiments"]["nq_1"] = {**more, "model": {"num_queries": 1}}
    made = tool(work, "mmnet", "record")
    assert made.returncode == 0, made.stderr
    assert set(recorded(work)) == whole
    git(work, "commit", "--quiet", "--all", "--message", "Table 1")
    dvc(work, "push")

    clone = clone_of(work, tmp_path / "clone")
    dvc(clone, "pull", "--allow-missing")
    adopted = tool(clone, "mmnet", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert f" {len(whole)} " in adopted.stderr
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}
    (clone / "dvc.lock").unlink()
    assert "git pull" in refusal(clone, "adopt")


def test_switching_profiles_keeps_unfinished_trainings_and_archives(
    authors: Path, tmp_path: Path
) -> None:
    """`dvc checkout` removes the folders of the other profile's stages, whatever is in them."""
    clone = clone_of(authors, tmp_path / "clone")
    dvc(clone, "pull")
    kept = [clone / "runs/mini/work/1a2b3c4d/last.pt", clone / "data/mini/archives/refcoco.zip"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    checkpoint = clone / "runs/mini/refcoco_vit_b/seed0/checkpoint.pt"
    for profile, is_there in (("paper", False), ("mini", True)):
        with edited_params(clone) as params:
            params["profile"] = profile
        tool(clone, "dvc", "checkout")  # of paper it fails, since nothing of it is recorded
        assert checkpoint.exists() == is_there
        assert all(path.exists() for path in kept)


# Errors in one line.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["record", "--set", "profile=paper"], "--set"), (["adopt"], "dvc: ")],
)
def test_dvc_commands_say_why_not(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)  # a folder without DVC
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
