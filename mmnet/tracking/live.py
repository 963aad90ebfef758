"""What a training process does to be recorded: notes where it comes from, and starts a recorder.

Training never waits for MLflow, nor dies of it. Its files come first; a process beside it sends
them (recorder.py); what that cannot send, `mmnet mlflow-sync` sends later.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmnet.config.paths import Layout
from mmnet.config.schema import Config
from mmnet.runtime.errors import MMNetError, Stopped, TrackingError
from mmnet.runtime.fingerprint import ROOT
from mmnet.runtime.progress import say
from mmnet.tracking.provenance import describe_device, packages, revision
from mmnet.tracking.run_files import (
    RunFiles,
    Status,
    milliseconds,
    own_metrics,
    read_record,
    write_record,
)
from mmnet.tracking.store_errors import in_one_line
from mmnet.train.run_state import identity_of

PATIENCE = 20.0
"""Seconds that a finished training waits for the last of it to be sent."""
LATER = "Training goes on, and nothing of it is lost"


@contextlib.contextmanager
def recorded(
    config: Config,
    layout: Layout,
    *,
    table: Path,
    manifest: Path,
    weights: Path | None,
    tables: list[dict[str, str]],
    device: Any,
) -> Iterator[None]:
    """Record the training in the block; what goes wrong with that is said, once, and no more."""
    run = RunFiles(layout, config.experiment, config.seed)
    problem: Exception | None = None
    recorder: Recorder | None = None
    with contextlib.ExitStack() as stack:
        try:
            identity = identity_of(config, table=table, manifest=manifest, weights=weights)
            run.tracking.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run.at_work.acquire(timeout=1))
            begin(run, config, identity, tables=tables, device=device)
            recorder = Recorder(run)
        except Exception as error:
            # Mostly what training itself is about to refuse, in better words.
            problem = error
        status: Status = "KILLED"
        try:
            yield
            status = "FINISHED"
        except Stopped:
            raise  # saved, and goes on with the same command; its queue grants it seconds
        except Exception:
            status = "FAILED"
            raise
        finally:
            if recorder:
                try:
                    recorder.end(status)
                except Exception as error:
                    problem = error
        if problem:
            say(
                f"mlflow: {run.name} is not recorded: {in_one_line(problem)} Later: mmnet "
                "mlflow-sync."
            )


def begin(
    run: RunFiles,
    config: Config,
    identity: dict[str, Any],
    *,
    tables: list[dict[str, str]],
    device: Any,
) -> None:
    """Note where a run comes from, or, of one that goes on, that it does."""
    try:
        old = read_record(run)
    except TrackingError:
        old = None
    if old is None or not _goes_on(run, old, identity):
        for path in (run.system, run.tracking / "times.json"):
            path.unlink(missing_ok=True)
        old = {
            "id": uuid.uuid4().hex,
            "identity": identity,
            "started": milliseconds(),
            "metrics_of_another": _metrics_of_another(run, identity),
            "git": revision(Path()),
            "packages": packages(),
            "device": describe_device(device),
        }
    changing = {"config": config.model_dump(mode="json"), "tables": tables, "ended": None}
    write_record(run, old | changing)


class Recorder:
    """The process that sends a run to MLflow while it is trained."""

    def __init__(self, run: RunFiles) -> None:
        self.run = run
        self.has_said = False
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        names = [run.layout.profile, run.experiment, str(run.seed)]
        with (run.tracking / "recorder.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmnet.tracking.recorder", *names],
                # None of the training's own: a pipe that it is read through closes when it ends.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the training: the rest is then sent
            )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def end(self, status: Status) -> None:
        """Note how the training ended, and give the recorder a little time for the last of it."""
        note_end(self.run, status)
        assert self.process.stdin
        self.process.stdin.close()
        if status == "KILLED":
            return  # the user waits for the prompt, or a queue; the recorder ends by itself
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.listener.join()
        if code and not self.has_said:
            say(
                f"mlflow: the store did not take all of {self.run.name} in {PATIENCE:.0f} s "
                f"({self.run.tracking / 'recorder.log'}). Nothing is lost; to send the rest: mmnet "
                "mlflow-sync."
            )

    def _listen(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.has_said = True
                say(f"mlflow: {line.rstrip()} {LATER}.")


def note_end(run: RunFiles, status: Status) -> None:
    with contextlib.suppress(OSError, MMNetError):  # a full disk: the results tell too
        if record := read_record(run):
            write_record(run, record | {"ended": {"status": status, "time": milliseconds()}})


def _goes_on(run: RunFiles, old: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether this is the run noted before, with what it would go on from still there."""
    if old["identity"] != identity:
        return False
    work = run.folder / "work"
    is_there = any((work / name).is_file() for name in ("last.pt", "finished.json"))
    return is_there or own_metrics(run, old) is None


def _metrics_of_another(run: RunFiles, identity: dict[str, Any]) -> int | None:
    """Tell the epochs that lie here from those to come, by their time, if they are another's."""
    try:
        if json.loads(run.finished.read_text(encoding="utf-8")) == identity:
            return None
    except (FileNotFoundError, ValueError):
        pass
    return run.work_metrics.stat().st_mtime_ns if run.work_metrics.is_file() else None
