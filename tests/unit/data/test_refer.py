"""REFER's files: read without running code in them, exact masks, one row per sentence."""

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmnet.data.dataset import read_mask
from mmnet.data.refer import (
    Notes,
    build_table,
    encode_mask,
    parse_instances,
    parse_refs,
    read_table,
)
from mmnet.runtime.errors import DataError
from support.refer import archive_values
from support.tiny import SLICE, Tiny


class Touch:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_reported_and_not_run(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps([{"ref_id": Touch(tmp_path / "run")}], protocol=protocol)
    with pytest.raises(DataError, match=r"^here: asks for \w+.system.* nothing was run"):
        parse_refs(content, where="here")
    assert not (tmp_path / "run").exists()
    pickle.loads(content)
    assert (tmp_path / "run").exists(), "the pickle would have done nothing anyway"


@pytest.mark.parametrize(
    "content",
    [
        b"(lp0\n(dp1\nS'ref_id'\np2\nI7\nsS'big'\nL8L\nsS'sent'\nS'caf\\xc3\\xa9'\np3\nsa.",
        b"\x80\x02]q\x00}q\x01(U\x06ref_idK\x07U\x03big\x8a\x01\x08U\x04sentU\x05caf\xc3\xa9ua.",
        b"\x80\x02]}(X\x06\0\0\0ref_idK\x07X\x03\0\0\0bigK\x08X\x04\0\0\0sentX\x05\0\0\0caf\xc3\xa9ua.",
    ],
    ids=["protocol 0, bytes", "protocol 2, bytes", "protocol 2, unicode"],
)
def test_pickles_of_python_2_are_read(content: bytes) -> None:
    assert parse_refs(content, where="here") == [{"ref_id": 7, "big": 8, "sent": "café"}]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"<html>moved</html>", pickle.dumps([{"ref_id": 1}])[:-5]),
        *map(pickle.dumps, ([], {"ref_id": 1}, [1])),
        *(b"]r\xff\xff\xff\x7f.", b"(" * 100_000),
    ],
)
def test_what_is_no_pickle_of_refs_is_one_line(content: bytes) -> None:
    with pytest.raises(DataError, match=r"\Ahere: [^\n]*\Z"):
        parse_refs(content, where="here")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"images": []}', b'{"images": [], "annotations": 1}', b"\xff"]
)
def test_what_is_no_instances_is_one_line(content: bytes) -> None:
    with pytest.raises(DataError, match=r"\Ahere: not COCO instances [^\n]*\Z"):
        parse_instances(content, where="here", wanted=set())


def test_only_the_wanted_annotations_are_kept() -> None:
    instances, _ = archive_values()
    instances["annotations"][0]["segmentation"] = {"size": [10, 12], "counts": [120]}
    kept = parse_instances(json.dumps(instances).encode(), where="here", wanted={5})
    assert kept == {**instances, "annotations": instances["annotations"][:1]}


# Masks.


