"""Read items ahead in processes of their own; whatever keeps an item from arriving is an error.

PyTorch hands tensors over in shared memory. Where that fails, it drops the item and waits for ever:
here the reader sends the error in the item's place.
"""

import itertools
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Container, Generator, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch._C import _remove_worker_pids
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from mmnet.data.dataset import Item, stack_images
from mmnet.runtime.distributed import world
from mmnet.runtime.errors import DataError, Stopped
from mmnet.runtime.progress import duration, readable
from mmnet.runtime.signals import Interruption, heard, saved_first
from mmnet.runtime.system import cpu_count, shared_memory, start_method, stop_signals

POLL = 1.0  # seconds
SILENCE = 300.0  # seconds without an item, after which a run ends
GRACE = 5.0  # seconds for which a run that was signalled waits for its next item
AHEAD = 2  # items that each reader prepares


class NotSharedError(DataError):
    """A reader could not hand over an item."""


class _Watched(Dataset[Any]):
    """Records which item each loader process is reading, to name it should the process die."""

    def __init__(self, items: Dataset[Any], workers: int) -> None:
        self.items = items
        self.at = torch.full((workers, 2), -1, dtype=torch.long)
        """(workers, 2): process id, index"""
        if workers:
            self.at.share_memory_()

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.at[worker.id] = torch.tensor([os.getpid(), index])
        return self.items[index]

    def files(self, pids: Container[int]) -> str:
        """Return the images that the processes with these ids were reading."""
        indices = [int(index) for pid, index in self.at.tolist() if pid in pids and index >= 0]
        paths = [str(path) for index in indices for path in _paths(self.items, index)]
        return ", ".join(paths) or "an image"


def _begin_reader(worker: int) -> None:
    """Ignore what a queue sends to all processes of a job: the training process handles it."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Any, error: Exception, sent: Any) -> None:
    """Send why an item could not be handed over, in its place."""
    number, batch = sent
    worker = get_worker_info()
    line = _not_shared(str(error), size_of(batch), worker.num_workers if worker else 1)
    queue.put((number, ExceptionWrapper((NotSharedError, NotSharedError(line), None))))


def size_of(batch: Any) -> int:
    """Return the bytes of a batch's tensors."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    return sum(map(size_of, batch)) if isinstance(batch, (tuple, list)) else 0


def _needed(size: int, workers: int) -> int:
    """Return the shared memory for batches of `size` bytes: those ahead, and two in use."""
    return size * (workers * AHEAD + 2)


def _not_shared(reason: str, size: int, workers: int) -> str:
    """Return a line on readers that cannot hand over batches of `size` bytes."""
    reason = " ".join(reason.split())[:200]
    line = f"train.workers: a reader could not hand over what it had read ({reason})."
    need, memory = _needed(size, workers), shared_memory()
    if "AF_UNIX" in reason:
        remedy = f"Set TMPDIR to a shorter path than {tempfile.gettempdir()}"
    elif "open files" in reason or "ancdata" in reason:
        remedy = "Raise `ulimit -n`"
    else:
        if memory:
            amount = f"about {readable(need)} of" if size else "more"
            free, total = map(readable, memory)
            line += f" {workers} readers need {amount} shared memory; "
            line += f"/dev/shm has {free} free of {total}."
        remedy = f"Enlarge it (a container: --shm-size={1 + (need >> 30)}g)"
    return f"{line} {remedy}, or set train.workers: 0, which needs none. Run again to resume."


def _paths(items: Any, index: int) -> list[Path]:
    if isinstance(items, Subset):
        return _paths(items.dataset, items.indices[index])
    paths: list[Path] = items.paths(index)
    return paths


