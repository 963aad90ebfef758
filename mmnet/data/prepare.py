"""Turn archives into what training reads: a table per dataset, and the images the tables name.

An archive is a zip, or the folder that it unpacks to. A user's own copy is read in place.
"""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import pandas as pd

from mmnet.config.profile import DatasetConfig
from mmnet.data.download import must_exist
from mmnet.data.refer import Notes, build_table, parse_instances, parse_refs, read_table
from mmnet.data.unpack import rebuilt, unpack
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_path, atomic_write, writing

MAX_ANNOTATIONS = 2 << 30  # bytes; RefCOCO's are about 0.3 GB
MAX_IMAGES = 32 << 30  # bytes; train2014 is about 13 GB


def prepare_table(
    name: str, dataset: DatasetConfig, *, archive: Path, output: Path
) -> tuple[pd.DataFrame, Notes]:
    """Read a dataset's archive and write its table; return the table and notes on the archive.

    The table is `build_table`'s with a column `tokens`: the sentence's length for CLIP, uncut.

    Raises:
        DataError: the archive is damaged or incomplete, or its counts differ from the published.
    """
    notes = Notes()
    table = _build(name, dataset, archive, notes)
    for split in ("train", *dataset.splits):
        if not (table["split"] == split).any():
            known = ", ".join(sorted(table["split"].unique()))
            raise DataError(
                f"{archive}: refs({dataset.refs}).p has no split {split!r}; it has {known}. "
                f"Fix profiles.*.datasets.{name}.splits in params.yaml."
            )
    from mmnet.data.tokenizer import num_tokens  # imports torch: not while the JSON is in memory

    lengths = {sentence: num_tokens(sentence) for sentence in table["sentence"].unique()}
    table["tokens"] = table["sentence"].map(lengths)
    try:
        with atomic_path(output) as path:
            table.to_parquet(path, index=False)
    except (TypeError, ValueError) as error:  # pyarrow's, of columns of mixed types
        raise DataError(
            f"{archive}: its values are of mixed types ({' '.join(str(error).split())}). "
            "Fetch it again."
        ) from None
    return table, notes


def _build(name: str, dataset: DatasetConfig, archive: Path, notes: Notes) -> pd.DataFrame:
    file = f"refs({dataset.refs}).p"
    try:
        refs = parse_refs(_read(archive, name, file), where=f"{archive}: {file}")
        _check_counts(refs, name, dataset, where=f"{archive}: {file}")
        instances = parse_instances(
            _read(archive, name, "instances.json"),
            where=f"{archive}: instances.json",
            wanted={ref["ann_id"] for ref in refs},
        )
        _check_ids(refs, instances, where=str(archive))
        return build_table(instances, refs, where=str(archive), notes=notes)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{archive}: a ref or annotation has a missing or invalid {error}. Fetch it again."
        ) from None
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise DataError(
            f"{archive}: a sentence is not valid text ({error.reason}). Fetch it again."
        ) from None


def _read(archive: Path, name: str, file: str) -> bytes:
    """Return a file of a dataset's archive."""
    try:
        if archive.is_dir():
            return (archive / file).read_bytes()
        with ZipFile(archive) as members:
            member = members.getinfo(f"{name}/{file}")
            if member.file_size <= MAX_ANNOTATIONS:
                return members.read(member)
    except (FileNotFoundError, KeyError):
        raise DataError(
            f"{archive}: lacks {file if archive.is_dir() else f'{name}/{file}'}. Fetch it again, "
            f"or change profiles.*.datasets.{name}.refs in params.yaml."
        ) from None
    except Exception as error:  # a damaged zip can raise nearly anything
        raise DataError(
            f"{archive}: {file} cannot be read ({error}). Fetch it again, or fix its permissions."
        ) from None
    raise DataError(
        f"{archive}: {file} unpacks to more than {MAX_ANNOTATIONS} bytes; refused. "
        "Fetch it again from a source you trust."
    )


def _check_counts(
    refs: list[dict[str, Any]], name: str, dataset: DatasetConfig, *, where: str
) -> None:
    faults = []
    for split, published in (dataset.counts or {}).items():
        of_split = [ref for ref in refs if ref["split"] == split]
        found = {
            "refs": len(of_split),
            "sentences": sum(len(ref["sentences"]) for ref in of_split),
            "images": len({ref["image_id"] for ref in of_split}),
        }
        faults += [
            f"{name} {split}: {found[what]} {what}, published {count}"
            for what, count in published.model_dump().items()
            if found[what] != count
        ]
    if faults:
        raise DataError(
            f"{where}: {'; '.join(faults)}. Fetch the archive again; or, if yours is another "
            f"release, set profiles.*.datasets.{name}.counts to null in params.yaml."
        )


