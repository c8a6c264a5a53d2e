"""The loop around the step: evaluate, keep keyframes, record, and know when to stop."""

import dataclasses
import json
import math
import os
import signal
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from vitrine.config import Config
from vitrine.errors import DivergedError, RunError
from vitrine.generation.generate import generate
from vitrine.model.flat import digest
from vitrine.recording.history import History
from vitrine.recording.recorder import Recorder, StepLoss
from vitrine.recording.reporter import Reporter
from vitrine.runs.control import LOOK_EVERY_S, Mailbox
from vitrine.runs.layout import spaced
from vitrine.runs.reader import CONFIG, HISTORY, KEYFRAMES, TOKENIZER
from vitrine.runs.records import EvaluationRecord, SampleRecord, StepRecord
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.step import step
from vitrine.text.token_files import Prepared
from vitrine.text.tokenizer import load_tokenizer
from vitrine.training.checkpoint import (
    KeyframeWriter,
    draw_again,
    load_keyframe,
    load_newest,
    remove_partial,
    restore,
    save_keyframe,
    take_snapshot,
)
from vitrine.training.device import memory_in_use
from vitrine.training.distributed import Processes
from vitrine.training.evaluation import Evaluation, evaluate
from vitrine.training.state import build_state, make_batches, micro_batches
from vitrine.training.timing import SAMPLE_TOKENS, Pace

GO_ON, HOLD, TIME, LEAVE = range(4)  # what a process wants between two steps; the largest of all counts


@dataclass(frozen=True)
class Result:
    """How a training ended. Losses in nats a token; None: not measured.

    val_tokens: that were measured, of val_split_tokens in the validation split; val_whole: whether that is all of them.
    stopped: "steps", "time", "target", "interrupted" or "early".
    digest: of the parameters; equal digests, equal bits.
    duration_s: of the whole command; training_s: of the steps alone.
    signal: the number of the signal that interrupted it; 0: none.
    """

    run: str
    steps: int
    parameters: int
    train_loss: float | None
    val_loss: float | None
    bits_per_byte: float | None
    duration_s: float
    training_s: float
    tokens_per_s: float
    digest: str
    stopped: str
    signal: int = 0
    val_tokens: int = 0
    val_split_tokens: int = 0
    val_whole: bool = True


class StoppedError(Exception):
    """A signal or a request asks to leave in the middle of something that can be left and made again."""


