"""Where a run's files lie, and what was noted of it when it began."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from mmnet.config.paths import Layout
from mmnet.runtime.errors import TrackingError
from mmnet.runtime.files import atomic_write

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

NOTED = {
    "id",
    "identity",
    "started",
    "metrics_of_another",
    "git",
    "packages",
    "device",
    "config",
    "tables",
    "ended",
}
"""What tracking.py notes of a run; a record that lacks some of it is another version's."""


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files lie."""

    layout: Layout
    experiment: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.experiment} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.layout.run(self.experiment, self.seed)

    @property
    def tracking(self) -> Path:
        return self.layout.tracking(self.experiment, self.seed)

    @property
    def record(self) -> Path:
        return self.tracking / "record.json"

    @property
    def system(self) -> Path:
        return self.tracking / "system.jsonl"

    @property
    def work_metrics(self) -> Path:
        return self.folder / "work" / "metrics.jsonl"

    @property
    def finished(self) -> Path:
        """Written when training ends, and not when its results are published again."""
        return self.folder / "work" / "finished.json"

    @property
    def metrics(self) -> Path:
        return self.layout.metrics(self.experiment, self.seed)

    @property
    def scores(self) -> Path:
        return self.layout.scores(self.experiment, self.seed)

    @property
    def predictions(self) -> Path:
        return self.layout.predictions(self.experiment, self.seed)

    @property
    def checkpoint(self) -> Path:
        return self.layout.checkpoint(self.experiment, self.seed)

    @property
    def at_work(self) -> FileLock:
        """Held by the process that trains the run."""
        return FileLock(self.tracking / ".training.lock")


def milliseconds(seconds: float | None = None) -> int:
    return int(1000 * (time.time() if seconds is None else seconds))


def modified(path: Path) -> int:
    return milliseconds(path.stat().st_mtime)


def read_record(run: RunFiles) -> dict[str, Any] | None:
    """Return what was noted when the run began here, or None of a run that came from elsewhere.

    Raises:
        TrackingError: it is damaged.
    """
    try:
        record: dict[str, Any] = json.loads(run.record.read_text(encoding="utf-8"))
        if record.keys() >= NOTED and "config" in record["identity"]:
            return record
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError):
        pass
    raise TrackingError(
        f"{run.record}: is no run's record. Delete it: the run is then recorded from its results."
    )


def write_record(run: RunFiles, record: dict[str, Any]) -> None:
    with atomic_write(run.record) as file:
        json.dump(record, file, indent=1)


def own_metrics(run: RunFiles, record: dict[str, Any] | None) -> Path | None:
    """Return the file of a run's epochs, once there is one that is its own."""
    if record is None:
        return run.metrics if run.metrics.is_file() else None
    try:
        is_own = run.work_metrics.stat().st_mtime_ns != record["metrics_of_another"]
    except FileNotFoundError:
        is_finished = (record["ended"] or {}).get("status") == "FINISHED"
        return run.metrics if is_finished and run.metrics.is_file() else None
    return run.work_metrics if is_own else None
