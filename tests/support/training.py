"""Training the tiny benchmark, and configs that differ in how."""

from pathlib import Path
from typing import Any

import torch

from mmnet.config.schema import Config
from mmnet.train import loop

CPU = torch.device("cpu")


def with_train(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def fit(tiny: Any, folder: Path, config: Config | None = None) -> Path:
    """Train, and return the run's folder."""
    loop.fit(
        config or tiny.config,
        table=tiny.table,
        images=tiny.images,
        manifest=tiny.images.with_suffix(".tsv"),
        weights=None,
        folder=folder,
        device=CPU,
    )
    return folder
