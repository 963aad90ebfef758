"""Train with frozen batch statistics, under torchrun: the CPU has no synchronised BatchNorm.

Usage: torchrun --nproc-per-node 2 frozen_training.py CONFIG TABLE IMAGES FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from mmnet.config import Config
from mmnet.train.loop import fit


def frozen(self: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm's forward by its running statistics, in training as in evaluation."""
    return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


if __name__ == "__main__":
    config, table, images, folder = sys.argv[1:]
    torch.nn.BatchNorm2d.forward = frozen
    fit(
        Config.model_validate_json(config),
        table=Path(table),
        images=Path(images),
        manifest=Path(images).with_suffix(".tsv"),
        weights=None,
        folder=Path(folder),
        device=torch.device("cpu"),
    )
