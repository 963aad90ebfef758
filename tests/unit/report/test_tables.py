"""Tables 1-4 from hand-made scores: exact cells, refusals, and a page that pdflatex sets.

The report on the data, from hand-made tables counted by hand.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mmnet.config.load import load_params
from mmnet.config.schema import Params
from mmnet.config.tables import TABLES, check_rows, experiments_of, runs_of
from mmnet.report.pages.data import write_data_report
from mmnet.report.tables.ablations import write_ablation, write_table2, write_table3, write_table4
from mmnet.report.tables.common import published_rows
from mmnet.report.tables.table1 import write_table1
from mmnet.runtime.errors import ConfigError, DataError
from support.project import copy_project, planned, snakemake
from support.results import hand_made_tables
from support.tiny import ROOT, Tiny

NAMES = ("table1.tex", "table1.csv", "table1.md")
METRICS = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9")


def params_of(profile: str, seeds: str = "[0]", *overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [f"profile={profile}", f"seeds={seeds}", *overrides])


def hand_made(params: Params, folder: Path, table: str = "table1") -> list[Path]:
    """One score file for each run of a table: a different number in every cell."""
    paths = []
    for number, experiment in enumerate(experiments_of(table, params)):
        for seed in params.seeds:
            config = params.resolve(experiment, seed)
            splits: dict[str, Any] = {}
            for column, split in enumerate(config.dataset.splits):
                first = 0.5 + 0.05 * number + 0.01 * column + 0.001 * seed
                values = {metric: first - 0.02 * i for i, metric in enumerate(METRICS)}
                splits[split] = {"sentences": 1000 + column, **values}
            path = folder / params.profile / experiment / f"seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            scores = {
                "profile": params.profile,
                "experiment": experiment,
                "seed": seed,
                "dataset": config.dataset_name,
                "backbone": config.tower.label,
                "epoch": 7,
                "splits": splits,
            }
            path.write_text(json.dumps(scores))
            paths.append(path)
    return paths


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write(table: str, paths: list[Path], folder: Path, params: Params) -> None:
    if table == "table1":
        write_table1(paths, folder, params=params)
    else:
        write_ablation(table, paths, folder, params=params)


def refusal(paths: list[Path], folder: Path, params: Params, table: str = "table1") -> str:
    """The one line that refuses, after checking that nothing was written."""
    with pytest.raises((ConfigError, DataError)) as caught:
        write(table, paths, folder / "results", params)
    assert not (folder / "results").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(folder: Path, table: str = "table1") -> list[list[str]]:
    lines = (folder / f"{table}.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_cells_are_the_scores_in_percent(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    heads, _, *rows = rows_of(tmp_path)
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
    params = params_of("mini", "[0, 1]")
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    text = (tmp_path / "table1.csv").read_text()
    assert text.startswith("table,method,backbone,dataset,split,metric,value,seed,profile\n")
    assert "table1,MMNet (this run),mini ViT-B,refcoco+,testA,Pr@0.9,49.10,1,mini\n" in text
    frame = pd.read_csv(tmp_path / "table1.csv")
    # Two towers, eight columns, two seeds.
    assert len(frame) == 2 * 8 * 2 * len(METRICS)
    assert list(frame["metric"].unique()) == list(METRICS)


def test_several_seeds_give_mean_and_sample_deviation(tmp_path: Path) -> None:
    params = params_of("mini", "[0, 1, 2]")
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    assert rows_of(tmp_path)[2][3] == "50.10 ± 0.10"
    assert r"50.10$_{\pm 0.10}$" in (tmp_path / "table1.tex").read_text()
    assert "seeds 0, 1, 2" in (tmp_path / "table1.md").read_text()


def test_order_of_the_score_files_changes_nothing(tmp_path: Path) -> None:
    params = params_of("paper", "[0, 1]")
    scores = hand_made(params, tmp_path)
    write_table1(scores, tmp_path / "a", params=params)
    write_table1(scores[::-1], tmp_path / "b", params=params)
    for name in NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(NAMES)


def test_paper_profile_has_the_published_rows_above_ours(tmp_path: Path) -> None:
    params = params_of("paper")
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    rows = rows_of(tmp_path)[2:]
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
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    for name in NAMES:
        text = (tmp_path / name).read_text()
        assert not any(word in text for word in ("LAVT", "(paper)", "72.73"))
    for name in ("table1.tex", "table1.md"):
        text = (tmp_path / name).read_text()
        assert "numbers from the procedural benchmark, not comparable with published" in text


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_caption_names_profile_metrics_and_seeds(profile: str, tmp_path: Path) -> None:
    params = params_of(profile, "[3]")
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    for name in ("table1.tex", "table1.md"):
        text = (tmp_path / name).read_text()
        assert all(word in text for word in (f"profile {profile}", "seed 3", "mIoU is", "oIoU the"))


def test_published_tables_2_to_4_share_their_rows() -> None:
    best = {}
    for table, method, count in (
        ("table2", "MMNet N_q=24", 7),
        ("table3", "MMNet N_q=24", 6),
        ("table4", "MMNet (paper)", 4),
    ):
        frame = published_rows(table)
        assert len(frame) == count * 6
        best[table] = list(frame[frame["method"] == method]["value"])
    assert best["table2"] == best["table3"] == best["table4"]
    assert best["table2"] == [68.14, 80.51, 76.89, 70.22, 52.99, 15.46]


def test_missing_runs_are_named(tmp_path: Path) -> None:
    params = params_of("mini", "[0, 1]")
    scores = hand_made(params, tmp_path)
    message = refusal([scores[0], *scores[2:-1]], tmp_path, params)
    assert "refcoco_vit_b seed 1, refcocog_vit_l seed 1." in message
    assert "not found" in refusal([*scores, tmp_path / "scores.json"], tmp_path, params)


def test_scores_of_another_profile_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path)
    change(scores[2], profile="paper")
    assert "profile 'paper', but the table is of 'mini'" in refusal(scores, tmp_path, params)


def test_scores_on_other_data_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path)
    splits = json.loads(scores[1].read_text())["splits"]
    change(scores[1], splits={**splits, "testA": {**splits["testA"], "sentences": 999}})
    assert (
        "refcoco testA: refcoco_vit_l seed 0 has 999 sentences, refcoco_vit_b seed 0 1001"
        in refusal(scores, tmp_path, params)
    )
    change(scores[1], splits={"val": splits["val"]})
    assert "has splits ['val'], params.yaml" in refusal(scores, tmp_path, params)
    change(scores[1], splits=splits, dataset="refcocog")
    assert "has dataset 'refcocog', params.yaml 'refcoco'" in refusal(scores, tmp_path, params)
    change(scores[1], dataset="refcoco", backbone="ViT-X")
    assert "has backbone 'ViT-X', params.yaml 'mini ViT-L'" in refusal(scores, tmp_path, params)


def test_runs_out_of_place_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path)
    assert "given twice" in refusal([*scores, scores[0]], tmp_path, params)
    change(scores[0], seed=5)
    assert "refcoco_vit_b seed 5 is no run of table1" in refusal(scores, tmp_path, params)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "the file: "),
        ("{}", "profile: Field required"),
    ],
)
def test_a_damaged_score_file_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path)
    scores[0].write_text(text)
    message = refusal(scores, tmp_path, params)
    assert str(scores[0]) in message
    assert reason in message


@pytest.mark.parametrize("value", [51.2, -0.1, None, "0.5", float("nan")])
def test_a_metric_that_is_no_fraction_is_refused(value: object, tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path)
    splits = json.loads(scores[0].read_text())["splits"]
    splits["val"]["Pr@0.7"] = value
    change(scores[0], splits=splits)
    assert f"splits.val: Pr@0.7 is {value!r}" in refusal(scores, tmp_path, params)


def test_two_experiments_for_one_row_are_refused(tmp_path: Path) -> None:
    twin = "experiments.twin={tables: [table1], dataset: refcoco, tower: vit_b}"
    params = params_of("mini", "[0]", twin)
    message = refusal(hand_made(params, tmp_path), tmp_path, params)
    assert "experiments refcoco_vit_b and twin are both mini ViT-B on refcoco" in message


def test_no_experiment_of_table1_is_refused(tmp_path: Path) -> None:
    params = params_of("mini", "[0]", "experiments={}")
    assert "no experiment has table1" in refusal([], tmp_path, params)


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
    write(table, hand_made(params, tmp_path, table)[:-1], tmp_path, params)
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
    ["mmnet.report.tables.table1", "mmnet.report.tables.ablations", "mmnet.report.pages.data"],
)
def test_the_report_never_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
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
    write_table2(hand_made(params, tmp_path, "table2"), tmp_path, params=params)
    heads, _, *rows = rows_of(tmp_path, "table2")
    assert heads == ["N_q", "mIoU", "oIoU", *PRECISIONS]
    assert [row[0] for row in rows] == ["32", "24", "16", "8", "4", "2", "1"]
    assert [row[1] for row in rows] == [f"{value}.00" for value in range(51, 82, 5)]
    assert rows[0] == ["32", "51.00", *FALLING]
    tex = (tmp_path / "table2.tex").read_text()
    assert rf"$N_q$ & mIoU & oIoU & {' & '.join(PRECISIONS)} \\" in tex
    assert rf"32 & 51.00 & {' & '.join(FALLING)} \\" in tex


def test_table3_pairs_the_runs_with_and_without_mmp(tmp_path: Path) -> None:
    params = params_of("mini")
    write_table3(hand_made(params, tmp_path, "table3"), tmp_path, params=params)
    heads, _, *rows = rows_of(tmp_path, "table3")
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
    write_table4(hand_made(params, tmp_path, "table4"), tmp_path, params=params)
    heads, _, *rows = rows_of(tmp_path, "table4")
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
    params = params_of("paper", "[0]", *swapped)
    write_table4(hand_made(params, tmp_path, "table4"), tmp_path, params=params)
    rows = rows_of(tmp_path, "table4")[2:]
    assert rows[3][:4] == ["✗", "✓", "ours", "56.00"]
    assert rows[4][:4] == ["✗", "✓", "published", "66.69"]
    assert rows[7][:4] == ["✓", "✗", "published", "67.32"]


def test_paper_profile_sets_published_and_difference_beside_ours(tmp_path: Path) -> None:
    params = params_of("paper")
    write_table2(hand_made(params, tmp_path, "table2"), tmp_path, params=params)
    heads, _, *rows = rows_of(tmp_path, "table2")
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
    params = params_of("paper", "[0, 1, 2]")
    scores = hand_made(params, tmp_path, "table4")
    for path, value in zip(scores, (0.6814, 0.68139, 0.681405), strict=False):
        splits = json.loads(path.read_text())["splits"]
        change(path, splits=splits | {"testA": splits["testA"] | {"mIoU": value}})
    write_table4(scores, tmp_path, params=params)
    rows = rows_of(tmp_path, "table4")[2:]
    assert [row[3] for row in rows[:3]] == ["68.14 ± 0.00", "68.14", "+0.00"]
    # 56.00, 56.10, 56.20 and 67.32.
    assert [row[3] for row in rows[3:6]] == ["56.10 ± 0.10", "67.32", "-11.22"]
    assert r"56.10$_{\pm 0.10}$" in (tmp_path / "table4.tex").read_text()


def test_csv_of_an_ablation_has_the_published_rows_and_ours(tmp_path: Path) -> None:
    params = params_of("paper", "[0, 1]")
    write_table3(hand_made(params, tmp_path, "table3"), tmp_path, params=params)
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
    params = params_of("mini", "[3]")
    write(table, hand_made(params, tmp_path, table), tmp_path, params)
    for suffix in ("tex", "csv", "md"):
        text = (tmp_path / f"{table}.{suffix}").read_text()
        assert not any(word in text for word in ("difference", "68.14", "ResNet-50"))
    for suffix in ("tex", "md"):
        text = (tmp_path / f"{table}.{suffix}").read_text()
        assert "Ours, profile mini, seed 3: numbers from the procedural benchmark, not" in text


def test_only_table4_of_the_paper_speaks_of_lost_check_marks(tmp_path: Path) -> None:
    for profile, table in (("paper", "table4"), ("paper", "table3"), ("mini", "table4")):
        params, folder = params_of(profile), tmp_path / profile / table
        write(table, hand_made(params, folder, table), folder, params)
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
        write(table, hand_made(params, tmp_path / table, table), tmp_path, params)
        shown = [row for row in rows_of(tmp_path, table) if "published" in row]
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
    params = params_of("paper", "[0]", *another)
    dashes = ["--"] * 7
    for table in ("table2", "table4"):
        write(table, hand_made(params, tmp_path / table, table), tmp_path, params)
    rows = rows_of(tmp_path, "table2")[2:]
    assert [row[:3] for row in rows[::3]][:3] == [
        ["12", "ours", "51.00"],
        ["5", "ours", "56.00"],
        ["16", "ours", "61.00"],
    ]
    assert [row[2:] for row in rows[1:3]] == [dashes] * 2
    assert rows[7][2] == "67.59"
    # N_q is no column of Table 4, but its published rows are of 24.
    assert {tuple(row[3:]) for row in rows_of(tmp_path, "table4")[2:] if row[2] != "ours"} == {
        tuple(dashes)
    }


def test_another_tower_has_no_published_rows(tmp_path: Path) -> None:
    params = params_of("paper", "[0]", "profiles.paper.towers.rn50.architecture=RN101-quickgelu")
    write_table2(hand_made(params, tmp_path, "table2"), tmp_path, params=params)
    assert rows_of(tmp_path, "table2")[3][2:] == ["--"] * 7


def test_what_else_differs_between_rows_is_in_the_caption(tmp_path: Path) -> None:
    longer = "experiments.nq_8.train={epochs: 9, threads: 2}"
    params = params_of("mini", "[0]", longer)
    write_table2(hand_made(params, tmp_path, "table2"), tmp_path, params=params)
    text = (tmp_path / "table2.md").read_text()
    assert text.count(" has ") == 1
    assert " nq_8 has train.epochs 9, nq_32 3." in text
    off = [f"experiments.{name}.model.mqe=false" for name, _ in runs_of("table2", params)]
    params = params_of("mini", "[0]", *off)
    write_table2(hand_made(params, tmp_path / "off", "table2"), tmp_path, params=params)
    assert "mini RN50, without MQE, 3 epochs" in (tmp_path / "table2.md").read_text()


@pytest.mark.parametrize(
    ("table", "override", "message"),
    [
        (
            "table2",
            "experiments.nq_16.model.num_queries=24",
            "experiments nq_24 and nq_16 are both num_queries 24, one row of table2. Take table2",
        ),
        (
            "table4",
            "experiments.no_mqe.model.mqe=true",
            "experiments nq_24 and no_mqe are both f_vg True, mqe True, one row of table4.",
        ),
        (
            "table4",
            "experiments.no_mqe.model.num_queries=8",
            "experiments nq_24 and no_mqe of table4 have model.num_queries 24 and 8, which the",
        ),
        (
            "table2",
            "experiments.nq_8.model.f_vg=false",
            "experiments nq_32 and nq_8 of table2 have model.f_vg True and False, which the table",
        ),
        (
            "table3",
            "experiments.nq_8.tower=vit_b",
            "experiments nq_24 and nq_8 of table3 have tower rn50 and vit_b, which the table does",
        ),
        (
            "table2",
            "experiments.nq_8.dataset=refcoco",
            "experiments nq_32 and nq_8 of table2 have dataset refcoco+ and refcoco, which the",
        ),
        (
            "table1",
            "experiments.refcocog_vit_l.evaluate={threshold: 0.5}",
            "refcoco_vit_b and refcocog_vit_l of table1 have evaluate.threshold 0.35 and 0.5,",
        ),
        (
            "table2",
            "profiles.mini.datasets.refcoco+.splits=[val, testB]",
            "table2 shows testA, which profiles.mini.datasets.refcoco+.splits lacks. Add it",
        ),
    ],
)
def test_what_a_table_cannot_compare_is_refused(
    table: str, override: str, message: str, tmp_path: Path
) -> None:
    params = params_of("mini", "[0]", override)
    assert message in refusal(hand_made(params, tmp_path, table), tmp_path, params, table)
    with pytest.raises(ConfigError):  # before any job
        check_rows(table, params)


def test_an_ablations_scores_on_other_sentences_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path, "table3")
    splits = json.loads(scores[2].read_text())["splits"]
    change(scores[2], splits={**splits, "testA": {**splits["testA"], "sentences": 7}})
    assert (
        "refcoco+ testA: nq_8 seed 0 has 7 sentences, nq_24 seed 0 1001. Evaluate both"
        in refusal(scores, tmp_path, params, "table3")
    )
    change(scores[2], profile="paper", splits=splits)
    assert "profile 'paper', but the table" in refusal(scores, tmp_path, params, "table3")
    change(scores[2], profile="mini", experiment="nq_1")
    assert "nq_1 seed 0 is no run of table3" in refusal(scores, tmp_path, params, "table3")


def test_scores_of_other_values_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    scores = hand_made(params, tmp_path, "table2")
    config = params.resolve("nq_16", 0)
    change(scores[2], config=config.identity())
    write_table2(scores, tmp_path, params=params)
    train = config.train.model_copy(update={"epochs": 1})
    change(scores[2], config=config.model_copy(update={"train": train}).identity())
    message = refusal(scores, tmp_path, params, "table2")
    assert "nq_16 seed 0 was run with other values than params.yaml has now" in message


# Missing runs.


@pytest.mark.parametrize("table", TABLES)
def test_missing_runs_are_refused_all_in_one_line(table: str, tmp_path: Path) -> None:
    params = params_of("mini", "[0, 1]")
    scores = hand_made(params, tmp_path, table)
    first, last = [runs_of(table, params)[i] for i in (0, -1)]
    message = refusal(scores[1:-1], tmp_path, params, table)
    assert f"no scores of {first[0]} seed 0, {last[0]} seed 1. Train" in message
    assert "Or set allow_missing: true" in message


def test_missing_runs_are_dashes_and_named_where_allowed(tmp_path: Path) -> None:
    params = params_of("paper", "[0]", "allow_missing=true")
    scores = hand_made(params, tmp_path, "table2")
    write_table2([*scores[:3], *scores[4:6]], tmp_path, params=params)
    rows = rows_of(tmp_path, "table2")[2:]
    assert [row[0] for row in rows[::3]] == ["32", "24", "16", "8", "4", "2", "1"]
    assert rows[9] == ["8", "ours", *["--"] * 7]
    assert rows[10][2] == "66.85"
    assert rows[11] == ["8", "difference", *["--"] * 7]
    assert rows[0][2] == "51.00"
    assert " Missing, dashed: nq_8 seed 0, nq_1 seed 0." in (tmp_path / "table2.md").read_text()
    tex = (tmp_path / "table2.tex").read_text()
    assert r" Missing, dashed: nq\_8 seed 0, nq\_1 seed 0." in tex
    assert "8 & ours & -- & --" in tex
    frame = pd.read_csv(tmp_path / "table2.csv")
    missing = frame[frame["value"].isna()]
    assert set(missing["method"]) == {"MMNet (this run) N_q=8", "MMNet (this run) N_q=1"}
    assert len(missing) == 2 * len(METRICS)
    write_table2(scores, tmp_path, params=params)
    assert "Missing" not in (tmp_path / "table2.md").read_text()


def test_a_missing_seed_leaves_the_others(tmp_path: Path) -> None:
    params = params_of("mini", "[0, 1, 2]", "allow_missing=true")
    scores = hand_made(params, tmp_path, "table4")
    # nq_24 has seeds 0 and 2, no_mqe seed 1 alone, no_f_vg none.
    write_table4([scores[0], scores[2], scores[4], *scores[9:]], tmp_path, params=params)
    rows = rows_of(tmp_path, "table4")[2:]
    # 51.00 and 51.20 spread by 0.2 / sqrt(2).
    assert [row[2] for row in rows] == ["51.10 ± 0.14", "56.10", "--", "66.10 ± 0.10"]
    assert (
        " Missing, so that a cell is over the other seeds, or dashed: nq_24 seed 1, no_mqe seed 0, "
        "no_mqe seed 2, no_f_vg seed 0, no_f_vg seed 1, no_f_vg seed 2."
    ) in (tmp_path / "table4.md").read_text()


def test_a_missing_run_of_table1_is_a_row_of_dashes(tmp_path: Path) -> None:
    params = params_of("mini", "[0]", "allow_missing=true")
    scores = hand_made(params, tmp_path)
    # The smaller tower has no run left, the larger one lacks RefCOCO's.
    write_table1([scores[3], scores[5]], tmp_path, params=params)
    rows = rows_of(tmp_path)[2:]
    assert [row[1] for row in rows] == ["mini ViT-B", "mini ViT-L"] * 2
    assert rows[0][3:] == ["--"] * 8
    assert rows[1][3:] == ["--", "--", "--", "65.00", "66.00", "67.00", "75.00", "76.00"]
    assert "Missing, dashed: refcoco_vit_b seed 0," in (tmp_path / "table1.md").read_text()


# The rules.

ALL = [f"results/{table}.tex" for table in TABLES]
ALLOWED = ("--config", "allow_missing=true")


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """A clone to which three of the 19 runs' scores have been copied, and nothing else."""
    folder = copy_project(tmp_path, tiny=False)
    made = hand_made(params_of("mini"), tmp_path / "scores", "table4")
    made[0].unlink()
    return folder


