"""Tables 2-4, the ablations: N_q; with and without MMP; f_vg and MQE.

A row is told by its run's resolved switches, not by its name. Beside real data each row of ours
has the published one and the difference; the paper's one IoU stands under mIoU (reading 1).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import pandas as pd

from mmnet.config.schema import Config, Params
from mmnet.config.tables import SHOWN, SPLIT, SWITCHES, configs_of, unlike
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.common import (
    HEADLINE,
    PAPER,
    SECOND,
    TITLES,
    caption_of_runs,
    long_form,
    method,
    own_name,
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

HEADS = {"num_queries": "N_q", "mmp": "MMP", "f_vg": "f_vg", "mqe": "MQE"}
SUBJECTS = {
    "table2": "The number of queries N_q",
    "table3": "With and without the Multi-Mask Projector (MMP)",
    "table4": "With and without f_vg, the image's global feature in the query generator, and the "
    "Multi-Query Estimator (MQE)",
}
PAPER_ROWS = ("refcoco+", "RN50")
"""Data set and tower of the published Tables 2-4."""
LOST_MARKS = (
    " The text of the paper that we have lost the check marks of its Table 4: its row 2 is taken "
    "as without MQE, its row 3 as without f_vg."
)


@dataclass(frozen=True)
class Row:
    labels: list[str]
    ours: list[list[float]]
    """One value a seed, for each metric."""
    published: list[float | None]

    def lines(self, spread: str, *, with_published: bool) -> list[list[str]]:
        """Return ours; where wanted, also the published numbers, and ours less those."""
        ours = [cell(values, spread) for values in self.ours]
        if not with_published:
            return [[*self.labels, *ours]]
        published = ["--" if value is None else f"{value:.2f}" for value in self.published]
        differences = map(_difference, self.ours, self.published)
        return [
            [*self.labels, "ours", *ours],
            [*self.labels, "published", *published],
            [*self.labels, "difference", *differences],
        ]


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    rows: list[Row]
    with_published: bool

    @property
    def labels(self) -> list[str]:
        return [HEADS[key] for key in SHOWN[self.name]] + [""] * self.with_published


def write_ablation(name: str, scores: list[Path], folder: Path, *, params: Params) -> None:
    """Write `NAME.tex`, `NAME.csv` and `NAME.md` into `folder`; NAME is table2, 3 or 4.

    Raises:
        ConfigError, DataError: as `read_scores`.
    """
    runs = read_scores(name, scores, params)
    frame = long_form(name, runs, params)
    table = Table(
        name=name,
        caption=_caption(name, runs, params),
        rows=rows_of(name, frame, params),
        with_published=params.active.shapes is None,
    )
    write(name, folder, tex=to_tex(table), frame=frame, markdown=to_markdown(table))


write_table2 = partial(write_ablation, "table2")
write_table3 = partial(write_ablation, "table3")
write_table4 = partial(write_ablation, "table4")


def rows_of(name: str, frame: pd.DataFrame, params: Params) -> list[Row]:
    """Return a row per experiment, as params.yaml orders them; Table 3's in pairs of one N_q."""
    configs = configs_of(name, params)
    if name == "table3":
        order = [config.model.num_queries for config in configs]
        configs.sort(key=lambda c: (order.index(c.model.num_queries), not c.model.mmp))
    held: dict[tuple[str, str], list[float]] = {}
    for entry in frame.dropna(subset="value").to_dict("records"):
        held.setdefault((entry["method"], entry["metric"]), []).append(entry["value"])
    rows = []
    for config in configs:
        ours = [held.get((own_name(name, config), metric), []) for metric in METRICS]
        # Another data set or tower has no published row.
        tower = config.tower.architecture.removesuffix("-quickgelu")
        theirs = method(name, config) if (config.dataset_name, tower) == PAPER_ROWS else ""
        theirs = PAPER.get(theirs, theirs)
        published = [
            held.get((theirs, "IoU" if metric == HEADLINE else metric), [None])[0]
            for metric in METRICS
        ]
        labels = [_label(getattr(config.model, key)) for key in SHOWN[name]]
        rows.append(Row(labels, ours, published))
    return rows


def _label(value: int | bool) -> str:
    return str(value) if not isinstance(value, bool) else "✓" if value else "✗"


def _difference(ours: list[float], published: float | None) -> str:
    if not ours or published is None:
        return "--"
    return f"{round(mean(ours) - published, 2) + 0.0:+.2f}"  # never -0.00


def to_tex(table: Table) -> str:
    heads = [*map(tex, [*table.labels, *METRICS])]
    lines = [tex_line(heads), r"\midrule"]
    for number, row in enumerate(table.rows):
        new_pair = table.name == "table3" and row.labels[0] != table.rows[number - 1].labels[0]
        if number and (table.with_published or new_pair):
            lines.append(r"\addlinespace")
        count = len(row.labels)
        texts = row.lines(TEX_SPREAD, with_published=table.with_published)
        for text in texts:
            # The labels stand once a row, not on each of its lines.
            labels = [*map(tex, text[:count])] if text is texts[0] else [""] * count
            lines.append(tex_line([*labels, *map(_minus, text[count:])]))
    columns = "l" * len(table.labels) + "r" * len(METRICS)
    return tex_table(lines, columns=columns, caption=table.caption, label=f"tab:{table.name}")


def _minus(text: str) -> str:
    return f"$-${text[1:]}" if text.startswith("-") and text != "--" else text


def to_markdown(table: Table) -> str:
    return markdown_table(
        [*table.labels, *METRICS],
        [
            cells
            for row in table.rows
            for cells in row.lines(MARKDOWN_SPREAD, with_published=table.with_published)
        ],
        caption=table.caption,
        labels=len(table.labels),
    )


def _caption(name: str, runs: list[Scores], params: Params) -> str:
    first = configs_of(name, params)[0]
    profile, missing = caption_of_runs(name, runs, params)
    number = name.removeprefix("table")
    if params.active.shapes is None:
        source = (
            f"Ours, {profile}; below each row the paper's, of its Table {number} as published, and "
            f"the difference, ours minus published. The paper does not say which IoU it means: it "
            f"is compared with {HEADLINE}. A dash stands where the paper gives nothing."
        )
        source += LOST_MARKS if name == "table4" else ""
    else:
        source = (
            f"Ours, {profile}: numbers from the {params.active.label}, not comparable with "
            f"published numbers."
        )
    differences = "".join(f" {phrase}." for phrase in unlike(name, params))
    return (
        f"{SUBJECTS[name]}: {TITLES[first.dataset_name]} {SPLIT}, {first.tower.label}"
        f"{_hidden(name, first)}, {first.train.epochs} epochs, in percent. {source} {HEADLINE} is "
        f"the mean of the sentences' IoU, {SECOND} the sum of intersections over the sum of "
        f"unions, Pr@X the share of sentences with an IoU above X.{differences}{missing}"
    )


def _hidden(name: str, config: Config) -> str:
    """Say what the table's columns do not: N_q, and what is switched off in all rows."""
    text = ""
    for key in SWITCHES:
        value = getattr(config.model, key)
        if key in SHOWN[name] or value is True:
            continue
        text += f", N_q = {value}" if key == "num_queries" else f", without {HEADS[key]}"
    return text
