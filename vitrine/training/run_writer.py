"""Writes a training's history, keyframes and text samples into its run folder."""

import json
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrine.config import Config
from vitrine.errors import RunError
from vitrine.generation.generate import generate
from vitrine.model.decoder import Decoder
from vitrine.recording.history import History
from vitrine.recording.recorder import Recorder, StepLoss
from vitrine.recording.reporter import Reporter
from vitrine.runs.layout import spaced
from vitrine.runs.reader import CONFIG, HISTORY, KEYFRAMES, TOKENIZER
from vitrine.runs.records import EvaluationRecord, SampleRecord, StepRecord
from vitrine.runs.retention import keyframe_path
from vitrine.step import State
from vitrine.text.tokenizer import load_tokenizer
from vitrine.training.checkpoint import (
    KeyframeWriter,
    load_keyframe,
    reinitialise,
    remove_partial,
    save_keyframe,
    take_snapshot,
)
from vitrine.training.stopping import StoppedError
from vitrine.training.timing import SAMPLE_TOKENS

SHORT_TOKENS = 24  # of a sample at the start, where writing changes from step to step
SHORT = 8  # such samples; together they cost as much as three long ones


def sample_lengths(steps: int, count: int) -> dict[int, int]:
    """At which steps the model writes a sample, and how many tokens. Together they are not more than `count` long samples.

    Short ones come first, at growing distances, as steps 0, 1, 2, 5, 12, 28, 65, 150 of 600; then long ones, evenly up to the end.
    Fewer than five are all long.
    """
    if count < 5:
        return dict.fromkeys(spaced(steps + 1, count), SAMPLE_TOKENS)
    long = [round(steps * i / (count - 3)) for i in range(1, count - 2)]
    most = max(1.0, long[0] / 2)
    short = [0, *(round(most ** (i / (SHORT - 2))) for i in range(SHORT - 1))]
    return dict.fromkeys(short, SHORT_TOKENS) | dict.fromkeys(long, SAMPLE_TOKENS)


