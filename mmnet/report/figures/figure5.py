"""Figure 5, from what `mmnet examples` wrote: masks with and without MMP, side by side."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmnet.config.schema import Config
from mmnet.evaluate.pictures import BLUE, ORANGE, overlay, shrunk
from mmnet.report.figures.drawing import LINE, TEXT, WIDTH, figure_with_note, save, style, wrap
from mmnet.report.figures.masks import aspect, describe_run, put_picture, read_shown

TILE = 0.8  # inches, about the width of one


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
        TILE * aspect(arrays[f"{k}/image"]) + LINE * (len(titles[k]) + 2) + 0.25
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
