"""A run that an older revision made, on the routes of the page."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import unpack_old_run
from tests.runs.test_old_run import DIGEST, GAIN, LOSS, PARAMETERS, is_excused
from tests.studio.conftest import Studio


@pytest.fixture
def old(runs: Path) -> Iterator[Path]:
    yield unpack_old_run(runs)
    shutil.rmtree(runs / "old")


def test_the_page_opens_it_with_what_was_recorded(studio: Studio, old: Path):
    assert "old" in [run["name"] for run in studio.json("runs")["runs"]]
    run = studio.json("runs/old")
    assert (run["parameters"], run["steps_made"], run["keyframes"]) == (PARAMETERS, 20, [0, 10, 20])
    assert (run["ended"]["val_loss"], run["ended"]["digest"]) == (LOSS, DIGEST)
    assert run["chosen"] is None  # it was not recorded then
    assert studio.json("runs/old/series", name="loss")["steps"] == list(range(20))
    assert studio.json("runs/old/series", name="validation")["low"][-1] == LOSS
    assert studio.json("runs/old/layers", statistic="gradient_norm")["rows"]
    assert studio.json("runs/old/health")["verdicts"]
    assert studio.json("compare", run=["old", "small"])["runs"][0]["result"]["digest"] == DIGEST
    for number in range(6):
        assert studio.get(f"runs/old/film/{number}").status_code == 200


def test_the_page_shows_its_cells_and_goes_into_its_steps(studio: Studio, old: Path):
    kept = load_file(old / "keyframes/step-00000010/model.safetensors")
    name = "blocks.0.mlp.expand.weight"
    assert np.array_equal(studio.cells("old", tensor=name, step=10, mode="value", rows=99, columns=99), kept[name])
    whole = studio.get("runs/old/tiles", step=10, mode="value")
    assert len(whole.content) == 4 * PARAMETERS
    found = studio.json("runs/old/step/12")
    assert found["exact"] or is_excused(found["differs"])
    gradient = studio.get("runs/old/tile", tensor=name, step=12, mode="gradient")
    assert (gradient.status_code, gradient.headers["x-exact"]) == (200, str(found["exact"]).lower())
    assert studio.json("runs/old/parameter", name=GAIN, step=7)["birth"] == 1
    assert studio.post("runs/old/next", prompt="The ", step=20).json()["tokens"]
