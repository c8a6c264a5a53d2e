"""Check in under three minutes whether anything became slow, by ratios that hold on any machine: `make bench-quick`.

    python -m benchmarks.quick

Every measurement takes turns with a plain trainer (benchmarks/reference.py), so that a slow phase of the machine affects
both:

- a training step of the same shape (4 layers, width 128, batches of 12 x 64): our tokens per second divided by the
  reference's;
- the same with recording, divided by ours without;
- the time of the whole command `vitrine train --preset sprint`, imports included, divided by that of the reference's 2,000
  steps (estimated from some of them).

Prints a table on standard error, and one JSON object on standard output. There is no pass or fail.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import reference
from benchmarks.corpora import tinyshakespeare
from benchmarks.recording import Contestant
from vitrine.training.device import physical_cores
from vitrine.training.request import Request, prepare

ROUNDS, STEPS, SPRINTS = 12, 10, 3
SETTINGS = {
    "model": {"n_layers": 4, "d_model": 128, "n_heads": 4, "context": reference.CONTEXT},
    "data": {"tokenizer": "char"},
    "training": {"batch_size": reference.BATCH},
}


def main() -> None:
    torch.set_num_threads(physical_cores())
    text = tinyshakespeare()
    plain = Plain(text)
    request = Request((str(text),), settings=SETTINGS, steps=ROUNDS * STEPS)
    with tempfile.TemporaryDirectory() as folder:
        ours, recorded = (Contestant(name, prepare(request), Path(folder)) for name in ("plain", "recorded"))
        rounds = [[seconds(turn) for turn in (plain.turn, ours.turn, recorded.turn)] for _ in range(ROUNDS)][1:]
    sprints = []
    for _ in range(SPRINTS):
        whole = reference.STEPS / STEPS * seconds(plain.turn)
        sprints.append(whole / sprint(text))
    ratios = {
        "step, against the reference": statistics.median(theirs / mine for theirs, mine, _ in rounds),
        "step, with everything recorded": statistics.median(mine / watched for _, mine, watched in rounds),
        "sprint to 1.88, against the reference": statistics.median(sprints),
    }
    for name, ratio in ratios.items():
        print(f"{name:<40}{ratio:6.2f} times as fast", file=sys.stderr)
    print(json.dumps(ratios))


class Plain:
    """The reference, a few steps at a time."""

    def __init__(self, text: Path) -> None:
        self.training, self.made = reference.Training(text.read_text(encoding="utf-8")), 0

    def turn(self, steps: int) -> None:
        for _ in range(steps):
            self.training.step(self.made)
            self.made += 1


def seconds(turn: Callable[[int], None]) -> float:
    start = time.perf_counter()
    turn(STEPS)
    return time.perf_counter() - start


def sprint(text: Path) -> float:
    """Seconds of the whole command."""
    command = [sys.executable, "-m", "vitrine", "train", str(text), "--preset", "sprint", "--target-loss", "1.88"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
