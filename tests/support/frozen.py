"""Training with frozen batch statistics: the CPU has no synchronised BatchNorm."""

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

from mmnet.config.schema import Config
from mmnet.train.loop import fit
from mmnet.train.step import Stepper
from support.training import CPU, identity_of, inputs_of, run_in


def frozen(self: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm's forward by its running statistics, in training as in evaluation."""
    return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def fit_frozen(tiny: Any, root: Path, config: Config, *, signalled_after: int = 0) -> None:
    """Train as one of several processes; a queue may signal one of them, and not the first.

    To be called in a process of its own, whose classes it changes.
    """
    torch.nn.BatchNorm2d.forward = frozen  # type: ignore[method-assign]
    step, close, leave = Stepper.step, Stepper.__exit__, dist.destroy_process_group

    def signalled(self: Stepper, *arguments: Any, **keywords: Any) -> float:
        loss = step(self, *arguments, **keywords)
        if self.world.rank == 1 and keywords["step"] + 1 == signalled_after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss

    def closed(self: Stepper, *error: object) -> None:
        # After a run's first step sums are as after any other, or it could not resume exactly.
        assert not self.forward._get_ddp_logging_data()["has_rebuilt_buckets"]
        close(self, *error)

    def left() -> None:
        # Nothing may be at work in the group of processes that is left: it could wait for ever.
        assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
        print("left", file=sys.stderr)
        leave()

    Stepper.step, Stepper.__exit__ = signalled, closed  # type: ignore[method-assign]
    dist.destroy_process_group = left
    identity = identity_of(tiny, config) if os.environ["RANK"] == "0" else None
    fit(config, identity, inputs=inputs_of(tiny), run=run_in(root, config), device=CPU)
