"""The model's one thread: requests wait in line, and the last pictures stay in memory."""

import asyncio
import hashlib
import io
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from mmnet.runtime.errors import DataError, MMNetError
from mmnet.use.page.answer import answer_of, mask_of

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

    picture: Any
    shown: bytes
    """What the page shows: a JPEG."""
    about: dict[str, Any]


class Worker:
    """A model and the pictures that it has seen.

    `run` calls one of the other methods in the model's thread, after those that wait already.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._line = ThreadPoolExecutor(1, "model")

    async def run(self, method: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._line, method, *arguments)

    def close(self) -> None:
        """Drop what waits, and end what runs."""
        self._line.shutdown(wait=True, cancel_futures=True)

    def look(self, data: bytes) -> dict[str, Any]:
        """Encode a picture's file; return its id, size in pixels, and seconds.

        Raises:
            DataError: it is no picture, or has too many pixels.
        """
        id = hashlib.sha256(data).hexdigest()[:16]
        if id not in self._seen:
            check_size(data)
            start = time.perf_counter()
            picture = self._model.look(Image.open(io.BytesIO(data)))
            seconds = time.perf_counter() - start
            height, width = picture.size
            about = {"id": id, "width": width, "height": height, "seconds": seconds}
            self._seen[id] = Seen(picture, jpeg(picture.image), about)
            while len(self._seen) > PICTURES:
                self._seen.popitem(last=False)
        return self._of(id).about

    def shown(self, id: str) -> bytes:
        return self._of(id).shown

    def find(self, id: str, sentence: str) -> dict[str, Any]:
        """Return what the page shows of a sentence."""
        return answer_of(self._of(id).picture, sentence)

    def mask(self, id: str, sentence: str, threshold: float | None) -> bytes:
        """Return a mask as PNG, at the picture's own size."""
        return mask_of(self._of(id).picture, sentence, threshold)

    def _of(self, id: str) -> Seen:
        if id not in self._seen:
            raise Forgotten("this picture is no longer in memory: send it again")
        self._seen.move_to_end(id)
        return self._seen[id]


def check_size(data: bytes) -> None:
    """Check a picture's size by the head of its file, before anything is decoded.

    Raises:
        DataError: it is no picture, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise DataError("the picture has too many pixels: at most 50 megapixels") from None
    except Exception:
        raise DataError("this file is not a picture that can be read (JPEG, PNG, WebP, ...)") from None
    if width * height > MOST_PIXELS:
        raise DataError(
            f"the picture has {width * height / 1e6:,.0f} megapixels ({width} x {height}): at most "
            f"{MOST_PIXELS / 1e6:.0f} are allowed. Make it smaller."
        )


def jpeg(image: Image.Image) -> bytes:
    """Return a picture as the page shows it."""
    small = image.copy()
    small.thumbnail((SHOWN, SHOWN))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=92)
    return file.getvalue()
