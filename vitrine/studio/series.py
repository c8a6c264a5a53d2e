"""Curves for plots, of a run's steps or its tensors' statistics, reduced to low and high per pixel."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import nearest
from vitrine.runs.downsample import downsample
from vitrine.runs.layout import STATISTICS, Layout
from vitrine.runs.reader import RunReader
from vitrine.studio import schemas_run
from vitrine.studio.responses import RefusalError

COLUMNS = ("loss", "gradient_norm", "learning_rate", "memory_bytes")
NAMES = (*COLUMNS, "tokens_per_s", "validation")
RATIO = "update_ratio"  # of the norm of the update to that of the weights
KNOWN = (*STATISTICS, RATIO)
POINTS = 200_000  # at most in one answer about all layers
Series = tuple[NDArray[np.int64], NDArray[np.float64]]


def series(reader: RunReader, name: str, first: int, last: int, pixels: int) -> schemas_run.Series:
    """One curve: at most `pixels` points, each with the lowest and highest value of its steps.

    Values that are not finite are left out of low and high; if there are no others, both are null.
    """
    steps, values = _read(reader, name)
    steps, values, last = _between(steps, values, first, last)
    steps, low, high = downsample(steps, values, pixels)
    return {
        "name": name,
        "first": first,
        "last": last,
        "steps": steps.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def layers(reader: RunReader, statistic: str, by: str, first: int, last: int, pixels: int) -> schemas_run.Layers:
    """One statistic of every part of the model, or of every tensor, on the same steps."""
    if statistic not in KNOWN:
        raise RefusalError(404, f"There is no statistic {statistic[:100]!r}. {nearest(statistic, KNOWN)}")
    layout, sizes = reader.layout(), {plan.name: plan.parameters for plan in reader.tensors}
    groups = parts(reader) if by == "part" else {name: [name] for name in sizes}
    steps, values = np.empty(0, np.int64), np.empty((0, len(groups)))
    if layout:
        steps, values = _statistic(reader, layout, list(groups.values()), statistic)
    steps, values, last = _between(steps, values, first, last)
    steps, low, high = downsample(steps, values, max(1, min(pixels, POINTS // len(groups))))
    return {
        "statistic": statistic,
        "by": "part" if by == "part" else "tensor",
        "first": first,
        "last": last,
        "steps": steps.tolist(),
        "rows": [
            {
                "name": name,
                "parameters": sum(sizes[tensor] for tensor in tensors),
                "low": low[:, place].tolist(),
                "high": high[:, place].tolist(),
            }
            for place, (name, tensors) in enumerate(groups.items())
        ],
    }


def parts(reader: RunReader) -> dict[str, list[str]]:
    """The tensors of each part of the model, in reading order: embedding, positions, each block, the rest."""
    found: dict[str, list[str]] = {}
    for tensor in reader.tensors:
        found.setdefault(tensor.home, []).append(tensor.name)
    return found


def _between(steps: NDArray[np.int64], values: NDArray[np.float64], first: int, last: int) -> tuple[
    NDArray[np.int64], NDArray[np.float64], int
]:  # fmt: skip
    """The requested part, and its last step; -1: the last recorded one."""
    last = int(steps[-1]) if last < 0 and len(steps) else last
    inside = slice(*np.searchsorted(steps, [first, last + 1]))
    return steps[inside], values[inside], max(last, first)


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
    whose, slash, statistic = name.rpartition("/")
    layout, groups = reader.layout(), parts(reader)
    groups |= {tensor: [tensor] for tensors in groups.values() for tensor in tensors}
    if not slash or whose not in groups or statistic not in KNOWN:
        known = [*NAMES, *(f"{group}/{known}" for group in groups for known in KNOWN)]
        raise RefusalError(404, f"There is no series {name[:200]!r}. {nearest(name, known)}")
    if layout is None:
        return np.empty(0, np.int64), np.empty(0)
    steps, values = _statistic(reader, layout, [groups[whose]], statistic)
    return steps, values[:, 0]


def _statistic(reader: RunReader, layout: Layout, groups: Sequence[Sequence[str]], name: str) -> Series:
    """A statistic of each group of tensors: their joint norm, or the largest magnitude. (steps, groups)."""
    if name == RATIO:
        (steps, updates), (_, weights) = (
            _statistic(reader, layout, groups, f"{what}_norm") for what in ("update", "weight")
        )
        shared = min(len(updates), len(weights))  # the run may grow between the two
        with np.errstate(divide="ignore", invalid="ignore"):
            return steps[:shared], updates[:shared] / weights[:shared]
    steps, table = reader.columns([layout.statistic(tensor, name) for group in groups for tensor in group])
    wide = table.astype(np.float64)
    ends = np.cumsum([0, *(len(group) for group in groups)])[:-1]
    if name.endswith("_max"):
        return steps, np.maximum.reduceat(wide, ends, axis=1)
    return steps, np.sqrt(np.add.reduceat(wide**2, ends, axis=1))
