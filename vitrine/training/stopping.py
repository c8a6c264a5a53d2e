"""When a training ends. `StoppingRule` knows losses only: no model, no clock, no disk."""

import math

from vitrine.config import TrainingConfig
from vitrine.runs.records import EvaluationRecord


class StoppedError(Exception):
    """A signal or a command asks to leave in the middle of something that can be left and made again."""


class StoppingRule:
    """The target and the patience of a run, with what was measured so far. A resumed run hears it from its history.

    Losses are in nats per token. without_best: how many of the usual measurements came after the best one.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self.target, self.patience = training.target_loss, training.patience
        self.usual_tokens = training.evaluation_tokens
        self.best_loss, self.without_best, self.usual_loss = math.inf, 0, math.inf
        # Before it is known: a little optimism, so that a target is not missed for long.
        self.final_minus_usual = -0.01 * self.target

    def measured(self, record: EvaluationRecord) -> bool:
        """Take note of a measurement; whether it is the best of the usual ones so far."""
        if not record.compares(self.usual_tokens):
            if math.isfinite(record.loss - self.usual_loss):
                self.final_minus_usual = record.loss - self.usual_loss
            return False
        self.usual_loss = record.loss
        if record.loss < self.best_loss:
            self.best_loss, self.without_best = record.loss, 0
            return True
        self.without_best += 1
        return False

    def seems_met(self, record: EvaluationRecord) -> bool:
        """Whether a usual measurement suggests that the target is met. As much as at the end should be measured then."""
        return bool(self.target) and not record.whole and record.loss + self.final_minus_usual <= self.target

    def reason(self, record: EvaluationRecord) -> str:
        """Why the training ends after this measurement: "target" or "early"; empty: it goes on."""
        if self.target and (record.whole or record.final) and record.loss <= self.target:
            return "target"
        return "early" if self.patience and self.without_best >= self.patience else ""
