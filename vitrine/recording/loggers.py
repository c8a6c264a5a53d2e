"""The curves of a run, sent to TensorBoard, Weights & Biases or Trackio as well: `recording.mirror`.

A reporter that passes on what it is told. Each logger is a process (`recording/logger_process.py`), fed by a thread from a queue
that has an end: a logger that is slow misses points, one that fails is left out, and no training waits for one.
"""

import json
import netrc
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vitrine.config import Config
from vitrine.recording.reporter import Reporter
from vitrine.runs.records import EvaluationRecord, SampleRecord, StepRecord

POINTS = 10_000  # that may wait for a logger
ENDS_S = 30.0  # how long all loggers together may take to send the rest, when the training is over


@contextmanager
def with_loggers(reporter: Reporter, names: Sequence[str]) -> Iterator[Reporter]:
    """The reporter, with the loggers of these names; they end with it."""
    if not names:
        yield reporter
        return
    sending = Loggers(reporter)
    try:
        yield sending
    finally:
        sending.close()


class Loggers(Reporter):
    """Tells another reporter all that it is told, and sends the numbers to the loggers."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.sample_tokens = reporter, 0
        self.feeds: list[Feed] = []

    def note(self, text: str) -> None:
        """To the other alone."""
        self.reporter.note(text)

    def preparing(self, what: str, done: int, total: int) -> None:
        """To the other alone."""
        self.reporter.preparing(what, done, total)

    def started(self, config: Config, path: Path) -> None:
        """The run is there: open its loggers."""
        self.reporter.started(config, path)
        self.sample_tokens = config.training.evaluation_tokens
        values = {
            f"{section}.{key}": value for section, keys in config.portable().items() for key, value in keys.items()
        }
        for name in config.recording.mirror:
            environment = dict(os.environ)
            if name == "wandb" and not has_wandb_key():
                environment["WANDB_MODE"] = "offline"
                self.note(
                    f"wandb has no API key, so this run stays on this machine. To send it: wandb sync {path}/wandb/offline-run-*"
                )
            about = {"path": str(path.absolute()), "hyperparameters": values}
            self.feeds.append(
                Feed(name, [sys.executable, "-m", "vitrine.recording.logger_process", name], environment, about)
            )

    def stepped(self, record: StepRecord, tokens_per_s: float, left_s: float) -> None:
        """Four curves."""
        self.reporter.stepped(record, tokens_per_s, left_s)
        numbers = {
            "train/loss": record.loss,
            "train/gradient_norm": record.gradient_norm,
            "train/learning_rate": record.learning_rate,
            "train/tokens_per_s": tokens_per_s,
        }
        self._send({"step": record.step, "numbers": numbers})

    def slowed(self, factor: float) -> None:
        """To the other alone."""
        self.reporter.slowed(factor)

    def evaluating(self, done: int, total: int) -> None:
        """To the other alone."""
        self.reporter.evaluating(done, total)

    def evaluated(self, record: EvaluationRecord) -> None:
        """The validation loss; that of a larger part of the split than is usual is a curve of its own."""
        self.reporter.evaluated(record)
        name = "validation/loss" if record.compares(self.sample_tokens) else "validation/loss_of_all"
        self._send({"step": record.step, "numbers": {name: record.loss}})

    def sampled(self, record: SampleRecord) -> None:
        """What the model wrote."""
        self.reporter.sampled(record)
        self._send({"step": record.step, "text": record.text})

    def close(self) -> None:
        """Let them send the rest, for a while; and say which of them did not do all that they should."""
        until_s = time.monotonic() + ENDS_S
        for feed in self.feeds:
            feed.end()
        for feed in self.feeds:
            feed.wait(until_s)
            self._report(feed)

    def _send(self, point: dict[str, Any]) -> None:
        for feed in self.feeds:
            feed.send(point)
            self._report(feed)

    def _report(self, feed: "Feed") -> None:
        if message := feed.message():
            self.note(message)


class Feed:
    """A logger's process, and the queue and the thread that feed it. None of its methods waits, but `wait`."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], about: dict[str, Any]) -> None:
        self.name, self.missed, self.failed, self.told = name, 0, "", False
        self.points: queue.Queue[dict[str, Any]] = queue.Queue(POINTS)
        self.over = threading.Event()
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        self.process: subprocess.Popen[bytes] | None = None
        self.points.put(about)
        self.thread = threading.Thread(target=self._feed, args=(command, environment), daemon=True)
        self.thread.start()

    def send(self, point: dict[str, Any]) -> None:
        """Put a point into the queue, if there is room for it."""
        if self.failed:
            return
        try:
            self.points.put_nowait(point)
        except queue.Full:
            self.missed += 1

    def end(self) -> None:
        """There is no more."""
        self.over.set()

    def wait(self, until_s: float) -> None:
        """Let it come to its end; after that time (time.monotonic), end it."""
        self.thread.join(max(0.0, until_s - time.monotonic()))
        if self.thread.is_alive():
            self.failed = self.failed or "it did not come to its end in time"
            if self.process:
                self.process.kill()

    def message(self) -> str:
        """What is to be said of it, once."""
        if self.failed and not self.told:
            self.told = True
            return f"The mirror {self.name} has failed, and is left out ({self.failed}). The training does not need it."
        if self.missed and self.over.is_set() and not self.told:
            self.told = True
            return f"The mirror {self.name} was too slow for {self.missed:,} points; they are in the run's own history."
        return ""

    def _feed(self, command: list[str], environment: dict[str, str]) -> None:
        try:
            # In a session of its own: Ctrl-C is for the training, which tells it when to end.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self.said,
                stderr=self.said,
                env=environment | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        except OSError as error:
            self.failed = str(error)
            return
        assert self.process.stdin
        with suppress(OSError):  # it has ended too early, which its status says
            self._write_to(self.process.stdin)
        with suppress(OSError):
            self.process.stdin.close()
        status = self.process.wait()
        if status or not self.over.is_set():
            self.said.seek(0)
            lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
            reason = f"its process ended with status {status}"
            self.failed = self.failed or "; it said at last: ".join([reason, *lines[-1:]])
        self.said.close()

    def _write_to(self, pipe: IO[bytes]) -> None:
        while not (self.over.is_set() and self.points.empty()):
            try:
                point = self.points.get(timeout=0.2)
            except queue.Empty:
                pipe.flush()
                if self.process and self.process.poll() is not None:
                    return
                continue
            pipe.write(json.dumps(point).encode() + b"\n")


def has_wandb_key() -> bool:
    """Whether wandb knows whose runs these are, or was told where to keep them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].partition("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
