"""Table 1 from hand-made scores: exact cells, refusals, and a page that pdflatex sets.

The report on the data, from hand-made tables counted by hand.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Tiny

from mmnet.config import Params, load_params
from mmnet.errors import ConfigError, DataError
from mmnet.report.data import write_data_report
from mmnet.report.tables import published_rows, write_table1

ROOT = Path(__file__).parents[1]
NAMES = ("table1.tex", "table1.csv", "table1.md")
METRICS = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9")


def params_of(profile: str, seeds: str = "[0]", *overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [f"profile={profile}", f"seeds={seeds}", *overrides])


def hand_made(params: Params, folder: Path) -> list[Path]:
    """One score file a run: a different number in every cell."""
    paths = []
    for number, experiment in enumerate(params.experiments):
        for seed in params.seeds:
            config = params.resolve(experiment, seed)
            splits: dict[str, Any] = {}
            for column, split in enumerate(config.dataset.splits):
                first = 0.5 + 0.05 * number + 0.01 * column + 0.001 * seed
                values = {metric: first - 0.02 * i for i, metric in enumerate(METRICS)}
                splits[split] = {"sentences": 1000 + column, **values}
            path = folder / params.profile / experiment / f"seed{seed}" / "scores.json"
            path.parent.mkdir(parents=True)
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


def refusal(paths: list[Path], folder: Path, params: Params) -> str:
    """The one line that refuses, after checking that nothing was written."""
    with pytest.raises((ConfigError, DataError)) as caught:
        write_table1(paths, folder / "results", params=params)
    assert not (folder / "results").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(folder: Path) -> list[list[str]]:
    lines = (folder / "table1.md").read_text().splitlines()
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
@pytest.mark.parametrize("profile", ["mini", "paper"])
@pytest.mark.parametrize("seeds", ["[0]", "[0, 1, 2]"])
def test_pdflatex_sets_the_table_within_the_page(profile: str, seeds: str, tmp_path: Path) -> None:
    label = r'profiles.mini.towers.vit_b.label="50% of A_b & {C} #1 ~^$ \\x"'
    params = params_of(profile, seeds, label)
    write_table1(hand_made(params, tmp_path), tmp_path, params=params)
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}"
        "\n\\begin{document}\n\\input{table1}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    log = (tmp_path / "page.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "Underfull" not in log
    assert "Missing character" not in log
    assert "Output written on page.pdf (1 page" in log


@pytest.mark.parametrize("module", ["mmnet.report.tables", "mmnet.report.data"])
def test_the_report_never_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# The data.

Ref = tuple[str, int, int, int, list[int]]
"""Split, image, annotation, pixels of the mask (of 100 x 100), tokens of each sentence."""

REFCOCO: list[Ref] = [
    # Two refs of one object: 3 refs, 2 objects, 2 images. Masks of 0.99, 0.99 and 20.01 %.
    ("train", 1, 10, 99, [5, 18, 4]),
    ("train", 1, 10, 99, [17]),
    ("train", 2, 11, 2001, [6, 6]),
    ("val", 3, 12, 0, [2, 3]),
    ("val", 4, 13, 100, [4]),
    ("testA", 5, 14, 500, [20, 18]),
    ("testB", 6, 15, 500, [3]),
]
REFCOCO_PLUS: list[Ref] = [
    *(("train", image, 10 + image, 500, [3]) for image in (1, 2, 3)),
    *(("val", image, 10 + image, 500, [3]) for image in (4, 2)),
    ("testA", 5, 15, 500, [3]),
    ("testB", 6, 16, 500, [3]),
]
G_REF: list[Ref] = [
    *(("train", image, 10 + image, 500, [23]) for image in (4, 5, 9)),
    *(("val", image, 10 + image, 500, [22]) for image in (1, 7, 8)),
    ("test", 2, 12, 500, [3]),
]


def hand_made_tables(folder: Path) -> list[Path]:
    paths = []
    for name, refs in (("refcoco", REFCOCO), ("refcoco+", REFCOCO_PLUS), ("refcocog", G_REF)):
        columns = ["split", "ref_id", "ann_id", "image_id", "area", "height", "width", "tokens"]
        rows = [
            (split, ref_id, ann_id, image_id, area, 100, 100, tokens)
            for ref_id, (split, image_id, ann_id, area, lengths) in enumerate(refs)
            for tokens in lengths
        ]
        paths.append(folder / f"{name}.parquet")
        pd.DataFrame(rows, columns=columns).to_parquet(paths[-1])
    return paths


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
