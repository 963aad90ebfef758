"""Figures 4-6 show what they are given, legibly, in the same bytes each time."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from mmnet.cli.parser import main
from mmnet.config.paths import Paths
from mmnet.config.schema import Params
from mmnet.evaluate.metrics import MEASURES, score
from mmnet.evaluate.selection import KINDS
from mmnet.report.figures.drawing import SMALL, WIDTH, style, wrap
from mmnet.report.figures.figure4 import SHOWN, bands, figure4, write_figure4
from mmnet.report.figures.mask_figures import figure5, figure6, read_shown
from mmnet.report.tables.scores import read_scores
from mmnet.runtime.errors import DataError
from support.results import (
    Bench,
    change_scores,
    made_up,
    make_runs,
    make_scores,
    params_of,
    scattered,
)
from support.tiny import ROOT

QUERIES = [1, 2, 4, 8, 16, 24, 32]


def value(experiment: int, split: int, seed: int, metric: int) -> float:
    """Made up: no gain a straight line, and another with each seed. Table 2 starts with 32."""
    return 0.4 + 0.01 * ((experiment * (2 + seed) + 3) % 7) - 0.05 * metric + 0.001 * split


def scores_of(params: Params, folder: Path, without: tuple[str, ...] = ()) -> list[Path]:
    paths = make_scores(params, folder, "table2", value)
    return [path for path in paths if f"{path.parent.name}/{path.stem}" not in without]


def gain(queries: int, seed: int, metric: str) -> float:
    """As `make_scores` counts: experiments fall from 32, oIoU stands between mIoU and Pr@0.5."""
    number = ["mIoU", "oIoU", *list(SHOWN)[1:]].index(metric)
    values = [value(6 - QUERIES.index(n), 1, seed, number) for n in (queries, 1)]
    return 100 * (values[0] - values[1])


def drawn4(params: Params, paths: list[Path]) -> Figure:
    with style():
        return figure4(read_scores("table2", paths, params), params)


def curves(figure: Figure, label: str) -> list[tuple[list[str], list[float]]]:
    """For each panel, the N_q on whose ticks a curve has its points, and their heights."""
    found = []
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]  # shared
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        handle = handles[labels.index(label)]
        line = handle[0] if isinstance(handle, tuple) else handle
        found.append(([ticks[int(x)] for x in line.get_xdata()], list(line.get_ydata())))
    return found


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def note_of(figure: Figure) -> str:
    return " ".join(figure.texts[0].get_text().split())


# Figure 4.


def test_figure4_plots_the_gains_of_the_scores(tmp_path: Path) -> None:
    params = params_of("mini")
    figure = drawn4(params, scores_of(params, tmp_path))
    assert [panel.get_title() for panel in figure.axes] == list(SHOWN)
    for metric, (places, heights) in zip(SHOWN, curves(figure, "this run"), strict=True):
        assert places == [str(n) for n in QUERIES]
        assert heights == pytest.approx([gain(n, 0, metric) for n in QUERIES])
    assert "paper" not in figure.axes[0].get_legend_handles_labels()[1]
    assert "profile mini (procedural benchmark), seed 0. No band:" in note_of(figure)
    assert "Not comparable" in note_of(figure)


def test_figure4_has_the_published_curve_beside_ours_in_paper(tmp_path: Path) -> None:
    params = params_of("paper")
    figure = drawn4(params, scores_of(params, tmp_path))
    published = curves(figure, "paper")
    assert all(places == [str(n) for n in QUERIES] for places, _ in published)
    assert published[0][1] == pytest.approx([0, 0.38, 0.71, 1.43, 2.17, 2.72, 1.84])
    assert [heights[5] for _, heights in published] == pytest.approx(
        [2.72, 3.89, 4.16, 3.96, 1.58, 1.62]
    )
    assert len(curves(figure, "this run")) == 6
    # Not by colour alone.
    handles, _ = figure.axes[0].get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    for mark in ("get_marker", "get_linestyle"):
        assert getattr(lines[0], mark)() != getattr(lines[1], mark)()


def band_of(figure: Figure, panel: int) -> dict[float, tuple[float, float]] | None:
    """Place on the axis → lower and upper end."""
    if not (areas := figure.axes[panel].collections):
        return None
    corners = areas[0].get_paths()[0].vertices
    ends: dict[float, list[float]] = {}
    for x, y in corners:
        ends.setdefault(x, []).append(y)
    return {x: (min(ys), max(ys)) for x, ys in ends.items()}


def test_several_seeds_are_their_mean_gain_with_a_band(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1, 2]")
    bench = Bench(tmp_path, params, scattered, trainings=0.02)
    runs = read_scores("table2", bench.scores("table2"), params)
    with style():
        figure = figure4(runs, params, bands(bench.path, params))
    values = [[100 * score(rows_at(bench, n, seed))["mIoU"] for seed in range(3)] for n in QUERIES]
    means = np.mean(values, axis=1)
    heights = curves(figure, "this run")[0][1]
    assert heights == pytest.approx(means - means[0])
    band = band_of(figure, 0)
    assert band is not None
    assert band.pop(0) == (0, 0)
    for place, (low, high) in band.items():
        assert (low + high) / 2 == pytest.approx(heights[int(place)])
        # Wider than Welch's, which knows of no other images.
        pair = values[int(place)], values[0]
        welch = stats.ttest_ind(*pair, equal_var=False).confidence_interval(0.95)
        assert high - low > 0.99 * (welch.high - welch.low)
    assert "seeds 0, 1, 2" in note_of(figure)
    assert "Band: 95% interval" in note_of(figure)


def rows_at(bench: Bench, queries: int, seed: int) -> pd.DataFrame:
    rows = pd.read_parquet(bench.path(f"nq_{queries}", seed))
    return rows[rows["split"] == "testA"]


@pytest.mark.parametrize(
    ("seeds", "reason"), [("[0]", "3 seeds or more"), ("[0, 1, 2]", "rows per sentence")]
)
def test_figure4_says_why_it_has_no_band(seeds: str, reason: str, tmp_path: Path) -> None:
    params = params_of("mini", f"seeds={seeds}")
    figure = drawn4(params, scores_of(params, tmp_path))
    assert band_of(figure, 0) is None
    assert "No band: " in note_of(figure)
    assert reason in note_of(figure)


def test_missing_runs_are_refused_or_with_allow_missing_named(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]")
    left_out = ("nq_4/seed0", "nq_4/seed1", "nq_8/seed1")
    paths = scores_of(params, tmp_path, left_out)
    with pytest.raises(DataError, match="nq_8 seed 1"):
        write_figure4(paths, tmp_path / "results", params=params)
    assert not (tmp_path / "results").exists()
    figure = drawn4(params.model_copy(update={"allow_missing": True}), paths)
    for places, heights in curves(figure, "this run"):
        assert places == ["1", "2", "8", "16", "24", "32"]
        assert np.isfinite(heights).all()
    for run in left_out:
        assert run.replace("/seed", " seed ") in note_of(figure)


def test_without_its_base_there_are_no_gains(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]", "allow_missing=true")
    one = drawn4(params, scores_of(params, tmp_path, ("nq_1/seed1",)))
    assert curves(one, "this run")[2][1][0] == 0  # over the mean of the seeds that there are
    none = drawn4(params, scores_of(params, tmp_path, ("nq_1/seed0", "nq_1/seed1")))
    assert all(heights == [] for _, heights in curves(none, "this run"))
    assert "N_q = 1" in note_of(none)


def test_scores_of_other_data_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    paths = scores_of(params, tmp_path)
    change_scores(paths[2], "testA", sentences=8)
    with pytest.raises(DataError, match="8 sentences"):
        write_figure4(paths, tmp_path, params=params)


# Figures 5 and 6.


def examples(sentences: list[str], shapes: list[tuple[int, int]]) -> tuple[Any, Any]:
    about, _ = made_up(1)
    kinds = [kind for kind in KINDS for _ in range(2)]
    about["without"] = "nq_24_no_mmp"
    about["examples"] = [
        {"sentence": s, "kind": k, "gain": -0.5, "iou_with": 0.125 * i, "iou_without": 0.8}
        for i, (s, k) in enumerate(zip(sentences, kinds, strict=False))
    ]
    arrays = {
        f"{k}/{key}": np.zeros((3, *shape) if key == "image" else shape, dtype=np.uint8)
        for k, shape in enumerate(shapes)
        for key in ("image", "truth", "with", "without")
    }
    return about, arrays


def test_figure5_draws_each_example_with_its_iou() -> None:
    about, arrays = examples(["the left", "a b", "c"], [(40, 60)] * 3)
    with style():
        figure = figure5(about, arrays, "the label")
    assert len(figure.axes) == 4 * 3
    texts = texts_of(figure)
    for i, example in enumerate(about["examples"]):
        assert f"with MMP\nIoU {0.125 * i:.2f}" in texts
        assert f"{example['sentence']}\n{example['kind']}: −0.50" in texts  # noqa: RUF001
    assert texts.count("without MMP\nIoU 0.80") == 3
    note = note_of(figure)
    assert about["rule"] in note
    assert "profile paper (the label), seed 0; nq_24 and nq_24_no_mmp." in note


def test_figure6_draws_the_queries_by_falling_score() -> None:
    about, arrays = made_up(24)
    with style():
        figure = figure6(about, arrays, "the label")
    order = sorted(range(24), key=lambda n: (-arrays["scores"][n], n))
    panels = [panel for panel in figure.axes if panel.get_title() or panel.patches]
    heat = next(panel for panel in figure.axes if panel.get_ylabel())
    np.testing.assert_array_equal(heat.images[0].get_array(), arrays["attention"][order])
    assert [t.get_text() for t in heat.get_yticklabels()] == [str(n + 1) for n in order]
    words = [t.get_text() for t in heat.get_xticklabels()]
    assert words[:4] == ["[SOS]", "the", "$x_1$", "??"]
    assert len(words) == len(about["words"])
    bars, *masks = panels
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(arrays["scores"][order])
    assert [mask.get_title() for mask in masks] == [str(n + 1) for n in order]
    for panel, query in zip(masks, order, strict=True):
        logits = arrays["masks"][query].clip(-500, 500)
        np.testing.assert_allclose(
            panel.images[0].get_array(), 1 / (1 + np.exp(-logits)), atol=1e-9
        )
    said = " ".join(" ".join(texts_of(figure)).split())
    assert said.count("0.25 (0.00032)") == len(MEASURES)
    assert f"all {about['sentences']:,} sentences" in said
    assert about["rule"] in said


# Letters.


def check_letters(figure: Figure) -> None:
    """No text is small, beyond the page, or over another."""
    assert figure.get_figwidth() == WIDTH
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = []
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    beyond = [  # labels that are there and never drawn
        tick.label1
        for axis in axes
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    for text in figure.findobj(Text):
        if not text.get_text().strip() or not text.get_visible() or text in beyond:
            continue
        assert text.get_fontsize() >= SMALL
        box = text.get_window_extent()
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y1 <= page.y1 + 1, text
        if text.get_rotation() in (0, 90):
            boxes.append((text, box))
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(wide, high) < 2, f"{one} lies over {other}"


@pytest.mark.parametrize("queries", [1, 3, 24, 32])
def test_letters_of_figure6_are_readable_whatever_the_sentence(queries: int) -> None:
    with style():
        check_letters(figure6(*made_up(queries), "a label"))


def test_letters_of_figure5_are_readable_whatever_the_sentence() -> None:
    sentences = ["many words " * 30, "W" * 300, "$\\frac$ 赤い", "", "left", "naïve\ncafé"]
    shapes = [(40, 60), (60, 40), (200, 20), (20, 200), (48, 64), (50, 50)]
    with style():
        check_letters(figure5(*examples(sentences, shapes), "a label"))


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_letters_of_figure4_are_readable(profile: str, tmp_path: Path) -> None:
    params = params_of(profile, "seeds=[0, 1, 2]", "allow_missing=true")
    missing = tuple(f"nq_{n}/seed{s}" for n in (2, 4, 8) for s in range(3))
    with style():
        check_letters(drawn4(params, scores_of(params, tmp_path, missing)))


def test_wrapped_text_keeps_its_words_and_shows_where_it_is_cut() -> None:
    text = "many words and  more\nwords " * 20
    assert " ".join(wrap(text, 3, SMALL)).split() == text.split()
    cut = wrap(text, 3, SMALL, most=2)
    assert len(cut) == 2
    assert cut[-1].endswith("…")


# The commands.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_runs(folder, params_of("mini"))
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


def test_same_inputs_give_the_same_bytes(made: Path) -> None:
    found: list[dict[str, bytes]] = []
    for seed in "12":  # of Python's hashes
        code = "import sys; from mmnet.cli.parser import main; "
        code += "sys.exit(any([main(['figure', number]) for number in '456']))"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=made, env=environment, check=True)
        results = made / "results"
        found.append({path.name: path.read_bytes() for path in sorted(results.iterdir())})
        shutil.rmtree(results)
    assert list(found[0]) == [f"figure{n}.{suffix}" for n in "456" for suffix in ("pdf", "png")]
    assert found[0] == found[1]
    for name, content in found[0].items():
        assert b"CreationDate" not in content, name
        if name.endswith("pdf"):
            assert b"/TrueType" in content or b"/CIDFontType2" in content
            assert b"/Type3" not in content


def test_what_is_drawn_is_checked(made: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    path, config = Paths("mini").run("nq_24", 0).queries, params_of("mini").resolve("nq_24", 0)
    about, arrays = read_shown(path, config, command="queries")
    content = path.read_bytes()

    def refusal() -> str:
        assert main(["figure", "6"]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "mmnet queries --experiment nq_24 --seed 0" in message
        return str(message)

    for broken in (b"", b"junk", content[: len(content) // 2]):
        path.write_bytes(broken)
        assert "damaged" in refusal()
    np.savez(path, about=json.dumps({**about, "seed": 7}), **arrays)
    assert "seed 7" in refusal()
    path.unlink()
    assert "not found" in refusal()
    path.write_bytes(content)