class Trainer:
    """One run, from a step to its end.

    Args:
        path: the run folder; it exists, and this process (of rank 0) holds its lock.
        started_s: when the command began (time.monotonic).
        for_s: seconds that the training was asked to take; the clock ends it when it would take 8% more. 0: never.
        ready_s: from when they count (time.monotonic).
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        tokens: Prepared,
        processes: Processes,
        reporter: Reporter,
        started_s: float,
        for_s: float = 0.0,
        ready_s: float = 0.0,
    ) -> None:
        self.path, self.config, self.tokens = path, config, tokens
        self.folder = os.open(path, os.O_RDONLY)  # another folder in its place is another run
        weakref.finalize(self, os.close, self.folder)
        self.processes, self.reporter = processes, reporter
        self.started_s, self.for_s = started_s, for_s
        self.began_s = ready_s or time.monotonic()
        self.decoder, self.state = build_state(config, processes)
        self.batches = make_batches(config, tokens)
        self.observer: StepLoss | Recorder = StepLoss()
        self.history = History(path / HISTORY, config.recording.enabled) if processes.first else None
        self.keyframes = KeyframeWriter(path / KEYFRAMES, config.recording) if processes.first else None
        self.pace = Pace(config)
        self.sample_steps = spaced(config.training.steps + 1, config.recording.text_samples)
        self.mailbox = Mailbox(path) if processes.first else None
        self.signal, self.stopping, self.paused = 0, False, False
        self.best_loss, self.evaluations_without_best = math.inf, 0
        self.last_sample_loss = math.inf
        self.entered_at = self.kept_at = 0
        self.sampled_at = -1
        # Before it is known: a little optimism, so that a target is not missed for long.
        self.final_minus_sample = -0.01 * config.training.target_loss
        self.final: tuple[EvaluationRecord, Evaluation] | None = None  # the newest one like that at the end

    def enter(self) -> None:
        """A new run: start from its birth."""
        self._restore()
        self._observe(self.state.parameters.values)

    def resume(self) -> None:
        """Start from the newest keyframe that is sound, and remember what the history knows of the steps before."""
        birth = self._birth() if self.history and self.history.enabled else None
        self._restore()
        self._observe(birth)
        if self.history:
            self.history.resumed(self.state.step)
            before = self.history.store.step_record(self.state.step - 1)
            self.observer.last = before.loss if before else None
            for record in self.history.evaluations_before(self.state.step):
                self._remember_evaluation(record)
            if self.keyframes:
                self.keyframes.asked.update(self.history.snapshots())
        self.reporter.note(f"Resuming at step {self.state.step}.")

    def _restore(self) -> None:
        if self.processes.first:
            remove_partial(self.path / KEYFRAMES)
        restore(self.state, load_newest(self.path / KEYFRAMES, self.reporter.note))
        self.entered_at = self.state.step

    def _observe(self, birth: Tensor | None) -> None:
        if self.history and self.history.enabled:
            self.observer = Recorder(
                self.path, self.config, self.state.parameters, birth, self.history, self.entered_at
            )

    def run(self) -> Result:
        """Train to the end, and leave the run safe whatever happens."""
        with self._signals():
            try:
                stopped = self._loop()
            except DivergedError as error:
                raise self._diverged(error) from None
            finally:
                if self.history:
                    self.history.store.commit()
                if self.keyframes:
                    self.keyframes.flush()
            return self._finish(stopped)

    def _loop(self) -> str:
        while True:
            try:
                stopped = self._between_steps()
            except StoppedError:
                return "interrupted"
            if stopped or self.state.step == self.config.training.steps:
                return stopped or "steps"
            number, start = self.state.step, time.perf_counter()
            step(self.state, micro_batches(self.batches, number, self.decoder, self.processes), self.observer)
            self._record(number, time.perf_counter() - start)

    def _between_steps(self) -> str:
        """Evaluate and keep a keyframe where they are due; the reason to stop, or nothing."""
        self._check_there()
        number, config = self.state.step, self.config
        at_end = number == config.training.steps
        if number in self.sample_steps and number != self.sampled_at:
            self._write_sample()
        stopped = self._evaluate() if number and (number % config.training.evaluate_every == 0 or at_end) else ""
        best_here = self.keyframes and self.keyframes.best_step == number
        if number != self.entered_at and (number % config.recording.keyframe_every == 0 or best_here):
            self._keep(must=bool(best_here))
        reason = self._go_on()
        return "interrupted" if reason == LEAVE else stopped or ("time" if reason == TIME else "")

    def _go_on(self) -> float:
        """Whether to go on, leave, or end for want of time: all processes alike. As long as a pause lasts, wait."""
        while True:
            self._heed()
            now = time.monotonic()
            end_s = now - self.began_s + self.pace.step_s + self.pace.last_s(len(self.tokens.validation))
            too_late = self.for_s and end_s > 1.08 * self.for_s
            own = LEAVE if self.signal or self.stopping else TIME if too_late else HOLD if self.paused else GO_ON
            reason = self.processes.agree(own)
            if reason != HOLD:
                return reason
            time.sleep(LOOK_EVERY_S)
            self.began_s += time.monotonic() - now  # a pause does not count

    def _heed(self) -> None:
        """Do what the mailbox asks for."""
        if not (self.mailbox and self.history and self.keyframes):
            return
        for wish in self.mailbox.wishes():
            if wish.action == "snapshot" and self.state.step not in (self.entered_at, self.kept_at):
                self._keep(must=True)
                self.keyframes.flush()
            if wish.action == "snapshot":
                self.keyframes.asked.add(self.state.step)
                self.history.store.event(self.state.step, "snapshot")
            elif wish.action == "stop":
                self.stopping = True
            elif wish.action in ("pause", "resume") and self.paused != (wish.action == "pause"):
                self.paused = wish.action == "pause"
                self.history.store.event(self.state.step, "paused" if self.paused else "continued")
            self.mailbox.done(wish, self.state.step)

    def _evaluate(self) -> str:
        """Measure a part of the validation split, and as much as at the end when the target seems to be met."""
        if len(self.tokens.validation) < 2:
            return ""
        sample = self._measure(self.config.training.evaluation_tokens)
        self._remember_evaluation(sample)
        target, patience = self.config.training.target_loss, self.config.training.patience
        if target and not sample.whole and sample.loss + self.final_minus_sample <= target:
            sample = self._measure_final()
            self._remember_evaluation(sample)
        if target and (sample.whole or sample.final) and sample.loss <= target:
            return "target"
        return "early" if patience and self.evaluations_without_best >= patience else ""

    def _measure_final(self) -> EvaluationRecord:
        return self._measure(self.config.training.final_evaluation_tokens, final=True)

    def _measure(self, at_most: int, final: bool = False) -> EvaluationRecord:
        if self.history:
            self.history.store.commit()  # an evaluation may take longer than a commit may wait
        start, began_s, validation = time.perf_counter(), self.began_s, self.tokens.validation
        share = (self.processes.rank, self.processes.size)
        result = evaluate(self.decoder, validation, self.tokens.validation_bytes, at_most, share, self._between_batches)
        whole = result.tokens == len(validation) - 1
        duration = time.perf_counter() - start - (self.began_s - began_s)  # a pause does not count
        record = EvaluationRecord(self.state.step, result.loss, result.tokens, whole, duration, final and not whole)
        if final or whole:
            self.final = record, result
        if self.history:
            self.history.store.write(record)
            self.history.store.commit()
        self.pace.evaluated(duration, result.tokens)
        self.reporter.evaluated(record)
        return record

    def _between_batches(self, done: int, total: int) -> None:
        """In the middle of an evaluation: show how far it is. Raises StoppedError if the training is to be left."""
        self.reporter.evaluating(done, total)
        if self._go_on() == LEAVE:
            raise StoppedError

    def _remember_evaluation(self, record: EvaluationRecord) -> None:
        """What later decisions depend on; a resumed run remembers the same from its history."""
        if not record.compares(self.config.training.evaluation_tokens):
            if math.isfinite(record.loss - self.last_sample_loss):
                self.final_minus_sample = record.loss - self.last_sample_loss
            return
        self.last_sample_loss = record.loss
        if record.loss < self.best_loss:
            self.best_loss, self.evaluations_without_best = record.loss, 0
            if self.keyframes:
                self.keyframes.best(record.step)
        else:
            self.evaluations_without_best += 1

    def _record(self, number: int, duration_s: float) -> None:
        optimizer = self.state.optimizer
        record = StepRecord(
            step=number,
            loss=self.observer.take(self.processes.mean),
            gradient_norm=optimizer.gradient_norm,
            learning_rate=optimizer.learning_rate,
            tokens=(number + 1) * self.config.tokens_per_step,
            duration_s=duration_s,
            memory_bytes=memory_in_use(self.decoder.embedding.weight.device),
        )
        self.pace.stepped(duration_s)
        self.reporter.slowed(self.pace.slowdown)
        if self.history:
            start = time.perf_counter()
            self.history.record(record, self.observer.take_statistics(), self.reporter.note)
            self.observer.recorded(number, duration_s, time.perf_counter() - start)
        left = self.pace.left_s(number + 1, len(self.tokens.validation))
        self.reporter.stepped(record, self.pace.tokens_per_s, left)

    def _birth(self) -> Tensor | None:
        """The parameters of step 0 as a flat buffer, before any other are restored. None: they are lost.

        Where their keyframe is damaged, it is made again from the seed, if it has the digest that it had.
        """
        assert self.history
        folder, parameters = self.path / KEYFRAMES, self.state.parameters
        try:
            born = load_keyframe(keyframe_path(folder, 0), optimizer=False).parameters
        except RunError as error:
            try:
                born = draw_again(folder, self.config, self.history.store.fact("birth"))
            except RunError as reason:
                self.reporter.note(f"{error} {reason} The film, which shows what was learned since, goes no further.")
                return None
            save_keyframe(folder, replace(take_snapshot(self.state), parameters=born))
            self.reporter.note(f"{error} It was made again from the seed, and has the digest that it had.")
        flat = torch.zeros_like(parameters.values)
        for name, view in parameters.named(flat).items():
            view.copy_(born[name])
        return flat

    def _write_sample(self) -> None:
        """Let the model write a little, from the parameters that this step starts from."""
        if not (self.history and self.history.enabled and self.sample_steps):
            return
        self.sampled_at = self.state.step
        self.history.store.commit()
        sampling, seed = self.config.sampling, self.config.training.seed
        tokenizer = load_tokenizer(self.path / TOKENIZER)
        try:
            written = generate(self.decoder, tokenizer, "", SAMPLE_TOKENS, sampling, seed, self._between_words)
        except StoppedError:
            return  # only this process writes: what comes next lets all of them leave
        record = SampleRecord(self.state.step, "", written.text, sampling.temperature, seed)
        self.history.store.write(record)
        self.history.store.commit()
        self.reporter.sampled(record)

    def _between_words(self, text: str) -> None:
        if self.signal:
            raise StoppedError

    def _check_there(self) -> None:
        """Nothing is written into a run that someone deletes, or into another that took its place."""
        (self.path / CONFIG).stat()
        if not os.path.samestat(self.path.stat(), os.fstat(self.folder)):
            raise RunError(f"{self.path} was deleted while it trained, and is another run now: this one ends.")

    def _keep(self, must: bool = False) -> None:
        """Save a keyframe of this step; the history up to it is made safe first."""
        if self.history and self.keyframes:
            self._check_there()
            self.history.store.commit()
            if self.keyframes.save(self.state, must):
                self.kept_at = self.state.step

    def _finish(self, stopped: str) -> Result:
        """The last keyframe, the last evaluation, the result."""
        if self.state.step not in (self.entered_at, self.kept_at):
            self._keep(must=True)
        if isinstance(self.observer, Recorder):
            self.observer.end(self.state)
        if self.keyframes:
            self.keyframes.flush()
        measured = None
        if stopped != "interrupted":
            try:
                measured = self._look_at_end()
            except StoppedError:
                stopped = "interrupted"
        result = Result(
            run=str(self.path),
            steps=self.state.step,
            parameters=self.state.parameters.count,
            train_loss=self.observer.last,
            val_loss=measured[1].loss if measured else None,
            bits_per_byte=measured[1].bits_per_byte if measured else None,
            duration_s=round(time.monotonic() - self.started_s, 3),
            training_s=round(self.pace.training_s, 3),
            tokens_per_s=round(self.pace.tokens_per_s, 1),
            digest=digest(self.state.parameters.named(self.state.parameters.values)),
            stopped=stopped,
            signal=self.signal if stopped == "interrupted" else 0,
            val_tokens=measured[1].tokens if measured else 0,
            val_split_tokens=max(0, len(self.tokens.validation) - 1),
            val_whole=measured is not None and measured[0].whole,
        )
        if self.history:
            if stopped != "interrupted":
                facts = {k: v if v == v else None for k, v in dataclasses.asdict(result).items()}  # JSON has no NaN
                self.history.store.set_fact("result", json.dumps(facts))
            self.history.store.event(self.state.step, stopped, f"digest {result.digest}")
            self.history.store.close()
        return result

    def _look_at_end(self) -> tuple[EvaluationRecord, Evaluation] | None:
        """What the trained model writes, and its loss over the validation split, or much of it."""
        if self.sampled_at != self.state.step:
            self._write_sample()
        if self._go_on() == LEAVE:
            raise StoppedError
        if len(self.tokens.validation) < 2:
            return None
        if not self.final or self.final[0].step != self.state.step:
            self._measure_final()
        return self.final

    def _diverged(self, error: DivergedError) -> DivergedError:
        loss = self.observer.take()
        steps = keyframe_steps(self.path / KEYFRAMES)
        text = (
            f"{error} The loss of the step was {loss}. The last keyframe is of step {steps[-1]}: go on from it "
            f"with: vitrine train --from {self.path}@{steps[-1]}"
        )
        if self.history:
            self.history.store.event(self.state.step, "diverged", text)
        return DivergedError(text)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT, SIGTERM or SIGHUP ends the training after the step; a second ends the process at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal:
                os._exit(128 + number)
            self.signal = number
            self.reporter.note("Saving, then leaving. Once more to leave at once.")

        ending = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            ending.append(signal.SIGHUP)
        try:
            before = {number: signal.signal(number, handle) for number in ending}
        except ValueError:  # not the main thread: whoever runs it handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
