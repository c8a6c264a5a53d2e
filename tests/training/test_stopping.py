"""The stopping rule, by losses written out by hand: no training."""

import math
from typing import Any

import pytest

from vitrine.config import TrainingConfig
from vitrine.presets import Facts, resolve
from vitrine.runs.records import EvaluationRecord
from vitrine.training.stopping import StoppingRule

USUAL = 1000  # tokens of the usual measurement, of 5,000 in the split


def rule(**training: Any) -> StoppingRule:
    given: TrainingConfig = resolve(
        {"training": {"evaluation_tokens": USUAL, **training}}, Facts(vocab_size=65, train_tokens=10_000)
    ).training
    return StoppingRule(given)


def usual(loss: float, step: int = 10) -> EvaluationRecord:
    return EvaluationRecord(step, loss, USUAL, whole=False, duration_s=0.1)


def final(loss: float, step: int = 10) -> EvaluationRecord:
    return EvaluationRecord(step, loss, 3 * USUAL, whole=False, duration_s=0.3, final=True)


def whole(loss: float, step: int = 10) -> EvaluationRecord:
    return EvaluationRecord(step, loss, 5 * USUAL, whole=True, duration_s=0.5)


def reasons(stopping: StoppingRule, records: list[EvaluationRecord]) -> list[str]:
    found = []
    for record in records:
        stopping.measured(record)
        found.append(stopping.reason(record))
    return found


def test_without_target_and_patience_nothing_ends_a_training():
    assert reasons(rule(), [usual(1.0), usual(2.0), whole(0.0), final(0.0), usual(math.nan)]) == [""] * 5


def test_patience_counts_the_usual_measurements_since_the_best_one():
    losses = [3.0, 2.0, 2.0, 2.5, 1.9, 2.0, 2.1, 2.2]
    assert reasons(rule(patience=3), [usual(loss) for loss in losses]) == [""] * 7 + ["early"]


@pytest.mark.parametrize("other", [final(9.0), whole(9.0)])
def test_a_measurement_of_more_text_is_neither_best_nor_worse(other):
    stopping = rule(patience=1)
    assert [stopping.measured(record) for record in (usual(3.0), other, usual(2.0))] == [True, False, True]
    assert (stopping.best_loss, stopping.without_best) == (2.0, 0)


def test_a_loss_that_is_no_number_is_never_the_best():
    stopping = rule(patience=2)
    assert reasons(stopping, [usual(math.nan), usual(math.nan)]) == ["", "early"]
    assert stopping.best_loss == math.inf


def test_a_target_is_met_by_as_much_text_as_at_the_end_only():
    assert reasons(rule(target_loss=2.0), [usual(1.0), final(2.1), final(2.0), whole(2.0)]) == [
        "",
        "",
        "target",
        "target",
    ]


def test_a_split_that_the_usual_measurement_covers_meets_a_target_at_once():
    small = EvaluationRecord(10, 1.9, USUAL - 1, whole=True, duration_s=0.1)
    stopping = rule(target_loss=2.0)
    assert reasons(stopping, [small]) == ["target"]
    assert not stopping.seems_met(small)  # nothing more can be measured


def test_before_the_difference_is_known_a_target_seems_met_one_percent_early():
    stopping = rule(target_loss=2.0)
    assert [stopping.seems_met(usual(loss)) for loss in (2.021, 2.019, 1.5)] == [False, True, True]
    assert not rule().seems_met(usual(0.0))


def test_after_a_final_measurement_the_difference_to_the_usual_one_decides():
    stopping = rule(target_loss=2.0)
    reasons(stopping, [usual(2.0), final(2.3)])
    assert stopping.final_minus_usual == pytest.approx(0.3)
    assert [stopping.seems_met(usual(loss)) for loss in (1.75, 1.65)] == [False, True]
    reasons(stopping, [final(math.inf)])
    assert stopping.final_minus_usual == pytest.approx(0.3)  # what is not finite says nothing


def test_a_target_comes_before_patience():
    assert reasons(rule(patience=1, target_loss=2.0), [usual(1.0), usual(3.0), whole(1.5)]) == ["", "early", "target"]
