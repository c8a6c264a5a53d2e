"""What the rules of `vitrine health` look at: a run's history as arrays, where its loss departs, what moved most. No torch."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitrine.errors import VitrineError
from vitrine.model.inventory import TensorSpec
from vitrine.runs.reader import RunReader
from vitrine.runs.records import EventRecord
from vitrine.text.summary import Summary
from vitrine.text.token_files import open_prepared
from vitrine.training.tokens import tokens_folder

Floats = NDArray[np.floating[Any]]

WINDOW = 32  # steps before, whose median and standard deviation a loss is compared with; at the start, those there are
FEWEST = 4  # steps before, for a standard deviation: earlier, only a loss above the first one counts
SPIKE = 8.0  # standard deviations above the median: chance (normal losses) gets there twice in a million steps
DEVIATION_FLOOR = 0.01  # of the median: where the loss hardly moves, any ripple would be many deviations high
ABOVE_FIRST = 0.25  # nats above the first loss, if that is of random parameters: worse than guessing
AFTER = 8  # steps: for so long a departure has to last; a later one is another
LEAD = 5  # steps in which a spike of the gradient norm counts as having come before a departure
TOO_FAR = 0.5  # of the size of a matrix, in one update
UNUSUAL = 3.0  # times the median of the updates before
NOTICEABLE = 0.03  # of the size of a matrix: an update below does no harm, however unusual
ROWS_BEFORE = 8  # of statistics, that an update is compared with
TOKENS = 2**18  # of the training text, whose order is measured


class Departure(NamedTuple):
    """A loss that stands out above those before it. place: in the arrays of the history; level: the median before."""

    place: int
    level: float
    lasting: bool


@dataclass(frozen=True)
class Moved:
    """The matrix that an update moved most, against its size. step: of the update; row: the step of the statistics.

    unusual: how many times the median of the rows before, the largest of all matrices; None with too few rows.
    """

    tensor: str
    hidden: bool
    update: float
    weights: float
    share: float
    step: int
    row: int
    unusual: float | None

    @property
    def too_far(self) -> bool:
        """Whether that was a large step: for its size or, where that can be told, by the updates before."""
        return not self.share <= TOO_FAR or (self.unusual is not None and not self.unusual <= UNUSUAL)

    def __str__(self) -> str:
        ratio = self.update / self.weights if self.weights else 0.0
        size = (
            f"{ratio:,.0f} times its norm" if ratio >= 10 else f"{ratio:.2g} times its norm" if ratio else "from zero"
        )
        row = "" if self.row == self.step else f" (as of step {self.row}, the nearest with statistics)"
        return f"the update of step {self.step} moved {self.tensor} most: by {self.update:.3g}, {size}{row}"


class History:
    """Steps and evaluations of a run, as arrays; records that are not finite are left out."""

    def __init__(self, reader: RunReader) -> None:
        self.config, self.matrices, self.reader = reader.config, _later_statistics(reader), reader
        table = reader.step_table("loss", "gradient_norm", "learning_rate")
        table = table[np.isfinite(table).all(1)]
        self.steps = table[:, 0].astype(np.int64)
        self.last = int(self.steps[-1]) if len(table) else 0
        self.loss, self.gradient, self.rate = table[:, 1], table[:, 2], table[:, 3]
        self.smoothing = min(50, max(5, len(table) // 20))  # steps of a running median
        self.guessing = math.log(self.config.model.vocab_size)
        self.evaluations = [e for e in reader.sampled_evaluations() if math.isfinite(e.loss)]
        self.diverged, events = diverged(reader), reader.events()
        # Random parameters are noted with their seed; others, with where they come from.
        elsewhere = any(e.kind == "born" and not e.text.startswith("seed") for e in events)
        self.inherited = elsewhere or bool(self.config.training.parent)

    @cached_property
    def departures(self) -> list[Departure]:
        """Where the loss stands out above those before it, or above the first one."""
        if len(self.loss) < 2:
            return []
        first = math.inf if self.inherited else self.loss[0] + ABOVE_FIRST
        limits = np.minimum(limits_of(self.loss), first)
        limits[0] = math.inf
        places = np.flatnonzero(self.loss > limits)
        starts = places[np.diff(places, prepend=-AFTER) >= AFTER]
        return [
            Departure(
                place,
                float(np.median(self.loss[max(0, place - WINDOW) : place])),
                self._lasts(place, limits[place]),
            )
            for place in starts.tolist()
        ]

    def _lasts(self, place: int, limit: float) -> bool:
        """Whether most of the losses after a departure are as high, or none of them is back where it was before."""
        after = self.loss[place + 1 :]
        high = np.median([*after[:AFTER], -math.inf]) > limit
        return bool(
            high or (len(after) >= AFTER and after.min() >= np.median(self.loss[max(0, place - WINDOW) : place]))
        )

    @cached_property
    def departure(self) -> Departure | None:
        """The first that lasts."""
        return next((departure for departure in self.departures if departure.lasting), None)

    def led(self, place: int) -> list[int]:
        """How many steps before a place the gradient norm had a spike; not in the step itself, whose text may be odd."""
        first = max(0, place - LEAD - WINDOW)
        gradient = self.gradient[first:place]
        spikes = gradient > limits_of(gradient)
        return [lead for lead in range(LEAD, 0, -1) if place >= lead and spikes[place - lead - first]]

    def moved(self, step: int) -> Moved | None:
        """What the update of a step moved most; None if statistics are not recorded."""
        layout = self.reader.layout()
        if layout is None or step < 0 or not self.matrices:
            return None
        row = layout.row(step)
        numbers = [self.reader.statistics_at(layout.step(r)) for r in range(max(0, row - ROWS_BEFORE), row + 1)]
        if numbers[-1] is None:
            return None
        specs = list(self.matrices)
        places = [[layout.statistic(spec.name, name) for spec in specs] for name in ("update_norm", "weight_norm")]
        updates, weights = (np.array([n[place] for n in numbers if n is not None], np.float64) for place in places)
        # A matrix that begins near zero is measured by the size that keeps a signal's size.
        sizes = np.maximum(weights[-1], [math.sqrt(spec.shape[0]) for spec in specs])
        shares = np.nan_to_num(updates[-1] / sizes, nan=math.inf)
        before = np.median(updates[:-1], axis=0) if len(updates) > FEWEST else np.zeros(len(specs))
        compared = (before > 0) & (shares > NOTICEABLE)
        unusual = updates[-1][compared] / before[compared]
        most = int(shares.argmax())
        return Moved(
            specs[most].name,
            specs[most].hidden,
            float(updates[-1][most]),
            float(weights[-1][most]),
            float(shares[most]),
            step,
            layout.step(row),
            float(unusual.max()) if len(unusual) else None,
        )

    def not_finite_since(self) -> tuple[int, str] | None:
        """The first statistics with a matrix that has numbers that are not finite, and its name."""
        for spec in self.matrices:
            table = self.reader.statistics(spec.name)
            if len(bad := np.flatnonzero(~np.isfinite(table["weight_norm"]))):
                return int(table["step"][bad[0]]), spec.name
        return None

    def epochs(self, step: int) -> float | None:
        """How often the first steps read the training text; None if the run does not know how long that is."""
        reading = self.reader.facts().get("reading")
        return max(count for _, count in Summary.of(json.loads(reading)).epochs(self.config, step)) if reading else None

    @cached_property
    def order(self) -> tuple[float, float] | None:
        """Of the training tokens, in nats: the entropy of their frequencies, and what one tells of the next.

        The latter is measured against the same tokens shuffled, as few tokens seem to tell something by chance. None if the
        token files are not there.
        """
        try:
            tokens = np.asarray(open_prepared(tokens_folder(self.reader)).train[0][:TOKENS], np.int64)
        except (VitrineError, OSError, IndexError):
            return None
        shuffled = np.random.default_rng(0).permutation(tokens)
        return _entropy(tokens), _pairs(shuffled) - _pairs(tokens)


def diverged(reader: RunReader) -> EventRecord | None:
    """How the training broke off at a step that could not be made, if it did."""
    made = reader.steps_made()
    return next((e for e in reader.events() if e.kind == "diverged" and e.step >= made), None)


def limits_of(values: Floats) -> Floats:
    """For each value, what would be a spike after those before it; infinite for the first ones."""
    limits = np.full(len(values), math.inf)
    for place in range(FEWEST, min(WINDOW, len(values))):
        limits[place] = _limit(values[:place])
    if len(values) > WINDOW:
        limits[WINDOW:] = _limit(sliding_window_view(values, WINDOW)[:-1])
    return limits


def deviation(values: Floats) -> Floats:
    """1.4826 times the median deviation: the standard deviation, were they normal; outliers hardly count. By row."""
    return 1.4826 * np.asarray(np.median(np.abs(values - np.median(values, axis=-1, keepdims=True)), axis=-1))


def _limit(before: Floats) -> Floats:
    median = np.median(before, axis=-1)
    return median + SPIKE * np.maximum(deviation(before), np.maximum(DEVIATION_FLOOR * np.abs(median), 1e-12))


def _entropy(values: NDArray[np.int64]) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


def _pairs(tokens: NDArray[np.int64]) -> float:
    """The entropy of two tokens in a row."""
    return _entropy(tokens[:-1] * (int(tokens.max()) + 1) + tokens[1:])


def _later_statistics(reader: RunReader) -> dict[TensorSpec, NDArray[Any]]:
    """The later half of the statistics of every matrix; nothing if none are recorded."""
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) == 2] if reader.layout() else []
    tables = {plan: reader.statistics(plan.name) for plan in matrices}
    stop = min(map(len, tables.values()), default=0)  # they may grow while they are read
    return {plan: table[stop // 2 : stop] for plan, table in tables.items()}
