"""The schedules by numbers worked by hand."""

import math
from typing import Any

import pytest

from vitrine.config import ScheduleConfig
from vitrine.optimizers.schedule import learning_rate_scale


def scale(name: str, step: int, steps: int = 100, **settings: Any) -> float:
    schedule = ScheduleConfig(**{"name": name, "warmup_steps": 0, "final_fraction": 0.1} | settings)
    return learning_rate_scale(schedule, step, steps)


@pytest.mark.parametrize(
    ("name", "step", "factor"),
    [
        ("constant", 0, 1.0),
        ("constant", 99, 1.0),
        ("linear", 0, 1.0),
        ("linear", 50, 0.55),
        ("linear", 99, 0.109),
        ("cosine", 0, 1.0),
        ("cosine", 25, 0.1 + 0.9 * (2 + math.sqrt(2)) / 4),
        ("cosine", 50, 0.55),
        ("cosine", 99, 0.1 + 0.45 * (1 - math.cos(math.pi / 100))),
        ("wsd", 0, 1.0),
        ("wsd", 70, 1.0),
        ("wsd", 85, 0.55),
        ("wsd", 99, 0.1 + 0.9 / 30),
    ],
)
def test_the_schedules_are_worked_by_hand(name: str, step: int, factor: float) -> None:
    assert scale(name, step, decay_fraction=0.3) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_the_warm_up_rises_in_equal_steps_to_the_whole_rate(name: str) -> None:
    rising = [scale(name, step, warmup_steps=4) for step in range(5)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_after_the_warm_up_the_linear_schedule_falls_over_what_is_left() -> None:
    assert scale("linear", 60, warmup_steps=20) == pytest.approx(0.55)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("settings", [{}, {"warmup_steps": 3}, {"decay_fraction": 0.0}, {"decay_fraction": 1.0}])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_factor_is_always_above_zero_and_at_most_one(name: str, settings: dict[str, Any], steps: int) -> None:
    factors = [scale(name, step, steps, final_fraction=0.0, **settings) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
