"""Train twice, undisturbed, and killed again and again at drawn moments; print how often.

Usage: killed_training.py CONFIG TABLE IMAGES UNDISTURBED KILLED KILLS

Each try is a fork, so that none imports PyTorch again.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from mmnet.config.identity import RunInputs, training_identity
from mmnet.config.paths import RunPaths
from mmnet.config.schema import Config
from mmnet.data.dataset import training_items
from mmnet.train.loop import fit


def run_in(config: Config, root: Path) -> RunPaths:
    return RunPaths(config.profile, config.experiment, config.seed, root)


def train(config: Config, inputs: RunInputs, root: Path) -> None:
    identity = training_identity(config, inputs)
    fit(config, identity, inputs=inputs, run=run_in(config, root), device=torch.device("cpu"))


def started(*arguments: object) -> int:
    """Train in a fork; return its process id."""
    pid = os.fork()
    if pid == 0:
        train(*arguments)  # type: ignore[arg-type]
        os._exit(0)
    return pid


def wait_for_a_save(last: Path, pid: int) -> None:
    """Until last.pt is there, or another; or the process has ended."""
    before = last.stat().st_ino if last.exists() else None
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        with contextlib.suppress(FileNotFoundError):
            if last.stat().st_ino != before:
                return
        time.sleep(0.001)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    random.seed(0)
    torch.set_num_threads(1)
    config = Config.model_validate_json(sys.argv[1])
    table, images, undisturbed, killed = map(Path, sys.argv[2:6])
    # What all forks share, once: code read, sentences' vocabulary loaded.
    inputs = RunInputs(
        table=table, images=images, manifest=images.with_suffix(".tsv"), weights=None
    )
    identity = training_identity(config, inputs)
    training_items(config, table, images)
    start = time.monotonic()
    pid = started(config, inputs, undisturbed)
    wait_for_a_save(run_in(config, undisturbed).work(identity).last, pid)
    first_save = time.monotonic() - start
    assert ended(pid) == 0
    kills = 0
    while kills < int(sys.argv[6]):
        pid = started(config, inputs, killed)
        if random.random() < 0.5:  # however slow the machine has become
            wait_for_a_save(run_in(config, killed).work(identity).last, pid)
        time.sleep(random.uniform(0, first_save))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            sys.exit(f"finished after {kills} kills: train for longer")
        kills += 1
    assert ended(started(config, inputs, killed)) == 0
    print(kills)
