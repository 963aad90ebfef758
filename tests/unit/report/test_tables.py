"""Tables 1-4 from hand-made scores: exact cells, the published rows, and pages that TeX sets."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mmnet.config.tables import TABLES, runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.common import published_rows
from mmnet.report.tables.write import write_table
from support.results import change_scores, make_scores, params_of, table_rows

NAMES = ("table1.tex", "table1.csv", "table1.md")


def test_cells_are_the_scores_in_percent(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table("table1", make_scores(params, tmp_path), tmp_path, params=params)
    heads, *rows = table_rows(tmp_path)
    assert heads == [
        *("Method", "Backbone", "Metric"),
        *("RefCOCO val", "RefCOCO testA", "RefCOCO testB"),
        *("RefCOCO+ val", "RefCOCO+ testA", "RefCOCO+ testB"),
        *("G-Ref val", "G-Ref test"),
    ]
    ours = "MMNet (this run)"
    vit_b = ["50.00", "51.00", "52.00", "60.00", "61.00", "62.00", "70.00", "71.00"]
    vit_l = ["55.00", "56.00", "57.00", "65.00", "66.00", "67.00", "75.00", "76.00"]
    assert rows[:2] == [[ours, "mini ViT-B", "mIoU", *vit_b], [ours, "mini ViT-L", "mIoU", *vit_l]]
    assert [row[2] for row in rows] == ["mIoU", "mIoU", "oIoU", "oIoU"]
    assert rows[2][3:5] == ["48.00", "49.00"]
    tex = (tmp_path / "table1.tex").read_text()
    assert f"{ours} & mini ViT-L & mIoU & {' & '.join(vit_l)} \\\\" in tex


def test_csv_holds_every_metric_of_every_run(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]")
    write_table("table1", make_scores(params, tmp_path), tmp_path, params=params)
    text = (tmp_path / "table1.csv").read_text()
    assert text.startswith("table,method,backbone,dataset,split,metric,value,seed,profile\n")
    assert "table1,MMNet (this run),mini ViT-B,refcoco+,testA,Pr@0.9,49.10,1,mini\n" in text
    frame = pd.read_csv(tmp_path / "table1.csv")
    # Two towers, eight columns, two seeds.
    assert len(frame) == 2 * 8 * 2 * len(METRICS)
    assert list(frame["metric"].unique()) == list(METRICS)


def test_several_seeds_give_mean_and_sample_deviation(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1, 2]")
    write_table("table1", make_scores(params, tmp_path), tmp_path, params=params)
    assert table_rows(tmp_path)[1][3] == "50.10 ± 0.10"
    assert r"50.10$_{\pm 0.10}$" in (tmp_path / "table1.tex").read_text()
    assert "seeds 0, 1, 2" in (tmp_path / "table1.md").read_text()


def test_order_of_the_score_files_changes_nothing(tmp_path: Path) -> None:
    params = params_of("paper", "seeds=[0, 1]")
    scores = make_scores(params, tmp_path)
    write_table("table1", scores, tmp_path / "a", params=params)
    write_table("table1", scores[::-1], tmp_path / "b", params=params)
    for name in NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(NAMES)


def test_paper_profile_has_the_published_rows_above_ours(tmp_path: Path) -> None:
    params = params_of("paper")
    write_table("table1", make_scores(params, tmp_path), tmp_path, params=params)
    rows = table_rows(tmp_path)[1:]
    methods = [
        "RRN",
        "MAttNet",
        "MCN",
        "CGAN",
        "EFNet",
        "LTS",
        "VLT",
        "ReSTR",
        "SeqTR",
        "CRIS",
        "LAVT",
    ]
    assert [row[0] for row in rows] == [
        *methods,
        *["MMNet (paper)"] * 2,
        *["MMNet (this run)"] * 4,
    ]
    assert [row[2] for row in rows] == ["IoU"] * 13 + ["mIoU"] * 2 + ["oIoU"] * 2
    assert rows[10][:4] == ["LAVT", "Swin-B", "IoU", "72.73"]
    assert rows[12][:6] == ["MMNet (paper)", "ViT-L", "IoU", "75.01", "77.81", "71.59"]
    assert rows[0][1:] == [
        "ResNet-101",
        "IoU",
        "55.33",
        "57.26",
        "53.95",
        "39.75",
        "42.15",
        "36.11",
        "-",
        "-",
    ]
    assert rows[7][-2:] == ["54.48", "-"]
    tex = (tmp_path / "table1.tex").read_text()
    assert tex.index("MMNet (paper)") < tex.rindex(r"\midrule") < tex.index("MMNet (this run)")
    frame = pd.read_csv(tmp_path / "table1.csv")
    published = frame[frame["profile"] == "published"]
    # 13 rows of 8 cells, 5 of them not given.
    assert len(published) == 13 * 8 - 5
    assert published["seed"].isna().all()
    assert set(published["metric"]) == {"IoU"}


def test_mini_profile_has_no_published_row_and_says_so(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table("table1", make_scores(params, tmp_path), tmp_path, params=params)
    for name in NAMES:
        text = (tmp_path / name).read_text()
        assert not any(word in text for word in ("LAVT", "(paper)", "72.73"))
    for name in ("table1.tex", "table1.md"):
        text = (tmp_path / name).read_text()
        assert "numbers from the procedural benchmark, not comparable with published" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on the PATH")
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("profile", ["mini", "paper"])
@pytest.mark.parametrize("seeds", ["[0]", "[0, 1, 2]"])
def test_pdflatex_sets_the_table_within_the_page(
    table: str, profile: str, seeds: str, tmp_path: Path
) -> None:
    labels = [
        rf'profiles.{profile}.towers.{tower}.label="50% of A_b & {{C}} #1 ~^$ \\x"'
        for tower in ("vit_b", "rn50")
    ]
    params = params_of(profile, seeds, "allow_missing=true", *labels)
    write_table(table, make_scores(params, tmp_path, table)[:-1], tmp_path, params=params)
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}"
        f"\n\\begin{{document}}\n\\input{{{table}}}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    log = (tmp_path / "page.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "Underfull" not in log
    assert "Missing character" not in log
    assert "Output written on page.pdf (1 page" in log


@pytest.mark.parametrize(
    "module",
    ["report.tables.write", "report.pages.data", "report.figures.figure6", "evaluate.selection"],
)
def test_the_report_never_imports_torch(module: str) -> None:
    code = f"import sys, mmnet.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Tables 2-4.

PRECISIONS = [f"Pr@{x}" for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
FALLING = ["49.00", "47.00", "45.00", "43.00", "41.00", "39.00"]
"""oIoU and Pr@X of a run whose mIoU is 51.00."""


def test_tables_2_to_4_are_of_13_runs() -> None:
    params = params_of("paper")
    runs = [runs_of(table, params) for table in ("table2", "table3", "table4")]
    assert [len(of_table) for of_table in runs] == [7, 6, 4]
    assert len({run for of_table in runs for run in of_table}) == 13


def test_table2_has_a_row_per_number_of_queries(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table("table2", make_scores(params, tmp_path, "table2"), tmp_path, params=params)
    heads, *rows = table_rows(tmp_path, "table2")
    assert heads == ["N_q", "mIoU", "oIoU", *PRECISIONS]
    assert [row[0] for row in rows] == ["32", "24", "16", "8", "4", "2", "1"]
    assert [row[1] for row in rows] == [f"{value}.00" for value in range(51, 82, 5)]
    assert rows[0] == ["32", "51.00", *FALLING]
    tex = (tmp_path / "table2.tex").read_text()
    assert rf"$N_q$ & mIoU & oIoU & {' & '.join(PRECISIONS)} \\" in tex
    assert rf"32 & 51.00 & {' & '.join(FALLING)} \\" in tex


def test_table3_pairs_the_runs_with_and_without_mmp(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table("table3", make_scores(params, tmp_path, "table3"), tmp_path, params=params)
    heads, *rows = table_rows(tmp_path, "table3")
    assert heads[:3] == ["N_q", "MMP", "mIoU"]
    assert [row[:3] for row in rows] == [
        ["24", "✓", "51.00"],
        ["24", "✗", "66.00"],
        ["16", "✓", "56.00"],
        ["16", "✗", "71.00"],
        ["8", "✓", "61.00"],
        ["8", "✗", "76.00"],
    ]
    tex = (tmp_path / "table3.tex").read_text()
    assert tex.count(r"\addlinespace") == 2
    assert r"24 & $\surd$ & 51.00" in tex
    assert r"24 & $\times$ & 66.00" in tex


def test_table4_has_a_row_per_switch(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table("table4", make_scores(params, tmp_path, "table4"), tmp_path, params=params)
    heads, *rows = table_rows(tmp_path, "table4")
    assert heads[:3] == ["f_vg", "MQE", "mIoU"]
    assert [row[:3] for row in rows] == [
        ["✓", "✓", "51.00"],
        ["✓", "✗", "56.00"],
        ["✗", "✓", "61.00"],
        ["✗", "✗", "66.00"],
    ]
    assert ", N_q = 24, 3 epochs" in (tmp_path / "table4.md").read_text()
    assert ", $N_q$ = 24, 3 epochs" in (tmp_path / "table4.tex").read_text()


def test_a_row_is_told_by_its_switches_not_by_its_name(tmp_path: Path) -> None:
    swapped = [
        "experiments.no_mqe.model={num_queries: 24, f_vg: false}",
        "experiments.no_f_vg.model={num_queries: 24, mqe: false}",
    ]
    params = params_of("paper", *swapped)
    write_table("table4", make_scores(params, tmp_path, "table4"), tmp_path, params=params)
    rows = table_rows(tmp_path, "table4")[1:]
    assert rows[3][:4] == ["✗", "✓", "ours", "56.00"]
    assert rows[4][:4] == ["✗", "✓", "published", "66.69"]
    assert rows[7][:4] == ["✓", "✗", "published", "67.32"]


def test_paper_profile_sets_published_and_difference_beside_ours(tmp_path: Path) -> None:
    params = params_of("paper")
    write_table("table2", make_scores(params, tmp_path, "table2"), tmp_path, params=params)
    heads, *rows = table_rows(tmp_path, "table2")
    assert heads == ["N_q", "", "mIoU", "oIoU", *PRECISIONS]
    assert len(rows) == 7 * 3
    assert rows[:3] == [
        ["32", "ours", "51.00", *FALLING],
        ["32", "published", "67.26", "--", "79.45", "75.58", "68.71", "52.65", "14.91"],
        ["32", "difference", "-16.26", "--", "-32.45", "-30.58", "-25.71", "-11.65", "+24.09"],
    ]
    # Nq 1: 81.00 and 65.42.
    assert rows[-1][:3] == ["1", "difference", "+15.58"]
    tex = (tmp_path / "table2.tex").read_text()
    assert r" & difference & $-$16.26 & -- & $-$32.45 & " in tex
    assert "32 & ours & 51.00" in tex
    for text in (tex, (tmp_path / "table2.md").read_text()):
        assert "The paper does not say which IoU it means: it is compared with mIoU." in text
        assert "ours minus published" in text


def test_a_difference_is_that_of_the_means(tmp_path: Path) -> None:
    params = params_of("paper", "seeds=[0, 1, 2]")
    scores = make_scores(params, tmp_path, "table4")
    for path, value in zip(scores, (0.6814, 0.68139, 0.681405), strict=False):
        change_scores(path, "testA", mIoU=value)
    write_table("table4", scores, tmp_path, params=params)
    rows = table_rows(tmp_path, "table4")[1:]
    assert [row[3] for row in rows[:3]] == ["68.14 ± 0.00", "68.14", "+0.00"]
    # 56.00, 56.10, 56.20 and 67.32.
    assert [row[3] for row in rows[3:6]] == ["56.10 ± 0.10", "67.32", "-11.22"]
    assert r"56.10$_{\pm 0.10}$" in (tmp_path / "table4.tex").read_text()


def test_csv_of_an_ablation_has_the_published_rows_and_ours(tmp_path: Path) -> None:
    params = params_of("paper", "seeds=[0, 1]")
    write_table("table3", make_scores(params, tmp_path, "table3"), tmp_path, params=params)
    text = (tmp_path / "table3.csv").read_text()
    assert text.startswith("table,method,backbone,dataset,split,metric,value,seed,profile\n")
    for line in (
        "table3,MMNet w/o MMP N_q=16,ResNet-50,refcoco+,testA,IoU,66.65,,published",
        "table3,MMNet (this run) w/o MMP N_q=16,RN50,refcoco+,testA,mIoU,71.10,1,paper",
    ):
        assert text.count(f"{line}\n") == 1, line
    frame = pd.read_csv(tmp_path / "table3.csv")
    assert (frame["profile"] == "published").sum() == 6 * 6
    assert (frame["profile"] == "paper").sum() == 6 * 2 * len(METRICS)
    assert set(frame["split"]) == {"testA"}


@pytest.mark.parametrize("table", ["table2", "table3", "table4"])
def test_mini_shows_ours_alone_and_says_so(table: str, tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[3]")
    write_table(table, make_scores(params, tmp_path, table), tmp_path, params=params)
    for suffix in ("tex", "csv", "md"):
        text = (tmp_path / f"{table}.{suffix}").read_text()
        assert not any(word in text for word in ("difference", "68.14", "ResNet-50"))
    for suffix in ("tex", "md"):
        text = (tmp_path / f"{table}.{suffix}").read_text()
        assert "Ours, profile mini, seed 3: numbers from the procedural benchmark, not" in text


def test_only_table4_of_the_paper_speaks_of_lost_check_marks(tmp_path: Path) -> None:
    for profile, table in (("paper", "table4"), ("paper", "table3"), ("mini", "table4")):
        params, folder = params_of(profile), tmp_path / profile / table
        write_table(table, make_scores(params, folder, table), folder, params=params)
        for suffix in ("tex", "md"):
            said = "row 2 is taken as without MQE" in (folder / f"{table}.{suffix}").read_text()
            assert said == ((profile, table) == ("paper", "table4"))


PUBLISHED = {
    ("table2", "MMNet N_q=32"): "67.26 79.45 75.58 68.71 52.65 14.91",
    ("table2", "MMNet N_q=24"): "68.14 80.51 76.89 70.22 52.99 15.46",
    ("table2", "MMNet N_q=16"): "67.59 79.86 75.82 69.03 52.71 14.80",
    ("table2", "MMNet N_q=8"): "66.85 78.69 75.03 68.05 52.55 14.83",
    ("table2", "MMNet N_q=4"): "66.13 78.08 74.39 68.54 52.12 14.29",
    ("table2", "MMNet N_q=2"): "65.80 77.53 74.19 68.13 51.87 14.39",
    ("table2", "MMNet N_q=1"): "65.42 76.62 72.73 66.26 51.41 13.84",
    ("table3", "MMNet w/o MMP N_q=24"): "66.82 78.59 74.90 68.78 52.28 15.18",
    ("table3", "MMNet w/o MMP N_q=16"): "66.65 78.24 74.85 67.91 50.56 13.87",
    ("table3", "MMNet w/o MMP N_q=8"): "66.09 77.38 73.89 67.05 49.60 13.41",
    ("table4", "MMNet w/o MQE"): "67.32 79.22 75.83 69.39 53.48 14.91",
    ("table4", "MMNet w/o f_vg"): "66.69 78.54 75.35 69.03 52.43 14.73",
    ("table4", "MMNet w/o f_vg and MQE"): "66.17 77.46 74.07 67.91 51.91 14.38",
}


@pytest.mark.parametrize(("table", "method"), PUBLISHED)
def test_published_ablations_are_the_papers(table: str, method: str) -> None:
    frame = published_rows(table)
    frame = frame[frame["method"] == method]
    assert list(frame["metric"]) == ["IoU", *PRECISIONS]
    assert [f"{value:.2f}" for value in frame["value"]] == PUBLISHED[table, method].split()


def test_every_published_row_stands_beside_one_of_ours(tmp_path: Path) -> None:
    params = params_of("paper")
    for table in ("table2", "table3", "table4"):
        write_table(table, make_scores(params, tmp_path / table, table), tmp_path, params=params)
        shown = [row for row in table_rows(tmp_path, table) if "published" in row]
        frame = published_rows(table)
        assert [float(row[-7]) for row in shown] == list(
            frame.loc[frame["metric"] == "IoU", "value"]
        )


def test_rows_that_the_paper_lacks_have_dashes_for_its_numbers(tmp_path: Path) -> None:
    another = [
        "experiments.nq_32.model={num_queries: 12}",
        *(
            f"experiments.{name}.model={{num_queries: 5, mqe: {mqe}, f_vg: {f_vg}}}"
            for name, mqe, f_vg in (
                ("nq_24", "true", "true"),
                ("no_mqe", "false", "true"),
                ("no_f_vg", "true", "false"),
                ("no_mqe_no_f_vg", "false", "false"),
            )
        ),
    ]
    params = params_of("paper", *another)
    dashes = ["--"] * 7
    for table in ("table2", "table4"):
        write_table(table, make_scores(params, tmp_path / table, table), tmp_path, params=params)
    rows = table_rows(tmp_path, "table2")[1:]
    assert [row[:3] for row in rows[::3]][:3] == [
        ["12", "ours", "51.00"],
        ["5", "ours", "56.00"],
        ["16", "ours", "61.00"],
    ]
    assert [row[2:] for row in rows[1:3]] == [dashes] * 2
    assert rows[7][2] == "67.59"
    # N_q is no column of Table 4, but its published rows are of 24.
    assert {tuple(row[3:]) for row in table_rows(tmp_path, "table4")[1:] if row[2] != "ours"} == {
        tuple(dashes)
    }


def test_another_tower_has_no_published_rows(tmp_path: Path) -> None:
    params = params_of("paper", "profiles.paper.towers.rn50.architecture=RN101-quickgelu")
    write_table("table2", make_scores(params, tmp_path, "table2"), tmp_path, params=params)
    assert table_rows(tmp_path, "table2")[2][2:] == ["--"] * 7


def test_what_else_differs_between_rows_is_in_the_caption(tmp_path: Path) -> None:
    longer = "experiments.nq_8.train={epochs: 9, threads: 2}"
    params = params_of("mini", longer)
    write_table("table2", make_scores(params, tmp_path, "table2"), tmp_path, params=params)
    text = (tmp_path / "table2.md").read_text()
    assert text.count(" has ") == 1
    assert " nq_8 has train.epochs 9, nq_32 3." in text
    off = [f"experiments.{name}.model.mqe=false" for name, _ in runs_of("table2", params)]
    params = params_of("mini", *off)
    write_table("table2", make_scores(params, tmp_path / "off", "table2"), tmp_path, params=params)
    assert "mini RN50, without MQE, 3 epochs" in (tmp_path / "table2.md").read_text()
