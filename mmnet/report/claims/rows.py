"""The rows per sentence of all runs that the claims compare → each sentence's IoU."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmnet.config.identity import flat
from mmnet.config.schema import Config, Params
from mmnet.data.refer import read_table
from mmnet.evaluate.metrics import iou
from mmnet.report.claims.statements import wanted_runs
from mmnet.runtime.errors import DataError

IDS = ["split", "ref_id", "ann_id", "image_id", "sent_id"]
RowsOf = Callable[[str, int], Path]
"""Experiment and seed → the file of the run's rows."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    ious: dict[str, pd.Series]
    """Experiment → IoU of each sentence, the mean over its seeds, sentences in one order."""
    missing: dict[str, list[str]]
    """Experiment → its runs that have no rows."""


def read_runs(rows_of: RowsOf, params: Params) -> Runs:
    """Read the rows of all runs that the claims compare.

    Raises:
        DataError: rows are missing, damaged, of other parameters, or of different sentences.
    """
    ious: dict[str, list[pd.Series]] = {}
    missing: dict[str, list[str]] = {}
    firsts: dict[str, tuple[str, pd.Index[Any]]] = {}
    for experiment, seed in wanted_runs(params):
        name, path = f"{experiment} seed {seed}", rows_of(experiment, seed)
        if experiment not in params.experiments or not path.is_file():
            missing.setdefault(experiment, []).append(name)
            continue
        config = params.resolve(experiment, seed)
        values = _read(path, config)
        first, index = firsts.setdefault(config.dataset_name, (name, values.index))
        if not values.index.equals(index):
            alone = len(values.index.symmetric_difference(index))
            raise DataError(
                f"claims: {name} and {first} have different sentences of {config.dataset_name}: "
                f"{alone} are in only one of them. Predict both on the same data: mmnet predict."
            )
        ious.setdefault(experiment, []).append(values)
    if missing and not params.allow_missing:
        names = ", ".join(name for of_experiment in missing.values() for name in of_experiment)
        raise DataError(
            f"claims ({params.profile}): no rows of {names}. Train and predict them: snakemake "
            "does when asked for results/claims.md. Or set allow_missing: true in params.yaml."
        )
    complete = {name: values for name, values in ious.items() if name not in missing}
    means = {name: sum(values[1:], values[0]) / len(values) for name, values in complete.items()}
    return Runs(ious=means, missing=missing)


def _read(path: Path, config: Config) -> pd.Series:
    table = read_table(path, config.dataset.splits, maker="mmnet predict")
    found, expected = table.attrs.get("config"), config.prediction_values()
    if found != expected:
        actual = flat(found if isinstance(found, dict) else {})
        differing = [
            f"{key} is {actual.get(key)!r}, not {value!r}"
            for key, value in flat(expected).items()
            if actual.get(key) != value
        ]
        reason = f" ({differing[0]})" if differing else ""
        raise DataError(
            f"{path}: was produced with different parameters{reason}; re-run mmnet predict."
        )
    if lacking := {*IDS, "intersection", "union"} - {*table.columns}:
        raise DataError(
            f"{path}: has no column {', '.join(sorted(lacking))}; re-run mmnet predict."
        )
    values = iou(table).set_axis(pd.MultiIndex.from_frame(table[IDS])).sort_index()
    if not values.index.is_unique:
        twice = values.index[values.index.duplicated()][0][IDS.index("sent_id")]
        raise DataError(
            f"{path}: duplicate sentence {twice}; re-run mmnet prepare, then mmnet predict."
        )
    return values
