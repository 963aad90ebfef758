"""What MLflow shall hold of a run, read from the run's own files: without MLflow.

The files come first: whatever is sent lies here before, so that it can be sent again, elsewhere,
or later. `tracking/` has what training itself does not write: where the run comes from, when its
epochs ended, what the machine did.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import Timeout

from mmnet.errors import TrackingError
from mmnet.files import atomic_write, checksum
from mmnet.train.record_names import EPOCHS, RUN_NOTE, best_epoch, metric_name, to_params
from mmnet.train.run_files import RunFiles, Status, modified, own_metrics, read_record

SHOWN_CHANGES = 20


class Point(NamedTuple):
    """A value of a metric; step is the epoch, of the machine's the sample, of the scores 0."""

    key: str
    value: float
    time: int
    step: int


class Input(NamedTuple):
    split: str
    dataset: str
    digest: str
    source: str


@dataclass(frozen=True)
class RunRecord:
    """All that MLflow shall hold of a run."""

    id: str
    name: str
    profile: str
    status: Status
    started: int
    ended: int
    tables: list[dict[str, str]]
    """As report/runs.py: rows_of_run says; the first is the run's parent."""
    params: dict[str, str]
    tags: dict[str, str]
    points: list[Point]
    inputs: list[Input]
    artifacts: dict[str, bytes] = field(repr=False)


def read_run(
    run: RunFiles, *, tables: list[dict[str, str]] | None = None, training: bool | None = None
) -> RunRecord:
    """Return all that MLflow shall hold of a run, as far as its files have it.

    `tables` it serves, where they are known better than when it began; `training`, where it is
    known whether it goes on.

    Raises:
        TrackingError: there is nothing to say what run it is, or its record is damaged.
    """
    noted = read_record(run)
    record = noted or _record_of_results(run)
    metrics = own_metrics(run, noted)
    lines = _json_lines(metrics)
    # Results of an earlier run of another config lie here until this one's replace them.
    is_published = metrics is not None and _same(metrics, run.metrics)
    scores = _own_scores(run, record, is_published)
    times = _times(run, metrics, len(lines), keep=noted is not None)
    points = [*_epoch_points(lines, times), *_score_points(run, scores), *_samples(run)]
    status = _status(run, record, training)
    ended = (record["ended"] or {}).get("time") or max([record["started"], *times])
    tables = record["tables"] if tables is None else tables
    tags = _tags(run, record, tables, scores)
    artifacts = {"config.yaml": _yaml(record["config"])}
    if metrics is not None:
        artifacts["metrics.jsonl"] = metrics.read_bytes()
    if is_published and run.checkpoint.is_file():
        tags |= {
            "checkpoint.path": str(run.checkpoint),
            "checkpoint.sha256": checksum(run.checkpoint),
            "checkpoint.epoch": str(best_epoch(lines)),
        }
        if run.predictions.is_file() and _is_newer(run.predictions, run.finished):
            artifacts["predictions.png"] = run.predictions.read_bytes()
    return RunRecord(
        id=record["id"],
        name=run.name,
        profile=run.layout.profile,
        status=status,
        started=record["started"],
        ended=ended,
        tables=tables,
        params=to_params(record["identity"]["config"]),
        tags=tags,
        points=points,
        inputs=_inputs(run, record),
        artifacts=artifacts,
    )


def _record_of_results(run: RunFiles) -> dict[str, Any]:
    """Make a record of a run that was trained elsewhere, or untracked, from what it left."""
    configs = [_config_in(path) for path in (run.scores, run.finished)]
    config = next(filter(None, configs), None)
    if config is None or not run.metrics.is_file():
        raise TrackingError(
            f"{run.folder}: has no results that say what run it is. Train and evaluate it first."
        )
    content = json.dumps(config, sort_keys=True).encode() + run.metrics.read_bytes()
    time = modified(run.metrics)
    return {
        "id": hashlib.sha256(content).hexdigest()[:32],
        "identity": {"config": config},
        "config": config,
        "tables": [],
        "started": time,
        "ended": {"status": "FINISHED", "time": time},
    }


def _config_in(path: Path) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return config


def _own_scores(run: RunFiles, record: dict[str, Any], is_published: bool) -> dict[str, Any] | None:
    if not (is_published and run.scores.is_file() and _is_newer(run.scores, run.finished)):
        return None
    try:
        scores: dict[str, Any] = json.loads(run.scores.read_text(encoding="utf-8"))
    except ValueError:
        return None  # tables refuse it, and say how to mend it
    return scores if scores.get("config") == record["identity"]["config"] else None


