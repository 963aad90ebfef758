"""The REFER layout (instances.json, refs(*).p) to one table: a row per sentence.

`refs(*).p` is a Python-2-era pickle. A pickle from the network runs code when loaded, so ours
are read by an unpickler that admits plain containers and scalars only.
"""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from pycocotools import mask as coco_mask

from mmnet.errors import DataError


@dataclass
class Notes:
    """What was skipped or mended while reading, to be said to the user."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def lines(self) -> list[str]:
        return [f"{count} {what}" for what, count in sorted(self.counts.items())]


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"asks for {module}.{name}: only plain containers and scalars are admitted; nothing "
            "was run. Fetch the archive again from a source you trust."
        )


def read_refs(path: Path, *, where: str) -> list[dict[str, Any]]:
    """Read refs(*).p without running anything in it; `where` names it in errors.

    Raises:
        DataError: it holds more than plain data, or is no pickle of a list of refs.
    """
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: damaged pickle ({reason}). Fetch the archive again.") from None
    if not (isinstance(refs, list) and refs and all(isinstance(ref, dict) for ref in refs)):
        raise DataError(f"{where}: not a list of refs. Fetch the archive again.")
    return refs


def read_instances(path: Path, *, where: str) -> dict[str, Any]:
    """Read instances.json; `where` names it in errors.

    Raises:
        DataError: it is not COCO's format.
    """
    try:
        instances: dict[str, Any] = json.loads(path.read_bytes())
        for key in ("images", "annotations"):
            if not isinstance(instances[key], list):
                raise TypeError(f"{key} is no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{where}: not COCO instances ({error!r}). Fetch the archive again."
        ) from None
    return instances


def encode_mask(segmentation: Any, height: int, width: int, notes: Notes) -> dict[str, Any] | None:
    """Return COCO's compressed RLE of polygons or of either RLE; None where nothing is left.

    Polygons of fewer than three corners are dropped and noted.

    Raises:
        ValueError: corners far outside the image, or runs of another size than the image's.
    """
    if isinstance(segmentation, list):
        polygons = [part for part in segmentation if len(part) >= 6 and len(part) % 2 == 0]
        for _ in range(len(segmentation) - len(polygons)):
            notes.add("degenerate polygons dropped")
        if not polygons:
            return None
        # pycocotools would fill the memory with them, and with the sides of NaN.
        limit = 10 * max(height, width)
        if not all(abs(value) <= limit for polygon in polygons for value in polygon):
            raise ValueError("a corner lies far outside the image")
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
    else:
        counts = segmentation["counts"]
        runs = counts if isinstance(counts, list) else _runs(counts)
        # pycocotools would read what lies behind them in memory.
        if sum(runs) != height * width or min(runs) < 0:
            raise ValueError("its runs do not add up to the image's size")
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return rle if coco_mask.area(rle) > 0 else None


def _runs(counts: str) -> list[int]:
    """Decompress COCO's run lengths: five bits a character, a sixth where more follow.

    From the fourth on, a run is told by its difference from the last but one.
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

    Columns: split, ref_id, ann_id, image_id, sent_id, sentence, category_id, file, height, width
    (pixels), counts (bytes of COCO's compressed RLE at that size).

    Raises:
        DataError: two refs of one number, a ref without its annotation, an annotation without its
            image, or with a segmentation that is none.
    """
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    rows = []
    seen: set[Any] = set()
    for ref in refs:
        if ref["ref_id"] in seen:
            raise DataError(f"{where}: two refs have the number {ref['ref_id']}. Fetch it again.")
        seen.add(ref["ref_id"])
        annotation = annotations.get(ref["ann_id"])
        if annotation is None:
            raise DataError(
                f"{where}: ref {ref['ref_id']} names annotation {ref['ann_id']}, which "
                "instances.json does not have. The two files are not of one release: fetch again."
            )
        image = images.get(annotation["image_id"])
        if image is None:
            raise DataError(
                f"{where}: annotation {annotation['id']} names image {annotation['image_id']}, "
                "which instances.json does not have. Fetch the archive again."
            )
        height, width = image["height"], image["width"]
        try:
            rle = encode_mask(annotation["segmentation"], height, width, notes)
        except Exception as error:  # pycocotools raises bare ones
            raise DataError(
                f"{where}: annotation {annotation['id']} garbles its segmentation ({error}). "
                "Fetch the archive again."
            ) from None
        if rle is None:
            notes.add("refs skipped: empty mask")
            continue
        if not ref["sentences"]:
            notes.add("refs skipped: no sentence")
        for sentence in ref["sentences"]:
            text = " ".join(sentence["sent"].lower().split())
            if not text:
                notes.add("sentences skipped: empty")
                continue
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
                    "counts": rle["counts"],
                }
            )
    if not rows:
        raise DataError(f"{where}: no sentence is left. Fetch the archive again.")
    return pd.DataFrame(rows)


def read_table(path: Path, splits: Sequence[str] | None = None, *, maker: str = "") -> pd.DataFrame:
    """Read a prepared table, or one of another maker, or the rows of some of its splits.

    Raises:
        DataError: the file is missing or damaged, or has no row of a split asked for.
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
                f"Mend `splits` in params.yaml, or make it again: {maker}."
            )
    return table[table["split"].isin(splits)].reset_index(drop=True)