@pytest.mark.xdist_group("workflow")
def test_by_default_the_rules_train_what_is_missing(half_done: Path) -> None:
    plan = planned(snakemake(half_done, "-n", *ALL))
    assert {f"write_{table}": plan[f"write_{table}"] for table in TABLES} == dict.fromkeys(
        [f"write_{table}" for table in TABLES], 1
    )
    # Shared runs once: 6 + 13.
    assert plan["train_mmnet"] == 19


@pytest.mark.xdist_group("workflow")
def test_with_allow_missing_the_rules_train_nothing(half_done: Path) -> None:
    target = "results/table4.tex"
    plan = {"write_table4": 1}
    assert planned(snakemake(half_done, "-n", target, *ALLOWED)) == plan
    done = snakemake(half_done, "--cores", "1", target, *ALLOWED)
    assert done.returncode == 0, done.stderr
    assert "Missing, dashed: nq_24 seed 0." in (half_done / "results/table4.md").read_text()
    assert planned(snakemake(half_done, "-n", target, *ALLOWED)) == {}
    # Other scores, and a run more, write the table anew; another value trains nothing either.
    scores = half_done / "scores/mini/no_mqe/seed0.json"
    scores.write_text(scores.read_text() + "\n")
    assert planned(snakemake(half_done, "-n", target, *ALLOWED)) == plan
    time.sleep(0.01)
    rows = half_done / "rows/mini/no_mqe/seed0.parquet"
    rows.parent.mkdir(parents=True)
    rows.touch()  # newer than the scores
    another = 'experiments={"no_mqe": {"train": {"epochs": 9}}}'
    assert planned(snakemake(half_done, "-n", target, *ALLOWED, another)) == plan
    # Without it, all is trained after all.
    assert planned(snakemake(half_done, "-n", target))["train_mmnet"] == 4


