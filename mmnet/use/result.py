"""What `find` returns: one sentence's mask on its picture, in the forms that others read."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from mmnet.data.rle import write_rle
from mmnet.data.transforms import Placement, logits_to_image
from mmnet.evaluate.pictures import ORANGE
from mmnet.runtime.errors import MMNetError
from mmnet.runtime.files import atomic_path
from mmnet.use.images import LARGE, Pixels

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """One sentence's mask. Full-size arrays are made when they are asked for."""

    sentence: str
    image: str | None
    """Path of the picture, as it was given; None of a picture that has none."""
    number: int
    """Place of the pair among those given to `find` or `find_many`."""
    threshold: float
    """On the probability."""
    cut: bool
    """The sentence was longer than the model's L tokens; its end was not read."""
    seconds: float
    """Its share of the model's time for its batch; with `find`, without encoding the picture."""
    pixels: Pixels = field(repr=False)
    """The picture as the model saw it, a preview of it, and notes of what was left out."""
    logits: Tensor = field(repr=False)
    """y, (H/4, W/4), on the model's square and device."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture and its mask."""
        return self.pixels.placement.height, self.pixels.placement.width

    @functools.cached_property
    def mask(self) -> Mask:
        """The mask, (h, w), where the probability is above the threshold; kept once made."""
        # sigmoid(y) > threshold, without the sigmoid, as evaluate/predict.py counts it.
        limit = math.log(self.threshold / (1 - self.threshold))
        with torch.inference_mode():
            mask: Mask = (self._logits_at(*self.size) > limit).cpu().numpy()
        return mask

    @property
    def probability(self) -> Floats:
        """The sigmoid of y, (h, w), at the picture's size; made at each call."""
        return self.probability_at(*self.size)

    def probability_at(self, height: int, width: int) -> Floats:
        """Return the probability of a picture scaled to another size, (height, width)."""
        with torch.inference_mode():
            probability: Floats = self._logits_at(height, width).sigmoid_().cpu().numpy()
        return probability

    @functools.cached_property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Left, top, width and height of the mask in pixels; None of an empty mask."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        top, left = int(rows[0]), int(columns[0])
        return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1

    @functools.cached_property
    def confidence(self) -> float:
        """The IoU to expect if the probabilities are right, 0 to 1; 0 of an empty mask.

        The sum of p inside the mask, over its area and the sum of p outside.
        """
        p = self.probability
        inside = float(np.sum(p, where=self.mask, dtype=np.float64))
        outside = float(np.sum(p, dtype=np.float64)) - inside
        return inside / (self.area + outside) if self.area else 0.0

    def rle(self) -> dict[str, Any]:
        """Return the mask as COCO's compressed run lengths, {"size": [h, w], "counts": text}."""
        return write_rle(self.mask)

    def coco(self, image_id: int, *, id: int = 1, category_id: int = 1) -> dict[str, Any]:
        """Return an annotation of COCO's, with the sentence and `score`, the confidence."""
        return {
            **{"id": id, "image_id": image_id, "category_id": category_id, "iscrowd": 0},
            **{"segmentation": self.rle(), "area": self.area},
            **{"bbox": list(self.box or (0, 0, 0, 0)), "score": self.confidence},
            "sentence": self.sentence,
        }

    def polygons(self) -> list[list[float]]:
        """Return the mask's outlines as COCO's polygons, [x1, y1, x2, y2, ...] in pixels.

        Holes are lost: a polygon of COCO's cannot have any.
        """
        return list(_outlines(self.mask, self.box))

    def overlay(self) -> Image.Image:
        """Draw the mask on the preview, tinted and outlined."""
        preview = self.pixels.preview
        inside = self.probability_at(preview.height, preview.width) > self.threshold
        shape = Image.fromarray(inside.astype(np.uint8) * 255)
        paint = Image.new("RGB", preview.size, ORANGE)
        drawn = Image.composite(Image.blend(preview, paint, 0.45), preview, shape)
        width = 2 * (max(preview.size) // 640) + 3  # of the filter, odd
        inner = ImageChops.subtract(shape, shape.filter(ImageFilter.MinFilter(width)))
        outer = ImageChops.subtract(shape.filter(ImageFilter.MaxFilter(width)), shape)
        for line, colour in (outer, "white"), (inner, ORANGE):
            drawn.paste(colour, mask=line)
        return drawn

    def save(self, path: str | Path) -> None:
        """Write the mask as a PNG of 0 and 255, at the picture's size.

        Raises:
            MMNetError: another suffix than .png, or the file cannot be written.
        """
        write_png(self.mask_image(), Path(path))

    def mask_image(self) -> Image.Image:
        """Return the mask as a grey picture of 8 bits, 0 and 255."""
        return Image.fromarray(self.mask.astype(np.uint8) * 255)

    def _logits_at(self, height: int, width: int) -> Tensor:
        return _resampled(self.logits[None], self.pixels.placement, height, width)[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class QueryMasks:
    """What each of the N_q queries reads of a sentence, its mask and its score."""

    words: list[str]
    """The sentence's words as the model read them, with [SOS] and [EOS]."""
    attention: Floats
    """Of each query to each word, (N_q, words); rows sum to 1."""
    scores: Floats
    """Of each query, (N_q,)."""
    measures: dict[str, float]
    """How different the queries are (evaluate/query_measures.py)."""
    cut: bool
    """The sentence was longer than the model's L tokens; its end was not read."""
    pixels: Pixels = field(repr=False)
    logits: Tensor = field(repr=False)
    """Of each query's mask, (N_q, H/4, W/4), on the model's square and device."""

    @property
    def masks(self) -> Floats:
        """Each query's mask as probabilities, (N_q, h, w), at the picture's size."""
        placement = self.pixels.placement
        return self.masks_at(placement.height, placement.width)

    def masks_at(self, height: int, width: int) -> Floats:
        """Return the masks of a picture scaled to another size, (N_q, height, width)."""
        with torch.inference_mode():
            logits = _resampled(self.logits, self.pixels.placement, height, width)
            probabilities: Floats = logits.sigmoid_().cpu().numpy()
        return probabilities


def _resampled(logits: Tensor, placement: Placement, height: int, width: int) -> Tensor:
    """Bring logits (n, g, g) of the square to a picture of its own or another size, float."""
    return logits_to_image(logits.float(), placement._replace(height=height, width=width))


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name and rename it.

    Raises:
        MMNetError: another suffix than .png, or the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise MMNetError(f"{path}: masks and overlays are written as PNG; end the name in .png.")
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG")


def _outlines(mask: Mask, box: tuple[int, int, int, int] | None) -> Iterator[list[float]]:
    """Yield the outer outlines of a mask, half a pixel beyond the centres of its outer pixels.

    A mask of more than LARGE pixels is outlined from every second one, or fewer.
    """
    if box is None:
        return
    from contourpy import FillType, contour_generator  # slow to import, and rarely wanted

    left, top, width, height = box
    step = math.ceil(math.sqrt(width * height / LARGE))
    part = mask[top : top + height : step, left : left + width : step]
    generator = contour_generator(z=np.pad(part, 1).astype(float), fill_type=FillType.OuterOffset)
    polygons: Any = generator.filled(0.5, 2.0)
    for points, ends in zip(*polygons, strict=True):
        outer = points[: ends[1] - 1]  # closed: the last point is the first
        corners = np.array([left, top]) + step * (outer - 0.5)
        yield corners.ravel().round(2).tolist()
