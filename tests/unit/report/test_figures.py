"""Figures 4-6: they show what was scored, chosen and predicted, in the same bytes each time."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from mmnet.cli import common as commands
from mmnet.cli.parser import main
from mmnet.config.load import load_params
from mmnet.config.paths import Paths
from mmnet.config.schema import Config, Params
from mmnet.config.tables import SPLIT, shown_run, without_mmp
from mmnet.data.dataset import evaluation_items, read_mask
from mmnet.data.loader import read
from mmnet.data.tokenizer import tokenize
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.evaluate.predict import load_model, predict_masks, predict_splits
from mmnet.evaluate.queries import alike, encode, merge_words, read_queries
from mmnet.evaluate.selection import KINDS, Run, check_comparable, choose_examples, choose_sentence
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.report.figures.drawing import SMALL, WIDTH, style
from mmnet.report.figures.figure4 import SHOWN, figure4, write_figure4
from mmnet.report.figures.mask_figures import figure5, figure6, read_shown
from mmnet.report.tables.scores import read_scores
from mmnet.runtime.errors import ConfigError, DataError
from support.project import copy_project, planned, snakemake
from support.results import made_up
from support.tiny import ROOT, TINY, Tiny

CPU = torch.device("cpu")
QUERIES = [1, 2, 4, 8, 16, 24, 32]


def params_of(profile: str, *overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [f"profile={profile}", *overrides])


def value_of(queries: int, seed: int, metric: int) -> float:
    """Made up: no two the same, and no gain a straight line."""
    return 0.4 + 0.01 * ((QUERIES.index(queries) * (2 + seed) + 3) % 7) - 0.05 * metric


def hand_made(params: Params, folder: Path, leave_out: tuple[str, ...] = ()) -> list[Path]:
    paths = []
    for name, seed in itertools.product([f"nq_{n}" for n in QUERIES], params.seeds):
        if f"{name}/{seed}" in leave_out:
            continue
        config = params.resolve(name, seed)
        queries = config.model.num_queries
        values = {metric: value_of(queries, seed, i) for i, metric in enumerate(SHOWN)}
        scores = {
            "profile": params.profile,
            "experiment": name,
            "seed": seed,
            "dataset": config.dataset_name,
            "backbone": config.tower.label,
            "splits": {
                split: {"sentences": 9, "oIoU": 0.5, **(values if split == SPLIT else OTHERS)}
                for split in config.dataset.splits
            },
        }
        paths.append(folder / f"{name}.seed{seed}.json")
        paths[-1].write_text(json.dumps(scores))
    return paths


OTHERS = dict.fromkeys(SHOWN, 0.9)  # of the splits that Figure 4 does not show


def drawn4(params: Params, paths: list[Path]) -> Figure:
    with style():
        return figure4(read_scores("table2", paths, params), params)


def lines_of(figure: Figure, label: str) -> list[tuple[list[str], list[float]]]:
    """For each panel, the N_q on whose ticks a curve has its points, and their heights."""
    curves = []
    for panel in figure.axes:
        ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]  # shared
        handles, labels = panel.get_legend_handles_labels()
        handle = handles[labels.index(label)]
        line = handle[0] if isinstance(handle, tuple) else handle
        curves.append(([ticks[int(x)] for x in line.get_xdata()], list(line.get_ydata())))
    return curves


def texts_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


# Figure 4.


def test_figure4_plots_the_gains_of_the_scores(tmp_path: Path) -> None:
    params = params_of("mini")
    figure = drawn4(params, hand_made(params, tmp_path))
    assert [panel.get_title() for panel in figure.axes] == list(SHOWN)
    for i, (places, heights) in enumerate(lines_of(figure, "this run")):
        assert places == [str(n) for n in QUERIES]
        expected = [100 * (value_of(n, 0, i) - value_of(1, 0, i)) for n in QUERIES]
        assert heights == pytest.approx(expected)
    assert "paper" not in figure.axes[0].get_legend_handles_labels()[1]
    said = texts_of(figure)
    assert "profile mini (procedural benchmark), seed 0. Not comparable with published" in said


def test_figure4_has_the_published_curve_beside_ours_in_paper(tmp_path: Path) -> None:
    params = params_of("paper")
    figure = drawn4(params, hand_made(params, tmp_path))
    published = lines_of(figure, "paper")
    assert all(places == [str(n) for n in QUERIES] for places, _ in published)
    assert published[0][1] == pytest.approx([0, 0.38, 0.71, 1.43, 2.17, 2.72, 1.84])
    assert [heights[5] for _, heights in published] == pytest.approx(
        [2.72, 3.89, 4.16, 3.96, 1.58, 1.62]
    )
    assert len(lines_of(figure, "this run")) == 6
    assert figure.axes[0].get_title() == "IoU (this run: mIoU)"
    # Not by colour alone.
    for mark in ("get_marker", "get_linestyle"):
        handles, _ = figure.axes[0].get_legend_handles_labels()
        lines = [h[0] if isinstance(h, tuple) else h for h in handles]
        assert getattr(lines[0], mark)() != getattr(lines[1], mark)()


def test_several_seeds_are_their_mean_gain_with_its_deviation(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1, 2]")
    figure = drawn4(params, hand_made(params, tmp_path))
    container = figure.axes[1].containers[0]
    gains = np.array(
        [[100 * (value_of(n, s, 1) - value_of(1, s, 1)) for n in QUERIES] for s in range(3)]
    )
    assert list(container[0].get_ydata()) == pytest.approx(gains.mean(0))
    low, high = np.array([line[:, 1] for line in container[2][0].get_segments()]).T
    assert (high - low) / 2 == pytest.approx(gains.std(0, ddof=1))
    assert "seeds 0, 1, 2: mean ± sample standard deviation" in texts_of(figure)


def test_missing_runs_are_refused_or_with_allow_missing_named(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]")
    left_out = ("nq_4/0", "nq_4/1", "nq_8/1")
    paths = hand_made(params, tmp_path, left_out)
    with pytest.raises(DataError, match="nq_8 seed 1"):
        write_figure4(paths, tmp_path / "results", params=params)
    assert not (tmp_path / "results").exists()
    figure = drawn4(params.model_copy(update={"allow_missing": True}), paths)
    for places, heights in lines_of(figure, "this run"):
        assert places == ["1", "2", "8", "16", "24", "32"]
        assert np.isfinite(heights).all()
    for run in left_out:
        assert run.replace("/", " seed ") in texts_of(figure)


def test_a_seed_without_its_base_has_no_gains(tmp_path: Path) -> None:
    params = params_of("mini", "seeds=[0, 1]", "allow_missing=true")
    one = drawn4(params, hand_made(params, tmp_path, ("nq_1/1",)))
    expected = [100 * (value_of(n, 0, 2) - value_of(1, 0, 2)) for n in QUERIES]
    assert lines_of(one, "this run")[2][1] == pytest.approx(expected)
    (tmp_path / "none").mkdir()
    none = drawn4(params, hand_made(params, tmp_path / "none", ("nq_1/0", "nq_1/1")))
    assert all(heights == [] for _, heights in lines_of(none, "this run"))
    assert "No gain can be told without N_q = 1" in texts_of(none)


def test_scores_of_other_data_are_refused(tmp_path: Path) -> None:
    params = params_of("mini")
    paths = hand_made(params, tmp_path)
    text = paths[2].read_text()
    paths[2].write_text(text.replace('"sentences": 9', '"sentences": 8'))
    with pytest.raises(DataError, match="8 sentences"):
        write_figure4(paths, tmp_path, params=params)
    paths[2].write_text(text.replace('"profile": "mini"', '"profile": "paper"'))
    with pytest.raises(DataError, match="profile 'paper'"):
        write_figure4(paths, tmp_path, params=params)


# Which sentences.


def rows_of(ious: list[int], images: list[int]) -> pd.DataFrame:
    """Rows with IoU in tenths."""
    ids = np.arange(len(ious)) * 7 % 101  # not in order
    rows = {"split": SPLIT, "ref_id": ids, "ann_id": ids, "image_id": images, "sent_id": ids}
    return pd.DataFrame({**rows, "intersection": ious, "union": 10})


def literal_choice(with_mmp: pd.DataFrame, without: pd.DataFrame) -> list[tuple[str, int]]:
    """`RULE`, word by word."""
    gain = {}
    for sent_id in with_mmp["sent_id"]:
        one, other = (t[t["sent_id"] == sent_id].iloc[0] for t in (with_mmp, without))
        gain[sent_id] = (one["intersection"] / 10) - (other["intersection"] / 10)
    image = dict(zip(with_mmp["sent_id"], with_mmp["image_id"], strict=True))
    median = float(np.median(list(gain.values())))
    taken: list[tuple[str, int]] = []
    for kind in KINDS * 2:
        best = None
        for sent_id in sorted(gain):
            if image[sent_id] in [image[other] for _, other in taken]:
                continue
            merit = {
                "largest gain": gain[sent_id],
                "median gain": -abs(gain[sent_id] - median),
                "least gain": -gain[sent_id],
            }[kind]
            if best is None or merit > best[0]:
                best = (merit, sent_id)
        if best:
            taken.append((kind, int(best[1])))
    return sorted(taken, key=lambda pair: KINDS.index(pair[0]))


def test_examples_are_chosen_by_the_rule_with_its_ties() -> None:
    # Gains in tenths: 5 5 5 (two of one image), 0 ..., -4 -4.
    with_mmp = rows_of([9, 9, 9, 5, 5, 5, 1, 1], [1, 1, 2, 3, 4, 5, 6, 7])
    without = rows_of([4, 4, 4, 5, 5, 5, 5, 5], [1, 1, 2, 3, 4, 5, 6, 7])
    chosen = choose_examples(with_mmp, without.sample(frac=1, random_state=0))
    # sent_id: 0 7 14 21 28 35 42 49
    assert list(chosen["sent_id"]) == [0, 14, 21, 28, 42, 49]
    assert list(chosen["kind"]) == [kind for kind in KINDS for _ in range(2)]
    assert list(chosen["gain"]) == pytest.approx([0.5, 0.5, 0, 0, -0.4, -0.4])
    assert list(chosen["iou_without"]) == pytest.approx([0.4, 0.4, 0.5, 0.5, 0.5, 0.5])


def test_equal_gains_of_different_iou_are_ties() -> None:
    # 0.9 - 0.8 < 0.3 - 0.2 in floats.
    chosen = choose_examples(rows_of([9, 3, 5], [1, 2, 3]), rows_of([8, 2, 5], [1, 2, 3]))
    assert chosen["sent_id"].iloc[0] == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 5, 10]), st.sampled_from([0, 5, 10]), st.integers(1, 8)),
        min_size=1,
        max_size=20,
    )
)
def test_examples_are_those_of_a_literal_choice(rows: list[tuple[int, int, int]]) -> None:
    ours, theirs, images = (list(column) for column in zip(*rows, strict=True))
    with_mmp, without = rows_of(ours, images), rows_of(theirs, images)
    chosen = choose_examples(with_mmp, without)
    assert chosen["image_id"].is_unique
    assert list(zip(chosen["kind"], chosen["sent_id"], strict=True)) == literal_choice(
        with_mmp, without
    )


def test_figure6_shows_the_longest_whole_sentence_that_is_segmented_right() -> None:
    rows = pd.DataFrame(
        {
            "sent_id": [5, 4, 3, 2, 1],
            "tokens": [18, 9, 9, 12, 8],
            "iou": [0.9, 0.6, 0.6, 0.5, 0.9],
        }
    )
    assert choose_sentence(rows, max_length=17) == 3
    assert choose_sentence(rows, max_length=18) == 5
    assert choose_sentence(rows.assign(iou=0.1), max_length=17) == 2
    assert choose_sentence(rows, max_length=3) == 5


def test_the_pair_differs_in_mmp_alone_and_has_the_most_queries() -> None:
    params = params_of("mini", "seeds=[3]")
    assert shown_run(params) == "nq_24"
    assert without_mmp(params, params.resolve("nq_16", 3)).experiment == "nq_16_no_mmp"
    with pytest.raises(ConfigError, match=r"no experiment of table3 .* such as nq_24"):
        without_mmp(params, params.resolve("nq_4", 3))
    other = params_of("mini", "experiments.nq_24_no_mmp.train={epochs: 9}")
    assert shown_run(other) == "nq_16"
    with pytest.raises(ConfigError, match="need two experiments of table3"):
        shown_run(params_of("mini", "experiments={}"))


# What is shown of them.


class Place:
    """A folder as the commands find it: prepared data, and a run with MMP and one without."""

    def __init__(self, folder: Path, tiny: Tiny) -> None:
        self.folder, self.params = folder, tiny.params
        self.layout = Paths("mini")
        (folder / "data" / "mini").mkdir(parents=True)
        (folder / self.layout.images).symlink_to(tiny.images)
        for name, table in tiny.tables.items():
            (folder / self.layout.table(name)).symlink_to(table)
        shutil.copy(ROOT / "params.yaml", folder)
        self.config = tiny.params.resolve("nq_24", 0)
        self.twin = without_mmp(tiny.params, self.config)
        for number, config in enumerate((self.config, self.twin)):
            self.make(config, number)

    def make(self, config: Config, number: int) -> None:
        torch.manual_seed(number)
        model = build_model(config.model, config.tower, weights=None)
        # Random weights say the same everywhere: let masks and scores be lively.
        for part in (model.query_generator, model.mask_decoder):
            for weights in part.parameters():
                torch.nn.init.normal_(weights, 0, 0.5)
        run = self.run(config)
        content = {"model": model.state_dict(), "config": config.identity()}
        checkpoint.save(run.checkpoint, content)
        predict_splits(
            config,
            checkpoint=run.checkpoint,
            table=self.table,
            images=self.images,
            output=run.rows,
            device=CPU,
        )

    def run(self, config: Config) -> Run:
        name = config.experiment
        return Run(
            config,
            self.folder / self.layout.run(name, 0).rows,
            self.folder / self.layout.run(name, 0).checkpoint,
        )

    @property
    def table(self) -> Path:
        return self.folder / self.layout.table("refcoco+")

    @property
    def images(self) -> Path:
        return self.folder / self.layout.images

    @property
    def overrides(self) -> list[str]:
        return [part for override in TINY for part in ("--set", override)]

    def shown(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        return read_shown(self.folder / path, self.config, maker="")

    def items(self) -> Any:
        return evaluation_items(self.config, self.table, self.images, splits=[SPLIT])


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place where `examples` and `queries` have run."""
    place = Place(tmp_path_factory.mktemp("figures"), tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        # cuBLAS's and torch's settings are the process's.
        patch.setattr(commands, "_device", lambda *_: CPU)
        for command in ("examples", "queries"):
            assert main([command, "--experiment", "nq_24", *place.overrides]) == 0
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy to break."""
    shutil.copytree(finished.folder, tmp_path / "place", symlinks=True)
    copy = object.__new__(Place)
    copy.__dict__ = {**finished.__dict__, "folder": tmp_path / "place"}
    return copy


def test_examples_hold_the_masks_that_are_predicted(finished: Place) -> None:
    about, arrays = finished.shown(finished.layout.run("nq_24", 0).examples)
    chosen = [example["sent_id"] for example in about["examples"]]
    assert chosen
    rows = finished.items().rows.set_index("sent_id")
    mixed = 0
    for key, config in (("with", finished.config), ("without", finished.twin)):
        masks = predict_masks(
            load_model(config, finished.run(config).checkpoint),
            read(finished.items(), batch_size=None, workers=0),
            sent_ids=chosen,
            threshold=config.evaluate.threshold,
            device=CPU,
        )
        for k, example in enumerate(about["examples"]):
            row = rows.loc[example["sent_id"]]
            truth = read_mask(row["counts"], row["height"], row["width"]).numpy()
            assert np.array_equal(arrays[f"{k}/truth"], truth)
            mask = arrays[f"{k}/{key}"]
            assert np.array_equal(mask, masks[example["sent_id"]].numpy())
            union = (mask | truth).sum()
            iou = (mask & truth).sum() / union if union else 1
            assert example[f"iou_{key}"] == pytest.approx(iou)
            assert example["sentence"] == row["sentence"]
            mixed += mask.any() and not mask.all()
    assert mixed


def test_figure6_weighs_masks_by_scores_to_y_and_attention_sums_to_one(finished: Place) -> None:
    about, arrays = finished.shown(finished.layout.run("nq_24", 0).queries)
    attention, scores, masks = (arrays[key] for key in ("attention", "scores", "masks"))
    assert attention.shape == (24, len(about["words"]))
    np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(scores.sum(), 1, rtol=1e-5)
    y = np.tensordot(scores, masks, 1)  # Eq. 16
    np.testing.assert_allclose(arrays["y"], y, atol=1e-4)
    assert np.abs(y - masks.mean(0)).max() > 0.01
    # And y is what the model gives.
    items = finished.items()
    number = list(items.rows["sent_id"]).index(about["sent_id"])
    batch = next(items[i] for i, b in enumerate(items.batches) if number in b)
    place = list(batch.rows["sent_id"]).index(about["sent_id"])
    image = int(batch.image_of_sentence[place])
    model = load_model(finished.config, finished.run(finished.config).checkpoint).eval()
    with torch.inference_mode():
        logits = model(normalise(batch.images[image, None]), batch.tokens[place, None])
    direct = logits_to_image(logits, batch.placements[image])[0]
    np.testing.assert_allclose(arrays["y"], direct, atol=1e-4)
    assert about["words"] == ["[SOS]", *about["sentence"].split(), "[EOS]"]


def test_how_alike_queries_are_is_the_mean_over_all_pairs() -> None:
    torch.manual_seed(0)
    masks = torch.rand(3, 4, 5, 6) > 0.5
    masks[1, :2] = False  # two that are empty agree
    attention = torch.rand(3, 4, 7).softmax(-1)
    for s, found in enumerate(alike(masks, attention)):
        ious, cosines = [], []
        for n, m in itertools.combinations(range(4), 2):
            union = int((masks[s, n] | masks[s, m]).sum())
            ious.append(int((masks[s, n] & masks[s, m]).sum()) / union if union else 1.0)
            a, b = attention[s, n].double(), attention[s, m].double()
            cosines.append(float(a @ b / (a.norm() * b.norm())))
        assert found.tolist() == pytest.approx([np.mean(ious), np.mean(cosines)])
    same = alike(masks[:, :1].expand(-1, 4, -1, -1), attention[:, :1].expand(-1, 4, -1))
    assert same.flatten().tolist() == pytest.approx([1.0] * 6)
    assert alike(masks[:, :1], attention[:, :1]).tolist() == [[1.0, 1.0]] * 3


def test_the_means_are_over_every_sentence_of_the_split(finished: Place) -> None:
    about, _ = finished.shown(finished.layout.run("nq_24", 0).queries)
    items = finished.items()
    assert about["sentences"] == len(items.rows)
    model = load_model(finished.config, finished.run(finished.config).checkpoint)
    found = []
    threshold = finished.config.evaluate.threshold
    for batch in read(items, batch_size=None, workers=0):
        features = encode(model, batch, CPU)
        for number in range(len(batch.rows)):
            queries = read_queries(model, features, batch, torch.tensor([number]))
            found += alike(queries.masks.sigmoid() > threshold, queries.attention).tolist()
    expected = np.mean(found, axis=0)
    assert [about["mean_mask_iou"], about["mean_attention_cosine"]] == pytest.approx(expected)


def test_tokens_become_words_again() -> None:
    tokens, _ = tokenize(["the unquestionably naïve $20 guy's"], 20)
    attention = torch.rand(2, 20)
    attention[:, (tokens[0] == 0)] = 0
    words, merged = merge_words(tokens[0], attention)
    assert "".join(words) == "[SOS]theunquestionablynaïve$20guy's[EOS]"
    assert words[:4] == ["[SOS]", "the", "unquestionably", "naïve"]
    assert merged.shape == (2, len(words))
    torch.testing.assert_close(merged.sum(1), attention.sum(1))
    assert int((tokens[0] != 0).sum()) > len(words)  # some were of several tokens
    cut, _ = tokenize(["unquestionably"], 3)
    words, merged = merge_words(cut[0], torch.tensor([[0.1, 0.2, 0.7]]))
    assert len(words) == 3
    assert "unquestionably".startswith(words[1])
    assert merged.tolist()[0] == pytest.approx([0.1, 0.2, 0.7])


# Drawn.


def test_figure5_draws_each_example_with_its_iou(finished: Place) -> None:
    about, arrays = finished.shown(finished.layout.run("nq_24", 0).examples)
    with style():
        figure = figure5(about, arrays, "the label")
    assert len(figure.axes) == 4 * len(about["examples"])
    texts = [text.get_text() for text in figure.texts]
    for example in about["examples"]:
        assert f"IoU {example['iou_with']:.2f}" in texts
        assert f"IoU {example['iou_without']:.2f}" in texts
        assert example["sentence"] in texts
    said = " ".join(texts)
    assert about["rule"] in said
    assert "profile mini (the label), seed 0; nq_24 and nq_24_no_mmp." in said


def test_figure6_draws_the_queries_by_falling_score(finished: Place) -> None:
    about, arrays = finished.shown(finished.layout.run("nq_24", 0).queries)
    with style():
        figure = figure6(about, arrays, "the label")
    order = sorted(range(24), key=lambda n: (-arrays["scores"][n], n))
    heat, bars = figure.axes[3], figure.axes[5]
    np.testing.assert_array_equal(heat.images[0].get_array(), arrays["attention"][order])
    assert [t.get_text() for t in heat.get_yticklabels()] == [str(n + 1) for n in order]
    assert [t.get_text() for t in heat.get_xticklabels()] == about["words"]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(arrays["scores"][order])
    masks = figure.axes[6:]
    assert len(masks) == 24
    for panel, query in zip(masks, order, strict=True):
        logits = torch.from_numpy(arrays["masks"][query]).double()
        np.testing.assert_allclose(panel.images[0].get_array(), logits.sigmoid(), atol=1e-9)
    said = texts_of(figure)
    assert f"{about['mask_iou']:.3f}; over all {about['sentences']}" in said
    assert about["rule"] in said


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


def test_letters_of_figure5_are_readable_whatever_the_sentence(finished: Place) -> None:
    about, arrays = made_up(1)
    sentences = ["many words " * 30, "x" * 300, "$\\frac$ 赤い", "", "left", "naïve\ncafé"]
    kinds = [kind for kind in KINDS for _ in range(2)]
    about["examples"] = [
        {"sentence": s, "kind": k, "gain": -0.5, "iou_with": 0.25, "iou_without": 0.75}
        for s, k in zip(sentences, kinds, strict=True)
    ]
    about["without"] = "nq_24_no_mmp"
    shapes = [(40, 60), (60, 40), (200, 20), (20, 200), (48, 64), (50, 50)]
    arrays = {
        f"{k}/{key}": np.zeros((3, *shape) if key == "image" else shape, dtype=np.uint8)
        for k, shape in enumerate(shapes)
        for key in ("image", "truth", "with", "without")
    }
    with style():
        check_letters(figure5(about, arrays, "a label"))


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_letters_of_figure4_are_readable(profile: str, tmp_path: Path) -> None:
    params = params_of(profile, "seeds=[0, 1, 2]", "allow_missing=true")
    missing = tuple(f"nq_{n}/{s}" for n in (2, 4, 8) for s in range(3))
    with style():
        check_letters(drawn4(params, hand_made(params, tmp_path, missing)))


def test_same_inputs_give_the_same_bytes(finished: Place, tmp_path: Path) -> None:
    scores = hand_made(finished.params, tmp_path)
    for path in scores:
        name, seed = re.fullmatch(r"(\w+)\.seed(\d)", path.stem).groups()  # type: ignore[union-attr]
        target = finished.folder / finished.layout.run(name, seed).scores
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    made: list[dict[str, bytes]] = []
    for seed in "12":  # of Python's hashes
        for number in "456":
            subprocess.run(
                [sys.executable, "-m", "mmnet", "figure", number, *finished.overrides],
                cwd=finished.folder,
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
                check=True,
            )
        results = finished.folder / "results"
        made.append({path.name: path.read_bytes() for path in sorted(results.iterdir())})
        shutil.rmtree(results)
    assert list(made[0]) == [f"figure{n}.{suffix}" for n in "456" for suffix in ("pdf", "png")]
    assert made[0] == made[1]
    for name, content in made[0].items():
        assert b"CreationDate" not in content, name
        if name.endswith("pdf"):
            assert b"/TrueType" in content or b"/CIDFontType2" in content
            assert b"/Type3" not in content


def test_what_figures_show_is_the_same_bytes_each_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(commands, "_device", lambda *_: CPU)
    for command in ("examples", "queries"):
        path = place.folder / getattr(place.layout, command)("nq_24", 0)
        before = path.read_bytes()
        path.unlink()
        assert main([command, "--experiment", "nq_24", *place.overrides]) == 0
        assert path.read_bytes() == before


# Refusals.


def refusal(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch, *command: str, code: int = 1
) -> str:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(commands, "_device", lambda *_: CPU)
    capsys.readouterr()
    assert main([*command, *place.overrides]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return str(message)


def test_a_missing_run_is_named(place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ("examples", "--experiment", "nq_24", "--set", "allow_missing=true")
    place.run(place.twin).rows.unlink()
    message = refusal(place, capsys, monkeypatch, *examples)
    assert "figure5 (mini): nq_24_no_mmp seed 0 is missing" in message
    assert "results/figure5.pdf" in message
    place.run(place.config).checkpoint.unlink()
    message = refusal(place, capsys, monkeypatch, "queries", "--experiment", "nq_24")
    assert "figure6 (mini): nq_24 seed 0 is missing" in message
    message = refusal(place, capsys, monkeypatch, "examples", "--experiment", "nq_4")
    assert "no experiment of table3 differs from nq_4" in message


def test_rows_that_cannot_be_compared_are_refused(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = place.run(place.twin)
    rows = pd.read_parquet(twin.rows)
    attrs = rows.attrs
    fewer = rows[rows["sent_id"] != rows.loc[rows["split"] == SPLIT, "sent_id"].iloc[0]]
    fewer.attrs = attrs
    fewer.to_parquet(twin.rows)
    message = refusal(place, capsys, monkeypatch, "examples", "--experiment", "nq_24")
    assert f"{SPLIT}: nq_24 seed 0 has" in message
    assert "Predict both on the same data" in message
    own = place.run(place.config)
    for run in (own, twin):
        few = pd.read_parquet(run.rows)
        few = few[few["sent_id"].isin(fewer["sent_id"])]
        few.attrs = pd.read_parquet(run.rows).attrs
        few.to_parquet(run.rows)
    for command in ("examples", "queries"):
        message = refusal(place, capsys, monkeypatch, command, "--experiment", "nq_24")
        assert "not of the sentences of data/mini/refcoco+.parquet" in message
    for key, value in (("profile", "paper"), ("seed", 5)):
        rows.attrs = {"config": {**attrs["config"], key: value}}
        rows.to_parquet(twin.rows)
        message = refusal(place, capsys, monkeypatch, "examples", "--experiment", "nq_24")
        assert "made with other values than params.yaml has now" in message


@pytest.mark.parametrize(("key", "value"), [("profile", "paper"), ("seed", 1)])
def test_runs_of_another_profile_or_seed_are_not_compared(key: str, value: Any) -> None:
    config = params_of("mini").resolve("nq_24", 0)
    other = config.model_copy(update={key: value})
    rows = rows_of([1, 2], [1, 2])
    one, two = (Run(c, Path("rows"), Path("checkpoint")) for c in (config, other))
    with pytest.raises(DataError, match=f"nq_24 seed 0 is of {key}"):
        check_comparable(one, two, rows, rows)
    check_comparable(one, one, rows, rows.sample(frac=1, random_state=0))
    with pytest.raises(DataError, match="1 are the same"):
        check_comparable(one, one, rows, rows.assign(ann_id=rows["ann_id"].iloc[0]))


def test_what_is_drawn_is_checked(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.folder / place.layout.run("nq_24", 0).queries
    about, arrays = place.shown(place.layout.run("nq_24", 0).queries)
    content = path.read_bytes()
    again = "mmnet queries --experiment nq_24 --seed 0"
    for broken in (b"", b"junk", content[: len(content) // 2]):
        path.write_bytes(broken)
        message = refusal(place, capsys, monkeypatch, "figure", "6")
        assert "damaged" in message
        assert again in message
    np.savez(path, about=json.dumps({**about, "seed": 7}), **arrays)
    assert "is of seed 7, not 0" in refusal(place, capsys, monkeypatch, "figure", "6")
    path.unlink()
    message = refusal(place, capsys, monkeypatch, "figure", "6")
    assert f"not found. Make it first: {again}" in message


@pytest.mark.parametrize(
    "module",
    [
        "mmnet.report.figures.figure4",
        "mmnet.report.figures.mask_figures",
        "mmnet.evaluate.selection",
    ],
)
def test_drawing_never_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_rules_plan_what_each_figure_needs(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "clone", tiny=False)
    snakefile = folder / "Snakefile"
    if "figures.smk" not in snakefile.read_text():
        with snakefile.open("a") as file:
            file.write('\n\ninclude: "workflow/rules/figures.smk"\n')
    plan = planned(snakemake(folder, "-n", "results/figure5.pdf", "results/figure6.png"))
    for rule in ("pick_examples", "read_queries", "write_figure5", "write_figure6"):
        assert plan[rule] == 1
    assert plan["train_mmnet"] == 2
    plan = planned(snakemake(folder, "-n", "results/figure4.pdf"))
    assert plan["train_mmnet"] == 7
    missing = "--config", "allow_missing=true", "--"
    plan = planned(snakemake(folder, "-n", *missing, "results/figure4.pdf"))
    assert plan == {"write_figure4": 1}
