"""Runs as training records them and as DVC brings them, and what MLflow holds of them."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmnet.cli.parser import main
from mmnet.config.identity import Identity, training_identity
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config
from mmnet.evaluate.metrics import METRICS
from mmnet.runtime.files import write_json
from mmnet.tracking import live
from mmnet.tracking.record import published
from mmnet.tracking.store import Store
from mmnet.train import loop
from mmnet.train.run_state import Saver
from support.tiny import ROOT, TINY, Tiny
from support.training import CPU, inputs_of

RUN = ["--experiment", "refcoco_vit_b"]
SETTINGS = [part for override in TINY for part in ("--set", override)]
WITH_MLFLOW = [*SETTINGS, "--set", "mlflow.enabled=true"]

RECORD = """
import json, os
from types import SimpleNamespace
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.runtime.files import atomic_write
from mmnet.tracking import live

def record(text, tables, epochs):
    config, lines = Config.model_validate_json(text), ""
    run = Paths("mini").run(config.experiment, config.seed)
    identity = Identity(values=config.training_values(), data={}, code={})
    with live.Recording(config, run, identity, tables, SimpleNamespace(type="cpu")):
        for n in range(1, epochs + 1):
            lines += json.dumps({"epoch": n, "lr": 1.0, "loss": 1 / n, "val": {}}) + "\\n"
            with atomic_write(run.work(identity).metrics) as file:
                file.write(lines)
"""
"""For a process of its own: a training that only writes its metrics, recorded."""


def run_of(config: Config) -> RunPaths:
    return Paths(config.profile).run(config.experiment, config.seed)


def seeded(tiny: Tiny, seed: int) -> Config:
    return tiny.config.model_copy(update={"seed": seed})


def train(tiny: Tiny, config: Config | None = None) -> RunPaths:
    """Train as `mmnet train` does."""
    config, inputs = config or tiny.config, inputs_of(tiny)
    run, identity = run_of(config), training_identity(config, inputs)
    with live.Recording(config, run, identity, ["table1"], CPU):
        loop.fit(config, identity, inputs=inputs, run=run, device=CPU)
    return run


def sync(tiny: Tiny) -> None:
    live.sync_all(Paths("mini"), [], tiny.params)


def runs_in(store: Store, which: str) -> list[Any]:
    return list(store.client.search_runs([store.experiment("mini")], which))


def recorded_run(store: Store, run: RunPaths) -> Any:
    """The one run that MLflow has of what is published."""
    identity = published(run)
    assert identity is not None
    (found,) = runs_in(store, f"tags.`mmnet.identity` = '{identity.digest}'")
    return found


def history(store: Store, found: Any, key: str) -> list[tuple[int, float]]:
    points = store.client.get_metric_history(found.info.run_id, key)
    return [(point.step, point.value) for point in points]


def assert_holds(store: Store, run: RunPaths) -> None:
    """The store has each epoch of metrics.jsonl, once."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = recorded_run(store, run)
    for key, value_of in {
        "val per epoch/mIoU": lambda line: line["val"]["mIoU"],
        "val per epoch/Pr_0.9": lambda line: line["val"]["Pr@0.9"],
        "train/loss": lambda line: line["loss"],
    }.items():
        assert history(store, found, key) == [(line["epoch"], value_of(line)) for line in lines]
    assert found.info.status == "FINISHED"


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


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


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mmnet: ")
    return line


def python(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=400
    )
