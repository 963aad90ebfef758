"""Scores and experiments that a table refuses: one line, nothing written. And those it may miss."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mmnet.config.schema import Params
from mmnet.config.tables import TABLES, check_rows, runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.write import write_table
from mmnet.runtime.errors import ConfigError, DataError
from support.results import change_scores, make_scores, params_of, table_rows

# Numbers of table3's score files, seed 0.
NQ_24, NQ_8 = 0, 2


def refusal(paths: list[Path], folder: Path, params: Params, table: str = "table1") -> str:
    """The one line that refuses, after checking that nothing was written."""
    with pytest.raises((ConfigError, DataError)) as caught:
        write_table(table, paths, folder / "results", params=params)
    assert not (folder / "results").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("split", "values", "facts"),
    [
        ("", {"profile": "paper"}, ["'paper'", "'mini'"]),
        ("", {"experiment": "nq_1"}, ["nq_1 seed 0", "table3"]),
        ("", {"seed": 5}, ["nq_8 seed 5", "table3"]),
        ("", {"experiment": "nq_24"}, ["duplicate", "nq_24 seed 0"]),
        ("", {"dataset": "refcocog"}, ["dataset", "'refcocog'", "'refcoco+'"]),
        ("", {"backbone": "ViT-X"}, ["backbone", "'ViT-X'", "'mini RN50'"]),
        ("", {"splits": {"testA": {"sentences": 1001, **dict.fromkeys(METRICS, 0.5)}}}, ["splits"]),
        ("testA", {"sentences": 7}, ["testA", "nq_8 seed 0 has 7", "nq_24 seed 0 1001"]),
        *[
            ("val", {"Pr@0.7": value}, [f"splits.val: Pr@0.7 is {value!r}"])
            for value in (51.2, -0.1, None, "0.5", float("nan"))
        ],
    ],
)
def test_scores_of_other_runs_and_no_fractions_are_refused(
    split: str, values: dict[str, Any], facts: list[str], tmp_path: Path
) -> None:
    params = params_of("mini")
    scores = make_scores(params, tmp_path, "table3")
    change_scores(scores[NQ_8], split, **values)
    message = refusal(scores, tmp_path, params, "table3")
    assert all(fact in message for fact in facts), message


def test_scores_of_other_parameters_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    scores = make_scores(params, tmp_path, "table3")
    config = params.resolve("nq_8", 0)
    change_scores(scores[NQ_8], config=config.prediction_values())
    write_table("table3", scores, tmp_path, params=params)
    train = config.train.model_copy(update={"epochs": 1})
    other = config.model_copy(update={"train": train})
    change_scores(scores[NQ_8], config=other.prediction_values())
    message = refusal(scores, tmp_path, params, "table3")
    assert "nq_8 seed 0" in message
    assert "different parameters" in message


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "not JSON"), ("[]", "the file: "), ("{}", "profile: Field required")]
)
def test_a_damaged_score_file_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    params = params_of("mini")
    scores = make_scores(params, tmp_path)
    scores[0].write_text(text)
    message = refusal(scores, tmp_path, params)
    assert str(scores[0]) in message
    assert reason in message
    scores[0].unlink()
    assert "not found" in refusal(scores, tmp_path, params)
    scores[0].mkdir()
    assert "Is a directory" in refusal(scores, tmp_path, params)


@pytest.mark.parametrize(
    ("table", "override", "facts"),
    [
        (
            "table1",
            "experiments.twin={tables: [table1], dataset: refcoco, tower: vit_b}",
            ["refcoco_vit_b and twin", "mini ViT-B on refcoco"],
        ),
        ("table2", "experiments.nq_16.model.num_queries=24", ["nq_24 and nq_16", "num_queries 24"]),
        ("table4", "experiments.no_mqe.model.mqe=true", ["nq_24 and no_mqe", "mqe True"]),
        (
            "table4",
            "experiments.no_mqe.model.num_queries=8",
            ["nq_24 and no_mqe", "model.num_queries 24 and 8"],
        ),
        (
            "table2",
            "experiments.nq_8.model.f_vg=false",
            ["nq_32 and nq_8", "model.f_vg True and False"],
        ),
        ("table3", "experiments.nq_8.tower=vit_b", ["nq_24 and nq_8", "tower rn50 and vit_b"]),
        (
            "table2",
            "experiments.nq_8.dataset=refcoco",
            ["nq_32 and nq_8", "dataset refcoco+ and refcoco"],
        ),
        (
            "table1",
            "experiments.refcocog_vit_l.evaluate={threshold: 0.5}",
            ["refcoco_vit_b and refcocog_vit_l", "evaluate.threshold 0.35 and 0.5"],
        ),
        (
            "table2",
            "profiles.mini.datasets.refcoco+.splits=[val, testB]",
            ["testA", "profiles.mini.datasets.refcoco+.splits"],
        ),
    ],
)
def test_experiments_that_a_table_cannot_compare_are_refused(
    table: str, override: str, facts: list[str], tmp_path: Path
) -> None:
    params = params_of("mini", override)
    message = refusal(make_scores(params, tmp_path, table), tmp_path, params, table)
    assert all(fact in message for fact in facts), message
    with pytest.raises(ConfigError):  # before any job
        check_rows(table, params)


def test_no_experiment_of_a_table_is_refused(tmp_path: Path) -> None:
    assert "table1" in refusal([], tmp_path, params_of("mini", "experiments={}"))


# Missing runs.


@pytest.mark.parametrize("table", TABLES)
def test_missing_runs_are_refused_all_in_one_line(table: str, tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]")
    scores = make_scores(params, tmp_path, table)
    first, last = [runs_of(table, params)[i] for i in (0, -1)]
    message = refusal(scores[1:-1], tmp_path, params, table)
    assert f"{first[0]} seed 0, {last[0]} seed 1." in message
    assert "allow_missing: true" in message


def test_missing_runs_are_dashes_and_named_where_allowed(tmp_path: Path) -> None:
    params = params_of("paper", "allow_missing=true")
    scores = make_scores(params, tmp_path, "table2")
    write_table("table2", [*scores[:3], *scores[4:6]], tmp_path, params=params)
    rows = table_rows(tmp_path, "table2")[1:]
    assert [row[0] for row in rows[::3]] == ["32", "24", "16", "8", "4", "2", "1"]
    assert rows[9] == ["8", "ours", *["--"] * 7]
    assert rows[10][2] == "66.85"
    assert rows[11] == ["8", "difference", *["--"] * 7]
    assert rows[0][2] == "51.00"
    assert "nq_8 seed 0, nq_1 seed 0." in (tmp_path / "table2.md").read_text()
    tex = (tmp_path / "table2.tex").read_text()
    assert r"nq\_8 seed 0, nq\_1 seed 0." in tex
    assert "8 & ours & -- & --" in tex
    frame = pd.read_csv(tmp_path / "table2.csv")
    missing = frame[frame["value"].isna()]
    assert set(missing["method"]) == {"MMNet (this run) N_q=8", "MMNet (this run) N_q=1"}
    assert len(missing) == 2 * len(METRICS)
    write_table("table2", scores, tmp_path, params=params)
    assert "Missing" not in (tmp_path / "table2.md").read_text()


def test_a_missing_seed_leaves_the_others(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1, 2]", "allow_missing=true")
    scores = make_scores(params, tmp_path, "table4")
    # nq_24 has seeds 0 and 2, no_mqe seed 1 alone, no_mqe_mean and no_f_vg none.
    given = [scores[0], scores[2], scores[4], *scores[12:]]
    write_table("table4", given, tmp_path, params=params)
    rows = table_rows(tmp_path, "table4")[1:]
    # 51.00 and 51.20 spread by 0.2 / sqrt(2).
    assert [row[2] for row in rows] == ["51.10 ± 0.14", "56.10", "--", "71.10 ± 0.10", "--"]
    missing = ["nq_24 seed 1", "no_mqe seed 0", "no_mqe seed 2"]
    missing += [f"{name} seed {seed}" for name in ("no_mqe_mean", "no_f_vg") for seed in (0, 1, 2)]
    assert ", ".join(missing) in (tmp_path / "table4.md").read_text()


def test_a_missing_run_of_table1_is_a_row_of_dashes(tmp_path: Path) -> None:
    params = params_of("mini", "allow_missing=true")
    scores = make_scores(params, tmp_path)
    # The smaller tower has no run left, the larger one lacks RefCOCO's.
    write_table("table1", [scores[3], scores[5]], tmp_path, params=params)
    rows = table_rows(tmp_path)[1:]
    assert [row[1] for row in rows] == ["mini ViT-B", "mini ViT-L"] * 2
    assert rows[0][3:] == ["--"] * 8
    assert rows[1][3:] == ["--", "--", "--", "65.00", "66.00", "67.00", "75.00", "76.00"]
