"""Figure 4, from the scores of Table 2's runs: the gain over the fewest queries."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mmnet.config.schema import Params
from mmnet.config.tables import SPLIT, configs_of
from mmnet.evaluate.metrics import THRESHOLDS
from mmnet.report.figures.drawing import TEXT, figure_with_note, save, style
from mmnet.report.tables.common import TITLES, published_rows
from mmnet.report.tables.scores import Scores, missing_runs, read_scores

TABLE = "table2"
OURS: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "-", "markersize": 4}
THEIRS: dict[str, Any] = {"color": "#D55E00", "marker": "s", "linestyle": "--", "markersize": 4}
SHOWN = {"mIoU": "IoU", **{f"Pr@{x}": f"Pr@{x}" for x in THRESHOLDS}}
"""Our metric → the published one beside it."""


def write_figure4(scores: list[Path], folder: Path, *, params: Params) -> None:
    """Write `figure4.pdf` and `figure4.png` into `folder`.

    Raises:
        DataError: the scores are not those of Table 2's runs, one each, on the same data.
    """
    runs = read_scores(TABLE, scores, params)
    with style():
        save(figure4(runs, params), folder / "figure4")


def gains(runs: list[Scores], params: Params) -> pd.DataFrame:
    """Return gains in percentage points over the fewest queries of Table 2, seed by seed.

    Index: N_q and seed; columns: metrics. A seed without the run of fewest queries has no gains.
    """
    queries = {config.experiment: config.model.num_queries for config in configs_of(TABLE, params)}
    records = [
        (queries[run.experiment], run.seed, *(run.splits[SPLIT].percent(m) for m in SHOWN))
        for run in runs
    ]
    frame = pd.DataFrame(records, columns=["num_queries", "seed", *SHOWN])
    frame = frame.set_index(["num_queries", "seed"]).sort_index().astype(float)
    first = frame[frame.index.get_level_values("num_queries") == min(queries.values())]
    return frame.sub(first.droplevel("num_queries"), level="seed").dropna()


def published_gains(base: int) -> pd.DataFrame:
    """Return the paper's gains; index: N_q, columns: metrics. Empty where it lacks the base."""
    rows = published_rows(TABLE)
    rows["num_queries"] = rows["method"].str.rpartition("=")[2].astype(int)
    frame = rows.pivot(index="num_queries", columns="metric", values="value")
    return frame - frame.loc[base] if base in frame.index else frame[:0]


def figure4(runs: list[Scores], params: Params) -> Figure:
    """Draw the gains over N_q, a panel for each metric."""
    ours = gains(runs, params)
    queries = {config.model.num_queries for config in configs_of(TABLE, params)}
    base = min(queries)
    # Published numbers are shown only with the paper's data.
    theirs = published_gains(base) if params.active.shapes is None else pd.DataFrame()
    ticks = sorted(queries | {*theirs.index})
    figure = figure_with_note(3.7, _note(ours, base, runs, params))
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for panel, (metric, printed) in zip(panels.flat, SHOWN.items(), strict=True):
        panel.axhline(0, color="0.6", linewidth=0.6)
        panel.grid(axis="y", color="0.9", linewidth=0.5)
        panel.set_axisbelow(True)
        if len(theirs):
            places = [ticks.index(n) for n in theirs.index]
            panel.plot(places, theirs[printed], label="paper", **THEIRS)
        by_queries = ours[metric].groupby(level="num_queries")
        means = by_queries.mean()
        panel.errorbar(
            [ticks.index(n) for n in means.index],
            means,
            yerr=by_queries.std() if len(params.seeds) > 1 else None,
            label="this run",
            capsize=2,
            **OURS,
        )
        both = len(theirs) and metric != printed
        panel.set_title(f"{printed} (this run: {metric})" if both else metric)
        panel.set_xticks(range(len(ticks)), [str(n) for n in ticks])
        panel.set_xlim(-0.4, len(ticks) - 0.6)
    for panel in panels[1]:
        panel.set_xlabel("$N_q$", parse_math=True)
    figure.supylabel(f"gain over $N_q = {base}$, percentage points", fontsize=TEXT, parse_math=True)
    panels.flat[0].legend(frameon=False)
    return figure


def _note(ours: pd.DataFrame, base: int, runs: list[Scores], params: Params) -> str:
    config = configs_of(TABLE, params)[0]
    seeds = ", ".join(str(seed) for seed in params.seeds)
    many = f"seeds {seeds}: mean ± sample standard deviation of each seed's own gain"
    text = (
        f"{TITLES[config.dataset_name]} {SPLIT}, {config.tower.label}. This run: profile "
        f"{params.profile} ({params.active.label}), "
        f"{many if len(params.seeds) > 1 else f'seed {seeds}'}."
    )
    if params.active.shapes is not None:
        text += " Not comparable with published numbers."
    if missing := missing_runs(TABLE, runs, params):
        text += f" Missing: {', '.join(missing)}."
    if ours.empty:
        text += f" No gain is known without N_q = {base}."
    return text
