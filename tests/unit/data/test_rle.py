"""Masks as COCO's run lengths: what is written is read back, by us and by pycocotools."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from mmnet.data.rle import read_rle, write_rle
from mmnet.runtime.errors import DataError

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda s: arrays(bool, s))


@given(masks)
def test_a_mask_is_read_back_from_its_json(mask: Any) -> None:
    rle = json.loads(json.dumps(write_rle(mask)))
    assert np.array_equal(read_rle(rle), mask)
    assert np.array_equal(coco_mask.decode(rle), mask)
    # COCO's other form: plain counts, column by column, zeros first.
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False)).tolist()
    ends = [*changes, mask.size]
    counts = np.diff(ends, prepend=0).tolist()
    assert np.array_equal(read_rle({"size": rle["size"], "counts": counts}), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [2, 2], "counts": "0999"},
        {"size": [4, 4], "counts": ""},
        {"size": [2, 2], "counts": [1, 1]},
        {"size": [2, 2], "counts": [9, -5]},
        {"size": [2], "counts": "4"},
        {"counts": "4"},
        [[0, 0, 1, 0, 1, 1]],
        "4",
        None,
    ],
)
def test_what_are_no_run_lengths_is_refused(segmentation: Any) -> None:
    with pytest.raises(DataError) as caught:
        read_rle(segmentation)
    assert "\n" not in str(caught.value)