@pytest.mark.xdist_group("workflow")
def test_rows_that_cannot_be_compared_stop_before_any_job(half_done: Path) -> None:
    twins = 'experiments={"nq_16": {"model": {"num_queries": 24}}}'
    result = snakemake(half_done, "-n", "results/table1.tex", "--config", twins)
    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert "experiments nq_24 and nq_16 are both num_queries 24, one row of table2." in said
    assert "Traceback" not in said


# The data.


def sections(folder: Path) -> dict[str, list[list[str]]]:
    """Heading → its table's rows, the heads first."""
    found = {}
    for section in (folder / "data.md").read_text().split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert len({len(line) for line in cells}) == 1, "a ragged table"
        assert set("".join(cells[1])) == {"-", ":"}
        found[section.splitlines()[0]] = [cells[0], *cells[2:]]
    return found


def test_the_data_report_has_the_numbers_counted_by_hand(tmp_path: Path) -> None:
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params_of("mini"))
    found = sections(tmp_path)
    assert list(found) == ["Sizes", "Sentences", "Masks", "Leakage"]
    for name in ("Sizes", "Sentences", "Masks"):
        assert [row[:2] for row in found[name][1:]] == [
            *(["RefCOCO", split] for split in ("train", "val", "testA", "testB")),
            *(["RefCOCO+", split] for split in ("train", "val", "testA", "testB")),
            *(["G-Ref", split] for split in ("train", "val", "test")),
        ]
    assert [row[2:] for row in found["Sizes"][:4]] == [
        ["Refs", "Sentences", "Images", "Objects per image"],
        ["3", "6", "2", "1.00"],
        ["2", "3", "2", "1.00"],
        ["1", "2", "1", "1.00"],
    ]
    assert [row[2:] for row in found["Sentences"][:4]] == [
        ["Mean", "Median", "95th percentile", "Longest", "L", "Cut"],
        # 4, 5, 6, 6, 17, 18
        ["9.33", "6", "18", "18", "17", "1"],
        ["3.00", "3", "4", "4", "17", "0"],
        ["19.00", "19", "20", "20", "17", "2"],
    ]
    # Exactly L tokens are not cut, one more is.
    assert found["Sentences"][9][2:] == ["23.00", "23", "23", "23", "22", "3"]
    assert found["Sentences"][10][2:] == ["22.00", "22", "22", "22", "22", "0"]
    assert [row[2:] for row in found["Masks"][:4]] == [
        ["Lower quartile", "Median", "Upper quartile", "Small", "Empty"],
        # The upper quartile is halfway from 0.99 to 20.01 %.
        ["0.99%", "0.99%", "10.50%", "66.7%", "0"],
        # 0 and 1 %, which is not below 1 %.
        ["0.25%", "0.50%", "0.75%", "50.0%", "1"],
        ["5.00%", "5.00%", "5.00%", "0.0%", "0"],
    ]


