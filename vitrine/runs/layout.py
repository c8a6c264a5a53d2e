"""What is recorded of every tensor at a step, and the place of each number in a row. Needs no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.randomness import keyed_generator

Numbers = NDArray[np.float32]

# Of the parameters that the step starts from, of the gradient before clipping, of the update that was made.
STATISTICS = ("weight_norm", "weight_max", "gradient_norm", "gradient_max", "update_norm", "update_max")
BLOCK = 1024  # recorded steps that are stored together, one column per series
SAMPLE = 8  # parameters of each tensor whose value and gradient are recorded

HISTOGRAM_KINDS = ("weight", "gradient", "update")
HISTOGRAM_BINS = 2048  # the first 11 bits of a float32: sign, exponent, and the quarter between two powers of two


@dataclass(frozen=True)
class Layout:
    """The layout of a row of statistics.

    First `STATISTICS` for each tensor, then the values of the sampled parameters, then their gradients.

    every: steps from one row to the next; tensors: names, in the order of the row.
    sample: for each tensor, the places of its sampled parameters in the flattened tensor.
    since: (step, every), if the steps from one row to the next change at that step. The step has a row.
    """

    every: int
    tensors: tuple[str, ...]
    sample: dict[str, tuple[int, ...]]
    since: tuple[int, int] | None = None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Layout":
        """Read a layout from the history's fact `statistics`."""
        sample = {name: tuple(places) for name, places in facts["sample"].items()}
        since = tuple(facts["since"]) if facts.get("since") else None
        return cls(facts["every"], tuple(facts["tensors"]), sample, since)

    def facts(self) -> dict[str, Any]:
        """The fact for the history; `of` reads it back."""
        facts = {"every": self.every, "tensors": self.tensors, "statistics": STATISTICS, "sample": self.sample}
        return facts | {"since": self.since} if self.since else facts

    @property
    def every_of_late(self) -> int:
        """Steps from one row to the next, at the end of the run."""
        return self.since[1] if self.since else self.every

    def step(self, row: int) -> int:
        """The step that a row belongs to; rows are counted from 0."""
        start, every = self.since or (0, self.every)
        before = start // self.every
        return row * self.every if row < before else start + (row - before) * every

    def row(self, step: int) -> int:
        """The last row up to a step."""
        start, every = self.since or (0, self.every)
        return step // self.every if step < start else start // self.every + (step - start) // every

    def has(self, step: int) -> bool:
        """Whether a step has a row."""
        return self.step(self.row(step)) == step

    @property
    def sampled(self) -> int:
        """How many parameters are sampled in total."""
        return sum(map(len, self.sample.values()))

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return len(STATISTICS) * len(self.tensors) + 2 * self.sampled

    def statistic(self, tensor: str, name: str) -> int:
        """The place of a statistic in the row."""
        return len(STATISTICS) * self.tensors.index(tensor) + STATISTICS.index(name)

    def sampled_at(self, tensor: str, place: int) -> tuple[int, int] | None:
        """The places of a parameter's value and gradient in the row, if it is sampled."""
        if place not in self.sample[tensor]:
            return None
        before = sum(len(self.sample[name]) for name in self.tensors[: self.tensors.index(tensor)])
        value = len(STATISTICS) * len(self.tensors) + before + self.sample[tensor].index(place)
        return value, value + self.sampled


def choose_sample(sizes: dict[str, int], seed: int) -> dict[str, tuple[int, ...]]:
    """Choose the parameters of each tensor that are recorded at every row: once, from the seed."""
    return {
        name: tuple(
            sorted(map(int, keyed_generator(seed, "sample", name).choice(size, min(SAMPLE, size), replace=False)))
        )
        for name, size in sizes.items()
    }


def spaced(steps: int, count: int) -> frozenset[int]:
    """At most `count` steps of a run: dense at its start, where values change fast, and sparse later."""
    last = max(0, steps - 1)
    return frozenset(round(last * (i / max(1, count - 1)) ** 2) for i in range(count))


def bin_edges(bins: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lower and upper edges of histogram bins: lower <= |x| < upper, negated for negative numbers."""
    magnitude = np.asarray(bins, np.int64) % 1024
    exponent, quarter = magnitude >> 2, magnitude & 3
    scale = np.exp2(np.maximum(exponent, 1) - 127.0)
    lower = np.where(exponent == 0, quarter / 4, 1 + quarter / 4) * scale
    upper = np.where(exponent == 0, (quarter + 1) / 4, 1 + (quarter + 1) / 4) * scale
    negative = np.asarray(bins) >= 1024
    return np.where(negative, -upper, lower), np.where(negative, -lower, upper)
