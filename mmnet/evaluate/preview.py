"""A picture of what a run predicts, on the same sentences for all runs on a data set."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import Subset

from mmnet.config.identity import RunInputs
from mmnet.config.paths import RunPaths
from mmnet.config.schema import Config
from mmnet.data.dataset import evaluation_items, read_image, read_mask
from mmnet.data.loader import read
from mmnet.evaluate.metrics import iou
from mmnet.evaluate.pictures import comparison, sheet
from mmnet.evaluate.predict import load_model, predict_masks
from mmnet.runtime.files import atomic_path

COLUMNS, ROWS = 2, 3
COLOURS = 256
"""A palette, for a third of the bytes."""


def write_predictions(
    config: Config,
    inputs: RunInputs,
    *,
    checkpoint: Path,
    run: RunPaths,
    device: torch.device,
) -> None:
    """Draw sentences of `val`, evenly spaced in the table: image, ground truth, prediction.

    Raises:
        CheckpointError: the checkpoint is damaged or of another experiment.
    """
    items = evaluation_items(config, inputs.table, inputs.images, splits=["val"])
    count = len(items.rows)
    chosen = sorted({(2 * i + 1) * count // (2 * COLUMNS * ROWS) for i in range(COLUMNS * ROWS)})
    sentences = items.rows.iloc[chosen]
    needed = [i for i, batch in enumerate(items.batches) if {*batch} & {*chosen}]
    masks = predict_masks(
        load_model(config, checkpoint).to(device),
        read(Subset(items, needed), batch_size=None, workers=0),
        sent_ids=list(sentences["sent_id"]),
        threshold=config.evaluate.threshold,
        device=device,
    )
    of_val = pd.read_parquet(run.rows, filters=[("split", "==", "val")])
    scored = of_val.assign(iou=iou).set_index("sent_id")["iou"]
    records: list[Any] = list(sentences.itertuples())
    pictures = [
        comparison(
            f"{row.sentence}  (IoU {scored[row.sent_id]:.2f})",
            read_image(inputs.images / row.file),
            read_mask(row.counts, row.height, row.width),
            {"prediction": masks[row.sent_id]},
        )
        for row in records
    ]
    lines = [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)]
    with atomic_path(run.predictions) as path:
        sheet(lines).quantize(COLOURS).save(path, format="PNG", optimize=True)
