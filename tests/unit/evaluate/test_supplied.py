"""Masks of any model: read from JSON lines, counted to the pixel, refused with place and count."""

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmnet.data.rle import write_rle
from mmnet.evaluate import supplied
from mmnet.evaluate.supplied import SuppliedMasks, compared
from mmnet.runtime.errors import DataError

SIZE = (4, 6)
SPLITS = ["val", "testA"]
pairs = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.tuples(arrays(bool, size), arrays(bool, size))
)


def plain(mask: Any) -> dict[str, Any]:
    """COCO's plain counts, column by column, zeros first."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts = np.diff([*changes, mask.size], prepend=0).tolist()
    return {"size": list(mask.shape), "counts": counts}


@given(pairs)
def test_intersection_and_union_are_those_of_the_pixels(pair: Any) -> None:
    mask, truth = pair
    height, width = mask.shape
    counts = write_rle(truth)["counts"].encode()
    row = SimpleNamespace(sent_id=0, height=height, width=width, counts=counts)
    expected = ((mask & truth).sum(), (mask | truth).sum())
    assert compared(write_rle(mask), row) == expected
    assert compared(plain(mask), row) == expected


def drawn(number: int) -> Any:
    return np.random.default_rng(number).random(SIZE) < 0.5


def table() -> pd.DataFrame:
    """Two sentences of each of four refs, not in `predict`'s order; those of ref 11 read alike."""
    rows = [
        {
            **{"split": split, "ref_id": ref, "ann_id": 100 + ref, "image_id": 50 - ref},
            **{"sent_id": 2 * ref + n, "sentence": "a dog" if ref == 11 else f"dog {n}"},
            **{"height": SIZE[0], "width": SIZE[1]},
            "counts": write_rle(drawn(ref))["counts"].encode(),
        }
        for ref, split in ((10, "val"), (11, "val"), (12, "testA"), (13, "train"))
        for n in (0, 1)
    ]
    return pd.DataFrame(rows)


def line(sent_id: int, **changes: Any) -> dict[str, Any]:
    return {"sent_id": sent_id, "segmentation": write_rle(drawn(sent_id)), **changes}


def lines_of(*sent_ids: int) -> list[Any]:
    return [line(sent_id) for sent_id in sent_ids]


def counted(
    folder: Path, lines: list[Any], splits: list[str] | None = None
) -> tuple[list[str], pd.DataFrame]:
    """Read lines, written as they are if they are bytes; return the splits found and their rows."""
    path = folder / "masks.jsonl"
    texts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
    path.write_bytes(b"\n".join(texts))
    masks = SuppliedMasks(path, table(), splits=splits or SPLITS)
    masks.read()
    found = splits or masks.found()
    return found, masks.result(found)


def test_rows_are_the_splits_found_in_predicts_order(tmp_path: Path) -> None:
    splits, rows = counted(tmp_path, lines_of(20, 23, 22, 21))
    assert splits == ["val"]
    assert list(rows) == [
        "split",
        "ref_id",
        "ann_id",
        "image_id",
        "sent_id",
        "intersection",
        "union",
    ]
    assert rows["sent_id"].tolist() == [22, 23, 20, 21]  # by image, then sentence
    for row in rows.itertuples():
        mask, truth = drawn(row.sent_id), drawn(row.ref_id)
        assert (row.intersection, row.union) == ((mask & truth).sum(), (mask | truth).sum())


def test_only_masks_of_the_chosen_splits_are_read(tmp_path: Path) -> None:
    broken = [line(sent_id, segmentation="?") for sent_id in (24, 26)]
    _, rows = counted(tmp_path, [*broken, *lines_of(20, 21, 22, 23)], ["val"])
    assert rows["split"].tolist() == ["val"] * 4


def by_text(sent_id: int, ref_id: int, sentence: str) -> dict[str, Any]:
    return {**line(sent_id, ref_id=ref_id, sentence=sentence), "sent_id": None}


def test_a_sentence_may_be_named_by_its_ref_and_text(tmp_path: Path) -> None:
    by_id = counted(tmp_path, lines_of(20, 21, 22, 23))[1]
    lines = [by_text(21, 10, " DOG  1"), by_text(20, 10, "dog 0")]
    # Sentences that read the same take the masks in turn.
    lines += [by_text(22, 11, "a dog"), by_text(23, 11, "a dog")]
    assert counted(tmp_path, lines)[1].equals(by_id)


def test_a_pipe_is_read_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = "\n".join(map(json.dumps, lines_of(24, 25)))
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    masks = SuppliedMasks(tmp_path / "pipe", table(), splits=SPLITS)
    masks.read()
    writer.join()
    assert len(masks.result(["testA"])) == 2


ALL = [20, 21, 22, 23]
RLE = {"size": list(SIZE), "counts": [24]}


