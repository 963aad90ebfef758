"""Archives to tensors: safe reading, exact masks, the square and back, one item per object."""

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from conftest import SLICE, Tiny
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.testing import assert_close

from mmnet.config import DatasetConfig
from mmnet.data.dataset import (
    EvaluationItems,
    TrainItems,
    evaluation_items,
    read,
    read_mask,
    read_square,
    training_items,
)
from mmnet.data.prepare import prepare_table, unpack_images
from mmnet.data.refer import Notes, build_table, encode_mask, read_instances, read_refs, read_table
from mmnet.data.tokenizer import EOS, SOS, tokenize
from mmnet.data.transforms import (
    mask_to_grid,
    place,
)
from mmnet.errors import DataError

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
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match=r"^here: asks for \w+.system: only plain .* nothing was"):
        read_refs(tmp_path / "refs.p", where="here")
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
def test_pickles_of_python_2_are_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    refs = read_refs(tmp_path / "refs.p", where="here")
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
def test_what_is_no_pickle_of_refs_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_refs(tmp_path / "refs.p", where="here")
    assert str(caught.value).startswith("here: ")
    assert str(caught.value).endswith("Fetch the archive again.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"images": []}', b'{"images": [], "annotations": 1}', b"\xff"]
)
def test_what_is_no_instances_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_bytes(content)
    with pytest.raises(DataError, match=r"^here: not COCO instances \(.*\). Fetch the archive ag"):
        read_instances(tmp_path / "instances.json", where="here")


# Masks.


def assert_masks_are_cocos(table: pd.DataFrame, instances: dict[str, Any]) -> None:
    coco = COCO()
    coco.dataset = instances
    coco.createIndex()
    for row in table.drop_duplicates("ann_id").itertuples():
        expected = coco.annToMask(coco.anns[row.ann_id]).astype(bool)
        found = read_mask(row.counts, row.height, row.width).numpy()
        np.testing.assert_array_equal(found, expected)
        assert found.any()


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_masks_of_the_procedural_archives_are_those_of_pycocotools(tiny: Tiny, name: str) -> None:
    with ZipFile(tiny.archives[name]) as archive:
        instances = json.loads(archive.read(f"{name}/instances.json"))
    forms = {type(annotation["segmentation"]) for annotation in instances["annotations"]}
    assert forms == {list, dict}, "both of COCO's forms should be tried"
    assert_masks_are_cocos(read_table(tiny.tables[name]), instances)


@pytest.mark.skipif(not SLICE.exists(), reason="no slice of the real data on this machine")
@pytest.mark.parametrize(
    ("folder", "partition", "sentences"),
    [
        ("refcoco", "unc", 74),
        ("refcoco+", "unc", 74),
        ("refcocog", "umd", 15),
        ("refcocog", "google", 9),
    ],
)
def test_the_real_archives_are_read_and_their_masks_are_those_of_pycocotools(
    folder: str, partition: str, sentences: int
) -> None:
    instances = read_instances(SLICE / folder / "instances.json", where="here")
    refs = read_refs(SLICE / folder / f"refs({partition}).p", where="here")
    notes = Notes()
    table = build_table(instances, refs, where="here", notes=notes)
    assert len(table) == sentences == sum(len(ref["sentences"]) for ref in refs)
    assert notes.counts == {}
    # An image's name, not that of a ref, which ends in its annotation's number.
    assert all(table["file"].str.fullmatch(r"COCO_train2014_\d{12}\.jpg"))
    assert_masks_are_cocos(table, instances)


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
        assert rle is not None
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
        assert notes.counts == {}
    # Corners of whole pixels: two parts, and their union.
    parts = [[5, 3, 10, 3, 10, 11, 5, 11], [8, 3, 23, 3, 23, 11, 8, 11]]
    rle = encode_mask(parts, 20, 30, Notes())
    assert rle is not None
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
        (no_sentences, "no sentence is left"),
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


def test_empty_sentences_and_masks_and_degenerate_polygons_are_counted() -> None:
    instances, refs = archive_values()
    refs[0]["sentences"][0]["sent"] = " \t"
    instances["annotations"][0]["segmentation"] += [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4, 5, 6, 7]]
    instances["annotations"][1]["segmentation"] = [[2, 2, 2, 2, 2, 2]]
    notes = Notes()
    table = build_table(instances, refs, where="here", notes=notes)
    assert list(table["sentence"]) == ["the dog"]
    # What is dropped of a mask changes nothing of the rest.
    assert coco_mask.area({"counts": table["counts"][0], "size": [10, 12]}) == 64
    assert notes.lines() == [
        "3 degenerate polygons dropped",
        "1 refs skipped: empty mask",
        "1 sentences skipped: empty",
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


def refusal_to_prepare(archive: Path, *, refs: str = "unc", split: str | None = None) -> str:
    dataset = DatasetConfig.model_validate(
        {"refs": refs, "splits": ["val", split] if split else ["val"], "max_length": 17}
    )
    output = archive.with_name("refcoco.parquet")
    with pytest.raises(DataError) as caught:
        prepare_table("refcoco", dataset, archive=archive, output=output)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{archive}: ")


def test_a_split_or_member_that_the_archive_lacks_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    line = refusal_to_prepare(archive, split="testA")
    assert line.startswith("refs(unc).p has no split 'testA'; it has train, val. Mend profiles.*.")
    line = refusal_to_prepare(archive, refs="umd")
    assert line.startswith("lacks refcoco/refs(umd).p. Fetch it again, or change profiles.*.")


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
        *(("refs", key) for key in ("ref_id", "ann_id", "split", "sentences")),
        *(("sentences", key) for key in ("sent_id", "sent")),
        *(("annotations", key) for key in ("id", "image_id", "category_id")),
        *(("images", key) for key in ("id", "file_name", "height", "width")),
    ],
)
def test_a_missing_key_is_refused_by_name(of: str, key: str, tmp_path: Path) -> None:
    line = refusal_to_prepare(write_archive(tmp_path, without(key, of)))
    assert line == f"a ref or annotation lacks or garbles '{key}'. Fetch it again."


def test_a_damaged_member_is_named_by_its_archive(tmp_path: Path) -> None:
    members = {"refcoco/instances.json": b"{", "refcoco/refs(unc).p": b""}
    line = refusal_to_prepare(write_archive(tmp_path, members))
    assert line.startswith("instances.json: not COCO instances")


def test_images_that_the_archive_lacks_are_counted_and_no_manifest_appears(
    tiny: Tiny, tmp_path: Path
) -> None:
    wanted = sorted(set(read_table(tiny.table)["file"]))
    with ZipFile(tiny.archives["train2014"]) as full, ZipFile(tmp_path / "i.zip", "w") as cut:
        for name in full.namelist():
            if Path(name).name not in wanted[2:4]:
                cut.writestr(name, full.read(name))
    place = {"folder": tmp_path / "images", "manifest": tmp_path / "images.tsv"}
    with pytest.raises(DataError, match=rf"lacks 2 images that the refs name, .* {wanted[2]}"):
        unpack_images(tmp_path / "i.zip", tables=[tiny.table], **place)
    assert not place["manifest"].exists()
    assert unpack_images(tiny.archives["train2014"], tables=[tiny.table], **place) == len(wanted)
    lines = [line.split("\t") for line in place["manifest"].read_text().splitlines()]
    assert [name for name, _ in lines] == wanted
    assert all((place["folder"] / name).stat().st_size == int(size) for name, size in lines)


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
