"""A request goes once through its layers, the early checks, the text, the size and the steps."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from vitrine.config import parse_settings
from vitrine.errors import ConfigError, VitrineError
from vitrine.recording.reporter import Reporter
from vitrine.runs.reader import RunReader
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
    config = fit(draft, tokens, time.monotonic(), one, nobody).config
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


@pytest.mark.parametrize(
    ("name", "by", "how"),
    [
        ("model.d_model", "you", "given when the run was started"),
        ("training.steps", "you", "given when the run was started"),
        ("data.corpus", "you", "given when the run was started"),
        ("optimizer.clip", "you", "given in the file own.toml"),
        ("model.context", "preset", "of the preset nano"),
        ("data.tokenizer", "derived", "characters for at most 4 MB"),
        ("data.validation_split", "derived", "whole documents if there are more than 20"),
        ("schedule.warmup_steps", "derived", "none: muon needs no warm-up"),
        ("training.parent", "default", "the default"),
        ("training.seed", "default", "the default"),
    ],
)
def test_a_run_knows_who_chose_each_hyperparameter(name: str, by: str, how: str, book: Path) -> None:
    (book.parent / "own.toml").write_text("[optimizer]\nclip = 2.0\n[training]\nsteps = 9\n")
    asked = Request(
        (str(book),),
        config_file=str(book.parent / "own.toml"),
        preset="nano",
        settings={"model": {"d_model": 32}},
        steps=2,
    )
    prepared = asking.prepare(asked)
    assert set(prepared.chosen) == {f"{s}.{k}" for s, keys in prepared.config.model_dump().items() for k in keys}
    assert prepared.chosen[name].by == by
    assert prepared.chosen[name].how.startswith(how)


def test_the_steps_that_fit_into_a_time_are_derived_and_the_size_is_of_a_preset(book: Path) -> None:
    chosen = asking.prepare(Request((str(book),), for_s=4.0)).chosen
    assert chosen["training.steps"] == ("derived", "as many as fit into 4 s on this machine, by timing a few")
    assert chosen["model.n_layers"].by == "preset"
    assert re.fullmatch(
        r"of the preset nano, the size for [\d,]+ training tokens and 4 s on this machine", chosen["model.n_layers"].how
    )


def test_a_run_that_goes_on_from_another_has_its_hyperparameters_of_that_one(book: Path, tmp_path: Path) -> None:
    train(request(book, run=str(tmp_path / "first")))
    parent = f"{tmp_path / 'first'}@2"  # the sentence has no folders: a report is for others
    train(Request((), run=str(tmp_path / "second"), steps=3, parent=parent))
    chosen = RunReader(tmp_path / "second").chosen()
    assert chosen is not None
    assert chosen["model.d_model"] == ("parent", "as in first@2, from which this run starts")
    assert chosen["training.steps"].by == chosen["training.parent"].by == "you"
    assert chosen["training.evaluate_every"].by == "derived"
