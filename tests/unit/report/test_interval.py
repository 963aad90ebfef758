"""The interval of a difference: its coverage, and each part against something slower or known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mmnet.evaluate.metrics import METRICS, score
from mmnet.report.interval import Arm, Difference, Interval, difference, measured
from mmnet.report.rows import IDS
from support.results import Floats

IMAGES = 50
SAMPLES = 1000


def sampled(
    rng: np.random.Generator, seeds: int, trainings: float, images: float, both: float
) -> Arm:
    """Return an arm whose true value is 0, of random trainings, images and both together."""
    values = rng.normal(0, trainings, (seeds, 1)) + rng.normal(0, images, IMAGES)
    values = values + rng.normal(0, both, (seeds, IMAGES))
    means = values.mean(axis=1)
    return Arm(values=means, shares=(values - means[:, None]) / IMAGES)


def by_images(arms: list[tuple[float, Arm]]) -> Interval:
    """Return the interval that takes the trainings for given."""
    points = sum(weight * arm.values.mean() for weight, arm in arms)
    means = [(w, Arm(values=np.zeros(1), shares=arm.shares.mean(0)[None])) for w, arm in arms]
    return difference(means, constant=-points).interval()


# Of a mean over 50 images, an image's or both's 7 is 1 point.
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (1 / 3,) * 3 + (-1 / 3,) * 3])
@pytest.mark.parametrize(
    ("trainings", "images", "both"), [(1, 0, 0), (1, 1, 2.5), (1, 7, 7), (0, 0, 7), (0.3, 7, 0)]
)
def test_95_of_100_intervals_hold_the_truth_about_the_methods(
    seeds: int, weights: tuple[float, ...], trainings: float, images: float, both: float
) -> None:
    rng = np.random.default_rng([seeds, len(weights)])
    covered = covered_by_images = 0
    for _ in range(SAMPLES):
        arms = [(w, sampled(rng, seeds, trainings, images, both)) for w in weights]
        found = difference(arms)
        assert found.is_of_methods
        low, high = found.interval()
        covered += low < 0 < high
        low, high = by_images(arms)
        covered_by_images += low < 0 < high
    assert 0.93 <= covered / SAMPLES <= 0.98
    if trainings == 1 and images <= 1:  # as measured on mini
        assert covered_by_images / SAMPLES < 0.8


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_seeds_tell_of_other_images_alone(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    covered = 0
    for _ in range(SAMPLES):
        given = rng.normal(0, 5, 2)
        pair = [sampled(rng, seeds, 0, 7, 7) for _ in given]
        shifted = [
            Arm(values=arm.values + off, shares=arm.shares)
            for arm, off in zip(pair, given, strict=True)
        ]
        found = difference([(1, shifted[0]), (-1, shifted[1])])
        assert (found.is_of_methods, found.trainings) == (False, 2 * seeds)
        low, high = found.interval()
        covered += low < given[0] - given[1] < high
    assert 0.93 <= covered / SAMPLES <= 0.97


def test_without_images_variance_it_is_welchs_test() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(3, 1, 4), rng.normal(0, 2, 3)
    flat = [Arm(values=values, shares=np.zeros((len(values), 9))) for values in (one, other)]
    found = difference([(1, flat[0]), (-1, flat[1])])
    welch = stats.ttest_ind(one, other, equal_var=False)
    assert found.freedom == pytest.approx(welch.df)
    assert found.points / found.error == pytest.approx(welch.statistic)
    expected = tuple(welch.confidence_interval(0.95))
    assert found.interval() == pytest.approx(expected)
    # Against a constant, Student's.
    alone = difference([(1, flat[0])], constant=2.0)
    low, high = stats.ttest_1samp(one, 2.0).confidence_interval(0.95)
    assert alone.interval() == pytest.approx((low - 2, high - 2))


# Rows.


def rows_of(seed: int, images: int = 60) -> pd.DataFrame:
    """One to six sentences an image, alike within an image; the same sentences for all seeds."""
    shape, rng = np.random.default_rng(99), np.random.default_rng(seed)
    sizes = shape.integers(1, 7, images)
    ids = np.repeat(shape.permutation(10 * images)[:images], sizes)
    union = shape.integers(50, 5000, sizes.sum())
    ious = np.repeat(rng.beta(2, 2, images), sizes) * rng.uniform(0.8, 1, sizes.sum())
    keys = {**dict.fromkeys(IDS, range(len(ids))), "split": "testA", "image_id": ids}
    frame = pd.DataFrame({**keys, "intersection": (ious * union).astype(int), "union": union})
    return frame.set_index(IDS).sort_index()


def compared(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> Difference:
    return difference([(1, measured([one], metric)), (-1, measured([other], metric))])


def test_values_are_the_scores() -> None:
    one, other = rows_of(1), rows_of(2)
    for metric in METRICS:
        expected = 100 * (score(one)[metric] - score(other)[metric])
        assert compared(one, other, metric).points == pytest.approx(expected)


def test_errors_are_those_of_a_bootstrap_by_image() -> None:
    one, other = rows_of(1), rows_of(2)
    ids = one.index.get_level_values("image_id")
    places: list[Floats] = [np.flatnonzero(ids == image) for image in ids.unique()]
    rng = np.random.default_rng(3)
    resampled = []
    for _ in range(400):
        drawn = np.concatenate([places[i] for i in rng.integers(0, len(places), len(places))])
        scores = score(one.iloc[drawn]), score(other.iloc[drawn])
        resampled.append([100 * (scores[0][metric] - scores[1][metric]) for metric in METRICS])
    errors = [compared(one, other, metric).error for metric in METRICS]
    assert errors == pytest.approx(np.std(resampled, axis=0), rel=0.1)


def test_copies_of_sentences_narrow_nothing() -> None:
    one, other = rows_of(1), rows_of(2)
    intervals = []
    for times in (1, 9):
        arms = [measured([pd.concat([rows] * times).sort_index()], "mIoU") for rows in (one, other)]
        intervals.append(difference([(1, arms[0]), (-1, arms[1])]).interval())
    assert intervals[0] == pytest.approx(intervals[1])
