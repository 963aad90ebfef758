"""Masks as COCO's compressed run lengths, to and from JSON. Needs no torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mmnet.data.refer import Notes, encode_mask
from mmnet.runtime.errors import DataError


def write_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (h, w) as {"size": [h, w], "counts": text}, which json can write."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def read_rle(segmentation: Any) -> NDArray[np.bool_]:
    """Return the mask (h, w) of run lengths, compressed or as a list of counts.

    Raises:
        DataError: they are not run lengths, or do not add up to their size.
    """
    try:
        height, width = segmentation["size"]
        rle = encode_mask(segmentation, height, width, Notes())
    except Exception as error:  # foreign values may raise anything
        raise DataError(
            f"not COCO's run lengths ({type(error).__name__}: {error}). "
            'Give {"size": [height, width], "counts": ...}, column by column.'
        ) from None
    mask: NDArray[np.bool_] = coco_mask.decode(rle).astype(bool)
    return mask
