"""Pictures of a result's queries, for people to look at: values in, images out."""

import numpy as np
from PIL import Image

from mmnet.evaluate.pictures import SIDE, sheet, strip
from mmnet.use.result import QueryMasks, Result

COLUMNS = 4


def draw_queries(result: Result, queries: QueryMasks) -> Image.Image:
    """Draw a sentence's mask, then its queries' masks by falling score, white where p is 1.

    Below each: the query's number and score, and the word that it reads most.
    """
    height, width = result.size
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    masks = np.rint(255 * queries.masks_at(*size)).astype(np.uint8)
    words = [queries.words[place] for place in queries.attention.argmax(1)]
    tiles = {
        f"{n + 1}: score {queries.scores[n]:.3f}, {_plain(words[n])}": Image.fromarray(masks[n])
        for n in np.argsort(-queries.scores, kind="stable")
    }
    shown = {"picture": result.pixels.preview, "mask": result.overlay()}
    above = {
        name: picture.resize(size[::-1], Image.Resampling.LANCZOS)
        for name, picture in shown.items()
    }
    rows = [[strip(f"{result.sentence}  (confidence {result.confidence:.2f})", above)]]
    labels = list(tiles)
    for first in range(0, len(labels), COLUMNS):
        rows.append([strip("", {name: tiles[name] for name in labels[first : first + COLUMNS]})])
    return sheet(rows)


def _plain(word: str) -> str:
    """Return a word in letters that Pillow's own font has."""
    return word[:14].encode("ascii", "replace").decode()
