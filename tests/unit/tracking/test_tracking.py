"""MLflow: all of a run is recorded, once, and training neither waits for that nor fails with it."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.identity import Identity, RunInputs, flat, training_identity
from mmnet.config.load import load_params
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config, Params
from mmnet.config.tables import TABLES, rows_of_run
from mmnet.evaluate.metrics import METRICS
from mmnet.runtime.errors import Stopped, TrackingError
from mmnet.runtime.files import read_json, write_json
from mmnet.tracking import live
from mmnet.tracking.provenance import check_clean, revision
from mmnet.tracking.record import begin, note_end, note_epochs
from mmnet.tracking.store import Store, database_of, one_line
from mmnet.train import loop
from mmnet.train.run_state import Saver
from support.mlflow_server import Hanging, Server, Unauthorised, serving
from support.tiny import ROOT, TINY, Tiny

pytestmark = pytest.mark.xdist_group("tracking")  # one server, and MLflow imported once

CPU = torch.device("cpu")
RUN = ["--experiment", "refcoco_vit_b"]
SETTINGS = [part for override in TINY for part in ("--set", override)]
WITH_MLFLOW = [*SETTINGS, "--set", "mlflow.enabled=true"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


@pytest.fixture
def project(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose data are prepared, and a store of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    paths = Paths("mini")
    for name, path in tiny.tables.items():
        paths.table(name).parent.mkdir(parents=True, exist_ok=True)
        paths.table(name).symlink_to(path)
    paths.images.symlink_to(tiny.images)
    paths.manifest.symlink_to(tiny.images.with_suffix(".tsv"))
    return folder


def run_of(config: Config) -> RunPaths:
    return Paths(config.profile).run(config.experiment, config.seed)


def inputs_of(tiny: Tiny) -> RunInputs:
    manifest = tiny.images.with_suffix(".tsv")
    return RunInputs(table=tiny.table, images=tiny.images, manifest=manifest, weights=None)


def seeded(tiny: Tiny, seed: int) -> Config:
    return tiny.config.model_copy(update={"seed": seed})


def train(tiny: Tiny, config: Config | None = None) -> RunPaths:
    """Train as `mmnet train` does."""
    config, inputs = config or tiny.config, inputs_of(tiny)
    run, identity = run_of(config), training_identity(config, inputs)
    with live.recorded(config, run, identity, rows_of_run(config, tiny.params), CPU):
        loop.fit(config, identity, inputs=inputs, run=run, device=CPU)
    return run


def sync(tiny: Tiny) -> None:
    live.sync_all(Paths("mini"), [], tiny.params)


def runs_in(store: Store, which: str) -> list[Any]:
    return list(store.client.search_runs([store.experiment("mini")], which))


def recorded_run(store: Store, run: RunPaths) -> Any:
    """The one run that MLflow has of what is published, or None."""
    digest = Identity.from_dict(read_json(run.identity)["identity"]).digest  # type: ignore[union-attr]
    found = runs_in(store, f"tags.`mmnet.identity` = '{digest}'")
    assert len(found) <= 1
    return found[0] if found else None


def history(store: Store, found: Any, key: str) -> list[tuple[int, float]]:
    points = store.client.get_metric_history(found.info.run_id, key)
    return [(point.step, point.value) for point in points]


def assert_holds(store: Store, run: RunPaths) -> None:
    """The store has each epoch of metrics.jsonl, once."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = recorded_run(store, run)
    for key, name in (("val per epoch/mIoU", "mIoU"), ("val per epoch/Pr_0.9", "Pr@0.9")):
        expected = [(line["epoch"], line["val"][name]) for line in lines]
        assert history(store, found, key) == expected
    assert history(store, found, "train/loss") == [(line["epoch"], line["loss"]) for line in lines]
    assert found.info.status == "FINISHED"


