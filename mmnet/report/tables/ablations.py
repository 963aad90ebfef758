"""Tables 2-4, the ablations: N_q; with and without MMP; f_vg and MQE.

A row is identified by its run's resolved switches, not by its name. On the paper's data each row of
ours has the published one and the difference; the paper's one IoU is set under mIoU (reading 1).
"""

from statistics import mean

import pandas as pd

from mmnet.config.schema import Config, Params
from mmnet.config.tables import SHOWN, configs_of, is_ours_alone
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.common import HEADLINE, PAPER, caption, method, own_name
from mmnet.report.tables.marks import MARK, Marks
from mmnet.report.tables.scores import Scores
from mmnet.report.tables.typeset import Row, Table, cell

HEADS = {"num_queries": "N_q", "mmp": "MMP", "mqe": "MQE", "f_vg": "f_vg"}
PAPER_ROWS = ("refcoco+", "RN50")
"""Data set and tower of the published Tables 2-4."""
Values = dict[tuple[str, str], list[float]]
"""Method and metric → one value per seed."""


def ablation(
    name: str, frame: pd.DataFrame, runs: list[Scores], marked: Marks, params: Params
) -> Table:
    """Arrange the long form as the paper's Table 2, 3 or 4: a row per experiment."""
    with_published = params.active.shapes is None
    configs = configs_of(name, params)
    if name == "table3":  # in pairs of one N_q
        order = [config.model.num_queries for config in configs]
        configs.sort(key=lambda c: (order.index(c.model.num_queries), not c.model.mmp))
    configs.sort(key=lambda c: is_ours_alone(name, c))  # below the paper's
    columns = [key for key in SHOWN[name] if key in HEADS]
    values: Values = {}
    for entry in frame.dropna(subset="value").to_dict("records"):
        values.setdefault((entry["method"], entry["metric"]), []).append(entry["value"])
    rows: list[Row] = []
    for config in configs:
        labels = [_label(getattr(config.model, key)) for key in columns]
        ours_alone = is_ours_alone(name, config)
        if ours_alone:
            labels[columns.index("mqe")] += ", mean"
        is_new_pair = name == "table3" and rows and rows[-1].labels[0] != labels[0]
        rule = r"\addlinespace" if rows and (with_published or is_new_pair) else ""
        rule = r"\midrule" if rows and ours_alone else rule
        ours = [values.get((own_name(name, config), metric), []) for metric in METRICS]
        cells = [
            cell(of_metric)
            + MARK * (bool(of_metric) and marked.resolved.get((config.experiment, metric)) is False)
            for metric, of_metric in zip(METRICS, ours, strict=True)
        ]
        if with_published and not ours_alone:
            published = _published(name, config, values)
            rows += [
                Row([*labels, "ours"], cells, rule=rule),
                Row([*labels, "published"], [cell(p) for p in published], continues=True),
                Row([*labels, "difference"], [*map(_difference, ours, published)], continues=True),
            ]
        else:
            rows.append(Row([*labels, *["ours"] * with_published], cells, rule=rule))
    return Table(
        name=name,
        caption=caption(name, runs, params, hidden=_hidden(name, configs[0]), marks=marked.note),
        labels=[HEADS[key] for key in columns] + [""] * with_published,
        heads=[("", list(METRICS))],
        rows=rows,
        align="r",
    )


def resolved_column(
    frame: pd.DataFrame, name: str, marked: Marks, params: Params
) -> list[bool | None]:
    """Return, for each line of the long form, whether its row's difference is resolved, if known.

    The reference rows and the published ones have none.
    """
    experiments = {own_name(name, config): config.experiment for config in configs_of(name, params)}
    return [
        marked.resolved.get((experiments.get(method, ""), metric))
        for method, metric in zip(frame["method"], frame["metric"], strict=True)
    ]


def _published(name: str, config: Config, values: Values) -> list[list[float]]:
    """Return the paper's value, or none, for each metric. Other data and towers have none."""
    tower = config.tower.architecture.removesuffix("-quickgelu")
    theirs = method(name, config) if (config.dataset_name, tower) == PAPER_ROWS else ""
    theirs = PAPER.get(theirs, theirs)
    return [values.get((theirs, "IoU" if metric == HEADLINE else metric), []) for metric in METRICS]


def _label(value: int | bool) -> str:
    return str(value) if not isinstance(value, bool) else "✓" if value else "✗"


def _difference(ours: list[float], published: list[float]) -> str:
    if not ours or not published:
        return "--"
    return f"{round(mean(ours) - published[0], 2) + 0.0:+.2f}"  # never -0.00


def _hidden(name: str, config: Config) -> str:
    """Describe the switches that the table has no column for: N_q, and those that are off."""
    text = ""
    for key in HEADS:
        value = getattr(config.model, key)
        if key in SHOWN[name] or value is True:
            continue
        text += f", N_q = {value}" if key == "num_queries" else f", without {HEADS[key]}"
    return text
