"""The records of a run's history: one frozen dataclass per kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class StepRecord:
    """One training step. loss and gradient_norm are the bits of float32 numbers, held as float64.

    tokens: trained on so far, this step included; memory_bytes: used by the process.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    duration_s: float
    memory_bytes: int


@dataclass(frozen=True)
class EvaluationRecord:
    """The validation loss of the parameters that a step starts from.

    whole: over the whole split; final: over the part that the last evaluation measures, if that is not the whole split.
    """

    step: int
    loss: float
    tokens: int
    whole: bool
    duration_s: float
    final: bool = False

    def compares(self, sample_tokens: int) -> bool:
        """Whether it can be compared with the others: measured on the usual sample of the split."""
        return not (self.final or (self.whole and self.tokens > sample_tokens))


@dataclass(frozen=True)
class SampleRecord:
    """Text that the model generated with the parameters that a step starts from."""

    step: int
    prompt: str
    text: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class HistogramRecord:
    """How many numbers of a tensor fall into each bin (see `runs.layout.bin_edges`); empty bins are left out.

    kind: weight, gradient or update. bins: little-endian uint16; counts: little-endian uint32.
    """

    step: int
    tensor: str
    kind: str
    bins: bytes
    counts: bytes


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to the run: started, resumed, interrupted, diverged, finished..."""

    step: int
    time_s: float
    kind: str
    text: str


Record = StepRecord | EvaluationRecord | SampleRecord | HistogramRecord | EventRecord
R = TypeVar("R")
FINAL = 2  # value of the column `whole`, which is part of an evaluation's key
EMPTY = {float: math.nan, int: 0, bool: False, str: "", bytes: b""}  # the value of NULL


def record_of(kind: type[R], row: Sequence[Any]) -> R:
    """Make a record of this kind from its row. SQLite stores NaN as NULL; in the record it is NaN again."""
    if kind is EvaluationRecord:
        row = (*row[:3], row[3] == 1, row[4], row[3] == FINAL)
    types = kind.__annotations__.values()
    return kind(*[EMPTY[one] if value is None else one(value) for one, value in zip(types, row, strict=True)])


def row_of(record: Record) -> tuple[Any, ...]:
    """The row of a record; `record_of` reads it back."""
    if isinstance(record, EvaluationRecord):
        whole = FINAL if record.final else int(record.whole)
        return record.step, record.loss, record.tokens, whole, record.duration_s
    return tuple(vars(record).values())  # in field order; dataclasses.astuple takes ten times as long
