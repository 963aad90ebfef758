"""The group of processes that train or predict together: collectives, and joining the group."""

import contextlib
import datetime
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from mmnet.runtime.errors import LostPeersError, Stopped
from mmnet.runtime.launcher import is_launched

T = TypeVar("T")

PEER_ERRORS = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe")
"""Words of the errors that collectives raise when another process has ended."""


class World(NamedTuple):
    """This process's rank and the number of processes. A single process communicates nothing."""

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
        with self.communicating():
            dist.all_reduce(total)
        return (total / self.size).tolist()

    def broadcast(self, value: T) -> T:
        """Return the first process's value."""
        if self.size == 1:
            return value
        values = [value]
        with self.communicating():
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with self.communicating():
            dist.all_gather_object(values, value)
        return cast(list[T], values)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the first process's values into every process's tensors."""
        if self.size > 1:
            with self.communicating():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    @contextlib.contextmanager
    def communicating(self) -> Iterator[None]:
        """Run collectives, whose errors become one line.

        Raises:
            LostPeersError: another process ended meanwhile.
        """
        try:
            yield
        except RuntimeError as error:
            is_peers = isinstance(error, dist.DistError) or PEER_ERRORS.search(str(error))
            if self.size == 1 or not is_peers:
                raise
            line = str(error).strip().splitlines()[0][:160]
            raise LostPeersError(
                f"process {self.rank + 1} of {self.size} lost contact with its peers ({line}). See "
                "their errors; run the same command again to resume from the last checkpoint."
            ) from None


ALONE = World(0, 1)


def world() -> World:
    """Return the group that this process `joined`."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the other processes of this torchrun; without torchrun, be the only process."""
    if not is_launched():
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The others wait while the first one saves, which may take long on a slow disk.
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    try:
        yield world()
    except Stopped:
        dist.destroy_process_group()
        raise
    # Not after other errors: the other processes may never get here.
    dist.destroy_process_group()
