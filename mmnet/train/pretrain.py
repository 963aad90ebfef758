"""Contrastive pre-training of a CLIP on captioned crops: what stands for OpenAI's weights in mini.

The paper starts from pre-trained CLIP. Crops of the training splits' referred objects are the
images, their sentences the captions, and the loss is open_clip's own.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from open_clip.loss import ClipLoss
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from mmnet.config.schema import PretrainConfig, TowerConfig
from mmnet.data.dataset import read_image
from mmnet.data.refer import read_table
from mmnet.data.tokenizer import say_cut, tokenize
from mmnet.data.transforms import normalise
from mmnet.model import checkpoint
from mmnet.model.clip import load_clip
from mmnet.runtime.errors import DataError
from mmnet.runtime.progress import track
from mmnet.train.recipe import polynomial_decay

MARGINS = (1.1, 1.8)
"""A crop's side, in sides of the object's box: the least and the most."""


class Crops:
    """Referred objects of training splits, cut out with some of what surrounds them."""

    def __init__(self, tables: list[Path], images: Path, *, image_size: int, length: int) -> None:
        rows = pd.concat([read_table(table, ["train"]) for table in tables], ignore_index=True)
        self.image_size = image_size
        self.tokens, self.num_cut = tokenize(list(rows["sentence"]), length)
        files = list(dict.fromkeys(rows["file"]))
        self.images = {file: read_image(images / file) for file in files}
        self.files = list(rows["file"])
        self.boxes = np.array(
            [
                coco_mask.toBbox({"counts": row.counts, "size": [row.height, row.width]})
                for row in rows.itertuples()
            ]
        )

    def batch(self, draw: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Return `size` drawn crops (B, 3, S, S) of bytes and their tokens (B, L)."""
        chosen = draw.choice(len(self.files), size, replace=False)
        crops = [self._crop(int(i), draw.uniform(*MARGINS), draw.uniform(size=2)) for i in chosen]
        return torch.stack(crops), self.tokens[chosen]

    def _crop(self, index: int, margin: float, at: np.ndarray) -> Tensor:
        image = self.images[self.files[index]]
        left, top, width, height = self.boxes[index]
        side = min(max(width, height) * margin, *image.shape[1:])
        # Anywhere that keeps the object inside.
        low = np.array([left + width, top + height]) - side
        corner = low + at * (np.array([left, top]) - low)
        limit = np.array([image.shape[2], image.shape[1]]) - side
        x, y = np.clip(corner, 0, np.maximum(limit, 0)).astype(int)
        pixels = max(1, int(side))
        crop = image[None, :, y : y + pixels, x : x + pixels]
        size = (self.image_size, self.image_size)
        return F.interpolate(crop, size, mode="bilinear", antialias=True)[0]


def pretrain(
    tower: TowerConfig,
    config: PretrainConfig,
    *,
    tables: list[Path],
    images: Path,
    output: Path,
    device: torch.device,
    seed: int = 0,
) -> None:
    """Train a tower and write its state dict, to be loaded as OpenAI's are."""
    torch.manual_seed(seed)
    clip = load_clip(tower.architecture, weights=None).to(device)
    side = clip.visual.image_size
    image_size = side if isinstance(side, int) else side[0]
    crops = Crops(tables, images, image_size=image_size, length=clip.context_length)
    if len(crops.tokens) < config.batch_size:
        raise DataError(
            f"pre-training: {len(crops.tokens)} sentences are fewer than one batch of "
            f"{config.batch_size}. Lower pretrain.batch_size."
        )
    say_cut("captions", crops.tokens, crops.num_cut)
    optimizer = torch.optim.Adam(clip.parameters(), lr=config.lr, fused=True)
    criterion = ClipLoss()
    draw = np.random.default_rng(seed)
    losses: list[float] = []
    for step in track(
        range(config.steps),
        name=f"pre-training {tower.architecture}",
        total=config.steps * config.batch_size,
        unit="pairs",
        size=lambda step: config.batch_size,
        state=lambda: f"loss {losses[-1]:.4f}",
    ):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * polynomial_decay(step, config.steps, 0.9)
        pixels, tokens = crops.batch(draw, config.batch_size)
        image, text, scale = clip(normalise(pixels.to(device)), tokens.to(device))[:3]
        loss = criterion(image, text, scale)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, np.log(100))  # as CLIP's own training
    checkpoint.save(output, {"state_dict": clip.state_dict()})
