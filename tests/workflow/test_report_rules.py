"""What the rules plan for tables, figures, claims and the paper; nothing is trained here."""

import shutil
import time
from pathlib import Path

import pytest

from mmnet.config.tables import TABLES
from support.project import copy_project, planned, snakemake
from support.results import make_scores, params_of

pytestmark = pytest.mark.xdist_group("report")

ALLOWED = ("--config", "allow_missing=true")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "clone", tiny=False)


def test_all_trains_each_run_once_and_makes_the_paper_only_where_there_is_an_engine(
    clone: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    # Slurm's plugin asks `which` where it is installed.
    for tool in ("bash", "tee", "git", "cat", "uname", "which"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    plan = planned(snakemake(clone, "-n", path=str(tools)))
    assert plan["train_mmnet"] == 20  # shared runs once: 6 + 13, and one of ours
    rules = [*(f"write_{table}" for table in TABLES), "pick_examples", "read_queries"]
    rules += ["write_figure4", "write_figure5", "write_figure6", "write_claims"]
    assert {plan[rule] for rule in rules} == {1}
    assert "write_paper" not in plan
    (tools / "pdflatex").symlink_to("/bin/true")
    assert planned(snakemake(clone, "-n", path=str(tools))) == {**plan, "write_paper": 1}


@pytest.mark.parametrize(
    ("targets", "trained"),
    [(["results/figure5.pdf", "results/figure6.png"], 2), (["results/figure4.pdf"], 7)],
)
def test_a_figure_trains_what_it_shows(targets: list[str], trained: int, clone: Path) -> None:
    assert planned(snakemake(clone, "-n", *targets))["train_mmnet"] == trained


def test_with_allow_missing_the_rules_train_nothing(clone: Path) -> None:
    make_scores(params_of("mini"), clone / "scores", "table4")[0].unlink()
    target = "results/table4.tex"
    plan = {"write_table4": 1}
    both = ["-n", target, "results/figure4.pdf", *ALLOWED]
    assert planned(snakemake(clone, *both)) == {**plan, "write_figure4": 1}
    done = snakemake(clone, "--cores", "1", target, *ALLOWED)
    assert done.returncode == 0, done.stderr
    assert "nq_24 seed 0." in (clone / "results/table4.md").read_text()
    assert planned(snakemake(clone, "-n", target, *ALLOWED)) == {}
    # Other scores write the table again; another value of params.yaml trains nothing either.
    scores = clone / "scores/mini/no_mqe/seed0.json"
    scores.write_text(scores.read_text() + "\n")
    assert planned(snakemake(clone, "-n", target, *ALLOWED)) == plan
    time.sleep(0.01)
    rows = clone / "rows/mini/no_mqe/seed0.parquet"
    rows.parent.mkdir(parents=True)
    rows.touch()  # newer than the scores
    another = 'experiments={"no_mqe": {"train": {"epochs": 9}}}'
    assert planned(snakemake(clone, "-n", target, *ALLOWED, another)) == plan
    # Without it, all is trained after all.
    assert planned(snakemake(clone, "-n", target))["train_mmnet"] == 5


def test_with_three_seeds_the_rows_that_marks_come_from_write_a_table_again(clone: Path) -> None:
    seeds = ("--config", "allow_missing=true", "seeds=[0,1,2]")
    targets = ["results/table4.tex", "results/figure4.pdf"]
    make_scores(params_of("mini", "seeds=[0, 1, 2]"), clone / "scores", "table4")
    done = snakemake(clone, "--cores", "1", *targets, *seeds)
    assert done.returncode == 0, done.stderr
    assert planned(snakemake(clone, "-n", *targets, *seeds)) == {}
    rows = clone / "rows/mini/nq_24/seed1.parquet"
    rows.parent.mkdir(parents=True)
    rows.touch()
    expected = {"write_table4": 1, "write_figure4": 1}
    assert planned(snakemake(clone, "-n", *targets, *seeds)) == expected


def test_rows_that_cannot_be_compared_stop_before_any_job(clone: Path) -> None:
    twins = 'experiments={"nq_16": {"model": {"num_queries": 24}}}'
    result = snakemake(clone, "-n", "results/table1.tex", "--config", twins)
    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert "nq_24 and nq_16" in said
    assert "Traceback" not in said
