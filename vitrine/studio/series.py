"""Curves for a plot: of a run's steps, or of one statistic of a tensor, as low and high per pixel."""

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import nearest
from vitrine.runs.reader import RunReader
from vitrine.runs.statistics import STATISTICS
from vitrine.studio import models
from vitrine.studio.answers import RefusalError

COLUMNS = ("loss", "gradient_norm", "learning_rate", "memory_bytes")
NAMES = (*COLUMNS, "tokens_per_s", "validation")
Series = tuple[NDArray[np.int64], NDArray[np.float64]]


def series(reader: RunReader, name: str, first: int, last: int, pixels: int) -> models.Series:
    """The answer: at most so many points, each with the lowest and highest value of its steps.

    Values that are not finite are left out of low and high; where there is no other, both are null.
    """
    steps, values = _read(reader, name)
    last = int(steps[-1]) if last < 0 and len(steps) else last
    inside = slice(*np.searchsorted(steps, [first, last + 1]))
    steps, low, high = downsample(steps[inside], values[inside], pixels)
    return {
        "name": name,
        "first": first,
        "last": max(last, first),
        "steps": steps.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def downsample(
    steps: NDArray[np.int64], values: NDArray[np.float64], pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The first step of each pixel, and the least and the greatest finite value in it."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= pixels:
        return steps, values, values
    span = int(steps[-1]) - int(steps[0]) + 1
    pixel = (steps - steps[0]) * pixels // span
    starts = np.flatnonzero(np.diff(pixel, prepend=-1))
    return steps[starts], np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)


def _read(reader: RunReader, name: str) -> Series:
    if name in COLUMNS:
        return reader.step_column(name)
    if name == "tokens_per_s":
        steps, seconds = reader.step_column("duration_s")
        with np.errstate(divide="ignore"):
            return steps, reader.config.tokens_per_step / seconds
    if name == "validation":
        sampled = reader.sampled_evaluations()
        return np.array([e.step for e in sampled], np.int64), np.array([e.loss for e in sampled], np.float64)
    tensor, slash, statistic = name.rpartition("/")
    layout = reader.layout()
    if not slash or (layout and tensor not in layout.tensors) or statistic not in STATISTICS:
        known = [*NAMES, *(f"{t}/{s}" for t in (layout.tensors if layout else ()) for s in STATISTICS)]
        raise RefusalError(404, f"There is no series {name!r}. {nearest(name, known)}")
    if layout is None:
        return np.empty(0, np.int64), np.empty(0)
    found, numbers = reader.series(layout.statistic(tensor, statistic))
    return found, numbers.astype(np.float64)
