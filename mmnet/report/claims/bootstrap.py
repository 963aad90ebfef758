"""How far a mean over sentences would move with other images: a bootstrap by image."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CHUNK = 500
"""Resamples at a time: bounds the memory, changes nothing else."""


def resampled_means(
    values: Floats, images: NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Return the mean of the values in each of `resamples` draws of as many images, with return.

    An image brings all its sentences, since they are not independent; so a draw's mean is its sum
    over its number of sentences.
    """
    of_image = np.unique(images, return_inverse=True)[1]
    sizes = np.bincount(of_image)
    sums = np.bincount(of_image, weights=values)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        drawn = generator.integers(0, len(sizes), (count, len(sizes)))
        means[start : start + count] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def percentile_interval(means: Floats, level: float) -> tuple[float, float]:
    """Return the interval that leaves (1 - level) / 2 of the means on either side."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
