"""Runs sent to MLflow: while they are trained, after evaluation, and whenever asked.

Training never waits for MLflow and never fails because of it. Its files come first; one thread
sends them. What that cannot send, `mmnet mlflow-sync` sends later.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmnet.config.identity import Identity
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config, Params
from mmnet.config.tables import rows_of_run
from mmnet.runtime.errors import MMNetError, Stopped, TrackingError
from mmnet.runtime.files import read_json
from mmnet.runtime.progress import say
from mmnet.tracking.record import IDENTITY, Status, begin, modified, note, published, read
from mmnet.tracking.store import Store, silence_mlflow

WAIT = 20.0
"""Seconds that a finished training waits at most for MLflow to take the last of it."""
LOOK_EVERY = 0.5
MISSING = "{}: missing or damaged; pull or train the run again."
SAMPLE_EVERY = 20
"""Seconds between system metrics, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says others."""


@contextlib.contextmanager
def recorded(
    config: Config, run: RunPaths, identity: Identity, tables: list[dict[str, str]], device: Any
) -> Iterator[None]:
    """Record the training in the block; what goes wrong with that is one line."""
    recorder: _Recorder | None = None
    try:
        # Here, not in the thread: data loaders fork, and an import under way must not be copied.
        silence_mlflow()
        begin(config, run, identity, tables, device)
        recorder = _Recorder(run, identity, tables)
    except Exception as error:
        say(f"mlflow: {run.name} is not recorded: {_text(error)}")
    status: Status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Stopped:
        raise  # not failed: it is saved, and its queue grants it seconds
    except Exception:
        status = "FAILED"
        raise
    finally:
        if recorder:
            recorder.end(status)


class _Recorder:
    """The thread that sends a training as it goes. Its first failure is its last call of MLflow."""

    def __init__(self, run: RunPaths, identity: Identity, tables: list[dict[str, str]]) -> None:
        self.run, self.identity, self.tables = run, identity, tables
        self.work = run.work(identity)
        self.is_over, self.has_failed = threading.Event(), False
        self.monitor: Any = None
        # A daemon: the process can exit although a call hangs.
        self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self.thread.start()

    def end(self, status: Status) -> None:
        """Note how the training ended; give MLflow `WAIT` seconds, none where it was stopped."""
        with contextlib.suppress(OSError, MMNetError, ValueError):  # a full disk
            note(self.work, self.identity, status)
        self.is_over.set()
        if status == "KILLED":
            return
        self.thread.join(WAIT)
        if self.thread.is_alive():
            self._fail(f"the store did not take all of {self.run.name} in {WAIT:.0f} s.")

    def _fail(self, reason: str) -> None:
        if not self.has_failed:
            say(f"mlflow: {reason} Training is not affected; send the rest: mmnet mlflow-sync.")
        self.has_failed = True

    def _follow(self) -> None:
        seen, is_over, store = -1, False, None
        while not is_over:
            is_over = self.is_over.wait(0 if seen == -1 else LOOK_EVERY)
            before, path = seen, self.work.metrics
            seen = modified(path) if path.exists() else 0
            if seen == before and not is_over:
                continue
            try:
                note(self.work, self.identity)  # also where MLflow fails
                if not self.has_failed:
                    store = store or Store(self.run.root)
                    self._send(store, is_training=not is_over)
            except Exception as error:
                self._fail(_text(error))

    def _send(self, store: Store, *, is_training: bool) -> None:
        record = read(self.run, self.identity, tables=self.tables, is_training=is_training)
        run_id, report = store.send(record)
        if run_id is None:
            raise TrackingError(f"{self.run.name}: {report}.")
        if self.monitor is None and record.status == "RUNNING":
            self.monitor = _system_metrics(store.uri, run_id)
        elif self.monitor is not None and not is_training:
            self.monitor.finish()


def send(run: RunPaths, tables: list[dict[str, str]]) -> None:
    """Send what MLflow lacks of a published run; what goes wrong is one line."""
    try:
        identity = published(run)
        if identity is None:
            raise TrackingError(MISSING.format(run.identity))
        Store(run.root).send(read(run, identity, tables=tables))
    except Exception as error:
        say(f"mlflow: {_text(error)} The results are written.")


def sync_all(paths: Paths, folders: list[Path], params: Params) -> Store:
    """Send what MLflow lacks of some runs, or of all of the profile; say in a line what that was.

    Raises:
        TrackingError: the store cannot be used, or a folder is not a run folder; or a run's files
            are damaged, when all others are sent.
    """
    runs = [_run_in(folder, paths) for folder in folders] or _all_runs(paths)
    store = Store(paths.root)
    problem = None
    for run in runs:
        tables = None
        if run.experiment in params.experiments and run.profile == params.profile:
            tables = rows_of_run(params.resolve(run.experiment, int(run.seed)), params)
        try:
            records = [read(run, identity, tables=tables) for identity in _trainings(run)]
        except TrackingError as error:
            say(f"{run.name}: {error}")
            problem = problem or error
            continue
        for record in records:
            say(f"{run.name} ({record.tags[IDENTITY][:8]}): {store.send(record)[1]}")
    if problem:
        raise problem
    return store


def _all_runs(paths: Paths) -> list[RunPaths]:
    """Return the runs that were trained here or have results here."""
    abouts = [read_json(work.about) for work in paths.works]
    named = [about for about in abouts if {"experiment", "seed"} <= about.keys()]
    found = {paths.run(about["experiment"], about["seed"]) for about in named}
    published = paths.root.glob(str(RunPaths(paths.profile, "*", "*").metrics))
    return sorted(found | {_run_in(path.parent, paths) for path in published}, key=str)


def _trainings(run: RunPaths) -> list[Identity]:
    """Return the trainings of a run: the published one, and those that work here.

    Raises:
        TrackingError: there is none.
    """
    files = [run.identity, *(work.about for work in Paths(run.profile, run.root).works)]
    found = {}
    for about in map(read_json, files):
        identity = Identity.from_dict(about.get("identity"))
        if identity and (about.get("experiment"), about.get("seed")) == (run.experiment, run.seed):
            found[identity.digest] = identity
    if not found:
        raise TrackingError(MISSING.format(run.identity))
    return list(found.values())


def _run_in(folder: Path, paths: Paths) -> RunPaths:
    # Not resolved: `runs/` may be a link.
    *_, profile, experiment, last = ("", "", *folder.absolute().parts)
    if seed := re.fullmatch(r"seed(\d+)", last):
        run = RunPaths(profile, experiment, int(seed[1]), paths.root)
        if folder.is_dir() and run.folder.is_dir() and run.folder.samefile(folder):
            return run
    raise TrackingError(f"{folder}: is not a run folder (expected runs/PROFILE/EXPERIMENT/seedN).")


def _system_metrics(uri: str, run_id: str) -> Any:
    """Start MLflow's own monitor of processor, memory, disk, network and GPUs."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        def monitor(self) -> None:
            with contextlib.suppress(Exception):  # a thread's error is a traceback on stderr
                super().monitor()

    monitor = Monitor(run_id, sampling_interval=SAMPLE_EVERY, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def _text(error: Exception) -> str:
    """Return what an error says; of one that is not ours, also which it is."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MMNetError) else f"{type(error).__name__}: {text.rstrip('.')}."