def index_of(instances: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = instances
    coco.createIndex()
    return coco


def assert_masks_are_cocos(table: pd.DataFrame, instances: dict[str, Any]) -> None:
    coco = index_of(instances)
    for row in table.drop_duplicates("ann_id").itertuples():
        expected = coco.annToMask(coco.anns[row.ann_id]).astype(bool)
        found = read_mask(row.counts, row.height, row.width).numpy()
        np.testing.assert_array_equal(found, expected)
        assert row.area == expected.sum() > 0


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_masks_of_the_procedural_archives_are_those_of_pycocotools(tiny: Tiny, name: str) -> None:
    with ZipFile(tiny.archives[name]) as archive:
        instances = json.loads(archive.read(f"{name}/instances.json"))
    forms = {type(annotation["segmentation"]) for annotation in instances["annotations"]}
    assert forms == {list, dict}, "both of COCO's forms should be tried"
    assert_masks_are_cocos(read_table(tiny.tables[name]), instances)


real = pytest.mark.skipif(not SLICE.exists(), reason="no slice of the real data on this machine")


@real
@pytest.mark.parametrize(
    ("name", "partition", "splits", "sentences"),
    [
        ("refcoco", "unc", {"val": 13, "testA": 4, "testB": 8}, 74),
        ("refcoco+", "unc", {"val": 13, "testA": 4, "testB": 8}, 74),
        ("refcocog", "umd", {"val": 8}, 15),
        ("refcocog", "google", {"val": 9}, 9),
    ],
)
def test_the_real_archives_are_read_and_their_masks_are_those_of_pycocotools(
    name: str, partition: str, splits: dict[str, int], sentences: int
) -> None:
    refs = parse_refs((SLICE / name / f"refs({partition}).p").read_bytes(), where="here")
    wanted = {ref["ann_id"] for ref in refs}
    content = (SLICE / name / "instances.json").read_bytes()
    instances = parse_instances(content, where="here", wanted=wanted)
    assert {annotation["id"] for annotation in instances["annotations"]} == wanted
    notes = Notes()
    table = build_table(instances, refs, where="here", notes=notes)
    assert len(table) == sentences == sum(len(ref["sentences"]) for ref in refs)
    assert table.drop_duplicates("ref_id")["split"].value_counts().to_dict() == splits
    assert notes.counts == {}
    # An image's name, not that of a ref, which ends in its annotation's number.
    assert all(table["file"].str.fullmatch(r"COCO_train2014_\d{12}\.jpg"))
    assert_masks_are_cocos(table, json.loads(content))


@real
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_every_mask_of_the_real_archives_is_that_of_pycocotools(name: str) -> None:
    # Also of the many annotations that no ref names, a crowd's run lengths among them.
    instances = json.loads((SLICE / name / "instances.json").read_bytes())
    coco, notes = index_of(instances), Notes()
    assert {type(a["segmentation"]) for a in instances["annotations"]} == {list, dict}
    assert len(instances["annotations"]) == 206
    for annotation in instances["annotations"]:
        image = coco.imgs[annotation["image_id"]]
        rle = encode_mask(annotation["segmentation"], image["height"], image["width"], notes)
        assert rle["size"] == [image["height"], image["width"]]
        np.testing.assert_array_equal(coco_mask.decode(rle), coco.annToMask(annotation))
    assert notes.counts == {}


def test_every_form_of_a_mask_is_read_alike() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:11, 5:23] = 1
    mask[5:7, 8:9] = 0
    compressed = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    runs = np.diff(edges, prepend=0, append=flat.size).tolist()
    for counts in (compressed["counts"].decode(), runs):
        notes = Notes()
        rle = encode_mask({"size": [20, 30], "counts": counts}, 20, 30, notes)
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
        assert notes.counts == {}
    # Corners of whole pixels: two parts, and their union.
    parts = [[5, 3, 10, 3, 10, 11, 5, 11], [8, 3, 23, 3, 23, 11, 8, 11]]
    rle = encode_mask(parts, 20, 30, Notes())
    mask[3:11, 5:23] = 1
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)


# Tables.


def test_the_table_has_a_row_per_sentence() -> None:
    table = build_table(*archive_values(), where="here", notes=Notes())
    assert list(table["sentence"]) == ["the cat", "the dog", "the hen"]
    assert list(table["sent_id"]) == [500, 501, 600]
    assert list(table["ref_id"]) == [15, 15, 16]
    assert list(table["split"]) == ["train", "train", "val"]
    assert list(table["area"]) == [64, 64, 64]
    places = set(zip(table["file"], table["height"], table["width"], strict=True))
    assert places == {("a.jpg", 10, 12)}


def segmented(value: Any) -> Callable[[Any, Any], None]:
    """Give the second annotation another segmentation."""
    return lambda instances, refs: instances["annotations"][1].update(segmentation=value)


def runs(counts: Any, size: list[int] | None = None) -> Callable[[Any, Any], None]:
    return segmented({"size": size or [10, 12], "counts": counts})


