"""Tables 1-4 from hand-made scores: exact cells, the published rows, and pages that TeX sets."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmnet.config.tables import TABLES, runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.common import published_rows
from mmnet.report.tables.write import write_table
from support.results import Bench, Floats, change_scores, make_scores, params_of, table_rows

PRECISIONS = [f"Pr@{x}" for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
FALLING = ["49.00", "47.00", "45.00", "43.00", "41.00", "39.00"]
"""oIoU and Pr@X of a run whose mIoU is 51.00."""
DASHES = ["--"] * 7


def written(folder: Path, table: str, profile: str, *overrides: str) -> list[list[str]]:
    """Write a table of hand-made scores; return its cells, the heads first."""
    params = params_of(profile, *overrides)
    write_table(table, make_scores(params, folder / "scores", table), folder, params=params)
    return table_rows(folder, table)


def text_of(folder: Path, name: str) -> str:
    return (folder / name).read_text()


# Table 1.


def test_cells_are_the_scores_in_percent(tmp_path: Path) -> None:
    heads, *rows = written(tmp_path, "table1", "mini")
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
    tex = text_of(tmp_path, "table1.tex")
    assert f"{ours} & mini ViT-L & mIoU & {' & '.join(vit_l)} \\\\" in tex


def test_csv_holds_every_metric_of_every_run(tmp_path: Path) -> None:
    written(tmp_path, "table1", "mini", "seeds=[0, 1]")
    text = text_of(tmp_path, "table1.csv")
    assert text.startswith("table,method,backbone,dataset,split,metric,value,seed,profile\n")
    assert "table1,MMNet (this run),mini ViT-B,refcoco+,testA,Pr@0.9,49.10,1,mini\n" in text
    frame = pd.read_csv(tmp_path / "table1.csv")
    # Two towers, eight columns, two seeds.
    assert len(frame) == 2 * 8 * 2 * len(METRICS)
    assert list(frame["metric"].unique()) == list(METRICS)


def test_several_seeds_give_mean_and_sample_deviation(tmp_path: Path) -> None:
    rows = written(tmp_path, "table1", "mini", "seeds=[0, 1, 2]")
    assert rows[1][3] == "50.10 ± 0.10"
    assert r"50.10$_{\pm 0.10}$" in text_of(tmp_path, "table1.tex")
    assert "seeds 0, 1, 2" in text_of(tmp_path, "table1.md")


def test_order_of_the_score_files_changes_no_byte(tmp_path: Path) -> None:
    params = params_of("paper", "seeds=[0, 1]")
    scores = make_scores(params, tmp_path / "scores")
    found = []
    for folder, paths in ((tmp_path / "a", scores), (tmp_path / "b", scores[::-1])):
        write_table("table1", paths, folder, params=params)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0] == found[1]
    assert found[0].keys() == {"table1.tex", "table1.csv", "table1.md"}


def test_paper_profile_has_the_published_rows_above_ours(tmp_path: Path) -> None:
    rows = written(tmp_path, "table1", "paper")[1:]
    others = ["RRN", "MAttNet", "MCN", "CGAN", "EFNet", "LTS", "VLT", "ReSTR"]
    others += ["SeqTR", "CRIS", "LAVT"]
    ours = ["MMNet (paper)"] * 2 + ["MMNet (this run)"] * 4
    assert [row[0] for row in rows] == others + ours
    known = {"MAttNet": "oIoU", "VLT": "mIoU", "CRIS": "mIoU", "LAVT": "oIoU"}
    metrics = [known.get(method, "IoU") for method in [*others, *ours[:2]]]
    assert [row[2] for row in rows] == metrics + ["mIoU"] * 2 + ["oIoU"] * 2
    assert rows[10][:4] == ["LAVT", "Swin-B", "oIoU", "72.73"]
    assert rows[12][:6] == ["MMNet (paper)", "ViT-L", "IoU", "75.01", "77.81", "71.59"]
    rrn = ["55.33", "57.26", "53.95", "39.75", "42.15", "36.11", "-", "-"]
    assert rows[0][1:] == ["ResNet-101", "IoU", *rrn]
    assert rows[7][-2:] == ["54.48", "-"]
    tex = text_of(tmp_path, "table1.tex")
    assert tex.index("MMNet (paper)") < tex.rindex(r"\midrule") < tex.index("MMNet (this run)")
    frame = pd.read_csv(tmp_path / "table1.csv")
    published = frame[frame["profile"] == "published"]
    assert len(published) == 13 * 8 - 5  # not all cells are given
    assert published["seed"].isna().all()
    assert {*zip(published["method"], published["metric"], strict=True)} == {
        *zip([*others, "MMNet (paper)"], metrics, strict=False)
    }


@pytest.mark.parametrize("table", TABLES)
def test_mini_shows_ours_alone_and_the_caption_says_so(table: str, tmp_path: Path) -> None:
    written(tmp_path, table, "mini", "seeds=[3]")
    for suffix in ("tex", "csv", "md"):
        text = text_of(tmp_path, f"{table}.{suffix}")
        published = ("LAVT", "(paper)", "72.73", "difference", "68.14", "ResNet-50")
        assert not any(word in text for word in published)
        if suffix != "csv":
            facts = ("profile mini, seed 3", "procedural benchmark", "not comparable")
            assert all(fact in text for fact in (*facts, "mIoU is", "oIoU the"))


# Tables 2-4.


def test_tables_2_to_4_are_of_13_runs_and_one_of_ours() -> None:
    runs = [runs_of(table, params_of("paper")) for table in TABLES[1:]]
    assert [len(of_table) for of_table in runs] == [7, 6, 5]
    assert len({run for of_table in runs for run in of_table}) == 14


def test_table2_has_a_row_per_number_of_queries(tmp_path: Path) -> None:
    heads, *rows = written(tmp_path, "table2", "mini")
    assert heads == ["N_q", "mIoU", "oIoU", *PRECISIONS]
    assert [row[0] for row in rows] == ["32", "24", "16", "8", "4", "2", "1"]
    assert [row[1] for row in rows] == [f"{value}.00" for value in range(51, 82, 5)]
    assert rows[0] == ["32", "51.00", *FALLING]
    tex = text_of(tmp_path, "table2.tex")
    assert rf"$N_q$ & mIoU & oIoU & {' & '.join(PRECISIONS)} \\" in tex
    assert rf"32 & 51.00 & {' & '.join(FALLING)} \\" in tex


def test_table3_pairs_the_runs_with_and_without_mmp(tmp_path: Path) -> None:
    rows = written(tmp_path, "table3", "mini")
    assert [row[:3] for row in rows] == [
        ["N_q", "MMP", "mIoU"],
        ["24", "✓", "51.00"],
        ["24", "✗", "66.00"],
        ["16", "✓", "56.00"],
        ["16", "✗", "71.00"],
        ["8", "✓", "61.00"],
        ["8", "✗", "76.00"],
    ]
    tex = text_of(tmp_path, "table3.tex")
    assert tex.count(r"\addlinespace") == 2
    assert r"24 & $\surd$ & 51.00" in tex
    assert r"24 & $\times$ & 66.00" in tex


def test_table4_has_a_row_per_switch(tmp_path: Path) -> None:
    rows = written(tmp_path, "table4", "mini")
    assert [row[:3] for row in rows] == [
        ["f_vg", "MQE", "mIoU"],
        ["✓", "✓", "51.00"],
        ["✓", "✗", "56.00"],
        ["✗", "✓", "66.00"],
        ["✗", "✗", "71.00"],
        ["✓", "✗, mean", "61.00"],
    ]
    assert ", N_q = 24, 10 epochs" in text_of(tmp_path, "table4.md")
    assert ", $N_q$ = 24, 10 epochs" in text_of(tmp_path, "table4.tex")


def test_the_mean_of_the_masks_is_a_row_of_ours_below_the_papers(tmp_path: Path) -> None:
    rows = written(tmp_path, "table4", "paper")
    assert [row[2] for row in rows[1:]] == ["ours", "published", "difference"] * 4 + ["ours"]
    assert rows[-1][:4] == ["✓", "✗, mean", "ours", "61.00"]
    tex = text_of(tmp_path, "table4.tex")
    assert tex.index(r"\midrule", tex.index("difference")) < tex.index(r"$\times$, mean & ours")
    assert "The last row is ours" in text_of(tmp_path, "table4.md")
    csv = text_of(tmp_path, "table4.csv")
    assert "MMNet (this run) w/o MQE (mean of the masks),RN50,refcoco+,testA,mIoU,61.00" in csv
    written(tmp_path, "table2", "paper")
    assert "is ours" not in text_of(tmp_path, "table2.md")


def test_a_row_is_identified_by_its_switches_not_by_its_name(tmp_path: Path) -> None:
    swapped = [
        "experiments.no_mqe.model={num_queries: 24, f_vg: false}",
        "experiments.no_f_vg.model={num_queries: 24, mqe: false}",
    ]
    rows = written(tmp_path, "table4", "paper", *swapped)[1:]
    assert rows[3][:4] == ["✗", "✓", "ours", "56.00"]
    assert rows[4][:4] == ["✗", "✓", "published", "66.69"]
    assert rows[7][:4] == ["✓", "✗", "published", "67.32"]


def test_paper_profile_sets_published_and_difference_below_ours(tmp_path: Path) -> None:
    heads, *rows = written(tmp_path, "table2", "paper")
    assert heads == ["N_q", "", "mIoU", "oIoU", *PRECISIONS]
    assert len(rows) == 7 * 3
    assert rows[:3] == [
        ["32", "ours", "51.00", *FALLING],
        ["32", "published", "67.26", "--", "79.45", "75.58", "68.71", "52.65", "14.91"],
        ["32", "difference", "-16.26", "--", "-32.45", "-30.58", "-25.71", "-11.65", "+24.09"],
    ]
    assert rows[-1][:3] == ["1", "difference", "+15.58"]  # 81.00 and 65.42
    tex = text_of(tmp_path, "table2.tex")
    assert r" & difference & $-$16.26 & -- & $-$32.45 & " in tex
    assert "32 & ours & 51.00" in tex
    for text in (tex, text_of(tmp_path, "table2.md")):
        assert "compared with mIoU" in text
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


def test_csv_of_an_ablation_has_the_published_rows_and_ours(tmp_path: Path) -> None:
    written(tmp_path, "table3", "paper", "seeds=[0, 1]")
    lines = text_of(tmp_path, "table3.csv").splitlines()
    for line in (
        "table3,MMNet w/o MMP N_q=16,ResNet-50,refcoco+,testA,IoU,66.65,,published,",
        "table3,MMNet (this run) w/o MMP N_q=16,RN50,refcoco+,testA,mIoU,71.10,1,paper,",
    ):
        assert lines.count(line) == 1, line
    assert len(lines) == 1 + 6 * 6 + 6 * 2 * len(METRICS)


def test_only_table4_of_the_paper_speaks_of_lost_check_marks(tmp_path: Path) -> None:
    for profile, table in (("paper", "table4"), ("paper", "table3"), ("mini", "table4")):
        written(tmp_path / profile, table, profile)
        for suffix in ("tex", "md"):
            said = "check marks" in text_of(tmp_path / profile, f"{table}.{suffix}")
            assert said == ((profile, table) == ("paper", "table4"))


# Marks of what the seeds do not resolve.


RESOLVED = {"nq_1": 0.3, "nq_8_no_mmp": 0.3, "no_f_vg": 0.3}
"""Experiments that lie far from the others, by so much."""


def mixed(experiment: str, split: str, rows: pd.DataFrame) -> Floats:
    ious = np.random.default_rng(0).uniform(0.2, 0.65, len(rows))
    return ious + RESOLVED.get(experiment, 0)


@pytest.mark.parametrize(
    ("table", "marked"),
    [
        ("table2", ["32", "16", "8", "4", "2"]),
        ("table3", ["24 ✗", "16 ✗"]),
        ("table4", ["✓ ✗", "✗ ✗", "✓ ✗, mean"]),
    ],
)
@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_differences_that_the_seeds_do_not_resolve_are_marked(
    table: str, marked: list[str], profile: str, tmp_path: Path
) -> None:
    params = params_of(profile, "seeds=[0, 1, 2]")
    bench = Bench(tmp_path, params, mixed, images=40, trainings=0.02)
    scores = bench.scores(table)
    write_table(table, scores, tmp_path, params=params, rows_of=bench.path)
    heads, *rows = table_rows(tmp_path, table)
    column = heads.index("mIoU")
    labels = [" ".join(row[: 1 if table == "table2" else 2]) for row in rows]
    assert [la for la, row in zip(labels, rows, strict=True) if "†" in row[column]] == marked
    text = text_of(tmp_path, f"{table}.md")
    assert "†: the 95% interval of the difference from the row" in text
    tex = text_of(tmp_path, f"{table}.tex")
    assert tex.count(r"}^{\dagger}$") == text.count("†") - 1
    frame = pd.read_csv(tmp_path / f"{table}.csv", keep_default_na=False)
    found = frame[(frame["metric"] == "mIoU") & (frame["profile"] == profile)]
    counts = found["resolved"].value_counts()
    references = {"table2": 1, "table3": 3, "table4": 1}[table]
    assert counts.to_dict() == {"False": 3 * len(marked), "True": 3, "": 3 * references}


def test_what_is_not_marked_is_explained(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]")
    bench = Bench(tmp_path, params, mixed, trainings=0.02)
    unmarked = []
    for rows_of in (bench.path, None):
        write_table("table2", bench.scores("table2"), tmp_path, params=params, rows_of=rows_of)
        unmarked.append(text_of(tmp_path, "table2.md"))
        assert set(pd.read_csv(tmp_path / "table2.csv")["resolved"].isna()) == {True}
    assert unmarked[0] == unmarked[1]
    assert "†" not in unmarked[0]
    assert "not marked: that needs 3 seeds or more" in unmarked[0]

    params = params_of("mini", "seeds=[0, 1, 2]", "allow_missing=true")
    scores = make_scores(params, tmp_path / "scores", "table2")
    write_table("table2", scores, tmp_path, params=params)
    assert "not marked: that needs the rows per sentence" in text_of(tmp_path, "table2.md")
    # Without a third training of the reference, nothing can be held against it.
    write_table("table2", scores, tmp_path, params=params, rows_of=bench.path)
    assert "not marked: no row with 3 trainings has such a reference" in text_of(
        tmp_path, "table2.md"
    )


PUBLISHED = {
    ("table2", "MMNet N_q=32"): "67.26 79.45 75.58 68.71 52.65 14.91",
    ("table2", "MMNet N_q=24"): "68.14 80.51 76.89 70.22 52.99 15.46",
    ("table2", "MMNet N_q=16"): "67.59 79.86 75.82 69.03 52.71 14.80",
    ("table2", "MMNet N_q=8"): "66.85 78.69 75.03 68.05 52.55 14.83",
    ("table2", "MMNet N_q=4"): "66.13 78.08 74.39 68.54 52.12 14.29",
    ("table2", "MMNet N_q=2"): "65.80 77.53 74.19 68.13 51.87 14.39",
    ("table2", "MMNet N_q=1"): "65.42 76.62 72.73 66.26 51.41 13.84",
    ("table3", "MMNet N_q=24"): "68.14 80.51 76.89 70.22 52.99 15.46",
    ("table3", "MMNet N_q=16"): "67.59 79.86 75.82 69.03 52.71 14.80",
    ("table3", "MMNet N_q=8"): "66.85 78.69 75.03 68.05 52.55 14.83",
    ("table3", "MMNet w/o MMP N_q=24"): "66.82 78.59 74.90 68.78 52.28 15.18",
    ("table3", "MMNet w/o MMP N_q=16"): "66.65 78.24 74.85 67.91 50.56 13.87",
    ("table3", "MMNet w/o MMP N_q=8"): "66.09 77.38 73.89 67.05 49.60 13.41",
    ("table4", "MMNet (paper)"): "68.14 80.51 76.89 70.22 52.99 15.46",
    ("table4", "MMNet w/o MQE"): "67.32 79.22 75.83 69.39 53.48 14.91",
    ("table4", "MMNet w/o f_vg"): "66.69 78.54 75.35 69.03 52.43 14.73",
    ("table4", "MMNet w/o f_vg and MQE"): "66.17 77.46 74.07 67.91 51.91 14.38",
}


def test_published_ablations_are_the_papers() -> None:
    found = {}
    for table in TABLES[1:]:
        for method, rows in published_rows(table).groupby("method"):
            assert list(rows["metric"]) == ["IoU", *PRECISIONS]
            found[table, method] = " ".join(f"{value:.2f}" for value in rows["value"])
    assert found == PUBLISHED


@pytest.mark.parametrize("table", TABLES[1:])
def test_every_published_row_stands_below_one_of_ours(table: str, tmp_path: Path) -> None:
    rows = written(tmp_path, table, "paper")
    shown = [float(row[-7]) for row in rows if "published" in row]
    frame = published_rows(table)
    assert shown == list(frame.loc[frame["metric"] == "IoU", "value"])


def test_rows_that_the_paper_lacks_have_dashes_for_its_numbers(tmp_path: Path) -> None:
    switches = {"nq_24": "", "no_mqe": ", mqe: false", "no_f_vg": ", f_vg: false"}
    switches["no_mqe_mean"] = ", mqe: false, unscored_masks: mean"
    switches["no_mqe_no_f_vg"] = ", mqe: false, f_vg: false"
    another = [
        f"experiments.{name}.model={{num_queries: 5{off}}}" for name, off in switches.items()
    ]
    rows = written(
        tmp_path, "table2", "paper", "experiments.nq_32.model={num_queries: 12}", *another
    )
    assert [row[:3] for row in rows[1::3]][:3] == [
        ["12", "ours", "51.00"],
        ["5", "ours", "56.00"],
        ["16", "ours", "61.00"],
    ]
    assert [row[2:] for row in rows[2:4]] == [DASHES] * 2
    assert rows[8][2] == "67.59"
    # N_q is no column of Table 4, but its published rows are of 24.
    rows = written(tmp_path, "table4", "paper", *another)[1:]
    assert {tuple(row[3:]) for row in rows if row[2] != "ours"} == {tuple(DASHES)}
    tower = "profiles.paper.towers.rn50.architecture=RN101-quickgelu"
    assert written(tmp_path, "table2", "paper", tower)[2][2:] == DASHES


def test_what_else_differs_between_rows_is_in_the_caption(tmp_path: Path) -> None:
    written(tmp_path, "table2", "mini", "experiments.nq_8.train={epochs: 9, workers: 0}")
    text = text_of(tmp_path, "table2.md")
    assert text.count(" has ") == 1
    assert "nq_8 has train.epochs 9, nq_32 10" in text
    runs = runs_of("table2", params_of("mini"))
    written(tmp_path, "table2", "mini", *(f"experiments.{n}.model.mqe=false" for n, _ in runs))
    assert "without MQE" in text_of(tmp_path, "table2.md")


# TeX, and what is imported.


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on the PATH")
@pytest.mark.parametrize("profile", ["mini", "paper"])
@pytest.mark.parametrize("seeds", ["[0]", "[0, 1, 2]"])
def test_pdflatex_sets_the_tables_within_the_page(profile: str, seeds: str, tmp_path: Path) -> None:
    labels = [
        rf'profiles.{profile}.towers.{tower}.label="50% of A_b & {{C}} #1 ~^$ \\x"'
        for tower in ("vit_b", "rn50")
    ]
    params = params_of(profile, f"seeds={seeds}", "allow_missing=true", *labels)
    for table in TABLES:
        write_table(table, make_scores(params, tmp_path, table)[:-1], tmp_path, params=params)
    inputs = "".join(f"\\input{{{table}}}" for table in TABLES)
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}"
        f"\n\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    log = (tmp_path / "page.log").read_text(errors="replace")
    assert not any(word in log for word in ("Overfull", "Underfull", "Missing character"))
    assert "Output written on page.pdf" in log


def test_the_report_never_imports_torch() -> None:
    modules = [
        "tables.write",
        "pages.data",
        "claims.write",
        "figures.figure4",
        "figures.mask_figures",
    ]
    names = ", ".join(["mmnet.evaluate.selection", *(f"mmnet.report.{name}" for name in modules)])
    subprocess.run(
        [sys.executable, "-c", f"import sys, {names}; sys.exit('torch' in sys.modules)"], check=True
    )
