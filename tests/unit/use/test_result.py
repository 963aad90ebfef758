"""One result's forms: mask, box, confidence, COCO, polygons, pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from mmnet.data.transforms import place
from mmnet.runtime.errors import MMNetError
from mmnet.use.images import Pixels
from mmnet.use.result import Result

SIDE = 32


def result(mask: Any, threshold: float = 0.5, sure: float = 4.0) -> Result:
    """A result whose logits, at the picture's own size, are `sure` inside a mask, else minus it."""
    shape = np.zeros((SIDE, SIDE), bool)
    mask = np.asarray(mask, bool)
    shape[: mask.shape[0], : mask.shape[1]] = mask
    preview = Image.new("RGB", (SIDE, SIDE), "grey")
    pixels = Pixels(torch.zeros(3, SIDE, SIDE), place(SIDE, SIDE, SIDE, "letterbox"), preview, ())
    logits = torch.where(torch.from_numpy(shape), sure, -sure)
    return Result(
        **{"sentence": "the left dog", "image": None, "number": 0, "threshold": threshold},
        **{"cut": False, "seconds": 0.0, "pixels": pixels, "logits": logits},
    )


def block(top: int, left: int, height: int, width: int) -> Any:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_box_and_area_are_those_of_coco() -> None:
    for mask in (block(3, 5, 10, 4), block(0, 0, SIDE, SIDE), block(31, 31, 1, 1)):
        found = result(mask)
        assert np.array_equal(found.mask, mask)
        rle: Any = found.rle()
        assert found.area == coco_mask.area(rle)
        assert found.box == tuple(coco_mask.toBbox(rle))
        assert np.array_equal(coco_mask.decode(rle), mask)
        annotation = found.coco(7, id=3)
        assert annotation["image_id"] == 7
        assert annotation["segmentation"] == rle
        assert annotation["bbox"] == list(found.box)


def test_an_empty_mask_has_no_box_and_no_confidence() -> None:
    found = result([[False]])
    assert (found.area, found.box, found.confidence, found.polygons()) == (0, None, 0.0, [])
    assert found.coco(1)["bbox"] == [0, 0, 0, 0]


def test_confidence_is_the_expected_intersection_over_the_expected_union() -> None:
    for threshold, sure in ((0.5, 4.0), (0.35, 0.2), (0.9, 8.0)):
        found = result(block(3, 5, 10, 4), threshold, sure)
        inside = outside = 0.0
        for is_inside, p in zip(found.mask.flat, found.probability.flat, strict=True):
            inside, outside = inside + is_inside * p, outside + (not is_inside) * p
        expected = inside / (found.area + outside) if found.area else 0
        assert math.isclose(found.confidence, expected, rel_tol=1e-5)


def test_polygons_fill_the_mask_but_for_its_holes() -> None:
    mask = block(2, 2, 12, 20)
    mask[5:9, 6:12] = False
    mask |= block(20, 18, 9, 11)
    polygons = result(mask).polygons()
    assert len(polygons) == 2
    filled: Any = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, SIDE, SIDE)))
    whole = block(2, 2, 12, 20) | block(20, 18, 9, 11)
    assert (filled.astype(bool) ^ whole).sum() <= 8  # corners
    corners = np.concatenate(polygons).reshape(-1, 2)
    assert corners.min(0).tolist() == [2, 2]
    assert corners.max(0).tolist() == [29, 29]


def test_overlay_shows_the_mask_on_the_preview() -> None:
    mask = block(8, 8, 16, 16)
    drawn = np.asarray(result(mask).overlay()).astype(int)
    assert drawn.shape == (SIDE, SIDE, 3)
    assert (drawn[0, 0] == drawn[0, 0, 0]).all()  # outside, as it was
    assert drawn[16, 16, 0] > drawn[16, 16, 2] + 20  # inside, tinted


def test_a_mask_is_saved_as_png_alone(tmp_path: Path) -> None:
    mask = block(3, 5, 10, 4)
    result(mask).save(tmp_path / "new" / "dog.png")
    with Image.open(tmp_path / "new" / "dog.png") as saved:
        assert np.array_equal(np.asarray(saved), 255 * mask)
    for name in ("dog.jpg", "dog"):
        with pytest.raises(MMNetError):
            result(mask).save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_probabilities_come_at_any_size() -> None:
    found = result(block(8, 8, 16, 16))
    assert found.probability_at(*found.size).tobytes() == found.probability.tobytes()
    half = found.probability_at(16, 16)
    assert half[8, 8] > 0.9
    assert half[0, 0] < 0.1
