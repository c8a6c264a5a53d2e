"""The loop around the step: it can be left in the middle of anything that takes long, and loses nothing."""

import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from vitrine.config import Config, parse_settings
from vitrine.recording.reporter import Reporter
from vitrine.runs import control
from vitrine.runs.control import ask
from vitrine.runs.reader import RunReader
from vitrine.training import evaluation, run_writer
from vitrine.training.create import train
from vitrine.training.loop import Result
from vitrine.training.request import Request
from vitrine.training.resume import resume

STEPS = 20
SETTINGS = [
    *TINY[1::2],
    "training.evaluation_tokens=1024",
    "recording.text_samples=0",
    "machine.threads=1",
]


class Leaver(Reporter):
    """Asks a training to leave in the middle of an evaluation, and counts the batches that are measured after that.

    windows: of the evaluation to leave, in all.
    how: a signal, or what is put into the mailbox.
    """

    def __init__(self, windows: int, how: signal.Signals | str) -> None:
        self.windows, self.how, self.path, self.after = windows, how, Path(), -1

    def started(self, config: Config, path: Path) -> None:
        self.path = path

    def evaluating(self, done: int, total: int) -> None:
        if self.after >= 0:
            self.after += 1
        elif total == self.windows and done > 0:
            self.after = 0
            if isinstance(self.how, str):
                ask(self.path, self.how)
            else:
                signal.raise_signal(self.how)


def request(folder: Path, run: str, settings: list[str] = SETTINGS, **more: Any) -> Request:
    return Request(
        (str(folder / "book.txt"),), str(folder / run), settings=parse_settings(settings), steps=STEPS, **more
    )


def same(result: Result, other: Result) -> bool:
    """Whether two trainings came to the same, apart from the time that they took."""
    return replace(result, run="", duration_s=0, training_s=0, tokens_per_s=0) == replace(
        other, run="", duration_s=0, training_s=0, tokens_per_s=0
    )


def evaluations(run: Path) -> list[tuple[int, float, int, bool]]:
    return [(e.step, e.loss, e.tokens, e.whole) for e in RunReader(run).evaluations()]


ALL, SOME = 188, 32  # windows of 32 tokens: of the whole split, and of the usual measurement
LAST, BETWEEN, TARGET = (ALL, {}, STEPS), (SOME, {}, 10), (ALL, {"target_loss": 4.0}, 10)


@pytest.fixture(autouse=True)
def short_batches(monkeypatch):
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", {"cpu": 256})  # the whole split is 24 batches
    monkeypatch.setattr(control, "LOOK_EVERY_S", 0.0)


@pytest.mark.parametrize(
    ("how", "moment"),
    [(signal.SIGTERM, LAST), (signal.SIGINT, BETWEEN), (signal.SIGHUP, TARGET), ("stop", LAST)],
    ids=["SIGTERM at the end", "SIGINT between steps", "SIGHUP before a target", "a request at the end"],
)
def test_any_evaluation_is_left_after_the_batch_and_made_again_without_losing_a_step(how, moment, book, tmp_path):
    windows, more, step = moment
    never = train(request(tmp_path, "never", **more))
    reporter = Leaver(windows, how)
    left = train(request(tmp_path, "r", **more), reporter)
    assert (left.stopped, left.steps, left.val_loss) == ("interrupted", step, None)
    assert left.signal == (0 if how == "stop" else how)
    assert reporter.after == 0  # no batch was measured after that
    assert not [e for e in RunReader(tmp_path / "r").evaluations() if e.whole]  # nothing of it is recorded
    assert RunReader(tmp_path / "r").result() == {}
    assert (tmp_path / f"r/keyframes/step-{step:08d}/manifest.json").is_file()
    assert same(resume(tmp_path / "r"), never)
    assert evaluations(tmp_path / "r") == evaluations(tmp_path / "never")
    assert "recomputed" not in {event.kind for event in RunReader(tmp_path / "r").events()}  # no step was lost


def test_a_hangup_that_is_ignored_stays_ignored(book, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        result = train(request(tmp_path, "r"), Leaver(ALL, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.stopped, result.steps, result.val_tokens, result.val_whole) == ("steps", STEPS, 5999, True)


def test_a_target_is_judged_by_as_much_text_as_the_last_evaluation_measures(book, tmp_path):
    settings = [*SETTINGS, "training.final_evaluation_tokens=2048"]
    result = train(request(tmp_path, "r", settings, target_loss=4.0))
    assert (result.stopped, result.steps) == ("target", 10)
    assert (result.val_tokens, result.val_whole, result.val_split_tokens) == (
        2031,
        False,
        5999,
    )  # the last window is shorter
    reader = RunReader(tmp_path / "r")
    assert [(e.tokens, e.whole, e.final) for e in reader.evaluations()] == [(1007, False, False), (2031, False, True)]
    assert reader.evaluations()[1].loss == result.val_loss <= 4.0
    assert reader.sampled_evaluations() == reader.evaluations()[:1]


def test_a_run_from_before_there_was_a_limit_measures_the_whole_split_at_its_end(book, tmp_path):
    train(request(tmp_path, "r", [*SETTINGS, "training.final_evaluation_tokens=640"]), Leaver(20, signal.SIGTERM))
    file = tmp_path / "r/config.toml"
    file.write_text(file.read_text().replace("final_evaluation_tokens = 640\n", ""))
    with sqlite3.connect(tmp_path / "r/run.sqlite") as history:
        history.execute("DELETE FROM facts WHERE name = 'identity'")  # nor was there that
    result = resume(tmp_path / "r")
    assert (result.val_tokens, result.val_whole) == (5999, True)


def test_text_that_is_being_written_is_left_too(book, tmp_path, monkeypatch):
    written: list[str] = []

    def interrupted(*arguments: Any) -> Any:
        on_text = arguments[-1]
        signal.raise_signal(signal.SIGTERM)
        on_text("a")
        written.append("b")

    monkeypatch.setattr(run_writer, "generate", interrupted)
    settings = [*SETTINGS, "recording.text_samples=3"]
    result = train(request(tmp_path, "r", settings))
    assert (result.stopped, result.steps, written) == ("interrupted", 0, [])
    monkeypatch.undo()
    assert resume(tmp_path / "r").steps == STEPS
    assert len(RunReader(tmp_path / "r").samples()) == 3
