"""Figure 4, from the scores of Table 2's runs: the gain over the fewest queries."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mmnet.config.schema import Params
from mmnet.config.tables import MIN_SEEDS, SPLIT, configs_of, runs_of
from mmnet.evaluate.metrics import THRESHOLDS
from mmnet.report.figures.drawing import TEXT, figure_with_note, save, style
from mmnet.report.interval import LEVEL, Interval, difference
from mmnet.report.rows import RowsOf, read_runs
from mmnet.report.tables.common import TITLES, published_rows
from mmnet.report.tables.scores import Scores, missing_runs, read_scores

TABLE = "table2"
OURS: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "-", "markersize": 4}
THEIRS: dict[str, Any] = {"color": "#D55E00", "marker": "s", "linestyle": "--", "markersize": 4}
BAND: dict[str, Any] = {"color": "#0072B2", "alpha": 0.2, "linewidth": 0}
SHOWN = {"mIoU": "IoU", **{f"Pr@{x}": f"Pr@{x}" for x in THRESHOLDS}}
"""Our metric → the published one beside it."""
Bands = dict[str, dict[int, Interval]]
"""Metric and N_q → interval of the gain."""


def write_figure4(
    scores: list[Path], folder: Path, *, params: Params, rows_of: RowsOf | None = None
) -> None:
    """Write `figure4.pdf` and `figure4.png` into `folder`; with several seeds, rows give its bands.

    Raises:
        DataError: the scores are not those of Table 2's runs, one each, on the same data; or rows
            are damaged or of other parameters.
    """
    runs = read_scores(TABLE, scores, params)
    with style():
        save(figure4(runs, params, bands(rows_of, params)), folder / "figure4")


def gains(runs: list[Scores], params: Params) -> pd.DataFrame:
    """Return gains in percentage points over the fewest queries of Table 2, of the seeds' means.

    Index: N_q; columns: metrics. Without a run of fewest queries there are none.
    """
    queries = {config.experiment: config.model.num_queries for config in configs_of(TABLE, params)}
    records = [
        (queries[run.experiment], *(run.splits[SPLIT].percent(m) for m in SHOWN)) for run in runs
    ]
    frame = pd.DataFrame(records, columns=["num_queries", *SHOWN]).astype(
        dict.fromkeys(SHOWN, float)
    )
    means = frame.groupby("num_queries").mean()
    base = min(queries.values())
    return means - means.loc[base] if base in means.index else means[:0]


def bands(rows_of: RowsOf | None, params: Params) -> Bands:
    """Return the intervals of the gains, over other images and other trainings.

    None with fewer than MIN_SEEDS seeds, or without rows.

    Raises:
        DataError: rows are damaged, of other parameters, or of different sentences.
    """
    if rows_of is None or len(params.seeds) < MIN_SEEDS:
        return {}
    runs = read_runs(runs_of(TABLE, params), rows_of, params)
    queries = {config.model.num_queries: config.experiment for config in configs_of(TABLE, params)}
    there = [n for n, name in sorted(queries.items()) if len(runs.of(name, SPLIT)) >= MIN_SEEDS]
    base = min(queries)
    found: Bands = {metric: {} for metric in SHOWN}
    for metric, (n, *more) in ((metric, there) for metric in SHOWN if base in there):
        arms = {n: runs.arm(queries[n], SPLIT, metric) for n in there}
        found[metric] = {base: (0.0, 0.0)} | {
            n: difference([(1.0, arms[n]), (-1.0, arms[base])]).interval() for n in more
        }
    return found


def published_gains(base: int) -> pd.DataFrame:
    """Return the paper's gains; index: N_q, columns: metrics. Empty where it lacks the base."""
    rows = published_rows(TABLE)
    rows["num_queries"] = rows["method"].str.rpartition("=")[2].astype(int)
    frame = rows.pivot(index="num_queries", columns="metric", values="value")
    return frame - frame.loc[base] if base in frame.index else frame[:0]


def figure4(runs: list[Scores], params: Params, bands: Bands | None = None) -> Figure:
    """Draw the gains over N_q, a panel for each metric."""
    bands = bands or {}
    ours = gains(runs, params)
    queries = {config.model.num_queries for config in configs_of(TABLE, params)}
    base = min(queries)
    # Published numbers are shown only with the paper's data.
    theirs = published_gains(base) if params.active.shapes is None else pd.DataFrame()
    ticks = sorted(queries | {*theirs.index})
    figure = figure_with_note(3.7, _note(ours, base, runs, params, bands))
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for panel, (metric, printed) in zip(panels.flat, SHOWN.items(), strict=True):
        panel.axhline(0, color="0.6", linewidth=0.6)
        panel.grid(axis="y", color="0.9", linewidth=0.5)
        panel.set_axisbelow(True)
        if len(theirs):
            places = [ticks.index(n) for n in theirs.index]
            panel.plot(places, theirs[printed], label="paper", **THEIRS)
        means = ours[metric]
        panel.plot([ticks.index(n) for n in means.index], means, label="this run", **OURS)
        if band := bands.get(metric):
            low, high = zip(*band.values(), strict=True)
            panel.fill_between([ticks.index(n) for n in band], low, high, **BAND)
        both = len(theirs) and metric != printed
        panel.set_title(f"{printed} (this run: {metric})" if both else metric)
        panel.set_xticks(range(len(ticks)), [str(n) for n in ticks])
        panel.set_xlim(-0.4, len(ticks) - 0.6)
    for panel in panels[1]:
        panel.set_xlabel("$N_q$", parse_math=True)
    figure.supylabel(f"gain over $N_q = {base}$, percentage points", fontsize=TEXT, parse_math=True)
    panels.flat[0].legend(frameon=False)
    return figure


def _note(ours: pd.DataFrame, base: int, runs: list[Scores], params: Params, bands: Bands) -> str:
    config = configs_of(TABLE, params)[0]
    seeds = ", ".join(str(seed) for seed in params.seeds)
    text = (
        f"{TITLES[config.dataset_name]} {SPLIT}, {config.tower.label}. This run: profile "
        f"{params.profile} ({params.active.label}), "
        f"{f'means of seeds {seeds}' if len(params.seeds) > 1 else f'seed {seeds}'}."
    )
    if any(bands.values()):
        text += f" Band: {LEVEL:.0%} interval of the gain, over other images and other trainings."
    elif len(params.seeds) < MIN_SEEDS:
        text += f" No band: how far trainings differ takes {MIN_SEEDS} seeds or more."
    else:
        text += " No band: it takes the rows per sentence, which are not here."
    if params.active.shapes is not None:
        text += " Not comparable with published numbers."
    if missing := missing_runs(TABLE, runs, params):
        text += f" Missing: {', '.join(missing)}."
    if ours.empty:
        text += f" No gain is known without N_q = {base}."
    return text
