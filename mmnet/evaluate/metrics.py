"""IoU and Precision@X (§4.1), from one row per sentence.

The paper leaves open whether IoU is mean (as CRIS) or overall (as LAVT): both come from the same
rows (reading 1).
"""

from pathlib import Path
from typing import Any

import pandas as pd

from mmnet.config.schema import Config
from mmnet.data.refer import read_table
from mmnet.runtime.errors import DataError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
HEADLINES = ("mIoU", "oIoU")
METRICS = ("mIoU", "oIoU", *(f"Pr@{x}" for x in THRESHOLDS))
MEASURES = (
    *("mask_spread", "kernel_spread", "query_spread", "attention_entropy"),
    *("attention_variation", "score_entropy", "effective_queries"),
)
"""How different a sentence's queries are, as evaluate/query_measures.py defines them."""


def iou(rows: pd.DataFrame) -> pd.Series:
    """Return each sentence's intersection over union; two empty masks agree, 1."""
    return (rows["intersection"] / rows["union"]).where(rows["union"] > 0, 1.0)


def score(rows: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of a split's rows, as fractions.

    mIoU: mean of the sentences' IoU. oIoU: sum of intersections over sum of unions. Pr@X: share
    of sentences with IoU > X, strictly.
    """
    ious = iou(rows)
    overall = float(rows["intersection"].sum() / max(rows["union"].sum(), 1))
    precision = {f"Pr@{x}": float((ious > x).mean()) for x in THRESHOLDS}
    return {"mIoU": float(ious.mean()), "oIoU": overall, **precision}


def query_means(rows: pd.DataFrame) -> dict[str, float]:
    """Return the means over a split's sentences of those `MEASURES` that the model has."""
    known = [name for name in MEASURES if name in rows and rows[name].notna().any()]
    return {name: float(rows[name].mean()) for name in known}


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the metrics of a split's rows and, as `queries`, how different the queries are."""
    return {**score(rows), "queries": query_means(rows)}


def score_run(config: Config, *, rows: Path) -> dict[str, Any]:
    """Return a run's scores on each of its splits, with what names the run.

    Raises:
        DataError: the rows are missing, damaged, of another config, or lack a split.
    """
    table = read_table(rows, config.dataset.splits, maker="mmnet predict")
    if table.attrs.get("config") != config.prediction_values():
        raise DataError(f"{rows}: was produced with different parameters; re-run `mmnet predict`.")
    return {
        "profile": config.profile,
        "experiment": config.experiment,
        "seed": config.seed,
        "dataset": config.dataset_name,
        "backbone": config.tower.label,
        "config": config.prediction_values(),
        "splits": {
            split: {"sentences": len(of_split), **summary(of_split)}
            for split in config.dataset.splits
            for of_split in [table[table["split"] == split]]
        },
    }


def percents(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the headline numbers of `score_run`, in percent as the tables print them."""
    return {
        split: {metric: round(100 * values[metric], 2) for metric in HEADLINES}
        for split, values in scores["splits"].items()
    }
