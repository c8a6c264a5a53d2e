"""Curves made short enough for a plot. Needs no torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Values = NDArray[np.floating[Any]]


def downsample(steps: Steps, values: Values, pixels: int) -> tuple[Steps, Values, Values]:
    """The first step of each pixel, and the least and the greatest finite value in it.

    values: (steps,), or (steps, curves): then of each curve. Where a pixel has no finite value, both are not a number.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= pixels:
        return steps, values, values
    span = int(steps[-1]) - int(steps[0]) + 1
    pixel = (steps - steps[0]) * pixels // span
    starts = np.flatnonzero(np.diff(pixel, prepend=-1))
    return steps[starts], np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
