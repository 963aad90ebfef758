"""The rows of the runs that a claim compares → estimate, interval, verdict."""

from typing import Any

import numpy as np

from mmnet.config.identity import flat
from mmnet.config.schema import Params
from mmnet.report.claims.statements import ROWS, Claim, Part
from mmnet.report.interval import LEVEL, Difference, Interval, difference
from mmnet.report.rows import Runs
from mmnet.report.tables.common import HEADLINE, method, read_published
from mmnet.runtime.errors import ConfigError

MIN_IMAGES = 20
"""Intervals of fewer decide nothing."""
SAME = ("profile", "dataset", "evaluate.threshold")
"""Keys of configs, or beginnings of them, in which compared runs must agree."""

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
NEEDS_SEEDS, NOT_TESTED, NOT_TESTABLE = "needs seeds", "not tested", "not testable here"
METHODS = "the methods"
"""What an interval is about that covers other images and other trainings."""

Points = dict[str, float | None]
"""`points` of mIoU, and `percent` of the lesser one."""


def judge(part: Part, claim: Claim, runs: Runs, params: Params) -> dict[str, Any]:
    """Return what the runs say of one part of a claim, as claims.json has it but not rounded.

    Raises:
        ConfigError: the experiments are not of the claim's data set, or not measured alike.
    """
    rival, least, published = published_difference(part)
    outcome: dict[str, Any] = {
        **{"better": part.better, "worse": part.worse or rival},
        **{"dataset": part.dataset, "split": part.split, "sentences": 0, "images": 0, "seeds": 0},
        **{"published": published, "estimate": None, "interval_about": ""},
        **{"interval": None, "corrected_interval": None, "verdict": NOT_TESTABLE, "reason": ""},
    }
    if not part.worse and params.active.shapes is not None:
        return outcome | {"reason": "published numbers are not about these data"}
    dataset = params.active.datasets.get(part.dataset)
    if dataset is None or part.split not in dataset.splits:
        return outcome | {"reason": f"params.yaml has no {part.split} of {part.dataset}"}
    names = (*part.better, *part.worse)
    if missing := [run for name in names for run in runs.missing.get(name, [])]:
        return outcome | {"verdict": NOT_TESTED, "reason": f"no rows of {', '.join(missing)}"}
    _check_comparable(part, claim, params)

    arms = {name: runs.arm(name, part.split, HEADLINE) for name in names}
    weighted = [(1 / len(part.better), arms[name]) for name in part.better]
    weighted += [(-1 / len(part.worse), arms[name]) for name in part.worse]
    found = difference(weighted, constant=0.0 if part.worse else least)
    worse = float(np.mean([arms[n].values for n in part.worse])) if part.worse else least
    images = runs.of(names[0], part.split)[0].index.get_level_values("image_id")
    corrected = found.interval(corrected_level(claim))
    verdict, reason = verdict_of(found.interval(), corrected), ""
    if not found.is_of_methods:
        verdict = NEEDS_SEEDS
    elif images.nunique() < MIN_IMAGES:
        verdict, reason = UNDECIDED, f"{images.nunique()} images are too few"
    return outcome | {
        **{"sentences": len(images), "images": images.nunique(), "seeds": len(params.seeds)},
        **{"estimate": _points(worse + found.points, worse), "interval_about": _about(found)},
        **{"interval": found.interval(), "corrected_interval": corrected},
        **{"verdict": verdict, "reason": reason},
    }


def _about(found: Difference) -> str:
    """Say what an interval is about: the methods, or the trainings that are there."""
    if found.is_of_methods:
        return METHODS
    count = {1: "this training", 2: "these two trainings"}
    return count.get(found.trainings, f"these {found.trainings} trainings")


def _check_comparable(part: Part, claim: Claim, params: Params) -> None:
    """Refuse experiments that are not what the claim takes them for, or not measured alike."""
    for name in (*part.better, *part.worse):
        config, row = params.resolve(name, params.seeds[0]), ROWS[name]
        for key, found, expected in (
            ("dataset", config.dataset_name, part.dataset),
            ("tower", config.tower_name, row.tower or config.tower_name),
            ("model", method(row.table, config), row.method),
        ):
            if found != expected:
                raise ConfigError(
                    f"params.yaml: experiments.{name}: {key} is {found}, but the claim "
                    f"{claim.name} expects {expected}. Fix its values, or rename the experiment."
                )
    for one, other in part.pairs:
        for key, values in differences(one, other, params).items():
            if key.startswith(SAME):
                raise ConfigError(
                    f"params.yaml: experiments {one} and {other} differ in {key} ({values[0]}, "
                    f"{values[1]}), so the claim {claim.name} cannot compare them. Make them equal."
                )


def differences(one: str, other: str, params: Params) -> dict[str, tuple[Any, Any]]:
    """Return the keys, dotted, of what two experiments' results depend on and differ in."""
    runs = (params.resolve(name, params.seeds[0]) for name in (one, other))
    ours, theirs = (flat(run.prediction_values()) for run in runs)
    both = {key: (ours.get(key), theirs.get(key)) for key in sorted({*ours, *theirs})}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def published_difference(part: Part) -> tuple[str, float, Points | None]:
    """Return the best other method, where one is meant, the lesser number, and the difference.

    Without a difference: a row of ours alone has no number in the paper.
    """
    frame = read_published()
    here = (frame["dataset"] == part.dataset) & (frame["split"] == part.split)
    frame = frame[here & (frame["metric"] == "IoU")]
    cells = frame.set_index(["table", "method", "backbone"])["value"]

    def published(names: tuple[str, ...]) -> float | None:
        keys = [(row.table, row.method, row.backbone) for row in map(ROWS.__getitem__, names)]
        return float(cells.loc[keys].mean()) if all(key in cells.index for key in keys) else None

    better = published(part.better)
    if part.worse:
        rival, worse = "", published(part.worse)
    else:
        others = cells.loc[["table1"]].drop("MMNet", level="method")
        worse, (_, name, _) = float(others.max()), others.index[int(others.argmax())]
        rival = f"{name}'s {worse:.2f}"
    if better is None or worse is None:
        return rival, 0.0, None
    return rival, worse, _points(better, worse)


def _points(better: float, worse: float) -> Points:
    points = better - worse
    return {"points": points, "percent": 100 * points / worse if worse else None}


def corrected_level(claim: Claim) -> float:
    """Return the level at which one part contradicts all: Bonferroni's over the claim's parts."""
    return 1 - (1 - LEVEL) / len(claim.parts)


def verdict_of(interval: Interval, corrected: Interval) -> str:
    """Return the verdict on a part, whose claim is that the difference is above zero."""
    if interval[0] > 0:
        return SUPPORTED
    return CONTRADICTED if corrected[1] < 0 else UNDECIDED


def combined(verdicts: list[str]) -> str:
    """Return the verdict on a claim that says all its parts at once."""
    order = (CONTRADICTED, NOT_TESTABLE, NOT_TESTED, NEEDS_SEEDS, UNDECIDED, SUPPORTED)
    return next(verdict for verdict in order if verdict in verdicts)
