"""The promise at the size of the laptop model, for every rule, family and number format. Long: `make test-full`."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrine.inspection.parameter import Address, explain_update
from vitrine.inspection.replay import Replayer
from vitrine.model.inventory import inventory
from vitrine.runs.reader import RunReader
from vitrine.runs.store import COMMIT_EVERY_S
from vitrine.training.device import prefers_bfloat16

pytestmark = pytest.mark.full

STEPS, ENTERED, PAIRS = 500, 50, 20  # pairs of a parameter and a step, for each step that is entered
# Where a processor has no instructions for bfloat16, its products take 50 times as long: fewer steps of the same model.
SLOW_STEPS, SLOW_ENTERED = 12, 4
FAST = {"float32": True, "bfloat16": prefers_bfloat16(torch.device("cpu"))}


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request):
    return request.param


@pytest.mark.parametrize("architecture", ["gpt2", "olmo2", "qwen3"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_fifty_random_steps_are_exact_and_a_thousand_updates_follow_the_rule(
    optimizer, architecture, precision, tmp_path, prose
):
    count, entered = (STEPS, ENTERED) if FAST[precision] else (SLOW_STEPS, SLOW_ENTERED)
    run = _train(tmp_path, prose, optimizer, architecture, precision, count)
    replayer, draws = Replayer(RunReader(run)), np.random.default_rng(11)
    steps = sorted(int(step) for step in draws.choice(count - 1, entered, replace=False))
    plans = inventory(replayer.config.model)
    sizes = np.array([plan.parameters for plan in plans], float)
    checked = 0
    for number in steps:
        opened = replayer.replay(number)
        assert opened.exact, (number, opened.comparisons.differs)
        cells = [
            Address(plans[i], tuple(int(draws.integers(n)) for n in plans[i].shape))
            for i in draws.choice(len(plans), PAIRS, p=sizes / sizes.sum())
        ]
        for cell in cells:
            tensor = opened.tensor(cell.tensor.name)
            before, update = tensor.before[cell.index], float(tensor.update[cell.index])
            total = explain_update(opened, cell).total
            assert abs(total - update) <= np.spacing(np.abs(before)) + 1e-5 * abs(update), (number, cell.text)
        following = replayer.replay(number + 1)
        for cell in cells:
            after = opened.tensor(cell.tensor.name).after[cell.index]
            assert after.tobytes() == following.tensor(cell.tensor.name).before[cell.index].tobytes()
            checked += 1
    assert checked == PAIRS * entered


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_is_resumed_and_re_entered_bit_for_bit(tmp_path, prose):
    (tmp_path / "book.txt").write_text(prose)
    command = ["train", "book.txt", "--preset", "nano", "--steps", "400", "--set", "machine.compile=true"]
    assert _start([*command, "--run", "whole"], tmp_path).wait(300) == 0
    stopped, parted = _start([*command, "--run", "parted"], tmp_path), tmp_path / "parted"
    while not (_begun(parted, 0) and RunReader(parted).steps_made() > 100):
        assert stopped.poll() is None
        time.sleep(0.02)
    stopped.send_signal(signal.SIGKILL)
    stopped.wait(30)
    assert _start(["resume", "parted"], tmp_path).wait(300) == 0
    assert _rows(tmp_path / "whole") == _rows(parted)
    command = [sys.executable, "-m", "vitrine", "replay", "parted", "--step", "277", "--json"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["exact"]


def test_killed_at_twenty_random_moments_nothing_older_than_a_second_is_missing(tmp_path, prose):
    (tmp_path / "book.txt").write_text(prose)
    precision = "bfloat16" if FAST["bfloat16"] else "float32"
    command = ["train", "book.txt", *_settings("muon", "qwen3", precision), "--steps", "2000", "--run", "r"]
    moments, run = random.Random(5), tmp_path / "r"
    seen: dict[int, bytes] = {}
    for attempt in range(20):
        process = _start(command if attempt == 0 else ["resume", "r"], tmp_path)
        while not _begun(run, attempt):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(moments.uniform(0.5, 3.0))
        before_kill = _rows(run)
        time.sleep(2 * COMMIT_EVERY_S - 0.1)  # all that was recorded before has had its time to be committed
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        rows = _rows(run)
        assert before_kill.keys() <= rows.keys()
        for step, row in rows.items():
            assert seen.get(step, row) == row, f"step {step} was made again, and differs"
        seen |= rows
        made = max(rows)
        opened = Replayer(RunReader(run)).replay(moments.randrange(max(0, made - 40), made))
        assert opened.exact, opened.comparisons.differs
    process = _start(["resume", "r"], tmp_path)
    while not (proofs := [event.text for event in RunReader(run).events() if event.kind == "recomputed"]):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait(30)
    assert all("equal to the bit" in text for text in proofs)


def _settings(optimizer: str, architecture: str, precision: str) -> list[str]:
    given = {
        "optimizer.name": optimizer,
        "model.architecture": architecture,
        "training.precision": precision,
        "model.dropout": 0.1,
        "training.accumulation": 2,
        "training.batch_size": 4,
        "data.tokenizer": "char",
        "recording.statistics_every": 1,
    }
    if optimizer == "sgd":
        given["optimizer.momentum"] = 0.9
    return ["--preset", "micro", *(part for key, value in given.items() for part in ("--set", f"{key}={value}"))]


def _train(folder: Path, prose: str, optimizer: str, architecture: str, precision: str, steps: int) -> Path:
    (folder / "book.txt").write_text(prose)
    command = ["train", "book.txt", *_settings(optimizer, architecture, precision), "--steps", str(steps), "--run", "r"]
    done = subprocess.run(
        [sys.executable, "-m", "vitrine", *command, "--json"], cwd=folder, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["parameters"] > 750_000
    return folder / "r"


def _begun(run: Path, attempt: int) -> bool:
    """Whether the training has made a step, or has resumed so many times."""
    if not (run / "run.sqlite").is_file():
        return False
    reader = RunReader(run)
    return reader.steps_made() > 0 and sum(event.kind == "resumed" for event in reader.events()) >= attempt


def _rows(run: Path) -> dict[int, bytes]:
    """Each recorded step, as its numbers without its duration and memory."""
    reader = RunReader(run)
    rows = {}
    for record in reader.steps():
        statistics = reader.statistics_at(record.step)
        assert statistics is not None
        rows[record.step] = repr((record.loss, record.gradient_norm)).encode() + statistics.tobytes()
    return rows


def _start(arguments: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "vitrine", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
