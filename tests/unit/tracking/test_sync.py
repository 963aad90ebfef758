"""Runs sent to MLflow from their files, tables made from it, and mistakes told in one line."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from mmnet.cli.parser import main
from mmnet.config.load import load_params
from mmnet.config.schema import Params
from mmnet.config.tables import TABLES
from mmnet.pipeline import dvc
from mmnet.runtime.errors import ConfigError, LedgerError, TrackingError
from mmnet.runtime.files import locked, read_json, write_json
from mmnet.tracking import live
from mmnet.tracking.provenance import check_clean, revision, say_revision
from mmnet.tracking.record import begin
from mmnet.tracking.store import Store, database_of, one_line
from support.project import needs
from support.tiny import ROOT, Tiny
from support.tracking import (
    RUN,
    SETTINGS,
    assert_holds,
    identity_of,
    mistake,
    pull,
    python,
    recorded_run,
    run_of,
    runs_in,
    said,
    seeded,
    sync,
)
from support.training import CPU

pytestmark = pytest.mark.xdist_group("tracking")  # MLflow imported once


def test_a_run_pulled_from_elsewhere_is_the_run_that_its_training_recorded(
    tiny: Tiny, project: Path
) -> None:
    run = pull(tiny.config, epochs=2)
    accepted = [{"from": "0", "differences": ["train.lr 1 -> 2", "mmnet/train/loop.py changed"]}]
    write_json(run.identity, read_json(run.identity) | {"accepted": accepted})
    sync(tiny)
    store = Store(project)
    assert_holds(store, run)
    pulled = recorded_run(store, run)
    assert "device" not in pulled.data.tags
    times = [pulled.info.start_time, pulled.info.end_time]
    assert pulled.data.tags["accepted"] == "train.lr 1 -> 2; mmnet/train/loop.py changed"

    # Where it was trained, the same run says more; pulled once more, nothing of it is lost.
    identity = identity_of(tiny.config)
    work = run.work(identity)
    write_json(work.finished, {})
    begin(tiny.config, run, identity, CPU)
    assert not work.record.exists()  # it was not trained here and now
    work.finished.unlink()
    begin(tiny.config, run, identity, CPU)
    for _ in range(2):
        sync(tiny)
        found = recorded_run(store, run)
        assert found.data.tags["device"].startswith("cpu, ")
        assert [found.info.start_time, found.info.end_time] == times
        assert_holds(store, run)
        shutil.rmtree(work.folder, ignore_errors=True)


def test_a_training_whose_process_is_gone_is_killed_not_running(tiny: Tiny, project: Path) -> None:
    store, run, identity = Store(project), run_of(tiny.config), identity_of(tiny.config)
    work = run.work(identity)
    about = {"experiment": run.experiment, "seed": run.seed, "identity": identity.as_dict()}
    write_json(work.about, about)
    begin(tiny.config, run, identity, CPU)
    with locked(work.folder):
        sync(tiny)
        assert [run.info.status for run in runs_in(store, "tags.seed = '0'")] == ["RUNNING"]
    work.folder.with_name(f".{work.folder.name}.lock").touch()  # which a killed process leaves
    sync(tiny)
    (killed,) = runs_in(store, "tags.seed = '0'")
    assert killed.info.status == "KILLED"
    # Its process knew better.
    store.client.set_terminated(killed.info.run_id, "FAILED")
    sync(tiny)
    assert [run.info.status for run in runs_in(store, "tags.seed = '0'")] == ["FAILED"]


def test_runs_may_be_a_link_and_repository_and_database_may_move(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = project.parent / "scratch"
    scratch.mkdir()
    (project / "runs").symlink_to(scratch)
    run = pull(tiny.config)
    pull(seeded(tiny, 1))
    assert main(["mlflow-sync", str(run.folder), *SETTINGS]) == 0
    assert main(["mlflow-sync", str(scratch / "mini" / run.experiment / "seed1"), *SETTINGS]) == 0
    assert len(list(project.glob("mlartifacts/mini/*/*/*"))) == 6
    for address in ("mlflow.db", "./mlflow.db?timeout=9", f"{project}/runs/../project/mlflow.db"):
        assert database_of(f"sqlite+pysqlite:///{address}") == project.resolve() / "mlflow.db"
    assert database_of("http://localhost/sqlite:///mlflow.db") is None

    moved = project.rename(project.parent / "moved")
    project.touch()  # nothing can be written there any more
    monkeypatch.chdir(moved)
    lost = next(moved.glob("mlartifacts/mini/*/*/scores.json"))
    lost.unlink()
    capsys.readouterr()
    sync(tiny)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(": ")[2] for line in lines) == ["nothing new", "scores.json"]
    assert lost.is_file()


@pytest.fixture
def scored(project: Path) -> Params:
    """All runs of all tables, as pulled."""
    params = load_params(ROOT / "params.yaml", [])
    for experiment in params.experiments:
        for seed in params.seeds:
            pull(params.resolve(experiment, seed))
    return params


def test_tables_from_mlflow_are_the_same_bytes_as_from_files(
    scored: Params, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tables(*more: str) -> dict[str, bytes]:
        for table in TABLES:
            assert main(["report", table, *more]) == 0
        made = {path.name: path.read_bytes() for path in (project / "results").iterdir()}
        shutil.rmtree(project / "results")
        return made

    from_files = tables()
    assert {f"table{n}.{suffix}" for n in range(1, 5) for suffix in ("tex", "csv")} <= {*from_files}
    assert main(["mlflow-sync", "runs/mini/nq_1/seed0"]) == 0
    capsys.readouterr()
    assert main(["report", "table2", "--from-mlflow"]) == 1
    assert "nq_32 seed 0" in capsys.readouterr().err  # one that MLflow lacks
    assert main(["mlflow-sync", "--port", "5001"]) == 0
    assert "5001/#/experiments/" in capsys.readouterr().out
    shutil.rmtree(project / "scores")
    assert tables("--from-mlflow") == from_files
    # An evaluation with other values is not what the table asks for.
    store = Store(project)
    run = run_of(scored.resolve("nq_1", 0))
    kept = project / f"mlartifacts/mini/{recorded_run(store, run).info.run_id}/artifacts"
    changed = json.loads((kept / "scores.json").read_text())
    changed["config"]["evaluate"]["threshold"] = 0.123
    write_json(kept / "scores.json", changed)
    assert main(["report", "table2", "--from-mlflow"]) == 1


def test_a_database_that_cannot_be_used_is_one_line_and_stays_as_it_is(
    tiny: Tiny,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, database = pull(tiny.config), project / "mlflow.db"
    database.write_bytes(b"no database " * 1000)
    line = mistake(capsys, "mlflow-sync")
    assert str(database) in line
    assert "move it away" in line
    assert database.read_bytes() == b"no database " * 1000
    live.send(run, [])  # as `evaluate`, which has its results
    assert len(said(capsys)) == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    (project / "other.db").touch()  # as good as none
    assert main(["mlflow-sync", str(run.folder)]) == 0


def test_what_is_not_a_run_or_damaged_is_one_line_and_keeps_no_other_from_mlflow(
    tiny: Tiny, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("runs", "runs/mini/refcoco_vit_b", "runs/mini/refcoco_vit_b/seed7"):
        assert "runs/PROFILE/EXPERIMENT/seedN" in mistake(capsys, "mlflow-sync", folder)
    for seed in range(4):
        pull(seeded(tiny, seed))
    run_of(seeded(tiny, 0)).metrics.write_text("{")
    run_of(seeded(tiny, 1)).identity.write_text("[]")
    run_of(seeded(tiny, 2)).scores.write_text("{}")
    assert "seed0: " in mistake(capsys, "mlflow-sync")
    store = Store(project)
    assert {run.data.tags["seed"] for run in runs_in(store, "tags.seed LIKE '_'")} == {"2", "3"}
    assert "testA/mIoU" not in recorded_run(store, run_of(seeded(tiny, 2))).data.metrics


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("Max retries exceeded"), "start it"),
        (OSError("failed with error code 401 != 200"), "MLFLOW_TRACKING_TOKEN"),
        (sqlite3.DatabaseError("file is not a database"), "move it away"),
        (ValueError("Something\nelse"), "Something else"),
    ],
)
def test_errors_of_a_store_say_what_to_do_without_a_password(error: Exception, words: str) -> None:
    with pytest.raises(TrackingError) as caught, one_line("http://me:secret@server"):
        raise error
    assert str(caught.value).startswith("http://server: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_dirty_tree_is_refused_where_a_clean_one_is_required(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *RUN, *SETTINGS, "--set", "mlflow.require_clean=true"]
    (project / ".gitignore").write_text("/data/\n")
    assert "git" in mistake(capsys, *command)
    needs("git")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *arguments], check=True, cwd=project)
    (project / "dvc.lock").touch()  # DVC writes it after each stage
    check_clean(project)
    assert revision(project)["changed"] == []
    (project / "data" / "archive").mkdir()  # unpacked inside a clone of something else
    assert f"{project}, the repo" in revision(project / "data" / "archive")["reason"]
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "\n")
    (project / "new.py").touch()
    assert "params.yaml, new.py" in mistake(capsys, *command)
    assert not (project / "runs").exists()


def test_without_mlflow_nothing_of_it_is_left_or_loaded(tiny: Tiny, project: Path) -> None:
    run = run_of(tiny.config)
    run.rows.parent.mkdir(parents=True)
    splits = tiny.config.dataset.splits
    rows = pd.DataFrame({"split": splits, "intersection": 1, "union": 2, "sent_id": 1})
    rows.attrs["config"] = tiny.config.prediction_values()
    rows.to_parquet(run.rows)
    script = f"""
