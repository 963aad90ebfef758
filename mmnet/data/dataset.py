"""Rows of a prepared table and their images, as tensors."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info
from torchvision.io import ImageReadMode, decode_image

from mmnet.config import Config
from mmnet.data.refer import read_table
from mmnet.data.tokenizer import tokenize
from mmnet.data.transforms import Placement, letterbox, mask_to_grid, place
from mmnet.errors import DataError

MASK_STRIDE = 4
"""Of the grid the loss is taken on: H/4 (reading 9)."""


class Item(NamedTuple):
    image: Tensor
    """(3, H, W) bytes"""
    tokens: Tensor
    """(L,)"""
    mask: Tensor
    """(H/4, W/4) bool"""


def read_image(path: Path) -> Tensor:
    """Decode an image to (3, h, w) bytes.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        image: Tensor = decode_image(str(path), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        # torchvision's line begins with its own function, file and line.
        detail = str(error).splitlines()[0].split(", ", 2)[-1]
        reason = f"damaged ({detail})" if path.exists() else "not found"
        raise DataError(
            f"{path}: image {reason}. Unpack the images again: mmnet unpack-images."
        ) from None
    return image


def read_mask(counts: bytes, height: int, width: int) -> Tensor:
    """Decode COCO's compressed RLE to (h, w) bool."""
    mask = coco_mask.decode({"counts": counts, "size": [height, width]})  # bytes, 0 or 1
    return torch.from_numpy(mask).view(torch.bool)


def read_square(path: Path, placement: Placement) -> Tensor:
    """Decode an image into the model's square: (3, H, W) bytes.

    Raises:
        DataError: it is missing, damaged, or of another size than its annotation says.
    """
    image = read_image(path)
    if image.shape[1:] != (placement.height, placement.width):
        raise DataError(
            f"{path}: is {image.shape[2]}x{image.shape[1]} pixels, its annotation says "
            f"{placement.width}x{placement.height}. The two are not of one release: fetch again."
        )
    return letterbox(image, placement)


class TrainItems(Dataset[Item]):
    """One epoch: every referred object once, with one of its sentences, in a drawn order.

    Order and sentences are a function of seed and epoch alone (reading 11).
    """

    def __init__(
        self,
        table: Path,
        images: Path,
        *,
        seed: int,
        image_size: int,
        resize: str,
        max_length: int,
    ) -> None:
        rows = read_table(table, ["train"])
        self.records = list(rows.itertuples(index=False))
        self.images, self.seed = images, seed
        self.image_size, self.resize = image_size, resize
        self.tokens, self.num_cut = tokenize(list(rows["sentence"]), max_length)
        groups = rows.groupby("ref_id", sort=True).indices
        self.rows_of_ref = [np.asarray(rows) for rows in groups.values()]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the epoch's order and sentences."""
        draw = np.random.default_rng([self.seed, epoch])
        chosen = [rows[draw.integers(len(rows))] for rows in self.rows_of_ref]
        self.order = draw.permutation(np.asarray(chosen))

    def paths(self, index: int) -> list[Path]:
        return [self.images / self.records[self.order[index]].file]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Item:
        row = self.records[self.order[index]]
        placement = place(row.height, row.width, self.image_size, self.resize)
        return Item(
            read_square(self.images / row.file, placement),
            self.tokens[self.order[index]],
            mask_to_grid(read_mask(row.counts, row.height, row.width), placement, MASK_STRIDE),
        )


class ImageBatch(NamedTuple):
    """Some images of an evaluation split, and all their sentences."""

    images: Tensor
    """(I, 3, H, W) bytes"""
    placements: list[Placement]
    tokens: Tensor
    """(S, L)"""
    image_of_sentence: Tensor
    """(S,)"""
    rows: pd.DataFrame
    """S rows of the prepared table"""


class EvaluationItems(Dataset[ImageBatch]):
    """Evaluation splits, an image with all its sentences together, so that none is encoded twice.

    Images come in the order of their numbers; a batch ends with the image that brings it to
    `batch_size` sentences. No batch spans two splits: a split's rows are the same with or without
    the others.
    """

    def __init__(
        self,
        table: Path,
        images: Path,
        *,
        splits: Sequence[str],
        batch_size: int,
        image_size: int,
        resize: str,
        max_length: int,
    ) -> None:
        rows = read_table(table, splits).sort_values(["split", "image_id", "sent_id"])
        self.rows = rows.reset_index(drop=True)
        self.images, self.image_size, self.resize = images, image_size, resize
        self.tokens, self.num_cut = tokenize(list(self.rows["sentence"]), max_length)
        self.batches: list[np.ndarray] = []
        for _, of_split in self.rows.groupby("split", sort=True):
            waiting: list[int] = []
            for _, of_image in of_split.groupby("image_id", sort=True):
                waiting.extend(of_image.index)
                if len(waiting) >= batch_size:
                    self.batches.append(np.asarray(waiting))
                    waiting = []
            if waiting:
                self.batches.append(np.asarray(waiting))

    def paths(self, index: int) -> list[Path]:
        files = self.rows["file"].iloc[self.batches[index]].drop_duplicates()
        return [self.images / file for file in files]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ImageBatch:
        indices = self.batches[index]
        rows = self.rows.iloc[indices]
        firsts = rows.drop_duplicates("image_id")
        places = zip(firsts["height"], firsts["width"], strict=True)
        placements = [place(h, w, self.image_size, self.resize) for h, w in places]
        images = [
            read_square(self.images / file, placement)
            for file, placement in zip(firsts["file"], placements, strict=True)
        ]
        number = {image_id: i for i, image_id in enumerate(firsts["image_id"])}
        return ImageBatch(
            _stack_images(images),
            placements,
            self.tokens[indices],
            torch.tensor([number[image_id] for image_id in rows["image_id"]]),
            rows,
        )


def training_items(config: Config, table: Path, images: Path) -> TrainItems:
    return TrainItems(
        table,
        images,
        seed=config.seed,
        image_size=config.model.image_size,
        resize=config.model.resize,
        max_length=config.dataset.max_length,
    )


def evaluation_items(
    config: Config, table: Path, images: Path, *, splits: Sequence[str]
) -> EvaluationItems:
    return EvaluationItems(
        table,
        images,
        splits=splits,
        batch_size=config.evaluate.batch_size,
        image_size=config.model.image_size,
        resize=config.model.resize,
        max_length=config.dataset.max_length,
    )


class _Watched(Dataset[Any]):
    """Notes which item each loader process is at: when one dies, nothing else tells."""

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
        """Return the images that the processes named in a message were at."""
        pids = {int(number) for number in re.findall(r"\d+", message)}
        indices = [int(index) for pid, index in self.at.tolist() if pid in pids and index >= 0]
        paths = [str(path) for index in indices for path in _paths(self.items, index)]
        return ", ".join(paths) or "an image"


def _leave_signals(worker: int) -> None:
    """A queue signals all processes of a job: what to do is the training process's to decide."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _paths(items: Any, index: int) -> list[Path]:
    if isinstance(items, Subset):
        return _paths(items.dataset, items.indices[index])
    paths: list[Path] = items.paths(index)
    return paths


def read(
    items: Dataset[Any], *, batch_size: int | None, workers: int, pinned: bool = False
) -> Generator[Any, None, None]:
    """Read items in their own order; whole batches only, or, without a size, as they are.

    Close it where it is left early: its processes wait for no signal, and none ends them later.

    `pinned` batches lie where a GPU copies them from directly.

    Raises:
        DataError: an item's image is missing, damaged or of another size, or its reader died.
    """
    collate: Callable[[Any], Any] = _stack if batch_size else _as_is
    # Items do not depend on it, and more than there are cores would only wait.
    workers = min(workers, len(os.sched_getaffinity(0)))
    watched = _Watched(items, workers)
    loader: DataLoader[Any] = DataLoader(
        watched,
        batch_size=batch_size,
        drop_last=batch_size is not None,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pinned,
        worker_init_fn=_leave_signals,
    )
    others = multiprocessing.active_children()
    readers: list[Any] = []
    try:
        batches = iter(loader)
        readers = [child for child in multiprocessing.active_children() if child not in others]
        if workers and threading.current_thread() is threading.main_thread():
            # PyTorch's own handler raises wherever the main thread is when a reader dies, be it in
            # the middle of a step. Without it, the loader notices here, some seconds later.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
            f"{watched.files_of_dead(line)}: the process that was reading it died ({line}). Out of "
            "memory? Lower train.workers; else look at the image. The same command goes on."
        ) from None
    finally:
        for reader in readers:
            reader.kill()  # SIGTERM they leave alone
            reader.join()


def _stack(items: list[Item]) -> Item:
    images, tokens, masks = zip(*items, strict=True)
    return Item(_stack_images(images), torch.stack(tokens), torch.stack(masks))


def _stack_images(images: Sequence[Tensor]) -> Tensor:
    """Stack squares (3, H, W) as they lie in memory, as views of (H, W, 3)."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def _as_is(batch: Any) -> Any:
    return batch
