"""A run that the page starts, pauses, resumes and stops is the run that nobody touched, to the bit."""

import fcntl
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.studio.conftest import Studio, serve, until
from vitrine.config import SECTIONS
from vitrine.errors import RunError
from vitrine.presets import PRESETS
from vitrine.runs.control import Mailbox, acknowledged, ask
from vitrine.runs.reader import CONFIG, LOCK, RunReader
from vitrine.studio.catalog import Listing
from vitrine.studio.responses import RefusalError
from vitrine.studio.routes.launch import check_trainings

SETTINGS = {
    "model.n_layers": 2, "model.d_model": "24", "model.n_heads": 2, "model.context": 32, "training.batch_size": 4,
    "training.evaluate_every": 100, "optimizer.betas": "[0.9, 0.99]",
}  # fmt: skip


def test_a_run_that_was_paused_and_stopped_from_the_page_has_the_bits_of_one_that_was_not(
    vitrine: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, book_file: Path
):
    text = book_file.read_text(encoding="utf-8")
    with serve(tmp_path / "runs") as studio:
        body = {"text": text, "preset": "demo", "settings": SETTINGS, "steps": 200}
        for name in ("untouched", "touched"):
            assert studio.post("runs", name=name, **body).json() == {"name": name, "started": True}
            if name == "untouched":
                until(lambda: not studio.json("runs/untouched")["training"])
        wish = "runs/touched/requests"
        until(lambda: studio.json("runs/touched")["steps_made"] > 0)  # it looks into its mailbox now
        paused = studio.post(wish, action="pause").json()
        assert paused["acknowledged"]
        assert studio.json("runs/touched")["paused"]
        made = studio.json("runs/touched")["steps_made"]
        assert made == paused["step"] < 200
        assert studio.post(wish, action="snapshot").json() == {"acknowledged": True, "step": made}
        assert made in studio.json("runs/touched")["keyframes"]
        time.sleep(0.5)
        assert studio.json("runs/touched")["steps_made"] == made
        assert studio.post(wish, action="resume").json() == {"acknowledged": True, "step": made}
        until(lambda: studio.json("runs/touched")["steps_made"] > made)
        assert studio.post(wish, action="stop").json()["acknowledged"]
        until(lambda: not studio.json("runs/touched")["training"])
        kinds = [event["kind"] for event in studio.json("runs/touched")["events"]]
        assert kinds == ["born", "paused", "snapshot", "continued", "interrupted"]
        refused = studio.post(wish, action="pause")
        assert refused.status_code == 409
        assert "not being trained" in refused.json()["error"]
    result = json.loads(vitrine("resume", "runs/touched", "--json").stdout)
    untouched = RunReader(tmp_path / "runs/untouched")
    assert result["digest"] == untouched.result()["digest"]
    assert [s.loss for s in RunReader(tmp_path / "runs/touched").steps()] == [s.loss for s in untouched.steps()]
    assert untouched.config.optimizer.betas == (0.9, 0.99)


