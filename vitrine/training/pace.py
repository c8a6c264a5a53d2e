"""The pace of a training, and the time that is left. Needs no torch."""

import json
import statistics
from collections import deque

from vitrine.config import Config
from vitrine.runs.reader import RunReader

FIRST = slice(5, 20)  # steps whose pace is the reference: the very first ones are slower
SLOW = 2.0  # times as long as these: reported as slower
LAST = 60  # steps of a history that tell its pace


class Pace:
    """Estimates speed and time left from the durations of steps and evaluations."""

    def __init__(self, config: Config, validation_tokens: int) -> None:
        self.config, self.validation_tokens = config, validation_tokens
        self.training_s, self.steps, self.step_s, self.token_s = 0.0, 0, 0.0, 0.0
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=10)

    @classmethod
    def of(cls, reader: RunReader) -> "Pace":
        """The pace of a run by its history: of its last steps and its last evaluation."""
        reading = reader.facts().get("reading")
        validation_tokens = json.loads(reading)["validation_tokens"] if reading else 0
        pace = cls(reader.config, validation_tokens)
        for duration_s in reader.last_durations_s(LAST):
            pace.stepped(duration_s)
        if evaluations := reader.evaluations():
            pace.evaluated(evaluations[-1].duration_s, evaluations[-1].tokens)
        return pace

    def stepped(self, duration_s: float) -> None:
        """Add the duration of a step."""
        self.training_s, self.steps = self.training_s + duration_s, self.steps + 1
        # The first steps are slow; later ones have equal weight, over about the last fifty.
        weight = 1.0 if self.steps <= 3 else max(1 / 50, 1 / self.steps)
        self.step_s += weight * (duration_s - self.step_s)
        self.recent.append(duration_s)
        if len(self.first) < FIRST.stop:
            self.first.append(duration_s)

    def evaluated(self, duration_s: float, tokens: int) -> None:
        """Add the duration of an evaluation."""
        self.token_s = duration_s / tokens

    @property
    def tokens_per_s(self) -> float:
        """Training tokens per second, recently."""
        return self.config.tokens_per_step / self.step_s if self.step_s else 0.0

    @property
    def slowdown(self) -> float:
        """How many times slower the last ten steps are than the first ones, by medians; 1: less than twice."""
        if self.steps < FIRST.stop + len(self.recent):
            return 1.0
        factor = statistics.median(self.recent) / statistics.median(self.first[FIRST])
        return factor if factor >= SLOW else 1.0

    @property
    def last_s(self) -> float:
        """Seconds that the last evaluation takes."""
        return self._evaluation_s(self.config.training.final_evaluation_tokens or self.validation_tokens)

    def left_s(self, number: int) -> float:
        """Seconds from a step to the end: steps, the evaluations between them, and the last one."""
        training = self.config.training
        steps = training.steps - number
        between = steps // training.evaluate_every
        return steps * self.step_s + between * self._evaluation_s(training.evaluation_tokens) + self.last_s

    def _evaluation_s(self, tokens: int) -> float:
        token_s = self.token_s or self.step_s / (3 * self.config.tokens_per_step)
        return token_s * min(tokens, self.validation_tokens)
