"""CLIP's byte pair encoding, cut to L tokens."""

import functools

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from mmnet.runtime.progress import say

SOS, EOS = 49406, 49407
"""CLIP's start and end of text; the end has the largest id, so argmax finds it."""


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def num_tokens(sentence: str) -> int:
    """Return the number of tokens of a sentence before any cut, [SOS] and [EOS] included."""
    return len(_tokenizer().encode(sentence)) + 2


def tokenize(sentences: list[str], max_length: int) -> tuple[Tensor, int]:
    """Return token ids (n, L), zero after [EOS], and the number of sentences that were cut.

    A cut sentence keeps its [EOS].
    """
    tokens = torch.zeros(len(sentences), max_length, dtype=torch.long)
    cut = 0
    for row, sentence in zip(tokens, sentences, strict=True):
        whole = [SOS, *_tokenizer().encode(sentence), EOS]
        cut += len(whole) > max_length
        kept = whole[:max_length]
        kept[-1] = EOS
        row[: len(kept)] = torch.tensor(kept)
    return tokens, cut


def say_cut(what: str, tokens: Tensor, num_cut: int) -> None:
    """Report how many sentences were longer than L, if any."""
    if num_cut:
        count, limit = tokens.shape
        say(
            f"{what}: {num_cut} of {count} sentences are longer than L={limit} tokens; "
            "cut, [EOS] kept"
        )
