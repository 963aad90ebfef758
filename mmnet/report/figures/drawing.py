"""What the figures share: size, style, letters, and files that are the same bytes each time.

Figures are 6.9 inches wide, both columns of a two-column page, and no letter is under 7 points.
Colours are Okabe and Ito's, and nothing is told by colour alone.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from mmnet.runtime.files import atomic_path

WIDTH = 6.9  # inches
TEXT, SMALL = 8.0, 7.0  # points
LINE = 0.14  # inches, of a line of text
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib's own: the same everywhere
    "font.size": TEXT,
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], SMALL),
    **dict.fromkeys(["axes.labelsize", "axes.titlesize"], TEXT),
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # letters, not drawings of them
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in our style, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: Figure, stem: Path) -> None:
    """Write PDF and PNG; without times and versions, the same bytes each time."""
    FigureCanvasAgg(figure)
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with atomic_path(stem.with_suffix(f".{suffix}")) as path:
            figure.savefig(path, format=suffix, dpi=200, metadata=metadata)


def put_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes, their place in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def put_picture(panel: Axes, picture: Any, **colours: Any) -> None:
    panel.imshow(picture, **colours)
    panel.set_anchor("N")
    panel.set_xticks([])
    panel.set_yticks([])


def put_text(figure: Figure, x: float, y: float, text: str, *, size: float, **more: Any) -> None:
    """Set text on a line y inches from the bottom; a dollar sign is one, not mathematics."""
    wide, high = figure.get_size_inches()
    figure.text(x / wide, y / high, text, fontsize=size, parse_math=False, **more)


def put_lines(figure: Figure, x: float, top: float, lines: list[str], **more: Any) -> None:
    for number, line in enumerate(lines):
        put_text(figure, x, top - LINE * (number + 1), line, **more)


def put_note(figure: Figure, lines: list[str]) -> None:
    """Set lines beneath the figure."""
    put_lines(figure, 0.05, len(lines) * LINE + 0.05, lines, size=SMALL)


@functools.cache
def _font() -> Any:
    return get_font(findfont("DejaVu Sans"))


def printable(text: str) -> str:
    """Return text in one line, with ? for what the font has no letter for."""
    letters = _font().get_charmap()
    return "".join(c if ord(c) in letters else "?" for c in " ".join(text.split()))


def text_width(text: str, size: float) -> float:
    """Return a text's width in inches."""
    font = _font()
    font.set_size(size, 72)
    font.set_text(text, 0.0)
    return float(font.get_width_height()[0]) / 64 / 72


def wrap(text: str, width: float, size: float, most: int = 99) -> list[str]:
    """Break text into lines of at most so many inches; what is beyond `most` lines is left out."""
    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    cut = len(lines) > most
    lines = lines[:most]
    for number, line in enumerate(lines):  # the last, if cut; a word wider than the line
        ellipsis = "…" if cut and number == most - 1 else ""
        while line and text_width(line + ellipsis, size) > width:
            line, ellipsis = line[:-1], "…"
        lines[number] = line + ellipsis
    return lines
