"""The curves in TensorBoard, Weights & Biases and Trackio: the same numbers, and the same bits of training."""

import importlib.machinery
import importlib.util
import inspect
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vitrine import api
from vitrine.errors import ConfigError
from vitrine.recording import loggers
from vitrine.recording.loggers import Feed, Loggers, has_wandb_key, with_loggers
from vitrine.recording.reporter import Reporter
from vitrine.run import Run
from vitrine.training.resume import resume

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

STEPS = 14
SETTINGS = {
    "model.n_layers": 1,
    "model.d_model": 16,
    "model.n_heads": 2,
    "model.context": 16,
    "training.batch_size": 2,
    "training.evaluate_every": 5,
    "training.evaluation_tokens": 256,
    "recording.text_samples": 2,
    "data.tokenizer": "char",
}


class Noted(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def train(book: Path, path: Path, names: list[str] | str, reporter: Reporter | None = None) -> Run:
    return api.train(book, run=path, steps=STEPS, settings=SETTINGS | {"recording.mirror": names}, reporter=reporter)


def digest(run: Run) -> str:
    return str(run.result()["digest"])


@pytest.fixture
def plain(book: Path, tmp_path: Path) -> Run:
    return train(book, tmp_path / "plain", [])


def test_each_logger_has_the_curves_of_the_history_and_the_training_has_the_same_bits(
    book: Path, plain: Run, tmp_path: Path
) -> None:
    said = Noted()
    run = train(book, tmp_path / "run", ["tensorboard", "wandb", "trackio"], said)
    assert digest(run) == digest(plain)
    assert [note for note in said.notes if note.startswith("The mirror")] == []
    losses, written = [record.loss for record in run.steps()], [sample.text for sample in run.samples()]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    there = EventAccumulator(str(run.path / "tensorboard"))
    there.Reload()
    assert [(event.step, event.value) for event in there.Scalars("train/loss")] == list(enumerate(losses))
    for curve, field in (("train/gradient_norm", "gradient_norm"), ("train/learning_rate", "learning_rate")):
        values = [getattr(record, field) for record in run.steps()]
        assert [event.value for event in there.Scalars(curve)] == pytest.approx(values, rel=1e-6)  # float32 there
    assert len(there.Scalars("train/tokens_per_s")) == STEPS
    parts = [(record.step, record.loss) for record in run.evaluations() if not record.whole]
    assert [(event.step, event.value) for event in there.Scalars("validation/loss")] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in parts
    ]
    whole = [(event.step, event.value) for event in there.Scalars("validation/loss_of_all")]
    assert whole == [(STEPS, pytest.approx(run.result()["val_loss"], rel=1e-6))]
    texts = [event.tensor_proto.string_val[0].decode() for event in there.Tensors("sample")]
    assert [text.replace("\n    ", "\n").removeprefix("    ") for text in texts] == [
        "\n".join(t.splitlines()) for t in written
    ]

    with sqlite3.connect(tmp_path / "trackio/vitrine.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = 'run' ORDER BY id").fetchall()
    found = [(step, json.loads(row)["train/loss"]) for step, row in rows if "train/loss" in json.loads(row)]
    assert found == list(enumerate(losses))

    kept = b"".join(file.read_bytes() for file in (run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert kept.count(b"train/gradient_norm") >= STEPS
    assert all(str(loss).encode() in kept for loss in losses)
    assert f"wandb has no API key, so this run stays on this machine. To send it: wandb sync {run.path}" in "".join(
        said.notes
    )
    for file in run.path.rglob("*"):
        if file.is_file() and {"wandb", "tensorboard"} & set(file.parts) and file.suffix != ".txt":
            assert str(book).encode() not in file.read_bytes()  # where the text lies is nobody's business


FAULTS = {
    "raises": (
        "raise RuntimeError('the disk of the mirror is full')",
        "its process ended with status 1; it said at last: RuntimeError: the disk of the mirror is full",
    ),
    "ends the process": ("os._exit(3)", "its process ended with status 3; it said at last: hello"),
    "hangs": ("time.sleep(100)", "it did not come to its end in time"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_logger_that_fails_is_left_out_and_the_training_goes_on_to_the_same_bits(
    fault: str, book: Path, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name that breaks at the fifth step."""
    what, why = FAULTS[fault]
    (tmp_path / "fake/trackio").mkdir(parents=True)
    (tmp_path / "fake/trackio/__init__.py").write_text(
        f"import os, time\nMarkdown = str\ndef init(**k): print('hello')\ndef finish(): pass\n"
        f"def log(metrics, step):\n    if step >= 5: {what}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fake"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(loggers, "ENDS_S", 20.0 if fault != "hangs" else 1.0)
    said = Noted()
    run = train(book, tmp_path / "run", "trackio", said)
    assert digest(run) == digest(plain)
    assert f"The mirror trackio has failed, and is left out ({why}). The training does not need it." in said.notes
    assert run.result()["stopped"] == "steps"


def test_a_logger_that_does_not_read_misses_points_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "POINTS", 50)
    feed = Feed("slow", [sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), {"about": 1})
    began_s = time.monotonic()
    for step in range(20_000):
        feed.send({"step": step, "numbers": {"train/loss": 1.0}})
    assert time.monotonic() - began_s < 5  # the pipe holds about a thousand, the queue fifty
    assert feed.missed > 10_000
    feed.end()
    assert f"The mirror slow was too slow for {feed.missed:,} points" in feed.message()
    feed.wait(time.monotonic() + 0.3)
    feed.thread.join(10)
    assert feed.process is not None
    assert feed.process.returncode is not None


def test_a_logger_without_its_package_is_refused_before_there_is_a_run(
    book: Path, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = importlib.machinery.ModuleSpec("wandb", None)  # what a folder «wandb» in the way amounts to
    for spec in (None, nothing):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(ConfigError, match=r"wandb needs the package wandb.*pip install 'vitrine\[wandb\]'"):
            train(book, tmp_path / "run", ["wandb"])
        assert not (tmp_path / "run").exists()
    text = (plain.path / "config.toml").read_text().replace("mirror = []", 'mirror = ["wandb"]')
    (plain.path / "config.toml").write_text(text)
    with sqlite3.connect(plain.path / "run.sqlite") as database:
        database.execute("DELETE FROM facts WHERE name = 'result'")
    with pytest.raises(ConfigError, match="wandb needs the package wandb"):
        resume(plain.path)


def test_an_unknown_logger_is_refused_with_the_known_ones(vitrine: Any, book: Path) -> None:
    done = vitrine("train", book, "--run", "run", "--set", "recording.mirror=mlflow")
    assert done.returncode == 2
    assert done.stderr == "recording.mirror must be 'tensorboard', 'wandb' or 'trackio': got 'mlflow'.\n"


def test_the_other_reporter_is_told_everything() -> None:
    told = [name for name, member in vars(Reporter).items() if inspect.isfunction(member) and not name.startswith("_")]
    assert told
    assert all(name in vars(Loggers) for name in told)


def test_without_names_there_is_no_logger() -> None:
    reporter = Reporter()
    with with_loggers(reporter, []) as same:
        assert same is reporter


def test_wandb_is_online_for_who_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_wandb_key()
