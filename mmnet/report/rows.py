"""The rows per sentence of all runs that a report compares."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from mmnet.config.identity import flat
from mmnet.config.schema import Config, Params
from mmnet.config.tables import Run
from mmnet.data.refer import read_table
from mmnet.evaluate.metrics import query_means
from mmnet.report.interval import Arm, measured
from mmnet.runtime.errors import DataError

MECHANISM = {
    "mask_spread": "spread of the masks",
    "attention_entropy": "entropy of the attention",
    "score_entropy": "entropy of the scores",
    "effective_queries": "effective number of queries",
}
"""What of the queries' measures is shown beside claims about them."""
IDS = ["split", "ref_id", "ann_id", "image_id", "sent_id"]
RowsOf = Callable[[str, int], Path]
"""Experiment and seed → the file of the run's rows."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    rows: dict[str, list[pd.DataFrame]] = field(default_factory=dict)
    """Experiment → the rows of each of its seeds, sentences in one order."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """Experiment → its runs that have no rows."""

    @property
    def missing_names(self) -> str:
        return ", ".join(name for names in self.missing.values() for name in names)

    def of(self, experiment: str, split: str) -> list[pd.DataFrame]:
        return [rows.loc[[split]] for rows in self.rows.get(experiment, [])]

    def arm(self, experiment: str, split: str, metric: str) -> Arm:
        return measured(self.of(experiment, split), metric)

    def queries(self, experiment: str, split: str) -> dict[str, float]:
        """Return the means over sentences and seeds of `MECHANISM`, where the runs have them."""
        means = [query_means(rows) for rows in self.of(experiment, split)]
        known = [name for name in MECHANISM if means and all(name in found for found in means)]
        return {name: fmean(found[name] for found in means) for name in known}


def read_runs(runs: Iterable[Run], rows_of: RowsOf, params: Params) -> Runs:
    """Read the rows of runs.

    Raises:
        DataError: rows are damaged, of other parameters, or of different sentences.
    """
    found = Runs()
    firsts: dict[str, tuple[str, pd.Index[Any]]] = {}
    for experiment, seed in runs:
        name, path = f"{experiment} seed {seed}", rows_of(experiment, seed)
        if experiment not in params.experiments or not path.is_file():
            found.missing.setdefault(experiment, []).append(name)
            continue
        config = params.resolve(experiment, seed)
        rows = _read(path, config)
        first, index = firsts.setdefault(config.dataset_name, (name, rows.index))
        if not rows.index.equals(index):
            alone = len(rows.index.symmetric_difference(index))
            raise DataError(
                f"rows: {name} and {first} have different sentences of {config.dataset_name}: "
                f"{alone} are in only one of them. Predict both on the same data: mmnet predict."
            )
        found.rows.setdefault(experiment, []).append(rows)
    return found


def _read(path: Path, config: Config) -> pd.DataFrame:
    table = read_table(path, config.dataset.splits, maker="mmnet predict")
    # Taken out: pandas would copy them with every selection of rows.
    found, expected = table.attrs.pop("config", None), config.prediction_values()
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
    rows = table.set_index(IDS).reindex(columns=["intersection", "union", *MECHANISM]).sort_index()
    if not rows.index.is_unique:
        twice = rows.index[rows.index.duplicated()][0][IDS.index("sent_id")]
        raise DataError(
            f"{path}: duplicate sentence {twice}; re-run mmnet prepare, then mmnet predict."
        )
    return rows
