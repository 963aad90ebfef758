"""What the data sets contain, and which evaluation images are in a training split."""

from pathlib import Path

import numpy as np
import pandas as pd

from mmnet.benchmark.words import KIND_OF
from mmnet.config.schema import Params
from mmnet.data.refer import read_table
from mmnet.report.render import render
from mmnet.report.tables.common import TITLES
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write

COLUMNS = ["profile", "dataset", "split", "measure", "training", "value"]
"""Of data.csv. `training` names the data set whose training split `in_training` is about."""
SMALL = 0.01
"""Of the image: masks below are called small."""
ALL = "all"
"""Training on the data sets' training splits together."""

KINDS = ("colour", "shape", "pattern", "size")

Place = tuple[str, str]
"""Data set and split."""
Measures = dict[str, int | float]


def write_data_report(
    tables: list[Path], folder: Path, *, params: Params, key_words: Path | None = None
) -> None:
    """Write `data.md` and `data.csv`, of one prepared table for each data set, into `folder`.

    `key_words` is the procedural benchmark's list of sentences with a key word.

    Raises:
        DataError: a table is missing, damaged, or lacks a split or column.
    """
    measured: dict[Place, Measures] = {}
    images: dict[Place, set[int]] = {}
    for (name, dataset), path in zip(params.active.datasets.items(), tables, strict=True):
        splits = ["train", *dataset.splits]
        table = _read(path, splits)
        for split in splits:
            rows = table[table["split"] == split]
            measured[name, split] = measures(rows, dataset.max_length)
            images[name, split] = set(rows["image_id"])
    shared = shared_images(images)
    texts = {
        "data.csv": _long_form(measured, shared, params).to_csv(index=False, lineterminator="\n"),
        "data.md": render(
            "data.md",
            **{"params": params, "titles": {**TITLES, ALL: "all of them"}, "small": SMALL},
            **{"measured": measured, "shared": shared, "leaks": any(shared[ALL].values())},
            keys=_key_words(key_words) if key_words else None,
        ),
    }
    for file_name, text in texts.items():
        with atomic_write(folder / file_name) as file:
            file.write(text)


def _read(path: Path, splits: list[str]) -> pd.DataFrame:
    table = read_table(path, splits)
    if lacking := {"tokens", "area"} - {*table.columns}:
        raise DataError(
            f"{path}: has no column {', '.join(sorted(lacking))}, written by an older version; "
            f"re-run mmnet prepare {path.stem}."
        )
    return table


def _key_words(path: Path) -> dict[str, list[int]]:
    """Count, per split: sentences with a key word, by key, and those with either word as key.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        frame = pd.read_csv(path)
        kinds = frame["key"].map(KIND_OF)
        either = frame.groupby(["split", "sentence"])["key"].transform("nunique") > 1
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: {reason}. Draw the benchmark again: mmnet shapes.") from None
    return {
        str(split): [
            int(here.sum()),
            *(int((here & (kinds == kind)).sum()) for kind in KINDS),
            int((here & either).sum()),
        ]
        for split in frame["split"].unique()
        for here in [frame["split"] == split]
    }


def measures(rows: pd.DataFrame, max_length: int) -> Measures:
    """Return what a split's sentences, objects and masks are like.

    A mask counts once for each ref, its size as a share of its image.
    """
    refs = rows.drop_duplicates("ref_id")
    shares = refs["area"] / (refs["height"] * refs["width"])
    images, tokens = rows["image_id"].nunique(), rows["tokens"]
    return {
        "refs": len(refs),
        "sentences": len(rows),
        "images": images,
        "objects_per_image": rows["ann_id"].nunique() / images,
        "tokens_mean": float(tokens.mean()),
        "tokens_median": float(tokens.median()),
        # The least length that 95 % of the sentences do not exceed.
        "tokens_95": int(np.quantile(tokens, 0.95, method="inverted_cdf")),
        "tokens_max": int(tokens.max()),
        "max_length": max_length,
        "cut": int((tokens > max_length).sum()),
        "mask_25": float(shares.quantile(0.25)),
        "mask_median": float(shares.median()),
        "mask_75": float(shares.quantile(0.75)),
        "mask_small": float((shares < SMALL).mean()),
        "mask_empty": int((refs["area"] == 0).sum()),
    }


def shared_images(images: dict[Place, set[int]]) -> dict[str, dict[Place, int]]:
    """Count each evaluation split's images that each training split, and all together, has."""
    training = {name: ids for (name, split), ids in images.items() if split == "train"}
    training[ALL] = set().union(*training.values())
    return {
        name: {place: len(ids & seen) for place, ids in images.items() if place[1] != "train"}
        for name, seen in training.items()
    }


def _long_form(
    measured: dict[Place, Measures], shared: dict[str, dict[Place, int]], params: Params
) -> pd.DataFrame:
    records = [
        (*place, measure, "", value if isinstance(value, int) else f"{value:.6f}")
        for place, values in measured.items()
        for measure, value in values.items()
    ]
    records += [
        (*place, "in_training", training, count)
        for training, counts in shared.items()
        for place, count in counts.items()
    ]
    return pd.DataFrame([(params.profile, *record) for record in records], columns=COLUMNS)
