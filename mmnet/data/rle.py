"""Masks as COCO's run lengths, to and from JSON. Needs no torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mmnet.runtime.errors import DataError

LONGEST = 6
"""Characters of a compressed run, at most: 30 bits, more than any picture has pixels."""


def write_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (h, w) as {"size": [h, w], "counts": text}, which json can write."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def read_rle(segmentation: Any) -> NDArray[np.bool_]:
    """Return the mask (h, w) of run lengths, compressed or as a list of counts.

    Raises:
        DataError: they are not run lengths, or do not add up to their size.
    """
    mask: NDArray[np.bool_] = coco_mask.decode(checked_rle(segmentation)).astype(bool)
    return mask


def checked_rle(segmentation: Any) -> dict[str, Any]:
    """Return run lengths, compressed or as a list of counts, in pycocotools' compressed form.

    pycocotools reads and writes beyond its memory where they do not add up to their size.

    Raises:
        DataError: they are not run lengths, or do not add up to their size.
    """
    try:
        height, width = size = segmentation["size"]
        counts = segmentation["counts"]
        if type(height) is not int or type(width) is not int or min(size) < 1:
            raise ValueError(f"size is {size}")
        if height * width >= 1 << (5 * LONGEST - 1):
            raise ValueError(f"size is {size}, too large")
        is_text = isinstance(counts, str | bytes)
        runs = _decompressed(counts) if is_text else _plain(counts)
        # The greatest first: a sum of any would overflow.
        is_within = len(runs) and runs.min() >= 0 and runs.max() <= height * width
        if not is_within or runs.sum() != height * width:
            raise ValueError(f"counts do not add up to {height} x {width}")
        if is_text:
            text = counts.encode() if isinstance(counts, str) else counts
            return {"size": [height, width], "counts": text}
        rle: dict[str, Any] = coco_mask.frPyObjects(
            {"size": [height, width], "counts": counts}, height, width
        )
    except Exception as error:  # foreign values may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(
            f"not COCO's run lengths ({reason}). "
            'Give {"size": [height, width], "counts": ...}, column by column.'
        ) from None
    return rle


def _plain(counts: Any) -> NDArray[np.int64]:
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise ValueError("counts are neither text nor a list of whole numbers")
    return np.array(counts, np.int64)


def _decompressed(counts: str | bytes) -> NDArray[np.int64]:
    """Decompress run lengths: five bits a character, and a sixth bit if more follow.

    From the fourth run on, the difference from the last but one is stored.
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("counts have a character that no compressed run has")
    lasts = np.flatnonzero(codes < 32)
    if not len(lasts) or lasts[-1] != len(codes) - 1:
        raise ValueError("counts end in the middle of a run")
    lengths = np.diff(lasts, prepend=-1)
    if lengths.max() > LONGEST:
        raise ValueError(f"counts have a run of more than {LONGEST} characters")
    firsts = lasts + 1 - lengths
    places = np.arange(len(codes)) - np.repeat(firsts, lengths)
    runs: NDArray[np.int64] = np.add.reduceat((codes & 31) << 5 * places, firsts)
    runs -= np.where(codes[lasts] & 16, 1 << 5 * lengths, 0)  # of a negative difference
    for parity in (1, 2):
        np.cumsum(runs[parity::2], out=runs[parity::2])
    return runs
