"""Table 1, ours below the paper's.

The paper does not define its IoU, and the rows it quotes mix two metrics (reading 1): a column
names each row's metric, and ours stand there in both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mmnet.config.schema import Params
from mmnet.report.tables.common import (
    HEADLINE,
    SECOND,
    TITLES,
    caption_of_runs,
    long_form,
    write,
)
from mmnet.report.tables.scores import Scores, read_scores
from mmnet.report.tables.typeset import (
    MARKDOWN_SPREAD,
    TEX_SPREAD,
    cell,
    markdown_table,
    tex,
    tex_line,
    tex_table,
)

LABELS = ["Method", "Backbone", "Metric"]


@dataclass(frozen=True)
class Row:
    """A line of the table: a cell holds one value a seed, or none where nothing is given."""

    method: str
    backbone: str
    metric: str
    cells: list[list[float]]

    def texts(self, spread: str) -> list[str]:
        empty = "-" if self.metric == "IoU" else "--"
        return [cell(values, spread, empty) for values in self.cells]


@dataclass(frozen=True)
class Table:
    caption: str
    columns: list[tuple[str, list[str]]]
    """Datasets, and the splits of each."""
    blocks: list[list[Row]]
    """Published rows, where the profile has them; ours in one metric; ours in the other."""


def write_table1(scores: list[Path], folder: Path, *, params: Params) -> None:
    """Write `table1.tex`, `table1.csv` and `table1.md` into `folder`.

    Raises:
        ConfigError, DataError: as `read_scores`.
    """
    runs = read_scores("table1", scores, params)
    frame = long_form("table1", runs, params)
    table = table1(frame, runs, params)
    write("table1", folder, tex=to_tex(table), frame=frame, markdown=to_markdown(table))


def table1(frame: pd.DataFrame, runs: list[Scores], params: Params) -> Table:
    """Arrange the long form as the paper's Table 1."""
    columns = [
        (str(name), list[str](dataset.splits)) for name, dataset in params.active.datasets.items()
    ]
    is_published = frame["profile"] == "published"
    blocks = [
        _rows(frame[is_published], "IoU", columns),
        _rows(frame[~is_published], HEADLINE, columns),
        _rows(frame[~is_published], SECOND, columns),
    ]
    return Table(
        caption=_caption(runs, params, with_published=bool(is_published.any())),
        columns=[(TITLES[name], splits) for name, splits in columns],
        blocks=[block for block in blocks if block],
    )


def to_tex(table: Table) -> str:
    spans, rules, first = [], [], len(LABELS) + 1
    for title, splits in table.columns:
        spans.append(rf"\multicolumn{{{len(splits)}}}{{c}}{{{tex(title)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + len(splits) - 1}}}")
        first += len(splits)
    heads = [*LABELS, *(split for _, splits in table.columns for split in splits)]
    lines = [rf" & & & {' & '.join(spans)} \\", " ".join(rules)]
    lines += [tex_line(heads), r"\midrule"]
    for number, block in enumerate(table.blocks):
        if number:
            theirs = table.blocks[number - 1][0].metric == "IoU"
            lines.append(r"\midrule" if theirs else r"\addlinespace")
        for row in block:
            labels = [tex(text) for text in (row.method, row.backbone, row.metric)]
            lines.append(tex_line([*labels, *row.texts(TEX_SPREAD)]))
    columns = f"lll{'c' * (first - 4)}"
    return tex_table(lines, columns=columns, caption=table.caption, label="tab:table1")


def to_markdown(table: Table) -> str:
    heads = [f"{title} {split}" for title, splits in table.columns for split in splits]
    rows = [
        [row.method, row.backbone, row.metric, *row.texts(MARKDOWN_SPREAD)]
        for block in table.blocks
        for row in block
    ]
    return markdown_table([*LABELS, *heads], rows, caption=table.caption, labels=len(LABELS))


def _rows(frame: pd.DataFrame, metric: str, columns: Iterable[tuple[str, list[str]]]) -> list[Row]:
    """Return one row per method and backbone, in the order in which they first come."""
    rows: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for entry in frame[frame["metric"] == metric].to_dict("records"):
        cells = rows.setdefault((entry["method"], entry["backbone"]), {})
        if pd.notna(entry["value"]):
            cells.setdefault((entry["dataset"], entry["split"]), []).append(entry["value"])
    places = [(dataset, split) for dataset, splits in columns for split in splits]
    return [
        Row(method, backbone, metric, [cells.get(place, []) for place in places])
        for (method, backbone), cells in rows.items()
    ]


def _caption(runs: list[Scores], params: Params, *, with_published: bool) -> str:
    profile, missing = caption_of_runs("table1", runs, params)
    if with_published:
        source = (
            f"Above, the paper's Table 1 as published: it does not define its IoU and mixes two "
            f"(the row of CRIS is mean IoU, those of LAVT and MAttNet are overall IoU); a dash "
            f"stands where nothing is given; its marks for DenseCRF and ImageNet-22K are left out. "
            f"Below, ours: {profile}."
        )
    else:
        source = (
            f"Ours, {profile}: numbers from the {params.active.label}, not comparable with "
            f"published numbers."
        )
    return (
        f"Referring image segmentation, in percent. {source} {HEADLINE} is the mean of the "
        f"sentences' IoU, {SECOND} the sum of intersections over the sum of unions.{missing}"
    )
