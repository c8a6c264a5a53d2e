"""The interface that receives training progress."""

from pathlib import Path

from vitrine.config import Config
from vitrine.runs.records import EvaluationRecord, SampleRecord, StepRecord


class Reporter:
    """Receives the progress of a training. The base class does nothing."""

    def note(self, text: str) -> None:
        """A message of one line."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """The corpus is being read: bytes done of a total."""

    def started(self, config: Config, path: Path) -> None:
        """The run exists, and its hyperparameters are resolved."""

    def stepped(self, record: StepRecord, tokens_per_s: float, left_s: float) -> None:
        """A step was made; left_s is the estimated time left, at the recent pace."""

    def slowed(self, factor: float) -> None:
        """How many times slower recent steps are than the first ones; 1: not clearly slower."""

    def evaluating(self, done: int, total: int) -> None:
        """The validation loss is being measured: windows of text done of a total."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """The validation loss was measured."""

    def sampled(self, record: SampleRecord) -> None:
        """The model wrote a sample."""
