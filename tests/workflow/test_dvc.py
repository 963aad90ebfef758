"""DVC's ledger: its stages are Snakemake's jobs, and neither redoes what the other has made."""

import base64
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from mmnet.runtime.fingerprint import reachable
from support.dvc_project import (
    TARGETS,
    clone_of,
    dvc,
    git,
    jobs_run,
    ledger_project,
    stages_run,
    state,
    tool,
    with_ledger,
)
from support.project import edited_params, planned, snakemake
from support.tiny import ROOT

pytestmark = pytest.mark.xdist_group("workflow")  # the finished clone is made once


# Stages and jobs.


@dataclass(frozen=True)
class Job:
    rule: str
    inputs: frozenset[str]
    outputs: frozenset[str]


@dataclass(frozen=True)
class Stage:
    name: str
    target: str
    deps: frozenset[str]
    outs: frozenset[str]

    def makes(self, job: Job) -> bool:
        return any(lies_in(path, self.outs) for path in job.outputs)


def lies_in(path: str, places: frozenset[str]) -> bool:
    """Whether it is one of the places, or in a folder that is."""
    return any(path == place or path.startswith(f"{place}/") for place in places)


def jobs_of(folder: Path) -> list[Job]:
    for path in (folder / "workflow" / "rules").glob("*.smk"):
        # A dry run tells a job's files only where it has no message to tell instead.
        path.write_text(re.sub(r"\n    ( *)message:\n.*", "", path.read_text()))
    output = snakemake(folder, "--dry-run", "--forceall")
    assert output.returncode == 0, output.stderr
    found = re.findall(
        r"^rule (\w+):\n(?:    input: (.+)\n)?    output: (.+)$",
        output.stdout + output.stderr,
        re.MULTILINE,
    )
    return [
        Job(rule, frozenset(filter(None, inputs.split(", "))), frozenset(outputs.split(", ")))
        for rule, inputs, outputs in found
    ]


def stages_of(folder: Path) -> list[Stage]:
    with Repo(folder) as repo:
        stages = list(repo.index.stages)
    return [
        Stage(
            stage.name,
            (stage.cmd if isinstance(stage.cmd, str) else stage.cmd[-1]).rpartition(" -- ")[2],
            frozenset(dep.def_path for dep in stage.deps) - {"params.yaml"},
            frozenset(out.def_path for out in stage.outs),
        )
        for stage in stages
    ]


@pytest.fixture(scope="module", params=["mini", "paper"])
def planned_both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Job], list[Stage]]:
    """All jobs and all stages of a profile, two seeds each."""
    folder = ledger_project(tmp_path_factory.mktemp("plan"), tiny=False)
    with edited_params(folder) as params:
        params["profile"] = request.param
        params["seeds"] = [0, 1]
    return jobs_of(folder), stages_of(folder)


NOT_RECORDED = {"draw_shapes"}
"""What it draws is recorded as fetched: the stage `archives`."""


def test_every_job_is_of_one_stage_and_every_stage_has_jobs(
    planned_both: tuple[list[Job], list[Stage]],
) -> None:
    jobs, stages = planned_both
    assert len(jobs) > 100
    for job in jobs:
        names = [stage.name for stage in stages if stage.makes(job)]
        assert len(names) == (job.rule not in NOT_RECORDED), f"{job.rule} {job.outputs}: {names}"
        made_by = [stage for stage in stages if stage.makes(job)]
        assert all(lies_in(path, stage.outs) for stage in made_by for path in job.outputs)
    for stage in stages:
        made = [path for job in jobs if stage.makes(job) for path in job.outputs]
        # The images are the one folder that Snakemake knows by a manifest alone.
        outs = {out for out in stage.outs if not out.endswith("/images")}
        assert all(any(lies_in(path, frozenset([out])) for path in made) for out in outs), stage
        assert stage.target in made or stage.target in ("archives", "towers")


def test_a_stage_depends_on_all_that_its_jobs_read(
    planned_both: tuple[list[Job], list[Stage]],
) -> None:
    jobs, stages = planned_both
    for stage in stages:
        mine = [job for job in jobs if stage.makes(job)]
        read = {path for job in mine for path in job.inputs if "/mirror/" not in path}
        read -= {path for job in mine for path in job.outputs}
        lacking = {path for path in read if not lies_in(path, stage.deps)}
        assert not lacking, f"{stage.name} does not depend on {lacking}"