def test_no_more_than_four_trainings_are_started_at_once(tmp_path: Path):
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).touch()
    listing = Listing([tmp_path])
    with ExitStack() as held:
        for name in "abcd":
            check_trainings(listing, [])
            lock = held.enter_context(open(tmp_path / name / LOCK, "w", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            RefusalError, match=r"At most 4 runs train at once, and these are training: a, b, c, d\. Wait for one"
        ):
            check_trainings(listing, [])
    check_trainings(listing, [])


def test_a_run_goes_on_from_a_keyframe_with_other_hyperparameters(studio: Studio, runs: Path):
    body = {"name": "second", "parent": {"run": "small", "step": 150}, "steps": 10}
    answer = studio.post("runs", **body, settings={"optimizer.learning_rate": 0.001})
    assert answer.json() == {"name": "second", "started": True}
    second = RunReader(runs / "second")
    until(second.result)
    assert second.config.training.parent == f"{runs / 'small'}@150"
    assert second.config.optimizer.learning_rate == 0.001
    assert second.steps_made() == second.result()["steps"] == 10
    for tensor in ("embedding.weight", "blocks.1.mlp.expand.weight"):
        theirs = studio.cells("small", tensor=tensor, step=150, mode="value")
        assert np.array_equal(studio.cells("second", tensor=tensor, step=0, mode="birth"), theirs)
        assert not np.array_equal(studio.cells("second", tensor=tensor, step=10, mode="value"), theirs)
    entered = studio.get("runs/second/tile", tensor="final_norm.gain", step=7, mode="gradient")
    assert entered.headers["x-exact"] == "true"


@pytest.mark.parametrize(("changed", "status", "words"), [
    ({"parent": {"run": "small", "step": 7}}, 404, "no keyframe of step 7"),
    ({"parent": {"run": "smaller", "step": 150}}, 404, "no run 'smaller'"),
    ({"parent": {"run": "../small", "step": 150}}, 404, "no run '../small'"),
    ({"settings": {"model.d_model": 48}}, 400, "do not fit this model"),
    ({"settings": {"model.n_layers": 3}}, 400, "do not fit this model"),
    ({"settings": {"optimizer.learning_rate": -1}}, 400, "optimizer.learning_rate must be"),
    ({"settings": {"data.tokenizer": "byte"}}, 400, "tokenizer"),
    ({"name": "small"}, 409, "already"),
])  # fmt: skip
def test_what_cannot_go_on_from_a_keyframe_is_refused_and_leaves_nothing(
    studio: Studio, runs: Path, changed: dict, status: int, words: str
):
    body = {"name": "third", "parent": {"run": "small", "step": 150}, "steps": 10} | changed
    answer = studio.post("runs", **body)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    assert not (runs / "third").exists()


@pytest.mark.parametrize(("body", "status", "words"), [
    ({"name": "small", "text": "abc"}, 409, "already"),
    ({"name": "../up", "text": "abc"}, 400, "letters, digits"),
    ({"name": ".hidden", "text": "abc"}, 400, "letters, digits"),
    ({"name": "a/b", "text": "abc"}, 400, "letters, digits"),
    ({"name": "-rf", "text": "abc"}, 400, "letters, digits"),
    ({"name": "new"}, 400, "no text"),
    ({"name": "new", "corpus": "/etc/passwd"}, 404, "no run"),
    ({"name": "new", "text": "abc", "preset": "giant"}, 400, "no preset"),
    ({"name": "new", "text": "abc", "for": "soon"}, 400, "90s, 10m or 2h"),
    ({"name": "new", "text": "abc", "settings": {"data.corpus": ["/etc/passwd"]}}, 400, "cannot be set here"),
    ({"name": "new", "text": "abc", "settings": {"training.parent": "x@1"}}, 400, "cannot be set here"),
    ({"name": "new", "text": "abc", "settings": {"data.tokenizer": "/etc/passwd"}}, 400, "auto, char, byte"),
    ({"name": "new", "text": "abc", "settings": {"data.validation": ["/etc/passwd"]}}, 400, "fraction"),
    ({"name": "new", "text": "abc", "settings": {"model.layers": 3}}, 400, "Did you mean"),
    ({"name": "new", "text": "abc \ud800"}, 422, "text"),
    ({"name": "new", "text": "far too short", "preset": "nano"}, 400, "training tokens"),
])  # fmt: skip
def test_a_run_that_cannot_be_is_refused_in_a_sentence(studio: Studio, runs: Path, body: dict, status: int, words: str):
    answer = studio.client.post("/api/runs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert not (runs / "new").exists()
    assert studio.json("starting") == {"starting": []}


def test_a_plan_is_what_the_command_prints_and_is_made_of_a_known_text(studio: Studio):
    plan = studio.post("plan", corpus="small", preset="nano", settings={"model.n_layers": "3"}, steps=50).json()
    assert plan["config"]["model"]["n_layers"] == 3
    assert plan["config"]["training"]["steps"] == 50
    assert plan["duration_s"] == pytest.approx(50 * plan["step_s"])
    assert plan["parameters"] == sum(tensor["parameters"] for tensor in plan["tensors"])
    wrong = studio.post("plan", corpus="small", settings={"model.d_model": 30, "model.n_heads": 4})
    assert wrong.status_code == 400
    assert "model.d_model must be divisible by model.n_heads" in wrong.json()["error"]


def test_every_hyperparameter_that_can_be_chosen_is_explained(studio: Studio):
    found = studio.json("hyperparameters")
    config = studio.json("runs/small")["config"]
    assert set(found["descriptions"]) == {f"{section}.{key}" for section, keys in config.items() for key in keys}
    assert found["descriptions"]["training.parent"].startswith("RUN@STEP")
    rows = {f"{row['section']}.{row['key']}": row for row in found["hyperparameters"]}
    known = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    assert set(rows) == known - {"data.corpus", "training.parent"}
    assert all(row["description"] for row in rows.values())
    assert rows["optimizer.name"]["choices"] == ["adamw", "lion", "muon", "sgd"]
    kinds = {name: rows[name]["kind"] for name in ("model.n_layers", "model.dropout", "model.bias", "optimizer.betas")}
    assert kinds == {"model.n_layers": "int", "model.dropout": "float", "model.bias": "bool", "optimizer.betas": "text"}
    assert (rows["model.dropout"]["least"], rows["model.dropout"]["most"]) == (0, 1 - 2**-16)
    assert rows["optimizer.momentum"]["below"] == 1
    assert found["presets"] == json.loads(json.dumps(PRESETS))


def test_the_mailbox_hands_over_each_request_once_in_order_and_says_when_it_was_done(tmp_path: Path):
    ask(tmp_path, "stop")
    box = Mailbox(tmp_path)
    assert box.commands() == []  # what was asked for before the training began is gone
    box.looked_s = 0
    numbers = [ask(tmp_path, action) for action in ("pause", "snapshot", "resume")]
    commands = box.commands()
    assert [command.action for command in commands] == ["pause", "snapshot", "resume"]
    assert box.commands() == []  # it looks ten times a second at most
    assert acknowledged(tmp_path, numbers[0]) is None
    for command in commands:
        box.done(command, 42)
    assert [acknowledged(tmp_path, number) for number in numbers] == [42, 42, 42]
    box.looked_s = 0
    assert box.commands() == []


def test_what_lies_in_the_mailbox_and_is_no_request_is_taken_away(tmp_path: Path):
    box = Mailbox(tmp_path)
    with pytest.raises(RunError, match="cannot be asked to 'dance'"):
        ask(tmp_path, "dance")
    box.folder.mkdir(exist_ok=True)
    for name, content in (("a", "{"), ("b", '{"action": "rm -rf"}'), ("c", "[]"), ("d", '{"action": ["stop"]}')):
        (box.folder / f"{name}.json").write_text(content)
    assert box.commands() == []
    assert list(box.folder.iterdir()) == []
