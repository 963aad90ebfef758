"""Own tables against reference results: the same bytes, or within the spread over seeds."""

from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import pandas as pd
from scipy.special import stdtrit

from mmnet.config.tables import TABLES
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.common import COLUMNS, HEADLINE, SECOND
from mmnet.runtime.errors import DataError

CELL = ["method", "backbone", "dataset", "split", "metric"]
SHOWN = {"table1": (HEADLINE, SECOND)}
"""Metrics that a table shows, where those are not all."""
ROUNDING = 0.01
"""Of a difference of two numbers of two digits, in points."""

Values = dict[tuple[str, ...], list[float]]
"""Cell → its value of each seed, in percent."""


class Comparison(NamedTuple):
    lines: list[str]
    agrees: bool
    """Every table that both have agrees: no cell is out, none is missing."""


def compare(own: Path, reference: Path) -> Comparison:
    """Compare the tables of two folders of results, such as `results` and `docs/results/mini`.

    Raises:
        DataError: they have no table in common, or a table cannot be read.
    """
    names = {
        folder: [n for n in TABLES if _csv(folder, n).is_file()] for folder in (own, reference)
    }
    found = [_compared(name, own, reference) for name in names[own] if name in names[reference]]
    if not found and not names[reference]:
        raise DataError(
            f"{reference}: not found, or has no tableN.csv to compare with. Name another folder of "
            "results: --with FOLDER."
        )
    if not found:
        raise DataError(
            f"{own}: not found, or has no tableN.csv that {reference} has. Run: make table1, or "
            "make all."
        )
    missing = [
        f"{name}: not in {folder}"
        for name in TABLES
        for folder, other in ((own, reference), (reference, own))
        if name in names[other] and name not in names[folder]
    ]
    lines = [line for comparison in found for line in comparison.lines]
    return Comparison(lines + missing, all(comparison.agrees for comparison in found))


def _csv(folder: Path, table: str) -> Path:
    return folder / f"{table}.csv"


def _compared(table: str, own: Path, reference: Path) -> Comparison:
    if _csv(own, table).read_bytes() == _csv(reference, table).read_bytes():
        return Comparison([f"{table}: same bytes"], True)
    ours, theirs = (_read(_csv(folder, table)) for folder in (own, reference))
    profiles = [sorted(set(frame["profile"])) for frame in (ours, theirs)]
    if profiles[0] != profiles[1]:
        here, there = (", ".join(names) or "none" for names in profiles)
        line = f"{table}: profile {here} in {own}, {there} in {reference}: not compared"
        return Comparison([line], False)
    seeds = sorted(set(ours["seed"]))
    if _lines(ours) == _lines(theirs[theirs["seed"].isin(seeds)]):
        of_seeds = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        return Comparison([f"{table}: same bytes, for the reference's {of_seeds}"], True)
    metrics = SHOWN.get(table, tuple(METRICS))
    cells, expected = _cells(ours, metrics), _cells(theirs, metrics)
    common = [cell for cell in expected if cell in cells]
    outside = (_out(cell, cells[cell], expected[cell]) for cell in common)
    out = [line for line in outside if line]
    first = f"{table}: within the seeds' spread: {len(common) - len(out)} of {len(common)} cells"
    missing = [*_missing(expected, cells, own), *_missing(cells, expected, reference)]
    return Comparison([first, *out, *missing], not out and not missing)


def _read(path: Path) -> pd.DataFrame:
    """Return a table's rows of trainings: not the published ones."""
    try:
        frame = pd.read_csv(path)
        if lacking := [name for name in COLUMNS if name not in frame]:
            raise ValueError(f"no column {', '.join(lacking)}")
        frame = frame[frame["profile"] != "published"]
        return frame[COLUMNS].astype({"value": float, "seed": int})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: is not a table's CSV ({reason}). Write it again: mmnet report {path.stem}."
        ) from None


def _lines(frame: pd.DataFrame) -> list[str]:
    text: str = frame.to_csv(index=False)
    return sorted(text.splitlines())


def _cells(frame: pd.DataFrame, metrics: tuple[str, ...]) -> Values:
    found: Values = {}
    for row in frame[frame["metric"].isin(metrics)].dropna(subset="value").to_dict("records"):
        found.setdefault(tuple(row[key] for key in CELL), []).append(row["value"])
    return found


def _out(cell: tuple[str, ...], values: list[float], expected: list[float]) -> str | None:
    """Return a line on a cell beyond the reference's prediction interval; None of one within."""
    width = half_width(expected, len(values))
    difference = mean(values) - mean(expected)
    if abs(difference) <= width + ROUNDING:
        return None
    return (
        f"  {_name(cell)}: {mean(values):.2f}, reference {mean(expected):.2f} ± {width:.2f} "
        f"({len(expected)} seed{'s' * (len(expected) > 1)}): {difference:+.2f}"
    )


def half_width(reference: list[float], seeds: int) -> float:
    """Return how far the mean over other `seeds` may be from that of the reference, at 95 %.

    The prediction interval of Student: t s sqrt(1/k + 1/n) for k own seeds, with s the sample
    standard deviation of the reference's n values, and t the quantile at 97.5 % of n - 1 degrees of
    freedom (2.776 of 5 seeds). One seed shows no spread: 0.
    """
    count = len(reference)
    if count < 2:
        return 0.0
    quantile = float(stdtrit(count - 1, 0.975))
    return quantile * stdev(reference) * sqrt(1 / seeds + 1 / count)


def _missing(of: Values, there: Values, folder: Path) -> Iterator[str]:
    """Yield a line for each row of a table that a folder lacks, whole or in part."""
    rows: dict[str, list[str]] = {}
    for cell in of:
        if cell not in there:
            rows.setdefault(", ".join(cell[:2]), []).append(" ".join(cell[2:]))
    for row, cells in rows.items():
        yield f"  {row}: {len(cells)} cells not in {folder}, such as {cells[0]}"


def _name(cell: tuple[str, ...]) -> str:
    return f"{', '.join(cell[:2])}, {' '.join(cell[2:])}"
