"""Figures 5 and 6, of what `mmnet examples` and `mmnet queries` wrote; without torch."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmnet.config.schema import Config
from mmnet.evaluate.pictures import BLUE, ORANGE, overlay, shrunk
from mmnet.report.figures.drawing import (
    LINE,
    SMALL,
    TEXT,
    WIDTH,
    printable,
    put_axes,
    put_lines,
    put_note,
    put_picture,
    put_text,
    save,
    style,
    text_width,
    wrap,
)
from mmnet.report.tables.common import TITLES
from mmnet.runtime.errors import DataError

MAP, BAR, LIMIT = "Blues", "#56B4E9", "#D55E00"
EDGE = 0.02  # inches, so that frames are not cut
COLUMNS = 4
"""Of masks in Figure 6."""
LONGEST = 16
"""Letters of a word above the heat map."""


def write_figure5(examples: Path, config: Config, folder: Path, *, label: str) -> None:
    """Write `figure5.pdf` and `figure5.png` from what `mmnet examples` wrote.

    Raises:
        DataError: it is missing, damaged, or of another run.
    """
    about, arrays = read_shown(examples, config, maker="mmnet examples")
    with style():
        save(figure5(about, arrays, label), folder / "figure5")


def write_figure6(queries: Path, config: Config, folder: Path, *, label: str) -> None:
    """Write `figure6.pdf` and `figure6.png` from what `mmnet queries` wrote.

    Raises:
        DataError: it is missing, damaged, or of another run.
    """
    about, arrays = read_shown(queries, config, maker="mmnet queries")
    with style():
        save(figure6(about, arrays, label), folder / "figure6")


def read_shown(path: Path, config: Config, *, maker: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is said of a figure's sentences, and its arrays."""
    again = f"{maker} --experiment {config.experiment} --seed {config.seed}"
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Make it first: {again}.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({reason}). Make it again: {again}.") from None
    for key in ("profile", "experiment", "seed"):
        if about.get(key) != getattr(config, key):
            raise DataError(
                f"{path}: is of {key} {about.get(key)!r}, not {getattr(config, key)!r}. "
                f"Make it again: {again}."
            )
    return about, arrays


# Figure 5.


def figure5(about: dict[str, Any], arrays: dict[str, Any], label: str) -> Figure:
    """Draw the examples, two in a line: image, ground truth, without MMP, with MMP."""
    gap, between = 0.05, 0.2
    half = (WIDTH - between) / 2 - EDGE
    tile = (half - 3 * gap) / 4
    note = f"{about['rule']} {_of_run(about, label)}; {about['experiment']} and {about['without']}."
    notes = wrap(note, WIDTH - 0.1, SMALL)
    titles = [wrap(example["sentence"], half, TEXT, most=2) for example in about["examples"]]
    tall = [_high(tile, arrays[f"{k}/image"]) for k in range(len(titles))]
    lines = [range(first, min(first + 2, len(titles))) for first in range(0, len(titles), 2)]
    heads = [LINE * (1 + max(len(titles[k]) for k in line)) + 0.06 for line in lines]
    feet = [max(tall[k] for k in line) + 2 * LINE + 0.14 for line in lines]
    height = sum(heads) + sum(feet) + len(notes) * LINE + 0.05
    figure = Figure(figsize=(WIDTH, height))
    top = height
    for line, head, foot in zip(lines, heads, feet, strict=True):
        for side, k in enumerate(line):
            example, x = about["examples"][k], EDGE + side * (half + between)
            gain = f"{example['kind']}: {example['gain']:+.2f}".replace("-", "\N{MINUS SIGN}")
            put_lines(figure, x, top, titles[k], size=TEXT)
            put_lines(figure, x, top - LINE * len(titles[k]), [gain], size=SMALL, color="0.35")
            image, truth, without, with_mmp = (
                arrays[f"{k}/{key}"] for key in ("image", "truth", "without", "with")
            )
            ious = [f"IoU {example[key]:.2f}" for key in ("iou_without", "iou_with")]
            tiles = [
                (["image"], shrunk(image)),
                (["ground truth"], overlay(image, truth, BLUE)),
                (["without MMP", ious[0]], overlay(image, without, ORANGE)),
                (["with MMP", ious[1]], overlay(image, with_mmp, ORANGE)),
            ]
            base = top - head - tall[k]
            for column, (under, drawn) in enumerate(tiles):
                left = x + column * (tile + gap)
                put_picture(put_axes(figure, left, base, tile, tall[k]), np.asarray(drawn))
                put_lines(figure, left + tile / 2, base, under, size=SMALL, ha="center")
        top -= head + foot
    put_note(figure, notes)
    return figure


# Figure 6.


