"""The values of a run's metrics, of its epochs, its scores and its machine, and when they were."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mmnet.runtime.files import atomic_write
from mmnet.tracking.record_names import EPOCHS, metric_name
from mmnet.tracking.run_files import RunFiles, modified


class Point(NamedTuple):
    """A value of a metric; step is the epoch, of the machine's the sample, of the scores 0."""

    key: str
    value: float
    time: int
    step: int


def epoch_points(lines: Iterable[dict[str, Any]], times: list[int]) -> Iterable[Point]:
    for line, at in zip(lines, times, strict=True):
        values = {"train/loss": line["loss"], "train/lr": line["lr"]}
        values |= {metric_name(EPOCHS, metric): value for metric, value in line["val"].items()}
        for key, value in values.items():
            yield Point(key, value, at, line["epoch"])


def score_points(run: RunFiles, scores: dict[str, Any] | None) -> Iterable[Point]:
    for split, values in (scores or {"splits": {}})["splits"].items():
        for metric, value in values.items():
            # Of one step in all runs, MLflow draws them as bars, one beside the other.
            yield Point(metric_name(split, metric), value, modified(run.scores), 0)


def samples(run: RunFiles) -> Iterable[Point]:
    for step, line in enumerate(json_lines(run.system)):
        at = line.pop("time")
        for key, value in line.items():
            yield Point(f"system/{key}", value, at, step)


def epoch_times(run: RunFiles, metrics: Path | None, count: int, *, keep: bool) -> list[int]:
    """Return when each epoch ended; noted when first seen, so that it stays."""
    path = run.tracking / "times.json"
    times = _noted_times(path) if keep else []
    if metrics is None or len(times) >= count:
        return times[:count]
    times += [modified(metrics)] * (count - len(times))
    if keep:
        with atomic_write(path) as file:
            json.dump(times, file)
    return times


def _noted_times(path: Path) -> list[int]:
    try:
        times = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    is_whole = isinstance(times, list) and all(isinstance(time, int) for time in times)
    return times if is_whole else []


def json_lines(path: Path | None) -> list[dict[str, Any]]:
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
