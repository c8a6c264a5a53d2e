"""A disk that refuses, another program's lock, a run that is deleted while it trains: each its own sentence."""

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY
from vitrine import resume, train
from vitrine.errors import RunError
from vitrine.recording.reporter import Reporter
from vitrine.runs import store
from vitrine.runs.reader import HISTORY, KEYFRAMES, RunReader
from vitrine.runs.records import StepRecord
from vitrine.runs.refusals import refusal
from vitrine.runs.retention import keyframe_steps


class At(Reporter):
    """Does something once these steps were made; keeps what it is told."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        self.actions, self.notes = actions, []

    def stepped(self, record: StepRecord, tokens_per_s: float, left_s: float) -> None:
        self.actions.get(record.step, lambda: None)()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def trained(book: Path, tmp_path: Path, small: Path):
    """The small run once more; something happens meanwhile."""
    settings = {name: int(value) if value.isdigit() else value for name, value in (p.split("=") for p in TINY[1::2])}
    return lambda reporter: train(book, run=tmp_path / "r", steps=20, settings=settings, reporter=reporter)


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another program: it locks the run's history as soon as the training has committed, until it lets go."""
    programs, wanted, commit = [], [], store.Store.commit

    def commit_and_lose(self: store.Store) -> None:
        commit(self)
        while wanted and not self.connection.in_transaction:
            programs.append(sqlite3.connect(wanted.pop() / HISTORY, isolation_level=None))
            programs[-1].execute("BEGIN IMMEDIATE")

    def let_go() -> None:
        while programs:
            programs.pop().close()

    monkeypatch.setattr(store.Store, "commit", commit_and_lose)
    yield lambda: wanted.append(tmp_path / "r"), let_go
    let_go()


def test_a_training_goes_on_while_another_program_has_locked_its_history(trained, other, small, monkeypatch):
    monkeypatch.setattr(store, "TRY_EVERY_S", 0.0)  # the steps after the lock may take less time than that
    lock, let_go = other
    reporter = At({4: lock, 13: let_go})
    run = trained(reporter)
    assert run.steps()[-1].step == 19
    assert [r.loss for r in run.steps()] == [r.loss for r in RunReader(small).steps()]
    assert len(run.statistics("embedding.weight")) == len(RunReader(small).statistics("embedding.weight"))
    told = [note for note in reporter.notes if HISTORY in note]
    assert [note.split(": ")[0] for note in told[:1]] == [f"Another program has locked {run.path / HISTORY}"]
    assert len(told) == 2


def test_a_lock_that_stays_is_named_at_the_end_and_resume_makes_what_is_missing(
    trained, other, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(store, "WAIT_S", 0.3)
    lock, let_go = other
    with pytest.raises(RunError, match=r"r/run\.sqlite has been locked by another program for a minute"):
        trained(At({4: lock}))
    let_go()
    assert keyframe_steps(tmp_path / "r" / KEYFRAMES)[-1] == 20
    run = resume(tmp_path / "r")
    assert run.result()["digest"] == RunReader(small).result()["digest"]


def test_a_run_that_is_deleted_while_it_trains_ends_in_its_own_sentence_and_does_not_come_back(trained, tmp_path):
    with pytest.raises(RunError, match="r was deleted"):
        trained(At({7: lambda: shutil.rmtree(tmp_path / "r")}))
    assert not (tmp_path / "r").exists()


def test_a_run_that_was_deleted_in_part_is_called_deleted_too(trained, tmp_path):
    with pytest.raises(RunError, match="r was deleted"):
        trained(At({7: lambda: (tmp_path / "r/config.toml").unlink()}))
    assert keyframe_steps(tmp_path / "r" / KEYFRAMES) == [0, 5]


def test_a_run_that_takes_the_place_of_a_deleted_one_is_left_as_it_is(trained, small, tmp_path):
    def replace() -> None:
        shutil.rmtree(tmp_path / "r")
        shutil.copytree(small, tmp_path / "r")
        shutil.rmtree(tmp_path / "r/keyframes/step-00000015")

    # Or, on a slow disk, by the keyframe that was being written when its folder went.
    ended = r"r was deleted while it trained, and another run is in its place|partial.* is missing"
    with pytest.raises(RunError, match=ended):
        trained(At({7: replace}))
    assert keyframe_steps(tmp_path / "r" / KEYFRAMES) == [0, 5, 10, 20]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "could not be written: No space left on device. Earlier data is safe. Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EROFS, "cannot be opened or written here: Read-only file system. Check the permissions of"),
        (errno.EACCES, "cannot be opened or written here: Permission denied."),
        (errno.ENOENT, "is missing. vitrine verify"),
        (errno.EIO, "could not be read or written: Input/output error. Earlier data is safe. Check the disk"),
    ],
)
def test_each_refusal_of_the_disk_is_a_sentence_of_its_own(code, said, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/config.toml").touch()
    sentence = str(refusal(OSError(code, os.strerror(code), str(tmp_path / "r/film/frames.bin")), tmp_path / "r"))
    assert sentence.startswith(f"{tmp_path}/r/film/frames.bin ")
    assert said in sentence
    assert ("Free some space" in sentence) == (code in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (300 * "n", "The name of a run has at most 200 bytes: got 300. Give --run a shorter one."),
        ("r\udcff", r"The name of a run is text in UTF-8: got 'r\udcff'. Give --run another name."),
        ("link", "link is a link to nowhere, which does not exist. Give --run another name."),
        ("book.txt", "book.txt exists already."),
        (f"{5000 * 'n'}/r", "No run can be made at"),
    ],
    ids=["300 characters", "not in UTF-8", "dangling link", "a file", "a folder's name"],
)
def test_a_name_that_a_run_cannot_have_is_a_sentence_and_nothing_is_left(
    name, said, book, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    for arguments in (["train", book, *TINY, "--steps", 1], ["import", tmp_path]):
        done = command(*arguments, "--run", name)
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [["generate"], ["resume"], ["health"], ["export", "to"]], ids=lambda a: a[0])
def test_a_run_with_an_impossible_name_is_a_sentence(arguments, command):
    done = command(arguments[0], 300 * "n", *arguments[1:])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "cannot be opened: File name too long." in done.stderr
    json.dumps(done.stderr)
