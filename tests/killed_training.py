"""Train twice, undisturbed, and killed again and again at drawn moments; print how often.

Usage: killed_training.py CONFIG TABLE IMAGES UNDISTURBED KILLED KILLS

Each try is a fork, so that none imports PyTorch again.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from mmnet.code_version import code_version
from mmnet.config import Config
from mmnet.data.dataset import training_items
from mmnet.train.loop import fit


def train(config: Config, table: Path, images: Path, folder: Path) -> None:
    fit(
        config,
        table=table,
        images=images,
        manifest=images.with_suffix(".tsv"),
        weights=None,
        folder=folder,
        device=torch.device("cpu"),
    )


def started(*arguments: object) -> int:
    """Train in a fork; return its process id."""
    pid = os.fork()
    if pid == 0:
        train(*arguments)  # type: ignore[arg-type]
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    random.seed(0)
    torch.set_num_threads(1)
    config = Config.model_validate_json(sys.argv[1])
    table, images, undisturbed, killed = map(Path, sys.argv[2:6])
    # What all forks share, once: code read, sentences' vocabulary loaded.
    code_version(fit.__module__)
    training_items(config, table, images)
    start = time.monotonic()
    pid = started(config, table, images, undisturbed)
    while not (undisturbed / "work" / "last.pt").exists():
        time.sleep(0.001)
    first_save = time.monotonic() - start
    assert ended(pid) == 0
    kills = 0
    while kills < int(sys.argv[6]):
        pid = started(config, table, images, killed)
        time.sleep(random.uniform(0, 1.6 * first_save))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            sys.exit(f"finished after {kills} kills: train for longer")
        kills += 1
    assert ended(started(config, table, images, killed)) == 0
    print(kills)