INVALID = "annotation 6 has an invalid segmentation "


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda instances, refs: instances["annotations"].pop(), "ref 16 names annotation 6"),
        (lambda i, refs: i["annotations"][1].update(image_id=2), "annotation 6 names image 2"),
        (lambda i, refs: i["images"][0].update(file_name="../a.jpg"), "image 1 has the file_name"),
        (lambda instances, refs: refs[1].update(image_id=2), "ref 16 is of image 2, a_6.jpg"),
        (lambda i, refs: refs[1].update(file_name="ab_6.jpg"), "ref 16 is of image 1, ab_6.jpg"),
        (lambda instances, refs: refs[1].update(ref_id=15), "two refs have the id 15"),
        (lambda instances, refs: [r.update(sentences=[]) for r in refs], "no ref has a sentence"),
        (runs([20, 100], [12, 10]), INVALID + "(its size is [12, 10]"),
        # Counts that would have pycocotools write or read beyond its memory.
        *((runs(c), INVALID) for c in ([20, 10], [20, 200], [130, -10], "h0i0", "o" * 50, "\xff")),
        (segmented([[1, 1, 1e300, 1, 9, 9]]), INVALID),
        (segmented([[1, 1, math.nan, 1, 9, 9]]), INVALID),
        (segmented([["a"] * 6]), INVALID),
        (lambda i, refs: i["annotations"][1].pop("segmentation"), INVALID + "('segmentation')"),
    ],
)
def test_an_archive_that_contradicts_itself_is_refused(
    spoil: Callable[..., Any], reason: str
) -> None:
    instances, refs = archive_values()
    spoil(instances, refs)
    with pytest.raises(DataError) as caught:
        build_table(instances, refs, where="here", notes=Notes())
    assert str(caught.value).startswith(f"here: {reason}")
    assert "\n" not in str(caught.value)
    assert "etch" in str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "a_16.jpg", "a_1719310.jpg", None])
def test_a_refs_own_file_name_may_end_in_any_number_or_be_left_out(name: str | None) -> None:
    instances, refs = archive_values()
    for ref in refs:
        ref["file_name"] = name
        if name is None:
            del ref["file_name"]
    assert set(build_table(instances, refs, where="here", notes=Notes())["file"]) == {"a.jpg"}


def test_empty_sentences_and_masks_are_kept_and_counted() -> None:
    instances, refs = archive_values()
    refs[0]["sentences"][0]["sent"] = " \t"
    instances["annotations"][0]["segmentation"] += [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4, 5, 6, 7]]
    instances["annotations"][1]["segmentation"] = [[2, 2, 2, 2, 2, 2]]
    for number, segmentation in (
        (7, []),
        (8, [[1, 2]]),
        (9, {"size": [10, 12], "counts": [120]}),
    ):
        annotation = {**instances["annotations"][0], "id": number, "segmentation": segmentation}
        instances["annotations"].append(annotation)
        sentences = [{"sent_id": 100 * number, "sent": "It"}]
        refs.append({**refs[1], "ref_id": number, "ann_id": number, "sentences": sentences})
    refs.append({**refs[1], "ref_id": 99, "ann_id": 5, "sentences": []})
    notes = Notes()
    table = build_table(instances, refs, where="here", notes=notes)
    assert list(table["sentence"]) == ["", "the dog", "the hen", "it", "it", "it"]
    # What is dropped of a mask changes nothing of the rest.
    assert list(table["area"]) == [64, 64, 0, 0, 0, 0]
    for row in table.itertuples():
        mask = read_mask(row.counts, row.height, row.width)
        assert mask.shape == (10, 12)
        assert mask.sum() == row.area
    # Three polygons of annotation 5, which two refs name, and one of annotation 8.
    assert [line.split()[0] for line in notes.lines()] == ["7", "4", "1", "1"]
    assert "degenerate polygons" in notes.lines()[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "not found"), (b"PAR1", "damaged"), (b"", "damaged"), ("other", "damaged")],
)
def test_a_missing_or_damaged_table_names_the_command_that_makes_it(
    content: bytes | str | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(DataError, match=rf"\A{path}: {reason}[^\n]*: mmnet prepare table\.\Z"):
        read_table(path)


def test_a_table_without_a_wanted_split_names_those_it_has(tiny: Tiny) -> None:
    with pytest.raises(DataError, match=r"no split 'test'; it has testA, testB, train, val"):
        read_table(tiny.table, ["val", "test"])
