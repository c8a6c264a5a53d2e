"""A validation loss that is not a number: SQLite keeps it as NULL, and everything that reads the run bears it."""

import json
import math
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from vitrine.notebook import html
from vitrine.runs.reader import HISTORY, RunReader
from vitrine.runs.records import EvaluationRecord, SampleRecord, StepRecord
from vitrine.runs.store import Store
from vitrine.studio.app import make_app


@pytest.fixture
def odd(copy: Path) -> Path:
    """A run whose evaluation at step 10 is not a number, and whose end was forgotten."""
    with Store(copy / HISTORY) as store:
        store.write(EvaluationRecord(10, math.nan, 512, False, 0.1))
        store.connection.execute("DELETE FROM facts WHERE name = 'result'")
    return copy


@pytest.mark.parametrize(
    "record",
    [
        StepRecord(3, math.nan, math.inf, -math.inf, 4, math.nan, 6),
        EvaluationRecord(3, math.nan, 512, True, 0.1),
        SampleRecord(3, "", "text", math.nan, 1),
    ],
)
def test_what_is_not_a_number_is_read_as_it_was_written(record, copy):
    with Store(copy / HISTORY) as store:
        for table in ("steps", "evaluations", "samples"):
            store.connection.execute(f"DELETE FROM {table}")
        store.write(record)
    ((_, found),) = RunReader(copy).written_after(type(record), 0)
    assert repr(found) == repr(record)  # NaN equals nothing


def test_a_number_that_is_missing_is_none_at_all(copy):
    with Store(copy / HISTORY) as store:
        store.connection.execute("UPDATE steps SET memory_bytes = NULL, duration_s = NULL WHERE step = 3")
    record = RunReader(copy).step_record(3)
    assert (record.memory_bytes, repr(record.duration_s)) == (0, "nan")


def test_the_best_step_is_one_whose_loss_is_a_number(odd):
    assert RunReader(odd).best_step() == 20


def test_no_step_is_best_where_every_loss_is_not_a_number(odd, command):
    with Store(odd / HISTORY) as store:
        store.connection.execute("UPDATE evaluations SET loss = NULL")
    assert RunReader(odd).best_step() is None
    assert command("health", odd).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["health", "{run}", "--json"],
        ["compare", "{run}", "{other}", "--json"],
        ["generate", "{run}", "--step", "best", "--max-new-tokens", "3", "--json"],
        ["export", "{run}", "{folder}/exported", "--json"],
        pytest.param(
            ["report", "{run}", "--out", "{folder}/report.html", "--steps", "best", "--json"], marks=pytest.mark.full
        ),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_reads_the_run_and_its_json_has_null(arguments, odd, small, tmp_path, command):
    done = command(*(text.format(run=odd, other=small, folder=tmp_path) for text in arguments))
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if arguments[0] == "compare":
        assert said["runs"][0]["validation"]["loss"][0] is None
        assert said["runs"][0]["best"]["step"] == 20


def test_resumed_it_ends_as_it_would_have(odd, small, command):
    done = command("resume", odd, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == RunReader(small).result()["digest"]


def test_in_a_notebook_its_best_loss_is_a_number(odd):
    assert "best validation loss" in html(RunReader(odd))


def test_the_studio_answers_and_has_null(odd):
    app = make_app([odd], "token", 1)
    with TestClient(app, "http://127.0.0.1:1", headers={"Authorization": "Bearer token"}) as client:
        info = client.get("/api/runs/run")
        curve = client.get("/api/runs/run/series", params={"name": "validation"})
        listed = client.get("/api/runs")
        with client.stream("GET", "/api/runs/run/stream") as stream:
            event = json.loads(next(line for line in stream.iter_lines() if line.startswith("data: "))[6:])
    assert [answer.status_code for answer in (info, curve, listed)] == [200, 200, 200]
    assert [e["loss"] is None for e in info.json()["evaluations"]] == [True, False, False]
    assert info.json()["best_step"] == 20
    assert curve.json()["low"][0] is None
    assert [e["loss"] is None for e in event["evaluations"]] == [False, False, True]
