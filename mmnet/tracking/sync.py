"""From runs' folders to MLflow: what it lacks of them, however often this is asked for."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmnet.config.paths import Layout
from mmnet.config.schema import Config, Params
from mmnet.runtime.errors import TrackingError
from mmnet.runtime.progress import say
from mmnet.tracking.mlflow_database import PATIENCE
from mmnet.tracking.mlflow_store import Sent, Store
from mmnet.tracking.run_files import RunFiles
from mmnet.tracking.run_record import RunRecord, read_results_of_another, read_run
from mmnet.tracking.store_errors import StoreError, in_one_line

Rows = Callable[[Config, Params], list[dict[str, str]]]
"""The tables that a run serves."""


def sync(store: Store, run: RunFiles, **known: Any) -> list[tuple[RunRecord, Sent]]:
    """Send what a store lacks of a run; `known` as for `read_run`.

    Where the results in its folder are another training's, they are sent too, as one of their own;
    not from beside a training, which may be about to replace them.

    Raises:
        StoreError: the store cannot be written.
        TrackingError: it does not take this run, or the run's files cannot be read.
    """
    with _alone(run):
        record = read_run(run, **known)
        done = [(record, store.send(record))]
        if "training" not in known and (other := read_results_of_another(run, **known)):
            done.append((other, store.send(other)))
    return done


def send(run: RunFiles, tables: list[dict[str, str]]) -> None:
    """Send what MLflow lacks of a run that has results; what goes wrong is said, and no more."""
    try:
        sync(Store(Path()), run, tables=tables)
    except Exception as error:
        say(f"mlflow: {in_one_line(error)} The results are written.")


def sync_all(layout: Layout, folders: list[Path], *, params: Params, rows_of_run: Rows) -> None:
    """Send what MLflow lacks of some runs, or of all of the profile, and say what that was.

    Raises:
        TrackingError: the store cannot be written, or a folder is no run's; or one of the runs
            cannot be read or written, when all others are sent.
    """
    runs = [_run_in(folder) for folder in folders] or _all_runs(layout)
    store = Store(Path())
    problems: list[TrackingError] = []
    had = 0
    for run in runs:
        known: dict[str, Any] = {}
        if run.experiment in params.experiments and run.layout.profile == params.profile:
            config = params.resolve(run.experiment, run.seed)
            known["tables"] = rows_of_run(config, params)
        try:
            done = sync(store, run, **known)
        except StoreError:
            raise
        except TrackingError as error:
            say(f"{run.name}: not all of it was sent: {error}")
            problems.append(error)
            continue
        for record, sent in done:
            _say(record, sent)
        had += all(sent.is_had for _, sent in done)
    say(f"{store}: has {had} of {len(runs)} runs of {layout.profile}")
    if problems:
        raise problems[0]


def _say(record: RunRecord, sent: Sent) -> None:
    news = [f"{sent.metrics} metrics"] * bool(sent.metrics) + sent.artifacts
    what = sent.note or ", ".join(news) or "nothing new"
    name = record.name + ", results from elsewhere" * record.is_of_results
    say(f"{name}: {what}{' (a new run)' if sent.is_new else ''}")
    if record.unsent:
        say(f"{name}: {record.unsent}")


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