def test_a_stage_waits_for_nothing_that_its_jobs_do_not_wait_for(
    planned_both: tuple[list[Job], list[Stage]],
) -> None:
    jobs, stages = planned_both
    maker = {path: job for job in jobs for path in job.outputs}
    for stage in stages:
        if stage.name == "towers@paper":
            continue  # one dvc.yaml for both profiles: mini's towers are trained on the data
        waiting = [job for job in jobs if stage.makes(job)]
        before: set[str] = set()
        while waiting:
            for path in waiting.pop().inputs - before:
                before.add(path)
                waiting += [maker[path]] if path in maker else []
        files = {dep for dep in stage.deps if not dep.startswith("mmnet/")}
        idle = {dep for dep in files if not any(lies_in(p, frozenset([dep])) for p in before)}
        assert not idle, f"{stage.name} depends on {idle} for nothing"


def modules_of_rules() -> dict[str, set[str]]:
    """The modules whose code counts for a rule, by rule."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for name, body in re.findall(
            r"^ *rule ?(\w*):\n(.*?)(?=^ *rule\b|\Z)", path.read_text(), re.MULTILINE | re.DOTALL
        ):
            found[name] = set(re.findall(r'code_version\(f?"([\w.{}]+)"\)', body))
    tables = found.pop("")  # one rule for each table
    for table in ("table1", "table2", "table3", "table4"):
        module = "table1" if table == "table1" else "ablations"
        found[f"write_{table}"] = {name.replace("{MODULE}", module) for name in tables}
    found["archives"] = found.pop("draw_shapes") | found.pop("fetch_archive")
    found["towers"] = found.pop("pretrain_clip") | found.pop("download_clip")
    return found


def test_a_stage_depends_on_the_code_that_its_rule_can_reach(
    planned_both: tuple[list[Job], list[Stage]],
) -> None:
    rules = modules_of_rules()
    assert {stage.name.partition("@")[0] for stage in planned_both[1]} == set(rules)
    for stage in planned_both[1]:
        code = frozenset(dep for dep in stage.deps if dep.startswith("mmnet/"))
        reached = {
            f"{module.replace('.', '/')}.py"
            for start in rules[stage.name.partition("@")[0]]
            for module in reachable(start)
            if (ROOT / f"{module.replace('.', '/')}.py").exists()  # packages' markers are empty
        }
        assert reached
        lacking = {path for path in reached if not lies_in(path, code)}
        assert not lacking, f"{stage.name} does not depend on {lacking}"
        idle = {dep for dep in code if not any(lies_in(p, frozenset([dep])) for p in reached)}
        assert not idle, f"{stage.name} depends on {idle} for nothing"


# What one tool has made, the other takes as made.


@pytest.fixture(scope="module")
def authors(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' clone: made by Snakemake, recorded, pushed into a folder."""
    folder = tmp_path_factory.mktemp("authors") / "clone"
    shutil.copytree(finished, folder, symlinks=True)
    with_ledger(folder)
    made = snakemake(folder, "--cores", "2", *TARGETS)
    assert made.returncode == 0, made.stderr
    recorded = tool(folder, "mmnet", "record")
    assert recorded.returncode == 0, recorded.stderr
    dvc(folder, "remote", "add", "--local", "--default", "store", str(folder.parent / "store"))
    dvc(folder, "push")
    git(folder, "add", "dvc.lock")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


@pytest.fixture
def work(authors: Path, tmp_path: Path) -> Path:
    """A copy of the authors' clone, with its times and both tools' own records."""
    shutil.copytree(authors, tmp_path / "work", symlinks=True)
    return tmp_path / "work"


def lock_of(folder: Path) -> dict[str, Any]:
    stages: dict[str, Any] = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return stages


def test_recording_leaves_nothing_to_do_and_nothing_to_clean(authors: Path) -> None:
    assert stages_run(dvc(authors, "repro")) == []
    assert git(authors, "status", "--porcelain") == ""
    ignoring = {path.parent.name for path in authors.rglob(".gitignore")}
    assert ignoring == {"clone", ".dvc"}  # DVC would write more where ours lacked something


def test_metrics_parameters_and_curves_are_shown(authors: Path) -> None:
    shown: dict[str, Any] = json.loads(dvc(authors, "metrics", "show", "--json"))
    files = shown[""]["data"]
    assert set(files) == {
        f"scores/mini/{name}/seed0.percent.json" for name in ("refcoco_vit_b", "refcocog_vit_b")
    }
    values = files["scores/mini/refcoco_vit_b/seed0.percent.json"]["data"]
    scores = json.loads((authors / "scores/mini/refcoco_vit_b/seed0.json").read_text())
    assert set(values) == {"val", "testA", "testB"}
    assert values["val"]["mIoU"] == pytest.approx(100 * scores["splits"]["val"]["mIoU"], abs=5e-3)
    plots: dict[str, Any] = json.loads(dvc(authors, "plots", "show", "--json"))
    assert not plots.get("errors")
    for name, column in (("Training loss", "loss"), ("mIoU on val", "val_mIoU")):
        content = plots["data"][name][0]["content"]
        points = {(p["run"], int(p["epoch"])): float(p[column]) for p in content["data"]["values"]}
        assert set(points) == {("refcoco_vit_b seed 0", 1), ("refcocog_vit_b seed 0", 1)}
        assert content["encoding"]["y"]["field"] == column
        assert content["encoding"]["color"]["field"] == "run"
    assert "train_mmnet" in dvc(authors, "dag", "--collapse-foreach-matrix")


