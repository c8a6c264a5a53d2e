"""A request goes once through its layers, the early checks, the text, the size and the steps."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from vitrine.config import parse_settings
from vitrine.errors import ConfigError, VitrineError
from vitrine.recording.reporter import Reporter
from vitrine.training import request as asking
from vitrine.training.create import train
from vitrine.training.distributed import Processes
from vitrine.training.request import Request, check, choose, complete, fit, lay, read

STAGES = ("lay", "check", "read", "choose", "fit")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions in the order in which they are called; the file of hyperparameters counts as one."""
    called: list[str] = []

    def noted(name: str) -> Any:
        really = getattr(asking, name)

        def call(*arguments: Any, **more: Any) -> Any:
            called.append(name)
            return really(*arguments, **more)

        return call

    for name in (*STAGES, "load_toml"):
        monkeypatch.setattr(asking, name, noted(name))
    return called


def request(book: Path, **more: Any) -> Request:
    (book.parent / "own.toml").write_text("[training]\nbatch_size = 2\n")
    return Request(
        (str(book),), config_file=str(book.parent / "own.toml"), settings=parse_settings(TINY[1::2]), steps=2, **more
    )


def test_each_stage_is_entered_once_and_the_file_is_read_once(
    book: Path, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrine.training.create.lay", asking.lay)
    train(request(book, run=str(tmp_path / "r")))
    assert calls == ["lay", "load_toml", "check", "read", "choose"]  # without a time there is nothing to fit


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"for_s": -1.0}, "--for must be positive"),
        ({"preset": "tiny"}, "There is no preset 'tiny'"),
        ({"parent": "nowhere@1"}, "nowhere does not exist"),
    ],
)
def test_a_mistake_is_refused_before_the_text_is_read(
    wrong: dict[str, Any], sentence: str, book: Path, calls: list[str]
) -> None:
    with pytest.raises(VitrineError, match=sentence):
        asking.prepare(request(book, **wrong))
    assert "read" not in calls


def test_a_draft_is_not_changed_by_the_stages_after_it(book: Path) -> None:
    one, nobody = Processes(), Reporter()
    first = lay(request(book))
    second = check(first, one)
    tokens = read(second, one, nobody)
    third = choose(second, tokens, one, nobody)
    assert first.config.model.vocab_size == second.config.model.vocab_size == asking.STAND_IN
    assert third.config.model.vocab_size == tokens.tokenizer.get_vocab_size()
    assert third.config == complete(first, one, nobody).config
    assert first.config.training.batch_size == 4  # of the settings, over the 2 of the file


def test_steps_that_are_given_stay_whatever_the_time_says(book: Path) -> None:
    one, nobody = Processes(), Reporter()
    draft = check(lay(request(book, for_s=60.0)), one)
    tokens = read(draft, one, nobody)
    draft = choose(draft, tokens, one, nobody)
    config = fit(draft, tokens, time.monotonic(), one, nobody)
    assert config.training.steps == 2


def test_several_processes_are_refused_before_the_text_where_the_rows_cannot_be_shared(book: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.batch_size must be divisible by the number of processes"):
        check(lay(request(book)), ThreeProcesses())


class ThreeProcesses(Processes):
    """The first of three, which agree with it."""

    def __init__(self) -> None:
        super().__init__(0, 3)

    def agree(self, value: float) -> float:
        return value
