"""Table 1, ours below the paper's.

The paper does not define its IoU, and the rows it quotes mix two metrics (reading 1): a column
names each row's metric, and ours are shown in both.
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
    rows = [
        *_rows(published, "IoU", places, rule=""),
        *_rows(ours, HEADLINE, places, rule=r"\midrule" if len(published) else ""),
        *_rows(ours, SECOND, places, rule=r"\addlinespace"),
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
    frame: pd.DataFrame, metric: str, places: list[tuple[str, str]], *, rule: str
) -> list[Row]:
    """Return one row per method and backbone, in the order of the frame; the first has the rule."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for entry in frame[frame["metric"] == metric].to_dict("records"):
        cells = found.setdefault((entry["method"], entry["backbone"]), {})
        if pd.notna(entry["value"]):
            cells.setdefault((entry["dataset"], entry["split"]), []).append(entry["value"])
    empty = "-" if metric == "IoU" else "--"
    return [
        Row(
            labels=[method, backbone, metric],
            cells=[cell(cells.get(place, []), empty) for place in places],
            rule="" if number else rule,
        )
        for number, ((method, backbone), cells) in enumerate(found.items())
    ]