def figure6(about: dict[str, Any], arrays: dict[str, Any], label: str) -> Figure:
    """Draw a sentence's queries by falling score: attention over the words, score, mask."""
    order = np.argsort(-arrays["scores"], kind="stable")
    title = wrap(about["sentence"], WIDTH, TEXT, most=2)
    notes = wrap(f"{about['rule']} {_of_run(about, label)}.", WIDTH - 0.1, SMALL)
    tile = 1.15
    high = _high(tile, arrays["image"])
    # Words stand aslant above the heat map.
    words = 0.1 + 0.75 * max(text_width(_label(word), SMALL) for word in about["words"])
    block = max(0.17 * len(order), 0.69 * math.ceil(len(order) / COLUMNS), 1.0)
    parts = [LINE * len(title) + 0.08, high, LINE + 0.12, words + 0.1, block]
    height = sum(parts) + 0.62 + len(notes) * LINE + 0.05
    figure = Figure(figsize=(WIDTH, height))

    put_lines(figure, EDGE, height, title, size=TEXT)
    top = height - parts[0]
    inside = _sigmoid(arrays["y"]) > about["threshold"]
    tiles = {
        "image": shrunk(arrays["image"]),
        "ground truth": overlay(arrays["image"], arrays["truth"], BLUE),
        f"y (Eq. 16), IoU {about['iou']:.2f}": overlay(arrays["image"], inside, ORANGE),
    }
    for number, (under, drawn) in enumerate(tiles.items()):
        left = EDGE + number * (tile + 0.08)
        put_picture(put_axes(figure, left, top - high, tile, high), np.asarray(drawn))
        put_lines(figure, left + tile / 2, top - high, [under], size=SMALL, ha="center")
    left = len(tiles) * (tile + 0.08) + 0.1
    said = [
        line for text in _alike(about, arrays["scores"]) for line in wrap(text, WIDTH - left, SMALL)
    ]
    put_lines(figure, left, top + 0.03, said, size=SMALL)

    base = height - sum(parts)
    _attention(figure, base, block, about["words"], arrays["attention"][order], order)
    _scores(figure, base, block, arrays["scores"][order])
    _masks(figure, base, block, _sigmoid(arrays["masks"])[order], order, about["threshold"])
    put_note(figure, notes)
    return figure


def _attention(
    figure: Figure, base: float, high: float, words: list[str], rows: Any, order: Any
) -> None:
    panel = put_axes(figure, 0.42, base, 2.75, high)
    drawn = panel.imshow(rows, cmap=MAP, vmin=0, vmax=rows.max(), aspect="auto")
    panel.set_yticks(range(len(order)), [str(query + 1) for query in order])
    panel.set_ylabel("query, by falling score")
    labels = [_label(word) for word in words]
    panel.set_xticks(range(len(words)), labels, rotation=45, ha="left", rotation_mode="anchor")
    for tick in panel.get_xticklabels():
        tick.set_parse_math(False)
    panel.tick_params(length=0, labeltop=True, labelbottom=False, top=False, bottom=False, pad=2)
    bar = figure.colorbar(
        drawn, cax=put_axes(figure, 0.42, base - 0.17, 2.75, 0.08), orientation="horizontal"
    )
    bar.ax.tick_params(length=2, pad=1)
    bar.set_label("attention A over the words (Eq. 9)", fontsize=SMALL, labelpad=1)


def _scores(figure: Figure, base: float, high: float, scores: Any) -> None:
    panel = put_axes(figure, 3.25, base, 0.7, high)
    panel.barh(range(len(scores)), scores, height=0.7, color=BAR, edgecolor="black", linewidth=0.4)
    for number, value in enumerate(scores):
        panel.annotate(
            f"{value:.3f}",
            (value, number),
            xytext=(2, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=SMALL,
        )
    panel.set_ylim(len(scores) - 0.5, -0.5)
    panel.set_xlim(0, float(scores.max()) * 1.02)
    panel.set_yticks([])
    panel.set_xticks([])
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
    put_lines(figure, 3.25, base, ["score S (Eq. 15)"], size=SMALL)


def _masks(
    figure: Figure, base: float, high: float, masks: Any, order: Any, threshold: float
) -> None:
    left, gap = 4.45, 0.06
    wide = (WIDTH - EDGE - left - gap * (COLUMNS - 1)) / COLUMNS
    each = high / math.ceil(len(order) / COLUMNS)
    put_text(figure, left, base + high + 0.06, "masks (Eq. 14), by falling score", size=SMALL)
    for number, (query, mask) in enumerate(zip(order, masks, strict=True)):
        row, column = divmod(number, COLUMNS)
        x, top = left + column * (wide + gap), base + high - row * each
        panel = put_axes(figure, x, top - each, wide, each - LINE)
        put_picture(panel, mask, cmap="Greys", vmin=0, vmax=1)
        if mask.min() < threshold < mask.max():
            panel.contour(mask, levels=[threshold], colors=LIMIT, linewidths=0.7)
        put_lines(figure, x + wide / 2, top + 0.03, [str(query + 1)], size=SMALL, ha="center")
    under = ["grey: sigmoid of the mask, 0 to 1;", f"line: the threshold, {threshold:g}"]
    put_lines(figure, left, base, under, size=SMALL)


def _alike(about: dict[str, Any], scores: Any) -> list[str]:
    every = f"over all {about['sentences']:,} sentences of {about['split']}"
    return [
        "How alike the queries are: means over all pairs of queries; 1 where all are the same.",
        f"Masks, IoU above the threshold of {about['threshold']:g}, on their own grid: "
        f"{about['mask_iou']:.3f}; {every} {about['mean_mask_iou']:.3f}.",
        f"Attention, cosine of the rows of A: {about['attention_cosine']:.3f}; {every} "
        f"{about['mean_attention_cosine']:.3f}.",
        f"Scores: the largest is {scores.max() / max(scores.min(), 1e-30):.6g} times the least.",
    ]


def _of_run(about: dict[str, Any], label: str) -> str:
    return (
        f"{TITLES[about['dataset']]} {about['split']}, {about['backbone']}, N_q = "
        f"{about['num_queries']}, profile {about['profile']} ({label}), seed {about['seed']}"
    )


def _sigmoid(logits: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(float)))  # exp would overflow


def _high(wide: float, image: Any) -> float:
    """Return how high an image so wide is; very tall ones are set narrower."""
    return wide * min(1.3, float(image.shape[1] / image.shape[2]))


def _label(word: str) -> str:
    word = printable(word)
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}…"
