"""Replay a past step on the bits that training had, and prove it by what was recorded then."""

import json
from collections.abc import Callable, Iterable

from torch import Tensor

from vitrine.config import Config
from vitrine.errors import ConfigError, RunError
from vitrine.inspection import comparisons
from vitrine.inspection.comparisons import Comparisons
from vitrine.inspection.replayed_step import ReplayedStep, StepTrace
from vitrine.model.loss import next_token_loss
from vitrine.recording.recorder import StepLoss
from vitrine.recording.statistics import sample_places
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.step import MicroBatch, State, step
from vitrine.training.checkpoint import Snapshot, load_keyframe, restore
from vitrine.training.device import check_device, differences, fingerprint
from vitrine.training.distributed import Processes
from vitrine.training.state import build_state, make_batches, micro_batches
from vitrine.training.tokens import open_tokens

PASSED_BYTES = 2**28  # of the parameters of steps that a replay went through


class Replayer:
    """A run whose steps can be made once more. It stands at one step, and moves on from there or from a keyframe.

    It only reads, and works while the run still trains.
    """

    def __init__(self, reader: RunReader, note: Callable[[str], None] = lambda text: None) -> None:
        reader.check_model()
        self.reader, self.note = reader, note
        self.config, self.elsewhere = _config_here(reader)
        self.decoder, self.state = build_state(self.config, Processes())
        self.batches = make_batches(self.config, open_tokens(reader))
        layout = reader.layout()
        self.sampled = sample_places(self.state.parameters, layout) if layout else None
        self.comparisons = Comparisons(self.elsewhere)
        self.started = False  # whether it came from a keyframe
        self.watch: Callable[[State], None] = lambda state: None  # is called at the start of each step
        self.passed: dict[int, Tensor] = {}  # the parameters that the last steps started from, by step

    def go_to(self, number: int) -> None:
        """Stand where step `number` starts. Raises RunError if the run has not come so far."""
        self.reader.check_step(number, "start from")
        snapshot = self._keyframe_before(number)
        if not snapshot.step <= self.state.step <= number or not self.started:
            self._start(snapshot)
        while self.state.step < number:
            self._make(StepTrace())
        self.watch(self.state)

    def replay(self, number: int) -> ReplayedStep:
        """Make step `number` once more, and keep all of it."""
        self.reader.check_step(number)
        self.go_to(number)
        trace = StepTrace(whole=True)
        self._make(trace)
        comparisons.compare_histograms(self.comparisons, self.reader, trace)
        comparisons.compare_frame(self.comparisons, self.reader, trace, self.note)
        kept = keyframe_steps(self.reader.path / KEYFRAMES)
        if number + 1 in kept:
            self._compare_keyframe()
        again = self.loss_of(batch.micro for batch in trace.micro_batches)
        following = self.loss_of(micro_batches(self.batches, number + 1, self.decoder, Processes()))
        record = self.reader.step_record(number + 1)
        self.comparisons.number("loss of the next step", number + 1, following, record.loss if record else None)
        return ReplayedStep(
            self.reader,
            self.config,
            self.decoder,
            self.state.optimizer,
            trace,
            self.comparisons,
            again,
            following,
            {s: values for s, values in self.passed.items() if s >= max((k for k in kept if k <= number), default=0)},
        )

    def prove(self) -> None:
        """Go on to the next keyframe, and compare every bit of it."""
        later = [s for s in keyframe_steps(self.reader.path / KEYFRAMES) if s >= self.state.step]
        if not later:
            self.note("There is no later keyframe to run on to.")
            return
        while self.state.step < later[0]:
            self._make(StepTrace())
        self._compare_keyframe()

    def loss_of(self, batches: Iterable[MicroBatch]) -> float:
        """The loss of a batch with the parameters as they stand, computed as a step computes it."""
        losses = StepLoss()
        for micro in batches:
            logits = self.state.model(micro.inputs, micro.dropout_keys)
            losses.micro_batch(micro, logits, next_token_loss(logits, micro.targets).detach())
        return losses.take()

    def _keyframe_before(self, number: int) -> Snapshot:
        """The newest sound keyframe at or before a step."""
        folder = self.reader.path / KEYFRAMES
        for candidate in reversed([s for s in keyframe_steps(folder) if s <= number]):
            if candidate <= self.state.step <= number and self.started:
                return Snapshot(candidate, {}, {})  # we stand between: nothing has to be loaded
            try:
                snapshot = load_keyframe(keyframe_path(folder, candidate))
            except RunError as error:
                self.note(f"{error} Using the one before.")
                continue
            if snapshot.step != candidate:
                self.note(f"The keyframe {candidate} says that it is of step {snapshot.step}. Using the one before.")
                continue
            return snapshot
        raise RunError(f"{folder} holds no sound keyframe at or before step {number}.")

    def _start(self, snapshot: Snapshot) -> None:
        restore(self.state, snapshot)
        self.started, self.passed = True, {}
        self.comparisons = Comparisons(self.elsewhere)
        self._compare_keyframe()

    def _make(self, trace: StepTrace) -> None:
        """One step, compared with what was recorded of it."""
        self.watch(self.state)
        step(self.state, micro_batches(self.batches, self.state.step, self.decoder, Processes()), trace)
        self._remember(trace.step, trace.values)
        comparisons.compare_record(self.comparisons, self.reader, trace)
        if self.sampled is not None:
            comparisons.compare_statistics(self.comparisons, self.reader, self.sampled, trace)

    def _compare_keyframe(self) -> None:
        comparisons.compare_keyframe(self.comparisons, self.reader, self.state, self.note)

    def _remember(self, number: int, values: Tensor) -> None:
        """Keep what a step started from, as long as there is room: the oldest goes first."""
        self.passed[number] = values
        while len(self.passed) > max(1, PASSED_BYTES // values.nbytes):
            del self.passed[min(self.passed)]


def _config_here(reader: RunReader) -> tuple[Config, list[str]]:
    """The run's hyperparameters as this machine can follow them, and how its fingerprint differs."""
    config = reader.config
    try:
        check_device(config.machine.device)
    except ConfigError:
        config = config.model_copy(update={"machine": config.machine.model_copy(update={"device": "cpu"})})
    then = json.loads(reader.facts().get("fingerprint", "{}"))
    now = fingerprint(config.machine, config.training.precision, 1, then.get("corpus", ""))
    return config, differences(then, now)