def read(
    items: Dataset[Any], *, batch_size: int | None, workers: int, pinned: bool = False
) -> Generator[Any, None, None]:
    """Read items in their own order.

    Close it if it is left early: its processes ignore SIGTERM and would keep running.

    Args:
        batch_size: items per batch, an incomplete last one is dropped; None: items as they are.
        workers: processes that read ahead, at most one per core; 0 reads in this process.
        pinned: batches are in page-locked memory, from which a GPU copies directly.

    Raises:
        DataError: an item's image is missing, damaged or of another size, or its reader died or
            could not hand it over.
        Interruption: a run that is `listening` is to save its state: a signal arrived, or no item
            arrives. Several processes end with Stopped or DataError instead.
    """
    # Items do not depend on the number, and more than there are cores would only wait.
    workers = min(workers, cpu_count())
    others = multiprocessing.active_children()
    readers: list[Any] = []
    batches: Iterator[Any] | None = None
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        watched, batches = _started(items, batch_size, workers, pinned)
        readers = [child for child in multiprocessing.active_children() if child not in others]
        if workers and threading.current_thread() is threading.main_thread():
            # PyTorch's handler, just set, raises wherever the main thread is when a reader dies,
            # even in the middle of a step. Without it, the loader notices here, seconds later.
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        yield from _received(batches, watched, workers, len(watched) // (batch_size or 1))
    except NotSharedError as error:
        raise _ending(DataError(_last_line(error))) from None
    except DataError as error:
        raise DataError(_last_line(error)) from None
    except (RuntimeError, OSError, EOFError) as error:
        line = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
        if not workers or line.startswith("Caught "):  # in the code that reads an item
            raise
        if "DataLoader worker" not in line:
            raise _ending(DataError(_not_shared(line, 0, workers))) from None
        pids = {int(number) for number in re.findall(r"\d+", line)}
        raise DataError(
            f"{watched.files(pids)}: the process that was reading it died ({line}). "
            "Lower train.workers if memory ran out, else check the image; run again to resume."
        ) from None
    finally:
        for reader in readers:
            reader.kill()  # they ignore SIGTERM
            reader.join()
        _abandon(batches)


def _started(
    items: Dataset[Any], batch_size: int | None, workers: int, pinned: bool
) -> tuple[_Watched, Iterator[Any]]:
    """Start the readers."""
    collate: Callable[[Any], Any] = _stack if batch_size else _as_is
    watched = _Watched(items, workers)
    loader: DataLoader[Any] = DataLoader(
        watched,
        batch_size=batch_size,
        drop_last=batch_size is not None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=collate,
        pin_memory=pinned,
        worker_init_fn=_begin_reader,
        multiprocessing_context=start_method() if workers else None,
    )
    return watched, iter(loader)


def _abandon(batches: Any) -> None:
    """Leave readers that were killed to themselves.

    PyTorch would end them when the iterator is collected, and wait for ever for a lock that one of
    them held.
    """
    if getattr(batches, "_shutdown", True):  # read to its end, or in this process
        return
    batches._shutdown = True
    if pinning := getattr(batches, "_pin_memory_thread_done_event", None):
        pinning.set()
    _remove_worker_pids(id(batches))
    batches._worker_pids_set = False


def _received(batches: Iterator[Any], watched: _Watched, workers: int, count: int) -> Iterator[Any]:
    """Yield `count` batches as they arrive; give up after a silence, or soon after a signal."""
    if not workers:
        yield from batches
        return
    # A reader that is stuck can block the receiver too: that is a thread, and this one listens.
    wanted: SimpleQueue[bool] = SimpleQueue()
    arrived: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    receiver = threading.Thread(target=_receive, args=(batches, wanted, arrived), daemon=True)
    receiver.start()
    try:
        for number in itertools.count():
            wanted.put(True)
            batch, error = _await(arrived, watched)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            if number == 0:
                _check_room(batch, workers, count)
            yield batch
    finally:
        wanted.put(False)


def _receive(batches: Iterator[Any], wanted: Any, arrived: Any) -> None:
    """Receive a batch each time that one is wanted."""
    while wanted.get():
        try:
            arrived.put((next(batches), None))
        except BaseException as error:  # raised where the batch is awaited
            arrived.put((None, error))


def _await(arrived: Any, watched: _Watched) -> tuple[Any, BaseException | None]:
    silence = 0.0
    while True:
        try:
            received: tuple[Any, BaseException | None] = arrived.get(timeout=POLL)
            return received
        except Empty:
            silence += POLL
            _check_silence(silence, watched)


def _check_room(batch: Any, workers: int, count: int) -> None:
    """Refuse readers for whose batches, all like this first one, shared memory is too small."""
    size, memory = size_of(batch), shared_memory()
    if memory and min(_needed(size, workers), size * count) > memory[1]:
        raise _ending(DataError(_not_shared("too little shared memory", size, workers)))


def _check_silence(silence: float, watched: _Watched) -> None:
    if silence >= GRACE and (number := heard()):
        if world().size == 1:
            raise Interruption
        name = signal.Signals(number).name  # the others may wait for this one: none can save
        line = f"stopped by {name} while waiting for data. The same command resumes it."
        raise Stopped(line, number)
    if silence >= SILENCE:
        memory = shared_memory()
        room = f"/dev/shm has {readable(memory[0])} free of {readable(memory[1])}" if memory else ""
        files = watched.files([pid for pid, _ in watched.at.tolist()])
        raise _ending(
            DataError(
                f"no data for {duration(SILENCE)}; the readers are at {files}. Check the disk, and "
                f"shared memory ({room or 'unlimited'}; a container: --shm-size), or set "
                "train.workers: 0. Run again to resume."
            )
        )


def _ending(error: DataError) -> Exception:
    """Return what to raise between two steps: one process saves first, of several none can."""
    return saved_first(error) if world().size == 1 else error


def _last_line(error: DataError) -> str:
    """Return the message of an error, which arrives from a reader as its whole traceback."""
    kind, line = type(error), str(error).splitlines()[-1]
    return line.rpartition(f"{kind.__module__}.{kind.__name__}: ")[2]


def _stack(items: list[Item]) -> Item:
    images, tokens, masks = zip(*items, strict=True)
    return Item(stack_images(images), torch.stack(tokens), torch.stack(masks))


def _as_is(batch: Any) -> Any:
    return batch
