"""Training is recorded as it goes, once, and neither waits for MLflow nor fails with it."""

import json
import signal
import threading
from pathlib import Path

import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.identity import flat, training_identity
from mmnet.config.paths import RunPaths
from mmnet.runtime.errors import Stopped
from mmnet.runtime.files import write_json
from mmnet.tracking import live
from mmnet.tracking.store import Store
from support.mlflow_server import Hanging, Server, Unauthorised, serving
from support.tiny import Tiny
from support.tracking import (
    RECORD,
    RUN,
    SETTINGS,
    WITH_MLFLOW,
    after_first_epoch,
    assert_holds,
    history,
    python,
    recorded_run,
    run_of,
    runs_in,
    said,
    seeded,
    sync,
    train,
    wait_until,
)
from support.training import CPU, fit, inputs_of

pytestmark = pytest.mark.xdist_group("tracking")  # one server, and MLflow imported once


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of trainings with seeds 0 to 2 without MLflow."""
    root = tmp_path_factory.mktemp("undisturbed")
    for seed in range(3):
        fit(tiny, root, seeded(tiny, seed))
    return root


def assert_undisturbed(run: RunPaths, undisturbed: Path) -> None:
    for path in (run.checkpoint, run.metrics):
        assert path.read_bytes() == (undisturbed / path).read_bytes()


def test_a_server_that_fails_costs_one_line_and_sync_sends_the_rest_once(
    tiny: Tiny,
    project: Path,
    server: Server,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def disturbed(seed: int, uri: str) -> RunPaths:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        run = train(tiny, seeded(tiny, seed))
        (line,) = said(capsys)
        assert "mmnet mlflow-sync" in line
        assert "secret" not in line
        assert_undisturbed(run, undisturbed)
        return run

    runs = [disturbed(0, server.uri)]  # not started yet
    with serving(Unauthorised) as address:
        runs.append(disturbed(1, address.replace("//", "//me:secret@")))
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    store = Store(project)

    def kill() -> None:
        wait_until(lambda: any("train/loss" in run.data.metrics for run in runs_in(store, "")))
        server.kill()

    with monkeypatch.context() as patch:
        after_first_epoch(patch, kill)
        runs.append(disturbed(2, server.uri))

    server.start()
    sync(tiny)
    once = [recorded_run(store, run).to_dictionary() for run in runs]
    capsys.readouterr()
    sync(tiny)
    assert capsys.readouterr().err.count("nothing new") == 3
    assert [recorded_run(store, run).to_dictionary() for run in runs] == once
    for run in runs:
        assert_holds(store, run)
    store.client.delete_run(once[0]["info"]["run_id"])  # not sent again
    sync(tiny)
    assert "deleted" in capsys.readouterr().err
    assert store.page("mini", "http://elsewhere").startswith(f"{server.uri}/#/experiments/")


def test_a_server_that_hangs_holds_up_neither_training_nor_the_end_of_the_process(
    tiny: Tiny,
    project: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(live, "WAIT", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "100000")  # a call never ends by itself
    with serving(Hanging) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        run = train(tiny)
        (line,) = said(capsys)
        assert "did not take all" in line
        assert_undisturbed(run, undisturbed)

        # Stopped by a signal: saved, and it waits for nothing.
        config = seeded(tiny, 1)
        identity = training_identity(config, inputs_of(tiny))
        with (
            pytest.raises(Stopped),
            live.Recording(config, run_of(config), identity, [], CPU),
        ):
            raise Stopped("stopped by SIGTERM", signal.SIGTERM)
        assert said(capsys) == []

        text = seeded(tiny, 2).model_dump_json()
        done = python(f"{RECORD}\nlive.WAIT = 0.1\nrecord({text!r}, [], epochs=0)")
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1
    for thread in threading.enumerate():
        if thread.name == "mlflow":
            thread.join()


def test_a_recorder_that_cannot_begin_costs_one_line_and_no_training(
    tiny: Tiny, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "begin", lambda *arguments: {}["nobody foresaw"])
    run = train(tiny)
    assert run.checkpoint.is_file()
    (line,) = said(capsys)
    assert "KeyError: 'nobody foresaw'" in line


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
        "version.torch": torch.__version__,
        "checkpoint.path": str(run.checkpoint),
        "evaluate.threshold": str(tiny.config.evaluate.threshold),
    }.items():
        assert found.data.tags[tag].partition("+")[0] == value.partition("+")[0], tag
    assert found.data.tags["device"].startswith("cpu, ")
    for tag in ("data.table", "data.images", "code", "checkpoint.sha256"):
        assert len(found.data.tags[tag]) == 64
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

    options = tiny.config.train.model_copy(update={"lr": 1e-3})
    write_json(run.scores, {"config": tiny.config.prediction_values(), "splits": {"val": {"a": 1}}})
    train(tiny, tiny.config.model_copy(update={"train": options}))
    sync(tiny)
    second = recorded_run(store, run)
    assert second.info.run_id != first.info.run_id
    assert second.data.params["train.lr"] == "0.001"
    assert "val/a" not in second.data.metrics  # the scores are of the other training
    assert len(runs_in(store, "tags.seed = '0'")) == 2


def test_eight_processes_at_once_on_a_fresh_database_lose_nothing(
    tiny: Tiny, project: Path
) -> None:
    configs = [seeded(tiny, seed).model_dump_json() for seed in range(8)]
    script = f"""
live.silence_mlflow()
live.WAIT = 1000
children = []
for text in {configs!r}:
    children.append(os.fork())
    if not children[-1]:
        record(text, ["table1"], epochs=2)
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""
    done = python(RECORD + script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store = Store(project)
    found = runs_in(store, "tags.tables = 'table1'")
    assert sorted(run.data.tags["seed"] for run in found) == sorted("01234567")
    for run in found:
        assert history(store, run, "train/loss") == [(1, 1.0), (2, 0.5)]
        assert run.info.status == "FINISHED"
