"""The promise: the same command, the same bits; killed and resumed, the same bits too. With real processes."""

import io
import itertools
import json
import pickle
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from tests.training.test_distributed import start_two
from tests.warm import Vitrine
from vitrine.runs.reader import RunReader

STEPS = 120
DROPOUT = ["--set", "model.dropout=0.1", "--set", "training.accumulation=2"]


def test_the_same_command_gives_the_same_digest(vitrine, book):
    results = [json.loads(vitrine("train", book, *TINY, *DROPOUT, "--steps", 20, "--json").stdout) for _ in range(2)]
    assert results[0]["digest"] == results[1]["digest"]
    assert results[0]["run"] != results[1]["run"]


def test_another_seed_gives_another_digest(vitrine, book):
    digests = {
        json.loads(vitrine("train", book, *TINY, "--steps", 5, "--set", f"training.seed={seed}", "--json").stdout)[
            "digest"
        ]
        for seed in (1, 2)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    "settings",
    [
        ["--set", "optimizer.name=muon", *DROPOUT],
        pytest.param(
            [
                "--set",
                "optimizer.name=adamw",
                "--set",
                "model.architecture=gpt2",
                "--set",
                "training.precision=float32",
            ],
            marks=pytest.mark.full,
        ),
    ],
    ids=["muon-dropout-accumulation", "adamw-gpt2-float32"],
)
def test_killed_at_three_random_moments_and_resumed_it_ends_with_the_same_digest(settings, vitrine, book, tmp_path):
    whole = vitrine("train", book, *TINY, *settings, "--steps", STEPS, "--json")
    expected = json.loads(whole.stdout)["digest"]
    moments = random.Random(7)
    _kill_when(["train", str(book), *TINY, *settings, "--steps", str(STEPS), "--run", "r"], tmp_path, moments)
    for _ in range(2):
        _kill_when(["resume", "r"], tmp_path, moments)
    done = vitrine("resume", "r", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["digest"], result["steps"]) == (expected, STEPS)
    with sqlite3.connect(tmp_path / "r/run.sqlite") as history:
        steps = [step for (step,) in history.execute("SELECT step FROM steps ORDER BY step")]
        proofs = [text for (text,) in history.execute("SELECT text FROM events WHERE kind = 'recomputed'")]
    assert steps == list(range(STEPS))
    assert all(re.fullmatch(r"\d+ steps made again: equal to the bit", text) for text in proofs)


def test_interrupted_and_resumed_it_ends_with_the_same_digest(vitrine, book, tmp_path):
    expected = json.loads(vitrine("train", book, *TINY, "--steps", STEPS, "--json").stdout)["digest"]
    _kill_when(
        ["train", str(book), *TINY, "--steps", str(STEPS), "--run", "r"], tmp_path, random.Random(3), signal.SIGTERM
    )
    assert json.loads(vitrine("resume", "r", "--json").stdout)["digest"] == expected


def test_recording_changes_no_bit(vitrine, book):
    digests = {
        json.loads(vitrine("train", book, *TINY, "--steps", 10, "--set", f"recording.enabled={on}", "--json").stdout)[
            "digest"
        ]
        for on in ("true", "false")
    }
    assert len(digests) == 1


def test_evaluating_more_often_changes_no_bit(vitrine, book):
    digests = {
        json.loads(
            vitrine("train", book, *TINY, "--steps", 10, "--set", f"training.evaluate_every={n}", "--json").stdout
        )["digest"]
        for n in (1, 10)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "no manifest"])
