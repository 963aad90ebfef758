"""MLflow: all of a run is recorded, once, and training neither waits for that nor dies of it."""

import contextlib
import http.server
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.load import load_params
from mmnet.config.paths import Layout
from mmnet.config.schema import Config, Params
from mmnet.config.tables import TABLES, rows_of_run
from mmnet.evaluate.metrics import METRICS
from mmnet.runtime.errors import Stopped, TrackingError
from mmnet.tracking import live as tracking
from mmnet.tracking import sync
from mmnet.tracking.from_mlflow import scores_of
from mmnet.tracking.mlflow_database import database_of
from mmnet.tracking.mlflow_store import Sent, Store
from mmnet.tracking.provenance import check_clean, revision
from mmnet.tracking.record_names import from_params, to_params
from mmnet.tracking.run_files import RunFiles, read_record
from mmnet.tracking.run_record import RunRecord, read_run
from mmnet.tracking.store_errors import speaking
from mmnet.train import loop
from support.tiny import ROOT, TINY, Tiny
from support.training import fit

pytestmark = pytest.mark.xdist_group("tracking")  # one server, and MLflow imported once

CPU = torch.device("cpu")
RUN = ["--experiment", "refcoco_vit_b"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A real `mlflow server` on localhost, which can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self.folder
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--port", str(self.port), "--host", "127.0.0.1"]
        command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **quiet},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            time.sleep(0.1)
        pytest.fail((folder / "log").read_text())

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers too
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


