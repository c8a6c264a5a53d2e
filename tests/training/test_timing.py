"""What fits into a time: arithmetic on what things were measured to take."""

from collections.abc import Callable
from typing import Any

import pytest

from vitrine.config import Config
from vitrine.presets import PRESETS, Facts, resolve
from vitrine.training.timing import Timing, fit

TIMINGS = {
    "a small model": Timing(step_s=0.02, token_s=4e-6, sample_s=0.1, build_s=0.05),
    "slow evaluations": Timing(step_s=0.05, token_s=1e-3, sample_s=0.1, build_s=0.05),
    "long steps": Timing(step_s=2.0, token_s=2e-4, sample_s=0.3, build_s=0.2),
    "a compiled model": Timing(step_s=0.05, first_s=8.0, token_s=1e-5, sample_s=0.1, build_s=0.1),
    "no validation text": Timing(step_s=0.02, sample_s=0.1, build_s=0.05),
}


def resolver(given: dict[str, Any]) -> Callable[[dict[str, Any]], Config]:
    preset = PRESETS["micro"]
    facts = Facts(vocab_size=96, train_tokens=10**7)
    return lambda found: resolve({**preset, "training": {**preset["training"], **found, **given}}, facts)


def fitted(timing: Timing, for_s: float, left_s: float, held_back: int, given: dict[str, Any] | None = None) -> Config:
    resolve_with = resolver(given or {})
    return resolve_with(fit(timing, for_s, left_s, held_back, set(given or {}), resolve_with))


def evaluations_s(config: Config, timing: Timing, held_back: int) -> tuple[float, float]:
    """Of the last evaluation, and of those between the steps."""
    training = config.training
    last = min(training.final_evaluation_tokens or held_back, held_back) * timing.token_s
    number = training.steps // training.evaluate_every
    return last, number * min(training.evaluation_tokens, held_back) * timing.token_s


@pytest.mark.parametrize("for_s", [60.0, 600.0])
@pytest.mark.parametrize("held_back", [5_000, 12_000_000])
@pytest.mark.parametrize("name", TIMINGS)
def test_most_of_the_time_goes_to_steps_and_the_whole_is_no_longer_than_was_asked_for(name, held_back, for_s):
    timing = TIMINGS[name]
    held_back *= timing.token_s > 0
    config = fitted(timing, for_s, 0.95 * for_s, held_back)
    last, between = evaluations_s(config, timing, held_back)
    steps_s = config.training.steps * timing.step_s
    assert last <= 0.1 * for_s
    assert between <= 0.1 * for_s
    assert 0.7 * for_s <= steps_s + timing.first_s
    assert 0.85 * for_s <= 0.05 * for_s + timing.first_s + 1.05 * steps_s + last + between <= for_s


def test_what_is_given_is_not_changed():
    given = {"evaluation_tokens": 3_000, "final_evaluation_tokens": 0, "evaluate_every": 7}
    timing = TIMINGS["slow evaluations"]
    config = fitted(timing, 600.0, 590.0, 100_000, given)
    assert {name: getattr(config.training, name) for name in given} == given
    assert config.training.steps * (1.05 * timing.step_s + 3 / 7) < 590 - 100
    assert fitted(timing, 60.0, 57.0, 0, {"steps": 12}).training.steps == 12


def test_evaluations_that_take_hardly_any_time_measure_what_they_would_without_a_limit():
    config = fitted(TIMINGS["a small model"], 600.0, 590.0, 1_000_000)
    assert (config.training.evaluation_tokens, config.training.final_evaluation_tokens) == (16_384, 2_000_000)


def test_where_nothing_fits_one_step_is_made_and_a_window_measured():
    config = fitted(Timing(step_s=100.0, token_s=1.0, build_s=1.0), 10.0, 1.0, 10_000)
    training = config.training
    assert (training.steps, training.evaluation_tokens, training.final_evaluation_tokens) == (1, 64, 64)
