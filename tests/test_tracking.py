"""MLflow: all of a run is recorded, once, and training neither waits for that nor dies of it."""

import contextlib
import http.server
import json
import os
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
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, Tiny

from mmnet.__main__ import main
from mmnet.code_version import code_version
from mmnet.config import Config, Params, load_params
from mmnet.errors import ConfigError, TrackingError
from mmnet.evaluate.metrics import METRICS
from mmnet.layout import Layout
from mmnet.report.from_mlflow import scores_of
from mmnet.report.runs import TABLES, rows_of_run
from mmnet.train import loop, recorder, sync, tracking
from mmnet.train.mlflow_store import Store
from mmnet.train.provenance import check_clean
from mmnet.train.record_names import from_params, to_params
from mmnet.train.run_files import RunFiles, read_record
from mmnet.train.run_record import read_run

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
    folder = tmp_path_factory.mktemp("undisturbed")
    loop.fit(
        tiny.config,
        table=tiny.table,
        images=tiny.images,
        manifest=tiny.images.with_suffix(".tsv"),
        weights=None,
        folder=folder,
        device=CPU,
    )
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
    save = loop._save

    def kill_after_first_epoch(run: loop.Run, *arguments: Any, **more: Any) -> None:
        save(run, *arguments, **more)
        if run.epoch == 1:
            store = Store(project)
            wait_until(lambda: "train/loss" in sent(store, run_of(tiny.config)))
            server.kill()

    monkeypatch.setattr(loop, "_save", kill_after_first_epoch)
    run = train(tiny)
    assert len(said(capsys)) == 1
    assert_undisturbed(run, undisturbed)
    server.start()
    sync_all(tiny)
    assert_holds(Store(project), run)


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
    slow = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    slow.daemon_threads = True
    threading.Thread(target=slow.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{slow.server_port}")
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    ended: list[float] = []
    finish = loop._publish
    monkeypatch.setattr(loop, "_publish", lambda *a: (finish(*a), ended.append(time.monotonic())))
    run = train(tiny)
    assert time.monotonic() - ended[0] < 4
    (line,) = said(capsys)
    assert f"the store did not take all of {run.name} in 2 s" in line
    assert "Nothing is lost; to send the rest: mmnet mlflow-sync." in line
    assert_undisturbed(run, undisturbed)
    slow.shutdown()
    slow.server_close()


# What is recorded.


def test_a_run_from_training_to_scores_is_recorded_with_all_that_tells_it(
    tiny: Tiny, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for override in [*TINY, "mlflow.enabled=true"] for part in ("--set", override)]
    run = run_of(tiny.config)
    threads = torch.get_num_threads()
    for command in ("train", "predict", "evaluate"):
        assert main([command, *RUN, *settings]) == 0
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
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
