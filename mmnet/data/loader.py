"""Read items ahead in processes of their own; a dead one is an error, never an endless wait."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from mmnet.data.dataset import Item, stack_images
from mmnet.runtime.errors import DataError
from mmnet.runtime.system import cpu_count, start_method, stop_signals


class _Watched(Dataset[Any]):
    """Records which item each loader process is reading, to name it should the process die."""

    def __init__(self, items: Dataset[Any], workers: int) -> None:
        self.items = items
        self.at = torch.full((workers, 2), -1, dtype=torch.long).share_memory_()
        """(workers, 2): process id, index"""

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.at[worker.id] = torch.tensor([os.getpid(), index])
        return self.items[index]

    def files_of_dead(self, message: str) -> str:
        """Return the images that the processes with the ids in `message` were reading."""
        pids = {int(number) for number in re.findall(r"\d+", message)}
        indices = [int(index) for pid, index in self.at.tolist() if pid in pids and index >= 0]
        paths = [str(path) for index in indices for path in _paths(self.items, index)]
        return ", ".join(paths) or "an image"


def _leave_signals(worker: int) -> None:
    """Ignore what a queue sends to all processes of a job: the training process handles it."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


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
        DataError: an item's image is missing, damaged or of another size, or its reader died.
    """
    collate: Callable[[Any], Any] = _stack if batch_size else _as_is
    # Items do not depend on the number, and more than there are cores would only wait.
    workers = min(workers, cpu_count())
    watched = _Watched(items, workers)
    loader: DataLoader[Any] = DataLoader(
        watched,
        batch_size=batch_size,
        drop_last=batch_size is not None,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pinned,
        worker_init_fn=_leave_signals,
        multiprocessing_context=start_method() if workers else None,
    )
    others = multiprocessing.active_children()
    readers: list[Any] = []
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
        readers = [child for child in multiprocessing.active_children() if child not in others]
        if workers and threading.current_thread() is threading.main_thread():
            # PyTorch's handler, just set, raises wherever the main thread is when a reader dies,
            # even in the middle of a step. Without it, the loader notices here, seconds later.
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        yield from batches
    except DataError as error:
        # A worker's error arrives as its whole traceback, of which the last line is the message.
        line = str(error).splitlines()[-1]
        raise DataError(line.removeprefix(f"{DataError.__module__}.DataError: ")) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        line = str(error).splitlines()[0].rstrip(". ")
        raise DataError(
            f"{watched.files_of_dead(line)}: the process that was reading it died ({line}). "
            "Lower train.workers if memory ran out, else check the image; run again to resume."
        ) from None
    finally:
        for reader in readers:
            reader.kill()  # they ignore SIGTERM
            reader.join()


def _stack(items: list[Item]) -> Item:
    images, tokens, masks = zip(*items, strict=True)
    return Item(stack_images(images), torch.stack(tokens), torch.stack(masks))


def _as_is(batch: Any) -> Any:
    return batch
