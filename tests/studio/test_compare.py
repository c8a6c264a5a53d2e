"""Runs side by side: each number is the run's own, and what differs is what was chosen differently."""

import json
import subprocess
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from tests.studio.conftest import Studio
from vitrine.cli.render import render
from vitrine.errors import RunError
from vitrine.inspection.compare_runs import compare
from vitrine.runs.reader import RunReader

Vitrine = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def readers(runs: Path, other: Path) -> list[RunReader]:
    return [RunReader(runs / "small"), RunReader(other)]


def test_what_differs_is_what_was_chosen_differently(studio: Studio, readers: list[RunReader]):
    found = studio.json("compare", run=["small", "other"])
    differs = {row["key"]: row["values"] for row in found["differs"]}
    assert differs["optimizer.name"] == ["adamw", "muon"]
    assert differs["training.steps"] == [160, 40]
    configs = [reader.config.model_dump(mode="json") for reader in readers]
    keys = {f"{section}.{key}" for section, values in configs[0].items() for key in values}
    assert keys - set(differs) >= {"model.n_layers", "data.corpus", "training.seed"}
    for key in keys:
        section, name = key.split(".")
        values = [config[section][name] for config in configs]
        assert (key in differs) == (values[0] != values[1]), key
        assert differs.get(key, values) == values


def test_curves_are_the_recorded_ones_by_step_tokens_and_time(studio: Studio, readers: list[RunReader]):
    found = studio.json("compare", run=["small", "other"], pixels=2000)
    for run, reader in zip(found["runs"], readers, strict=True):
        steps, tokens = reader.steps(), reader.config.tokens_per_step
        before = [0.0, *accumulate(s.duration_s for s in steps)]
        assert run["loss"]["low"] == run["loss"]["high"] == [s.loss for s in steps]
        assert run["loss"]["steps"] == [s.step for s in steps]
        assert run["loss"]["tokens"] == [s.step * tokens for s in steps] == [0, *(s.tokens for s in steps[:-1])]
        assert run["loss"]["seconds"] == pytest.approx(before[:-1])
        measured = reader.sampled_evaluations()
        assert run["validation"]["loss"] == [e.loss for e in measured]
        assert run["validation"]["tokens"] == [e.step * tokens for e in measured]
        assert run["validation"]["seconds"] == pytest.approx([before[e.step] for e in measured])
        assert run["seconds"] == pytest.approx(before[-1])
        assert run["best"] == {"step": reader.best_step(), "loss": min(e.loss for e in measured)}
        assert run["result"] == reader.result()
        assert [run["samples"][0]["step"], run["samples"][-1]["step"]] == [0, reader.samples()[-1].step]


def test_a_short_curve_keeps_the_extremes(studio: Studio, other: Path, readers: list[RunReader]):
    (small, _) = studio.json("compare", run=["small", "other"], pixels=16)["runs"]
    losses = np.array([s.loss for s in readers[0].steps()]).reshape(16, 10)
    assert small["loss"]["low"] == losses.min(1).tolist()
    assert small["loss"]["high"] == losses.max(1).tolist()
    assert small["loss"]["steps"] == list(range(0, 160, 10))


def test_the_command_prints_the_same_and_says_where_losses_do_not_compare(
    vitrine: Vitrine, studio: Studio, runs: Path, other: Path, readers: list[RunReader]
):
    printed = json.loads(vitrine("compare", runs / "small", other, "--json").stdout)
    asked = studio.json("compare", run=["small", "other"])
    for run in (*printed["runs"], *asked["runs"]):
        run.pop("name")
    assert printed == asked
    assert asked["same_tokens"] is False
    text = vitrine("compare", runs / "small", other).stdout
    assert "losses per token do not compare" in text
    (row,) = [line for line in text.splitlines() if line.startswith("optimizer.name")]
    assert row.split() == ["optimizer.name", "adamw", "muon"]
    assert f"{readers[0].result()['bits_per_byte']:.4f}" in text


@pytest.mark.parametrize(("names", "status", "words"), [
    (["small"], 400, "2 to 8 runs can be compared: got 1"),
    (["small"] * 2, 400, "small is named twice"),
    (["small", "smaller"], 404, "no run 'smaller'"),
    (["small", "../small"], 404, "no run '../small'"),
    (["small"] * 101, 422, "run"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(studio: Studio, names: list[str], status: int, words: str):
    answer = studio.get("compare", run=names)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_the_command_refuses_in_one_sentence_and_leaves_with_2(vitrine: Vitrine, runs: Path):
    refused = vitrine("compare", runs / "small", runs / "none")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "none" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_that_has_recorded_nothing_yet_can_stand_beside_one_that_has(
    vitrine: Vitrine, tmp_path: Path, book_file: Path, readers: list[RunReader]
):
    settings = ["--preset", "demo", "--steps", "2", "--set=model.n_layers=1", "--set=model.d_model=16"]
    settings += ["--set=model.n_heads=1", "--set=model.context=16", "--set=recording.enabled=false"]
    vitrine("train", book_file, "--run", "bare", *settings, check=True)
    found = compare([("small", readers[0]), ("bare", RunReader(tmp_path / "bare"))])
    bare = found.to_json()["runs"][1]
    assert bare["loss"]["steps"] == []
    assert bare["seconds"] == 0
    assert set(bare["validation"]["seconds"]) <= {None}
    assert bare["train_loss"] is None
    assert "bare" in render(found)


def test_nine_runs_are_too_many(readers: list[RunReader]):
    with pytest.raises(RunError, match="got 9"):
        compare([(str(number), readers[0]) for number in range(9)])
