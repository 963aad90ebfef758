"""Archives and folders to tables and images."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from mmnet.config.profile import DatasetConfig
from mmnet.data import prepare
from mmnet.data.prepare import prepare_table, unpack_images
from mmnet.data.refer import read_table
from mmnet.runtime.errors import DataError
from support.refer import archive_values, as_folder, write_archive
from support.tiny import Tiny

# Tables.


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


@pytest.mark.parametrize("place", [Path, as_folder])
def test_a_split_or_member_that_the_archive_lacks_is_refused(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    archive = place(write_archive(tmp_path))
    line = refusal_to_prepare(archive, splits=["val", "testA"])
    assert line.startswith("refs(unc).p has no split 'testA'; it has train, val.")
    assert "profiles.*.datasets.refcoco.splits" in line
    line = refusal_to_prepare(archive, refs="umd")
    inside = "" if archive.is_dir() else "refcoco/"
    assert line.startswith(f"lacks {inside}refs(umd).p.")
    assert "profiles.*.datasets.refcoco.refs" in line


def test_a_zip_and_the_folder_it_unpacks_to_give_the_same_table(tiny: Tiny, tmp_path: Path) -> None:
    folder = as_folder(Path(shutil.copy(tiny.archives["refcoco"], tmp_path / "refcoco.zip")))
    dataset = tiny.params.active.datasets["refcoco"]
    prepare_table("refcoco", dataset, archive=folder, output=tmp_path / "refcoco.parquet")
    assert (tmp_path / "refcoco.parquet").read_bytes() == tiny.table.read_bytes()


@pytest.mark.parametrize(
    ("instances", "refs", "reason"),
    [
        (b"{", None, "instances.json: not COCO instances"),
        (None, b"", "refs(unc).p: damaged pickle"),
        (None, [{**archive_values()[1][0], "sentences": [{"sent_id": 1, "sent": "\ud800"}]}], ""),
    ],
)
def test_a_damaged_member_is_named_by_its_archive(
    instances: Any, refs: Any, reason: str, tmp_path: Path
) -> None:
    line = refusal_to_prepare(write_archive(tmp_path, instances, refs), splits=["val"])
    assert line.startswith(reason or "a sentence is not valid text")


def test_an_archive_that_is_no_zip_or_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refcoco.zip").write_bytes(b"PK\3\4<html>")
    line = refusal_to_prepare(tmp_path / "refcoco.zip")
    assert line.startswith("refs(unc).p cannot be read (File is not a zip file)")
    monkeypatch.setattr(prepare, "MAX_ANNOTATIONS", 100)
    line = refusal_to_prepare(write_archive(tmp_path))
    assert line.startswith("refs(unc).p unpacks to more than 100 bytes; refused.")


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
    instances, refs = archive_values()
    places = {**instances, "refs": refs, "sentences": refs[-1]["sentences"]}
    del places[of][-1][key]
    assert f"'{key}'" in refusal_to_prepare(write_archive(tmp_path, instances, refs))


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
    assert line.startswith(f"refs(unc).p: refcoco {split}: {found} {what}, published {found + 1}.")
    assert "profiles.*.datasets.refcoco.counts to null" in line


def test_every_count_that_differs_is_named_and_refs_without_sentences_count(
    tmp_path: Path,
) -> None:
    instances, refs = archive_values()
    refs.append({**refs[1], "ref_id": 99, "sentences": []})
    archive = write_archive(tmp_path, instances, refs)
    right = {**COUNTS, "val": {"refs": 2, "sentences": 1, "images": 1}}
    line = refusal_to_prepare(
        archive, counts={**right, "testA": {"refs": 7, "sentences": 8, "images": 9}}
    )
    for fact in ("0 refs, published 7", "0 sentences, published 8", "0 images, published 9"):
        assert f"refcoco testA: {fact}" in line
    output = tmp_path / "refcoco.parquet"
    _, notes = prepare_table("refcoco", dataset_of(counts=right), archive=archive, output=output)
    assert notes.lines() == ["1 refs without a sentence"]
    assert len(read_table(output)) == 3


# Images.


def zip_less(tiny: Tiny, folder: Path, lacking: list[str], empty: list[str]) -> Path:
    """Copy the zip of images without some, and with some empty."""
    with ZipFile(tiny.archives["train2014"]) as full, ZipFile(folder / "i.zip", "w") as cut:
        for name in full.namelist():
            if Path(name).name not in lacking:
                cut.writestr(name, b"" if Path(name).name in empty else full.read(name))
    return folder / "i.zip"


def folder_less(tiny: Tiny, folder: Path, lacking: list[str], empty: list[str]) -> Path:
    """Copy the images as a folder, one of them a link that leads nowhere."""
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
    with pytest.raises(DataError, match=rf"lacks 3 images .*{wanted[2]}"):
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
        with pytest.raises(DataError, match=r"profiles\.\*\.data\.train2014"):
            unpack_images(mine, tables=[tiny.table], folder=folder, manifest=tmp_path / "m.tsv")
        assert sorted(mine.iterdir()) == before


def test_a_folder_beside_our_images_is_not_deleted_with_them(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "mine").mkdir(parents=True)
    own = as_folder(Path(shutil.copy(tiny.archives["train2014"], tmp_path)))
    for archive in (tiny.archives["train2014"], own):
        with pytest.raises(DataError, match=r"images/mine: is in the way"):
            unpack_images(archive, tables=[tiny.table], folder=folder, manifest=tmp_path / "m.tsv")
        assert (folder / "mine").is_dir()


def test_good_images_stay_where_the_new_archive_lacks_some(tiny: Tiny, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "images", tmp_path / "images.tsv"
    unpack_images(tiny.archives["train2014"], tables=[tiny.table], folder=folder, manifest=manifest)
    before = sorted(folder.iterdir())
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    next(own.iterdir()).unlink()
    with pytest.raises(DataError, match=r"own: lacks 1 images"):
        unpack_images(own, tables=[tiny.table], folder=folder, manifest=manifest)
    assert sorted(folder.iterdir()) == before


# Identities on which later steps rely.


def spoiled(what: str, value: Any) -> tuple[Any, Any]:
    """Archive values with an id that is repeated, or is of another type."""
    instances, refs = archive_values()
    if what == "sent_id":
        refs[1]["sentences"][0]["sent_id"] = value
    elif what == "ref_id":
        refs[1]["ref_id"] = value
    elif what == "annotation id":
        instances["annotations"].append({**instances["annotations"][0], "id": value})
    elif what == "image id":
        instances["images"].append({**instances["images"][0], "id": value, "file_name": "b.jpg"})
    else:
        instances["images"].append({**instances["images"][0], "id": 2})
        instances["annotations"][1]["image_id"] = refs[1]["image_id"] = 2
    return instances, refs


@pytest.mark.parametrize(
    ("what", "value", "example"),
    [
        ("sent_id", 500, "1 repeated, such as 500"),
        ("sent_id", "500", "1 invalid, such as '500'"),
        ("sent_id", 2**63, "1 invalid, such as 9223372036854775808"),
        ("sent_id", None, "1 invalid, such as None"),
        ("ref_id", 15, "1 repeated, such as 15"),
        ("annotation id", 5, "1 repeated, such as 5"),
        ("image id", 1, "1 repeated, such as 1"),
        ("image file_name", None, "1 repeated, such as 'a.jpg'"),
    ],
)
def test_an_identity_that_names_two_things_is_refused_with_count_and_example(
    what: str, value: Any, example: str, tmp_path: Path
) -> None:
    line = refusal_to_prepare(write_archive(tmp_path, *spoiled(what, value)), splits=["val"])
    assert f"{what}: {example}" in line