def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What training leaves without MLflow."""
    inputs = inputs_of(tiny)
    run = Paths("mini", tmp_path_factory.mktemp("undisturbed")).run("refcoco_vit_b", 0)
    identity = training_identity(tiny.config, inputs)
    loop.fit(tiny.config, identity, inputs=inputs, run=run, device=CPU)
    return {path.name: path.read_bytes() for path in (run.checkpoint, run.metrics)}


def assert_undisturbed(run: RunPaths, undisturbed: dict[str, bytes]) -> None:
    for name, content in undisturbed.items():
        assert (run.folder / name).read_bytes() == content


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines about MLflow; nothing may be on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    return [line for line in err.splitlines() if "mlflow" in line.lower()]


def after_first_epoch(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    save = Saver.save

    def saved(self: Saver) -> None:
        save(self)
        if self.state.epoch == 1:
            do()

    monkeypatch.setattr(Saver, "save", saved)


# A server that is down, killed, slow, or refuses.


@pytest.mark.parametrize("when", ["down", "killed", "unauthorised"])
def test_a_server_that_fails_costs_one_line_and_sync_sends_the_rest_once(
    when: str,
    tiny: Tiny,
    project: Path,
    server: Server,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny.config
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.kill()
    with contextlib.ExitStack() as stack:
        if when == "killed":
            server.start()
            store = Store(project)

            def kill() -> None:
                wait_until(lambda: any("train/loss" in r.data.metrics for r in runs_in(store, "")))
                server.kill()

            after_first_epoch(monkeypatch, kill)
        elif when == "unauthorised":
            address = stack.enter_context(serving(Unauthorised)).replace("//", "//me:secret@")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        run = train(tiny, config)
    (line,) = said(capsys)
    assert "mmnet mlflow-sync" in line
    assert "secret" not in line
    assert_undisturbed(run, undisturbed)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    sync(tiny)
    store = Store(project)
    assert_holds(store, run)
    once = recorded_run(store, run).to_dictionary()
    capsys.readouterr()
    sync(tiny)
    assert "nothing new" in capsys.readouterr().err
    assert recorded_run(store, run).to_dictionary() == once
    assert_holds(store, run)
    store.client.delete_run(once["info"]["run_id"])
    sync(tiny)
    assert "deleted" in capsys.readouterr().err
    shutil.rmtree(server.folder / "artifacts")  # for the next case
    server.kill()
    (server.folder / "server.db").unlink()


def test_a_server_that_hangs_holds_up_neither_training_nor_the_end_of_the_process(
    tiny: Tiny,
    project: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(live, "WAIT", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "100000")  # a call never ends by itself
    with serving(Hanging) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        run = train(tiny)
        (line,) = said(capsys)
        assert "did not take all of" in line
        assert_undisturbed(run, undisturbed)

        # Stopped by a signal: saved, and it waits for nothing.
        config = seeded(tiny, 1)
        identity = training_identity(config, inputs_of(tiny))
        with (
            pytest.raises(Stopped),
            live.recorded(config, run_of(config), identity, [], CPU),
        ):
            raise Stopped("stopped by SIGTERM", signal.SIGTERM)
        assert said(capsys) == []
        record = read_json(run_of(config).work(identity).record)
        assert record["ended"]["status"] == "KILLED"

        script = f"""
from pathlib import Path
from types import SimpleNamespace
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.tracking import live
live.WAIT = 0.1
config = Config.model_validate_json({config.model_dump_json()!r})
identity = Identity(values=config.training_values(), data={{}}, code={{}})
with live.recorded(config, Paths("mini").run("a", 2), identity, [], SimpleNamespace(type="cpu")):
    pass
