"""What MLflow shall hold of a run, read from the run's own files: without MLflow.

The files come first: whatever is sent lies here before, so that it can be sent again, elsewhere,
or later. `tracking/` has what training itself does not write: where the run comes from, when its
epochs ended, what the machine did.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout

from mmnet.runtime.errors import MMNetError, TrackingError
from mmnet.runtime.files import checksum
from mmnet.tracking.record_names import best_epoch, to_params
from mmnet.tracking.run_files import RunFiles, Status, modified, own_metrics, read_record
from mmnet.tracking.run_origin import Input, inputs_of, tags_of
from mmnet.tracking.run_points import (
    Point,
    epoch_points,
    epoch_times,
    json_lines,
    samples,
    score_points,
)
from mmnet.tracking.store_errors import in_one_line


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
    content: str | None
    """A hash of config and epochs, once finished: the same wherever the results come to lie."""
    is_of_results: bool
    """Nothing was noted of it but its results."""
    unsent: str
    """What lies with it and is not sent, and why; else empty."""


def read_run(
    run: RunFiles, *, tables: list[dict[str, str]] | None = None, training: bool | None = None
) -> RunRecord:
    """Return all that MLflow shall hold of a run, as far as its files have it.

    `tables` it serves, where they are known better than when it began; `training`, where it is
    known whether it goes on.

    Raises:
        TrackingError: there is nothing to say what run it is, or its files are damaged.
    """
    with _readable(run):
        noted = read_record(run)
        if noted is None:
            return _results(run, [run.scores, run.finished], tables, since=run.finished)
        metrics = own_metrics(run, noted)
        if metrics == run.metrics and _are_anothers(run, noted):
            metrics = None
        # Results of an earlier run of another config lie here until this one's replace them.
        is_published = metrics is not None and _same(metrics, run.metrics)
        status = _status(run, noted, training)
        return _record(
            run, noted, status, metrics, tables, is_published=is_published, since=run.finished
        )


def read_results_of_another(
    run: RunFiles, *, tables: list[dict[str, str]] | None = None
) -> RunRecord | None:
    """Return the results in a run's folder where they are not those of the training noted there.

    They were pulled or checked out on top of it, or it has not come to replace them.

    Raises:
        TrackingError: there is nothing to say what run they are, or they are damaged.
    """
    with _readable(run):
        noted = read_record(run)
        if noted is None or not _are_anothers(run, noted) or _status(run, noted) == "RUNNING":
            return None
        if _config_in(run.scores) is None:
            raise TrackingError(
                f"{run.metrics}: is not of the training noted beside it, and no scores say of "
                "which. Evaluate it, or train the run to its end, then: mmnet mlflow-sync."
            )
        # They may well be older than what is left of the training noted.
        return _results(run, [run.scores], tables, since=None)


@contextlib.contextmanager
def _readable(run: RunFiles) -> Iterator[None]:
    try:
        yield
    except MMNetError:
        raise
    except OSError as error:
        raise TrackingError(
            f"{run.folder}: {in_one_line(error)} Mend that, then: mmnet mlflow-sync."
        ) from error
    except Exception as error:
        raise TrackingError(
            f"{run.folder}: some of its files are damaged ({in_one_line(error)[:-1]}). Delete "
            f"{run.tracking}: the run is then recorded from its results; or train it again."
        ) from error


def _record(
    run: RunFiles,
    record: dict[str, Any],
    status: Status,
    metrics: Path | None,
    tables: list[dict[str, str]] | None,
    *,
    is_published: bool,
    since: Path | None,
) -> RunRecord:
    """Put it together; scores and pictures from before `since` was written are another's."""
    is_of_results = "git" not in record
    lines = json_lines(metrics)
    config = record["identity"]["config"]
    has_scores = is_published and _is_newer(run.scores, since)
    scores = _scores_of(run, config) if has_scores else None
    unsent = ""
    if is_published and run.scores.is_file() and scores is None:
        unsent = f"{run.scores} is from before this training, or of another. Evaluate it again."
    times = epoch_times(run, metrics, len(lines), keep=not is_of_results)
    points = [*epoch_points(lines, times), *score_points(run, scores)]
    if not is_of_results:
        points += samples(run)
    ended = (record["ended"] or {}).get("time") or max([record["started"], *times])
    tables = record["tables"] if tables is None else tables
    tags = tags_of(run, record, tables, scores)
    artifacts = {"config.yaml": _yaml(record["config"])}
    content = None
    if metrics is not None:
        artifacts["metrics.jsonl"] = metrics.read_bytes()
        if status == "FINISHED":
            content = _content(config, metrics)
            tags["mmnet.content"] = content
    if is_published and run.checkpoint.is_file():
        tags |= {
            "checkpoint.path": str(run.checkpoint),
            "checkpoint.sha256": checksum(run.checkpoint),
            "checkpoint.epoch": str(best_epoch(lines)),
        }
        if run.predictions.is_file() and (
            is_of_results or _is_newer(run.predictions, run.finished)
        ):
            artifacts["predictions.png"] = run.predictions.read_bytes()
    return RunRecord(
        id=record["id"],
        name=run.name,
        profile=run.layout.profile,
        status=status,
        started=record["started"],
        ended=ended,
        tables=tables,
        params=to_params(config),
        tags=tags,
        points=points,
        inputs=inputs_of(run, record),
        artifacts=artifacts,
        content=content,
        is_of_results=is_of_results,
        unsent=unsent,
    )


def _results(
    run: RunFiles, say: list[Path], tables: list[dict[str, str]] | None, *, since: Path | None
) -> RunRecord:
    """Return a run that was trained elsewhere, or untracked, from what it left.

    `say` are the files that may say what run it is.
    """
    config = next(filter(None, map(_config_in, say)), None)
    if config is None or not run.metrics.is_file():
        raise TrackingError(
            f"{run.folder}: has no results that say what run it is. Train and evaluate it first."
        )
    time = modified(run.metrics)
    record = {
        "id": _content(config, run.metrics),
        "identity": {"config": config},
        "config": config,
        "tables": [],
        "started": time,
        "ended": {"status": "FINISHED", "time": time},
    }
    return _record(run, record, "FINISHED", run.metrics, tables, is_published=True, since=since)


def _content(config: dict[str, Any], metrics: Path) -> str:
    content = json.dumps(config, sort_keys=True).encode() + metrics.read_bytes()
    return hashlib.sha256(content).hexdigest()[:32]


def _are_anothers(run: RunFiles, noted: dict[str, Any]) -> bool:
    """Whether the results that are published here are not those of the noted training."""
    if not run.metrics.is_file():
        return False
    own = own_metrics(run, noted)
    if own != run.metrics:
        return own is None or not _same(own, run.metrics)
    # What it worked on is gone, so that its scores alone can tell.
    return _config_in(run.scores) not in (None, noted["identity"]["config"])


def _config_in(path: Path) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return config


def _scores_of(run: RunFiles, config: dict[str, Any]) -> dict[str, Any] | None:
    if _config_in(run.scores) != config:
        return None  # another's, or damaged: tables refuse it, and say how to mend it
    scores: dict[str, Any] = json.loads(run.scores.read_text(encoding="utf-8"))
    return scores


def _status(run: RunFiles, record: dict[str, Any], training: bool | None = None) -> Status:
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


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _is_newer(path: Path, than: Path | None) -> bool:
    if not path.is_file() or than is None or not than.is_file():
        return path.is_file()
    return path.stat().st_mtime_ns >= than.stat().st_mtime_ns


def _yaml(config: dict[str, Any]) -> bytes:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
