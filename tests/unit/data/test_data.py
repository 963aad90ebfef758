"""Archives to tensors: safe reading, exact masks, the square and back, one item per object."""

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.testing import assert_close

from mmnet.cli.parser import main
from mmnet.config.schema import DatasetConfig
from mmnet.data import prepare
from mmnet.data.dataset import (
    EvaluationItems,
    TrainItems,
    evaluation_items,
    read_mask,
    read_square,
    training_items,
)
from mmnet.data.loader import read
from mmnet.data.prepare import prepare_table, unpack_images
from mmnet.data.refer import (
    Notes,
    build_table,
    encode_mask,
    parse_instances,
    parse_refs,
    read_table,
)
from mmnet.data.tokenizer import EOS, SOS, num_tokens, tokenize
from mmnet.data.transforms import (
    mask_to_grid,
    place,
)
from mmnet.runtime.errors import DataError
from support.model import build
from support.tiny import ROOT, SLICE, Tiny

# REFER's pickle.


class Touch:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_reported_and_not_run(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps([{"ref_id": Touch(tmp_path / "run")}], protocol=protocol)
    with pytest.raises(DataError, match=r"^here: asks for \w+.system: only plain .* nothing was"):
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
    refs = parse_refs(content, where="here")
    assert refs == [{"ref_id": 7, "big": 8, "sent": "café"}]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>moved</html>",
        pickle.dumps([{"ref_id": 1}])[:-5],
        pickle.dumps([]),
        pickle.dumps({"ref_id": 1}),
        pickle.dumps([1]),
        b"]r\xff\xff\xff\x7f.",
        b"(" * 100_000,
    ],
)
def test_what_is_no_pickle_of_refs_is_one_line(content: bytes) -> None:
    with pytest.raises(DataError) as caught:
        parse_refs(content, where="here")
    assert str(caught.value).startswith("here: ")
    assert str(caught.value).endswith("Fetch the archive again.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"images": []}', b'{"images": [], "annotations": 1}', b"\xff"]
)
def test_what_is_no_instances_is_one_line(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^here: not COCO instances \(.*\). Fetch the archive ag"):
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
    content = (SLICE / name / f"refs({partition}).p").read_bytes()
    refs = parse_refs(content, where="here")
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


def archive_values() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Instances and refs of one image with two objects, three sentences in all."""
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 12}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
            for n in (5, 6)
        ],
    }
    refs = [
        {
            "ref_id": 10 + n,
            "ann_id": n,
            "image_id": 1,
            "file_name": f"a_{n}.jpg",
            "split": split,
            "sentences": [{"sent_id": 100 * n + i, "sent": f" The  {w} "} for i, w in enumerate(s)],
        }
        for n, split, s in ((5, "train", ("Cat", "Dog")), (6, "val", ("Hen",)))
    ]
    return instances, refs


def test_the_table_has_a_row_per_sentence() -> None:
    table = build_table(*archive_values(), where="here", notes=Notes())
    assert list(table["sentence"]) == ["the cat", "the dog", "the hen"]
    assert list(table["sent_id"]) == [500, 501, 600]
    assert list(table["ref_id"]) == [15, 15, 16]
    assert list(table["split"]) == ["train", "train", "val"]
    assert list(table["area"]) == [64, 64, 64]
    assert set(zip(table["file"], table["height"], table["width"], strict=True)) == {
        ("a.jpg", 10, 12)
    }


def no_annotation(instances: Any, refs: Any) -> None:
    del instances["annotations"][1]


def no_image(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["image_id"] = 2


def another_size(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["segmentation"] = {"size": [12, 10], "counts": [20, 100]}


def too_few_runs(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["segmentation"] = {"size": [10, 12], "counts": [20, 10]}


def too_many_runs(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["segmentation"] = {"size": [10, 12], "counts": "h0i0"}


def a_corner_at_infinity(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["segmentation"][0][2] = 1e300


def a_corner_nowhere(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["segmentation"][0][2] = math.nan


def words_for_corners(instances: Any, refs: Any) -> None:
    instances["annotations"][1]["segmentation"] = [["a"] * 6]


def no_segmentation(instances: Any, refs: Any) -> None:
    del instances["annotations"][1]["segmentation"]


def no_sentences(instances: Any, refs: Any) -> None:
    for ref in refs:
        ref["sentences"] = []


def another_image(instances: Any, refs: Any) -> None:
    refs[1]["image_id"] = 2


def another_file(instances: Any, refs: Any) -> None:
    refs[1]["file_name"] = "ab_6.jpg"


def a_file_elsewhere(instances: Any, refs: Any) -> None:
    instances["images"][0]["file_name"] = "../a.jpg"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_annotation, "ref 16 names annotation 6, which instances.json does not have"),
        (no_image, "annotation 6 names image 2, which instances.json does not have"),
        (another_size, "annotation 6 garbles its segmentation (its size is [12, 10], the image's"),
        (too_few_runs, "annotation 6 garbles its segmentation (its runs do not add up"),
        (too_many_runs, "annotation 6 garbles its segmentation (its runs do not add up"),
        (a_corner_at_infinity, "annotation 6 garbles its segmentation (a corner lies far"),
        (a_corner_nowhere, "annotation 6 garbles its segmentation (a corner lies far"),
        (words_for_corners, "annotation 6 garbles its segmentation ("),
        (no_segmentation, "annotation 6 garbles its segmentation ('segmentation')"),
        (no_sentences, "no ref has a sentence"),
        (another_image, "ref 16 is of image 2, a_6.jpg, its annotation of 1, a.jpg. The two files"),
        (another_file, "ref 16 is of image 1, ab_6.jpg, its annotation of 1, a.jpg. The two files"),
        (a_file_elsewhere, "image 1 has the file_name '../a.jpg', which is no plain name"),
    ],
)
def test_an_archive_that_contradicts_itself_is_refused(
    spoil: Callable[..., None], reason: str
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
        instances["annotations"].append({**instances["annotations"][0], "id": number})
        instances["annotations"][-1]["segmentation"] = segmentation
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
    assert notes.lines() == [
        # Three of annotation 5, which two refs name, and one of annotation 8.
        "7 degenerate polygons dropped",
        "4 refs with an empty mask",
        "1 refs without a sentence",
        "1 sentences without a word",
    ]


def write_archive(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    instances, refs = archive_values()
    members = members or {
        "refcoco/instances.json": json.dumps(instances).encode(),
        "refcoco/refs(unc).p": pickle.dumps(refs, protocol=2),
    }
    with ZipFile(folder / "refcoco.zip", "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return folder / "refcoco.zip"


def dataset_of(**changes: Any) -> DatasetConfig:
    values = {"refs": "unc", "splits": ["val"], "max_length": 17, "counts": None}
    return DatasetConfig.model_validate({**values, **changes})


def refusal_to_prepare(archive: Path, **changes: Any) -> str:
    output = archive.with_name("refcoco.parquet")
    with pytest.raises(DataError) as caught:
        prepare_table("refcoco", dataset_of(**changes), archive=archive, output=output)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert "\n" not in str(caught.value)
    assert "elete" not in str(caught.value), "it may be the user's own copy"
    return str(caught.value).removeprefix(f"{archive}: ")


def as_folder(archive: Path) -> Path:
    """What the archive unpacks to, in its place."""
    folder = archive.with_suffix("")
    with ZipFile(archive) as file:
        for name in file.namelist():
            folder.mkdir(exist_ok=True)
            (folder / Path(name).name).write_bytes(file.read(name))
    archive.unlink()
    return folder


@pytest.mark.parametrize("place", [Path, as_folder])
def test_a_split_or_member_that_the_archive_lacks_is_refused(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    archive = place(write_archive(tmp_path))
    line = refusal_to_prepare(archive, splits=["val", "testA"])
    assert line.startswith("refs(unc).p has no split 'testA'; it has train, val. Mend profiles.*.")
    line = refusal_to_prepare(archive, refs="umd")
    inside = "" if archive.is_dir() else "refcoco/"
    assert line.startswith(f"lacks {inside}refs(umd).p. Fetch it again, or change profiles.*.")


def test_a_zip_and_the_folder_it_unpacks_to_give_the_same_table(tiny: Tiny, tmp_path: Path) -> None:
    folder = as_folder(Path(shutil.copy(tiny.archives["refcoco"], tmp_path / "refcoco.zip")))
    dataset = tiny.params.active.datasets["refcoco"]
    prepare_table("refcoco", dataset, archive=folder, output=tmp_path / "refcoco.parquet")
    assert (tmp_path / "refcoco.parquet").read_bytes() == tiny.table.read_bytes()


def test_what_is_no_zip_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "refcoco.zip").write_bytes(b"PK\3\4<html>")
    line = refusal_to_prepare(tmp_path / "refcoco.zip")
    assert line.startswith("refs(unc).p cannot be read (File is not a zip file). Fetch it again")


def test_a_member_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MAX_ANNOTATIONS", 100)
    line = refusal_to_prepare(write_archive(tmp_path))
    assert line.startswith("refs(unc).p unpacks to more than 100 bytes; refused.")


COUNTS = {
    "train": {"refs": 1, "sentences": 2, "images": 1},
    "val": {"refs": 1, "sentences": 1, "images": 1},
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("what", ["refs", "sentences", "images"])
def test_a_count_that_differs_from_the_published_one_is_named(
    split: str, what: str, tmp_path: Path
) -> None:
    archive = write_archive(tmp_path)
    found = COUNTS[split][what]
    counts = {**COUNTS, split: {**COUNTS[split], what: found + 1}}
    line = refusal_to_prepare(archive, counts=counts)
    assert line.startswith(
        f"refs(unc).p: refcoco {split}: {found} {what}, published {found + 1}. Fetch the archive "
        "again; or, if yours is another release, set profiles.*.datasets.refcoco.counts to null"
    )


def test_every_count_that_differs_is_named(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    counts = {**COUNTS, "testA": {"refs": 7, "sentences": 8, "images": 9}}
    line = refusal_to_prepare(archive, counts=counts)
    assert line.startswith(
        "refs(unc).p: refcoco testA: 0 refs, published 7; refcoco testA: 0 sentences, published 8; "
        "refcoco testA: 0 images, published 9. Fetch"
    )
    output = tmp_path / "refcoco.parquet"
    prepare_table("refcoco", dataset_of(counts=COUNTS), archive=archive, output=output)
    assert len(read_table(output)) == 3


def test_refs_without_sentences_count_as_refs(tmp_path: Path) -> None:
    instances, refs = archive_values()
    refs.append({**refs[1], "ref_id": 99, "sentences": []})
    members = {
        "refcoco/instances.json": json.dumps(instances).encode(),
        "refcoco/refs(unc).p": pickle.dumps(refs),
    }
    counts = {**COUNTS, "val": {"refs": 2, "sentences": 1, "images": 1}}
    _, notes = prepare_table(
        "refcoco",
        dataset_of(counts=counts),
        archive=write_archive(tmp_path, members),
        output=tmp_path / "refcoco.parquet",
    )
    assert notes.lines() == ["1 refs without a sentence"]


def without(key: str, of: str) -> dict[str, bytes]:
    """The members, with a key missing from the last ref, sentence, annotation or image."""
    instances, refs = archive_values()
    places = {**instances, "refs": refs, "sentences": refs[-1]["sentences"]}
    del places[of][-1][key]
    return {
        "refcoco/instances.json": json.dumps(instances).encode(),
        "refcoco/refs(unc).p": pickle.dumps(refs),
    }


@pytest.mark.parametrize(
    ("of", "key"),
    [
        *(("refs", key) for key in ("ref_id", "ann_id", "image_id", "split", "sentences")),
        *(("sentences", key) for key in ("sent_id", "sent")),
        *(("annotations", key) for key in ("image_id", "category_id")),
        *(("images", key) for key in ("id", "file_name", "height", "width")),
    ],
)
def test_a_missing_key_is_refused_by_name(of: str, key: str, tmp_path: Path) -> None:
    line = refusal_to_prepare(write_archive(tmp_path, without(key, of)))
    assert line == f"a ref or annotation lacks or garbles '{key}'. Fetch it again."


def test_a_damaged_member_is_named_by_its_archive(tmp_path: Path) -> None:
    _, refs = archive_values()
    members = {"refcoco/instances.json": b"{", "refcoco/refs(unc).p": pickle.dumps(refs)}
    line = refusal_to_prepare(write_archive(tmp_path, members))
    assert line.startswith("instances.json: not COCO instances")
    line = refusal_to_prepare(write_archive(tmp_path, {**members, "refcoco/refs(unc).p": b""}))
    assert line.startswith("refs(unc).p: damaged pickle")


def zip_less(tiny: Tiny, folder: Path, lacking: list[str], empty: list[str]) -> Path:
    """The zip of images without some, and with some empty."""
    with ZipFile(tiny.archives["train2014"]) as full, ZipFile(folder / "i.zip", "w") as cut:
        for name in full.namelist():
            if Path(name).name not in lacking:
                cut.writestr(name, b"" if Path(name).name in empty else full.read(name))
    return folder / "i.zip"


def folder_less(tiny: Tiny, folder: Path, lacking: list[str], empty: list[str]) -> Path:
    """A folder of images, one of them a link that leads nowhere."""
    copy = as_folder(zip_less(tiny, folder, lacking, empty))
    if lacking:
        (copy / lacking[0]).symlink_to(folder / "nowhere.jpg")
    return copy


@pytest.mark.parametrize("source", [zip_less, folder_less])
def test_images_that_the_archive_lacks_are_counted_and_no_manifest_appears(
    source: Callable[..., Path], tiny: Tiny, tmp_path: Path
) -> None:
    wanted = sorted(set(read_table(tiny.table)["file"]))
    archive = source(tiny, tmp_path, wanted[2:4], wanted[6:7])
    place = {"folder": tmp_path / "images", "manifest": tmp_path / "images.tsv"}
    with pytest.raises(DataError, match=rf"lacks 3 images that the refs .*, the first {wanted[2]}"):
        unpack_images(archive, tables=[tiny.table], **place)
    assert not place["manifest"].exists()
    shutil.rmtree(archive) if archive.is_dir() else archive.unlink()
    archive = source(tiny, tmp_path, [], [])
    assert unpack_images(archive, tables=[tiny.table], **place) == len(wanted)
    lines = [line.split("\t") for line in place["manifest"].read_text().splitlines()]
    assert [name for name, _ in lines] == wanted
    for name, size in lines:
        content = (place["folder"] / name).read_bytes()
        assert content == (tiny.images / name).read_bytes()
        assert len(content) == int(size)
        assert (place["folder"] / name).is_symlink() == archive.is_dir()


def test_links_to_a_folder_of_images_are_absolute_and_hold_from_anywhere(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").symlink_to(tiny.images)
    monkeypatch.chdir(tmp_path)
    paths = {"folder": Path("data/images"), "manifest": Path("data/images.tsv")}
    for _ in range(2):  # the second time over the first's links
        unpack_images(Path("mine"), tables=[tiny.table], **paths)
        links = list(Path("data/images").iterdir())
        assert len(links) == read_table(tiny.table)["file"].nunique()
        assert {link.readlink().parent for link in links} == {tiny.images}
    assert sorted(path.name for path in Path("data").iterdir()) == ["images", "images.tsv"]
    assert all(path.stat().st_size for path in tiny.images.iterdir()), "the originals were touched"


def test_a_users_images_are_never_replaced_by_links_to_themselves(
    tiny: Tiny, tmp_path: Path
) -> None:
    mine = tmp_path / "images" / "mine"
    shutil.copytree(tiny.images, mine)
    (tmp_path / "link").symlink_to(mine)
    before = sorted(mine.iterdir())
    for folder in (mine, tmp_path / "images", tmp_path / "link"):
        with pytest.raises(
            DataError, match=r"(is where the links to it would go|in the way).*Move"
        ):
            unpack_images(mine, tables=[tiny.table], folder=folder, manifest=tmp_path / "m.tsv")
        assert sorted(mine.iterdir()) == before


def test_what_is_no_image_of_ours_is_not_deleted_with_them(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "mine").mkdir(parents=True)
    own = as_folder(Path(shutil.copy(tiny.archives["train2014"], tmp_path)))
    for archive in (tiny.archives["train2014"], own):
        with pytest.raises(DataError, match=r"images/mine: is in the way: .* Move it elsewhere"):
            unpack_images(archive, tables=[tiny.table], folder=folder, manifest=tmp_path / "m.tsv")
        assert (folder / "mine").is_dir()


def test_good_images_stay_where_the_new_archive_lacks_some(tiny: Tiny, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "images", tmp_path / "images.tsv"
    unpack_images(tiny.archives["train2014"], tables=[tiny.table], folder=folder, manifest=manifest)
    before = sorted(folder.iterdir())
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    next(own.iterdir()).unlink()
    with pytest.raises(DataError, match=r"own: lacks 1 images that the refs name"):
        unpack_images(own, tables=[tiny.table], folder=folder, manifest=manifest)
    assert sorted(folder.iterdir()) == before


def test_half_a_character_is_one_line(tmp_path: Path) -> None:
    instances, refs = archive_values()
    refs[0]["sentences"][0]["sent"] = "\ud800 left"
    members = {
        "refcoco/instances.json": json.dumps(instances).encode(),
        "refcoco/refs(unc).p": pickle.dumps(refs, protocol=2),
    }
    assert "a sentence is no text" in refusal_to_prepare(write_archive(tmp_path, members))


def test_the_commands_read_a_users_own_folders(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("refcoco", "train2014"):
        as_folder(Path(shutil.copy(tiny.archives[name], tmp_path / f"{name}.zip")))
    monkeypatch.chdir(tmp_path)
    names = ", ".join(f"{name}: {tmp_path}" for name in ("refcoco", "train2014"))
    dataset = "{refcoco: {refs: unc, splits: [val], max_length: 17, counts: null}}"
    common = ["--params", str(ROOT / "params.yaml"), "--set", f"profiles.mini.data={{{names}}}"]
    common += ["--set", f"profiles.mini.datasets={dataset}", "--set", "experiments={}"]
    common += ["--set", "profiles.mini.pretrain=null", "--set", "profiles.mini.towers={}"]
    assert main(["prepare", "refcoco", *common]) == 0
    assert main(["unpack-images", *common]) == 0
    table = read_table(Path("data/mini/refcoco.parquet"))
    assert len(table) == len(read_table(tiny.table))
    assert {path.name for path in Path("data/mini/images").iterdir()} == set(table["file"])
    assert not Path("data/mini/archives").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "not found. Make it first"), (b"PAR1", "damaged table"), (b"", "damaged table")],
)
def test_a_missing_or_damaged_table_names_the_command_that_makes_it(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}: {reason}.*: mmnet prepare table\.$"):
        read_table(path)


def test_a_table_of_something_else_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match="damaged table"):
        read_table(tmp_path / "table.parquet")
    with pytest.raises(DataError, match="has no split 'test'; it has testA, testB, train, val"):
        read_table(tiny.table, ["val", "test"])


# Words.


def test_tokens_are_those_of_open_clip(tiny: Tiny) -> None:
    sentences = [*read_table(tiny.tables["refcocog"])["sentence"], "it's the 2nd café, isn't it?!"]
    tokens, cut = tokenize(sentences, 77)
    assert_close(tokens, open_clip.get_tokenizer("ViT-B-16")(sentences))
    assert cut == 0


@pytest.mark.parametrize("max_length", [3, 17, 77])
def test_a_cut_sentence_keeps_its_end_and_is_counted(max_length: int) -> None:
    fits, exceeds = "cat " * (max_length - 2), "cat " * (max_length - 1)
    tokens, cut = tokenize([fits, exceeds, "cat", "cat " * 200], max_length)
    assert cut == 2
    assert tokens.shape == (4, max_length)
    assert_close(tokens[1], tokens[0])
    assert_close(tokens[3], tokens[0])
    for row in tokens:
        end = int(row.argmax())
        assert (row[0], row[end]) == (SOS, EOS)
        assert not row[end + 1 :].any()
    assert int(tokens[2].argmax()) == 2


def test_lengths_are_those_of_the_uncut_tokens(tiny: Tiny) -> None:
    assert [num_tokens(sentence) for sentence in ("", "cat", "cat " * 200)] == [2, 3, 202]
    for path in tiny.tables.values():
        table = read_table(path)
        tokens, cut = tokenize(list(table["sentence"]), 77)
        assert cut == 0
        assert list(table["tokens"]) == (tokens > 0).sum(1).tolist()


def test_an_empty_sentence_is_start_and_end_and_passes_the_model() -> None:
    tokens, cut = tokenize(["", "the red cat"], 9)
    assert tokens[0].tolist() == [SOS, EOS, *[0] * 7]
    assert cut == 0
    images = torch.rand(2, 3, 64, 64)
    for model in (build().eval(), build().train()):
        logits = model(images, tokens)
        assert logits.isfinite().all()
        logits.sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(grad.isfinite().all() for grad in grads)


# Items.


def drawn(items: TrainItems) -> list[int]:
    return [items.records[i].sent_id for i in items.order]


def test_an_epoch_has_every_object_once_with_a_sentence_of_its_own(tiny: Tiny) -> None:
    items = training_items(tiny.config, tiny.table, tiny.images)
    rows = read_table(tiny.table, ["train"])
    assert len(items) == rows["ref_id"].nunique() < len(rows)
    placement = None
    for epoch in range(2):
        items.set_epoch(epoch)
        chosen = rows.set_index("sent_id").loc[drawn(items)].reset_index()
        assert sorted(chosen["ref_id"]) == sorted(set(rows["ref_id"]))
        tokens, _ = tokenize(list(chosen["sentence"]), tiny.config.dataset.max_length)
        for i, row in enumerate(chosen.itertuples()):
            item = items[i]
            placement = place(row.height, row.width, 64, "letterbox")
            assert_close(item.tokens, tokens[i])
            assert_close(item.image, read_square(tiny.images / row.file, placement))
            mask = read_mask(row.counts, row.height, row.width)
            assert_close(item.mask, mask_to_grid(mask, placement, 4))
            assert item.mask.any()


def test_order_and_sentences_depend_on_seed_and_epoch_alone(tiny: Tiny) -> None:
    def items(seed: int) -> TrainItems:
        config = tiny.config.model_copy(update={"seed": seed})
        return training_items(config, tiny.table, tiny.images)

    first, second, other = items(0), items(0), items(1)
    for epoch in (5, 2, 3):
        torch.manual_seed(epoch)
        first.set_epoch(epoch)
    second.set_epoch(3)
    other.set_epoch(3)
    assert drawn(first) == drawn(second)
    assert drawn(first) != drawn(other)
    second.set_epoch(4)
    assert drawn(first) != drawn(second)
    assert set(drawn(first)) != set(drawn(second)), "the same sentences again"


def test_loader_processes_change_nothing(tiny: Tiny) -> None:
    items = training_items(tiny.config, tiny.table, tiny.images)
    items.set_epoch(1)
    alone, together = (list(read(items, batch_size=4, workers=n)) for n in (0, 2))
    assert len(alone) == len(together) == len(items) // 4
    for batch, other in zip(alone, together, strict=True):
        for tensor, same in zip(batch, other, strict=True):
            assert_close(tensor, same, rtol=0, atol=0)


def spoilt(tiny: Tiny, folder: Path, how: str) -> Path:
    """Copy the images, with one spoilt; return its path."""
    folder.mkdir()
    for path in tiny.images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / read_table(tiny.table, ["train"])["file"][0]
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no image":
        path.write_text("<html>moved</html>")
    else:
        Image.new("RGB", (10, 20)).save(path)
    return path


@pytest.mark.parametrize(
    ("how", "workers", "reason"),
    [
        ("missing", 0, "image not found. Unpack the images again: mmnet unpack-images."),
        ("cut short", 0, "image damaged (Image is incomplete or truncated). Unpack the images"),
        ("empty", 0, "image damaged (Expected a non empty file). Unpack the images"),
        ("no image", 0, "image damaged (Unsupported image file."),
        ("another size", 0, "is 10x20 pixels, its annotation says "),
        # A loader process hands its errors over with its whole traceback.
        ("missing", 1, "image not found. Unpack the images again: mmnet unpack-images."),
    ],
)
def test_a_bad_image_is_one_line_that_names_it(
    how: str, workers: int, reason: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = spoilt(tiny, tmp_path / "images", how)
    items = training_items(tiny.config, tiny.table, path.parent)
    with pytest.raises(DataError) as caught:
        list(read(items, batch_size=4, workers=workers))
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(caught.value)


def evaluated(tiny: Tiny, splits: list[str], batch_size: int = 8) -> EvaluationItems:
    evaluate = tiny.config.evaluate.model_copy(update={"batch_size": batch_size})
    config = tiny.config.model_copy(update={"evaluate": evaluate})
    return evaluation_items(config, tiny.table, tiny.images, splits=splits)


@pytest.mark.parametrize("batch_size", [1, 8, 10_000])
def test_evaluation_covers_each_sentence_and_each_image_once(tiny: Tiny, batch_size: int) -> None:
    splits = ["val", "testA", "testB"]
    items = evaluated(tiny, splits, batch_size)
    batches = list(read(items, batch_size=None, workers=0))
    expected = read_table(tiny.table, splits)
    rows = pd.concat([batch.rows for batch in batches])
    assert sorted(rows["sent_id"]) == sorted(expected["sent_id"])
    shown = [i for batch in batches for i in batch.rows["image_id"].unique()]
    assert sorted(shown) == sorted(set(expected["image_id"]))
    assert sum(len(batch.images) for batch in batches) == len(shown)
    for batch in batches:
        assert batch.rows["split"].nunique() == 1
        # It ends with the image that fills it.
        last = batch.rows["image_id"].iloc[-1]
        assert (batch.rows["image_id"] != last).sum() < batch_size
        tokens, _ = tokenize(list(batch.rows["sentence"]), 17)
        assert_close(batch.tokens, tokens)
        for number, row in zip(batch.image_of_sentence, batch.rows.itertuples(), strict=True):
            placement = batch.placements[number]
            assert (placement.height, placement.width) == (row.height, row.width)
            assert_close(batch.images[number], read_square(tiny.images / row.file, placement))


def test_a_splits_batches_are_the_same_with_or_without_other_splits(tiny: Tiny) -> None:
    alone = [list(batch.rows["sent_id"]) for batch in evaluated(tiny, ["val"])]
    among = [
        list(batch.rows["sent_id"])
        for batch in read(evaluated(tiny, ["testA", "val", "testB"]), batch_size=None, workers=0)
        if batch.rows["split"].iloc[0] == "val"
    ]
    assert alone == among
    assert len(alone) > 1
