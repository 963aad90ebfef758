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
from mmnet.config.paths import WORK, Paths, RunPaths
from mmnet.config.schema import Config, Params
from mmnet.config.tables import rows_of_run
from mmnet.runtime.errors import MMNetError, Stopped, TrackingError
from mmnet.runtime.files import read_json
from mmnet.runtime.progress import say
from mmnet.tracking.record import Status, begin, note_end, note_epochs, published, read
from mmnet.tracking.store import Store, silence_mlflow

WAIT = 20.0
"""Seconds that a finished training waits at most for MLflow to take the last of it."""
LOOK_EVERY = 0.5
SAMPLE_EVERY = 20
"""Seconds between system metrics, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says others."""
LATER = "The files are complete; to send the rest: mmnet mlflow-sync."


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
        self.store: Store | None = None
        self.monitor: Any = None
        # A daemon: the process can exit although a call hangs.
        self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self.thread.start()

    def end(self, status: Status) -> None:
        """Note how the training ended; give MLflow `WAIT` seconds, none where it was stopped."""
        with contextlib.suppress(OSError, MMNetError, ValueError):  # a full disk
            note_epochs(self.work, self.identity)
            note_end(self.work, self.identity, status)
        self.is_over.set()
        if status == "KILLED":
            return
        self.thread.join(WAIT)
        if self.thread.is_alive() and not self.has_failed:
            self.has_failed = True
            say(f"mlflow: the store did not take all of {self.run.name} in {WAIT:.0f} s. {LATER}")

    def _follow(self) -> None:
        seen, is_over = -1, False
        while not is_over:
            is_over = self.is_over.wait(0 if seen == -1 else LOOK_EVERY)
            changed = _changed(self.work.metrics)
            if changed == seen and not is_over:
                continue
            seen = changed
            try:
                note_epochs(self.work, self.identity)  # also where MLflow fails
                if not self.has_failed:
                    self._send(is_training=not is_over)
            except Exception as error:
                if not self.has_failed:
                    self.has_failed = True
                    say(f"mlflow: {_text(error)} Training is not affected. {LATER}")

    def _send(self, *, is_training: bool) -> None:
        self.store = self.store or Store(self.run.root)
        record = read(self.run, self.identity, tables=self.tables, is_training=is_training)
        run_id, report = self.store.send(record)
        if run_id is None:
            raise TrackingError(f"{self.run.name}: {report}.")
        if self.monitor is None and is_training:
            self.monitor = _system_metrics(self.store.uri, run_id)
        elif self.monitor is not None and not is_training:
            self.monitor.finish()


def send(run: RunPaths, tables: list[dict[str, str]]) -> None:
    """Send what MLflow lacks of a published run; what goes wrong is one line."""
    try:
        identity = published(run)
        if identity is None:
            raise TrackingError(f"{run.identity}: missing or damaged; pull or train the run again.")
        Store(run.root).send(read(run, identity, tables=tables))
    except Exception as error:
        say(f"mlflow: {_text(error)} The results are written.")


def sync_all(paths: Paths, folders: list[Path], params: Params) -> Store:
    """Send what MLflow lacks of some runs, or of all of the profile; say in a line what that was.

    Raises:
        TrackingError: the store cannot be used, or a folder is not a run folder; or a run's files
            are damaged, when all others are sent.
    """
    chosen = {_run_in(folder, paths) for folder in folders}
    store = Store(paths.root)
    problems: list[TrackingError] = []
    for run, identity in _trainings(paths, {run.profile for run in chosen}):
        if chosen and run not in chosen:
            continue
        try:
            if identity is None:
                raise TrackingError(f"{run.identity}: missing or damaged; pull or train it again.")
            record = read(run, identity, tables=_tables(run, params))
        except TrackingError as error:
            say(f"{run.name}: {error}")
            problems.append(error)
        else:
            say(f"{run.name} ({identity.id}): {store.send(record)[1]}")
    if problems:
        raise problems[0]
    return store


def _tables(run: RunPaths, params: Params) -> list[dict[str, str]] | None:
    """Return the tables that a run serves by params.yaml; None if that does not have it."""
    if run.experiment not in params.experiments or run.profile != params.profile:
        return None
    return rows_of_run(params.resolve(run.experiment, int(run.seed)), params)


def _trainings(paths: Paths, profiles: set[str]) -> list[tuple[RunPaths, Identity | None]]:
    """Return all trainings of a profile: those that worked here, and those published here."""
    found: dict[tuple[RunPaths, str | None], Identity | None] = {}
    for profile in profiles or {paths.profile}:
        of_profile = Paths(profile, paths.root)
        for work in of_profile.works:
            about = read_json(work.about)
            if identity := Identity.from_dict(about.get("identity")):
                run = of_profile.run(about["experiment"], about["seed"])
                found[run, identity.digest] = identity
        for metrics in sorted(
            of_profile.run("*", "*").folder.parents[1].glob("*/seed*/metrics.jsonl")
        ):
            if metrics.parts[-3] != WORK:
                run = _run_in(metrics.parent, of_profile)
                identity = published(run)
                found[run, identity.digest if identity else None] = identity
    return [(run, found[run, digest]) for run, digest in sorted(found, key=str)]


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


def _changed(path: Path) -> int:
    """Return when a file changed, in ns; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _text(error: Exception) -> str:
    """Return what an error says; of one that is not ours, also which it is."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MMNetError) else f"{type(error).__name__}: {text.rstrip('.')}."
