"""Checkpoint to rows: one per sentence, counted at the image's original size."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mmnet.config import Config
from mmnet.data.dataset import ImageBatch, evaluation_items, read, read_mask
from mmnet.data.tokenizer import say_cut
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.errors import CheckpointError
from mmnet.files import atomic_path
from mmnet.model.build import build_model
from mmnet.model.checkpoint import load_trained
from mmnet.model.mmnet import ImageFeatures, MMNet
from mmnet.progress import track

IDS = ["split", "ref_id", "ann_id", "image_id", "sent_id"]


@torch.inference_mode()
def predict(
    model: MMNet, batches: Iterable[ImageBatch], *, threshold: float, device: torch.device
) -> pd.DataFrame:
    """Return a row per sentence: ids, intersection and union in pixels.

    Each image is encoded once, however many sentences it has.
    """
    model.eval()
    # sigmoid(y) > threshold, without the sigmoid.
    limit = math.log(threshold / (1 - threshold))
    tables = []
    for batch in batches:
        features = model.encode_image(normalise(batch.images.to(device)))
        image_of_sentence = batch.image_of_sentence.to(device)
        per_sentence = ImageFeatures(*(feature[image_of_sentence] for feature in features))
        logits = model.segment(per_sentence, batch.tokens.to(device)).float()
        tables.append(_count(batch, logits, limit))
    return pd.concat(tables, ignore_index=True)


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
    *,
    checkpoint: Path,
    table: Path,
    images: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Predict every sentence of the dataset's evaluation splits and write the rows.

    Raises:
        CheckpointError: the checkpoint is damaged or of another experiment.
    """
    model = load_model(config, checkpoint).to(device)
    items = evaluation_items(config, table, images, splits=config.dataset.splits)
    say_cut(f"{config.dataset_name} evaluation", items.tokens, items.num_cut)
    shown = track(
        read(items, batch_size=None, workers=config.train.workers),
        name=f"{config.experiment} predicting",
        total=len(items),
        unit="batches",
    )
    rows = predict(model, shown, threshold=config.evaluate.threshold, device=device)
    rows.attrs["config"] = config.identity()
    with atomic_path(output) as path:
        rows.to_parquet(path, index=False)


def _count(batch: ImageBatch, logits: Tensor, limit: float) -> pd.DataFrame:
    truths: dict[Any, Tensor] = {}
    counts = torch.zeros(len(batch.rows), 2, dtype=torch.long)
    of_image = batch.image_of_sentence
    records = list(batch.rows.itertuples(index=False))
    for number, placement in enumerate(batch.placements):
        sentences = torch.nonzero(of_image == number).flatten()
        predicted = (logits_to_image(logits[sentences.to(logits.device)], placement) > limit).cpu()
        for sentence, mask in zip(sentences.tolist(), predicted, strict=True):
            row = records[sentence]
            if row.ann_id not in truths:
                truths[row.ann_id] = read_mask(row.counts, row.height, row.width)
            truth = truths[row.ann_id]
            intersection = torch.count_nonzero(mask & truth)
            counts[sentence, 0] = intersection
            counts[sentence, 1] = (
                torch.count_nonzero(mask) + torch.count_nonzero(truth) - intersection
            )
    rows = batch.rows[IDS].reset_index(drop=True)
    return rows.assign(intersection=counts[:, 0].numpy(), union=counts[:, 1].numpy())
