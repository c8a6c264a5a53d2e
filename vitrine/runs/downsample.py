"""Reduces a curve to the number of points of a plot. Needs no torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Values = NDArray[np.floating[Any]]


def downsample(steps: Steps, values: Values, pixels: int) -> tuple[Steps, Values, Values]:
    """Return the first step of each pixel, and the lowest and highest finite value in it.

    Args:
        steps: (steps,), in order.
        values: (steps,), or (steps, curves) for several curves.

    Returns:
        Steps (pixels,), and the lowest and highest values, shaped like `values`; both are NaN if a pixel has no finite one.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= pixels:
        return steps, values, values
    span = int(steps[-1]) - int(steps[0]) + 1
    pixel = (steps - steps[0]) * pixels // span
    starts = np.flatnonzero(np.diff(pixel, prepend=-1))
    return steps[starts], np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
