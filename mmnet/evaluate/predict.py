"""Checkpoint to rows: one per sentence, counted at the image's original size."""

import contextlib
import math
from collections.abc import Collection, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Subset

from mmnet.config.identity import RunInputs
from mmnet.config.schema import Config
from mmnet.data.dataset import EvaluationItems, ImageBatch, evaluation_items, read_mask
from mmnet.data.loader import read
from mmnet.data.tokenizer import say_cut
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.evaluate.query_measures import measure
from mmnet.model.build import build_model
from mmnet.model.checkpoint import load_trained
from mmnet.model.mmnet import ImageFeatures, MMNet, Queries
from mmnet.runtime.distributed import joined, world
from mmnet.runtime.errors import CheckpointError, TrainingError
from mmnet.runtime.files import atomic_path
from mmnet.runtime.progress import track

IDS = ["split", "ref_id", "ann_id", "image_id", "sent_id"]


def predict(
    model: MMNet, batches: Iterable[ImageBatch], *, threshold: float, device: torch.device
) -> pd.DataFrame:
    """Return a row per sentence: ids, intersection and union in pixels, the queries' measures.

    Raises:
        TrainingError: the device's memory does not suffice.
    """
    try:
        tables = [_rows(model, batch, threshold, device) for batch in batches]
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0][:120]
        raise TrainingError(
            f"evaluating: {device} has too little memory ({reason}). Lower evaluate.batch_size; "
            "while training, train.val_batch_size, which makes it another training."
        ) from None
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def share_of(
    items: EvaluationItems, config: Config, device: torch.device
) -> Generator[ImageBatch, None, None]:
    """Read this process's batches: each is one process's, so that none is counted twice."""
    return read(
        Subset(items, shared_out(len(items))),
        batch_size=None,
        workers=config.train.workers,
        pinned=device.type == "cuda",
    )


def shared_out(count: int) -> range:
    """Return the numbers of this process's batches."""
    rank, size = world()
    return range(rank, count, size)


def gathered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return all processes' rows in the order of one process."""
    if world().size == 1:
        return rows
    rows = pd.concat(world().gather(rows), ignore_index=True)
    return rows.sort_values(["split", "image_id", "sent_id"], ignore_index=True)


def predict_masks(
    model: MMNet,
    batches: Iterable[ImageBatch],
    *,
    sent_ids: Collection[int],
    threshold: float,
    device: torch.device,
) -> dict[int, Tensor]:
    """Return the masks that `predict` counts, (h, w) bool, of chosen sentences."""
    masks = {}
    for batch in batches:
        # Whole batches: in another company, a pixel at the threshold may fall the other way.
        if batch.rows["sent_id"].isin(sent_ids).any():
            for number, mask in _masks(batch, read_batch(model, batch, device).made.y, threshold):
                sent_id = int(batch.rows["sent_id"].iloc[number])
                if sent_id in sent_ids:
                    masks[sent_id] = mask
    return masks


@torch.inference_mode()
def read_batch(model: MMNet, batch: ImageBatch, device: torch.device) -> Queries:
    """Return what is made of a batch; each image is encoded once for all its sentences."""
    model.eval()
    features = model.encode_image(normalise(batch.images.to(device)))
    of_image = batch.image_of_sentence.to(device)
    per_sentence = ImageFeatures(*(feature[of_image] for feature in features))
    return model.read(per_sentence, batch.tokens.to(device))


@torch.inference_mode()
def _masks(batch: ImageBatch, y: Tensor, threshold: float) -> Iterator[tuple[int, Tensor]]:
    """Yield each sentence's number in the batch and its mask at the original size."""
    # sigmoid(y) > threshold, without the sigmoid.
    limit = math.log(threshold / (1 - threshold))
    logits = y.float()
    for image, placement in enumerate(batch.placements):
        numbers = torch.nonzero(batch.image_of_sentence == image).flatten()
        masks = (logits_to_image(logits[numbers.to(y.device)], placement) > limit).cpu()
        yield from zip(numbers.tolist(), masks, strict=True)


def load_model(config: Config, checkpoint: Path) -> MMNet:
    """Build a run's model with its trained weights.

    Raises:
        CheckpointError: the checkpoint is damaged, of another experiment, or of older code.
    """
    content = load_trained(checkpoint, config)
    model = build_model(config.model, config.tower, weights=None)
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{checkpoint}: does not fit the code's model ({reason}). Train the experiment again."
        ) from None
    return model


def predict_splits(
    config: Config,
    inputs: RunInputs,
    *,
    checkpoint: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Predict every sentence of the dataset's evaluation splits and write the rows.

    Raises:
        CheckpointError: the checkpoint is damaged or of another experiment.
    """
    model = load_model(config, checkpoint).to(device)
    splits = config.dataset.splits
    items = evaluation_items(config, inputs.table, inputs.images, splits=splits)
    say_cut(f"{config.dataset_name} evaluation", items.tokens, items.num_cut)
    with joined(device) as processes:
        with contextlib.closing(share_of(items, config, device)) as batches:
            shown = track(
                batches,
                name=f"{config.experiment} predicting",
                total=len(shared_out(len(items))),
                unit="batches",
            )
            rows = predict(model, shown, threshold=config.evaluate.threshold, device=device)
        rows = gathered(rows)
        if processes.is_first:
            rows.attrs["config"] = config.prediction_values()
            with atomic_path(output) as path:
                rows.to_parquet(path, index=False)


def _rows(model: MMNet, batch: ImageBatch, threshold: float, device: torch.device) -> pd.DataFrame:
    queries = read_batch(model, batch, device)
    counted = _count(batch, _masks(batch, queries.made.y, threshold))
    return counted.assign(**measure(model, queries, batch.tokens))


def _count(batch: ImageBatch, masks: Iterable[tuple[int, Tensor]]) -> pd.DataFrame:
    truths: dict[Any, Tensor] = {}
    counts = torch.zeros(len(batch.rows), 2, dtype=torch.long)
    records: list[Any] = list(batch.rows.itertuples(index=False))
    for number, mask in masks:
        row = records[number]
        if row.ann_id not in truths:
            truths[row.ann_id] = read_mask(row.counts, row.height, row.width)
        truth = truths[row.ann_id]
        intersection = torch.count_nonzero(mask & truth)
        counts[number, 0] = intersection
        counts[number, 1] = torch.count_nonzero(mask) + torch.count_nonzero(truth) - intersection
    rows = batch.rows[IDS].reset_index(drop=True)
    return rows.assign(intersection=counts[:, 0].numpy(), union=counts[:, 1].numpy())
