"""How often statistics are taken: the first steps are timed, then what they may cost is kept to."""

import json
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import TINY
from vitrine.config import parse_settings
from vitrine.errors import RunError
from vitrine.inspection.replay import Replayer
from vitrine.recording.history import History
from vitrine.recording.recorder import FIRST_STEPS, Recorder
from vitrine.recording.reporter import Reporter
from vitrine.runs.layout import Layout
from vitrine.runs.reader import RunReader
from vitrine.runs.records import StepRecord
from vitrine.training.create import train as train_run
from vitrine.training.request import Request
from vitrine.training.resume import resume

STEPS, EVERY, MEASURED = 60, 2, 6  # of the usual cadence; times as rarely, by the time that looks are said to take
SETTINGS = [
    *TINY[1::2],
    f"recording.statistics_every={EVERY}",
    "recording.statistics_cost=0.01",
    "recording.film_frames=0",
    "recording.histograms=0",
    "recording.text_samples=0",
    "machine.threads=1",
]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A step is said to take a second, a look 0.11 of them: at most 1% is kept to by one look in eleven steps, or more."""
    really = Recorder.recorded

    def recorded(self: Recorder, number: int, duration_s: float, recording_s: float) -> None:
        self.looking_s = 0.1 if self.due.statistics else 0.0
        really(self, number, 1.0 + self.looking_s, 0.01)

    monkeypatch.setattr(Recorder, "recorded", recorded)


class Leaver(Reporter):
    """Ends a training after a step, as a kill does: nothing is saved."""

    def __init__(self, after: int) -> None:
        self.after = after

    def stepped(self, record: StepRecord, tokens_per_s: float, left_s: float) -> None:
        if record.step == self.after:
            raise RunError("killed")


def train(folder: Path, run: str, *settings: str, reporter: Reporter | None = None) -> Path:
    (folder / run).parent.mkdir(exist_ok=True)
    asked = parse_settings([*SETTINGS, *settings])
    train_run(Request((str(folder / "book.txt"),), str(folder / run), settings=asked, steps=STEPS), reporter)
    return folder / run


def rows(run: Path) -> list[int]:
    return RunReader(run).series(0)[0].tolist()


def since(run: Path) -> list[int] | None:
    with sqlite3.connect(run / "run.sqlite") as history:
        found = history.execute("SELECT value FROM facts WHERE name = 'statistics'").fetchone()
    return json.loads(found[0]).get("since")


def digest(run: Path) -> str:
    return str(RunReader(run).result()["digest"])


def test_after_the_first_steps_statistics_are_taken_as_often_as_their_cost_allows(book, tmp_path):
    run = train(tmp_path, "r")
    assert FIRST_STEPS == 20
    assert since(run) == [24, 12]  # 11 steps would do: a multiple of 2, from a step that it divides
    assert rows(run) == [*range(0, 24, 2), 24, 36, 48]
    plain = train(tmp_path, "plain", "recording.statistics_cost=0")
    assert (since(plain), rows(plain)) == (None, list(range(0, STEPS, EVERY)))
    assert digest(plain) == digest(run)
    opened = Replayer(RunReader(run)).replay(38)  # from the keyframe of step 35, over the row of step 36
    compared = opened.comparisons.kinds["norms, magnitudes and sampled parameters of every tensor"]
    assert opened.exact
    assert (compared.first, compared.last, compared.made) == (36, 36, 1)


@pytest.mark.parametrize("after", [12, 30])
def test_a_run_that_is_resumed_measures_if_it_had_not_and_else_keeps_what_it_has(after, book, tmp_path, monkeypatch):
    whole = train(tmp_path, "whole")
    with pytest.raises(RunError, match="killed"):
        train(tmp_path, "r", reporter=Leaver(after))
    assert since(tmp_path / "r") == (None if after < 20 else [24, 12])
    if after > 20:
        monkeypatch.setattr(Recorder, "recorded", lambda *_: pytest.fail("measured again") if _[0].cost else None)
    resume(tmp_path / "r")
    assert digest(tmp_path / "r") == digest(whole)
    # Resumed at step 10, it has timed 20 steps after step 29.
    assert since(tmp_path / "r") == ([36, 12] if after < 20 else [24, 12])
    assert rows(tmp_path / "r") == ([*range(0, 36, 2), 36, 48] if after < 20 else rows(whole))


def test_a_cadence_never_begins_among_steps_that_were_recorded_with_the_one_before(tmp_path):
    layout = Layout(4, ("a",), {"a": (0,)})
    history = History(tmp_path / "run.sqlite", True)
    history.begin(layout)
    history.store.write(StepRecord(61, 1.0, 1.0, 1.0, 1, 1.0, 1))
    history.resumed(10)
    assert history.look_every(31, 16).since == (64, 16)
    assert History(tmp_path / "run.sqlite", True).layout == history.layout
