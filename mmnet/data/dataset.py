"""Rows of a prepared table and their images, as tensors."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image

from mmnet.config.schema import Config
from mmnet.data.refer import read_table
from mmnet.data.tokenizer import tokenize
from mmnet.data.transforms import Placement, letterbox, mask_to_grid, place
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import remedy_for

MASK_STRIDE = 4
"""Stride of the grid on which the loss is computed: H/4 (reading 9)."""


class Item(NamedTuple):
    image: Tensor
    """(3, H, W) uint8"""
    tokens: Tensor
    """(L,)"""
    mask: Tensor
    """(H/4, W/4) bool"""


def read_image(path: Path) -> Tensor:
    """Decode an image to (3, h, w) uint8.

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
            f"{path}: image {reason}. "
            + remedy_for(path, "Unpack the images again: mmnet unpack-images.")
        ) from None
    return image


def read_mask(counts: bytes, height: int, width: int) -> Tensor:
    """Decode COCO's compressed RLE to (h, w) bool."""
    mask = coco_mask.decode({"counts": counts, "size": [height, width]})  # bytes, 0 or 1
    return torch.from_numpy(mask).view(torch.bool)


def read_square(path: Path, placement: Placement) -> Tensor:
    """Decode an image and letterbox it: (3, H, W) uint8.

    Raises:
        DataError: it is missing, damaged, or of another size than its annotation says.
    """
    image = read_image(path)
    if image.shape[1:] != (placement.height, placement.width):
        raise DataError(
            f"{path}: is {image.shape[2]}x{image.shape[1]} pixels, its annotation says "
            f"{placement.width}x{placement.height}. They are of different releases. "
            + remedy_for(path, "Fetch the archive of images again: mmnet download train2014.")
        )
    return letterbox(image, placement)


class TrainItems(Dataset[Item]):
    """One epoch: every referred object once, with one of its sentences, in random order.

    Order and sentences depend on seed and epoch alone (reading 11).
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
        # Not itertuples: where readers are not forked (macOS), items are pickled.
        self.records = [SimpleNamespace(**row) for row in rows.to_dict("records")]  # type: ignore[arg-type]
        self.images, self.seed = images, seed
        self.image_size, self.resize = image_size, resize
        self.tokens, self.num_cut = tokenize(list(rows["sentence"]), max_length)
        groups = rows.groupby("ref_id", sort=True).indices
        self.rows_of_ref = [np.asarray(rows) for rows in groups.values()]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order and the sentences of an epoch."""
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
    """(I, 3, H, W) uint8"""
    placements: list[Placement]
    tokens: Tensor
    """(S, L)"""
    image_of_sentence: Tensor
    """(S,)"""
    rows: pd.DataFrame
    """S rows of the prepared table"""


class EvaluationItems(Dataset[ImageBatch]):
    """Evaluation splits, each image with all its sentences, so that no image is encoded twice.

    Images come in the order of their ids; a batch ends with the image that brings it to
    `batch_size` sentences. No batch spans two splits, so a split's batches are the same with or
    without the others.
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
            stack_images(images),
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
    config: Config,
    table: Path,
    images: Path,
    *,
    splits: Sequence[str],
    batch_size: int | None = None,
) -> EvaluationItems:
    """Return the items of splits, in batches of `evaluate.batch_size` sentences or as given."""
    return EvaluationItems(
        table,
        images,
        splits=splits,
        batch_size=batch_size or config.evaluate.batch_size,
        image_size=config.model.image_size,
        resize=config.model.resize,
        max_length=config.dataset.max_length,
    )


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Stack images (3, H, W) without rearranging memory: each is a view of (H, W, 3)."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
