"""results/paper.pdf: all there is, within the margins, in the same bytes each time."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmnet.cli.parser import main
from mmnet.report.pages import latex
from mmnet.report.pages.paper import to_tex, write_paper
from mmnet.runtime.errors import DataError, MMNetError
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
    command = ["pdftotext", "-layout", str(pdf), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_source_has_every_table_figure_and_claim(results: Path) -> None:
    params = params_of("mini")
    claims = json.loads((results / "claims.json").read_text())
    source = to_tex(claims, params)
    for name in ("table1", "table2", "table3", "table4"):
        assert rf"\input{{{name}}}" in source
    for name in ("figure4", "figure5", "figure6"):
        assert f"{{{name}.pdf}}" in source
    for claim in claims["claims"]:
        assert f": \\textbf{{{claim['verdict']}}}" in source
        for part in claim["parts"]:
            if part["estimate"]:
                assert f"${part['estimate']['points']:+.2f}$" in source


@needs_tex
def test_mini_shows_all_and_says_what_it_is_about(results: Path, capsys: Any) -> None:
    write_paper(results, params=params_of("mini"))
    assert capsys.readouterr().err == ""  # nothing beyond the margins
    text = " ".join(text_of(results / "paper.pdf").split())
    titles = [f"Table {n}:" for n in (1, 2, 3, 4)] + [f"Figure {n}:" for n in (4, 5, 6)]
    assert all(title in text for title in titles)
    assert "Table 5" not in text
    assert "Figure 7" not in text
    assert "not comparable with the paper" in text
    assert "these verdicts are about the procedural benchmark" in text
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
    assert capsys.readouterr().err == ""
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
    message = str(caught.value)
    assert message.startswith(f"{results}/paper.tex: pdflatex")
    assert "! Undefined control sequence." in message
    assert f"{results}/paper.log" in message
    assert r"\nonsense" in (results / "paper.log").read_text()
    assert not (results / "paper.pdf").exists()


def test_all_that_is_missing_is_named_at_once(results: Path) -> None:
    for name in ("table2.tex", "figure6.pdf", "claims.json"):
        (results / name).unlink()
    with pytest.raises(DataError, match=r"table2\.tex, figure6\.pdf, claims\.json"):
        write_paper(results, params=params_of("mini"))


@pytest.mark.parametrize(
    ("override", "facts"),
    [("profile=paper", ["profile 'mini'", "'paper'"]), ("seeds=[0, 1]", ["seeds [0]", "[0, 1]"])],
)
def test_claims_of_other_runs_are_refused(override: str, facts: list[str], results: Path) -> None:
    with pytest.raises(DataError) as caught:
        write_paper(results, params=params_of("mini", override))
    assert all(fact in str(caught.value) for fact in [*facts, "mmnet report claims"])


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"profile": "mini"}'])
def test_damaged_claims_are_refused(content: str, results: Path) -> None:
    (results / "claims.json").write_text(content)
    with pytest.raises(DataError, match="damaged") as caught:
        write_paper(results, params=params_of("mini"))
    assert "\n" not in str(caught.value)
