"""The rule that ends a training by its losses. It needs no model, no clock and no disk."""

import math

from vitrine.config import TrainingConfig
from vitrine.runs.records import EvaluationRecord


class StoppedError(Exception):
    """A signal or a command stops work that can be abandoned and repeated."""


class StoppingRule:
    """The target and the patience of a run, with the measurements so far. A resumed run restores them from its history.

    Losses are in nats per token. without_best: the number of usual measurements after the best one.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self.target, self.patience = training.target_loss, training.patience
        self.usual_tokens = training.evaluation_tokens
        self.best_loss, self.without_best, self.usual_loss = math.inf, 0, math.inf
        # Before it is known, a low value, so that a target is not missed for long.
        self.final_minus_usual = -0.01 * self.target

    def measured(self, record: EvaluationRecord) -> bool:
        """Add a measurement; returns whether it is the best of the usual ones so far."""
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
        """Whether a usual measurement suggests that the target is met. Then as much as at the end should be measured."""
        return bool(self.target) and not record.whole and record.loss + self.final_minus_usual <= self.target

    def reason(self, record: EvaluationRecord) -> str:
        """Why the training ends after this measurement: "target" or "early"; empty: it continues."""
        if self.target and (record.whole or record.final) and record.loss <= self.target:
            return "target"
        return "early" if self.patience and self.without_best >= self.patience else ""