def test_files_made_anew_that_are_the_authors_bytes_run_no_command(work: Path) -> None:
    shutil.rmtree(work / ".dvc" / "cache")
    shutil.rmtree(work / ".dvc" / "tmp")
    dvc(work, "fetch")
    assert stages_run(dvc(work, "repro")) == []
    assert git(work, "status", "--porcelain") == ""


def test_a_changed_key_reruns_its_run_alone_and_a_failure_is_retried_alone(work: Path) -> None:
    recorded = lock_of(work)
    with edited_params(work) as params:
        params["experiments"]["refcoco_vit_b"]["train"] = {"lr": 1.0e30}
    failed = tool(work, "dvc", "repro", "--keep-going", "write_table1")
    assert failed.returncode != 0
    assert "the loss is nan" in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    assert {name for name in recorded if recorded[name] != lock_of(work)[name]} == {"towers@mini"}
    before = state(work)
    with edited_params(work) as params:
        params["experiments"]["refcoco_vit_b"]["train"] = {"lr": 1.0e-3}
    again = tool(work, "dvc", "repro", "write_table1")
    assert again.returncode == 0, again.stderr
    output = again.stdout + again.stderr
    assert jobs_run(output) == ["train_mmnet", "predict_masks", "score_run", "write_table1"]
    ours = "mini-refcoco_vit_b-0"
    assert stages_run(output) == [
        "towers@mini",  # which towers are in use is told by the experiments: nothing to do
        *(f"{rule}@{ours}" for rule in ("train_mmnet", "predict_masks", "score_run")),
        "write_table1@mini",
    ]
    after = state(work)
    changed = {path for path in after if before.get(path) != after[path]}
    assert not [path for path in changed if "refcocog_vit_b" in path]
    assert planned(snakemake(work, "-n", "results/table1.tex")) == {}
    assert "experiments.refcoco_vit_b.train.lr" in dvc(work, "params", "diff")
    assert "scores/mini/refcoco_vit_b" in dvc(work, "metrics", "diff")


@pytest.mark.parametrize(
    ("key", "value", "rules"),
    [
        ("evaluate.threshold", 0.4, {"train_mmnet"}),
        ("towers.vit_b.label", "Another", {"score_run"}),
        ("datasets.refcoco.max_length", 18, {"train_mmnet"}),
        ("label", "another benchmark", {"write_table1"}),
    ],
)
def test_no_value_counts_for_snakemake_alone(
    key: str, value: Any, rules: set[str], work: Path
) -> None:
    with edited_params(work) as params:
        section = params["profiles"]["mini"]
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    told = snakemake(work, "-n", *TARGETS)
    because = re.search(r"\n    params have changed.*:\n        (.+)", told.stdout + told.stderr)
    assert because is not None
    assert set(because[1].split(", ")) == rules
    changed = {name.partition("@")[0] for name in json.loads(dvc(work, "status", "--json"))}
    assert changed >= rules


@pytest.mark.parametrize("case", ["other data", "a killed training"])
def test_record_refuses_what_is_not_up_to_date(case: str, work: Path) -> None:
    before = (work / "dvc.lock").read_bytes()
    if case == "other data":
        with edited_params(work) as params:
            params["profiles"]["mini"]["shapes"]["seed"] = 1
    else:
        # Snakemake's own mark, which a job that ends takes away.
        output = base64.urlsafe_b64encode(b"runs/mini/refcoco_vit_b/seed0/checkpoint.pt").decode()
        (work / ".snakemake" / "incomplete").mkdir(exist_ok=True)
        (work / ".snakemake" / "incomplete" / output).touch()
    refused = tool(work, "mmnet", "record")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "is not up to date" in refused.stderr
    assert (work / "dvc.lock").read_bytes() == before


