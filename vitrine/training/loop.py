"""The training loop: steps, evaluations, keyframes, records, and when to stop."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from vitrine.config import Config
from vitrine.errors import DivergedError
from vitrine.model.flat import digest
from vitrine.recording.recorder import StepLoss
from vitrine.recording.reporter import Reporter
from vitrine.runs.control import Mailbox
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.records import EvaluationRecord, StepRecord
from vitrine.runs.retention import keyframe_steps
from vitrine.step import step
from vitrine.text.token_files import Prepared
from vitrine.training.checkpoint import load_newest, restore
from vitrine.training.control import Control
from vitrine.training.device import memory_in_use
from vitrine.training.distributed import Processes
from vitrine.training.evaluation import Evaluation, evaluate
from vitrine.training.pace import Pace
from vitrine.training.run_writer import RunWriter, Writer
from vitrine.training.state import build_state, make_batches, micro_batches
from vitrine.training.stopping import StoppedError, StoppingRule


@dataclass(frozen=True)
class Result:
    """How a training ended. Losses in nats per token; None: not measured.

    train_loss: of the batch of the last step, before its update: the mean over train_loss_tokens tokens.
    val_loss: the mean over val_tokens tokens, of val_split_tokens in the validation split; val_whole: whether all were measured.
    stopped: "steps", "time", "target", "interrupted" or "early".
    digest: of the parameters; equal digests, equal bits.
    duration_s: of the whole command; training_s: of the steps only.
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
    train_loss_tokens: int = 0
    val_tokens: int = 0
    val_split_tokens: int = 0
    val_whole: bool = True


