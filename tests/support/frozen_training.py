"""Train with frozen batch statistics, under torchrun: the CPU has no synchronised BatchNorm.

Usage: torchrun --nproc-per-node 2 frozen_training.py CONFIG TABLE IMAGES FOLDER [STEPS]
After so many STEPS a queue signals one of the processes, and not the first.
"""

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mmnet.config.identity import RunInputs, training_identity
from mmnet.config.paths import RunPaths
from mmnet.config.schema import Config
from mmnet.train.loop import fit
from mmnet.train.step import Stepper


def frozen(self: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm's forward by its running statistics, in training as in evaluation."""
    return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def signalled(self: Stepper, *arguments: Any, **keywords: Any) -> float:
    loss = step(self, *arguments, **keywords)
    if self.world.rank == 1 and keywords["step"] + 1 == int(steps[0]):
        os.kill(os.getpid(), signal.SIGUSR1)
    return loss


def closed(self: Stepper, *error: object) -> None:
    """After a run's first step sums are as after any other, or it could not be resumed exactly."""
    assert not self.forward._get_ddp_logging_data()["has_rebuilt_buckets"]
    close(self, *error)


def left() -> None:
    """Leave the group of processes, in which nothing may be at work: it could wait for ever."""
    assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
    print("left", file=sys.stderr)
    leave()


if __name__ == "__main__":
    config, table, images, folder, *steps = sys.argv[1:]
    torch.nn.BatchNorm2d.forward = frozen
    step, close, leave = Stepper.step, Stepper.__exit__, dist.destroy_process_group
    dist.destroy_process_group = left
    if steps:
        Stepper.step = signalled
    Stepper.__exit__ = closed
    config = Config.model_validate_json(config)
    inputs = RunInputs(
        table=Path(table),
        images=Path(images),
        manifest=Path(images).with_suffix(".tsv"),
        weights=None,
    )
    run = RunPaths(config.profile, config.experiment, config.seed, Path(folder))
    identity = training_identity(config, inputs) if os.environ["RANK"] == "0" else None
    fit(config, identity, inputs=inputs, run=run, device=torch.device("cpu"))
