"""What the page gets of a sentence: maps as 8-bit PNGs of bounded size, words, scores."""

import base64
import io
import time
from typing import Any

import numpy as np
from PIL import Image

MAP = 512
"""Longest side of the probabilities that the page gets."""
QUERY_MAP = 160
"""The same, of each query's mask."""


def answer_of(picture: Any, sentence: str) -> dict[str, Any]:
    return picture.stub_answer(sentence)


def mask_of(picture: Any, sentence: str, threshold: float | None) -> bytes:
    return picture.stub_mask(sentence, threshold)


def png(values: Any) -> str:
    """Return numbers from 0 to 1 (h, w) as a grey 8-bit PNG, in base64."""
    grey = np.clip(np.rint(255 * np.asarray(values)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
