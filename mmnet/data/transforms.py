"""Resize to the model's square and back: values in, values out; no files.

A pixel's centre lies at +0.5. The letterbox keeps the aspect and pads evenly with CLIP's mean
colour; `squash` is the same with nothing left to pad.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# OpenAI's constants, of images scaled to 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Placement(NamedTuple):
    """Where an image's height x width pixels lie in the size x size square."""

    height: int
    width: int
    size: int
    top: int
    left: int
    inner_height: int
    inner_width: int


def place(height: int, width: int, size: int, resize: str) -> Placement:
    """Return where an image lies, in whole pixels of the square; at least one each way."""
    if resize == "squash":
        return Placement(height, width, size, 0, 0, size, size)
    scale = size / max(height, width)
    inner_height = max(1, round(height * scale))
    inner_width = max(1, round(width * scale))
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    return Placement(height, width, size, top, left, inner_height, inner_width)


def letterbox(image: Tensor, placement: Placement) -> Tensor:
    """Bring an image (3, h, w) of bytes into the square: (3, size, size) of bytes.

    A decoded image is a view of (h, w, 3), and so is the square: nothing is rearranged here.
    """
    inner = F.interpolate(
        image.permute(1, 2, 0)[None].permute(0, 3, 1, 2),  # a batch is such a view by its strides
        (placement.inner_height, placement.inner_width),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )[0].permute(1, 2, 0)
    padding = _padding(placement.size)
    rows, columns = _inside(placement)
    # One side is always full.
    if placement.inner_width == placement.size:
        square = torch.cat([padding[: rows.start], inner, padding[rows.stop :]])
    else:
        square = torch.cat([padding[:, : columns.start], inner, padding[:, columns.stop :]], dim=1)
    return square.permute(2, 0, 1)


def normalise(images: Tensor) -> Tensor:
    """Turn bytes (B, 3, H, W) into CLIP's floats, each colour a plane of its own in memory."""
    images = images.contiguous()
    scale = 1 / (255 * torch.tensor(CLIP_STD, device=images.device))
    shift = -torch.tensor(CLIP_MEAN, device=images.device) / torch.tensor(
        CLIP_STD, device=images.device
    )
    return images * scale[:, None, None] + shift[:, None, None]


def mask_to_grid(mask: Tensor, placement: Placement, stride: int) -> Tensor:
    """Bring a mask (h, w) to the square's grid at a stride, by nearest; padding is background."""
    rows, inside_rows = _nearest(
        placement.height, placement.inner_height, placement.top, placement.size, stride
    )
    columns, inside_columns = _nearest(
        placement.width, placement.inner_width, placement.left, placement.size, stride
    )
    # By columns first: COCO's masks lie in memory column by column.
    return mask.T[columns].T[rows] & inside_rows[:, None] & inside_columns


def logits_to_image(logits: Tensor, placement: Placement) -> Tensor:
    """Bring logits (n, g, g) of the square's grid to the original image: (n, h, w), bilinearly.

    The exact inverse of `letterbox`: each original pixel's centre is followed into the grid.
    """
    grid = logits.shape[-1]
    rows = _bilinear(
        placement.height, placement.inner_height, placement.top, placement.size, grid
    ).to(logits)
    columns = _bilinear(
        placement.width, placement.inner_width, placement.left, placement.size, grid
    ).to(logits)
    return rows @ logits @ columns.T


@functools.cache
def _padding(size: int) -> Tensor:
    """CLIP's mean colour: (size, size, 3) of bytes, not to be written to."""
    mean = torch.tensor([round(255 * value) for value in CLIP_MEAN], dtype=torch.uint8)
    return mean.repeat(size, size, 1)


def _inside(placement: Placement) -> tuple[slice, slice]:
    return (
        slice(placement.top, placement.top + placement.inner_height),
        slice(placement.left, placement.left + placement.inner_width),
    )


@functools.lru_cache(maxsize=256)  # few sizes recur for a whole epoch
def _nearest(length: int, inner: int, start: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Which original pixel each cell's centre falls on, and whether it falls on any."""
    centres = torch.arange(stride / 2, size, stride, dtype=torch.float64)
    pixels = ((centres - start) * length / inner).floor()
    return pixels.clamp(0, length - 1).long(), (pixels >= 0) & (pixels < length)


def interpolation(positions: Tensor, grid: int) -> Tensor:
    """Weights (n, grid) that read a grid linearly at positions, 0 being its first cell's centre."""
    cells = torch.arange(grid, device=positions.device)
    return (1 - (positions.clamp(0, grid - 1)[:, None] - cells).abs()).clamp(min=0)


def _bilinear(length: int, inner: int, start: int, size: int, grid: int) -> Tensor:
    """Weights (length, grid) that read the grid at each original pixel's centre."""
    centres = torch.arange(length, dtype=torch.float64) + 0.5
    positions = (start + centres * (inner / length)) * (grid / size) - 0.5
    return interpolation(positions, grid)