"""
        done = python(script)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1


def python(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )


# What is recorded.


def test_a_run_from_training_to_scores_is_recorded_with_all_that_tells_it(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RUN_ID", "EXPERIMENT_NAME", "EXPERIMENT_ID", "PARENT_RUN_ID"):
        monkeypatch.setenv(f"MLFLOW_{name}", "77")
    monkeypatch.setattr(live, "SAMPLE_EVERY", 0.1)
    store, run = Store(project), run_of(tiny.config)

    def sampled() -> bool:
        return any(
            "system/cpu_utilization_percentage" in r.data.metrics for r in runs_in(store, "")
        )

    after_first_epoch(monkeypatch, lambda: wait_until(sampled))
    for command in ("train", "predict", "evaluate"):
        assert main([command, *RUN, *WITH_MLFLOW]) == 0
    assert said(capsys) == []
    assert_holds(store, run)
    found = recorded_run(store, run)
    assert found.info.run_name == "refcoco_vit_b seed 0"
    assert found.data.params == {
        key: str(value) for key, value in flat(tiny.config.training_values()).items()
    }
    scores = json.loads(run.scores.read_text())["splits"]
    assert found.data.metrics["testA/mIoU"] == scores["testA"]["mIoU"]
    for tag, value in {
        "profile": "mini",
        "dataset": "refcoco",
        "backbone": "mini ViT-B",
        "seed": "0",
        "tables": "table1",
        "table1": "mini ViT-B on refcoco",
        "version.torch": torch.__version__,
        "checkpoint.path": str(run.checkpoint),
        "evaluate.threshold": str(tiny.config.evaluate.threshold),
        "recorded": "by its training",
    }.items():
        assert found.data.tags[tag].partition("+")[0] == value.partition("+")[0], tag
    assert found.data.tags["device"].startswith("cpu, ")
    for tag in ("data.table", "data.images", "code", "checkpoint.sha256"):
        assert len(found.data.tags[tag]) == 64
    parent = store.client.get_run(found.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "Table 1: three data sets"
    tags = store.client.get_experiment(found.info.experiment_id).tags
    assert "tags.tables" in tags["mlflow.sharedViewState.table1"]
    kept = {path.name: path.read_bytes() for path in project.glob("mlartifacts/mini/*/*/*")}
    assert {*kept} == {"config.yaml", "metrics.jsonl", "scores.json", "predictions.png"}
    assert kept["scores.json"] == run.scores.read_bytes()
    assert store.page("mini", "http://127.0.0.1:5001").startswith(
        f"http://127.0.0.1:5001/#/experiments/{found.info.experiment_id}/runs?"
    )

    # Published again, recorded again: nothing of it changes, its times least of all.
    assert main(["train", *RUN, *WITH_MLFLOW]) == 0
    assert main(["mlflow-sync", *SETTINGS]) == 0
    assert recorded_run(store, run).to_dictionary() == found.to_dictionary()


def test_a_resumed_run_is_the_same_run_and_a_changed_one_another(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(project)

    def interrupt() -> None:
        wait_until(lambda: any("train/loss" in run.data.metrics for run in runs_in(store, "")))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        after_first_epoch(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tiny)
    sync(tiny)
    (first,) = runs_in(store, "tags.seed = '0'")
    assert first.info.status == "KILLED"
    assert [step for step, _ in history(store, first, "train/loss")] == [1]

    run = train(tiny)
    assert_holds(store, run)
    assert recorded_run(store, run).info.run_id == first.info.run_id
    times = [p.timestamp for p in store.client.get_metric_history(first.info.run_id, "train/loss")]
    assert times == sorted({*times})

    options = tiny.config.train.model_copy(update={"lr": 5e-4})
    write_json(run.scores, {"config": tiny.config.prediction_values(), "splits": {"val": {"a": 1}}})
    train(tiny, tiny.config.model_copy(update={"train": options}))
    sync(tiny)
    second = recorded_run(store, run)
    assert second.info.run_id != first.info.run_id
    assert second.data.params["train.lr"] == "0.0005"
    assert "val/a" not in second.data.metrics  # the scores are of the other training
    assert len(runs_in(store, "tags.seed = '0'")) == 2


def test_eight_processes_at_once_on_a_fresh_database_lose_nothing(
    tiny: Tiny, project: Path
) -> None:
    configs = [seeded(tiny, seed).model_dump_json() for seed in range(8)]
    tables = rows_of_run(tiny.config, tiny.params)
    script = f"""
import json, os
from types import SimpleNamespace
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.tracking import live
live.silence_mlflow()
live.WAIT = 1000
children = []
for text in {configs!r}:
    children.append(os.fork())
    if children[-1]:
        continue
    config = Config.model_validate_json(text)
    run = Paths("mini").run(config.experiment, config.seed)
    identity = Identity(values=config.training_values(), data={{}}, code={{}})
    with live.recorded(config, run, identity, {tables!r}, SimpleNamespace(type="cpu")):
        for epochs in (1, 2):
            lines = [{{"epoch": n, "lr": 1.0, "loss": 1 / n, "val": {{}}}} for n in (1, 2)[:epochs]]
            text = "".join(json.dumps(line) + "\\n" for line in lines)
            run.work(identity).metrics.write_text(text)
    os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store = Store(project)
    found = runs_in(store, "tags.tables = 'table1'")
    assert sorted(run.data.tags["seed"] for run in found) == sorted("01234567")
    for run in found:
        assert history(store, run, "train/loss") == [(1, 1.0), (2, 0.5)]
        assert run.info.status == "FINISHED"
    assert len(runs_in(store, "tags.`mmnet.table` = 'table1'")) == 1


