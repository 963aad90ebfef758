"""The process beside a training that sends it to MLflow as it goes.

A process of its own: a call that hangs can be killed, nothing here can touch the training's random
state or hold it up, and MLflow's memory goes when it goes. It ends when its standard input does,
which the training process holds, however that ends. It says at most one line: what went wrong.
"""

import contextlib
import json
import os
import select
import sys
import time
from pathlib import Path

from mmnet.config.paths import Layout
from mmnet.runtime.errors import TrackingError
from mmnet.tracking.mlflow_store import Store
from mmnet.tracking.run_files import RunFiles, milliseconds
from mmnet.tracking.sync import sync
from mmnet.tracking.system import Machine

LOOK_EVERY = 0.5
SEND_EVERY = 60.0
"""Seconds, should no epoch end before; that of samples grows with the training's time."""


def main() -> None:
    profile, experiment, seed = sys.argv[1:]
    os.nice(10)
    sys.stdout = sys.stderr  # whatever else is printed is for recorder.log
    follow(RunFiles(Layout(profile), experiment, int(seed)))


def follow(run: RunFiles) -> None:
    machine = Machine(os.getppid())
    start = time.monotonic()
    next_sample = next_send = start
    seen: int | None = None
    store: Store | None = None
    has_said = is_over = False
    while not is_over:
        is_over = _has_ended(LOOK_EVERY)
        now = time.monotonic()
        if now >= next_sample:
            _append(run.system, {"time": milliseconds(), **machine.sample()})
            next_sample = now + max(5.0, min(60.0, (now - start) / 60))
        changed = _changed(run.work_metrics)
        if is_over or now >= next_send or changed != seen:
            try:
                store = store or Store(Path())
                sync(store, run, training=not is_over)
            except TrackingError as error:
                if not has_said:
                    _say(str(error))
                has_said = True
            seen, next_send = changed, time.monotonic() + SEND_EVERY


def _has_ended(seconds: float) -> bool:
    """Wait; return whether the training process is gone or done."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable)


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _append(path: Path, line: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _say(message: str) -> None:
    # Of a training that was killed, nobody is left to be told.
    with contextlib.suppress(BrokenPipeError):
        print(message, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
