"""The rows per sentence of the runs that a claim compares → an estimate, an interval, a verdict."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmnet.config.schema import Config, Params
from mmnet.data.refer import read_table
from mmnet.evaluate.metrics import iou
from mmnet.report.claims.bootstrap import percentile_interval, resampled_means
from mmnet.report.claims.statements import MEANT, PUBLISHED, Claim, Part, wanted_runs
from mmnet.runtime.errors import ConfigError, DataError

LEVEL = 0.95
MIN_IMAGES = 20
"""Percentile intervals of fewer are far too narrow to judge by."""
IDS = ["split", "ref_id", "ann_id", "image_id", "sent_id"]
SAME = ("profile", "dataset", "evaluate.threshold")
"""Keys of configs, or beginnings of them, in which compared runs must agree."""

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
NOT_TESTED, NOT_TESTABLE = "not tested", "not testable here"

Interval = tuple[float, float]
RowsOf = Callable[[str, int], Path]
"""Experiment and seed → where the run's rows lie."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """In points of mIoU, and in percent of the lesser one."""

    points: float
    percent: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one part."""

    part: Part
    rival: str
    """The published method that `better` is held against, where it is no run."""
    published: Difference
    verdict: str
    reason: str = ""
    """Why there is no estimate, or no verdict."""
    estimate: Difference | None = None
    interval: Interval | None = None
    corrected: Interval | None = None
    """At the level that one part needs to contradict its whole claim."""
    sentences: int = 0
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Runs:
    ious: dict[str, pd.Series]
    """Experiment → IoU of each sentence, the mean over its seeds, sentences in one order."""
    missing: dict[str, list[str]]
    """Experiment → its runs that have no rows."""


def read_runs(rows_of: RowsOf, params: Params) -> Runs:
    """Read the rows of all runs that the claims compare.

    Raises:
        DataError: rows are missing, damaged, of other values, or of different sentences.
    """
    ious: dict[str, list[pd.Series]] = {}
    missing: dict[str, list[str]] = {}
    firsts: dict[str, tuple[str, pd.Index[Any]]] = {}
    for experiment, seed in wanted_runs(params):
        name, path = f"{experiment} seed {seed}", rows_of(experiment, seed)
        if experiment not in params.experiments or not path.is_file():
            missing.setdefault(experiment, []).append(name)
            continue
        config = params.resolve(experiment, seed)
        values = _read(path, config)
        first, index = firsts.setdefault(config.dataset_name, (name, values.index))
        if not values.index.equals(index):
            alone = len(values.index.symmetric_difference(index))
            raise DataError(
                f"claims: {name} and {first} hold different sentences of {config.dataset_name}: "
                f"{alone} are in one alone. Predict both on the same data: mmnet predict."
            )
        ious.setdefault(experiment, []).append(values)
    if missing and not params.allow_missing:
        names = ", ".join(name for of_experiment in missing.values() for name in of_experiment)
        raise DataError(
            f"claims ({params.profile}): no rows of {names}. Train and predict them: snakemake "
            "does when asked for results/claims.md. Or set allow_missing: true in params.yaml."
        )
    return Runs(
        ious={
            name: sum(values[1:], values[0]) / len(values)
            for name, values in ious.items()
            if name not in missing
        },
        missing=missing,
    )


def _read(path: Path, config: Config) -> pd.Series:
    table = read_table(path, config.dataset.splits, maker="mmnet predict")
    found, meant = table.attrs.get("config"), config.prediction_values()
    if found != meant:
        held = found if isinstance(found, dict) else {}
        keys = ("profile", "dataset_name", "seed")
        other = next((key for key in keys if key in held and held[key] != meant[key]), None)
        what = (
            f"holds rows of {other} {held[other]!r}, but the claims need {meant[other]!r}"
            if other
            else "was made with other values than params.yaml has now"
        )
        raise DataError(f"{path}: {what}. Make it again: mmnet predict.")
    if lacking := {*IDS, "intersection", "union"} - {*table.columns}:
        raise DataError(
            f"{path}: lacks {', '.join(sorted(lacking))}. Make it again: mmnet predict."
        )
    values = iou(table).set_axis(pd.MultiIndex.from_frame(table[IDS])).sort_index()
    if not values.index.is_unique:
        twice = values.index[values.index.duplicated()][0][IDS.index("sent_id")]
        raise DataError(
            f"{path}: holds sentence {twice} twice. Make it again: mmnet prepare, then predict."
        )
    return values


def judge(part: Part, claim: Claim, runs: Runs, params: Params) -> Outcome:
    """Return what the runs say of one part of a claim.

    Raises:
        ConfigError: the experiments are not of the claim's data set, or not measured alike.
    """
    rival, least, published = published_difference(part)
    outcome = partial(Outcome, part=part, rival=rival, published=published)
    names = (*part.better, *part.worse)
    if not part.worse and params.active.shapes is not None:
        reason = "published numbers are not about these data"
        return outcome(verdict=NOT_TESTABLE, reason=reason)
    dataset = params.active.datasets.get(part.dataset)
    if dataset is None or part.split not in dataset.splits:
        reason = f"params.yaml has no {part.split} of {part.dataset}"
        return outcome(verdict=NOT_TESTABLE, reason=reason)
    if missing := [run for name in names for run in runs.missing.get(name, [])]:
        reason = f"no rows of {', '.join(missing)}"
        return outcome(verdict=NOT_TESTED, reason=reason)
    _check_comparable(part, claim, params)

    values = {name: runs.ious[name].xs(part.split, level="split") for name in names}
    better = np.mean([values[name] for name in part.better], axis=0)
    worse = (
        np.mean([values[name] for name in part.worse], axis=0)
        if part.worse
        else np.full(len(better), least / 100)
    )
    points = 100 * (better - worse)
    images = values[names[0]].index.get_level_values("image_id").to_numpy()
    means = resampled_means(points, images)
    interval = percentile_interval(means, LEVEL)
    corrected = percentile_interval(means, corrected_level(claim))
    count = len(np.unique(images))
    return outcome(
        verdict=verdict_of(interval, corrected) if count >= MIN_IMAGES else UNDECIDED,
        reason="" if count >= MIN_IMAGES else f"{count} images are too few",
        estimate=_difference(100 * float(better.mean()), 100 * float(worse.mean())),
        interval=interval,
        corrected=corrected,
        sentences=len(points),
        images=count,
    )


def _check_comparable(part: Part, claim: Claim, params: Params) -> None:
    """Refuse what would compare unlike with unlike."""
    for name in (*part.better, *part.worse):
        run = params.resolve(name, params.seeds[0])
        config = _flat(run.prediction_values()) | {"tower_name": run.tower_name}
        for key, meant in (("dataset_name", part.dataset), *MEANT[name].items()):
            if config[key] != meant:
                raise ConfigError(
                    f"params.yaml: experiments.{name} has {key} {config[key]}, but the claim "
                    f"{claim.name} takes it for {meant}. Mend it, or give it another name."
                )
    for pair in zip(part.better, part.worse, strict=False):
        for key, (one, other) in differences(pair, params).items():
            if key.startswith(SAME):
                raise ConfigError(
                    f"params.yaml: {pair[0]} and {pair[1]} differ in {key} ({one}, {other}), so "
                    f"the claim {claim.name} cannot compare them. Give both the same."
                )


def differences(pair: tuple[str, str], params: Params) -> dict[str, tuple[Any, Any]]:
    """Return the keys, dotted, of what two experiments' results depend on and differ in."""
    skipped = {"evaluate.batch_size"}
    one, other = (_flat(params.resolve(name, params.seeds[0]).prediction_values()) for name in pair)
    both = {key: (one.get(key), other.get(key)) for key in sorted({*one, *other} - skipped)}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def published_difference(part: Part) -> tuple[str, float, Difference]:
    """Return the best other method, where one is meant, the lesser number, and the difference."""
    with (resources.files("mmnet.report") / "published.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    here = (frame["dataset"] == part.dataset) & (frame["split"] == part.split)
    frame = frame[here & (frame["metric"] == "IoU")]
    keys = zip(frame["table"], frame["method"], frame["backbone"], strict=True)
    cells = dict(zip(keys, map(float, frame["value"]), strict=True))
    better = float(np.mean([cells[PUBLISHED[name]] for name in part.better]))
    if part.worse:
        worse = float(np.mean([cells[PUBLISHED[name]] for name in part.worse]))
        return "", worse, _difference(better, worse)
    others = [key for key in cells if key[0] == "table1" and key[1] != "MMNet"]
    best = max(others, key=lambda key: cells[key])
    return f"{best[1]}'s {cells[best]:.2f}", cells[best], _difference(better, cells[best])


def _difference(better: float, worse: float) -> Difference:
    points = better - worse
    return Difference(points=points, percent=100 * points / worse if worse else None)


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
