"""What MLflow shall hold of a training, read from the training's own files: without MLflow.

`record.json` in the work folder has what training does not write: where and when it ran.
"""

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from mmnet.config.identity import Identity, flat
from mmnet.config.paths import RunPaths, WorkPaths
from mmnet.config.schema import Config
from mmnet.runtime.errors import TrackingError
from mmnet.runtime.files import checksum, is_locked, locked, read_json, write_json
from mmnet.tracking.provenance import describe_device, packages, revision

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

NOTE = (
    "Metrics are fractions, not percent. `val/...`, `testA/...`: of the best checkpoint, at the "
    "images' original size. `val per epoch/...` and `train/...`: while training; their step is the "
    "epoch. Pr_0.5 is Pr@0.5. Parameters are all that shapes the training."
)
IDENTITY = "mmnet.identity"
"""The tag by which a training is found."""
_NOTING = threading.Lock()


class Point(NamedTuple):
    """A value as MLflow's `Metric` takes it: step 0 for scores, time in milliseconds."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that MLflow shall hold of a training."""

    name: str
    profile: str
    status: Status
    started: int
    ended: int
    tables: list[dict[str, str]]
    """As `config.tables.rows_of_run` returns them; the first is the run's parent."""
    params: dict[str, str]
    tags: dict[str, str]
    points: list[Point]
    artifacts: dict[str, bytes] = field(repr=False)
    """File name -> content."""


def begin(
    config: Config, run: RunPaths, identity: Identity, tables: list[dict[str, str]], device: Any
) -> None:
    """Note where a training runs; of one that resumes, or is published again, keep what is noted.

    Raises:
        MMNetError: another process works in its folder, or it cannot be written.
    """
    work = run.work(identity)
    with locked(work.folder):
        record = noted(work, identity)
        if work.finished.is_file() and not record:
            return  # trained unnoted, and not here and now
        record = record or {
            "identity": identity.digest,
            "started": milliseconds(),
            "git": revision(Path()),
            "packages": packages(),
            "device": describe_device(device),
            "epochs": [],
            "ended": None,
        }
        record |= {"config": config.model_dump(mode="json"), "tables": tables}
        record["ended"] = record["ended"] if work.finished.is_file() else None
        write_json(work.record, record)
        note(work, identity)


def noted(work: WorkPaths, identity: Identity) -> dict[str, Any]:
    """Return what `begin` and later notes wrote; nothing where it is missing or damaged."""
    found = read_json(work.record)
    keys = {"started", "git", "packages", "device", "epochs", "config", "tables", "ended"}
    return found if found.get("identity") == identity.digest and found.keys() >= keys else {}


def note(work: WorkPaths, identity: Identity, status: Status | None = None) -> None:
    """Note when each epoch was first seen in the metrics, and with which status training ended."""
    with _NOTING:
        record, count = noted(work, identity), len(_lines(work.metrics))
        if not record:
            return
        times = record["epochs"][:count]
        times += [modified(work.metrics) for _ in range(len(times), count)]
        ended = record["ended"]
        if status and (ended or {}).get("status") != "FINISHED":
            ended = {"status": status, "time": milliseconds()}
        if (times, ended) != (record["epochs"], record["ended"]):
            write_json(work.record, record | {"epochs": times, "ended": ended})


def published(run: RunPaths) -> Identity | None:
    """Return which training the run's published files are of."""
    return Identity.from_dict(read_json(run.identity).get("identity"))


