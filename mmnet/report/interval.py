"""The difference between methods, with its error: other images and, from three seeds on, other
trainings.

A run's number on an image is that of its method, plus an effect of the training, one of the image
and one of both together: a mixed model with two crossed random factors. The variance of the mean
over k trainings and all images is then

    V_trainings + max(V_images - V_both, 0)

V_trainings is the variance of the seeds' numbers over k, summed over the methods: the trainings of
two methods are independent, also with the same seed (Welch). V_images is the variance over the
images of the difference of the means over seeds. The seeds' numbers are all of the same images, so
they hold no effect of the images alone; but the effect of both together is in either variance, and
V_both takes it out of one (as Hillis, Statistics in Medicine 26, 2007, for readers and cases). The
interval is Student's t with Satterthwaite's degrees of freedom, and never narrower than by the
trainings alone: a few seeds that agree by chance must not borrow the images' degrees of freedom.

With fewer seeds only V_images is known, and the interval is about these trainings, not methods.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from mmnet.config.tables import MIN_SEEDS
from mmnet.evaluate.metrics import iou

LEVEL = 0.95
Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method's trainings on one split: the same images, in the same order, in each."""

    values: Floats
    """(seeds,) the metric, in percent."""
    shares: Floats
    """(seeds, images) how far each image moves the metric from where it is; a row's sum is 0."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    points: float
    error: float
    """Standard error."""
    freedom: float
    """Degrees of freedom of the error."""
    by_trainings: tuple[float, float]
    """Error and freedom of the trainings alone."""
    trainings: int
    """All those compared."""
    is_of_methods: bool
    """The error holds other trainings; otherwise, other images alone."""

    def interval(self, level: float = LEVEL) -> Interval:
        spreads = (self.error, self.freedom), self.by_trainings
        half = max(float(stdtrit(freedom, (1 + level) / 2)) * error for error, freedom in spreads)
        return self.points - half, self.points + half


def measured(runs: Sequence[pd.DataFrame], metric: str) -> Arm:
    """Return a metric of each run's rows, which are of the same sentences in the same order.

    Each metric is a sum over the images by another sum: an image's share in it is that of a
    ratio's linearisation, which the jackknife approaches. Images count whole, since the sentences
    of one are not independent.
    """
    image = np.unique(runs[0].index.get_level_values("image_id"), return_inverse=True)[1]
    values, shares = [], []
    for rows in runs:
        upper, lower = (np.bincount(image, weights=terms) for terms in _terms(rows, metric))
        total = max(lower.sum(), 1)
        values.append(100 * upper.sum() / total)
        shares.append((100 * upper - values[-1] * lower) / total)
    return Arm(values=np.array(values), shares=np.array(shares))


def _terms(rows: pd.DataFrame, metric: str) -> tuple[Floats, Floats]:
    """Return what each sentence adds to the metric's numerator and denominator."""
    if metric == "oIoU":
        return rows["intersection"].to_numpy(float), rows["union"].to_numpy(float)
    ious = iou(rows).to_numpy(float)
    counted = ious if metric == "mIoU" else (ious > float(metric.removeprefix("Pr@"))).astype(float)
    return counted, np.ones(len(rows))


def difference(arms: Sequence[tuple[float, Arm]], constant: float = 0.0) -> Difference:
    """Return the weighted sum of the arms' means, less a constant, with its error."""
    counts = [len(arm.values) for _, arm in arms]
    images = max(arms[0][1].shares.shape[1], 2)
    mean_shares = sum(weight * arm.shares.mean(axis=0) for weight, arm in arms)
    variance = images / (images - 1) * float(np.square(mean_shares).sum())
    by_seeds = by_seeds_squared = 0.0
    if is_of_methods := min(counts) >= MIN_SEEDS:
        for count, (weight, arm) in zip(counts, arms, strict=True):
            of_arm = weight**2 * float(arm.values.var(ddof=1)) / count
            by_seeds += of_arm
            by_seeds_squared += of_arm**2 / (count - 1)
            both = float(np.square(arm.shares - arm.shares.mean(axis=0)).sum())
            variance -= weight**2 * both * images / (count * (count - 1) * (images - 1))
        variance = max(variance, 0.0)
    total = by_seeds + variance
    squared = by_seeds_squared + variance**2 / (images - 1)
    return Difference(
        points=sum(weight * float(arm.values.mean()) for weight, arm in arms) - constant,
        error=float(np.sqrt(total)),
        freedom=total**2 / squared if squared else images - 1,
        by_trainings=(
            float(np.sqrt(by_seeds)),
            by_seeds**2 / by_seeds_squared if by_seeds_squared else 1.0,
        ),
        trainings=sum(counts),
        is_of_methods=is_of_methods,
    )
