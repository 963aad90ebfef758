"""What the figures share: size, style, letters, and files that are the same bytes each time.

Figures are 6.9 inches wide, both columns of a two-column page, and no letter is under 7 points.
Colours are Okabe and Ito's, and no meaning is carried by colour alone.
"""

import functools
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from mmnet.runtime.files import atomic_path

WIDTH = 6.9  # inches
TEXT, SMALL = 8.0, 7.0  # points
LINE = 0.14  # inches, of a line of text
FONT = "DejaVu Sans"  # matplotlib's own: the same everywhere
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": TEXT,
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], SMALL),
    **dict.fromkeys(["axes.labelsize", "axes.titlesize", "figure.titlesize"], TEXT),
    "axes.linewidth": 0.6,
    "text.parse_math": False,  # a sentence's dollar sign is one
    "pdf.fonttype": 42,  # letters, not drawings of them
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in our style, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def figure_with_note(height: float, note: str) -> Figure:
    """Return a figure that lays itself out in `height` inches, above a note of small letters."""
    lines = wrap(note, WIDTH - 0.1, SMALL)
    below = len(lines) * LINE + 0.1
    whole = height + below
    figure = Figure(figsize=(WIDTH, whole))
    figure.set_layout_engine("constrained", rect=(0, below / whole, 1, height / whole))
    figure.text(0.05 / WIDTH, 0.05 / whole, "\n".join(lines), fontsize=SMALL, va="bottom")
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write PDF and PNG; without times and versions, the same bytes each time."""
    FigureCanvasAgg(figure)
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with atomic_path(stem.with_suffix(f".{suffix}")) as path:
            figure.savefig(path, format=suffix, dpi=200, metadata=metadata)


@functools.cache
def _letters() -> set[int]:
    return set(get_font(findfont(FONT)).get_charmap())


def printable(text: str) -> str:
    """Return text in one line, with ? for what the font has no letter for."""
    return "".join(c if ord(c) in _letters() else "?" for c in " ".join(text.split()))


def wrap(text: str, width: float, size: float, most: int | None = None) -> list[str]:
    """Break text into lines of at most `width` inches; beyond `most` lines it is cut."""
    text, characters = printable(text), round(width * 72 / size * 4)
    while True:
        lines = textwrap.wrap(text, characters, max_lines=most, placeholder="…")
        widest = max((_inches(line, size) for line in lines), default=0.0)
        if widest <= width:
            return lines
        characters -= 1


def _inches(line: str, size: float) -> float:
    font = FontProperties(family=FONT, size=size)
    return float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]) / 72