import sys
from mmnet.cli.parser import main
assert main(["evaluate", *{RUN}, *{SETTINGS}]) == 0
sys.exit("mlflow" in sys.modules)
"""
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert not (project / "mlflow.db").exists()


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:1", "sqlite:////elsewhere/own.db?a=1"])
def test_make_ui_serves_a_database_and_only_names_a_server(uri: str, tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "mlflow"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tools / name).chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    command = ["make", "--silent", "ui", "PORT=5001"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    out = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert "mlflow-sync --port 5001" in out
    served = [line for line in out.splitlines() if line.startswith("mlflow ")]
    if uri.startswith("http"):
        assert served == []
        return
    database, artifacts = uri or f"sqlite:///{tmp_path}/mlflow.db", "/elsewhere"
    assert f"--backend-store-uri {database}" in served[0]
    assert f"--artifacts-destination {artifacts if uri else tmp_path}/mlartifacts" in served[0]


def test_where_git_has_no_revision_the_run_says_so_and_records_why(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    reason = revision(project)["reason"]
    assert reason == "git is not installed" or "not a git repository" in reason
    say_revision(project)
    assert reason in capsys.readouterr().err
    with pytest.raises(ConfigError, match=re.escape(reason)):
        check_clean(project)
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))  # as in a hook of another repository
    assert revision(project)["commit"] is None
    monkeypatch.setenv("PATH", str(project))
    assert revision(project)["reason"] == "git is not installed"
    # DVC's own commands cannot do without.
    monkeypatch.chdir(project)
    (project / ".dvc").mkdir()
    for command in (dvc.record, dvc.adopt):
        with pytest.raises(LedgerError, match="git init"):
            command()
