"""What a training says that it read."""

import io
import json

from rich.console import Console

from tests.conftest import TINY
from vitrine import open_run
from vitrine._json import dumps
from vitrine.cli.progress import TerminalReporter
from vitrine.cli.render import render
from vitrine.config import merge, parse_settings
from vitrine.presets import Facts, resolve
from vitrine.recording.reporter import Reporter
from vitrine.text.summary import SourceSummary, Summary
from vitrine.training import plan
from vitrine.training.create import train
from vitrine.training.request import Request


def config_of(**data: object):
    settings = {"model": {"context": 10}, "training": {"steps": 30, "batch_size": 10}, "data": data}
    return resolve(merge(settings), Facts(vocab_size=50, train_tokens=1000))


def source(name: str, tokens: int, held_back: str = "end") -> SourceSummary:
    return SourceSummary(name, {".txt": (2, 1_500_000)}, {".png": (1, 3_000)}, 2, tokens, held_back, {})


def test_files_and_endings_are_added_up():
    many = {f".{letter}": (number, 10) for number, letter in enumerate("abcdef", start=1)}
    sources = (source("one", 1000), SourceSummary("two", many, {}, 21, 2000, "documents", {}))
    text, left_out, tokens, epochs = Summary(sources, 300).lines(config_of(corpus=["one", "two"]))
    assert text == "text        23 files, 1.5 MB (.f 6, .e 5, .d 4, .c 3, 3 more endings), 23 documents"
    assert left_out == "left out    1 file, 3.0 kB (.png 1)"
    assert tokens == "tokens      3,000 for training, 300 for validation (whole documents, the end of each source)"
    assert epochs == "epochs      1 in 30 steps"


def test_what_was_skipped_is_told_apart_from_what_was_read():
    invalid = {"count": 2, "was": "skip", "first": ["b.txt is not UTF-8", "c.txt is not UTF-8"]}
    skipped = SourceSummary("two", {".txt": (3, 900)}, {}, 1, 2000, "end", invalid)
    replaced = SourceSummary("three", {".txt": (3, 900)}, {}, 3, 2000, "end", {**invalid, "was": "replace"})
    said = Summary((source("one", 1000), skipped, replaced), 300).lines(config_of(corpus=["one", "two", "three"]))
    assert said[2] == "left out    2 of the files or rows above: not valid text (data.invalid = skip)"


def test_epochs_of_a_mixture_are_told_by_source():
    sources = (source("one", 1000), source("two", 500), source("held", 0, "all"))
    config = config_of(corpus=["one", "two"], weights=[1.0, 2.0], validation=["held"])
    assert Summary(sources, 9).lines(config)[-1] == "epochs      1 of one, 4 of two in 30 steps"


def test_epochs_count_what_is_used_of_the_text():
    assert Summary((source("one", 3000),), 9).lines(config_of(corpus=["one"], max_tokens=1500))[-1] == (
        "epochs      2 in 30 steps"
    )


def test_it_comes_back_from_json():
    summary = Summary((source("one", 1000),), 300)
    again = Summary.of(json.loads(dumps(summary)))
    assert again.lines(config_of(corpus=["one"])) == summary.lines(config_of(corpus=["one"]))


def test_a_training_and_a_plan_say_what_was_read_and_the_run_keeps_it(prose, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.{'txt' if number % 2 else 'md'}").write_text(prose[2000 * number :][:2000])
    (folder / "numbers.dat").write_bytes(bytes(400))
    lines = [
        "text        24 files, 48.0 kB (.md 12, .txt 12), 24 documents",
        "left out    1 file, 400 B (.dat 1)",
        "tokens      44,000 for training, 4,000 for validation (whole documents)",
        "epochs      0.00582 in 2 steps",
    ]
    said = io.StringIO()
    request = Request((str(folder),), str(tmp_path / "r"), settings=parse_settings(TINY[1::2]), steps=2)
    train(request, TerminalReporter(Console(file=said, width=200)))
    assert "\n".join(lines) in said.getvalue()
    planned = plan.plan(request, Reporter())
    assert "\n".join(lines) in render(planned)
    run = open_run(tmp_path / "r")
    kept = json.loads(run.facts()["reading"])
    assert kept == json.loads(json.dumps(planned.to_json()["reading"]))
    assert kept["sources"][0]["left_out"] == {".dat": [1, 400]}
    assert run.config.data.validation_split == "documents"
