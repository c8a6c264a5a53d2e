"""What a training writes into its run folder: history, keyframes, text samples."""

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


class Writer:
    """Writes nothing, and looks at nothing but the loss: of several processes, only the first has a `RunWriter`."""

    def initial_parameters(self, state: State) -> Tensor | None:
        """The parameters of step 0 as a flat buffer, before any other are restored; None: not needed, or lost."""
        return None

    def observer(self, state: State, initial: Tensor | None) -> StepLoss:
        """What looks between the phases of each step from here on."""
        return StepLoss()

    def resumed(self, step: int, observer: StepLoss) -> None:
        """Training goes on from this step."""

    def check_there(self) -> None:
        """Raises OSError or RunError where the run folder is no longer the one that this training began in."""

    def commit(self) -> None:
        """Before something that may take longer than a commit may wait."""

    def stepped(self, record: StepRecord, observer: StepLoss) -> None:
        """A step was made."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """A loss was measured."""

    def best(self, step: int) -> None:
        """The parameters of this step are the best so far."""

    def sample(self, decoder: Decoder, step: int, between: Callable[[str], None], last: bool = False) -> None:
        """Let the model write a little where that is due, from the parameters that this step starts from."""

    def keep_due(self, state: State) -> None:
        """Save a keyframe where one is due."""

    def keep_last(self, state: State) -> None:
        """Save a keyframe of where the training ends."""

    def snapshot(self, state: State) -> None:
        """Someone asks for a keyframe of this step."""

    def event(self, step: int, kind: str, text: str = "") -> None:
        """Something happened to the run."""

    def secure(self) -> None:
        """Wait until all of it is safe on disk."""

    def ended(self, result: dict[str, Any]) -> None:
        """The training has ended; nothing comes after this."""


class RunWriter(Writer):
    """Writes into a run folder, whose lock this process holds."""

    def __init__(self, path: Path, config: Config, reporter: Reporter) -> None:
        self.path, self.config, self.reporter = path, config, reporter
        self.folder = os.open(path, os.O_RDONLY)  # another folder in its place is another run
        weakref.finalize(self, os.close, self.folder)
        self.history = History(path / HISTORY, config.recording.enabled)
        remove_partial(path / KEYFRAMES)
        self.keyframes = KeyframeWriter(path / KEYFRAMES, config.recording)
        self.sample_steps = spaced(config.training.steps + 1, config.recording.text_samples)
        self.entered_at = self.kept_at = 0
        self.sampled_at = -1

    def initial_parameters(self, state: State) -> Tensor | None:
        """Where their keyframe is damaged, it is made again from the seed, if it has the digest that it had."""
        if not self.history.enabled:
            return None
        folder = self.path / KEYFRAMES
        try:
            initial = load_keyframe(keyframe_path(folder, 0), optimizer=False).parameters
        except RunError as error:
            try:
                initial = reinitialise(folder, self.config, self.history.store.fact("birth"))
            except RunError as reason:
                self.reporter.note(f"{error} {reason} The film, which shows what was learned since, goes no further.")
                return None
            save_keyframe(folder, replace(take_snapshot(state), parameters=initial))
            self.reporter.note(f"{error} It was made again from the seed, and has the digest that it had.")
        flat = torch.zeros_like(state.parameters.values)
        for name, view in state.parameters.named(flat).items():
            view.copy_(initial[name])
        return flat

    def observer(self, state: State, initial: Tensor | None) -> StepLoss:
        """The recorder, where steps are recorded."""
        self.entered_at = state.step
        if not self.history.enabled:
            return StepLoss()
        return Recorder(self.path, self.config, state.parameters, initial, self.history, state.step)

    def resumed(self, step: int, observer: StepLoss) -> None:
        """The observer goes on with the last loss, and what someone asked for stays kept."""
        self.history.resumed(step)
        before = self.history.store.step_record(step - 1)
        observer.last = before.loss if before else None
        self.keyframes.asked.update(self.history.snapshots())

    def check_there(self) -> None:
        """Nothing is written into a run that someone deletes, or into another that took its place."""
        (self.path / CONFIG).stat()
        if not os.path.samestat(self.path.stat(), os.fstat(self.folder)):
            raise RunError(f"{self.path} was deleted while it trained, and is another run now: this one ends.")

    def commit(self) -> None:
        """To the history."""
        self.history.store.commit()

    def stepped(self, record: StepRecord, observer: StepLoss) -> None:
        """To the history, with the statistics, if they were due."""
        start = time.perf_counter()
        self.history.record(record, observer.take_statistics(), self.reporter.note)
        observer.recorded(record.step, record.duration_s, time.perf_counter() - start)

    def evaluated(self, record: EvaluationRecord) -> None:
        """To the history, safe at once."""
        self.history.store.write(record)
        self.commit()

    def best(self, step: int) -> None:
        """Its keyframe stays until there is a better one."""
        self.keyframes.best(step)

    def sample(self, decoder: Decoder, step: int, between: Callable[[str], None], last: bool = False) -> None:
        """To the history. `between` is called between two tokens; if it raises StoppedError, nothing is written."""
        due = self.history.enabled and self.sample_steps and (last or step in self.sample_steps)
        if not due or step == self.sampled_at:
            return
        self.sampled_at = step
        self.commit()
        sampling, seed = self.config.sampling, self.config.training.seed
        tokenizer = load_tokenizer(self.path / TOKENIZER)
        try:
            written = generate(decoder, tokenizer, "", SAMPLE_TOKENS, sampling, seed, between)
        except StoppedError:
            return  # only this process writes: what comes next lets all of them leave
        record = SampleRecord(step, "", written.text, sampling.temperature, seed)
        self.history.store.write(record)
        self.commit()
        self.reporter.sampled(record)

    def keep_due(self, state: State) -> None:
        """At every so many steps, and at the best one, which must be kept."""
        best = self.keyframes.best_step == state.step
        if state.step != self.entered_at and (best or state.step % self.config.recording.keyframe_every == 0):
            self._keep(state, must=best)

    def keep_last(self, state: State) -> None:
        """If it is not there already."""
        if state.step not in (self.entered_at, self.kept_at):
            self._keep(state, must=True)

    def snapshot(self, state: State) -> None:
        """It is safe on disk afterwards, and stays."""
        self.keep_last(state)
        self.keyframes.flush()
        self.keyframes.asked.add(state.step)
        self.event(state.step, "snapshot")

    def event(self, step: int, kind: str, text: str = "") -> None:
        """To the history."""
        self.history.store.event(step, kind, text)

    def secure(self) -> None:
        """The history, and the keyframe that is being written."""
        self.commit()
        self.keyframes.flush()

    def ended(self, result: dict[str, Any]) -> None:
        """The result, unless the training was interrupted and may be resumed."""
        if result["stopped"] != "interrupted":
            facts = {name: value if value == value else None for name, value in result.items()}  # JSON has no NaN
            self.history.store.set_fact("result", json.dumps(facts))
        self.event(result["steps"], result["stopped"], f"digest {result['digest']}")
        self.history.store.close()

    def _keep(self, state: State, must: bool) -> None:
        """Save a keyframe of this step; the history up to it is made safe first."""
        self.check_there()
        self.commit()
        if self.keyframes.save(state, must):
            self.kept_at = state.step
