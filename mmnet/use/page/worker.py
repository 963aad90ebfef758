"""The model's one thread: requests wait in line, and the last pictures stay in memory."""

import asyncio
import hashlib
import io
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from mmnet.runtime.errors import DataError, MMNetError
from mmnet.use.images import FORMATS, Source, is_plain_jpeg
from mmnet.use.model import Model, Picture
from mmnet.use.page.answer import answer, mask_png

T = TypeVar("T")

PICTURES = 8
"""Encoded pictures that stay in memory."""
MOST_PIXELS = 50_000_000
SHOWN = 1280
"""Longest side of a picture as the page shows it."""


class Forgotten(MMNetError):
    """A picture that is no longer in memory; the page sends it again."""


class Seen(NamedTuple):
    """A picture in memory."""

    picture: Picture
    shown: bytes
    """What the page shows: a JPEG."""
    about: dict[str, Any]


class Worker:
    """A model and the pictures that it has seen.

    `run` calls one of the other methods in the model's thread, after those that wait already.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._line = ThreadPoolExecutor(1, "model")

    async def run(self, method: Callable[..., T], *arguments: Any) -> T:
        """Return a method's result.

        Raises:
            MMNetError: the method's own, or the memory does not suffice.
        """
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._line, method, *arguments)
        except (MemoryError, torch.OutOfMemoryError):
            raise MMNetError("too little memory for this picture: make it smaller") from None

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._line.shutdown(wait=False, cancel_futures=True)

    def look(self, data: bytes) -> dict[str, Any]:
        """Encode a picture's file; return its id, size in pixels, notes and seconds.

        Raises:
            DataError: it is no picture, is damaged, or has too many pixels.
        """
        id = hashlib.sha256(data).hexdigest()[:16]
        if id not in self._seen:
            start = time.perf_counter()
            picture = self._model.look(opened(data))
            seconds = time.perf_counter() - start
            height, width = picture.size
            about = {"id": id, "width": width, "height": height, "seconds": seconds}
            about["note"] = "; ".join(picture.pixels.notes)
            self._seen[id] = Seen(picture, jpeg(picture.pixels.preview), about)
            while len(self._seen) > PICTURES:
                self._seen.popitem(last=False)
        return self._of(id).about

    def shown(self, id: str) -> bytes:
        """Return a picture as the page shows it, a JPEG."""
        return self._of(id).shown

    def find(self, id: str, sentence: str) -> dict[str, Any]:
        """Return what the page shows of a sentence."""
        return answer(self._of(id).picture, sentence)

    def mask(self, id: str, sentence: str, threshold: float | None) -> bytes:
        """Return a mask as a PNG, at the picture's own size."""
        return mask_png(self._of(id).picture, sentence, threshold)

    def _of(self, id: str) -> Seen:
        if id not in self._seen:
            raise Forgotten("this picture is no longer in memory: send it again")
        self._seen.move_to_end(id)
        return self._seen[id]


def opened(data: bytes) -> Source:
    """Decode a picture as a path's; what is too large is refused by the head of its file.

    Raises:
        DataError: it is no picture, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():  # Pillow's, of many pixels
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError("The picture has more than 50 megapixels. Make it smaller.") from None
    except Exception:  # a damaged file can raise nearly anything
        raise DataError("This file is no picture. Choose a JPEG, PNG or WebP file.") from None
    if (count := image.width * image.height) > MOST_PIXELS:
        raise DataError(
            f"The picture has {count / 1e6:,.0f} megapixels; {MOST_PIXELS / 1e6:.0f} are allowed. "
            "Make it smaller."
        )
    try:
        if is_plain_jpeg(image):
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            pixels: Tensor = decode_image(content, mode=ImageReadMode.RGB)
            return pixels.permute(1, 2, 0).numpy()
        image.load()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if isinstance(error, RuntimeError):  # torchvision's, of its own function, file and line
            reason = "its JPEG data end early or are invalid"
        raise DataError(f"The picture is damaged ({reason}). Choose a whole copy.") from None
    return image


def jpeg(image: Image.Image) -> bytes:
    image = image.copy()
    image.thumbnail((SHOWN, SHOWN))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()
