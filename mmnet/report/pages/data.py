"""What the data sets hold, and which images of one's evaluation are in another's training."""

from pathlib import Path

import numpy as np
import pandas as pd

from mmnet.config.schema import Params
from mmnet.data.refer import read_table
from mmnet.report.tables.common import TITLES
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write

COLUMNS = ["profile", "dataset", "split", "measure", "training", "value"]
"""Of data.csv. `training` names the data set whose training split `in_training` is about."""
SMALL = 0.01
"""Of the image: masks below are called small."""
ALL = "all"
"""Training on the data sets' training splits together."""

Place = tuple[str, str]
"""Data set and split."""
Measures = dict[str, int | float]


def write_data_report(tables: list[Path], folder: Path, *, params: Params) -> None:
    """Write `data.md` and `data.csv`, of one prepared table for each data set, into `folder`.

    Raises:
        DataError: a table is missing, damaged, or lacks a split or column.
    """
    held: dict[Place, Measures] = {}
    images: dict[Place, set[int]] = {}
    for (name, dataset), path in zip(params.active.datasets.items(), tables, strict=True):
        splits = ["train", *dataset.splits]
        table = _read(path, splits)
        for split in splits:
            rows = table[table["split"] == split]
            held[name, split] = measures(rows, dataset.max_length)
            images[name, split] = set(rows["image_id"])
    shared = shared_images(images)
    texts = {
        "data.csv": _long_form(held, shared, params).to_csv(index=False, lineterminator="\n"),
        "data.md": _markdown(held, shared, params),
    }
    for file_name, text in texts.items():
        with atomic_write(folder / file_name) as file:
            file.write(text)


def _read(path: Path, splits: list[str]) -> pd.DataFrame:
    table = read_table(path, splits)
    if lacking := {"tokens", "area"} - {*table.columns}:
        raise DataError(
            f"{path}: lacks {', '.join(sorted(lacking))}: an older version made it. Make it again: "
            f"mmnet prepare {path.stem}."
        )
    return table


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
    held: dict[Place, Measures], shared: dict[str, dict[Place, int]], params: Params
) -> pd.DataFrame:
    records = [
        (*place, measure, "", value if isinstance(value, int) else f"{value:.6f}")
        for place, values in held.items()
        for measure, value in values.items()
    ]
    records += [
        (*place, "in_training", training, count)
        for training, counts in shared.items()
        for place, count in counts.items()
    ]
    return pd.DataFrame([(params.profile, *record) for record in records], columns=COLUMNS)


def _markdown(
    held: dict[Place, Measures], shared: dict[str, dict[Place, int]], params: Params
) -> str:
    def by_split(cells: dict[str, str]) -> str:
        """A table of a row for each split; under each head a format such as '{refs:,}'."""
        rows = [
            [TITLES[name], split, *(cell.format(**values) for cell in cells.values())]
            for (name, split), values in held.items()
        ]
        return _table(["Data set", "Split", *cells], rows, labels=2)

    sizes = by_split(
        {
            "Refs": "{refs:,}",
            "Sentences": "{sentences:,}",
            "Images": "{images:,}",
            "Objects per image": "{objects_per_image:.2f}",
        }
    )
    sentences = by_split(
        {
            "Mean": "{tokens_mean:.2f}",
            "Median": "{tokens_median:g}",
            "95th percentile": "{tokens_95}",
            "Longest": "{tokens_max}",
            "L": "{max_length}",
            "Cut": "{cut:,}",
        }
    )
    masks = by_split(
        {
            "Lower quartile": "{mask_25:.2%}",
            "Median": "{mask_median:.2%}",
            "Upper quartile": "{mask_75:.2%}",
            "Small": "{mask_small:.1%}",
            "Empty": "{mask_empty:,}",
        }
    )
    leaks = _table(
        ["Trained on", *(f"{TITLES[name]} {split}" for name, split in shared[ALL])],
        [
            [
                "all of them" if training == ALL else TITLES[training],
                *(f"{n:,} ({n / held[place]['images']:.1%})" for place, n in counts.items()),
            ]
            for training, counts in shared.items()
        ],
        labels=1,
    )
    verdict = "leaks" if any(shared[ALL].values()) else "leaks nothing"
    drawn = "" if params.active.shapes is None else ", not comparable with published data"
    return f"""# The data

What profile {params.profile} prepared: {params.active.label}{drawn}.

## Sizes

An object counts once, however many refs name it.

{sizes}

## Sentences

Lengths in CLIP's tokens, with [SOS] and [EOS], before what is longer than L is cut.

{sentences}

## Masks

Sizes as shares of the image, each ref's once. Small ones are below {SMALL:.0%}, the empty included.

{masks}

## Leakage

Images of an evaluation split (column) that are in a training split (row), by `image_id`. A model
trained on that row has seen them, if with other sentences: where the number is not 0, its score in
that column flatters it. Training on all the data sets together {verdict}.

{leaks}
"""


def _table(heads: list[str], rows: list[list[str]], *, labels: int) -> str:
    rule = ["---"] * labels + ["---:"] * (len(heads) - labels)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *rows])