def _epoch_points(lines: Iterable[dict[str, Any]], times: list[int]) -> Iterable[Point]:
    for line, at in zip(lines, times, strict=True):
        values = {"train/loss": line["loss"], "train/lr": line["lr"]}
        values |= {metric_name(EPOCHS, metric): value for metric, value in line["val"].items()}
        for key, value in values.items():
            yield Point(key, value, at, line["epoch"])


def _score_points(run: RunFiles, scores: dict[str, Any] | None) -> Iterable[Point]:
    for split, values in (scores or {"splits": {}})["splits"].items():
        for metric, value in values.items():
            # Of one step in all runs, MLflow draws them as bars, one beside the other.
            yield Point(metric_name(split, metric), value, modified(run.scores), 0)


def _samples(run: RunFiles) -> Iterable[Point]:
    for step, line in enumerate(_json_lines(run.system)):
        at = line.pop("time")
        for key, value in line.items():
            yield Point(f"system/{key}", value, at, step)


def _times(run: RunFiles, metrics: Path | None, count: int, *, keep: bool) -> list[int]:
    """Return when each epoch ended; noted when first seen, so that it stays."""
    path = run.tracking / "times.json"
    times: list[int] = []
    if keep and path.is_file():
        times = json.loads(path.read_text(encoding="utf-8"))
    if metrics is None or len(times) >= count:
        return times[:count]
    times += [modified(metrics)] * (count - len(times))
    if keep:
        with atomic_write(path) as file:
            json.dump(times, file)
    return times


def _status(run: RunFiles, record: dict[str, Any], training: bool | None) -> Status:
    if record["ended"]:
        status: Status = record["ended"]["status"]
        return status
    if training is None:
        try:
            with run.at_work.acquire(timeout=0):
                training = False
        except Timeout:
            training = True
    return "RUNNING" if training else "KILLED"


def _tags(
    run: RunFiles,
    record: dict[str, Any],
    tables: list[dict[str, str]],
    scores: dict[str, Any] | None,
) -> dict[str, str]:
    config, identity = record["config"], record["identity"]
    tower = config["tower"]
    tags = {
        "mmnet.id": record["id"],
        "mlflow.note.content": RUN_NOTE,
        "mlflow.source.name": "mmnet train",
        "mlflow.source.type": "LOCAL",
        "profile": run.layout.profile,
        "experiment": run.experiment,
        "seed": str(run.seed),
        "dataset": config["dataset_name"],
        "backbone": (scores or {}).get("backbone") or tower.get("label") or tower["architecture"],
        "tables": ", ".join(table["name"] for table in tables) or "none",
        **{table["name"]: table["row"] for table in tables},
    }
    for tag, key in (
        ("data.sentences", "table"),
        ("data.images", "images"),
        ("weights", "weights"),
        ("code", "code"),
    ):
        tags[tag] = identity.get(key) or ("none" if key in identity else "unknown")
    if "git" not in record:
        return tags | {"recorded": "from results alone; times are those of their files"}
    commit, changed = record["git"]["commit"], record["git"]["changed"]
    if commit:
        tags |= {
            "mlflow.source.git.commit": commit,
            "git.clean": f"no: {', '.join(changed[:SHOWN_CHANGES])}" if changed else "yes",
        }
    tags |= {f"version.{name}": version for name, version in record["packages"].items()}
    return tags | {"git.commit": commit or "unknown", "device": record["device"]}


def _inputs(run: RunFiles, record: dict[str, Any]) -> list[Input]:
    digest = record["identity"].get("table")
    if digest is None:
        return []
    config = record["config"]
    name, source = config["dataset_name"], str(run.layout.table(config["dataset_name"]))
    return [Input(split, name, digest, source) for split in ("train", *config["dataset"]["splits"])]


def _json_lines(path: Path | None) -> list[dict[str, Any]]:
    """Return a file's lines, less a last one that was cut off."""
    if path is None or not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _is_newer(path: Path, than: Path) -> bool:
    return not than.is_file() or path.stat().st_mtime_ns >= than.stat().st_mtime_ns


def _yaml(config: dict[str, Any]) -> bytes:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
