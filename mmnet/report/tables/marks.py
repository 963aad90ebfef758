"""Tables 2-4: which differences from the reference row the trainings do not resolve."""

from dataclasses import dataclass

from mmnet.config.schema import Config, Params
from mmnet.config.tables import MIN_SEEDS, SPLIT, configs_of, runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.report.interval import LEVEL, difference
from mmnet.report.rows import RowsOf, read_runs

PAPER_QUERIES = 24
"""N_q of the paper's Table 4, whose rows do not name it, and of its best row of Table 2."""
MARK = "†"


@dataclass(frozen=True, kw_only=True)
class Marks:
    resolved: dict[tuple[str, str], bool]
    """Experiment and metric → the interval of the difference from the reference excludes zero."""
    note: str
    """For the caption."""


def marks(table: str, rows_of: RowsOf | None, params: Params) -> Marks:
    """Return what the rows per sentence say of the table's differences.

    Raises:
        DataError: rows are damaged, of other parameters, or of different sentences.
    """
    if len(params.seeds) < MIN_SEEDS:
        return _none(f"that needs {MIN_SEEDS} seeds or more")
    if rows_of is None:
        return _none("that needs the rows per sentence, which are not here")
    runs = read_runs(runs_of(table, params), rows_of, params)
    configs = configs_of(table, params)
    resolved: dict[tuple[str, str], bool] = {}
    for config in configs:
        reference = next((c for c in configs if _is_reference(table, c, config)), config)
        pair = [(1.0, config.experiment), (-1.0, reference.experiment)]
        if config is reference or any(len(runs.of(n, SPLIT)) < MIN_SEEDS for _, n in pair):
            continue
        for metric in METRICS:
            arms = [(weight, runs.arm(name, SPLIT, metric)) for weight, name in pair]
            low, high = difference(arms).interval()
            resolved[config.experiment, metric] = low > 0 or high < 0
    if not resolved:
        return _none(f"no row with {MIN_SEEDS} trainings has such a reference")
    return Marks(
        resolved=resolved,
        note=f"{MARK}: the {LEVEL:.0%} interval of the difference from {REFERENCES[table]}, over "
        "other images and other trainings, includes zero.",
    )


REFERENCES = {
    "table2": f"the row of N_q = {PAPER_QUERIES}",
    "table3": "the row with MMP of the same N_q",
    "table4": "the row with both",
}


def _is_reference(table: str, config: Config, of: Config) -> bool:
    model = config.model
    return {
        "table2": model.num_queries == PAPER_QUERIES,
        "table3": model.mmp and model.num_queries == of.model.num_queries,
        "table4": model.mqe and model.f_vg,
    }[table]


def _none(reason: str) -> Marks:
    return Marks(resolved={}, note=f"Differences are not marked: {reason}.")
