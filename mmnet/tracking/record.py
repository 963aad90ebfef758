"""What MLflow shall hold of a training, read from the training's own files: without MLflow.

`record.json` in the work folder has what training does not write: when, where and with what.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mmnet.config.identity import Identity, flat
from mmnet.config.paths import RunPaths
from mmnet.config.schema import Config
from mmnet.runtime.errors import TrackingError
from mmnet.runtime.files import checksum, is_locked, read_json, write_json
from mmnet.tracking.provenance import describe_device, packages, revision

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Point = tuple[str, float, int, int]
"""A value as MLflow's `Metric` takes it: name, value, milliseconds, step (0 for scores)."""

IDENTITY = "mmnet.identity"
"""The tag by which a training is found."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that MLflow shall hold of a training; times in milliseconds."""

    name: str
    profile: str
    status: Status
    started: int
    ended: int
    params: dict[str, str]
    tags: dict[str, str]
    points: list[Point]
    artifacts: dict[str, bytes] = field(repr=False)
    """File name -> content."""


def begin(config: Config, run: RunPaths, identity: Identity, device: Any) -> None:
    """Note when and where a training starts; of one that resumes or is finished, change nothing.

    Raises:
        MMNetError: its folder cannot be written.
    """
    work = run.work(identity)
    if not work.finished.is_file() and not read_json(work.record):
        record = {"started": int(1000 * time.time()), "git": revision(Path())}
        record |= {"packages": packages(), "device": describe_device(device)}
        write_json(work.record, record | {"config": config.model_dump(mode="json")})


def published(run: RunPaths) -> Identity | None:
    """Return which training the run's published files are of."""
    return Identity.from_dict(read_json(run.identity).get("identity"))


def read(
    run: RunPaths,
    identity: Identity | None,
    tables: Sequence[str] | None,
    status: Status | None = None,
) -> Record:
    """Return all that MLflow shall hold of a training, as far as its files have it.

    `tables` are those that it serves; None: unknown. `status` is how a training of this process
    stands, which has no scores yet.

    Raises:
        TrackingError: files are missing or damaged.
    """
    try:
        if identity is None:
            raise ValueError(f"{run.identity.name} names no training")
        return _read(run, identity, tables, status)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise TrackingError(
            f"{run.folder}: files are missing or damaged ({reason}); pull or train the run again."
        ) from error


def modified(path: Path) -> int:
    """Return a file's time in milliseconds."""
    return int(1000 * path.stat().st_mtime)


def _read(
    run: RunPaths, identity: Identity, tables: Sequence[str] | None, status: Status | None
) -> Record:
    work, is_published = run.work(identity), published(run) == identity
    record = read_json(work.record)
    metrics = run.metrics if is_published and not work.metrics.is_file() else work.metrics
    text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
    now = modified(metrics) if text else record.get("started") or modified(work.about)
    scores = read_json(run.scores) if is_published and status is None else {}
    if not flat(identity.values).items() <= flat(scores.get("config", {})).items():
        scores = {}  # of another training, until `mmnet evaluate` replaces them
    config = yaml.safe_dump(record.get("config") or identity.values, sort_keys=False)
    artifacts = {"config.yaml": config.encode(), "metrics.jsonl": text.encode()}
    if scores:
        artifacts["scores.json"] = run.scores.read_bytes()
        if run.predictions.is_file():
            artifacts["predictions.png"] = run.predictions.read_bytes()
    if work.finished.is_file():
        status = "FINISHED"
    elif status is None and is_locked(work.folder):
        status = "RUNNING"
    return Record(
        name=run.name,
        profile=run.profile,
        status=status or ("FINISHED" if is_published else "KILLED"),
        started=record.get("started", now),
        ended=modified(work.finished) if work.finished.is_file() else now,
        params={key: str(value) for key, value in flat(identity.values).items()},
        tags=_tags(run, identity, record, scores, tables),
        points=_points(text, now, scores.get("splits", {}), modified(run.scores) if scores else 0),
        artifacts={name: content for name, content in artifacts.items() if content},
    )


def _points(metrics: str, now: int, splits: dict[str, Any], scored: int) -> list[Point]:
    """Return the values of epochs and of scores; those that MLflow has keep the time it has."""
    groups: list[tuple[str, dict[str, Any], int, int]] = []
    for line in map(json.loads, metrics.splitlines()):
        groups.append(("train", {key: line[key] for key in ("loss", "lr")}, now, line["epoch"]))
        groups.append(("val per epoch", line["val"], now, line["epoch"]))
    groups += [(split, values, scored, 0) for split, values in splits.items()]
    return [
        (f"{group}/{key}".replace("@", "_"), value, at, step)  # MLflow's names have no @
        for group, values, at, step in groups
        for key, value in flat(values).items()
    ]


def _tags(
    run: RunPaths,
    identity: Identity,
    record: dict[str, Any],
    scores: dict[str, Any],
    tables: Sequence[str] | None,
) -> dict[str, str]:
    values, work = identity.values, run.work(identity)
    tower = record.get("config", values)["tower"]
    tags = {
        IDENTITY: identity.digest,
        "profile": run.profile,
        "experiment": run.experiment,
        "seed": str(run.seed),
        "dataset": values["dataset_name"],
        "backbone": scores.get("backbone") or tower.get("label") or tower["architecture"],
        **{f"data.{key}": value or "none" for key, value in identity.data.items()},
        "code": hashlib.sha256(json.dumps(identity.code, sort_keys=True).encode()).hexdigest(),
    }
    if tables is not None:
        tags["tables"] = ", ".join(tables) or "none"
    if scores:  # as parameters, another evaluation could not replace them
        evaluate = flat({"evaluate": scores["config"]["evaluate"]})
        tags |= {key: str(value) for key, value in evaluate.items()}
    if record:
        commit, changed = record["git"]["commit"], record["git"]["changed"]
        reason = record["git"].get("reason")
        unknown = f"unknown: {reason}" if reason else "unknown"
        tags |= {"git.commit": commit or unknown, "device": record["device"]}
        if commit:
            tags["git.clean"] = f"no: {', '.join(changed[:20])}" if changed else "yes"
        tags |= {f"version.{name}": version for name, version in record["packages"].items()}
    about = read_json(work.about if work.about.is_file() else run.identity)
    if accepted := about.get("accepted"):  # trained with other values or code than these
        tags["accepted"] = "; ".join(text for past in accepted for text in past["differences"])
    if published(run) == identity and run.checkpoint.is_file():
        tags["checkpoint.path"] = str(run.checkpoint)
        tags["checkpoint.sha256"] = checksum(run.checkpoint)
    return tags