class Trainer:
    """Trains one run, from a step to its end.

    Args:
        path: the run folder; it exists, and this process (of rank 0) holds its lock.
        started_s: when the command began (time.monotonic).
        for_s: seconds that the training should take; the clock ends it when it would take 8% more. 0: no limit.
        ready_s: when they begin to count (time.monotonic); 0: now.
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
        self.processes, self.reporter, self.started_s = processes, reporter, started_s
        self.writer = RunWriter(path, config, reporter) if processes.first else Writer()
        mailbox = Mailbox(path) if processes.first else None
        self.pace, self.rule = Pace(config, len(tokens.validation)), StoppingRule(config.training)
        clock = for_s, ready_s or time.monotonic()
        self.control = Control(processes, reporter, self.writer, mailbox, self.pace, *clock)
        self.decoder, self.state = build_state(config, processes)
        self.batches = make_batches(config, tokens)
        self.observer = StepLoss()
        self.final: tuple[EvaluationRecord, Evaluation] | None = None  # the newest measurement as large as the last one

    def enter(self) -> None:
        """Start a new run from its initial parameters."""
        restore(self.state, load_newest(self.path / KEYFRAMES, self.reporter.note))
        self.observer = self.writer.observer(self.state, self.state.parameters.values)

    def resume(self) -> None:
        """Start from the newest sound keyframe, and restore what the history has of earlier steps."""
        initial = self.writer.initial_parameters(self.state)
        restore(self.state, load_newest(self.path / KEYFRAMES, self.reporter.note))
        self.observer = self.writer.observer(self.state, initial)
        self.writer.resumed(self.state.step, self.observer)
        for record in RunReader(self.path).evaluations():
            if record.step < self.state.step:
                self._judge(record)
        self.reporter.note(f"Resuming at step {self.state.step}.")

    def run(self) -> Result:
        """Train to the end; whatever happens, the run is left safe on disk."""
        with self.control.signals():
            try:
                stopped = self._train()
            except StoppedError:
                stopped = "interrupted"
            except DivergedError as error:
                raise self._diverged(error) from None
            finally:
                self.writer.secure()
            return self._finish(stopped)

    def _train(self) -> str:
        """Make steps until there is a reason to stop; returns it."""
        while not (stopped := self._between_steps()):
            number, start = self.state.step, time.perf_counter()
            step(self.state, micro_batches(self.batches, number, self.decoder, self.processes), self.observer)
            self._record(number, time.perf_counter() - start)
        return stopped

    def _between_steps(self) -> str:
        """Evaluate, write a sample and keep a keyframe where they are due; returns the reason to stop, or ""."""
        self.writer.check_there()
        number, training = self.state.step, self.config.training
        at_end = number == training.steps
        self.writer.sample(self.decoder, number, self.control.between_words)
        stopped = self._evaluate() if number and (number % training.evaluate_every == 0 or at_end) else ""
        self.writer.keep_due(self.state)
        reason = self.control.reason(self.state)
        return reason if reason == "interrupted" else stopped or reason or ("steps" if at_end else "")

    def _evaluate(self) -> str:
        """Measure a part of the validation split; as much as at the end if the target seems to be met."""
        if len(self.tokens.validation) < 2:
            return ""
        record = self._judge(self._measure(self.config.training.evaluation_tokens))
        if self.rule.seems_met(record):
            record = self._judge(self._measure_final())
        return self.rule.reason(record)

    def _judge(self, record: EvaluationRecord) -> EvaluationRecord:
        """Update what later decisions depend on; a resumed run restores it from its history."""
        if self.rule.measured(record):
            self.writer.best(record.step)
        return record

    def _measure_final(self) -> EvaluationRecord:
        return self._measure(self.config.training.final_evaluation_tokens, final=True)

    def _measure(self, at_most: int, final: bool = False) -> EvaluationRecord:
        self.writer.commit()  # an evaluation may take longer than the longest wait for a commit
        start, paused_s, validation = time.perf_counter(), self.control.paused_s, self.tokens.validation
        share = (self.processes.rank, self.processes.size)
        result = evaluate(self.decoder, validation, self.tokens.validation_bytes, at_most, share, self._between_batches)
        whole = result.tokens == len(validation) - 1
        duration = time.perf_counter() - start - (self.control.paused_s - paused_s)
        record = EvaluationRecord(self.state.step, result.loss, result.tokens, whole, duration, final and not whole)
        if final or whole:
            self.final = record, result
        self.writer.evaluated(record)
        self.pace.evaluated(duration, result.tokens)
        self.reporter.evaluated(record)
        return record

    def _between_batches(self, done: int, total: int) -> None:
        """Show the progress of an evaluation. Raises StoppedError if the training is to end."""
        self.reporter.evaluating(done, total)
        self.control.leave_if_asked(self.state)

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
        self.writer.stepped(record, self.observer)
        self.reporter.stepped(record, self.pace.tokens_per_s, self.pace.left_s(number + 1))

    def _finish(self, stopped: str) -> Result:
        """Make the last keyframe, the last evaluation, and the result."""
        self.writer.keep_last(self.state)
        self.observer.end(self.state)
        self.writer.secure()
        measured = None
        if stopped != "interrupted":
            try:
                measured = self._look_at_end()
            except StoppedError:
                stopped = "interrupted"
        record, evaluation = measured or (None, None)
        result = Result(
            run=str(self.path),
            steps=self.state.step,
            parameters=self.state.parameters.entries.count,
            train_loss=self.observer.last,
            val_loss=evaluation.loss if evaluation else None,
            bits_per_byte=evaluation.bits_per_byte if evaluation else None,
            duration_s=round(time.monotonic() - self.started_s, 3),
            training_s=round(self.pace.training_s, 3),
            tokens_per_s=round(self.pace.tokens_per_s, 1),
            digest=digest(self.state.parameters.entries.named(self.state.parameters.values)),
            stopped=stopped,
            signal=self.control.signal if stopped == "interrupted" else 0,
            train_loss_tokens=self.config.tokens_per_step if self.observer.last is not None else 0,
            val_tokens=evaluation.tokens if evaluation else 0,
            val_split_tokens=max(0, len(self.tokens.validation) - 1),
            val_whole=record is not None and record.whole,
        )
        self.writer.ended(dataclasses.asdict(result))
        return result

    def _look_at_end(self) -> tuple[EvaluationRecord, Evaluation] | None:
        """Write a last sample, and measure the loss over the validation split, or a large part of it."""
        self.writer.sample(self.decoder, self.state.step, self.control.between_words, last=True)
        self.control.leave_if_asked(self.state)
        if len(self.tokens.validation) < 2:
            return None
        if not self.final or self.final[0].step != self.state.step:
            self._measure_final()
        return self.final

    def _diverged(self, error: DivergedError) -> DivergedError:
        last = keyframe_steps(self.path / KEYFRAMES)[-1]
        text = (
            f"{error} The loss of the step was {self.observer.take()}. The last keyframe is of step {last}: continue from it "
            f"with: vitrine train --from {self.path}@{last}"
        )
        self.writer.event(self.state.step, "diverged", text)
        return DivergedError(text)
