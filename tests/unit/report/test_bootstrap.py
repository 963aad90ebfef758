"""The bootstrap by image: against SciPy's, a literal loop, and its own coverage."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from mmnet.report.claims import bootstrap
from mmnet.report.claims.bootstrap import percentile_interval, resampled_means
from support.results import Floats


def sample(seed: int, images: int) -> tuple[Floats, NDArray[np.int64]]:
    """Values of one to six sentences an image, alike within an image."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, images)
    ids = np.repeat(rng.permutation(10 * images)[:images], sizes)
    values = np.repeat(rng.normal(size=images), sizes) + 0.3 * rng.normal(size=sizes.sum())
    return values, ids


@pytest.mark.parametrize("several", [False, True])
def test_intervals_are_scipys(several: bool) -> None:
    values, images = sample(3, 90)
    if not several:  # one sentence an image
        images = np.arange(len(values))
    ours = percentile_interval(resampled_means(values, images), 0.95)
    grouped = pd.Series(values).groupby(images).agg(["sum", "size"])
    theirs = stats.bootstrap(
        (grouped["sum"].to_numpy(), grouped["size"].to_numpy()),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(4),
    )
    # An end of 10,000 resamples is off by some 2.7 % of the standard error; two, by 4 %.
    error = 0.08 * theirs.standard_error
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=error)
    assert ours[0] < values.mean() < ours[1]


def test_means_are_those_of_a_literal_loop_over_the_same_draws() -> None:
    values, images = sample(5, 12)
    names = sorted(set(images))
    rng = np.random.default_rng(7)
    literal = []
    for drawn in rng.integers(0, 12, (40, 12)):
        held = [v for d in drawn for v, i in zip(values, images, strict=True) if i == names[d]]
        literal.append(sum(held) / len(held))
    assert resampled_means(values, images, resamples=40, seed=7) == pytest.approx(literal)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, images = sample(6, 33)
    whole = resampled_means(values, images, resamples=1000)
    monkeypatch.setattr(bootstrap, "CHUNK", 7)
    assert (resampled_means(values, images, resamples=1000) == whole).all()
    assert (resampled_means(values, images, resamples=1000, seed=1) != whole).any()


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    covered = by_sentence = 0
    for seed in range(300):
        values, images = sample(1000 + seed, 60)
        low, high = percentile_interval(resampled_means(values, images, resamples=600), 0.95)
        covered += low < 0 < high
        alone = np.arange(len(values))
        low, high = percentile_interval(resampled_means(values, alone, resamples=600), 0.95)
        by_sentence += low < 0 < high
    assert 0.915 <= covered / 300 <= 0.98
    # Sentences of an image are alike here: drawn one by one, their intervals are too narrow.
    assert by_sentence / 300 < 0.8


def test_copies_of_a_sentence_narrow_nothing() -> None:
    values = np.random.default_rng(8).normal(size=50)
    images = np.arange(50)
    once = percentile_interval(resampled_means(values, images), 0.95)
    copied = np.repeat(values, 9), np.repeat(images, 9)
    assert percentile_interval(resampled_means(*copied), 0.95) == pytest.approx(once)
