"""Sends a run's curves to TensorBoard, Weights & Biases or Trackio: the setting `recording.mirror`.

A reporter that forwards to another one. Each logger is a process (`recording/logger_process.py`), fed by a thread from a
bounded queue: a slow logger misses points, one that fails is left out, and training never waits for one.
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

POINTS = 10_000  # at most in the queue of a logger
ENDS_S = 30.0  # for all loggers together to send the rest after the training


@contextmanager
def with_loggers(reporter: Reporter, names: Sequence[str]) -> Iterator[Reporter]:
    """The reporter with these loggers, which are closed at the end."""
    if not names:
        yield reporter
        return
    sending = Loggers(reporter)
    try:
        yield sending
    finally:
        sending.close()


class Loggers(Reporter):
    """Forwards everything to another reporter, and sends numbers and texts to the loggers."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.sample_tokens = reporter, 0
        self.feeds: list[Feed] = []

    def note(self, text: str) -> None:
        """Only forwarded."""
        self.reporter.note(text)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Only forwarded."""
        self.reporter.preparing(what, done, total)

    def started(self, config: Config, path: Path) -> None:
        """Open the loggers of the new run."""
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
        """Only forwarded."""
        self.reporter.slowed(factor)

    def evaluating(self, done: int, total: int) -> None:
        """Only forwarded."""
        self.reporter.evaluating(done, total)

    def evaluated(self, record: EvaluationRecord) -> None:
        """The validation loss; one over a larger part of the split than usual goes into a separate curve."""
        self.reporter.evaluated(record)
        name = "validation/loss" if record.compares(self.sample_tokens) else "validation/loss_of_all"
        self._send({"step": record.step, "numbers": {name: record.loss}})

    def sampled(self, record: SampleRecord) -> None:
        """Send a text that the model wrote."""
        self.reporter.sampled(record)
        self._send({"step": record.step, "text": record.text})

    def close(self) -> None:
        """Wait a limited time for the loggers to send the rest; report those that failed or missed points."""
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
    """A logger's process with the queue and the thread that feed it. Only `wait` waits."""

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
        """Put a point into the queue, or drop it if the queue is full."""
        if self.failed:
            return
        try:
            self.points.put_nowait(point)
        except queue.Full:
            self.missed += 1

    def end(self) -> None:
        """No more points follow."""
        self.over.set()

    def wait(self, until_s: float) -> None:
        """Wait for the process to end; kill it after that time (time.monotonic)."""
        self.thread.join(max(0.0, until_s - time.monotonic()))
        if self.thread.is_alive():
            self.failed = self.failed or "it did not come to its end in time"
            if self.process:
                self.process.kill()

    def message(self) -> str:
        """What to report about it; empty the second time."""
        if self.failed and not self.told:
            self.told = True
            return f"The mirror {self.name} has failed, and is left out ({self.failed}). The training does not need it."
        if self.missed and self.over.is_set() and not self.told:
            self.told = True
            return f"The mirror {self.name} was too slow for {self.missed:,} points; they are in the run's own history."
        return ""

    def _feed(self, command: list[str], environment: dict[str, str]) -> None:
        try:
            # In its own session: Ctrl-C goes to the training, which ends the logger.
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
        with suppress(OSError):  # it ended too early; its exit status is reported
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
    """Whether wandb has an API key, or a setting of where to keep runs."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].partition("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
