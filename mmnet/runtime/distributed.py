"""The processes that share one piece of work: which one this is, and what they tell one another.

torchrun starts them, `mmnet train` calls torchrun where params.yaml asks for more than one.
"""

import contextlib
import datetime
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import SIGTERM
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from mmnet.runtime.errors import Stopped, UnheardError
from mmnet.runtime.progress import LAUNCHER, TOLD, UNHEARD, tell

T = TypeVar("T")

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""torchrun hands these on to its processes."""
SECONDS_TO_SAVE = 300
THEIRS = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe")
"""Words of errors that come of another process's end."""


class World(NamedTuple):
    """All processes, and this one's number among them. Alone, it says nothing to anyone."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: list[float], device: torch.device) -> list[float]:
        """Return the means of the processes' values."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=device)
        with self.speaking():
            dist.all_reduce(total)
        return (total / self.size).tolist()

    def first(self, value: T) -> T:
        """Return the first process's value."""
        if self.size == 1:
            return value
        values = [value]
        with self.speaking():
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with self.speaking():
            dist.all_gather_object(values, value)
        return cast(list[T], values)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values."""
        if self.size > 1:
            with self.speaking():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Say in one line that another process ended while this one waited for it."""
        try:
            yield
        except RuntimeError as error:
            is_theirs = isinstance(error, dist.DistError) or THEIRS.search(str(error))
            if self.size == 1 or not is_theirs:
                raise
            line = str(error).strip().splitlines()[0][:160]
            raise UnheardError(
                f"process {self.rank + 1} of {self.size}: the others were not heard ({line}). "
                "See what they said; the same command goes on from the last checkpoint."
            ) from None


ALONE = World(0, 1)


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world() -> World:
    """The processes that `joined` this one's group."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Meet the other processes of this torchrun; without one, be alone."""
    if not is_launched():
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The others wait while the first saves, be it to a slow disk.
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    try:
        yield world()
    except Stopped:
        dist.destroy_process_group()
        raise
    # Not after other errors: the others may never come to it.
    dist.destroy_process_group()


def launch(processes: int, *, threads: int) -> int:
    """Run this very command under torchrun, `processes` times; return its exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # DDP would warn that it was to look for unused parameters, and found none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = ["--standalone", "--nproc-per-node", str(processes)]
    arguments += ["--signals-to-handle", SIGNALS, "--shutdown-timeout", str(SECONDS_TO_SAVE)]
    logging.disable()  # torchrun's lines on what the processes say themselves
    with tempfile.TemporaryDirectory() as told:
        os.environ |= {TOLD: told, LAUNCHER: str(os.getpid())}
        try:
            run.run(run.parse_args([*arguments, "-m", "mmnet", *sys.argv[1:]]))
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _tell_cause(codes, Path(told), processes)
        except SignalException as error:
            return 128 + error.sigval
    return 0


def _tell_cause(codes: dict[int, int], told: Path, processes: int) -> int:
    """Say why processes failed, by their exit codes, if none of them has; return one of these."""
    own = [code for code in codes.values() if code > 0]
    # Those that torchrun ended with SIGTERM came after the one that it ended them for.
    killed = [rank for rank, code in codes.items() if code < 0 and not (own and code == -SIGTERM)]
    is_told = any(path.name != UNHEARD for path in told.iterdir())
    if killed and not is_told:
        name = signal.Signals(-codes[killed[0]]).name
        tell(
            f"process {killed[0] + 1} of {processes} was ended by {name}. The same command goes on."
        )
        return 128 - codes[killed[0]]  # as shells count
    if (told / UNHEARD).exists() and not is_told:
        tell((told / UNHEARD).read_text())
    return own[0] if own else 128 + SIGTERM
