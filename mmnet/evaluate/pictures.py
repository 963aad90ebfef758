"""Masks drawn on their images, side by side: images in, images out; no files."""

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

BLUE, ORANGE = (0, 114, 178), (230, 120, 0)  # distinguishable to colour-blind readers
SIDE = 240  # pixels of a tile's longer side, however large the image
GAP = 8
TITLE, LABEL = 17, 13  # pixels, of letters
NARROWEST = 90  # pixels of a tile's place: room for its label


def comparison(
    sentence: str, image: ArrayLike, truth: ArrayLike, predictions: Mapping[str, ArrayLike]
) -> Image.Image:
    """Draw a sentence above its image, the ground truth, and one or more labelled predictions.

    The image is (3, h, w) of bytes, masks are (h, w) bool, as tensors or arrays.
    """
    tiles = {"image": shrunk(image), "ground truth": overlay(image, truth, BLUE)}
    tiles |= {label: overlay(image, mask, ORANGE) for label, mask in predictions.items()}
    return strip(sentence, tiles)


def overlay(image: ArrayLike, mask: ArrayLike, colour: tuple[int, int, int]) -> Image.Image:
    """Draw an image (3, h, w) of bytes: its mask (h, w) tinted and outlined, the rest paled."""
    picture = shrunk(image)
    pale = Image.blend(ImageOps.grayscale(picture).convert("RGB"), _plain(picture, "white"), 0.55)
    tinted = Image.blend(picture, _plain(picture, colour), 0.3)
    # A shrunk pixel is in the mask if any of its originals is: small masks stay visible.
    whole = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)
    inside = whole.resize(picture.size, Image.Resampling.BOX).point(lambda value: 255 * (value > 0))
    picture = Image.composite(tinted, pale, inside)
    # A dark line with a light one around it shows on any image; at the border, inside it.
    framed = ImageOps.expand(inside, 2)
    inner = ImageChops.subtract(framed, framed.filter(ImageFilter.MinFilter(5)))
    outer = ImageChops.subtract(framed.filter(ImageFilter.MaxFilter(3)), framed)
    for line, paint in (outer, "white"), (inner, colour):
        picture.paste(paint, mask=ImageOps.crop(line, 2))
    return picture


def strip(title: str, tiles: Mapping[str, Image.Image]) -> Image.Image:
    """Set pictures in a row, each above its label and all below a title."""
    places = [max(tile.width, NARROWEST) for tile in tiles.values()]
    width = sum(places) + GAP * (len(places) - 1)
    title_font, label_font = ImageFont.load_default(TITLE), ImageFont.load_default(LABEL)
    # The font that comes with Pillow has no other letters.
    letters = unicodedata.normalize("NFKD", title)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    lines = textwrap.wrap(
        plain.encode("ascii", "replace").decode(),
        int(width / title_font.getlength("n")),
        max_lines=2,
        placeholder=" …",
    )
    top = len(lines) * (TITLE + 4) + 4
    bottom = top + max(tile.height for tile in tiles.values())
    picture = Image.new("RGB", (width, bottom + LABEL + 6), "white")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((0, number * (TITLE + 4)), line, "black", title_font)
    x = 0
    for (label, tile), place in zip(tiles.items(), places, strict=True):
        picture.paste(tile, (x, top))
        draw.text((x, bottom + 2), label, "dimgrey", label_font)
        x += place + GAP
    return picture


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Set pictures in rows and columns on a white sheet."""
    columns = max(len(row) for row in rows)
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    size = sum(widths) + 2 * GAP * (columns + 1), sum(heights) + 2 * GAP * (len(rows) + 1)
    picture = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        for j, part in enumerate(row):
            corner = sum(widths[:j]) + 2 * GAP * (j + 1), sum(heights[:i]) + 2 * GAP * (i + 1)
            picture.paste(part, corner)
    return picture


def shrunk(image: ArrayLike) -> Image.Image:
    """Bring an image (3, h, w) of bytes to the size of a tile; small ones grow."""
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, 2)))
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _plain(picture: Image.Image, colour: str | tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", picture.size, colour)
