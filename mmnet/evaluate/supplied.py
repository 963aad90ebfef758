"""Masks that any model made, a line of JSON each, to rows as `predict` writes them. No torch."""

import collections
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from mmnet.data.rle import checked_rle
from mmnet.evaluate.selection import IDS
from mmnet.runtime.errors import DataError
from mmnet.runtime.progress import track

LONGEST = 1 << 26
"""Bytes of a line. Plain counts of 4 megapixels that alternate take 12 MB."""
SHOWN = 3
"""Kinds of faults that one message names."""


class Fault(Exception):
    """What is wrong with a line. Faults of one kind are counted together."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class SuppliedMasks:
    """The masks of a file, compared with the truth of a prepared table."""

    def __init__(self, path: Path, table: pd.DataFrame, *, splits: Sequence[str]) -> None:
        """`table` has all splits; only masks of `splits` are read."""
        self.path, self.splits = path, splits
        columns = [*IDS, "sentence", "height", "width", "counts"]
        self.rows = table[columns].sort_values(["split", "image_id", "sent_id"], ignore_index=True)
        self.records: list[Any] = list(self.rows.itertuples(index=False))
        self.of_sent_id = {row.sent_id: number for number, row in enumerate(self.records)}
        self.lines = np.zeros(len(self.rows), np.int64)
        """Number of the line that has the sentence's mask; 0: none has."""
        self.pixels = np.zeros((len(self.rows), 2), np.int64)
        """Intersection and union of each sentence."""
        self.sha256 = hashlib.sha256()
        """Of the file, once it is read."""

    def read(self) -> None:
        """Read the file and compare its masks.

        Raises:
            DataError: it cannot be read, or lines are invalid, unknown or doubled.
        """
        firsts: dict[str, str] = {}
        counts = collections.Counter[str]()
        for number, line in enumerate(self._lines(), start=1):
            try:
                if line.strip():
                    self._read_line(number, line)
            except Fault as fault:
                counts[fault.kind] += 1
                firsts.setdefault(fault.kind, f"line {number}: {fault}")
        if firsts:
            named = [f"{firsts[kind]} (lines like this: {counts[kind]})" for kind in firsts]
            raise DataError(f"{self.path}: {'; '.join(named[:SHOWN])}. Fix or remove these lines.")

    def found(self) -> list[str]:
        """Return the splits of which the file has any mask.

        Raises:
            DataError: there is none.
        """
        have = {*self.rows["split"][self.lines > 0]}
        if not (found := [split for split in self.splits if split in have]):
            raise DataError(
                f"{self.path}: has no mask of {', '.join(self.splits)}. Supply them, or choose "
                "other splits: --split."
            )
        return found

    def result(self, splits: Sequence[str]) -> pd.DataFrame:
        """Return a row per sentence of some splits: ids, intersection and union in pixels.

        Raises:
            DataError: sentences have no mask.
        """
        wanted = self.rows["split"].isin(splits).to_numpy()
        if len(missing := np.flatnonzero(wanted & (self.lines == 0))):
            row = self.records[missing[0]]
            alike = [n for n in self._of_text[row.ref_id, row.sentence] if self.lines[n]]
            shared = f" (sentence {self.records[alike[0]].sent_id} reads the same)" if alike else ""
            raise DataError(
                f"{self.path}: no mask of {len(missing)} of {wanted.sum()} sentences of "
                f"{', '.join(splits)}, the first: sentence {row.sent_id}, {row.sentence[:40]!r} of "
                f"ref {row.ref_id}{shared}. Supply them, or choose other splits: --split."
            )
        rows = self.rows.loc[wanted, IDS].reset_index(drop=True)
        intersection, union = self.pixels[wanted].T
        return rows.assign(intersection=intersection, union=union)

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size or None  # a pipe's is not known
                yield from track(self._raw(file), name="scoring", total=size, unit="B", size=len)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}.") from None

    def _raw(self, file: BinaryIO) -> Iterator[bytes]:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST:
                raise DataError(
                    f"{self.path}: line {number}: longer than {LONGEST >> 20} MB, which no mask "
                    "is. Write one JSON object per line."
                )
            self.sha256.update(line)
            yield line
        if not number:
            raise DataError(f"{self.path}: empty. Write one JSON object per line.")

    def _read_line(self, line_number: int, line: bytes) -> None:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Fault("json", f"not JSON ({str(error)[:80]})") from None
        if not isinstance(values, dict):
            raise Fault("json", f"a {type(values).__name__}, not a JSON object")
        number = self._sentence(values)
        row = self.records[number]
        for key in ("split", "ref_id"):
            if (said := values.get(key)) not in (None, expected := getattr(row, key)):
                raise Fault(key, f"{key} is {said!r:.40}; of sentence {row.sent_id}, {expected}")
        if first := self.lines[number]:
            raise Fault("doubled", f"sentence {row.sent_id} has its mask in line {first} already")
        self.lines[number] = line_number
        if row.split in self.splits:
            self.pixels[number] = compared(values.get("segmentation"), row)

    def _sentence(self, values: dict[str, Any]) -> int:
        """Return the number of the row that a line names."""
        sent_id, ref_id, text = (values.get(key) for key in ("sent_id", "ref_id", "sentence"))
        if sent_id is not None:
            if type(sent_id) is not int or sent_id not in self.of_sent_id:
                raise Fault("unknown", f"sent_id {sent_id!r:.40} is not in the table")
            return self.of_sent_id[sent_id]
        if type(ref_id) is not int or not isinstance(text, str):
            raise Fault("keys", "names no sentence; give sent_id, or ref_id and sentence")
        numbers = self._of_text.get((ref_id, " ".join(text.lower().split())))
        if not numbers:
            raise Fault("unknown", f"ref {ref_id} of the table has no sentence {text[:40]!r}")
        # Sentences of one object that read the same take the masks in turn.
        return next((number for number in numbers if not self.lines[number]), numbers[-1])

    @functools.cached_property
    def _of_text(self) -> dict[tuple[int, str], list[int]]:
        found: dict[tuple[int, str], list[int]] = {}
        for number, row in enumerate(self.records):
            found.setdefault((row.ref_id, row.sentence), []).append(number)
        return found


def compared(segmentation: Any, row: Any) -> tuple[int, int]:
    """Return intersection and union, in pixels, of run lengths and a sentence's true mask.

    Raises:
        Fault: they are not run lengths, or of another size than the image.
    """
    if segmentation is None:
        raise Fault("keys", "has no segmentation")
    try:
        mask = checked_rle(segmentation)
    except DataError as error:
        raise Fault("mask", str(error).rstrip(".")) from None
    size = [row.height, row.width]
    if mask["size"] != size:
        found = f"size is {mask['size']}; of the image of sentence {row.sent_id}, {size}"
        raise Fault("size", f"{found} (height, width)")
    both = [mask, {"size": size, "counts": row.counts}]
    intersection = int(coco_mask.area(coco_mask.merge(both, intersect=True)))
    return intersection, int(coco_mask.area(both).sum()) - intersection
