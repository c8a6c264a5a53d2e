"""`vitrine report` as a command: what it refuses, what it replaces, which steps and which part of the film it takes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.studio.test_page import PAGE
from vitrine.errors import RunError
from vitrine.runs.film import Film, FilmWriter
from vitrine.runs.reader import RunReader
from vitrine.studio.report.build import Selection, choose_steps
from vitrine.studio.report.bundle import Cut, cut_film, foretold
from vitrine.studio.report.command import read_steps
from vitrine.studio.report.html import Shell

built = pytest.mark.skipif(not PAGE.is_file(), reason="the page is not built (make page): no report can be written")


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


@built
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "99999"], "has made 160 steps: step 99999 cannot be kept"),
        (["--steps", "0,soon"], "--steps takes numbers and birth, best, last"),
        (["--steps", "1,2,3,4,5,6,7,8,9"], "8 steps in full at most: got 9"),
        (["--cell", "head"], "A parameter is named with its place"),
        (["--cell", "blocks.0.mlp.expand.weight[41,99]"], "there is no blocks.0.mlp.expand.weight[41,99]"),
        (["--out", "nowhere/report.html"], "There is no folder"),
        (["--out", "."], "is a folder"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_in_a_sentence(vitrine, runs: Path, options: list[str], sentence: str):
    refused = vitrine("report", runs / "small", *options)
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr


@built
def test_a_file_is_replaced_only_when_it_is_said(vitrine, runs: Path, tmp_path: Path):
    (tmp_path / "small.html").write_text("mine")
    refused = vitrine("report", runs / "small", "--steps", "0")
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    assert (tmp_path / "small.html").read_text() == "mine"
    done = vitrine("report", runs / "small", "--steps", "0", "--force", "--json")
    told = json.loads(done.stdout)
    assert told["size_bytes"] == (tmp_path / "small.html").stat().st_size <= 5_000_000
    assert sum(told["parts"].values()) == told["size_bytes"]
    assert told["warning"]
    assert [path.name for path in tmp_path.iterdir()] == ["small.html"]


def test_without_a_wish_the_steps_are_those_at_hand_at_keyframes(reader: RunReader):
    info = {"steps_made": 160, "keyframes": [0, 40, 90, 150, 160]}
    assert choose_steps(reader, info, Selection()) == [0, 90, 150]
    assert choose_steps(reader, info, Selection(here=7)) == [0, 7, 90, 150]
    assert choose_steps(reader, info, Selection(here=160)) == [0, 90, 150]
    assert choose_steps(reader, {"steps_made": 0, "keyframes": [0]}, Selection()) == []


def test_steps_are_named_by_number_or_by_word(reader: RunReader):
    best = min(reader.best_step(), 159)
    assert read_steps(reader, "birth, 7,best,last") == [0, 7, best, 159]


def test_a_film_is_cut_to_cells_that_it_has_and_unfolds_to_the_same_numbers(
    tmp_path: Path, reader: RunReader, monkeypatch: pytest.MonkeyPatch
):
    shapes, draws = {"a.weight": (70, 50), "b.gain": (33,)}, np.random.default_rng(3)
    writer = FilmWriter(tmp_path / "film", shapes, reader.config.training.seed, 0)
    count = writer.values.count
    for step in range(0, 90, 10):
        learned = np.float32(0.01 * step) * draws.standard_normal(count).astype(np.float32)
        changes = draws.standard_normal(writer.changes.count).astype(np.float32)
        if step == 40:
            learned[3] = np.nan
        writer.write(step, learned, changes, changes)
    monkeypatch.setattr(
        "vitrine.studio.report.bundle.read_birth", lambda _, name: np.zeros(np.prod(shapes[name]), np.float32)
    )
    film = Film(tmp_path / "film")
    short = cut_film(reader, film, Cut(4, 300, 0), last_step=75)
    assert short.steps == [0, 20, 50, 70]
    assert short.values.count <= 300
    assert short.changes.count == 0
    before, scale_before = np.zeros(short.values.count, np.int8), np.ones(short.values.count)
    all_places = np.concatenate(
        [grid.ravel() + (3500 if name == "b.gain" else 0) for name, grid in film.values.indices.items()]
    )
    kept_places = np.concatenate(
        [grid.ravel() + (3500 if name == "b.gain" else 0) for name, grid in short.values.indices.items()]
    )
    at = np.searchsorted(all_places, kept_places) if np.all(np.diff(all_places) > 0) else None
    assert at is not None
    for number, step in enumerate(short.steps):
        scale = np.repeat(short.scales[number][0].astype(np.float64), short.values.sizes)
        rest = np.frombuffer(short.cells[number], np.int8)
        here = (rest + foretold(before, scale_before, scale)).astype(np.int8)
        whole = film.frame(film.steps().tolist().index(step)).learned
        np.testing.assert_array_equal(here * scale.astype(np.float32), whole[at])
        before, scale_before = here, scale


def test_a_script_that_the_page_loads_later_stands_in_the_file_before_its_own(tmp_path: Path):
    (tmp_path / "assets").mkdir()
    scripts = {"index-1.js": "run(()=>import(`./later-2.js`))", "later-2.js": "globalThis.later=1;export{};"}
    for name, script in scripts.items():
        (tmp_path / "assets" / name).write_text(script)
    (tmp_path / "index.html").write_text(
        '<html><head><title>x</title><script type="module" src="./assets/index-1.js"></script></head><body></body></html>'
    )
    text = Shell(tmp_path).page("a run", "a warning", {}).decode()
    assert re.findall('<script type="module">(.*?)</script>', text) == [scripts["later-2.js"], scripts["index-1.js"]]
    for script in scripts.values():
        assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in text
    (tmp_path / "assets" / "later-2.js").write_text('import{a}from"./index-1.js";')
    with pytest.raises(RunError, match="cannot be put into one file"):
        Shell(tmp_path)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(runs: Path, tmp_path: Path):
    closed = tmp_path / "closed"
    closed.mkdir()
    alone = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
    mount = f"mount -t tmpfs -o ro none {closed}"
    if not shutil.which("unshare") or subprocess.run([*alone, mount], check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    report = shlex.join([sys.executable, "-m", "vitrine", "report", str(runs / "small"), "--out", f"{closed}/x.html"])
    done = subprocess.run([*alone, f"{mount} && {report}"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Nothing can be written into {closed}. Give another place with --out.\n"
