"""Own tables against a reference: equal, within the spread over seeds, or which cells are out."""

from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest
from scipy import stats

from mmnet.cli.parser import main
from mmnet.report.compare import compare, half_width
from mmnet.report.tables.write import write_table
from mmnet.runtime.errors import DataError
from support.results import Value, make_scores, params_of
from support.tiny import ROOT

FIVE = "seeds=[0, 1, 2, 3, 4]"


def spread(experiment: int, split: int, seed: int, metric: int) -> float:
    """Cells of sd 1.58 points over five seeds."""
    return 0.5 + 0.01 * (experiment + split + seed - metric)


def make(folder: Path, *overrides: str, table: str = "table1", value: Value = spread) -> Path:
    params = params_of("mini", *overrides)
    scores = make_scores(params, folder / "scores", table, value)
    write_table(table, scores, folder, params=params)
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return make(tmp_path / "reference", FIVE)


def test_half_width_is_students_prediction_interval() -> None:
    values = [60.1, 61.4, 59.7, 60.8, 60.2]
    t = stats.t.ppf(0.975, 4)
    assert half_width(values, 1) == pytest.approx(t * stdev(values) * (1 + 1 / 5) ** 0.5, rel=1e-3)
    assert half_width(values, 5) == pytest.approx(t * stdev(values) * (2 / 5) ** 0.5, rel=1e-3)
    assert half_width(values[:1], 1) == 0


def test_equal_tables_are_the_same_bytes_also_of_fewer_seeds(
    tmp_path: Path, reference: Path
) -> None:
    whole = compare(make(tmp_path / "whole", FIVE), reference)
    assert (whole.lines, whole.agrees) == (["table1: same bytes"], True)
    one = compare(make(tmp_path / "one", "seeds=[3]"), reference)
    assert one.agrees
    (line,) = one.lines
    assert "same bytes" in line
    assert line.endswith("seed 3")


@pytest.mark.parametrize(("shift", "out"), [(0.04, 0), (0.06, 1), (-0.06, 1)])
def test_a_cell_is_out_beyond_the_interval(
    shift: float, out: int, tmp_path: Path, reference: Path
) -> None:
    # The interval is 2.776 * 1.58 * sqrt(1 + 1/5) = 4.81 points about the mean, that of seed 2.
    def shifted(experiment: int, split: int, seed: int, metric: int) -> float:
        is_one = (experiment, split, metric) == (0, 1, 0)
        return spread(experiment, split, 2, metric) + shift * is_one

    found = compare(make(tmp_path / "own", "seeds=[9]", value=shifted), reference)
    assert found.agrees == (not out)
    first, *cells = found.lines
    assert f"{32 - out} of 32 cells" in first  # mIoU and oIoU of 2 towers on 8 splits
    assert len(cells) == out
    if out:
        assert "mini ViT-B, refcoco testA mIoU: " in cells[0]
        assert cells[0].endswith(f"{100 * shift:+.2f}")


def test_missing_tables_and_rows_are_named(tmp_path: Path, reference: Path) -> None:
    make(reference, FIVE, table="table2")
    own = make(tmp_path / "own", "seeds=[9]")
    path = own / "table1.csv"
    frame = pd.read_csv(path)
    frame.loc[frame["backbone"] == "mini ViT-L", "value"] = None
    frame.to_csv(path, index=False, float_format="%.2f")
    found = compare(own, reference)
    assert not found.agrees
    assert "of 16 cells" in found.lines[0]
    assert [line for line in found.lines if "16 cells not in" in line and "mini ViT-L" in line]
    assert found.lines[-1] == f"table2: not in {own}"
    # A table that is not there is named, and is no disagreement.
    make(own, FIVE)
    assert compare(own, reference).agrees


def test_a_reference_of_one_seed_has_no_spread(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "seeds=[1]")
    found = compare(make(tmp_path / "own", "seeds=[0]"), one)
    assert not found.agrees
    assert "0 of 32 cells" in found.lines[0]


def test_profiles_are_never_compared(tmp_path: Path, reference: Path) -> None:
    own = make(tmp_path / "own", FIVE)
    path = own / "table1.csv"
    path.write_text(path.read_text().replace(",mini\n", ",paper\n"))
    found = compare(own, reference)
    assert not found.agrees
    (line,) = found.lines
    assert "profile paper" in line
    assert "cells" not in line


def test_nothing_to_compare_and_damaged_tables_are_refused(tmp_path: Path, reference: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: .*--with"):
        compare(reference, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere: .*make table1"):
        compare(tmp_path / "nowhere", reference)
    own = make(tmp_path / "own", FIVE)
    (own / "table1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"own/table1\.csv: is not a table's CSV"):
        compare(own, reference)


def test_the_command_compares_with_the_profiles_reference_or_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    make(tmp_path / "results", FIVE)
    make(tmp_path / "docs/results/mini", FIVE)
    make(tmp_path / "others", FIVE, value=lambda *cell: spread(*cell) + 0.2)
    monkeypatch.chdir(tmp_path)
    assert main(["compare"]) == 0
    assert capsys.readouterr().out == "table1: same bytes\n"
    assert main(["compare", "--with", "others"]) == 1
    mean_of_seeds = 100 * mean(spread(0, 0, seed, 0) for seed in range(5))
    assert f"refcoco val mIoU: {mean_of_seeds:.2f}, " in capsys.readouterr().out
    assert main(["compare", "--set", "profile=paper"]) == 0  # it has no reference
    assert "paper" in capsys.readouterr().out
    assert main(["compare", "--with", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