def _check_ids(refs: list[dict[str, Any]], instances: dict[str, Any], *, where: str) -> None:
    """Refuse ids that are no whole numbers or name two things: later steps find rows by them."""
    used = {ref["ann_id"] for ref in refs}
    wanted = {a["image_id"] for a in instances["annotations"] if a["id"] in used}
    images = [image for image in instances["images"] if image["id"] in wanted]
    ids = {
        "ref_id": [ref["ref_id"] for ref in refs],
        "sent_id": [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]],
        "annotation id": [a["id"] for a in instances["annotations"] if a["id"] in used],
        "image id": [image["id"] for image in images],
        "image file_name": [image["file_name"] for image in images],
    }
    faults = []
    for name, values in ids.items():
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if name == "image file_name":
            wrong = [value for value in values if not isinstance(value, str)]
        else:
            wrong = [v for v in values if type(v) is not int or not 0 <= v < 2**63]
        for what, found in (("invalid", wrong), ("repeated", repeated)):
            if found:
                examples = ", ".join(map(repr, found[:3]))
                faults.append(f"{name}: {len(found)} {what}, such as {examples}")
    if faults:
        raise DataError(
            f"{where}: ids must be unique whole numbers, and file names unique: "
            f"{'; '.join(faults)}. Renumber them in your files, or fetch the archive again."
        )


def unpack_images(archive: Path, *, tables: list[Path], folder: Path, manifest: Path) -> int:
    """Unpack only the images that the tables name; list them with their sizes in the manifest.

    From a folder, nothing is copied: symbolic links are made to its images.

    Raises:
        DataError: the archive lacks some of them, or is damaged.
    """
    wanted = {file for table in tables for file in read_table(table)["file"]}
    sizes = _sizes(archive, wanted)
    if missing := sorted(name for name in wanted if not sizes.get(name)):
        raise DataError(
            f"{archive}: lacks {len(missing)} images that the refs name, or they are empty; the "
            f"first is {missing[0]}. "
            + ("Add them." if archive.is_dir() else "Fetch the archive again.")
        )
    _check_ours(folder)
    if archive.is_dir():
        _link(archive.resolve(), folder, wanted)
    else:

        def is_wanted(member: str) -> bool:
            return PurePosixPath(member).name in wanted

        unpack(archive, folder, members=is_wanted, max_bytes=MAX_IMAGES)
    with atomic_write(manifest) as file:
        file.writelines(f"{name}\t{sizes[name]}\n" for name in sorted(wanted))
    return len(wanted)


def _sizes(archive: Path, wanted: set[str]) -> dict[str, int]:
    """Return the size in bytes of the files that exist: of a folder, only of the wanted ones."""
    if archive.is_dir():
        paths = [archive / name for name in wanted]
        return {path.name: path.stat().st_size for path in paths if path.is_file()}
    must_exist(archive)
    try:
        with ZipFile(archive) as members:
            return {PurePosixPath(m.filename).name: m.file_size for m in members.infolist()}
    except Exception as error:  # a damaged zip can raise nearly anything
        raise DataError(f"{archive}: damaged or not a zip ({error}). Fetch it again.") from None


def _check_ours(folder: Path) -> None:
    """Refuse to replace a folder that contains something that is not ours."""
    others = [folder] if folder.is_symlink() or folder.is_file() else []
    others += [path for path in folder.glob("*") if path.is_dir() and not others]
    if others:
        raise DataError(
            f"{others[0]}: is in the way: {folder} is deleted and made again. Move it elsewhere; "
            "profiles.*.data.train2014 in params.yaml may name its new place."
        )


def _link(source: Path, folder: Path, names: set[str]) -> None:
    """Fill `folder` with links to files of `source`; it appears complete or not at all."""
    if source.is_relative_to(folder.resolve()):
        raise DataError(
            f"{source}: is inside {folder}, where the links to it go. Move it, and name its new "
            "place in profiles.*.data.train2014 in params.yaml."
        )
    with rebuilt(folder) as building, writing(folder):
        for name in names:
            (building / name).symlink_to(source / name)
