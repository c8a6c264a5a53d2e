"""Timing, before a training: how many steps fit into the time of `--for`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from vitrine.config import Config
from vitrine.generation.generate import generate
from vitrine.step import step
from vitrine.text.token_files import Prepared
from vitrine.training.distributed import Processes
from vitrine.training.evaluation import evaluate
from vitrine.training.state import build_state, make_batches, micro_batches

SAMPLE_TOKENS = 64  # of a sample
AT_ONCE_S = 0.5  # for one timed step, if no time was requested
STEPS = 50  # timed at most
WRITTEN = 8  # tokens of a timed text, in addition to the first
RECORDING = 1.05  # what recording adds to a step at most, and slow steps to the usual ones
SHARE = 0.05  # of the requested time: for the last evaluation, and for all between the steps
# How each hyperparameter that `fit` returns was derived.
FITTED = {
    "steps": "as many as fit into {for_s:g} s on this machine, by timing a few",
    "evaluation_tokens": f"as many as can be measured in {SHARE:.0%} of the {{for_s:g}} s asked for, all evaluations together",
    "final_evaluation_tokens": f"as many as can be measured in {SHARE:.0%} of the {{for_s:g}} s asked for",
}
SHOWING_S = 0.5  # for what the command shows at its end, in addition to the work of the model


@dataclass(frozen=True)
class Timing:
    """Durations of parts of a training, in seconds.

    step_s: a training step; first_s: extra time of the first one, if the model is compiled.
    token_s: a token of an evaluation; 0: there is no validation text. sample_s: a text that is written during training.
    build_s: making a new model.
    """

    step_s: float
    first_s: float = 0.0
    token_s: float = 0.0
    sample_s: float = 0.0
    build_s: float = 0.0


class Probe:
    """Trains, evaluates and samples a separate new model for a moment to time it, and drops it.

    Args:
        at_once_s: the longest one timed step should take. A longer one is computed from shorter ones.
    """

    def __init__(
        self, config: Config, tokens: Prepared, processes: Processes | None = None, at_once_s: float = AT_ONCE_S
    ) -> None:
        self.config, self.tokens, self.at_once_s = config, tokens, at_once_s
        self.processes = processes or Processes()
        if self.processes.size > 1:  # the first one imports torch's distributed modules
            build_state(config, self.processes)
        start = time.perf_counter()
        self.decoder, self.state = build_state(config, self.processes)
        self.build_s = time.perf_counter() - start

    def measure(self, tokenizer: Tokenizer) -> Timing:
        """Time all parts of a training."""
        step_s, first_s = self.step_s()
        return Timing(step_s, first_s, self.token_s(), self.sample_s(tokenizer), self.processes.agree(self.build_s))

    def step_s(self) -> tuple[float, float]:
        """A training step, and the extra time of the very first if the model is compiled."""
        training, compiled = self.config.training, self.config.machine.compile
        rows = training.batch_size if compiled else self.processes.size  # another shape would be compiled, too
        while True:
            first_s, once_s = self._step_s(rows, 1)
            if rows == training.batch_size or once_s > self.at_once_s:
                break
            rows = min(training.batch_size, 4 * rows)
        more_s = max(0.0, first_s - once_s) if compiled else 0.0
        sequences = training.batch_size * training.accumulation
        if rows == sequences:
            return self._step_s(rows, 1, 8 * self.at_once_s)[1], more_s
        twice_s = self._step_s(rows, 2)[1]
        return once_s + max(0.0, twice_s - once_s) * (sequences / rows - 1), more_s

    def token_s(self) -> float:
        """A token of an evaluation."""
        held_back, share = self.tokens.validation, (self.processes.rank, self.processes.size)
        if len(held_back) < 2:
            return 0.0
        at_most = self.config.model.context * self.processes.size
        while True:
            start = time.perf_counter()
            tokens = evaluate(self.decoder, held_back, 0, at_most, share).tokens
            duration_s = self.processes.agree(time.perf_counter() - start)
            if duration_s > self.at_once_s or at_most >= len(held_back):
                return duration_s / tokens
            at_most *= 4

    def sample_s(self, tokenizer: Tokenizer) -> float:
        """A text that the first process writes during training."""
        times = []
        for tokens in (1, 1 + WRITTEN):
            start = time.perf_counter()
            if self.processes.first:
                generate(self.decoder, tokenizer, "", tokens, self.config.sampling, self.config.training.seed)
            times.append(self.processes.agree(time.perf_counter() - start))
        return times[0] + max(0.0, times[1] - times[0]) * (SAMPLE_TOKENS - 1) / WRITTEN

    def _step_s(self, batch_size: int, accumulation: int, at_least_s: float = 0.0) -> tuple[float, float]:
        """The first step of this shape, and the lower quartile of some more, as other programs slow down a few.

        Too short an estimate costs little, since the clock ends the training; too long a one wastes the rest of the time.
        """
        training = {"batch_size": batch_size, "accumulation": accumulation}
        config = self.config.model_copy(update={"training": self.config.training.model_copy(update=training)})
        batches, times = make_batches(config, self.tokens), list[float]()
        self.state.step = 0
        while len(times) < 4 or (len(times) < STEPS and self.processes.agree(sum(times)) < at_least_s):
            start = time.perf_counter()
            step(self.state, micro_batches(batches, self.state.step, self.decoder, self.processes))
            times.append(time.perf_counter() - start)
        return self.processes.agree(times[0]), self.processes.agree(sorted(times[1:])[(len(times) - 1) // 4])


def fit(
    timing: Timing,
    for_s: float,
    left_s: float,
    held_back: int,
    given: set[str],
    resolve: Callable[[dict[str, Any]], Config],
) -> dict[str, int]:
    """Fit hyperparameters of [training] to a time: the number of steps, and the tokens that evaluations measure.

    Args:
        for_s: requested seconds; left_s: seconds left of them.
        held_back: validation tokens.
        given: the hyperparameters of [training] that must not change.
        resolve: makes all hyperparameters from some of [training].
    """
    config, lowered = resolve({}), dict[str, int]()

    def tokens(name: str, share_s: float) -> int:
        """Tokens that an evaluation measures: the default, or what fits into its share of the time."""
        wanted = min(getattr(config.training, name) or held_back, held_back)
        if name not in given and wanted * timing.token_s > share_s:
            lowered[name] = max(1, int(share_s / timing.token_s / config.model.context)) * config.model.context
        return lowered.get(name, wanted)

    final = tokens("final_evaluation_tokens", SHARE * for_s)
    samples = config.recording.text_samples * config.recording.enabled
    # Two more models are made; then its keyframe is written and read, a longer text is written, and health is examined.
    left_s -= 5 * timing.build_s + timing.first_s + (samples + 3) * timing.sample_s + SHOWING_S
    left_s = max(0.0, left_s - final * timing.token_s)
    step_s = RECORDING * timing.step_s
    steps = max(1, int(left_s / step_s))
    every = resolve({"steps": steps}).training.evaluate_every
    usual = tokens("evaluation_tokens", SHARE * for_s / max(1, steps // every))
    steps = max(1, int(left_s / (step_s + usual * timing.token_s / every)))
    return {"steps": steps, **lowered}