def test_the_data_report_counts_images_of_evaluation_seen_in_training(tmp_path: Path) -> None:
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params_of("mini"))
    no = "0 (0.0%)"
    assert sections(tmp_path)["Leakage"] == [
        [
            "Trained on",
            *(f"RefCOCO {split}" for split in ("val", "testA", "testB")),
            *(f"RefCOCO+ {split}" for split in ("val", "testA", "testB")),
            *("G-Ref val", "G-Ref test"),
        ],
        ["RefCOCO", no, no, no, "1 (50.0%)", no, no, "1 (33.3%)", "1 (100.0%)"],
        ["RefCOCO+", "1 (50.0%)", no, no, "1 (50.0%)", no, no, "1 (33.3%)", "1 (100.0%)"],
        ["G-Ref", "1 (50.0%)", "1 (100.0%)", no, "1 (50.0%)", "1 (100.0%)", no, no, no],
        [
            *("all of them", "2 (100.0%)", "1 (100.0%)", no),
            *("2 (100.0%)", "1 (100.0%)", no, "1 (33.3%)", "1 (100.0%)"),
        ],
    ]
    assert "together leaks.\n" in (tmp_path / "data.md").read_text()


def test_the_data_report_in_long_form_has_every_number(tmp_path: Path) -> None:
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params_of("mini"))
    lines = (tmp_path / "data.csv").read_text().splitlines()
    assert lines[0] == "profile,dataset,split,measure,training,value"
    # 15 measures of 11 splits; 4 rows of 8 columns of leakage.
    assert len(lines) == 1 + 15 * 11 + 4 * 8
    for line in (
        "mini,refcoco,train,sentences,,6",
        "mini,refcoco,train,tokens_mean,,9.333333",
        "mini,refcoco,val,mask_25,,0.002500",
        "mini,refcocog,train,cut,,3",
        "mini,refcocog,val,in_training,refcoco,1",
        "mini,refcoco,val,in_training,all,2",
    ):
        assert lines.count(line) == 1, line


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_data_report_names_its_profile(profile: str, tmp_path: Path) -> None:
    params = params_of(profile)
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params)
    text = (tmp_path / "data.md").read_text()
    assert f"profile {profile} prepared: {params.active.label}" in text
    assert ("not comparable" in text) == (profile == "mini")
    assert set(pd.read_csv(tmp_path / "data.csv")["profile"]) == {profile}


def test_the_data_report_of_prepared_tables(tiny: Tiny, tmp_path: Path) -> None:
    write_data_report(list(tiny.tables.values()), tmp_path, params=tiny.params)
    found = sections(tmp_path)
    images = [int(row[4]) for row in found["Sizes"][1:]]
    assert images[:4] == [8, 3, 2, 2]
    assert images[8:] == [6, 2, 2]
    # Image-disjoint, and G-Ref has images of its own.
    assert {cell for row in found["Leakage"][1:] for cell in row[1:]} == {"0 (0.0%)"}
    assert "together leaks nothing." in (tmp_path / "data.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "data.md"]


def test_a_table_without_the_reports_columns_is_refused(tmp_path: Path) -> None:
    tables = hand_made_tables(tmp_path)
    pd.read_parquet(tables[1]).drop(columns=["tokens", "area"]).to_parquet(tables[1])
    with pytest.raises(DataError) as caught:
        write_data_report(tables, tmp_path / "results", params=params_of("mini"))
    assert str(caught.value) == (
        f"{tables[1]}: lacks area, tokens: an older version made it. Make it again: mmnet prepare "
        "refcoco+."
    )
    assert not (tmp_path / "results").exists()
