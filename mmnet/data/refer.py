"""Read the REFER layout (instances.json, refs(*).p) into one table with a row per sentence.

`refs(*).p` is a pickle of Python 2. A pickle from the network can run code when loaded, so it is
read by an unpickler that accepts plain containers and scalars only.
"""

import io
import json
import pickle
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pandas as pd
from pycocotools import mask as coco_mask

from mmnet.runtime.errors import DataError


@dataclass
class Notes:
    """Counts of what was unusual or dropped while reading, to be reported to the user."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def lines(self) -> list[str]:
        return [f"{count} {what}" for what, count in sorted(self.counts.items())]


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"asks for {module}.{name}, but only plain containers and scalars are allowed; nothing "
            "was run. Fetch the archive again from a source you trust."
        )


def parse_refs(content: bytes, *, where: str) -> list[dict[str, Any]]:
    """Read refs(*).p without running any code in it; `where` names it in errors.

    Raises:
        DataError: it contains more than plain data, or is not a pickled list of refs.
    """
    try:
        refs = _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: damaged pickle ({reason}). Fetch the archive again.") from None
    if not (isinstance(refs, list) and refs and all(isinstance(ref, dict) for ref in refs)):
        raise DataError(f"{where}: not a list of refs. Fetch the archive again.")
    return refs


def parse_instances(content: bytes, *, where: str, wanted: Container[Any]) -> dict[str, Any]:
    """Read instances.json, keeping only the annotations with a wanted id.

    Raises:
        DataError: it is not in COCO's format; `where` names it in the message.
    """

    def drop_unwanted(values: dict[str, Any]) -> dict[str, Any] | None:
        # While parsing: no ref names three quarters of them, and their polygons fill the memory.
        unwanted = "segmentation" in values and values.get("id") not in wanted
        return None if unwanted else values

    try:
        instances: dict[str, Any] = json.loads(content, object_hook=drop_unwanted)
        for key in ("images", "annotations"):
            if not isinstance(instances[key], list):
                raise TypeError(f"{key} is not a list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{where}: not COCO instances ({error!r}). Fetch the archive again."
        ) from None
    instances["annotations"] = [a for a in instances["annotations"] if a is not None]
    return instances


def encode_mask(segmentation: Any, height: int, width: int, notes: Notes) -> dict[str, Any]:
    """Convert polygons, or run lengths in either of COCO's forms, to COCO's compressed RLE.

    Polygons of fewer than three corners are dropped and counted in `notes`; if none is left, the
    mask is empty.

    Raises:
        ValueError: corners far outside the image, or run lengths that do not fit its size.
    """
    rle: dict[str, Any]
    if isinstance(segmentation, list):
        polygons = [part for part in segmentation if len(part) >= 6 and len(part) % 2 == 0]
        for _ in range(len(segmentation) - len(polygons)):
            notes.add("degenerate polygons dropped")
        # On corners far outside or NaN, pycocotools would fill the memory.
        limit = 10 * max(height, width)
        if not all(abs(value) <= limit for polygon in polygons for value in polygon):
            raise ValueError("a corner is far outside the image")
        if polygons:
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
            return rle
        runs = [height * width]
    elif segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
    else:
        counts = segmentation["counts"]
        runs = counts if isinstance(counts, list) else _runs(counts)
        # On other sums, pycocotools would read beyond its memory.
        if sum(runs) != height * width or min(runs) < 0:
            raise ValueError("its run lengths do not add up to the image's size")
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return rle


def _runs(counts: str) -> list[int]:
    """Decompress COCO's run lengths: five bits a character, and a sixth bit if more follow.

    From the fourth run on, the difference from the last but one is stored. pycocotools does the
    same without bounds, so hostile counts are decoded and summed here first.
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode():
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def build_table(
    instances: dict[str, Any], refs: list[dict[str, Any]], *, where: str, notes: Notes
) -> pd.DataFrame:
    """Join refs, annotations and images: one row per sentence, in the archive's order.

    Empty masks and empty sentences are kept: published numbers count every sentence of every ref.

    Columns: split, ref_id, ann_id, image_id, sent_id, sentence, category_id, file, height, width
    (pixels), area (pixels of the mask), counts (bytes of COCO's compressed RLE at that size).

    Raises:
        DataError: duplicate ref ids, a ref without its annotation or with another image, an
            annotation without its image or with an invalid segmentation.
    """
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    rows = []
    seen: set[Any] = set()
    for ref in refs:
        if ref["ref_id"] in seen:
            raise DataError(f"{where}: two refs have the id {ref['ref_id']}. Fetch it again.")
        seen.add(ref["ref_id"])
        annotation, image = _joined(ref, annotations, images, where)
        height, width = image["height"], image["width"]
        try:
            rle = encode_mask(annotation["segmentation"], height, width, notes)
        except Exception as error:  # pycocotools raises bare ones
            raise DataError(
                f"{where}: annotation {annotation['id']} has an invalid segmentation ({error}). "
                "Fetch the archive again."
            ) from None
        area = int(coco_mask.area(rle))
        if not area:
            notes.add("refs with an empty mask")
        if not ref["sentences"]:
            notes.add("refs without a sentence")
        for sentence in ref["sentences"]:
            text = " ".join(sentence["sent"].lower().split())
            if not text:
                notes.add("sentences without a word")
            rows.append(
                {
                    "split": ref["split"],
                    "ref_id": ref["ref_id"],
                    "ann_id": annotation["id"],
                    "image_id": image["id"],
                    "sent_id": sentence["sent_id"],
                    "sentence": text,
                    "category_id": annotation["category_id"],
                    "file": image["file_name"],
                    "height": height,
                    "width": width,
                    "area": area,
                    "counts": rle["counts"],
                }
            )
    if not rows:
        raise DataError(f"{where}: no ref has a sentence. Fetch the archive again.")
    return pd.DataFrame(rows)


