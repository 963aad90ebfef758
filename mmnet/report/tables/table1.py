"""Table 1, ours below the paper's.

The paper does not define its IoU, and the rows it quotes mix two metrics (reading 1): a column
names each row's metric, IoU where it is unsaid, and ours are shown in both.
"""

import pandas as pd

from mmnet.config.schema import Params
from mmnet.report.tables.common import HEADLINE, SECOND, TITLES, caption
from mmnet.report.tables.scores import Scores
from mmnet.report.tables.typeset import Row, Table, cell


def table1(frame: pd.DataFrame, runs: list[Scores], params: Params) -> Table:
    """Arrange the long form as the paper's Table 1: published rows, ours as mIoU, ours as oIoU."""
    datasets = {name: list[str](d.splits) for name, d in params.active.datasets.items()}
    places = [(str(name), split) for name, splits in datasets.items() for split in splits]
    is_published = frame["profile"] == "published"
    published, ours = frame[is_published], frame[~is_published]
    by = {metric: ours[ours["metric"] == metric] for metric in (HEADLINE, SECOND)}
    rows = [
        *_rows(published, places, rule="", empty="-"),
        *_rows(by[HEADLINE], places, rule=r"\midrule" if len(published) else ""),
        *_rows(by[SECOND], places, rule=r"\addlinespace"),
    ]
    return Table(
        name="table1",
        caption=caption("table1", runs, params),
        labels=["Method", "Backbone", "Metric"],
        heads=[(TITLES[name], splits) for name, splits in datasets.items()],
        rows=rows,
        align="c",
    )


def _rows(
    frame: pd.DataFrame, places: list[tuple[str, str]], *, rule: str, empty: str = "--"
) -> list[Row]:
    """Return one row per method, backbone and metric, in the frame's order; the first has the rule.

    `empty` stands in the cells that have no value.
    """
    found: dict[tuple[str, str, str], dict[tuple[str, str], list[float]]] = {}
    for entry in frame.to_dict("records"):
        row = (entry["method"], entry["backbone"], entry["metric"])
        cells = found.setdefault(row, {})
        if pd.notna(entry["value"]):
            cells.setdefault((entry["dataset"], entry["split"]), []).append(entry["value"])
    return [
        Row(
            labels=[*row],
            cells=[cell(cells.get(place, []), empty) for place in places],
            rule="" if number else rule,
        )
        for number, (row, cells) in enumerate(found.items())
    ]
