"""Resize to the model's square and back: values in, values out; no files.

A pixel's centre is at +0.5. The letterbox keeps the aspect ratio and pads evenly with CLIP's mean
colour; `squash` does not keep it and needs no padding.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# OpenAI's constants, for images scaled to 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Placement(NamedTuple):
    """Where the height x width pixels of an image go in the size x size square."""

    height: int
    width: int
    size: int
    top: int
    left: int
    inner_height: int
    inner_width: int


def place(height: int, width: int, size: int, resize: str) -> Placement:
    """Return where an image goes, in whole pixels of the square, at least one each way."""
    if resize == "squash":
        return Placement(height, width, size, 0, 0, size, size)
    scale = size / max(height, width)
    inner_height = max(1, round(height * scale))
    inner_width = max(1, round(width * scale))
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    return Placement(height, width, size, top, left, inner_height, inner_width)


def letterbox(image: Tensor, placement: Placement) -> Tensor:
    """Resize and pad an image (3, h, w) to the square (3, size, size), both uint8.

    A decoded image is a view of (h, w, 3), and so is the square: no memory is rearranged.
    """
    inner = F.interpolate(
        image.permute(1, 2, 0)[None].permute(0, 3, 1, 2),  # channels last, as by its strides
        (placement.inner_height, placement.inner_width),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )[0].permute(1, 2, 0)
    padding = _padding(placement.size)
    rows, columns = _inside(placement)
    # One side always fills the square.
    if placement.inner_width == placement.size:
        square = torch.cat([padding[: rows.start], inner, padding[rows.stop :]])
    else:
        square = torch.cat([padding[:, : columns.start], inner, padding[:, columns.stop :]], dim=1)
    return square.permute(2, 0, 1)


def normalise(images: Tensor) -> Tensor:
    """Normalise uint8 images (B, 3, H, W) as CLIP does; the result is contiguous."""
    images = images.contiguous()
    scale = 1 / (255 * torch.tensor(CLIP_STD, device=images.device))
    shift = -torch.tensor(CLIP_MEAN, device=images.device) / torch.tensor(
        CLIP_STD, device=images.device
    )
    return images * scale[:, None, None] + shift[:, None, None]


def mask_to_grid(mask: Tensor, placement: Placement, stride: int) -> Tensor:
    """Resample a mask (h, w) to the square's grid (size/stride, size/stride), by nearest pixel.

    Padding is background.
    """
    rows, inside_rows = _nearest(
        placement.height, placement.inner_height, placement.top, placement.size, stride
    )
    columns, inside_columns = _nearest(
        placement.width, placement.inner_width, placement.left, placement.size, stride
    )
    # By columns first: COCO's masks are stored column by column.
    return mask.T[columns].T[rows] & inside_rows[:, None] & inside_columns


def logits_to_image(logits: Tensor, placement: Placement) -> Tensor:
    """Resample logits (n, g, g) of the square's grid to the original image (n, h, w), bilinearly.

    The exact inverse of `letterbox`: each original pixel's centre is mapped into the grid.
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
    """CLIP's mean colour as (size, size, 3) uint8; cached, so read-only."""
    mean = torch.tensor([round(255 * value) for value in CLIP_MEAN], dtype=torch.uint8)
    return mean.repeat(size, size, 1)


def _inside(placement: Placement) -> tuple[slice, slice]:
    return (
        slice(placement.top, placement.top + placement.inner_height),
        slice(placement.left, placement.left + placement.inner_width),
    )


@functools.lru_cache(maxsize=256)  # an epoch has few different sizes
def _nearest(length: int, inner: int, start: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the original pixel under each cell's centre, and whether there is one."""
    centres = torch.arange(stride / 2, size, stride, dtype=torch.float64)
    pixels = ((centres - start) * length / inner).floor()
    return pixels.clamp(0, length - 1).long(), (pixels >= 0) & (pixels < length)


def interpolation(positions: Tensor, grid: int) -> Tensor:
    """Return weights (n, grid) of linear interpolation; position 0 is the first cell's centre."""
    cells = torch.arange(grid, device=positions.device)
    return (1 - (positions.clamp(0, grid - 1)[:, None] - cells).abs()).clamp(min=0)


def _bilinear(length: int, inner: int, start: int, size: int, grid: int) -> Tensor:
    """Return weights (length, grid) that interpolate the grid at each original pixel's centre."""
    centres = torch.arange(length, dtype=torch.float64) + 0.5
    positions = (start + centres * (inner / length)) * (grid / size) - 0.5
    return interpolation(positions, grid)