def _joined(
    ref: dict[str, Any], annotations: dict[Any, Any], images: dict[Any, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a ref's annotation and image."""
    annotation = annotations.get(ref["ann_id"])
    if annotation is None:
        raise DataError(
            f"{where}: ref {ref['ref_id']} names annotation {ref['ann_id']}, which "
            "instances.json does not have. The two files are of different releases: fetch again."
        )
    image = images.get(annotation["image_id"])
    if image is None:
        raise DataError(
            f"{where}: annotation {annotation['id']} names image {annotation['image_id']}, "
            "which instances.json does not have. Fetch the archive again."
        )
    file = PurePosixPath(image["file_name"])
    if file.name != image["file_name"]:
        raise DataError(
            f"{where}: image {image['id']} has the file_name {image['file_name']!r}, not a plain "
            "name. Fetch the archive again from a source you trust."
        )
    # A ref's own file_name is the image's, with a number of the object appended.
    named = ref.get("file_name", file.name)
    if ref["image_id"] != image["id"] or not (
        named == file.name or named.startswith(f"{file.stem}_")
    ):
        raise DataError(
            f"{where}: ref {ref['ref_id']} is of image {ref['image_id']}, {named}, its annotation "
            f"of {image['id']}, {file.name}. The two files are of different releases: fetch again."
        )
    return annotation, image


def read_table(path: Path, splits: Sequence[str] | None = None, *, maker: str = "") -> pd.DataFrame:
    """Read a prepared table, or its rows of some splits; `maker` is the command that writes it.

    Raises:
        DataError: the file is missing or damaged, or has no row of a requested split.
    """
    maker = maker or f"mmnet prepare {path.stem}"
    if not path.is_file():
        raise DataError(f"{path}: not found. Make it first: {maker}.")
    try:
        table = pd.read_parquet(path)
        table["split"]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: damaged table ({reason}). Delete it and make it again: {maker}."
        ) from None
    if splits is None:
        return table
    for split in splits:
        if not (table["split"] == split).any():
            known = ", ".join(sorted(table["split"].unique()))
            raise DataError(
                f"{path}: has no split {split!r}; it has {known}. "
                f"Fix `splits` in params.yaml, or make it again: {maker}."
            )
    return table[table["split"].isin(splits)].reset_index(drop=True)
