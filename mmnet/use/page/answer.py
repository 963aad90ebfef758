"""What the page gets of a sentence: maps as 8-bit PNGs of bounded size, words, scores."""

import base64
import io
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmnet.evaluate.queries import merge_words
from mmnet.use.model import Picture
from mmnet.use.result import Floats

MAP = 512
"""Longest side of the probabilities that the page gets, in pixels."""
QUERY_MAP = 160
"""The same, of each query's mask."""


def answer(picture: Picture, sentence: str) -> dict[str, Any]:
    """Return a sentence's mask, and what each query makes of it, for JSON.

    Raises:
        DataError: the sentence is empty.
    """
    start = time.perf_counter()
    found = picture.find(sentence)
    return {
        "threshold": found.threshold,
        "confidence": found.confidence,
        "area": found.area,
        "cut": found.cut,
        "probability": png(found.probability_at(*_fitted(picture, MAP))),
        **_queries(picture, sentence),
        "seconds": time.perf_counter() - start,
    }


def mask_png(picture: Picture, sentence: str, threshold: float | None) -> bytes:
    """Return a sentence's mask as a PNG of 0 and 255, at the picture's size."""
    file = io.BytesIO()
    Image.fromarray(picture.find(sentence, threshold).mask).save(file, "PNG")
    return file.getvalue()


def png(values: Floats) -> str:
    """Return numbers from 0 to 1, (h, w), as a grey 8-bit PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _queries(picture: Picture, sentence: str) -> dict[str, Any]:
    """Return the words, and the queries by falling score: number, attention to words, mask."""
    masks: list[str] | list[None]
    if picture.model.config.model.mmp:
        read = picture.queries(sentence)
        words, attention, scores = read.words, read.attention, read.scores
        masks = [png(mask) for mask in read.masks_at(*_fitted(picture, QUERY_MAP))]
        diversity = _in_words(read.measures, len(scores))
    else:
        words, attention, scores = _read(picture, sentence)
        masks = [None] * len(scores)
        diversity = "This model has no MMP: all its queries make one mask together."
    queries = [
        {
            **{"number": n + 1, "score": float(scores[n]), "mask": masks[n]},
            "attention": attention[n].tolist(),
        }
        for n in np.argsort(-scores, kind="stable").tolist()
    ]
    scored = picture.model.network.has_scores
    return {"words": words, "queries": queries, "scored": scored, "diversity": diversity}


@torch.inference_mode()
def _read(picture: Picture, sentence: str) -> tuple[list[str], Floats, Floats]:
    """Return the words, attention and scores of a model whose queries have no masks."""
    tokens, _ = picture.model.tokenize([sentence])
    read = picture.model.network.read(picture.features, tokens)
    words, attention = merge_words(tokens[0].cpu(), read.attention[0].float().cpu())
    return words, attention.numpy(), read.made.s_q[0].float().cpu().numpy()


def _in_words(measures: dict[str, float], n: int) -> str:
    """Return how different N_q queries are, in one line."""
    if n == 1:
        return "This model has one query."
    count = measures["effective_queries"]
    masks, attention = (
        f"{100 * measures[name]:.0f} %" for name in ("mask_spread", "attention_variation")
    )
    return (
        f"{n} queries act like {count:.1f}: their masks differ by {masks}, what they read by "
        f"{attention} (0 %: all alike)."
    )


def _fitted(picture: Picture, longest: int) -> tuple[int, int]:
    """Return height and width of a picture made smaller, if need be, to a longest side."""
    height, width = picture.size
    scale = min(1.0, longest / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))
