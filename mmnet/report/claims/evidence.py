"""The IoU of the sentences of the runs that a claim compares → estimate, interval, verdict."""

from typing import Any

import numpy as np

from mmnet.config.identity import flat
from mmnet.config.schema import Params
from mmnet.report.claims.bootstrap import percentile_interval, resampled_means
from mmnet.report.claims.rows import Runs
from mmnet.report.claims.statements import ROWS, Claim, Part
from mmnet.report.tables.common import method, read_published
from mmnet.runtime.errors import ConfigError

LEVEL = 0.95
MIN_IMAGES = 20
"""Percentile intervals of fewer are far too narrow to judge by."""
SAME = ("profile", "dataset", "evaluate.threshold")
"""Keys of configs, or beginnings of them, in which compared runs must agree."""

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
NOT_TESTED, NOT_TESTABLE = "not tested", "not testable here"

Interval = tuple[float, float]
Difference = dict[str, float | None]
"""`points` of mIoU, and `percent` of the lesser one."""


def judge(part: Part, claim: Claim, runs: Runs, params: Params) -> dict[str, Any]:
    """Return what the runs say of one part of a claim, as claims.json has it but not rounded.

    Raises:
        ConfigError: the experiments are not of the claim's data set, or not measured alike.
    """
    rival, least, published = published_difference(part)
    outcome: dict[str, Any] = {
        **{"better": part.better, "worse": part.worse or rival},
        **{"dataset": part.dataset, "split": part.split, "sentences": 0, "images": 0},
        **{"published": published, "estimate": None, "interval": None, "corrected_interval": None},
        **{"verdict": NOT_TESTABLE, "reason": ""},
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

    values = {name: runs.ious[name].xs(part.split, level="split") for name in names}
    better = np.mean([values[name] for name in part.better], axis=0)
    worse = np.full(len(better), least / 100)
    if part.worse:
        worse = np.mean([values[name] for name in part.worse], axis=0)
    points = 100 * (better - worse)
    images = values[names[0]].index.get_level_values("image_id").to_numpy()
    means = resampled_means(points, images)
    interval = percentile_interval(means, LEVEL)
    corrected = percentile_interval(means, corrected_level(claim))
    count = len(np.unique(images))
    is_enough = count >= MIN_IMAGES
    return outcome | {
        **{"sentences": len(points), "images": count},
        "estimate": _difference(100 * float(better.mean()), 100 * float(worse.mean())),
        **{"interval": interval, "corrected_interval": corrected},
        "verdict": verdict_of(interval, corrected) if is_enough else UNDECIDED,
        "reason": "" if is_enough else f"{count} images are too few",
    }


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


def published_difference(part: Part) -> tuple[str, float, Difference]:
    """Return the best other method, where one is meant, the lesser number, and the difference."""
    frame = read_published()
    here = (frame["dataset"] == part.dataset) & (frame["split"] == part.split)
    frame = frame[here & (frame["metric"] == "IoU")]
    cells = frame.set_index(["table", "method", "backbone"])["value"]

    def published(names: tuple[str, ...]) -> float:
        rows = [ROWS[name] for name in names]
        return float(np.mean([cells[row.table, row.method, row.backbone] for row in rows]))

    if part.worse:
        worse = published(part.worse)
        return "", worse, _difference(published(part.better), worse)
    others = cells.loc[["table1"]].drop("MMNet", level="method")
    best, (_, name, _) = float(others.max()), others.index[int(others.argmax())]
    return f"{name}'s {best:.2f}", best, _difference(published(part.better), best)


def _difference(better: float, worse: float) -> Difference:
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
    order = (CONTRADICTED, NOT_TESTABLE, NOT_TESTED, UNDECIDED, SUPPORTED)
    return next(verdict for verdict in order if verdict in verdicts)
