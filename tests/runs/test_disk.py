"""What recording costs on the disk: the formulas, and that they are true."""

import json
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import vitrine_in
from vitrine.config import Config, validate
from vitrine.model.inventory import inventory
from vitrine.presets import PRESETS, Facts, resolve
from vitrine.runs import disk
from vitrine.runs.reader import RunReader

FACTS = Facts(vocab_size=96, train_tokens=1_000_000)


def config_of(steps: int, preset: str = "micro", **model: object) -> Config:
    settings = {**PRESETS[preset], "model": {**PRESETS[preset]["model"], **model}}
    return resolve({**settings, "training": {**settings["training"], "steps": steps}}, FACTS)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize(("d_model", "batch_size"), [(32, 1), (32, 16), (128, 16), (1024, 16), (128, 512)])
def test_the_recording_of_100_000_steps_of_100_tensors_stays_under_500_mb(architecture, d_model, batch_size):
    layers = {"gpt2": 6, "llama": 11, "qwen3": 9}[architecture]
    model = config_of(1, architecture=architecture, n_layers=layers, d_model=d_model).model
    assert 98 <= len(inventory(model)) <= 105
    settings = {"model": model.model_dump(), "training": {"steps": 100_000, "batch_size": batch_size}}
    sums = disk.recording(resolve(settings, FACTS))
    assert sums.statistics_bytes + sums.histogram_bytes + sums.film_bytes < 500_000_000


def test_statistics_are_taken_more_seldom_when_the_disk_demands_it():
    cadences = [config_of(steps).recording.statistics_every for steps in (10_000, 1_000_000, 10_000_000)]
    assert cadences[0] == 4  # for want of time, not of disk
    assert cadences[0] < cadences[1] < cadences[2]
    for steps, every in zip((1_000_000, 10_000_000), cadences[1:], strict=True):
        assert steps / every * disk.row_bytes(config_of(1)) <= disk.STATISTICS_BYTES


def test_statistics_are_taken_more_seldom_when_a_step_is_short():
    short = {"model": PRESETS["micro"]["model"], "training": {"batch_size": 1, "steps": 500}}
    assert resolve(short, FACTS).recording.statistics_every == 63  # 64 tokens a step, where 4,000 are wanted for a look


@pytest.mark.parametrize(
    ("preset", "given", "cost"),
    [
        ("micro", {}, 0.005),
        ("nano", {}, 0.0),  # the smallest models are for looking at
        ("micro", {"statistics_every": 7}, 0.0),  # what is asked for is obeyed
        ("micro", {"statistics_every": 7, "statistics_cost": 0.1}, 0.1),
    ],
)
def test_what_statistics_may_cost_is_measured_unless_it_was_said_how_often_they_are_taken(preset, given, cost):
    recording = resolve({**PRESETS[preset], "recording": given}, FACTS).recording
    assert recording.statistics_cost == cost
    assert recording.statistics_every == given.get("statistics_every", recording.statistics_every)


def test_a_configuration_from_before_keeps_to_its_cadence():
    settings = config_of(100).model_dump(mode="json")
    del settings["recording"]["statistics_cost"]
    assert validate(settings).recording.statistics_cost == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_step_of_the_laptop_model_is_re_entered_over_a_few_dozen_others_within_the_budget(optimizer):
    settings = {**PRESETS["micro"], "optimizer": {"name": optimizer}}
    config = resolve({**settings, "training": {"batch_size": 16, "steps": 10_000}}, FACTS)
    sums = disk.recording(config)
    assert 800_000 < sum(tensor.parameters for tensor in inventory(config.model)) < 830_000
    assert 12 <= config.recording.keyframe_every <= sums.reentry_steps <= 72
    assert sums.keyframes * sums.keyframe_bytes <= config.recording.disk_budget == 2_000_000_000