# Runs from elsewhere, and files that move.


def identity_of(config: Config) -> Identity:
    return Identity(values=config.training_values(), data={"table": "0" * 64}, code={})


def pull(config: Config, *, epochs: int = 1) -> RunPaths:
    """Write what DVC would bring of a finished run, values made up."""
    run, draw = run_of(config), random.Random(f"{config.experiment} {config.seed}")
    run.folder.mkdir(parents=True, exist_ok=True)
    run.checkpoint.write_bytes(b"weights")
    lines = [
        {"epoch": n, "lr": 1e-4, "loss": draw.random(), "val": dict.fromkeys(METRICS, n / 10)}
        for n in range(1, epochs + 1)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {"experiment": config.experiment, "seed": config.seed}
    write_json(run.identity, about | {"identity": identity_of(config).as_dict()})
    splits = {
        split: {"sentences": 7, **{metric: draw.random() for metric in METRICS}}
        for split in config.dataset.splits
    }
    about |= {"profile": "mini", "dataset": config.dataset_name, "backbone": config.tower.label}
    write_json(run.scores, about | {"config": config.prediction_values(), "splits": splits})
    return run


def test_a_run_pulled_from_elsewhere_is_the_run_that_its_training_recorded(
    tiny: Tiny, project: Path
) -> None:
    run = pull(tiny.config, epochs=2)
    sync(tiny)
    store = Store(project)
    assert_holds(store, run)
    pulled = recorded_run(store, run)
    assert "device" not in pulled.data.tags
    assert pulled.data.tags["recorded"] != "by its training"

    # Where it was trained, the same is sent to the same store, and then pulled once more.
    identity = identity_of(tiny.config)
    work = run.work(identity)
    begin(tiny.config, run, identity, [], CPU)
    shutil.copy(run.metrics, work.metrics)
    note_epochs(work, identity)
    note_end(work, identity, "FINISHED")
    for _ in range(2):
        sync(tiny)
        found = recorded_run(store, run)
        assert found.data.tags["recorded"] == "by its training"
        assert (found.info.start_time, found.info.end_time) == (
            pulled.info.start_time,
            pulled.info.end_time,
        )
        assert_holds(store, run)
        shutil.rmtree(work.folder, ignore_errors=True)


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


def test_a_database_is_known_however_it_is_named(project: Path) -> None:
    for address in (
        "sqlite:///mlflow.db",
        "sqlite:///./mlflow.db?timeout=9",
        f"sqlite+pysqlite:///{project}/runs/../mlflow.db",
    ):
        assert database_of(address) == project.resolve() / "mlflow.db"
    assert database_of("http://localhost/sqlite:///mlflow.db") is None


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


# Mistakes of a user, each in one line.


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mmnet: ")
    return line


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
    store = Store(project)
    store.client.delete_experiment(store.experiment("mini"))
    assert "experiments restore" in mistake(capsys, "mlflow-sync")
    assert "experiments restore" in mistake(capsys, "report", "table2", "--from-mlflow")


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
        (sqlite3.OperationalError("database is locked"), "another process"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "permissions"),
        (PermissionError(13, "Permission denied"), "permissions"),
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


def test_a_recorder_that_cannot_begin_costs_one_line_and_no_training(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "begin", lambda *arguments: {}["nobody foresaw"])
    run = train(tiny)
    assert run.checkpoint.is_file()
    (line,) = said(capsys)
    assert "KeyError: 'nobody foresaw'" in line


def test_a_dirty_tree_is_refused_where_a_clean_one_is_required(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *RUN, *SETTINGS, "--set", "mlflow.require_clean=true"]
    (project / ".gitignore").write_text("/data/\n")
    assert "git" in mistake(capsys, *command)
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *arguments], check=True, cwd=project)
    (project / "dvc.lock").touch()  # DVC writes it after each stage
    check_clean(project)
    assert revision(project)["changed"] == []
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
