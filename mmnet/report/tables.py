"""Table 1, ours beside the paper's: score files → one long table → TeX, CSV and Markdown.

The paper does not define its IoU, and the rows it quotes mix two metrics (reading 1): a column
names each row's metric, and ours stand there in both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import mean, stdev

import pandas as pd

from mmnet.config import Params
from mmnet.errors import ConfigError
from mmnet.evaluate.metrics import METRICS
from mmnet.files import atomic_write
from mmnet.report.scores import Scores, read_scores

COLUMNS = [
    *("table", "method", "backbone", "dataset", "split"),
    *("metric", "value", "seed", "profile"),
]
TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "G-Ref"}
HEADLINE, SECOND = "mIoU", "oIoU"


@dataclass(frozen=True)
class Row:
    """A line of the table: a cell holds one value a seed, or none where nothing is given."""

    method: str
    backbone: str
    metric: str
    cells: list[list[float]]


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
        DataError: the scores are not those of all runs of Table 1, one each, on the same data.
    """
    frame = ours = own_rows(read_scores(scores, params), params)
    if params.active.shapes is None:
        # Only real data stands beside published numbers.
        frame = pd.concat([published_rows("table1"), ours], ignore_index=True)
    table = table1(frame, params)
    texts = {
        "table1.tex": to_tex(table, label="tab:table1"),
        "table1.csv": frame.to_csv(index=False, float_format="%.2f", lineterminator="\n"),
        "table1.md": to_markdown(table),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)


def own_rows(runs: list[Scores], params: Params) -> pd.DataFrame:
    """Return our runs in long form: one row per run, split and metric."""
    filled: dict[tuple[str, str], str] = {}
    for run in runs:
        other = filled.setdefault((run.backbone, run.dataset), run.experiment)
        if other != run.experiment:
            # Otherwise two experiments would pass for two seeds of one.
            raise ConfigError(
                f"params.yaml: experiments {other} and {run.experiment} are both {run.backbone} on "
                f"{run.dataset}, one row of table1. Take table1 off the `tables` of one."
            )
    rows = [
        {
            "table": "table1",
            "method": "MMNet (this run)",
            "backbone": run.backbone,
            "dataset": run.dataset,
            "split": split,
            "metric": metric,
            "value": run.splits[split].percent(metric),
            "seed": run.seed,
            "profile": run.profile,
        }
        for run in runs
        for split in params.active.datasets[run.dataset].splits
        for metric in METRICS
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})


def published_rows(table: str) -> pd.DataFrame:
    """Return the paper's own numbers, in long form."""
    with (resources.files("mmnet.report") / "paper.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    frame = frame[frame["table"] == table].assign(seed=None, profile="published")
    frame["method"] = frame["method"].replace({"MMNet": "MMNet (paper)"})
    return frame[COLUMNS].astype({"seed": "Int64"})


def table1(frame: pd.DataFrame, params: Params) -> Table:
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
        caption=_caption(params, with_published=bool(is_published.any())),
        columns=[(TITLES[name], splits) for name, splits in columns],
        blocks=[block for block in blocks if block],
    )


def to_tex(table: Table, label: str) -> str:
    r"""Return a table environment for `\input`, shrunk to the line where it is wider."""
    spans, rules, first = [], [], 4
    for title, splits in table.columns:
        spans.append(rf"\multicolumn{{{len(splits)}}}{{c}}{{{_tex(title)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + len(splits) - 1}}}")
        first += len(splits)
    heads = ["Method", "Backbone", "Metric", *(s for _, splits in table.columns for s in splits)]
    lines = [rf" & & & {' & '.join(spans)} \\", " ".join(rules)]
    lines += [_tex_line(heads), r"\midrule"]
    for number, block in enumerate(table.blocks):
        if number:
            theirs = table.blocks[number - 1][0].metric == "IoU"
            lines.append(r"\midrule" if theirs else r"\addlinespace")
        for row in block:
            labels = [_tex(text) for text in (row.method, row.backbone, row.metric)]
            lines.append(_tex_line([*labels, *(_cell(c, "$_{{\\pm {}}}$") for c in row.cells)]))
    body = "\n".join(f"      {line}" for line in lines)
    return rf"""% Needs \usepackage{{booktabs}} and \usepackage{{graphicx}}.
\begin{{table}}
  \centering
  \caption{{{_tex(table.caption)}}}
  \label{{{label}}}
  \setlength{{\tabcolsep}}{{4pt}}
  \medskip
  \resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
    \begin{{tabular}}{{@{{}}lll{"c" * (first - 4)}@{{}}}}
      \toprule
{body}
      \bottomrule
    \end{{tabular}}%
  }}
\end{{table}}
"""


def to_markdown(table: Table) -> str:
    """Return the caption and the table, in Markdown with pipes."""
    heads = [f"{title} {split}" for title, splits in table.columns for split in splits]
    lines = [["Method", "Backbone", "Metric", *heads], ["---"] * 3 + ["---:"] * len(heads)]
    for row in (row for block in table.blocks for row in block):
        labels = [text.replace("|", r"\|") for text in (row.method, row.backbone, row.metric)]
        lines.append([*labels, *(_cell(cell, " ± {}") for cell in row.cells)])
    return "\n".join([table.caption, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _rows(frame: pd.DataFrame, metric: str, columns: Iterable[tuple[str, list[str]]]) -> list[Row]:
    """Return one row per method and backbone, in the order in which they first come."""
    rows: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for entry in frame[frame["metric"] == metric].to_dict("records"):
        cells = rows.setdefault((entry["method"], entry["backbone"]), {})
        cells.setdefault((entry["dataset"], entry["split"]), []).append(entry["value"])
    places = [(dataset, split) for dataset, splits in columns for split in splits]
    return [
        Row(method, backbone, metric, [cells.get(place, []) for place in places])
        for (method, backbone), cells in rows.items()
    ]


def _caption(params: Params, *, with_published: bool) -> str:
    seeds = ", ".join(str(seed) for seed in params.seeds)
    many = f"mean ± sample standard deviation over seeds {seeds}"
    profile = f"profile {params.profile}, {many if len(params.seeds) > 1 else f'seed {seeds}'}"
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
        f"sentences' IoU, {SECOND} the sum of intersections over the sum of unions."
    )


def _cell(values: list[float], spread: str) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f}{spread.format(f'{stdev(values):.2f}')}"


def _tex_line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _tex(text: str) -> str:
    """Return text as TeX prints it."""
    special = {c: rf"\{c}" for c in "%_&#${}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join((special | {"±": r"$\pm$"}).get(character, character) for character in text)
