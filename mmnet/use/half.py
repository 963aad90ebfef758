"""Weights rounded to fp16, and what that costs: mIoU on val before and after."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from mmnet.config.identity import Identity
from mmnet.config.paths import Paths
from mmnet.data.dataset import EvaluationItems
from mmnet.data.loader import read
from mmnet.evaluate.metrics import score
from mmnet.evaluate.predict import predict
from mmnet.model.mmnet import MMNet
from mmnet.runtime.device import computing_on
from mmnet.runtime.errors import CheckpointError
from mmnet.runtime.files import checksum
from mmnet.runtime.progress import track
from mmnet.use.config import InferenceConfig

SENTENCES = 64
"""At a time."""


@dataclass(frozen=True, kw_only=True)
class HalfCost:
    """mIoU on val as fractions, before and after; None where it was not measured."""

    before: float | None = None
    after: float | None = None
    sentences: int = 0
    changed: int = 0
    """Of these: sentences whose mask counts other pixels."""

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return "not measured: the run's data were not at hand"
        before, after = 100 * self.before, 100 * self.after
        return (
            f"{before:.4f} -> {after:.4f} ({after - before:+.4f} points; the masks of "
            f"{self.changed:,} of {self.sentences:,} sentences differ)"
        )


def round_weights(
    network: MMNet, config: InferenceConfig, items: EvaluationItems | None, device: str | None
) -> HalfCost:
    """Round a network's weights, in place, to what fp16 can hold; say what that costs.

    `items` are those of val, if they are at hand; `device` is that of predicting them, None: the
    training's kind.

    Raises:
        CheckpointError: a weight is too large for fp16.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.half()).all():
            raise CheckpointError(
                f"{config.name}: {name} has a value that fp16 cannot hold. Export without --half."
            )
    before = _rows(network, config, items, "as trained", device) if items else None
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    if items is None or before is None:
        return HalfCost()
    after = _rows(network, config, items, "in fp16", device)
    counts = ["intersection", "union"]
    return HalfCost(
        before=score(before)["mIoU"],
        after=score(after)["mIoU"],
        sentences=len(before),
        changed=int((before[counts] != after[counts]).any(axis=1).sum()),
    )


def val_items(config: InferenceConfig, identity: Identity, root: Path) -> EvaluationItems | None:
    """Return a run's val split; None where the data that it was trained with are not at hand."""
    paths = Paths(config.profile, root)
    files = {"table": paths.table(config.dataset), "images": paths.manifest}
    for name, path in files.items():
        if not path.is_file() or checksum(path) != identity.data[name]:
            return None
    return EvaluationItems(
        files["table"],
        paths.images,
        splits=["val"],
        batch_size=SENTENCES,
        image_size=config.model.image_size,
        resize=config.model.resize,
        max_length=config.max_length,
    )


def _rows(
    network: MMNet,
    config: InferenceConfig,
    items: EvaluationItems,
    name: str,
    device: str | None,
) -> pd.DataFrame:
    default = "cpu" if config.threads else "auto"
    threads = config.threads or torch.get_num_threads()
    with computing_on(device or default, threads=threads, tf32=config.tf32) as chosen:
        batches = read(items, batch_size=None, workers=0, pinned=False)
        shown = track(batches, name=f"val {name}", total=len(items), unit="batches")
        network.to(chosen)
        rows = predict(network, shown, threshold=config.threshold, device=chosen)
        network.cpu()
    return rows
