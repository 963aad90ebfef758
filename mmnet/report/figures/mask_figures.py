"""Figures 5 and 6, from what `mmnet examples` and `mmnet queries` wrote; no torch is needed."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from mmnet.config.schema import Config
from mmnet.evaluate.pictures import BLUE, ORANGE, overlay, shrunk
from mmnet.report.figures.drawing import (
    LINE,
    SMALL,
    TEXT,
    WIDTH,
    figure_with_note,
    printable,
    save,
    style,
    wrap,
)
from mmnet.report.tables.common import TITLES
from mmnet.runtime.errors import DataError

SMALL_TILE, LARGE_TILE = 0.8, 1.15  # inches, about the width of a picture in Figures 5 and 6
MAP, BAR, LIMIT = "Blues", "#56B4E9", "#D55E00"
COLUMNS = 4
"""Of masks."""
LONGEST = 16
"""Letters of a word above the heat map."""


def write_figure5(examples: Path, config: Config, folder: Path, *, label: str) -> None:
    """Write `figure5.pdf` and `figure5.png` into `folder`.

    Raises:
        DataError: `examples` is missing, damaged, or of another run.
    """
    about, arrays = read_shown(examples, config, command="examples")
    with style():
        save(figure5(about, arrays, label), folder / "figure5")


def figure5(about: dict[str, Any], arrays: dict[str, Any], label: str) -> Figure:
    """Draw the examples, two in a row: image, ground truth, without MMP, with MMP."""
    examples = about["examples"]
    titles = [_title(example) for example in examples]
    needed = [
        SMALL_TILE * aspect(arrays[f"{k}/image"]) + LINE * (len(titles[k]) + 2) + 0.25
        for k in range(len(examples))
    ]
    heights = [max(needed[first : first + 2]) for first in range(0, len(needed), 2)]
    note = f"{about['rule']} {describe_run(about, label)}; {about['experiment']} and "
    figure = figure_with_note(sum(heights), f"{note}{about['without']}.")
    places = figure.subfigures(
        math.ceil(len(examples) / 2), 2, squeeze=False, height_ratios=heights
    )
    for k, (example, place) in enumerate(zip(examples, places.flat, strict=False)):
        place.suptitle("\n".join(titles[k]), x=0.01, ha="left")
        image, truth, without, with_mmp = (
            arrays[f"{k}/{key}"] for key in ("image", "truth", "without", "with")
        )
        tiles = {
            "image": shrunk(image),
            "ground truth": overlay(image, truth, BLUE),
            f"without MMP\nIoU {example['iou_without']:.2f}": overlay(image, without, ORANGE),
            f"with MMP\nIoU {example['iou_with']:.2f}": overlay(image, with_mmp, ORANGE),
        }
        for panel, (under, drawn) in zip(place.subplots(1, 4), tiles.items(), strict=True):
            put_picture(panel, drawn, under)
    return figure


def _title(example: dict[str, Any]) -> list[str]:
    gain = f"{example['kind']}: {example['gain']:+.2f}".replace("-", "\N{MINUS SIGN}")
    return [*wrap(example["sentence"], WIDTH / 2 - 0.15, TEXT, most=2), gain]


def write_figure6(queries: Path, config: Config, folder: Path, *, label: str) -> None:
    """Write `figure6.pdf` and `figure6.png` into `folder`.

    Raises:
        DataError: `queries` is missing, damaged, or of another run.
    """
    about, arrays = read_shown(queries, config, command="queries")
    with style():
        save(figure6(about, arrays, label), folder / "figure6")


def figure6(about: dict[str, Any], arrays: dict[str, Any], label: str) -> Figure:
    """Draw a sentence's queries by falling score: attention over the words, score, mask."""
    order = np.argsort(-arrays["scores"], kind="stable")
    title = wrap(about["sentence"], WIDTH - 0.1, TEXT, most=2)
    heights = [
        max(LARGE_TILE * aspect(arrays["image"]), 7 * LINE) + LINE * (len(title) + 1) + 0.3,
        max(0.17 * len(order), 0.69 * math.ceil(len(order) / COLUMNS), 1.0) + 1.6,
    ]
    figure = figure_with_note(sum(heights), f"{about['rule']} {describe_run(about, label)}.")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    above.suptitle("\n".join(title), x=0.01, ha="left")
    _pictures(above, about, arrays)
    left, right = below.subfigures(1, 2, squeeze=False, width_ratios=[4.3, 2.6]).flat
    _attention_and_scores(left, about["words"], arrays, order)
    _masks(right, _sigmoid(arrays["masks"])[order], order, about["threshold"])
    return figure


