"""How fast a training goes, and how long the rest of it will take."""

import statistics
from collections import deque

from vitrine.config import Config

FIRST = slice(5, 20)  # steps whose pace is the reference: the very first ones warm up
SLOW = 2.0  # times as long as these: worth saying


class Pace:
    """Receives how long each step and each evaluation took."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.training_s, self.steps, self.step_s, self.token_s = 0.0, 0, 0.0, 0.0
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=10)

    def stepped(self, duration_s: float) -> None:
        """A step took so long."""
        self.training_s, self.steps = self.training_s + duration_s, self.steps + 1
        # The first steps are slow; later ones count alike, over about the last fifty.
        weight = 1.0 if self.steps <= 3 else max(1 / 50, 1 / self.steps)
        self.step_s += weight * (duration_s - self.step_s)
        self.recent.append(duration_s)
        if len(self.first) < FIRST.stop:
            self.first.append(duration_s)

    def evaluated(self, duration_s: float, tokens: int) -> None:
        """An evaluation took so long."""
        self.token_s = duration_s / tokens

    @property
    def tokens_per_s(self) -> float:
        """Tokens learned from in each second of training, of late."""
        return self.config.tokens_per_step / self.step_s if self.step_s else 0.0

    @property
    def slowdown(self) -> float:
        """How many times as long as the first steps the last ten took, by their medians; 1: less than twice as long."""
        if self.steps < FIRST.stop + len(self.recent):
            return 1.0
        factor = statistics.median(self.recent) / statistics.median(self.first[FIRST])
        return factor if factor >= SLOW else 1.0

    def last_s(self, validation_tokens: int) -> float:
        """Seconds that the last evaluation takes."""
        token_s = self.token_s or self.step_s / (3 * self.config.tokens_per_step)
        return token_s * min(self.config.training.final_evaluation_tokens or validation_tokens, validation_tokens)

    def left_s(self, number: int, validation_tokens: int) -> float:
        """Seconds to the end: steps, the evaluations between them, and the last one."""
        training = self.config.training
        token_s = self.token_s or self.step_s / (3 * self.config.tokens_per_step)
        steps = training.steps - number
        between = steps // training.evaluate_every * min(training.evaluation_tokens, validation_tokens)
        return steps * self.step_s + between * token_s + self.last_s(validation_tokens)
