"""A run's masks to a file that `mmnet score` reads: a line of JSON per sentence."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmnet.config.identity import RunInputs
from mmnet.config.schema import Config
from mmnet.data.dataset import ImageBatch, evaluation_items
from mmnet.data.rle import write_rle
from mmnet.evaluate.predict import load_model, predict_masks, share_of
from mmnet.model.mmnet import MMNet
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import atomic_write, writing
from mmnet.runtime.progress import track


def check_output(path: Path) -> None:
    """Refuse a file of masks that cannot be written, before the work.

    Raises:
        ConfigError: it exists.
        MMNetError: its folder cannot be made.
    """
    if path.exists():
        raise ConfigError(f"--save-masks {path}: exists. Give another name, or delete it.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def save_masks(
    config: Config, inputs: RunInputs, *, checkpoint: Path, output: Path, device: torch.device
) -> None:
    """Write the masks that `predict` counts, in the order of its rows.

    Raises:
        CheckpointError: the checkpoint is damaged or of another experiment.
    """
    model = load_model(config, checkpoint).to(device)
    splits = config.dataset.splits
    items = evaluation_items(config, inputs.table, inputs.images, splits=splits)
    name = f"{config.experiment} saving masks"
    with (
        contextlib.closing(share_of(items, config, device)) as batches,
        atomic_write(output) as file,
    ):
        for batch in track(batches, name=name, total=len(items), unit="batches"):
            for line in _lines(model, batch, config.evaluate.threshold, device):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(
    model: MMNet, batch: ImageBatch, threshold: float, device: torch.device
) -> Iterator[dict[str, Any]]:
    ids = {*batch.rows["sent_id"]}
    masks = predict_masks(model, [batch], sent_ids=ids, threshold=threshold, device=device)
    named: list[Any] = batch.rows[["split", "ref_id", "sent_id", "sentence"]].to_dict("records")
    for line in named:
        yield {**line, "segmentation": write_rle(masks[line["sent_id"]].numpy())}
