"""Which things of a scene an English sentence names: read from its text, by a grammar of its own.

This is the mini benchmark's judge, so it imports nothing from the code it judges. A scene is
any sequence of things with shape, colour, pattern, size, x and y. A sentence has two readings.
`sure` holds the things it is plainly true of, `possible` those it might be taken for; a good
sentence has one thing in both. The limits here leave the generator a little room on either side.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ADJECTIVES = {
    **{word: ("colour", word) for word in ["red", "green", "blue", "yellow", "purple", "white"]},
    "striped": ("pattern", "striped"),
    "plain": ("pattern", "plain"),
    **dict.fromkeys(("large", "big"), ("size", "large")),
    **dict.fromkeys(("small", "little"), ("size", "small")),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
NOUNS = {word: ("shape", word) for word in SHAPES}
NAMELESS = ("one", "thing")
WITH = {"stripes": "striped"}

NOUN_PHRASE = (
    rf"(?:(?:{'|'.join(ADJECTIVES)}) )*(?:{'|'.join([*NOUNS, *NAMELESS])})"
    rf"(?: with (?:{'|'.join(WITH)}))?"
)
SENTENCE = re.compile(
    r"(?:(?:the|a) )?"
    r"(?:(?P<place>(?:top|bottom) (?:left|right)|left(?:most)?|right(?:most)?|top|bottom|middle) )?"
    rf"(?P<noun>{NOUN_PHRASE})"
    r"(?: in the (?P<corner>(?:top|bottom) (?:left|right)) corner"
    r"| (?:on|at) (?:the )?(?P<side>left|right|top|bottom)(?: side)?"
    r"| in (?:the )?(?P<inner>middle|center)"
    r"|(?: (?:that|which) is)? (?:(?P<vertical>above|below)|(?:to|on) the (?P<hand>left|right) of)"
    rf" the (?P<landmark>{NOUN_PHRASE}))?"
)

Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Reading:
    sure: set[int]
    possible: set[int]
    noun: set[int]
    """What the noun phrase alone would name."""


def read(sentence: str, things: Sequence[Any], width: int, height: int) -> Reading:
    """Positions in `things` of what the sentence names.

    Raises:
        ValueError: the sentence is not in the grammar, or takes for granted what is not so.
    """
    match = SENTENCE.fullmatch(sentence)
    if match is None:
        raise ValueError(f"{sentence!r} is no sentence of the benchmark")
    noun = _named(match["noun"], things)

    def among(sure: Test, possible: Test) -> Reading:
        return Reading(
            {i for i in noun if sure(things[i])}, {i for i in noun if possible(things[i])}, noun
        )

    def distance(thing: Any, side: str) -> float:
        """From a side of the image, as a share of the image."""
        share = thing.x / width if side in ("left", "right") else thing.y / height
        return share if side in ("left", "top") else 1 - share

    def off_centre(thing: Any) -> float:
        return max(abs(thing.x / width - 1 / 2), abs(thing.y / height - 1 / 2))

    place = match["place"]
    region = match["corner"] or match["side"] or (place if place and " " in place else None)
    if region:
        sides = region.split()
        return among(
            lambda thing: all(distance(thing, side) < 0.45 for side in sides),
            lambda thing: all(distance(thing, side) < 0.50 for side in sides),
        )
    if match["inner"] or place == "middle":
        return among(lambda thing: off_centre(thing) < 0.15, lambda thing: off_centre(thing) < 0.20)
    if place:
        side = place.removesuffix("most")
        first = min((distance(things[i], side) for i in noun), default=0.0)
        return among(
            lambda thing: distance(thing, side) == first < 0.45,
            lambda thing: distance(thing, side) < first + 0.10,
        )
    if match["landmark"]:
        landmarks = _named(match["landmark"], things)
        if len(landmarks) != 1:
            raise ValueError(f"{sentence!r}: {len(landmarks)} things are the {match['landmark']}")
        (landmark,) = landmarks
        side = match["vertical"] or match["hand"]

        def offset(thing: Any) -> tuple[float, float]:
            """Along the relation and across it, in shorter sides of the image."""
            x, y = thing.x - things[landmark].x, thing.y - things[landmark].y
            along = {"above": -y, "below": y, "left": -x, "right": x}[side]
            across = x if side in ("above", "below") else y
            return along / min(width, height), abs(across) / min(width, height)

        def beyond(least: float, lean: float) -> Test:
            return lambda thing: offset(thing)[0] > max(least, lean * offset(thing)[1])

        return among(beyond(0.18, 1.2), beyond(0.07, 0.55))
    return Reading(noun, noun, noun)


def _named(phrase: str, things: Sequence[Any]) -> set[int]:
    """The things that a noun phrase is true of."""
    words, _, pattern = phrase.partition(" with ")
    *adjectives, noun = words.split()
    wanted = [ADJECTIVES[word] for word in adjectives]
    wanted += [NOUNS[noun]] if noun in NOUNS else []
    wanted += [("pattern", WITH[pattern])] if pattern else []
    if any(kind == "size" for kind, _ in wanted) and len({thing.size for thing in things}) < 2:
        raise ValueError(f"{phrase!r} speaks of size where all things have one size")
    return {
        i
        for i, thing in enumerate(things)
        if all(getattr(thing, kind) == value for kind, value in wanted)
    }
