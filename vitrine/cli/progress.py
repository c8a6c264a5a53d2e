"""The progress of commands, shown on standard error."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from vitrine.config import Config
from vitrine.model.inventory import inventory
from vitrine.recording.reporter import Reporter
from vitrine.runs.disk import recording
from vitrine.runs.records import EvaluationRecord, StepRecord

OnStart = Callable[[Path, Callable[[str], None]], None]
LINE_EVERY_S = 10.0  # between two lines, where there is no terminal
LONG_S = 0.5  # reading a corpus, or an evaluation, that takes longer has its own bar


class TerminalReporter(Reporter):
    """A progress bar on a terminal; elsewhere a line every ten seconds. As a context manager, it removes its bar.

    Args:
        on_start: called with the run's folder, once it exists, and a function that prints a line.
    """

    def __init__(self, stream: Console | None = None, on_start: OnStart | None = None) -> None:
        self.on_start = on_start
        self.console = stream or Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.steps, self.val_loss, self.printed_s = 0, "", time.monotonic()
        self.preparing_since_s = self.evaluating_since_s = 0.0
        self.slower, self.warned = "", False

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def preparing(self, what: str, done: int, total: int) -> None:
        """A bar for a corpus that takes a while; without a terminal, lines at intervals."""
        now = time.monotonic()
        self.preparing_since_s = self.preparing_since_s or now
        if now - self.preparing_since_s >= LONG_S:
            self._show(f"{what}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB", done, total)

    def started(self, config: Config, path: Path) -> None:
        """The run in a few lines: its hyperparameters, and what it will leave on disk."""
        self.close()
        parameters = sum(tensor.parameters for tensor in inventory(config.model))
        model, training, data = config.model, config.training, config.data
        self.steps = training.steps
        lines = [
            f"run         {path}",
            f"model       {model.architecture}, {model.n_layers} layers, width {model.d_model}, {model.n_heads} heads, "
            f"context {model.context}: {parameters:,} parameters",
            f"data        {data.tokenizer} tokenizer, vocabulary of {model.vocab_size:,}",
            f"training    {training.steps:,} steps of {config.tokens_per_step:,} tokens, {config.optimizer.name} at "
            f"{config.optimizer.learning_rate:g}, {training.precision}, {config.machine.device} with "
            f"{config.machine.threads} threads",
            f"recording   {_recording_text(config)}",
            f"every hyperparameter: {path}/config.toml",
        ]
        for line in lines:
            self.note(line)
        if self.on_start:
            self.on_start(path, self.note)

    def stepped(self, record: StepRecord, tokens_per_s: float, left_s: float) -> None:
        """Step, loss, validation loss, speed, time left."""
        text = (
            f"step {record.step + 1:,} of {self.steps:,}   loss {record.loss:.3f}{self.val_loss}   "
            f"{tokens_per_s:,.0f} tokens/s{self.slower}   {_duration(left_s)} left"
        )
        self._show(text, record.step + 1, self.steps)

    def slowed(self, factor: float) -> None:
        """Shown in the progress line; the first time with advice."""
        self.slower = f"   {factor:.1f} times slower than at first" if factor > 1 else ""
        if self.slower and not self.warned:
            self.warned = True
            self.note(
                f"A step takes {factor:.1f} times as long as at first: another program may be using the processor. "
                "With fewer threads, training is then often faster (--set machine.threads=1)."
            )

    def evaluating(self, done: int, total: int) -> None:
        """A separate bar for an evaluation that takes a while."""
        now = time.monotonic()
        if done == 0:
            self.evaluating_since_s = now
        if now - self.evaluating_since_s > LONG_S:
            self._show(f"measuring the validation loss: {done / total:.0%}", done, total)

    def evaluated(self, record: EvaluationRecord) -> None:
        """Shown in the bar from now on."""
        self.val_loss = f"   validation {record.loss:.3f}"
        if record.whole or record.final:
            over = "the whole split" if record.whole else f"{record.tokens:,} tokens"
            self.note(f"step {record.step:,}: validation loss {record.loss:.4f} over {over}")

    def close(self) -> None:
        """Remove the bar."""
        if self.progress:
            self.progress.stop()
            self.progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, text: str, done: int, total: int) -> None:
        """The bar on a terminal; elsewhere a line at intervals."""
        if self.live:
            self._bar(text, done, total)
        elif time.monotonic() - self.printed_s > LINE_EVERY_S:
            self.printed_s = time.monotonic()
            self.note(text)

    def _bar(self, text: str, done: int, total: int) -> None:
        if not self.progress:
            self.progress = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=self.console,
                auto_refresh=False,
            )
            self.task = self.progress.add_task(text, total=total)
            self.progress.start()
        self.progress.update(self.task, description=text, completed=done, total=total)
        if time.monotonic() - self.printed_s > 0.1:
            self.printed_s = time.monotonic()
            self.progress.refresh()


def _recording_text(config: Config) -> str:
    """What the run will leave on disk at most, by the formulas of `runs.disk`."""
    kept = recording(config)
    if not config.recording.enabled:
        return f"off; a keyframe every {config.recording.keyframe_every} steps"
    history = kept.statistics_bytes + kept.histogram_bytes + kept.film_bytes
    return (
        f"up to {history / 1e6:,.0f} MB of history and film, {kept.keyframes * kept.keyframe_bytes / 1e6:,.0f} MB of "
        f"keyframes; any step is replayed within {kept.reentry_steps} steps"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
