"""What a run's history holds: one frozen dataclass a record."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepRecord:
    """One training step. loss and gradient_norm are the bits of float32 numbers, held as float64."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    duration_s: float


@dataclass(frozen=True)
class EvaluationRecord:
    """The validation loss of the parameters that a step starts from; `whole`: over the whole split."""

    step: int
    loss: float
    tokens: int
    whole: bool
    duration_s: float


@dataclass(frozen=True)
class SampleRecord:
    """Text that the model wrote, with the parameters that a step starts from."""

    step: int
    prompt: str
    text: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to the run: started, resumed, interrupted, diverged, finished..."""

    step: int
    time_s: float
    kind: str
    text: str
