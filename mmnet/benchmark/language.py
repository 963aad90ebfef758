"""The language of the mini benchmark: what its sentences mean, and when they are used.

A sentence is a noun phrase. As in the original data sets it has a place (RefCOCO), nothing else
(RefCOCO+), or a relation to a second noun phrase (G-Ref). It is used for a thing only if it is
clearly true of that thing and clearly false of all others in the scene. Each place and relation
has a strict meaning, which the target must satisfy, and a loose one, which no other thing may
satisfy. Cases between the two are borderline and never used.

Noun phrase  Every word must be true. 'one' and 'thing' are true of all. The two classes of size
             are far apart, and used only if the scene has both; 'plain' is used only if
             something in the scene is not plain.
left X       The leftmost X by MARGIN of the width, and in the left part, NEAR.
             The same for right, top, bottom (of the height), and leftmost, rightmost.
X on the left      The X in the left part; other Xs are beyond FAR.
bottom left X      The X in both parts; other Xs are beyond FAR in one of them.
X in the middle    The X within INNER of the centre, of width and height; others beyond OUTER.
X above the Y      There is one Y. X's centre is higher than Y's, by RISE of the image's shorter
             side and by LEAN times the sideways offset; no other X is higher by more than
             LOOSE_RISE and LOOSE_LEAN. The same for below, left of, right of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from mmnet.benchmark.words import GROUPS, KIND_OF, MIDDLE, RELATION, SHAPES, SIDE, WITH, WORDS

T = TypeVar("T")

MARGIN = 0.12
NEAR, FAR = 0.42, 0.52
INNER, OUTER = 0.12, 0.22
RISE, LOOSE_RISE = 0.20, 0.06
LEAN, LOOSE_LEAN = 1.25, 0.50

Kinds = tuple[str, ...]
Record = dict[str, Any]

# What a noun phrase names: any subset of the attributes; () is 'one'.
ATTRIBUTES = ("size", "pattern", "colour", "shape")
KINDS = tuple(kinds for n in range(5) for kinds in combinations(ATTRIBUTES, n))
# People seldom use more than two or three attributes, and mostly name the shape.
WEIGHT = {0: 1.0, 1: 0.5, 2: 3.0, 3: 1.5, 4: 0.4}
NAMELESS = 0.3

KEY_WORDS = "sent_id,split,sentence,key,other"
"""The head of key_words.csv."""

COUNTS, COUNT_WEIGHTS = (2, 3, 4), (0.2, 0.6, 0.2)
TRIES = 30


@dataclass(frozen=True, slots=True)
class Thing:
    """All that a sentence can describe; `x`, `y`, `radius` in pixels, occlusion ignored."""

    shape: str
    colour: str
    pattern: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


class Speaker:
    """Makes the sentences about the things of one scene."""

    def __init__(
        self, things: Sequence[Thing], width: int, height: int, rng: np.random.Generator
    ) -> None:
        self.things, self.width, self.height, self.rng = things, width, height, rng
        # The noun phrases that are informative in this scene, and the things each is true of.
        sizes = len({thing.size for thing in things}) > 1
        patterns = any(thing.pattern != "plain" for thing in things)
        kinds = [
            k for k in KINDS if ("size" not in k or sizes) and ("pattern" not in k or patterns)
        ]
        looks = {k: [tuple(getattr(t, a) for a in k) for t in things] for k in kinds}
        self.phrases: dict[Thing, dict[Kinds, list[Thing]]] = {
            thing: {
                k: [t for t, other in zip(things, looks[k], strict=True) if other == looks[k][i]]
                for k in kinds
            }
            for i, thing in enumerate(things)
        }
        # The noun phrases that are true of one thing only.
        self.names = {
            thing: [k for k, same in phrases.items() if k and len(same) == 1]
            for thing, phrases in self.phrases.items()
        }

    def refs(
        self, dataset: str, split: str, annotations: Sequence[Record], last: Sequence[Record]
    ) -> list[Record]:
        """Return REFER's records of the things that the split refers to and sentences can name.

        `annotations` are in the things' order; ids continue those of the `last` record.
        """
        ref_id, sent_id = (last[0]["ref_id"], last[0]["sent_ids"][-1]) if last else (0, 0)
        refs: list[Record] = []
        for thing, annotation in zip(self.things, annotations, strict=True):
            group = GROUPS.get(split, SHAPES)
            said = self.sentences(dataset, thing) if thing.shape in group else []
            if said:
                image_id, ann_id = annotation["image_id"], annotation["id"]
                sentences = [
                    {"sent_id": i, "sent": sent, "raw": sent, "tokens": sent.split()}
                    for i, sent in enumerate(said, start=sent_id + 1)
                ]
                ref_id, sent_id = ref_id + 1, sent_id + len(said)
                refs.append(
                    {
                        "ref_id": ref_id,
                        "ann_id": ann_id,
                        "image_id": image_id,
                        "category_id": annotation["category_id"],
                        "split": split,
                        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
                        "sent_ids": [sentence["sent_id"] for sentence in sentences],
                        "sentences": sentences,
                    }
                )
        return refs

    def key_word(self, target: Thing, sentence: str) -> tuple[str, str] | None:
        """Return the word that alone would name the target, and the one beside it that would not.

        Of RefCOCO+'s sentences with two attributes; None of all others. 'blue triangle' has the key
        word 'blue' among triangles, and 'triangle' among blue things (the paper's Figure 1b).
        """
        words = {KIND_OF[word]: word for word in sentence.split() if word in KIND_OF}
        alone = [kind for kind in words if len(self.phrases[target][(kind,)]) == 1]
        if len(words) != 2 or len(alone) != 1:
            return None
        (key,) = alone
        (other,) = words.keys() - {key}
        return words[key], words[other]

    def key_words(self, refs: Sequence[Record], first_id: int) -> Iterator[str]:
        """Yield a line of key_words.csv for each of the refs' sentences that has a key word.

        `first_id` is the id of the first thing's annotation.
        """
        for ref in refs:
            for sentence in ref["sentences"]:
                said, target = sentence["sent"], self.things[ref["ann_id"] - first_id]
                if found := self.key_word(target, said):
                    yield ",".join([str(sentence["sent_id"]), ref["split"], said, *found])

    def sentences(self, dataset: str, target: Thing) -> list[str]:
        """Return 2 to 4 different sentences that name `target` if there are as many, or none."""
        say = {"refcoco": self._placed, "refcoco+": self._seen, "refcocog": self._related}[dataset]
        wanted = int(self.rng.choice(COUNTS, p=COUNT_WEIGHTS))
        found: dict[str, None] = {}
        for _ in range(TRIES):
            sentence = say(target)
            if sentence is None or len(found) == wanted:
                break
            found[sentence] = None
        return list(found)

    def _seen(self, target: Thing) -> str | None:
        """RefCOCO+: by appearance alone."""
        if not self.names[target]:
            return None
        return self._article(0.25) + self._phrase(target, self._pick(self.names[target]))

    def _placed(self, target: Thing) -> str | None:
        """RefCOCO: mostly by place, and then mostly where the place is needed."""
        if self.rng.random() < 0.35:
            return self._seen(target) or self._by_place(target, needed=True)
        return self._by_place(target, needed=self.rng.random() < 0.75) or self._seen(target)

    def _by_place(self, target: Thing, *, needed: bool) -> str | None:
        options: dict[Kinds, list[tuple[str, str]]] = {}
        for kinds, same in self.phrases[target].items():
            if len(kinds) <= 2 and not (needed and len(same) == 1):
                places = list(self._places(target, [t for t in same if t is not target]))
                if places:
                    options[kinds] = places
        if not options:
            return self._by_place(target, needed=False) if needed else None
        kinds = self._pick(list(options))
        before, after = self._choice(options[kinds])
        phrase = f"{before} {self._phrase(target, kinds)} {after}"
        return self._article(0.2) + phrase.strip()

    def _places(self, target: Thing, others: list[Thing]) -> Iterator[tuple[str, str]]:
        """Yield words before and after the noun that distinguish `target` from the `others`."""
        sides = [side for side in SIDE if self._at(target, side) < NEAR]
        for side in sides:
            at = self._at(target, side)
            if all(self._at(other, side) > at + MARGIN for other in others):
                # A single thing is not called leftmost.
                most = others and side in ("left", "right") and self.rng.random() < 0.3
                yield f"{side}most" if most else side, ""
            if all(self._at(other, side) > FAR for other in others):
                yield "", self._choice(SIDE[side])
        if len(sides) == 2:
            across, down = sides
            if all(max(self._at(t, across), self._at(t, down)) > FAR for t in others):
                yield f"{down} {across}", ""
                yield "", f"in the {down} {across} corner"
        if self._off_centre(target) < INNER and all(self._off_centre(t) > OUTER for t in others):
            yield "middle", ""
            yield "", self._choice(MIDDLE)

    def _related(self, target: Thing) -> str | None:
        """G-Ref: longer, mostly with a relation, which is needed in about a third."""
        draw = self.rng.random()
        if draw < 0.12:
            return self._described(target) or self._by_relation(target, needed=True)
        first = draw < 0.42
        return (
            self._by_relation(target, needed=first)
            or self._by_relation(target, needed=not first)
            or self._described(target)
        )

    def _described(self, target: Thing) -> str | None:
        names = self.names[target]
        if not names:
            return None
        kinds = self._pick([k for k in names if len(k) >= 2] or names)
        return self._article(1) + self._phrase(target, kinds)

    def _by_relation(self, target: Thing, *, needed: bool) -> str | None:
        options: dict[Kinds, list[tuple[str, Thing, list[Kinds]]]] = {}
        landmarks = [(t, names) for t, names in self.names.items() if names and t is not target]
        for kinds, same in self.phrases[target].items():
            if kinds and needed == (len(same) > 1):
                found = [
                    (side, landmark, names)
                    for landmark, names in landmarks
                    for side in RELATION
                    if self._tells_apart(side, landmark, target, same)
                ]
                if found:
                    options[kinds] = found
        if not options:
            return None
        kinds = self._pick(list(options))
        side, landmark, names = self._choice(options[kinds])
        verb = self._choice(("", "", "that is ", "which is "))
        return (
            f"{self._article(1)}{self._phrase(target, kinds)} "
            f"{verb}{self._choice(RELATION[side])} the {self._phrase(landmark, self._pick(names))}"
        )

    def _tells_apart(self, side: str, landmark: Thing, target: Thing, same: list[Thing]) -> bool:
        others = [t for t in same if t is not target and t is not landmark]
        return self._beyond(side, target, landmark, RISE, LEAN) and not any(
            self._beyond(side, other, landmark, LOOSE_RISE, LOOSE_LEAN) for other in others
        )

    def _beyond(self, side: str, thing: Thing, landmark: Thing, rise: float, lean: float) -> bool:
        """Return whether `thing` is on that `side` of the `landmark`."""
        right, down = thing.x - landmark.x, thing.y - landmark.y
        along = {"left": -right, "right": right, "top": -down, "bottom": down}[side]
        aside = abs(down if side in ("left", "right") else right)
        return along > rise * min(self.width, self.height) and along > lean * aside

    def _at(self, thing: Thing, side: str) -> float:
        """Return the distance from that `side` of the image: 0 to 1."""
        x, y = thing.x / self.width, thing.y / self.height
        return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side]

    def _off_centre(self, thing: Thing) -> float:
        return max(abs(self._at(thing, "left") - 0.5), abs(self._at(thing, "top") - 0.5))

    def _phrase(self, thing: Thing, kinds: Kinds) -> str:
        words = {kind: self._choice(WORDS.get(v := getattr(thing, kind), (v,))) for kind in kinds}
        noun = words.pop("shape", "") or self._choice(("one", "thing"))
        after = ""
        if "pattern" in words and thing.pattern in WITH and self.rng.random() < 0.25:
            after = " " + WITH[thing.pattern]
            del words["pattern"]
        adjectives = [words[kind] for kind in ATTRIBUTES if kind in words]
        free = thing.pattern != "plain" and {"pattern", "colour"} <= words.keys()
        if free and self.rng.random() < 0.5:
            adjectives[-2:] = reversed(adjectives[-2:])
        return " ".join([*adjectives, noun]) + after

    def _article(self, share: float) -> str:
        if self.rng.random() >= share:
            return ""
        return "a " if share == 1 and self.rng.random() < 0.3 else "the "

    def _pick(self, options: list[Kinds]) -> Kinds:
        weights = np.array([WEIGHT[len(k)] * (1 if "shape" in k else NAMELESS) for k in options])
        return options[int(self.rng.choice(len(options), p=weights / weights.sum()))]

    def _choice(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]
