"""Anybody's pictures to the model's square: path, Pillow image or array in; values out.

A JPEG as the data sets have them is decoded as `predict` decodes it. All others go through Pillow:
turned as EXIF says, on white where transparent, 8 bits a channel, the first frame of several.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmnet.data.dataset import read_image
from mmnet.data.transforms import Placement, letterbox, place
from mmnet.runtime.errors import DataError
from mmnet.use.sources import path_of

LARGE = 24_000_000
"""Pixels: a larger picture is halved, or more, before it becomes a tensor; its masks are not."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Of Pillow's: others can start programs, such as Ghostscript for EPS."""
PREVIEW = 2048
"""Pixels of a preview's longer side, at most."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what undoes it; from 5 on, height and width change places."""

Source = str | Path | Image.Image | np.ndarray[Any, Any]


class Pixels(NamedTuple):
    """A picture as the model sees it, and as a person does."""

    square: Tensor  # (3, H, W) uint8
    placement: Placement  # with the picture's own height and width
    preview: Image.Image  # RGB, the longer side at most PREVIEW
    notes: tuple[str, ...]  # what was left out, in words


class _Unsupported(Exception):
    """A whole picture that cannot be used."""


class _Decoded(NamedTuple):
    image: Tensor  # (3, h, w) uint8, perhaps reduced
    height: int
    width: int
    notes: tuple[str, ...]


def read_pixels(source: Source, *, size: int, resize: str) -> Pixels:
    """Decode a picture and fit it to the model's square of `size` pixels.

    Raises:
        DataError: it is missing, damaged, no picture, or too large.
    """
    if isinstance(source, np.ndarray):
        decoded = _of_array(source)
    elif isinstance(source, Image.Image):
        with _one_line("picture"):
            decoded = _of_pillow(source)
    elif isinstance(source, str | Path):
        path = path_of(source)
        with _one_line(str(path)):
            decoded = _of_file(path)
    else:
        raise DataError(
            f"{type(source).__name__}: no picture. Give a path, a Pillow image or an array."
        )
    placement = place(decoded.height, decoded.width, size, resize)
    return Pixels(
        letterbox(decoded.image, placement), placement, _preview(decoded.image), decoded.notes
    )


def _of_array(array: np.ndarray[Any, Any]) -> _Decoded:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(
            f"array of {array.dtype} {array.shape}: expected uint8 (height, width, 3), RGB."
        )
    height, width = array.shape[:2]
    return _Decoded(torch.from_numpy(array.copy()).permute(2, 0, 1), height, width, ())


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Report in one line why a picture cannot be read."""
    try:
        # Pillow warns of large pictures and of odd metadata; neither keeps them from being read.
        with warnings.catch_warnings(action="ignore"):
            yield
    except FileNotFoundError:
        raise DataError(f"{name}: not found.") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: not a picture of a known format. Use a JPEG, PNG or WebP file."
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has more than 178 megapixels. Make it smaller.") from None
    except _Unsupported as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, OSError) and error.strerror:  # a folder, or no permission
            raise DataError(f"{name}: cannot be read: {error.strerror}.") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if isinstance(error, DataError):  # read_image's, whose remedy is for the data sets
            reason = "its JPEG data end early or are invalid"
        raise DataError(f"{name}: damaged ({reason}). Use a whole copy.") from None


def _of_file(path: Path) -> _Decoded:
    with Image.open(path, formats=FORMATS) as image:
        if not is_plain_jpeg(image) or not _is_text(str(path)):
            return _of_pillow(image)
        pixels = read_image(path)
        return _Decoded(pixels, pixels.shape[1], pixels.shape[2], ())


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether a file is such as the data sets have, which `predict` gives to torchvision."""
    return (
        image.format == "JPEG"
        and image.mode in ("RGB", "L")
        and image.getexif().get(ORIENTATION, 1) == 1
        and image.width * image.height <= LARGE
    )


def _is_text(name: str) -> bool:
    """Whether a name can be encoded, as torchvision needs it; bytes of other encodings cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _of_pillow(image: Image.Image) -> _Decoded:
    width, height = image.size
    if not width or not height:
        raise _Unsupported("has no pixels.")
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation in range(5, 9):
        width, height = height, width
    frames = getattr(image, "n_frames", 1)
    notes = (f"the first of {frames} frames",) if frames > 1 else ()
    factor = math.ceil(math.sqrt(width * height / LARGE))
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))  # JPEGs alone
    image = _eight_bits(image)
    if (left := math.ceil(math.sqrt(image.width * image.height / LARGE))) > 1:
        image = image.reduce(left)
    image = _on_white(image)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    return _Decoded(torch.from_numpy(np.array(image)).permute(2, 0, 1), height, width, notes)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring 16-bit greys and palettes to modes of 8 bits a channel; others are those already."""
    if image.mode == "F":
        raise _Unsupported("has floating-point values. Save it with 8 bits a channel.")
    if image.mode.startswith("I"):  # 16 bits, in Pillow's modes of 16 or 32
        values = np.asarray(image)
        values = values >> 8 if values.max() > 255 else values
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("L") if image.mode == "1" else image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    white.info, white._exif = image.info, None
    return white


def _preview(image: Tensor) -> Image.Image:
    preview = Image.fromarray(image.permute(1, 2, 0).numpy())
    preview.thumbnail((PREVIEW, PREVIEW))
    return preview
