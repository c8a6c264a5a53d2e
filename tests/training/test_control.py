"""What ends or holds a training from outside, without a training."""

import io
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitrine.recording.reporter import Reporter
from vitrine.runs import control as mailboxes
from vitrine.runs.control import Mailbox, acknowledged, ask
from vitrine.training.control import Control
from vitrine.training.distributed import Processes
from vitrine.training.run_writer import Writer
from vitrine.training.stopping import StoppedError

STATE: Any = SimpleNamespace(step=7)


class Noted(Writer):
    """Remembers the events and the snapshots that were asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def event(self, step: int, kind: str, text: str = "") -> None:
        self.seen.append(f"{kind} at {step}")

    def snapshot(self, state: Any) -> None:
        self.seen.append(f"snapshot at {state.step}")


def make(mailbox: Mailbox | None = None, for_s: float = 0.0, took_s: float = 0.0, **pace: float) -> Control:
    times: Any = SimpleNamespace(**({"step_s": 0.0, "last_s": 0.0} | pace))
    return Control(Processes(), Reporter(), Noted(), mailbox, times, for_s, time.monotonic() - took_s)


@pytest.fixture
def mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    monkeypatch.setattr(mailboxes, "LOOK_EVERY_S", 0.0)
    return Mailbox(tmp_path)


def test_nothing_asked_means_go_on():
    assert make().reason(STATE) == ""
    make().leave_if_asked(STATE)


class Terminal(io.RawIOBase):
    """Ctrl-C is pressed while something is being written to it."""

    def __init__(self) -> None:
        self.said = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.said:
            self.said += b"."
            signal.raise_signal(signal.SIGINT)
        self.said += bytes(data)
        return len(data)


def test_ctrl_c_in_the_middle_of_output_is_answered_and_the_output_goes_on():
    terminal = Terminal()
    buffered, control = io.BufferedWriter(terminal), make()

    class Written(Reporter):
        def note(self, text: str) -> None:
            buffered.write(text.encode())
            buffered.flush()

    control.reporter = Written()
    with control.signals():
        buffered.write(b"step 1" * 10_000)
        buffered.flush()
    assert control.signal == signal.SIGINT
    for _ in range(500):
        if b"Saving, then stopping" in terminal.said:
            break
        time.sleep(0.01)
    assert b"Saving, then stopping" in terminal.said
    assert terminal.said.count(b"step 1") == 10_000


def test_a_signal_is_heard_and_the_handlers_are_put_back():
    before, control = signal.getsignal(signal.SIGTERM), make()
    with control.signals():
        signal.raise_signal(signal.SIGTERM)
        assert (control.signal, control.reason(STATE)) == (signal.SIGTERM, "interrupted")
        with pytest.raises(StoppedError):
            control.leave_if_asked(STATE)
        with pytest.raises(StoppedError):
            control.between_words("")
    assert signal.getsignal(signal.SIGTERM) == before


def test_commands_are_obeyed_in_order_and_acknowledged(mailbox, tmp_path):
    control = make(mailbox)
    asked = [ask(tmp_path, action) for action in ("snapshot", "pause", "pause", "resume", "resume", "stop")]
    assert control.reason(STATE) == "interrupted"
    assert control.writer.seen == ["snapshot at 7", "paused at 7", "continued at 7"]
    assert [acknowledged(tmp_path, number) for number in asked] == [7] * 6


def test_a_pause_waits_and_does_not_count(mailbox, tmp_path, monkeypatch):
    control = make(mailbox, for_s=100.0, took_s=99.0, step_s=2.0)
    ask(tmp_path, "pause")

    def sleep(seconds: float) -> None:  # meanwhile 50 seconds pass, and someone lets it go on
        later = time.monotonic() + 50.0
        monkeypatch.setattr(time, "monotonic", lambda: later)
        ask(tmp_path, "resume")

    monkeypatch.setattr(time, "sleep", sleep)
    assert control.reason(STATE) == ""
    assert control.paused_s == pytest.approx(50.0, abs=5.0)


@pytest.mark.parametrize(("took_s", "reason"), [(95.0, ""), (104.0, "time")])
def test_the_clock_counts_the_next_step_and_the_last_evaluation(took_s, reason):
    assert make(for_s=100.0, took_s=took_s, step_s=2.0, last_s=4.0).reason(STATE) == reason
    assert make(took_s=took_s, step_s=2.0, last_s=4.0).reason(STATE) == ""  # no time was asked for


def test_the_clock_leaves_an_evaluation_in_peace():
    make(for_s=100.0, took_s=200.0).leave_if_asked(STATE)


def test_what_another_process_wants_counts():
    class Others(Processes):
        def agree(self, value: float) -> float:
            return max(value, 3.0)

    control = make()
    control.processes = Others()
    assert control.reason(STATE) == "interrupted"
