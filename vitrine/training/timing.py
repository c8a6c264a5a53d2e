"""How long things take: the pace of a training, and, before one, what fits into the time of `--for`."""

import statistics
import time
from collections import deque
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

SAMPLE_TOKENS = 64  # that the model writes, now and then
AT_ONCE_S = 0.5  # that one timed step may take, where there is no time to keep to
STEPS = 50  # that are timed at most
WRITTEN = 8  # tokens of a timed text, beside the first
RECORDING = 1.05  # what recording adds to a step at most, and slow steps to the usual ones
SHARE = 0.05  # of the time that was asked for: for the last evaluation, and for all between the steps
SHOWING_S = 0.5  # after the training, besides what follows from the model: what the command shows at its end

FIRST = slice(5, 20)  # steps whose pace is the reference: the very first ones warm up
SLOW = 2.0  # times as long as these: worth saying


@dataclass(frozen=True)
class Timing:
    """What things take, in seconds.

    step_s: a training step; first_s: what the first one takes more, where the model is compiled.
    token_s: a token of an evaluation; 0: there is no validation text. sample_s: a text that is written during training.
    build_s: making a new model.
    """

    step_s: float
    first_s: float = 0.0
    token_s: float = 0.0
    sample_s: float = 0.0
    build_s: float = 0.0


class Probe:
    """A new model of its own that is trained, measured and made to write for a moment, and then thrown away.

    Args:
        at_once_s: what one timed step should take at most. A longer one is computed from shorter ones.
    """

    def __init__(
        self, config: Config, tokens: Prepared, processes: Processes | None = None, at_once_s: float = AT_ONCE_S
    ) -> None:
        self.config, self.tokens, self.at_once_s = config, tokens, at_once_s
        self.processes = processes or Processes()
        if self.processes.size > 1:  # the first one imports what distributes it
            build_state(config, self.processes)
        start = time.perf_counter()
        self.decoder, self.state = build_state(config, self.processes)
        self.build_s = time.perf_counter() - start

    def measure(self, tokenizer: Tokenizer) -> Timing:
        """Everything that a training spends its time on."""
        step_s, first_s = self.step_s()
        return Timing(step_s, first_s, self.token_s(), self.sample_s(tokenizer), self.processes.agree(self.build_s))

    def step_s(self) -> tuple[float, float]:
        """A training step, and what the very first takes more where the model is compiled."""
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
        """The first step of such a shape, and the lower quartile of some more: other programs disturb a few.

        A step that is thought too short costs little, since the clock ends the training; one thought too long, all the rest.
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
) -> Config:
    """The hyperparameters for a time: how many steps, and how many tokens the evaluations measure.

    Args:
        for_s: seconds that were asked for; left_s: that are left of them.
        held_back: validation tokens.
        given: what of [training] is not to be changed.
        resolve: the hyperparameters, with some of [training] set where they are not given.
    """
    config, lowered = resolve({}), dict[str, int]()

    def tokens(name: str, share_s: float) -> int:
        """What an evaluation measures: what it should, or what fits into its share of the time."""
        wanted = min(getattr(config.training, name) or held_back, held_back)
        if name not in given and wanted * timing.token_s > share_s:
            lowered[name] = max(1, int(share_s / timing.token_s / config.model.context)) * config.model.context
        return lowered.get(name, wanted)

    final = tokens("final_evaluation_tokens", SHARE * for_s)
    samples = config.recording.text_samples * config.recording.enabled
    # Two more models are made; then its keyframe is written and read, a longer text is written, and health looks.
    left_s -= 5 * timing.build_s + timing.first_s + (samples + 3) * timing.sample_s + SHOWING_S
    left_s = max(0.0, left_s - final * timing.token_s)
    step_s = RECORDING * timing.step_s
    steps = max(1, int(left_s / step_s))
    every = resolve({"steps": steps}).training.evaluate_every
    usual = tokens("evaluation_tokens", SHARE * for_s / max(1, steps // every))
    steps = max(1, int(left_s / (step_s + usual * timing.token_s / every)))
    return resolve({"steps": steps, **lowered})


class Pace:
    """Receives how long each step and each evaluation took."""

    def __init__(self, config: Config, validation_tokens: int) -> None:
        self.config, self.validation_tokens = config, validation_tokens
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