def read(
    run: RunPaths,
    identity: Identity,
    *,
    tables: list[dict[str, str]] | None = None,
    is_training: bool | None = None,
) -> Record:
    """Return all that MLflow shall hold of a training, as far as its files have it.

    `tables` are those that the run serves, where they are known better than when it began.

    Raises:
        TrackingError: files are missing or damaged.
    """
    try:
        work, is_published = run.work(identity), published(run) == identity
        record = noted(work, identity)
        metrics = run.metrics if is_published and not work.metrics.is_file() else work.metrics
        lines = _lines(metrics)
        scores = _scores(run, work, identity) if is_published else {}
        times_of = (metrics, run.identity, work.about, work.record)
        time = modified(next(path for path in times_of if path.is_file()))
        started, times = record.get("started", time), record.get("epochs", [])[: len(lines)]
        times += [time] * (len(lines) - len(times))
        ended = record.get("ended") or {"status": None, "time": max([started, *times])}
        tables = record.get("tables", []) if tables is None else tables
        is_pictured = is_published and _is_of(run.predictions, work)
        files = {
            "metrics.jsonl": metrics if metrics.is_file() else None,
            "scores.json": run.scores if scores else None,
            "predictions.png": run.predictions if is_pictured else None,
        }
        config = yaml.safe_dump(record.get("config") or identity.values, sort_keys=False)
        return Record(
            name=run.name,
            profile=run.profile,
            status=ended["status"] or _status(work, is_published, is_training),
            started=started,
            ended=ended["time"],
            tables=tables,
            params={key: str(value) for key, value in flat(identity.values).items()},
            tags=_tags(run, identity, record, scores, tables),
            points=_points(lines, times, scores.get("splits", {}), run.scores),
            artifacts={"config.yaml": config.encode()}
            | {name: path.read_bytes() for name, path in files.items() if path},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise TrackingError(
            f"{run.folder}: files are missing or damaged ({text}); pull or train the run again."
        ) from error


def metric_name(split: str, metric: str) -> str:
    """Return a metric's name in MLflow, which has no @."""
    return f"{split}/{metric.replace('@', '_')}"


def saved_view(table: dict[str, str], now: int) -> tuple[str, str]:
    """Return the tag of an experiment that is the view of a table: its runs, with its columns.

    MLflow has no call for these; its page writes them so. `now` is in milliseconds.
    """
    name, shown = table["name"], table["shown"].split()
    splits, metrics = ["testA"], ["mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9"]
    columns = [f"params.`model.{switch}`" for switch in shown]
    if not shown:
        splits, metrics = ["val", "testA", "testB", "test"], ["mIoU", "oIoU"]
        columns = ["tags.`dataset`", "tags.`backbone`"]
    columns += [f"metrics.`{metric_name(split, metric)}`" for split in splits for metric in metrics]
    state = {
        "searchFilter": f"tags.tables ILIKE '%{name}%'",
        # Sorted by creation, runs would hide under the first table that they serve.
        "orderByKey": "metrics.`testA/mIoU`" if shown else "tags.`dataset`",
        "orderByAsc": not shown,
        "selectedColumns": columns,
    }
    view = {"name": table["title"], "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{name}", json.dumps(view)


def milliseconds(seconds: float | None = None) -> int:
    return int(1000 * (time.time() if seconds is None else seconds))


def modified(path: Path) -> int:
    return milliseconds(path.stat().st_mtime)


def _tags(
    run: RunPaths,
    identity: Identity,
    record: dict[str, Any],
    scores: dict[str, Any],
    tables: list[dict[str, str]],
) -> dict[str, str]:
    values, work = identity.values, run.work(identity)
    tower = (record.get("config") or values)["tower"]
    tags = {
        IDENTITY: identity.digest,
        "mlflow.note.content": NOTE,
        "mlflow.source.name": "mmnet train",
        "mlflow.source.type": "LOCAL",
        "profile": run.profile,
        "experiment": run.experiment,
        "seed": str(run.seed),
        "dataset": values["dataset_name"],
        "backbone": scores.get("backbone") or tower.get("label") or tower["architecture"],
        **{f"data.{key}": value or "none" for key, value in identity.data.items()},
        "code": hashlib.sha256(json.dumps(identity.code, sort_keys=True).encode()).hexdigest(),
        "tables": ", ".join(table["name"] for table in tables) or "none",
        **{table["name"]: table["row"] for table in tables},
    }
    if scores:  # as parameters, another evaluation could not replace them
        evaluate = flat({"evaluate": scores["config"]["evaluate"]})
        tags |= {key: str(value) for key, value in evaluate.items()}
    if record:
        commit, changed = record["git"]["commit"], record["git"]["changed"]
        tags |= {"git.commit": commit or "unknown", "device": record["device"]}
        if commit:
            tags["mlflow.source.git.commit"] = commit
            tags["git.clean"] = f"no: {', '.join(changed[:20])}" if changed else "yes"
        tags |= {f"version.{name}": version for name, version in record["packages"].items()}
        tags["recorded"] = "in training"  # otherwise from files: times are theirs
    about = read_json(work.about if work.about.is_file() else run.identity)
    if accepted := about.get("accepted"):  # trained with other values or code than these
        tags["accepted"] = "; ".join(text for past in accepted for text in past["differences"])
    if published(run) == identity and run.checkpoint.is_file():
        tags["checkpoint.path"] = str(run.checkpoint)
        tags["checkpoint.sha256"] = checksum(run.checkpoint)
    return tags


def _points(
    lines: list[dict[str, Any]], times: list[int], splits: dict[str, Any], scores: Path
) -> list[Point]:
    """Return the values of the epochs' lines, and of the scores."""
    found = []
    for line, at in zip(lines, times, strict=True):
        values = {"train/loss": line["loss"], "train/lr": line["lr"]}
        val = flat(line["val"])
        values |= {metric_name("val per epoch", key): value for key, value in val.items()}
        found += [Point(key, value, at, line["epoch"]) for key, value in values.items()]
    for split, values in splits.items():
        at, values = modified(scores), flat(values)
        found += [Point(metric_name(split, key), value, at, 0) for key, value in values.items()]
    return found


def _scores(run: RunPaths, work: WorkPaths, identity: Identity) -> dict[str, Any]:
    """Return the scores beside a published training, if they are its own."""
    scores = read_json(run.scores) if _is_of(run.scores, work) else {}
    is_own = flat(identity.values).items() <= flat(scores.get("config", {})).items()
    return scores if is_own else {}


def _is_of(path: Path, work: WorkPaths) -> bool:
    """Whether a file was made after the training ended, where that is known."""
    if not path.is_file() or not work.finished.is_file():
        return path.is_file()
    return path.stat().st_mtime_ns >= work.finished.stat().st_mtime_ns


def _status(work: WorkPaths, is_published: bool, is_training: bool | None) -> Status:
    if is_training or (is_training is None and is_locked(work.folder)):
        return "RUNNING"
    return "FINISHED" if is_published or work.finished.is_file() else "KILLED"


def _lines(metrics: Path) -> list[dict[str, Any]]:
    text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]
