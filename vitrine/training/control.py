"""What ends or holds a training from outside: signals, commands, the clock. All processes decide alike."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from vitrine.recording.reporter import Reporter
from vitrine.runs.control import LOOK_EVERY_S, Mailbox
from vitrine.step import State
from vitrine.training.distributed import Processes
from vitrine.training.run_writer import Writer
from vitrine.training.stopping import StoppedError
from vitrine.training.timing import Pace

CONTINUE, HOLD, TIME, LEAVE = range(4)  # what a process wants between two steps; the largest of all counts
REASONS = {CONTINUE: "", TIME: "time", LEAVE: "interrupted"}
LATE = 1.08  # times the seconds that were asked for: the clock does not let a training take longer


@dataclass(eq=False)
class Control:
    """Asked between two steps, and between two batches of an evaluation, whether to go on.

    Args:
        mailbox: of the first process; None in the others.
        for_s: seconds that the training was asked to take; 0: any.
        began_s: from when they count (time.monotonic). paused_s: in all, which do not count.
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
        """Why to end: "interrupted" or "time"; empty: go on. It waits as long as a pause lasts."""
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
        """Raises StoppedError if the training is to be left now. What the clock says waits until after the step."""
        if self.reason(state) == REASONS[LEAVE]:
            raise StoppedError

    def between_words(self, text: str) -> None:
        """While the first process lets the model write. Raises StoppedError if a signal came; asks no other process."""
        if self.signal:
            raise StoppedError

    @contextmanager
    def signals(self) -> Iterator[None]:
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
