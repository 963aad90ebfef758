"""results/paper.pdf: all there is, within the margins, in the same bytes each time."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmnet.cli.parser import main
from mmnet.report.pages import latex
from mmnet.report.pages.paper import write_paper
from mmnet.runtime.errors import DataError, MMNetError
from support.project import copy_project, planned, snakemake
from support.results import make_results, params_of
from support.tiny import ROOT

needs_tex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="pdflatex and pdftotext are not on the PATH",
)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("mini"), params_of("mini"))


@pytest.fixture
def results(mini: Path, tmp_path: Path) -> Path:
    shutil.copytree(mini, tmp_path / "results")
    return tmp_path / "results"


def text_of(pdf: Path) -> str:
    command = ["pdftotext", "-paths", str(pdf), "-"]
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