def test_a_damaged_newest_keyframe_is_named_and_the_one_before_is_used(damage, vitrine, trained, tmp_path):
    run, expected = trained
    shutil.copytree(run, tmp_path / "r")
    _forget_the_end(tmp_path / "r")
    newest = sorted((tmp_path / "r/keyframes").iterdir())[-1]
    file = newest / ("manifest.json" if damage == "no manifest" else "model.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "no manifest":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes({"truncated": content[:-7], "one bit": content, "empty": b""}[damage])
    done = vitrine("resume", "r", "--json")
    assert done.returncode == 0, done.stderr
    assert f"r/keyframes/{newest.name}/{file.name}" in done.stderr
    assert "Using the one before." in done.stderr
    assert json.loads(done.stdout)["digest"] == expected


def test_a_changed_row_of_history_is_noticed_when_the_step_is_made_again(vitrine, trained, tmp_path):
    run, expected = trained
    shutil.copytree(run, tmp_path / "r")
    _forget_the_end(tmp_path / "r")
    for keyframe in sorted((tmp_path / "r/keyframes").iterdir())[-2:]:
        shutil.rmtree(keyframe)
    with sqlite3.connect(tmp_path / "r/run.sqlite") as history:
        history.execute("UPDATE steps SET loss = loss + 1e-7 WHERE step = 18")
    done = vitrine("resume", "r", "--json")
    assert "1 of 10 steps made again differ from before" in done.stderr
    assert json.loads(done.stdout)["digest"] == expected


def test_no_half_written_keyframe_is_ever_seen(book, tmp_path):
    command = ["train", str(book), *TINY, "--steps", "100000", "--run", "r", "--set", "recording.keyframe_every=1"]
    process = _start(command, tmp_path)
    keyframes = tmp_path / "r/keyframes"
    _wait_for(lambda: keyframes.is_dir() and len(list(keyframes.glob("step-*"))) > 5, process)
    process.kill()
    process.wait()
    from vitrine.training.checkpoint import keyframe_steps, load_keyframe

    steps = keyframe_steps(keyframes)
    assert [load_keyframe(keyframes / f"step-{step:08d}").step for step in steps] == steps


class Harmful:
    """What it does when it is read as a pickle: it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_file_of_a_run_is_read_or_written_as_a_pickle(vitrine, trained, tmp_path):
    run, _ = trained
    for file in (file for file in run.rglob("*") if file.is_file()):
        content = file.read_bytes()
        assert not content.startswith(b"\x80"), file  # a pickle since protocol 2
        assert b"/data.pkl" not in content, file  # what torch.save writes
    mark, saved, array = tmp_path / "read", io.BytesIO(), io.BytesIO()
    torch.save(Harmful(mark), saved)
    np.save(array, np.array([Harmful(mark)]), allow_pickle=True)
    harmful = itertools.cycle([pickle.dumps(Harmful(mark)), saved.getvalue(), array.getvalue()])
    pickle.loads(next(harmful))
    assert mark.exists()
    mark.unlink()
    newest = "keyframes/step-00000020/"
    for name in (
        *("config.toml", "run.sqlite", "tokenizer.json", "tokens/manifest.json", "tokens/train-0.bin"),
        *(newest + "manifest.json", newest + "model.safetensors", newest + "optimizer.safetensors"),
        *("film/manifest.json", "film/frames.bin"),
    ):
        copy = Path(shutil.copytree(run, tmp_path / "r"))
        _forget_the_end(copy)
        assert (copy / name).is_file(), name
        (copy / name).write_bytes(next(harmful))
        for command in (["generate", "r", "--max-new-tokens", 1], ["resume", "r", "--json"]):
            assert "Traceback" not in vitrine(*command).stderr
            assert not mark.exists(), (name, command)
        shutil.rmtree(copy)


def test_two_processes_give_the_losses_of_one_within_1e_4(vitrine, book, tmp_path):
    settings = [
        *TINY,
        "--set",
        "training.precision=float32",
        "--set",
        "model.dropout=0.1",
        "--set",
        "training.accumulation=2",
        "--set",
        "optimizer.name=adamw",
        "--set",
        "machine.threads=1",
    ]
    assert vitrine("train", book, *settings, "--steps", 50, "--run", "one").returncode == 0
    first, second = start_two(
        ["-m", "vitrine", "train", book, *settings, "--steps", 50, "--run-dir", "two", "--json"],
        tmp_path,
        stdout=subprocess.PIPE,
    )
    printed, complaints = first.communicate(timeout=240)
    assert first.returncode == 0, complaints
    assert second.communicate(timeout=30)[0] == ""  # rank 0 alone prints
    assert second.returncode == 0
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(one) == len(two) == 50
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-4
    assert json.loads(printed)["steps"] == 50


@pytest.fixture(scope="module")
def trained(small: Path) -> tuple[Path, str]:
    """The small run, and its digest."""
    return small, RunReader(small).result()["digest"]


def _forget_the_end(run: Path) -> None:
    """As if the run had been killed just before it ended."""
    with sqlite3.connect(run / "run.sqlite") as history:
        history.execute("DELETE FROM facts WHERE name = 'result'")


def _losses(run: Path) -> list[float]:
    with sqlite3.connect(run / "run.sqlite") as history:
        return [loss for (loss,) in history.execute("SELECT loss FROM steps ORDER BY step")]


def _start(arguments: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    return Vitrine(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill_when(
    arguments: list[str], folder: Path, moments: random.Random, number: signal.Signals = signal.SIGKILL
) -> None:
    """Start the command, and kill it at a random moment of its training (it must not have ended by then)."""
    process = _start(arguments, folder)
    events = _count_resumed(folder / "r")
    _wait_for(
        lambda: _count_resumed(folder / "r") > events or (arguments[0] == "train" and _steps(folder / "r") > 0), process
    )
    time.sleep(moments.uniform(0.0, 0.3))
    process.send_signal(number)
    process.wait(60)


def _steps(run: Path) -> int:
    return _count(run, "SELECT count(*) FROM steps")


def _count_resumed(run: Path) -> int:
    return _count(run, "SELECT count(*) FROM events WHERE kind = 'resumed'")


def _count(run: Path, query: str) -> int:
    if not (run / "run.sqlite").is_file():
        return 0
    with sqlite3.connect(f"file:{run}/run.sqlite?mode=ro", uri=True) as history:
        return int(history.execute(query).fetchone()[0])


def _wait_for(condition, process: "subprocess.Popen[bytes]", timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the command ended before its time"
        assert time.monotonic() < deadline
        time.sleep(0.01)
