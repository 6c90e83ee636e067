"""Differences between two networks, paired over the test images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """Points of accuracy, and the half width of its 95 % interval over test images."""

    points: float
    interval: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.interval:.2f}"


def difference(ours: Iterable[NDArray[np.bool_]], control: Iterable[NDArray[np.bool_]]) -> Difference:
    """Accuracy of `ours` minus that of `control`, each the mean over its seeds, in points.

    The images are the sample: d_i, what the two get right of image i in the mean over seeds, is averaged, and the
    interval is 1.96 standard errors of that mean. It does not hold the spread of seeds that were not run.
    """
    d = 100 * (np.mean(list(ours), axis=0, dtype=float) - np.mean(list(control), axis=0, dtype=float))
    return Difference(float(d.mean()), float(1.96 * d.std(ddof=1) / np.sqrt(len(d))))
