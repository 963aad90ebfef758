"""A table's score files → its TeX, CSV and Markdown."""

from pathlib import Path

from mmnet.config.schema import Params
from mmnet.config.tables import SHOWN
from mmnet.report.rows import RowsOf
from mmnet.report.tables.ablations import ablation, resolved_column
from mmnet.report.tables.common import long_form
from mmnet.report.tables.marks import marks
from mmnet.report.tables.scores import read_scores
from mmnet.report.tables.table1 import table1
from mmnet.report.tables.typeset import to_markdown, to_tex
from mmnet.runtime.files import atomic_write


def write_table(
    name: str, scores: list[Path], folder: Path, *, params: Params, rows_of: RowsOf | None = None
) -> None:
    """Write `NAME.tex`, `NAME.csv` and `NAME.md` into `folder`; NAME is table1, 2, 3 or 4.

    With several seeds, the rows per sentence say which differences of Tables 2-4 are resolved.

    Raises:
        ConfigError: params.yaml has no run of the table, or runs that it cannot compare.
        DataError: the files are not the scores of the table's runs, one each, on the same data; or
            rows are damaged or of other parameters.
    """
    runs = read_scores(name, scores, params)
    frame = long_form(name, runs, params)
    if name in SHOWN:
        marked = marks(name, rows_of, params)
        frame["resolved"] = resolved_column(frame, name, marked, params)
        table = ablation(name, frame, runs, marked, params)
    else:
        table = table1(frame, runs, params)
    csv = frame.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    texts = {"tex": to_tex(table), "csv": csv, "md": to_markdown(table)}
    for suffix, text in texts.items():
        with atomic_write(folder / f"{name}.{suffix}") as file:
            file.write(text)
