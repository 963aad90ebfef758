"""Pairs of a picture and a sentence in batches: each picture decoded once, ahead of its turn."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmnet.runtime.errors import DataError, MMNetError
from mmnet.use.images import Pixels, Source

AHEAD = 3
"""Pictures that are decoded before their turn, in a thread beside the model."""

Pair = tuple[Source, str]


@dataclass
class Batch:
    """Pictures with all their sentences, read together."""

    sources: list[Source] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of each sentence's pair."""
    of_picture: list[int] = field(default_factory=list)
    """Each sentence's picture in this batch."""


@dataclass
class Failure:
    number: int
    """Of the pair."""
    error: MMNetError


def check_sentence(sentence: str) -> None:
    """Refuse a sentence without a word.

    Raises:
        DataError: it is empty, or no text.
    """
    if not isinstance(sentence, str):
        raise DataError(f"{sentence!r}: not a sentence. Give text, such as 'the left dog'.")
    if not sentence.strip():
        raise DataError("empty sentence. Name the object to find, such as 'the left dog'.")
    try:
        sentence.encode()
    except UnicodeEncodeError:
        raise DataError(f"{sentence!r}: not UTF-8. Write the sentence in UTF-8.") from None


def batches(
    pairs: Iterable[Pair], decode: Callable[[Source], Pixels], size: int
) -> Iterator[Batch | Failure]:
    """Yield batches that end with the picture that brings them to `size` sentences, and failures.

    These are the batches of `data/dataset.py: EvaluationItems` for the same pairs in its order.
    """
    groups: dict[object, list[tuple[int, Pair]]] = {}
    for number, (source, sentence) in enumerate(pairs):
        try:
            check_sentence(sentence)
        except DataError as error:
            yield Failure(number, error)
            continue
        # Pictures without a name are told apart as objects; `groups` keeps them alive.
        key = str(source) if isinstance(source, str | Path) else id(source)
        groups.setdefault(key, []).append((number, (source, sentence)))
    batch = Batch()
    for group, future in _decoded(list(groups.values()), decode):
        try:
            pixels = future.result()
        except MMNetError as error:
            yield from (Failure(number, error) for number, _ in group)
            continue
        for number, (_, sentence) in group:
            batch.sentences.append(sentence)
            batch.numbers.append(number)
            batch.of_picture.append(len(batch.pixels))
        batch.sources.append(group[0][1][0])
        batch.pixels.append(pixels)
        if len(batch.sentences) >= size:
            yield batch
            batch = Batch()
    if batch.sentences:
        yield batch


def _decoded(
    groups: list[list[tuple[int, Pair]]], decode: Callable[[Source], Pixels]
) -> Iterator[tuple[list[tuple[int, Pair]], Future[Pixels]]]:
    """Yield each group and its picture, decoding the next ones meanwhile."""
    waiting: collections.deque[tuple[list[tuple[int, Pair]], Future[Pixels]]] = collections.deque()
    todo = iter(groups)
    pool = ThreadPoolExecutor(1, thread_name_prefix="decode")
    try:
        while True:
            for group in itertools.islice(todo, AHEAD - len(waiting)):
                waiting.append((group, pool.submit(decode, group[0][1][0])))
            if not waiting:
                return
            yield waiting.popleft()
    finally:  # also where the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)