def test_a_smaller_disk_budget_leaves_longer_re_entries():
    config = config_of(10_000)
    small = config.recording.model_copy(update={"disk_budget": 100_000_000})
    sums = [disk.recording(config.model_copy(update={"recording": r})) for r in (config.recording, small)]
    assert sums[1].keyframes == 100_000_000 // sums[1].keyframe_bytes
    assert sums[1].reentry_steps > 10 * sums[0].reentry_steps


def test_without_recording_there_is_nothing_but_keyframes():
    config = config_of(1_000)
    off = config.recording.model_copy(update={"enabled": False})
    sums = disk.recording(config.model_copy(update={"recording": off}))
    assert (sums.statistics_bytes, sums.histogram_bytes, sums.film_bytes) == (0, 0, 0)
    assert sums.keyframe_bytes > 0


def test_one_setting_of_recording_leaves_the_others_as_they_are_derived():
    given = {**PRESETS["micro"], "recording": {"disk_budget": 1_900_000_000}}
    free = resolve(PRESETS["micro"], FACTS).recording
    assert resolve(given, FACTS).recording == free.model_copy(update={"disk_budget": 1_900_000_000})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A run of 80 short steps with everything recorded that there is to record."""
    folder = tmp_path_factory.mktemp("budget")
    (folder / "book.txt").write_text(prose)
    settings = ["model.n_layers=2", "model.d_model=64", "model.n_heads=2", "model.context=32", "training.batch_size=2"]
    settings += ["recording.statistics_every=1", "recording.film_frames=10", "recording.histograms=8"]
    settings += ["recording.text_samples=1", "recording.keyframe_every=20", "machine.threads=1", "data.tokenizer=char"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = vitrine_in(folder, "train", "book.txt", *words, "--steps", 80, "--run", "r", "--json", check=True)
    assert json.loads(done.stdout)["steps"] == 80
    return folder / "r"


def test_the_film_is_as_large_as_the_formula_says(run):
    assert (run / "film/frames.bin").stat().st_size == disk.recording(RunReader(run).config).film_bytes


def test_the_folder_is_as_large_at_its_end_as_was_expected(run):
    """To a fifth: histograms are estimated, and what SQLite needs for itself is not counted."""
    reader = RunReader(run)
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert disk.folder_bytes(run) == size
    assert disk.expected_bytes(reader) == pytest.approx(size, rel=0.2)
    planned = json.loads(
        vitrine_in(run.parent, "plan", "book.txt", "--config", run / "config.toml", "--json", check=True).stdout
    )
    assert planned["disk_expected_bytes"] == pytest.approx(size, rel=0.2)


def test_a_row_of_statistics_is_as_large_as_the_formula_says(run):
    with sqlite3.connect(run / "run.sqlite") as history:
        rows, size = history.execute("SELECT count(*), sum(length(numbers)) FROM statistics").fetchone()
    assert (rows, size) == (80, disk.recording(RunReader(run).config).statistics_bytes)


def test_the_history_is_between_half_and_one_and_a_half_of_what_the_formulas_say(run):
    """Histograms are estimated; what SQLite needs for itself is not counted."""
    sums = disk.recording(RunReader(run).config)
    with sqlite3.connect(run / "run.sqlite") as history:
        history.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = (run / "run.sqlite").stat().st_size
    assert 0.5 < size / (sums.statistics_bytes + sums.histogram_bytes) < 1.5


def test_a_keyframe_is_as_large_as_the_formula_says_within_a_few_percent(run):
    """Names, places and a manifest come on top."""
    said = disk.recording(RunReader(run).config).keyframe_bytes
    for keyframe in (run / "keyframes").iterdir():
        assert said < sum(file.stat().st_size for file in keyframe.iterdir()) < 1.05 * said


def test_the_keyframes_are_those_of_the_formula(run):
    steps = {int(keyframe.name[-8:]) for keyframe in (run / "keyframes").iterdir()}
    assert steps == {0, 20, 40, 60, 80, RunReader(run).best_step()}
    assert len(steps) <= disk.recording(RunReader(run).config).keyframes == 6