def _pictures(place: SubFigure, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    inside = _sigmoid(arrays["y"]) > about["threshold"]
    tiles = {
        "image": shrunk(arrays["image"]),
        "ground truth": overlay(arrays["image"], arrays["truth"], BLUE),
        f"y (Eq. 16), IoU {about['iou']:.2f}": overlay(arrays["image"], inside, ORANGE),
    }
    *panels, text = place.subplots(1, 4, width_ratios=[1, 1, 1, 2.6])
    for panel, (under, drawn) in zip(panels, tiles.items(), strict=True):
        put_picture(panel, drawn, under)
    lines = [
        line for said in _differences(about, arrays["scores"]) for line in wrap(said, 2.8, SMALL)
    ]
    text.set_axis_off()
    text.text(0, 1, "\n".join(lines), fontsize=SMALL, va="top", transform=text.transAxes)


def _attention_and_scores(
    place: SubFigure, words: list[str], arrays: dict[str, Any], order: Any
) -> None:
    rows, scores = arrays["attention"][order], arrays["scores"][order]
    heat, bars = place.subplots(1, 2, sharey=True, width_ratios=[3.2, 1])
    drawn = heat.imshow(rows, cmap=MAP, vmin=0, vmax=rows.max(), aspect="auto")
    heat.set_yticks(range(len(order)), [str(query + 1) for query in order])
    heat.set_ylabel("query, by falling score")
    heat.xaxis.tick_top()
    labels = [_shortened(word) for word in words]
    heat.set_xticks(range(len(words)), labels, rotation=45, ha="left", rotation_mode="anchor")
    heat.tick_params(length=0, pad=2)
    bar = place.colorbar(drawn, ax=heat, location="bottom", aspect=40, pad=0.02)
    bar.set_label("attention A over the words (Eq. 9)", fontsize=SMALL)

    drawn_bars = bars.barh(range(len(scores)), scores, height=0.7, color=BAR)
    bars.bar_label(drawn_bars, fmt="%.3f", padding=2, fontsize=SMALL)
    bars.set(xlim=(0, float(scores.max()) * 1.02), xticks=[])
    bars.set_xlabel("score S (Eq. 15)", fontsize=SMALL, loc="left")
    bars.tick_params(left=False, labelleft=False)
    bars.spines[["top", "right", "bottom"]].set_visible(False)


def _masks(place: SubFigure, masks: Any, order: Any, threshold: float) -> None:
    place.suptitle("masks (Eq. 14), by falling score", fontsize=SMALL)
    under = f"grey: sigmoid of the mask, 0 to 1;\nline: the threshold, {threshold:g}"
    place.supxlabel(under, fontsize=SMALL)
    panels = place.subplots(math.ceil(len(order) / COLUMNS), COLUMNS, squeeze=False)
    for panel in panels.flat[len(order) :]:
        panel.remove()
    for panel, query, mask in zip(panels.flat, order, masks, strict=False):
        put_picture(panel, mask, "", cmap="Greys", vmin=0, vmax=1)
        panel.set_title(str(query + 1), fontsize=SMALL, pad=2)
        if mask.min() < threshold < mask.max():
            panel.contour(mask, levels=[threshold], colors=LIMIT, linewidths=0.7)


def _differences(about: dict[str, Any], scores: Any) -> list[str]:
    def said(name: str) -> str:
        pair = [about[key].get(name) for key in ("queries", "mean_queries")]
        return "undefined" if None in pair else "{:.2g} ({:.2g})".format(*pair)

    keys = about.get("key_words") or {}
    return [
        "How different the queries are; in brackets, on average over all "
        f"{about['sentences']:,} sentences of {about['split']}.",
        f"Spread over the queries relative to rms: F_q {said('query_spread')}, kernels "
        f"{said('kernel_spread')}, masks {said('mask_spread')}; effective number of queries "
        f"{said('effective_queries')}.",
        f"Attention: total variation between queries {said('attention_variation')}, entropy / ln L "
        f"{said('attention_entropy')}.",
        f"Scores: entropy / ln N_q {said('score_entropy')}; the largest is "
        f"{scores.max() / max(scores.min(), 1e-30):.6g} times the least.",
        *(
            [
                "Attention to the word that alone names the object {key:.2f}, to the one beside it "
                "{other:.2f} ({sentences:,.0f} sentences of two attributes).".format(**keys)
            ]
            if keys
            else []
        ),
    ]


def _sigmoid(logits: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(float)))  # exp would overflow


def _shortened(word: str) -> str:
    word = printable(word)
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}…"


def read_shown(
    path: Path, config: Config, *, command: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `mmnet COMMAND` wrote: what is known of a figure's sentences, and its arrays.

    Raises:
        DataError: it is missing, damaged, or of another run.
    """
    fix = f"Run: mmnet {command} --experiment {config.experiment} --seed {config.seed}."
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
    except FileNotFoundError:
        raise DataError(f"{path}: not found. {fix}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({reason}). {fix}") from None
    for key in ("profile", "experiment", "seed"):
        if about.get(key) != getattr(config, key):
            raise DataError(
                f"{path}: has {key} {about.get(key)!r}, expected {getattr(config, key)!r}. {fix}"
            )
    return about, arrays


def describe_run(about: dict[str, Any], label: str) -> str:
    return (
        f"{TITLES[about['dataset']]} {about['split']}, {about['backbone']}, N_q = "
        f"{about['num_queries']}, profile {about['profile']} ({label}), seed {about['seed']}"
    )


def aspect(image: Any) -> float:
    """Return height over width; images that are very tall are set narrower than their place."""
    return min(1.3, float(image.shape[1] / image.shape[2]))


def put_picture(panel: Axes, picture: Any, label: str, **colours: Any) -> None:
    panel.imshow(np.asarray(picture), **colours)
    panel.set_anchor("N")
    panel.set(xticks=[], yticks=[])
    panel.set_xlabel(label, fontsize=SMALL)