@pytest.mark.parametrize(
    ("lines", "place", "count", "what"),
    [
        # The third line is broken in the middle, and another.
        ([*lines_of(20, 21), b'{"sent_id": 22, "segm', *lines_of(23), b"{"], 3, 2, "not JSON"),
        ([b"[" * 100_000], 1, 1, "not JSON"),
        ([b"\xff\xfe\xfd"], 1, 1, "not JSON"),
        ([lines_of(*ALL)], 1, 1, "a list"),
        ([*lines_of(*ALL), {"segmentation": RLE}, {"ref_id": 10}], 5, 2, "names no sentence"),
        ([*lines_of(*ALL), {"sent_id": 24}], 5, 1, "no segmentation"),
        ([*lines_of(*ALL), line(99), line(98)], 5, 2, "sent_id 99"),
        ([*lines_of(*ALL), line(20) | {"sent_id": "20"}], 5, 1, "sent_id '20'"),
        ([by_text(20, 10, "a cat")], 1, 1, "'a cat'"),
        ([*lines_of(*ALL), line(21), line(20), line(20)], 5, 3, "in line 2"),
        ([by_text(22, 11, "a dog")] * 3, 3, 1, "in line 2"),
        ([line(20, split="testA")], 1, 1, "split is 'testA'"),
        ([line(20, ref_id=11)], 1, 1, "ref_id is 11"),
        ([line(20, segmentation={"size": [6, 4], "counts": [24]})], 1, 1, "[4, 6]"),
        ([line(n, segmentation=[[0, 0, 3, 0, 3, 3]]) for n in ALL], 1, 4, "run lengths"),
    ],
)
def test_what_is_wrong_with_lines_is_said_once_with_place_and_count(
    lines: list[Any], place: int, count: int, what: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        counted(tmp_path, lines)
    message = str(caught.value)
    assert "\n" not in message
    assert f"masks.jsonl: line {place}: " in message
    assert f"(lines like this: {count})" in message
    assert what in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "segmentation",
    [
        {**RLE, "counts": "0999"},
        {**RLE, "counts": ""},
        {**RLE, "counts": []},
        {**RLE, "counts": "h"},  # 24, but more should follow
        {**RLE, "counts": "o" * 1_000_000},  # one endless run
        {**RLE, "counts": "h\0"},
        {**RLE, "counts": "hé"},
        {**RLE, "counts": [23]},
        {**RLE, "counts": [25, -1]},
        {**RLE, "counts": [2**62, 2**62, 2**62, 2**62, 24]},  # the sum overflows to 24
        {**RLE, "counts": [2**80]},
        {**RLE, "counts": [24.0]},
        {**RLE, "counts": ["24"]},
        {**RLE, "counts": None},
        {"size": [2**40, 2**40], "counts": [2**80]},
        {"size": [-4, -6], "counts": [24]},
        {"size": [0, 0], "counts": []},
        {"size": "46", "counts": [24]},
        {"size": ["4\n", 6], "counts": [24]},
        {"counts": [24]},
        "h",
        7,
    ],
    ids=lambda value: str(value)[:40].replace("\0", "0"),
)
def test_hostile_run_lengths_are_refused(segmentation: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        counted(tmp_path, [*lines_of(20, 21, 22), line(23, segmentation=segmentation)])
    message = str(caught.value)
    assert "masks.jsonl: line 4: " in message
    assert "\n" not in message
    assert len(message) < 400


def test_several_kinds_of_faults_are_each_said_with_their_first_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        counted(tmp_path, [b"?", line(99), b"?"])
    assert "line 1: not JSON" in str(caught.value)
    assert "line 2: sent_id 99" in str(caught.value)


def test_missing_masks_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        counted(tmp_path, lines_of(20, 22))
    message = str(caught.value)
    assert "2 of 4 sentences of val" in message
    assert "sentence 23, 'a dog' of ref 11 (sentence 22 reads the same)" in message
    # A split is wanted whole as soon as one of its masks is there, or when it is named.
    with pytest.raises(DataError, match="no mask of 1 of 6 sentences of val, testA"):
        counted(tmp_path, lines_of(*ALL, 24))
    with pytest.raises(DataError, match="no mask of 2 of 2 sentences of testA"):
        counted(tmp_path, lines_of(*ALL), ["testA"])
    with pytest.raises(DataError, match="no mask of val, testA"):
        counted(tmp_path, lines_of(26))


def test_what_is_no_file_of_lines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "long").write_text("x" * 100)
    monkeypatch.setattr(supplied, "LONGEST", 50)
    for name, what in (
        ("missing", "No such file"),
        (".", "Is a directory"),
        ("empty", "empty"),
        ("long", "line 1: longer than"),
    ):
        with pytest.raises(DataError, match=what):
            SuppliedMasks(tmp_path / name, table(), splits=SPLITS).read()
