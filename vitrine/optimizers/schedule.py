"""The schedule of the learning rate."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrine.config import ScheduleConfig


def learning_rate_scale(schedule: "ScheduleConfig", step: int, steps: int) -> float:
    """The schedule's factor on the learning rate at a step: a pure function, 0 <= factor <= 1."""
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    final = schedule.final_fraction
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "linear":
        return 1 - (1 - final) * progress
    if schedule.name == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    left = (steps - step) / max(1.0, steps * schedule.decay_fraction)
    return 1.0 if left >= 1 else final + (1 - final) * left