class Writer:
    """Writes nothing, and observes only the loss: of several processes, only the first has a `RunWriter`."""

    def initial_parameters(self, state: State) -> Tensor | None:
        """The parameters of step 0 as a flat buffer, before others are restored; None: not needed, or lost."""
        return None

    def observer(self, state: State, initial: Tensor | None) -> StepLoss:
        """The observer of the phases of each step from here on."""
        return StepLoss()

    def resumed(self, step: int, observer: StepLoss) -> None:
        """Training resumes at this step."""

    def check_there(self) -> None:
        """Raises OSError or RunError if the run folder is no longer the one in which this training began."""

    def commit(self) -> None:
        """Commit the history, before work that may take longer than the longest wait for a commit."""

    def stepped(self, record: StepRecord, observer: StepLoss) -> None:
        """A step was made."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """A loss was measured."""

    def best(self, step: int) -> None:
        """The parameters of this step are the best so far."""

    def sample(self, decoder: Decoder, step: int, between: Callable[[str], None], last: bool = False) -> None:
        """Generate a sample if one is due, with the parameters that this step starts from."""

    def keep_due(self, state: State) -> None:
        """Save a keyframe where one is due."""

    def keep_last(self, state: State) -> None:
        """Save a keyframe of the end of the training."""

    def snapshot(self, state: State) -> None:
        """Save a keyframe that a user requested."""

    def event(self, step: int, kind: str, text: str = "") -> None:
        """Record an event of the run."""

    def secure(self) -> None:
        """Wait until everything is safe on disk."""

    def ended(self, result: dict[str, Any]) -> None:
        """The training has ended; nothing is written after this."""


class RunWriter(Writer):
    """Writes into a run folder, whose lock this process holds."""

    def __init__(self, path: Path, config: Config, reporter: Reporter) -> None:
        self.path, self.config, self.reporter = path, config, reporter
        self.folder = os.open(path, os.O_RDONLY)  # to notice if another folder takes its place
        weakref.finalize(self, os.close, self.folder)
        self.history = History(path / HISTORY, config.recording.enabled)
        remove_partial(path / KEYFRAMES)
        self.keyframes = KeyframeWriter(path / KEYFRAMES, config.recording)
        self.sample_lengths = sample_lengths(config.training.steps, config.recording.text_samples)
        self.started_at = self.kept_at = 0
        self.sampled_at = -1

    def initial_parameters(self, state: State) -> Tensor | None:
        """If their keyframe is damaged, it is made again from the seed, provided the digest is the same."""
        if not self.history.enabled:
            return None
        folder = self.path / KEYFRAMES
        try:
            initial = load_keyframe(keyframe_path(folder, 0), optimizer=False).parameters
        except RunError as error:
            try:
                initial = reinitialise(folder, self.config, self.history.store.fact("birth"))
            except RunError as reason:
                self.reporter.note(f"{error} {reason} The film, which shows what was learned since, stops here.")
                return None
            save_keyframe(folder, replace(take_snapshot(state), parameters=initial))
            self.reporter.note(f"{error} It was made again from the seed, with the same digest.")
        return state.parameters.entries.gather(initial, torch.zeros_like(state.parameters.values))

    def observer(self, state: State, initial: Tensor | None) -> StepLoss:
        """The recorder, where steps are recorded."""
        self.started_at = state.step
        if not self.history.enabled:
            return StepLoss()
        return Recorder(self.path, self.config, state.parameters, initial, self.history, state.step)

    def resumed(self, step: int, observer: StepLoss) -> None:
        """Restore the last loss of the observer, and keep the requested keyframes."""
        self.history.resumed(step)
        before = self.history.store.step_record(step - 1)
        observer.last = before.loss if before else None
        self.keyframes.asked.update(self.history.snapshots())

    def check_there(self) -> None:
        """So nothing is written into a run that was deleted, or into another run in its place."""
        (self.path / CONFIG).stat()
        if not os.path.samestat(self.path.stat(), os.fstat(self.folder)):
            raise RunError(
                f"{self.path} was deleted while it trained, and another run is in its place: this training ends."
            )

    def commit(self) -> None:
        """Write to the history."""
        self.history.store.commit()

    def stepped(self, record: StepRecord, observer: StepLoss) -> None:
        """Record it in the history, with the statistics if they were due."""
        start = time.perf_counter()
        self.history.record(record, observer.take_statistics(), self.reporter.note)
        observer.recorded(record.step, record.duration_s, time.perf_counter() - start)

    def evaluated(self, record: EvaluationRecord) -> None:
        """Record it in the history, and commit."""
        self.history.store.write(record)
        self.commit()

    def best(self, step: int) -> None:
        """Keep its keyframe until there is a better one."""
        self.keyframes.best(step)

    def sample(self, decoder: Decoder, step: int, between: Callable[[str], None], last: bool = False) -> None:
        """Record it in the history. `between` is called between two tokens; if it raises StoppedError, nothing is written."""
        due = self.history.enabled and self.sample_lengths and (last or step in self.sample_lengths)
        if not due or step == self.sampled_at:
            return
        self.sampled_at = step
        self.commit()
        sampling, seed = self.config.sampling, self.config.training.seed
        tokenizer = load_tokenizer(self.path / TOKENIZER)
        tokens = SAMPLE_TOKENS if last else self.sample_lengths[step]
        try:
            written = generate(decoder, tokenizer, "", tokens, sampling, seed, between)
        except StoppedError:
            return  # only this process writes: the next check makes all of them stop
        record = SampleRecord(step, "", written.text, sampling.temperature, seed)
        self.history.store.write(record)
        self.commit()
        self.reporter.sampled(record)

    def keep_due(self, state: State) -> None:
        """Every `recording.keyframe_every` steps, and at the best step, which must be kept."""
        best = self.keyframes.best_step == state.step
        if state.step != self.started_at and (best or state.step % self.config.recording.keyframe_every == 0):
            self._keep(state, must=best)

    def keep_last(self, state: State) -> None:
        """Unless it exists already."""
        if state.step not in (self.started_at, self.kept_at):
            self._keep(state, must=True)

    def snapshot(self, state: State) -> None:
        """Returns when it is safe on disk; it is never removed."""
        self.keep_last(state)
        self.keyframes.flush()
        self.keyframes.asked.add(state.step)
        self.event(state.step, "snapshot")

    def event(self, step: int, kind: str, text: str = "") -> None:
        """Write to the history."""
        self.history.store.event(step, kind, text)

    def secure(self) -> None:
        """Flush the history, and the keyframe that is being written."""
        self.commit()
        self.keyframes.flush()

    def ended(self, result: dict[str, Any]) -> None:
        """Record the result, unless the training was interrupted and may be resumed."""
        if result["stopped"] != "interrupted":
            facts = {name: value if value == value else None for name, value in result.items()}  # JSON has no NaN
            self.history.store.set_fact("result", json.dumps(facts))
        self.event(result["steps"], result["stopped"], f"digest {result['digest']}")
        self.history.store.close()

    def _keep(self, state: State, must: bool) -> None:
        """Save a keyframe of this step; the history up to it is flushed first."""
        self.check_there()
        self.commit()
        if self.keyframes.save(state, must):
            self.kept_at = state.step
