"""From runs' folders to MLflow: what it lacks of them, however often this is asked for."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmnet.config import Config, Params
from mmnet.errors import TrackingError
from mmnet.layout import Layout
from mmnet.progress import say
from mmnet.train.mlflow_store import PATIENCE, Sent, Store
from mmnet.train.run_files import RunFiles
from mmnet.train.run_record import read_run
from mmnet.train.store_errors import in_one_line

Rows = Callable[[Config, Params], list[dict[str, str]]]
"""The tables that a run serves."""


def sync(store: Store, run: RunFiles, **known: Any) -> Sent:
    """Send what a store lacks of a run; `known` as for `read_run`.

    Raises:
        TrackingError: the store cannot be written, or the run's record not be read.
    """
    with _alone(run):
        return store.send(read_run(run, **known))


def send(run: RunFiles, tables: list[dict[str, str]]) -> None:
    """Send what MLflow lacks of a run that has results; what goes wrong is said, and no more."""
    try:
        sync(Store(Path()), run, tables=tables)
    except Exception as error:
        say(f"mlflow: {in_one_line(error)} The results are written.")


def sync_all(layout: Layout, folders: list[Path], *, params: Params, rows_of_run: Rows) -> None:
    """Send what MLflow lacks of some runs, or of all of the profile, and say what that was.

    Raises:
        TrackingError: the store cannot be written, or a folder is no run's; or a run's record
            cannot be read, when all others are sent.
    """
    runs = [_run_in(folder) for folder in folders] or _all_runs(layout)
    store = Store(Path())
    problems: list[TrackingError] = []
    for run in runs:
        known: dict[str, Any] = {}
        if run.experiment in params.experiments and run.layout.profile == params.profile:
            config = params.resolve(run.experiment, run.seed)
            known["tables"] = rows_of_run(config, params)
        with _alone(run):
            try:
                record = read_run(run, **known)
            except TrackingError as error:
                problems.append(error)
                continue
            sent = store.send(record)
        news = [f"{sent.metrics} metrics"] * bool(sent.metrics) + sent.artifacts
        what = sent.note or ", ".join(news) or "nothing new"
        say(f"{run.name}: {what}{' (a new run)' if sent.is_new else ''}")
    say(f"{store}: has {len(runs) - len(problems)} of {len(runs)} runs of {layout.profile}")
    if problems:
        raise problems[0]


@contextlib.contextmanager
def _alone(run: RunFiles) -> Iterator[None]:
    """Hold a run against other processes here that would send the same."""
    run.tracking.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.tracking / ".sync.lock", timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(
            f"{run.folder}: another process has been sending this run for {PATIENCE:.0f} s. Wait "
            "for it, or end it, then: mmnet mlflow-sync."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _all_runs(layout: Layout) -> list[RunFiles]:
    folders = sorted(layout.run("*", "*").parent.parent.glob("*/seed*"))
    runs = [_run_in(folder) for folder in folders]
    return [run for run in runs if run.record.is_file() or run.metrics.is_file()]


def _run_in(folder: Path) -> RunFiles:
    root = Path.cwd()
    is_inside = folder.is_dir() and folder.resolve().is_relative_to(root)
    parts = folder.resolve().relative_to(root).parts if is_inside else ()
    if len(parts) == 4 and parts[0] == "runs" and (seed := re.fullmatch(r"seed(\d+)", parts[3])):
        return RunFiles(Layout(parts[1]), parts[2], int(seed[1]))
    raise TrackingError(f"{folder}: is no run's folder. Name one: runs/PROFILE/EXPERIMENT/seedN.")
