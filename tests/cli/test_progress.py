"""What the commands show while they work."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.conftest import TINY
from vitrine.cli import progress
from vitrine.cli.progress import TerminalReporter
from vitrine.config import parse_settings
from vitrine.presets import Facts, resolve
from vitrine.runs.reader import RunReader
from vitrine.runs.records import EvaluationRecord, StepRecord
from vitrine.training.create import train
from vitrine.training.pace import Pace
from vitrine.training.request import Request

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


def test_the_pace_of_a_history_is_that_of_its_last_steps_and_evaluation(tmp_path, book):
    settings = parse_settings([*TINY[1::2], "training.evaluate_every=10"])
    train(Request((str(book),), str(tmp_path / "r"), settings=settings, steps=30))
    reader = RunReader(tmp_path / "r")
    pace, live = Pace.of(reader), Pace(reader.config, json.loads(reader.facts()["reading"])["validation_tokens"])
    for record in reader.steps():
        live.stepped(record.duration_s)
    last = reader.evaluations()[-1]
    live.evaluated(last.duration_s, last.tokens)
    assert pace.left_s(12) == live.left_s(12) > 0


def paced(durations: list[float]) -> Pace:
    pace = Pace(resolve({}, Facts(vocab_size=65, train_tokens=10_000)), validation_tokens=0)
    for duration_s in durations:
        pace.stepped(duration_s)
    return pace


WARM, STEADY = [5.0] * 5, [0.1, 0.1, 0.4, 0.1, 0.1] * 5


@pytest.mark.parametrize(
    ("late", "slowdown"),
    [
        ([], 1),
        ([0.19] * 10, 1),
        ([0.3] * 10, 3),
        ([1.7] * 6 + [0.1] * 4, 17),
        ([1.7] * 4 + [0.1] * 6, 1),  # a moment
        ([1.7] * 10 + [0.1] * 6, 1),  # over again
    ],
)
def test_steps_that_take_twice_as_long_as_the_first_or_more_are_noticed_by_their_medians(late, slowdown):
    assert paced(WARM + STEADY + late).slowdown == pytest.approx(slowdown)


def test_too_few_steps_say_nothing_of_the_pace():
    assert [paced([0.1] * 10 + [1.0] * more).slowdown for more in range(20)] == [1] * 20


def test_a_training_that_became_slow_says_so_in_its_progress_line_with_the_factor():
    reporter, text = on_a_terminal()
    with reporter:
        for number, factor in enumerate((1.0, 17.2, 17.2, 1.0)):
            reporter.slowed(factor)
            reporter.stepped(replace(RECORD, step=number), 100.0, 60.0)
            assert reporter.progress
            reporter.progress.refresh()
    said = text.getvalue()
    assert "step 3 of 0   loss 2.500   100 tokens/s   17.2 times slower than at first   60 s left" in said
    assert "step 4 of 0   loss 2.500   100 tokens/s   60 s left" in said
    assert said.count("another program may be using the") == 1


@pytest.mark.parametrize(("long_s", "shown"), [(0.0, True), (3600.0, False)])
def test_a_corpus_of_any_size_has_a_bar_when_it_takes_a_while(long_s, shown, monkeypatch):
    monkeypatch.setattr(progress, "LONG_S", long_s)
    reporter, text = on_a_terminal()
    with reporter:
        for done in (0, 300_000, 600_000):
            reporter.preparing("reading", done, 1_200_000)
            if reporter.progress:
                reporter.progress.refresh()
    assert ("reading: 0.6 of 1.2 MB" in text.getvalue()) == shown


def test_where_there_is_no_terminal_a_corpus_has_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "LONG_S", 0.0)
    text = io.StringIO()
    reporter = TerminalReporter(Console(file=text, width=120))
    for done in range(1000):
        reporter.preparing("reading", done, 1000)
    assert text.getvalue() == ""
    reporter.printed_s -= progress.LINE_EVERY_S + 1
    for done in range(1000):
        reporter.preparing("reading", done * 1000, 1_000_000)
    assert text.getvalue() == "reading: 0.0 of 1.0 MB\n"