@pytest.fixture
def project(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose data are prepared, and a store of its own."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    layout = Layout("mini")
    for name, path in tiny.tables.items():
        layout.table(name).parent.mkdir(parents=True, exist_ok=True)
        layout.table(name).symlink_to(path)
    layout.images.symlink_to(tiny.images)
    layout.manifest.symlink_to(tiny.images.with_suffix(".tsv"))
    return tmp_path


def run_of(config: Config) -> RunFiles:
    return RunFiles(Layout(config.profile), config.experiment, config.seed)


def inputs_of(config: Config, layout: Layout) -> dict[str, Any]:
    return {
        "table": layout.table(config.dataset_name),
        "manifest": layout.manifest,
        "weights": None,
        "device": CPU,
    }


def train(tiny: Tiny, config: Config | None = None) -> RunFiles:
    """Train as `mmnet train` does."""
    config = config or tiny.config
    layout, run = Layout(config.profile), run_of(config)
    inputs = inputs_of(config, layout)
    with tracking.recorded(config, layout, tables=rows_of_run(config, tiny.params), **inputs):
        loop.fit(config, images=layout.images, folder=run.folder, **inputs)
    return run


def recorded_run(store: Store, run: RunFiles) -> Any:
    record = read_record(run)
    assert record is not None
    experiment = store.client.get_experiment_by_name("mmnet mini")
    which = f"tags.`mmnet.id` = '{record['id']}'"
    found = store.client.search_runs([experiment.experiment_id], which) if experiment else []
    assert len(found) <= 1
    return store.client.get_run(found[0].info.run_id) if found else None


def sent(store: Store, run: RunFiles) -> dict[str, float]:
    found = recorded_run(store, run)
    return found.data.metrics if found else {}


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def history(store: Store, run: RunFiles, key: str) -> list[tuple[int, float]]:
    id = recorded_run(store, run).info.run_id
    return [(point.step, point.value) for point in store.client.get_metric_history(id, key)]


def assert_holds(store: Store, run: RunFiles) -> None:
    """The store has each epoch of metrics.jsonl, once."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for key, name in (("val per epoch/mIoU", "mIoU"), ("val per epoch/Pr_0.9", "Pr@0.9")):
        expected = [(line["epoch"], line["val"][name]) for line in lines]
        assert history(store, run, key) == expected
    assert history(store, run, "train/loss") == [(line["epoch"], line["loss"]) for line in lines]
    assert recorded_run(store, run).info.status == "FINISHED"


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What training leaves without MLflow."""
    folder = fit(tiny, tmp_path_factory.mktemp("undisturbed"))
    return {name: (folder / name).read_bytes() for name in ("checkpoint.pt", "metrics.jsonl")}


def assert_undisturbed(run: RunFiles, undisturbed: dict[str, bytes]) -> None:
    for name, content in undisturbed.items():
        assert (run.folder / name).read_bytes() == content


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines about MLflow."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("mlflow: ")]


def sync_all(tiny: Tiny) -> None:
    sync.sync_all(Layout("mini"), [], params=tiny.params, rows_of_run=rows_of_run)


# With a server that is down, killed, or slow.


def test_server_down_at_the_start_costs_one_line_and_sync_sends_all_of_it_once(
    tiny: Tiny,
    project: Path,
    server: Server,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.kill()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = train(tiny)
    (line,) = said(capsys)
    assert f"{server.uri}: the server does not answer. Start it, or mend MLFLOW_TRACKING" in line
    assert "Training goes on, and nothing of it is lost" in line
    assert_undisturbed(run, undisturbed)

    server.start()
    sync_all(tiny)
    assert "metrics, config.yaml, metrics.jsonl (a new run)" in capsys.readouterr().err
    store = Store(project)
    assert_holds(store, run)
    once = recorded_run(store, run).to_dictionary()
    sync_all(tiny)
    assert f"{run.name}: nothing new" in capsys.readouterr().err
    assert recorded_run(store, run).to_dictionary() == once
    assert_holds(store, run)


def test_server_killed_midway_costs_one_line_and_sync_sends_the_rest(
    tiny: Tiny,
    project: Path,
    server: Server,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not server.process:
        server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    save = loop.save

    def kill_after_first_epoch(run: loop.Run, *arguments: Any, **more: Any) -> None:
        save(run, *arguments, **more)
        if run.epoch == 1:
            store = Store(project)
            wait_until(lambda: "train/loss" in sent(store, run_of(tiny.config)))
            server.kill()

    monkeypatch.setattr(loop, "save", kill_after_first_epoch)
    run = train(tiny)
    assert len(said(capsys)) == 1
    assert_undisturbed(run, undisturbed)
    server.start()
    sync_all(tiny)
    assert_holds(Store(project), run)


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Slow(http.server.BaseHTTPRequestHandler):
    """A server that takes a request, and its time."""

    def do_GET(self) -> None:
        time.sleep(30)

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_server_that_hangs_holds_training_up_no_longer_than_the_patience(
    tiny: Tiny,
    project: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    ended: list[float] = []
    finish = loop.publish
    monkeypatch.setattr(loop, "publish", lambda *a: (finish(*a), ended.append(time.monotonic())))
    with serving(Slow) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        run = train(tiny)
    assert time.monotonic() - ended[0] < 8
    (line,) = said(capsys)
    assert f"the store did not take all of {run.name} in 2 s" in line
    assert "Nothing is lost; to send the rest: mmnet mlflow-sync." in line
    assert_undisturbed(run, undisturbed)


def test_a_run_asked_to_stop_is_killed_not_failed_and_waits_for_no_server(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, run = Layout("mini"), run_of(tiny.config)
    inputs = inputs_of(tiny.config, layout)
    recorders: list[tracking.Recorder] = []

    def kept(run: RunFiles) -> tracking.Recorder:
        recorders.append(made(run))
        return recorders[0]

    made = tracking.Recorder
    monkeypatch.setattr(tracking, "Recorder", kept)
    with serving(Slow) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        block = tracking.recorded(tiny.config, layout, tables=[], **inputs)
        block.__enter__()
        stopped = Stopped("SIGTERM: saved.", signal.SIGTERM)
        asked = time.monotonic()
        assert not block.__exit__(Stopped, stopped, None)
        assert time.monotonic() - asked < 2
        recorders[0].process.kill()
        recorders[0].process.wait()
        recorders[0].listener.join()
    record = read_record(run)
    assert record is not None
    assert record["ended"]["status"] == "KILLED"


# What is recorded.


def test_a_run_from_training_to_scores_is_recorded_with_all_that_tells_it(
    tiny: Tiny, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for override in [*TINY, "mlflow.enabled=true"] for part in ("--set", override)]
    run = run_of(tiny.config)
    for command in ("train", "predict", "evaluate"):
        assert main([command, *RUN, *settings]) == 0
    assert said(capsys) == []
    store = Store(project)
    assert_holds(store, run)
    found = recorded_run(store, run)
    assert found.info.run_name == "refcoco_vit_b seed 0"
    assert from_params(found.data.params) == tiny.config.identity()
    assert scores_of(found) == json.loads(run.scores.read_text())
    assert "system/cpu_utilization_percentage" in found.data.metrics
    for tag, value in {
        "profile": "mini",
        "dataset": "refcoco",
        "backbone": "mini ViT-B",
        "seed": "0",
        "tables": "table1",
        "table1": "mini ViT-B on refcoco",
        "version.torch": torch.__version__.partition("+")[0],
        "checkpoint.path": str(run.checkpoint),
    }.items():
        assert found.data.tags[tag].partition("+")[0] == value, tag
    assert found.data.tags["device"].startswith("cpu, ")
    for tag in ("data.sentences", "data.images", "checkpoint.sha256"):
        assert len(found.data.tags[tag]) == 64
    parent = store.client.get_run(found.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "Table 1: three data sets"
    inputs = {i.dataset.name: i.tags[0].value for i in found.inputs.dataset_inputs}
    assert inputs == {f"refcoco {split}": split for split in ("train", "val", "testA", "testB")}
    artifacts = {file.path for file in store.client.list_artifacts(found.info.run_id)}
    assert artifacts == {"config.yaml", "metrics.jsonl", "predictions.png"}
    assert (project / "mlartifacts" / "mini").is_dir()
    # The record says of itself what decides in training.
    finished = json.loads((run.folder / "work" / "finished.json").read_text())
    record = read_record(run)
    assert record is not None
    assert record["identity"] == finished


def break_off_after_first_epoch(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> RunFiles:
    """Train until Ctrl-C in the second epoch."""
    train_one_epoch = loop.train_one_epoch

    def break_off(run: loop.Run, *arguments: Any) -> float:
        if run.epoch == 1:
            raise KeyboardInterrupt
        return train_one_epoch(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_one_epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            train(tiny)
    return run_of(tiny.config)


def test_a_resumed_run_is_the_same_run_and_a_changed_one_another(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is sent is at issue here, not by whom.
    monkeypatch.setattr(tracking, "Recorder", NoRecorder)
    run = break_off_after_first_epoch(monkeypatch, tiny)
    store = Store(project)
    sync.sync(store, run)
    first = recorded_run(store, run)
    assert first.info.status == "KILLED"
    assert [step for step, _ in history(store, run, "train/loss")] == [1]

    train(tiny)
    sync.sync(store, run)
    assert_holds(store, run)
    assert recorded_run(store, run).info.run_id == first.info.run_id

    run.scores.parent.mkdir(parents=True)
    run.scores.write_text(
        json.dumps({"config": tiny.config.identity(), "splits": {"val": {"mIoU": 0.5}}})
    )
    options = tiny.config.train.model_copy(update={"lr": 5e-4})
    changed = tiny.config.model_copy(update={"train": options})
    layout = Layout("mini")
    inputs = inputs_of(changed, layout)
    with tracking.recorded(changed, layout, tables=[], **inputs):
        # Before its first epoch ends, the files that lie here are the other's.
        record = read_run(run, training=True)
        assert record.points == []
        assert set(record.artifacts) == {"config.yaml"}
        assert "checkpoint.path" not in record.tags
        loop.fit(changed, images=layout.images, folder=run.folder, **inputs)
    sync.sync(store, run)
    assert_holds(store, run)
    second = recorded_run(store, run)
    assert second.info.run_id != first.info.run_id
    assert second.data.params["train.lr"] == "0.0005"
    # The scores are those of the other config, hence not this run's.
    assert "val/mIoU" not in second.data.metrics


class NoRecorder:
    """In place of the process beside the training."""

    def __init__(self, run: RunFiles) -> None:
        self.run = run

    def end(self, status: Any) -> None:
        tracking.note_end(self.run, status)


def test_eight_trainings_at_once_on_a_fresh_store_lose_nothing(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 200.0)
    configs = [tiny.config.model_copy(update={"seed": seed}) for seed in range(8)]
    together = threading.Barrier(len(configs))

    def work(config: Config) -> None:
        layout, run = Layout("mini"), run_of(config)
        inputs, tables = inputs_of(config, layout), rows_of_run(config, tiny.params)
        with tracking.recorded(config, layout, tables=tables, **inputs):
            together.wait()
            write_metrics(run.work_metrics, epochs=2)
            write_metrics(run.metrics, epochs=2)

    threads = [threading.Thread(target=work, args=[config]) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said(capsys) == []
    store = Store(project)
    for config in configs:
        assert_holds(store, run_of(config))
    experiments = store.client.search_experiments()
    parents = store.client.search_runs(
        [experiment.experiment_id for experiment in experiments], "tags.`mmnet.table` = 'table1'"
    )
    assert len(parents) == 1


def write_metrics(path: Path, *, epochs: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    val = dict.fromkeys(METRICS, 0.1 + 0.2)
    lines = [{"epoch": n + 1, "lr": 1e-4, "loss": 1 / 3, "val": val} for n in range(epochs)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_scores(run: RunFiles, config: Config) -> None:
    run.scores.parent.mkdir(parents=True, exist_ok=True)
    splits = {"val": dict.fromkeys(METRICS, 0.5)}
    run.scores.write_text(json.dumps({"config": config.identity(), "splits": splits}))


def pulled(config: Config, *, epochs: int) -> RunFiles:
    """Results without a record of their own."""
    run = run_of(config)
    write_metrics(run.metrics, epochs=epochs)
    write_scores(run, config)
    return run


RECORDED = """
import sys, time
from types import SimpleNamespace
from mmnet.config.schema import Config
from mmnet.config.paths import Layout
from mmnet.tracking import live as tracking
from mmnet.tracking.run_files import RunFiles

config = Config.model_validate_json(sys.argv[1])
run = RunFiles(Layout("mini"), config.experiment, config.seed)
run.tracking.mkdir(parents=True)
identity = {"config": config.identity()}
tracking.begin(run, config, identity, tables=[], device=SimpleNamespace(type="cpu"))
print(tracking.Recorder(run).process.pid, flush=True)
time.sleep(100)
"""


def test_recorder_ends_with_a_killed_training_and_holds_none_of_its_pipes(
    tiny: Tiny, project: Path
) -> None:
    run = run_of(tiny.config)
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDED, tiny.config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        recorder = int(process.stdout.readline())
        wait_until(run.system.is_file)
        pipe = Path(f"/proc/self/fd/{process.stdout.fileno()}").readlink()
        held = [path.readlink() for path in Path(f"/proc/{recorder}/fd").iterdir()]
        assert held
        assert pipe not in held
        process.kill()
    wait_until(lambda: not psutil.pid_exists(recorder))
    assert recorded_run(Store(project), run).info.status == "KILLED"


def test_a_database_is_known_however_it_is_named(project: Path) -> None:
    for address in (
        "sqlite:///mlflow.db",
        "sqlite:///./mlflow.db?timeout=9",
        f"sqlite+pysqlite:///{project}/runs/../mlflow.db",
    ):
        assert database_of(address) == project.resolve() / "mlflow.db"
    assert database_of("http://localhost/sqlite:///mlflow.db") is None


def test_artifacts_lie_beside_the_database_wherever_that_is_moved(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def artifacts() -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.glob("mlartifacts/mini/*/*/*"))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    folder = project
    configs = [tiny.config.model_copy(update={"seed": seed}) for seed in range(2)]
    for config in configs:
        pulled(config, epochs=1)
    sync_all(tiny)
    there = artifacts()
    assert len(there) == 4
    assert not (project / "mlruns").exists()

    copy = project / "copy"
    copy.mkdir()
    shutil.copytree(folder / there[0].parents[1], copy / there[0].parents[1])  # not the other's
    shutil.copy(folder / "mlflow.db", copy / "mlflow.db")
    shutil.rmtree(folder / "mlartifacts")
    (folder / "mlartifacts").touch()  # nothing can be made there any more
    folder = copy
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
    sync_all(tiny)
    assert artifacts() == there


def test_results_pulled_over_an_own_training_are_sent_once_and_what_is_deleted_is_not_counted(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "Recorder", NoRecorder)
    config, run = tiny.config, run_of(tiny.config)
    options = config.train.model_copy(update={"lr": 5e-4})
    with tracking.recorded(config, Layout("mini"), tables=[], **inputs_of(config, Layout("mini"))):
        write_metrics(run.work_metrics, epochs=2)
        pulled(config, epochs=2)
    sync_all(tiny)
    store = Store(project)
    experiment = store.client.get_experiment_by_name("mmnet mini").experiment_id

    def epochs(item: Any) -> int:
        return len(store.client.get_metric_history(item.info.run_id, "train/loss"))

    def runs() -> list[tuple[str, int]]:
        found = store.client.search_runs([experiment], "tags.seed = '0'")
        return sorted((item.data.params["train.lr"], epochs(item)) for item in found)

    own = (str(config.train.lr), 2)
    assert runs() == [own]
    # With another's results in their place, also where what it worked on is gone.
    pulled(config.model_copy(update={"train": options}), epochs=3)
    capsys.readouterr()
    sync_all(tiny)
    lines = capsys.readouterr().err
    assert f"{run.name}: nothing new" in lines
    assert "results from elsewhere: 34 metrics, config.yaml, metrics.jsonl (a new run)" in lines
    assert runs() == sorted([own, ("0.0005", 3)])
    scores = run.scores.rename("scores.json")
    line = mistake(capsys, "mlflow-sync")
    assert line.startswith(f"{run.metrics}: is not of the training noted beside it, and no scores")
    scores.rename(run.scores)
    run.work_metrics.unlink()
    sync_all(tiny)
    assert runs() == sorted([own, ("0.0005", 3)])

    # A reader of the first results sends them to where they were trained.
    shutil.rmtree(run.tracking)
    pulled(config, epochs=2)
    capsys.readouterr()
    sync_all(tiny)
    assert f"{run.name}, results from elsewhere: there, as it was" in capsys.readouterr().err
    which = "tags.`mmnet.content` LIKE '%' and tags.seed = '0'"
    found = store.client.search_runs([experiment], which)
    assert len(found) == 2
    for one in found:
        store.client.delete_run(one.info.run_id)
    sync_all(tiny)
    assert "has 0 of 1 runs" in capsys.readouterr().err
    store.client.delete_experiment(experiment)
    line = mistake(capsys, "report", "table2", "--from-mlflow")
    assert "its experiment 'mmnet mini' is deleted. Restore it" in line


@pytest.mark.parametrize(
    ("error", "others"),
    [(OSError(13, "Permission denied"), [1]), (OSError("Max retries exceeded"), [])],
)
def test_a_run_that_the_store_does_not_take_keeps_no_other_from_it(
    error: OSError, others: list[int], tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    class Choosy:
        def __init__(self, root: Path) -> None: ...

        def send(self, record: RunRecord) -> Sent:
            with speaking("http://server"):
                if record.tags["seed"] == "0":
                    raise error
            taken.append(int(record.tags["seed"]))
            return Sent(True, 0, [])

    monkeypatch.setattr(sync, "Store", Choosy)
    for seed in range(2):
        pulled(tiny.config.model_copy(update={"seed": seed}), epochs=1)
    with pytest.raises(TrackingError, match="http://server: "):
        sync_all(tiny)
    assert taken == others


# Back from MLflow.


@pytest.fixture
def scored(project: Path) -> Params:
    """Made-up scores of all runs of all tables, as if pulled: without records of their own."""
    params = load_params(ROOT / "params.yaml", [])
    draw = random.Random(0)
    for experiment in params.experiments:
        for seed in params.seeds:
            config = params.resolve(experiment, seed)
            run = run_of(config)
            write_metrics(run.metrics, epochs=1)
            splits = {
                split: {"sentences": 7, **{metric: draw.random() for metric in METRICS}}
                for split in config.dataset.splits
            }
            scores = {
                "profile": "mini",
                "experiment": experiment,
                "seed": seed,
                "dataset": config.dataset_name,
                "backbone": config.tower.label,
                "config": config.identity(),
                "splits": splits,
            }
            run.scores.parent.mkdir(parents=True, exist_ok=True)
            run.scores.write_text(json.dumps(scores))
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
    assert {f"table{n}.{suffix}" for n in range(1, 5) for suffix in ("tex", "csv", "md")} <= {
        *from_files
    }
    assert main(["mlflow-sync"]) == 0
    for path in project.glob("scores/**/*.json"):
        path.unlink()
    assert tables("--from-mlflow") == from_files
    # All of it is MLflow's: a value changed there is one changed in the table.
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("UPDATE latest_metrics SET value = 0.5 WHERE key = 'testA/mIoU'")
    assert tables("--from-mlflow")["table2.csv"] != from_files["table2.csv"]
    assert "recorded: " not in capsys.readouterr().err


def test_a_run_that_mlflow_lacks_is_missing_from_its_table(
    scored: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mlflow-sync", "runs/mini/nq_1/seed0"]) == 0
    assert main(["report", "table2", "--from-mlflow"]) == 1
    assert "table2 (mini): no scores of nq_32 seed 0, nq_24 seed 0" in capsys.readouterr().err


def test_values_come_back_from_parameters_as_they_were() -> None:
    values = {
        "a": {"b": 1, "c": 1.0, "d": 2.0e-5, "e": True, "f": None, "g": {}},
        "h": [8, 8],
        "i": "mini-vit-b",
        **{f"text{i}": text for i, text in enumerate(["1", "true", "null", "[]", "", '"', "NaN"])},
    }
    assert from_params(to_params(values)) == values
    assert to_params(values)["i"] == "mini-vit-b"


# What a user can mend.


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1
    return capsys.readouterr().err.splitlines()[-1].removeprefix("mmnet: ")


class Unauthorised(Slow):
    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_GET


def test_a_server_that_does_not_let_us_in_is_one_line(
    scored: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Unauthorised) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//me:secret@"))
        line = mistake(capsys, "mlflow-sync")
    assert line.startswith(f"{address}: the server does not let us in. Set MLFLOW_TRACKING_USERN")
    assert "secret" not in line


def test_a_damaged_database_is_one_line_and_moved_away_made_anew(
    scored: Params, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = project / "mlflow.db"
    for content in (b"no database " * 1000, b""):
        database.write_bytes(content)
        line = mistake(capsys, "mlflow-sync")
        assert line.startswith(f"{database}: is no database of MLflow's, or damaged (")
        assert line.endswith("then: mmnet mlflow-sync, which makes it anew from the runs' files.")
        assert database.read_bytes() == content
    database.unlink()
    assert main(["mlflow-sync", "runs/mini/nq_1/seed0"]) == 0


def test_a_locked_database_is_one_line_and_costs_no_results(
    tiny: Tiny,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Store(project)
    monkeypatch.setattr("mmnet.tracking.mlflow_database.BUSY", 0.2)
    run = run_of(tiny.config)
    write_metrics(run.metrics, epochs=1)
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        line = mistake(capsys, "mlflow-sync", str(run.folder))
        assert line.startswith(f"{project / 'mlflow.db'}: another process holds it. Wait for that,")
        sync.send(run, [])
        (line,) = said(capsys)
        assert line.endswith("then: mmnet mlflow-sync. The results are written.")


def test_what_is_no_run_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "runs: is no run's folder. Name one: runs/PROFILE" in mistake(
        capsys, "mlflow-sync", "runs"
    )
    record = project / "runs" / "mini" / "nq_1" / "seed0" / "tracking" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    assert "record.json: is no run's record. Delete it" in mistake(capsys, "mlflow-sync")


def test_what_is_damaged_of_a_record_is_one_line_and_costs_no_training(
    tiny: Tiny,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "Recorder", NoRecorder)
    layout, run = Layout("mini"), run_of(tiny.config)
    inputs = inputs_of(tiny.config, layout)
    with tracking.recorded(tiny.config, layout, tables=[], **inputs):
        write_metrics(run.work_metrics, epochs=2)
    times = run.tracking / "times.json"
    for damaged in ("[17", "{}", '["a"]'):
        times.write_text(damaged)
        assert len({point.step for point in read_run(run).points if "train" in point.key}) == 2
        assert len(json.loads(times.read_text())) == 2
    run.system.write_text('{"cpu": 1}\n')
    sync.send(run, [])
    (line,) = said(capsys)
    assert f"{run.folder}: some of its files are damaged (KeyError: 'time'). Delete " in line

    record = json.loads(run.record.read_text())
    del record["metrics_of_another"]  # as of an older version
    run.record.write_text(json.dumps(record))
    assert "record.json: is no run's record. Delete it" in mistake(capsys, "mlflow-sync")
    with tracking.recorded(tiny.config, layout, tables=[], **inputs):
        assert "metrics_of_another" in json.loads(run.record.read_text())
    monkeypatch.setattr(tracking, "begin", lambda *a, **k: {}["nobody foresaw"])
    with tracking.recorded(tiny.config, layout, tables=[], **inputs):
        pass
    (line,) = said(capsys)
    assert "is not recorded: KeyError: 'nobody foresaw'. Later: mmnet mlflow-sync." in line


def test_a_dirty_tree_is_refused_where_a_clean_one_is_required(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for override in TINY for part in ("--set", override)]
    command = ["train", *RUN, *settings, "--set", "mlflow.require_clean=true"]
    (project / ".gitignore").write_text("/data/\n")
    assert "is no git repository" in mistake(capsys, *command)
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *arguments], check=True, cwd=project)
    (project / "dvc.lock").touch()  # DVC writes it after each stage
    check_clean(project)
    assert revision(project)["changed"] == []
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "\n")
    (project / "new.py").touch()
    line = mistake(capsys, *command)
    assert "git does not have params.yaml, new.py as they are. Commit or stash them" in line
    assert not (project / "runs").exists()


def test_without_mlflow_nothing_of_it_is_left_or_loaded(tiny: Tiny, project: Path) -> None:
    settings = [part for override in TINY for part in ("--set", override)]
    run = run_of(tiny.config)
    path = Layout("mini").rows(run.experiment, run.seed)
    path.parent.mkdir(parents=True)
    rows = pd.DataFrame(
        {"split": tiny.config.dataset.splits, "intersection": 1, "union": 2, "sent_id": 1}
    )
    rows.attrs["config"] = tiny.config.identity()
    rows.to_parquet(path)
    script = f"""
import sys
from mmnet.cli.parser import main
assert main(["evaluate", *{RUN}, *{settings}]) == 0
sys.exit("mlflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not run.tracking.exists()
    assert not (project / "mlflow.db").exists()