def test_record_refuses_what_was_changed_by_hand(work: Path) -> None:
    before = (work / "dvc.lock").read_bytes()
    table = work / "results" / "table1.tex"
    table.write_text(table.read_text() + "% 99.9\n")
    image = min((work / "data" / "mini" / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"damage")
    (work / "clip" / "mini" / "of_another_table.pt").write_bytes(b"no forgery")
    refused = tool(work, "mmnet", "record")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    named = f"data/mini/images/{image.name}, results/table1.tex"
    assert f"changed, though nothing that it comes from did: {named}. " in refused.stderr
    assert "`dvc checkout FILE`" in refused.stderr
    assert (work / "dvc.lock").read_bytes() == before


# A fresh clone.


def test_pulled_files_are_adopted_and_others_refused(authors: Path, tmp_path: Path) -> None:
    clone = clone_of(authors, tmp_path / "clone")
    nothing = tool(clone, "mmnet", "adopt")
    assert nothing.returncode == 1
    assert "runs/mini/refcoco_vit_b/seed0/checkpoint.pt (deleted)" in nothing.stderr
    assert "`dvc pull`" in nothing.stderr
    dvc(clone, "pull")
    assert "train_mmnet" in planned(snakemake(clone, "-n", *TARGETS))
    table = clone / "results" / "table1.csv"
    mine = table.read_text()
    table.write_text(mine + "\n")
    before = state(clone)
    refused = tool(clone, "mmnet", "adopt")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "not as dvc.lock has it: results/table1.csv (modified)." in refused.stderr
    assert state(clone) == before
    table.write_text(mine)
    adopted = tool(clone, "mmnet", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert planned(snakemake(clone, "-n", *TARGETS)) == {}
    assert stages_run(dvc(clone, "repro")) == []
    after = {path: content for path, (_, content) in state(clone).items()}
    for path, (_, content) in before.items():
        assert after[path] == (mine.encode() if path == "results/table1.csv" else content)


def test_a_table_of_pulled_metrics_runs_its_rule_alone(authors: Path, tmp_path: Path) -> None:
    clone = clone_of(authors, tmp_path / "clone")
    dvc(clone, "pull", "score_run")
    assert not (clone / "runs").exists()
    made = snakemake(clone, "--cores", "1", "results/table1.tex")
    assert jobs_run(made.stdout + made.stderr) == ["write_table1"]
    for suffix in ("tex", "csv", "md"):
        name = f"results/table1.{suffix}"
        assert (clone / name).read_bytes() == (authors / name).read_bytes()
    # What has no rows here keeps its record; the table gets the one it had.
    recorded = tool(clone, "mmnet", "record")
    assert recorded.returncode == 0, recorded.stderr
    assert git(clone, "status", "--porcelain") == ""


def test_one_table_is_recorded_and_adopted_without_the_others(work: Path, tmp_path: Path) -> None:
    whole = lock_of(work)
    (work / "dvc.lock").unlink()
    with edited_params(work) as params:
        # Of Table 2, not trained, and of a tower that is not there; a row of the curves too.
        more = {"dataset": "refcoco+", "tower": "rn50", "tables": ["table2"]}
        params["experiments"]["nq_1"] = {**more, "model": {"num_queries": 1}}
    recorded = tool(work, "mmnet", "record")
    assert recorded.returncode == 0, recorded.stderr
    assert set(lock_of(work)) == set(whole) - {"write_curves@mini"}
    left = {"not up to date": 1, "not all here": 3}
    assert {
        why: int(n) for n, why in re.findall(r"(\d+) left .*(not [a-z ]+)", recorded.stderr)
    } == left
    git(work, "commit", "--quiet", "--all", "--message", "Table 1")

    clone = clone_of(work, tmp_path / "clone")
    dvc(clone, "pull", "--allow-missing")
    adopted = tool(clone, "mmnet", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert f"{len(whole) - 1} stages are as dvc.lock has them" in adopted.stderr
    assert "4 others have no record" in adopted.stderr
    assert planned(snakemake(clone, "-n", "results/table1.tex")) == {}
    (clone / "dvc.lock").unlink()
    refused = tool(clone, "mmnet", "adopt")
    assert refused.returncode == 1
    assert "`git pull`" in refused.stderr


@pytest.mark.parametrize("command", ["adopt", "record"])
def test_the_ledger_is_about_the_file_itself(command: str, authors: Path) -> None:
    refused = tool(authors, "mmnet", command, "--set", "profile=paper")
    assert refused.returncode == 1
    assert "Change it there." in refused.stderr


def test_a_folder_without_dvc_is_one_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    refused = tool(tmp_path, "mmnet", "adopt", PYTHONPATH=str(ROOT))
    assert refused.returncode == 1
    assert refused.stderr.startswith("mmnet: dvc: ")
    assert refused.stderr.count("\n") == 1
