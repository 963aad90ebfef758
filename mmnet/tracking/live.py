"""Runs sent to MLflow: while they are trained, after evaluation, and whenever asked.

Training never waits for MLflow and never fails because of it. Its files come first; one thread
sends them. What that cannot send, `mmnet mlflow-sync` sends later.
"""

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmnet.config.identity import Identity
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config, Params
from mmnet.runtime.errors import MMNetError, Stopped, TrackingError
from mmnet.runtime.files import read_json
from mmnet.runtime.progress import say
from mmnet.tracking.record import IDENTITY, Status, begin, modified, published, read
from mmnet.tracking.store import Store, silence_mlflow

WAIT = 20.0
"""Seconds that a finished training waits at most for MLflow to take the last of it."""
LOOK_EVERY = 0.5
SAMPLE_EVERY = 20
"""Seconds between system metrics, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says others."""


class Recording(contextlib.AbstractContextManager[None]):
    """Records the training in the block; the first thing that goes wrong with that is one line."""

    def __init__(
        self,
        config: Config,
        run: RunPaths,
        identity: Identity,
        tables: Sequence[str],
        device: Any,
    ) -> None:
        self.run, self.identity, self.tables = run, identity, tables
        self.status: Status = "RUNNING"
        self.is_over, self.has_failed = threading.Event(), False
        # A daemon: the process can exit although a call hangs.
        self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        try:
            # Not in the thread: data loaders fork, and an import under way must not be copied.
            silence_mlflow()
            begin(config, run, identity, device)
            self.thread.start()
        except Exception as error:
            self._fail(error)

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        # One that was stopped has saved its state, and its queue grants it seconds: no waiting.
        is_failed = kind and issubclass(kind, Exception) and not issubclass(kind, Stopped)
        self.status = "FAILED" if is_failed else "KILLED" if kind else "FINISHED"
        self.is_over.set()
        if self.status != "KILLED" and not self.has_failed:
            self.thread.join(WAIT)
            if self.thread.is_alive():
                self._fail(TrackingError(f"the store did not take all in {WAIT:.0f} s."))

    def _fail(self, error: Exception) -> None:
        if not self.has_failed:
            say(
                f"mlflow: {self.run.name}: {_text(error)} Training is not affected; send the rest: "
                "mmnet mlflow-sync."
            )
        self.has_failed = True

    def _follow(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            store, work = Store(self.run.root), self.run.work(self.identity)
            run_id, seen = self._send(store), None
            monitor = SystemMetricsMonitor(run_id, SAMPLE_EVERY, 1, True, None, store.uri)
            if self.status == "RUNNING" and not work.finished.is_file():
                monitor.start()
            while not self.is_over.wait(LOOK_EVERY):
                now = modified(work.metrics) if work.metrics.is_file() else None
                if now != seen:
                    self._send(store)
                seen = now
            monitor.finish()
            self._send(store)
        except Exception as error:
            self._fail(error)

    def _send(self, store: Store) -> str:
        run_id, report = store.send(read(self.run, self.identity, self.tables, self.status))
        if run_id is None:
            raise TrackingError(f"{report}.")
        return run_id


def send(run: RunPaths, tables: Sequence[str]) -> None:
    """Send what MLflow lacks of a published run; what goes wrong is one line."""
    try:
        Store(run.root).send(read(run, published(run), tables))
    except Exception as error:
        say(f"mlflow: {_text(error)} The results are written.")


def sync_all(paths: Paths, folders: list[Path], params: Params) -> Store:
    """Send what MLflow lacks of some runs, or of all of the profile; say in a line what that was.

    Raises:
        TrackingError: the store cannot be used, or a folder is not a run folder; or a run's files
            are damaged, when all others are sent.
    """
    trainings = _trainings(paths)
    runs = [_run_in(folder, trainings) for folder in folders] or sorted(trainings, key=str)
    store, problem = Store(paths.root), None
    for run in runs:
        experiment = params.experiments.get(run.experiment)
        tables = experiment.tables if experiment else None
        try:
            records = [read(run, identity, tables) for identity in trainings[run] or (None,)]
        except TrackingError as error:
            say(f"{run.name}: {error}")
            problem = problem or error
            continue
        for record in records:
            say(f"{run.name} ({record.tags[IDENTITY][:8]}): {store.send(record)[1]}")
    if problem:
        raise problem
    return store


def _trainings(paths: Paths) -> dict[RunPaths, list[Identity]]:
    """Return the runs that have results here or are trained here, with their trainings."""
    folders = paths.root.glob(f"runs/{paths.profile}/*/seed*")
    runs = [paths.run(f.parent.name, int(f.name[4:])) for f in folders if f.name[4:].isdecimal()]
    found: dict[RunPaths, list[Identity]] = {run: [] for run in runs}
    for about in map(read_json, [r.identity for r in runs] + [w.about for w in paths.works]):
        if identity := Identity.from_dict(about.get("identity")):
            known = found.setdefault(paths.run(about["experiment"], about["seed"]), [])
            known += [identity] * (identity not in known)
    return found


def _run_in(folder: Path, known: dict[RunPaths, Any]) -> RunPaths:
    for run in known:
        if folder.is_dir() and run.folder.is_dir() and run.folder.samefile(folder):
            return run
    raise TrackingError(
        f"{folder}: is not a run folder of the profile (expected runs/PROFILE/EXPERIMENT/seedN)."
    )


def _text(error: Exception) -> str:
    """Return what an error says; of one that is not ours, also which it is."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MMNetError) else f"{type(error).__name__}: {text.rstrip('.')}."
