"""External control of a training: signals, commands and the clock, decided the same in all processes."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from vitrine.recording.reporter import Reporter
from vitrine.runs.control import LOOK_EVERY_S, Mailbox
from vitrine.step import State
from vitrine.training.distributed import Processes
from vitrine.training.pace import Pace
from vitrine.training.run_writer import Writer
from vitrine.training.stopping import StoppedError

CONTINUE, HOLD, TIME, LEAVE = range(
    4
)  # what a process asks for between two steps; the largest value of all processes decides
REASONS = {CONTINUE: "", TIME: "time", LEAVE: "interrupted"}
STOPPING = "Saving, then stopping. Once more to stop at once."
LATE = 1.08  # times the requested seconds: the clock ends a training that takes longer


@dataclass(eq=False)
class Control:
    """Decides between two steps, and between two batches of an evaluation, whether to continue.

    Args:
        mailbox: of the first process; None in the others.
        for_s: seconds that the training should take; 0: no limit.
        began_s: when they begin to count (time.monotonic). paused_s: seconds of pauses in all, which do not count.
    """

    processes: Processes
    reporter: Reporter
    writer: Writer
    mailbox: Mailbox | None
    pace: Pace
    for_s: float
    began_s: float
    signal: int = 0
    stop: bool = False
    paused: bool = False
    paused_s: float = 0.0

    def reason(self, state: State) -> str:
        """Why to end: "interrupted" or "time"; empty: continue. Waits while the training is paused."""
        while True:
            if self.mailbox:
                self._obey(self.mailbox, state)
            now = time.monotonic()
            wanted = self.processes.agree(self._wanted(now))
            if wanted != HOLD:
                return REASONS[int(wanted)]
            time.sleep(LOOK_EVERY_S)
            self.paused_s += time.monotonic() - now

    def leave_if_asked(self, state: State) -> None:
        """Raises StoppedError if a signal or a command ends the training. The clock is checked only after a step."""
        if self.reason(state) == REASONS[LEAVE]:
            raise StoppedError

    def between_words(self, text: str) -> None:
        """Called while the first process generates text. Raises StoppedError after a signal; no other process is asked."""
        if self.signal:
            raise StoppedError

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGINT, SIGTERM or SIGHUP ends the training after the step; a second ends the process at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal:
                os._exit(128 + number)
            self.signal = number
            # From another thread: the signal may have come while this one was writing to the terminal, and holds its buffer.
            threading.Thread(target=self.reporter.note, args=(STOPPING,)).start()

        ending = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            ending.append(signal.SIGHUP)
        try:
            before = {number: signal.signal(number, handle) for number in ending}
        except ValueError:  # not the main thread: the calling program handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wanted(self, now: float) -> int:
        if self.signal or self.stop:
            return LEAVE
        end_s = now - self.began_s - self.paused_s + self.pace.step_s + self.pace.last_s
        if self.for_s and end_s > LATE * self.for_s:
            return TIME
        return HOLD if self.paused else CONTINUE

    def _obey(self, mailbox: Mailbox, state: State) -> None:
        for command in mailbox.commands():
            if command.action == "snapshot":
                self.writer.snapshot(state)
            elif command.action == "stop":
                self.stop = True
            elif self.paused != (command.action == "pause"):
                self.paused = not self.paused
                self.writer.event(state.step, "paused" if self.paused else "continued")
            mailbox.done(command, state.step)
