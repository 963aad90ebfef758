"""results/paper.pdf: all there is, within the margins, in the same bytes each time."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_claims import Bench, Floats, noise, published
from test_figures import made_up
from test_workflow import copy_project, planned, snakemake

from mmnet.__main__ import main
from mmnet.config import Params, load_params
from mmnet.errors import DataError, MMNetError
from mmnet.evaluate.choice import KINDS
from mmnet.evaluate.metrics import score_run
from mmnet.evaluate.pair import shown_run
from mmnet.layout import Layout
from mmnet.report import latex
from mmnet.report.ablations import write_ablation
from mmnet.report.claims import write_claims
from mmnet.report.figures import write_figure4
from mmnet.report.mask_figures import write_figure5, write_figure6
from mmnet.report.paper import write_paper
from mmnet.report.runs import TABLES, runs_of
from mmnet.report.table1 import write_table1

needs_tex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="pdflatex and pdftotext are not on the PATH",
)


def params_of(profile: str, *overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [f"profile={profile}", *overrides])


def scattered(experiment: str, split: str, rows: pd.DataFrame) -> Floats:
    """About as published, sentence by sentence."""
    values = published(experiment, split) + noise(experiment, rows, 0.05)
    values += np.random.default_rng(len(experiment)).normal(0, 0.15, len(rows))
    return np.asarray(values.clip(0, 1))


def make_runs(folder: Path, params: Params) -> None:
    """Write what training would leave in `folder`: rows, scores, and what Figures 5 and 6 show."""
    layout = Layout(params.profile)
    bench = Bench(folder, params, scattered)
    for name in params.experiments:
        for seed in params.seeds:
            scores = score_run(params.resolve(name, seed), rows=bench.path(name, seed))
            path = folder / layout.scores(name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(scores))
    config = params.resolve(shown_run(params), params.seeds[0])
    about, arrays = made_up(config.model.num_queries)
    about |= {"profile": config.profile, "experiment": config.experiment, "seed": config.seed}
    about |= {"backbone": config.tower.label, "rule": "A rule, given in words."}
    shown = (config.experiment, config.seed)
    (folder / layout.queries(*shown)).parent.mkdir(parents=True, exist_ok=True)
    np.savez(folder / layout.queries(*shown), about=json.dumps(about), **arrays)
    about["without"] = f"{config.experiment}_no_mmp"
    about["examples"] = [
        {"sentence": "the left", "kind": kind, "gain": 0.5, "iou_with": 0.75, "iou_without": 0.25}
        for kind in KINDS
        for _ in range(2)
    ]
    tiles = {
        f"{k}/{key}": arrays["image"] if key == "image" else arrays["masks"][0] > 0
        for k in range(len(about["examples"]))
        for key in ("image", "truth", "with", "without")
    }
    np.savez(folder / layout.examples(*shown), about=json.dumps(about), **tiles)


def make_results(folder: Path, params: Params) -> Path:
    """Write the tables, figures and claims of such runs; return their folder."""
    make_runs(folder, params)
    results, layout = folder / "results", Layout(params.profile)

    def scores(table: str) -> list[Path]:
        return [folder / layout.scores(*run) for run in runs_of(table, params)]

    write_table1(scores("table1"), results, params=params)
    for table in TABLES[1:]:
        write_ablation(table, scores(table), results, params=params)
    write_claims(lambda *run: folder / layout.rows(*run), results, params=params)
    write_figure4(scores("table2"), results, params=params)
    config = params.resolve(shown_run(params), params.seeds[0])
    shown = (config.experiment, config.seed)
    write_figure5(folder / layout.examples(*shown), config, results, label="a label")
    write_figure6(folder / layout.queries(*shown), config, results, label="a label")
    return results


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("mini"), params_of("mini"))


@pytest.fixture
def results(mini: Path, tmp_path: Path) -> Path:
    shutil.copytree(mini, tmp_path / "results")
    return tmp_path / "results"


def text_of(pdf: Path) -> str:
    command = ["pdftotext", "-layout", str(pdf), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_tex
def test_mini_shows_all_and_says_what_it_is_about(results: Path, capsys: Any) -> None:
    write_paper(results, params=params_of("mini"))
    assert capsys.readouterr().out == ""  # nothing beyond the margins
    text = " ".join(text_of(results / "paper.pdf").split())
    for number in (1, 2, 3, 4):
        assert f"Table {number}:" in text
    for number in (4, 5, 6):
        assert f"Figure {number}:" in text
    assert "Table 5" not in text
    assert "Figure 7" not in text
    assert "not comparable with the paper" in text
    assert "these verdicts are about the procedural benchmark" in text
    assert "difference" not in (results / "table2.tex").read_text()
    claims = json.loads((results / "claims.json").read_text())["claims"]
    source = (results / "paper.tex").read_text()
    for claim in claims:
        assert f": \\textbf{{{claim['verdict']}}}" in source
        for part in claim["parts"]:
            if part["estimate"]:
                assert f"${part['estimate']['points']:+.2f}$" in source
    number = (results / "table1.md").read_text().splitlines()[4].split("|")[4].strip()
    assert number in text


@needs_tex
@pytest.mark.parametrize("seeds", ["[0]", "[0, 1, 2]"])
def test_paper_sets_ours_beside_the_published_within_the_margins(
    seeds: str, tmp_path: Path, capsys: Any
) -> None:
    params = params_of("paper", f"seeds={seeds}")
    results = make_results(tmp_path, params)
    capsys.readouterr()
    write_paper(results, params=params)
    assert capsys.readouterr().out == ""
    text = " ".join(text_of(results / "paper.pdf").split())
    assert "MMNet (paper)" in text
    assert "published 68.14" in text  # Table 2, N_q = 24
    assert "not comparable" not in text
    # A claim against other methods is tested here.
    assert "s 62.09; G-Ref test" in text


@needs_tex
@pytest.mark.parametrize("engine", latex.ENGINES)
def test_the_same_inputs_give_the_same_bytes(
    engine: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not on the PATH")
    monkeypatch.setattr(latex, "ENGINES", (engine,))
    made = []
    for folder, zone in ((results, "UTC"), (tmp_path / "another place", "Asia/Tokyo")):
        if folder != results:
            shutil.copytree(results, folder)
        monkeypatch.setenv("TZ", zone)
        write_paper(folder, params=params_of("mini"))
        made.append((folder / "paper.pdf").read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]


# Refusals.


def test_without_an_engine_one_line_says_what_to_install(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(results))
    monkeypatch.chdir(results.parent)
    assert main(["paper", "--params", str(ROOT / "params.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs LaTeX" in said
    assert "apt-get install texlive-latex-recommended" in said
    assert not (results / "paper.pdf").exists()


@needs_tex
def test_an_error_of_tex_is_one_line_and_its_log_is_kept(results: Path) -> None:
    (results / "table3.tex").write_text("\\nonsense\n")
    with pytest.raises(MMNetError) as caught:
        write_paper(results, params=params_of("mini"))
    assert str(caught.value) == (
        f"{results}/paper.tex: pdflatex stops: ! Undefined control sequence. "
        f"Its log: {results}/paper.log."
    )
    assert r"\nonsense" in (results / "paper.log").read_text()
    assert not (results / "paper.pdf").exists()


def test_all_that_is_missing_is_named_at_once(results: Path) -> None:
    for name in ("table2.tex", "figure6.pdf", "claims.json"):
        (results / name).unlink()
    with pytest.raises(DataError, match=r"needs table2\.tex, figure6\.pdf, claims\.json beside it"):
        write_paper(results, params=params_of("mini"))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("profile=paper", "is of profile 'mini', not 'paper'. Make it again: mmnet report claims."),
        ("seeds=[0, 1]", "is of seeds [0], not [0, 1]."),
    ],
)
def test_claims_of_other_runs_are_refused(override: str, text: str, results: Path) -> None:
    with pytest.raises(DataError) as caught:
        write_paper(results, params=params_of("mini", override))
    assert text in str(caught.value)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"profile": "mini"}'])
def test_damaged_claims_are_refused(content: str, results: Path) -> None:
    (results / "claims.json").write_text(content)
    with pytest.raises(DataError, match="damaged") as caught:
        write_paper(results, params=params_of("mini"))
    assert "\n" not in str(caught.value)


# The rules.


@pytest.mark.xdist_group("workflow")
def test_the_rules_make_it_only_where_there_is_an_engine(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "clone", tiny=False)
    tools = tmp_path / "bin"
    tools.mkdir()
    # Slurm's plugin asks `which` where it is installed.
    for tool in ("bash", "tee", "git", "cat", "uname", "which"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    without = planned(snakemake(folder, "-n", path=str(tools)))
    assert "write_paper" not in without
    assert without["train_mmnet"] == 19
    (tools / "pdflatex").symlink_to("/bin/true")
    assert planned(snakemake(folder, "-n", path=str(tools))) == {**without, "write_paper": 1}
