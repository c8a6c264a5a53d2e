"""The folder of a new run: it has its name when it is whole, and no other run's."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from vitrine.config import parse_settings
from vitrine.errors import RunError
from vitrine.training import create
from vitrine.training.create import train
from vitrine.training.request import Request


@pytest.mark.parametrize("asked", [False, True])
def test_a_name_that_another_training_takes_meanwhile_is_refused_or_if_we_chose_it_the_next_is_taken(
    asked, book, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    really = create.save_keyframe

    def late(folder: Path, *arguments: Any) -> Any:
        (tmp_path / "runs/book-1/keyframes").mkdir(parents=True)  # while this one was busy with its initial parameters
        return really(folder, *arguments)

    monkeypatch.setattr(create, "save_keyframe", late)
    wanted = Request((str(book),), "runs/book-1" if asked else "", settings=parse_settings(TINY[1::2]), steps=2)
    if asked:
        with pytest.raises(RunError, match="runs/book-1 exists already"):
            train(wanted)
    else:
        assert train(wanted).run == "runs/book-2"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["book-1"] + ["book-2"] * (not asked)


def test_a_name_that_is_taken_in_the_very_moment_of_the_rename_counts_as_taken(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    (tmp_path / "taken/x").mkdir(parents=True)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert create._rename(tmp_path / "new", tmp_path / "taken") is False
    assert create._rename(tmp_path / "new", tmp_path / "free") is True
    with pytest.raises(OSError, match=rf"Errno {errno.ENOENT}"):
        create._rename(tmp_path / "new", tmp_path / "other")
