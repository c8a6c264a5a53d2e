"""What the commands show while they work."""

import io

import pytest
from rich.console import Console

from vitrine import progress
from vitrine.progress import TerminalReporter
from vitrine.runs.records import EvaluationRecord, StepRecord

RECORD = StepRecord(4, 2.5, 1.0, 0.01, 100, 0.1, 1)


def on_a_terminal() -> tuple[TerminalReporter, io.StringIO]:
    text = io.StringIO()
    return TerminalReporter(Console(file=text, force_terminal=True, width=120)), text


def test_the_bar_is_taken_away_when_the_training_ends_in_an_error():
    reporter, text = on_a_terminal()

    def train() -> None:
        with reporter:
            reporter.stepped(RECORD, 100.0, 60.0)
            assert "\x1b[?25l" in text.getvalue()  # the cursor is hidden
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        train()
    assert text.getvalue().rstrip("\n").endswith("\x1b[?25h")  # and there again


@pytest.mark.parametrize(("long_s", "shown"), [(0.0, True), (3600.0, False)])
def test_an_evaluation_that_takes_a_while_has_a_bar_of_its_own(long_s, shown, monkeypatch):
    monkeypatch.setattr(progress, "LONG_S", long_s)
    reporter, text = on_a_terminal()
    with reporter:
        for done in (0, 30, 60, 100):
            reporter.evaluating(done, 100)
            if reporter.progress:
                reporter.progress.refresh()
        reporter.evaluated(EvaluationRecord(5, 2.0, 100, True, 1.0))
    assert ("measuring the validation loss: 60%" in text.getvalue()) == shown
