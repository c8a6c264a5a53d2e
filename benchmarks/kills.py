"""Kill trainings at random moments, resume them, and compare their digests with an uninterrupted training.

    python -m benchmarks.kills [--kills 200] [--seed N]

Each round starts a training in a separate process, ends it with SIGKILL at a random moment between the creation of its run
folder and its end (steps, keyframes, evaluations, texts, the last evaluation), and runs `vitrine resume` to the end. The
rounds use small settings in turn, which differ in optimizer, family, dropout and cadence of keyframes. Each run of the
script chooses other moments; it prints its seed. Two rounds run at a time, each with one thread. Prints progress on
standard error, and one JSON object on standard output. Exit status 1 if a round ended with another digest.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.corpora import tinyshakespeare

SHAPE = {"model.context": 32, "training.batch_size": 4, "data.tokenizer": "char", "training.evaluate_every": 20}
SETTINGS: list[dict[str, Any]] = [
    {"optimizer.name": "muon", "recording.keyframe_every": 7},
    {"optimizer.name": "adamw", "model.architecture": "gpt2", "model.dropout": 0.1, "recording.keyframe_every": 1},
    {"optimizer.name": "sgd", "model.architecture": "llama", "recording.keyframe_every": 40},
    {
        "optimizer.name": "muon",
        "model.dropout": 0.1,
        "recording.disk_budget": 10_000_000,
        "recording.keyframe_every": 3,
    },
]
STEPS = 120
RESUMED, DIFFERENT = "resumed to the same digest", "different"
CORPUS_CHARACTERS = 200_000


@dataclass
class Training:
    """One of the settings, trained without a kill. duration_s: from the creation of its folder."""

    arguments: list[str]
    duration_s: float
    digest: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    draws = random.Random(given.seed)
    print(f"seed {given.seed}", file=sys.stderr)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["VITRINE_CACHE"] = str(folder / "cache")
        text = tinyshakespeare().read_text(encoding="utf-8")[:CORPUS_CHARACTERS]
        (folder / "text.txt").write_text(text, encoding="utf-8")
        trainings = [undisturbed(folder, number) for number in range(len(SETTINGS))]
        rounds = [(number, draws.random(), trainings[number % len(trainings)]) for number in range(given.kills)]
        with ThreadPoolExecutor(2) as pool:
            counts = Counter(pool.map(lambda arguments: killed(folder, *arguments), rounds))
    print(json.dumps({"seed": given.seed, **counts}))
    sys.exit(DIFFERENT in counts)


def undisturbed(folder: Path, number: int) -> Training:
    """The digest that every round of these settings must have, and the duration of a training once it has a folder."""
    settings = [f"--set={name}={value}" for name, value in {**SHAPE, **SETTINGS[number]}.items()]
    arguments = ["train", "text.txt", "--preset", "nano", "--steps", str(STEPS), *settings, "--json"]
    process = vitrine(folder, [*arguments, "--run", f"whole-{number}"])
    wait_for(folder / f"whole-{number}", process)
    start = time.monotonic()
    out, _ = process.communicate()
    return Training(arguments, time.monotonic() - start, json.loads(out)["digest"])


def killed(folder: Path, number: int, moment: float, training: Training) -> str:
    """One round, killed after this share of its duration; how it ended."""
    run, after_s = f"run-{number}", moment * training.duration_s
    process = vitrine(folder, [*training.arguments, "--run", run])
    wait_for(folder / run, process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    was_killed = process.poll() is None
    process.kill()
    process.communicate()
    again = vitrine(folder, ["resume", run, "--json"])
    out, error = again.communicate()
    if again.returncode or json.loads(out)["digest"] != training.digest:
        ended = DIFFERENT
        print(f"status {again.returncode}: {out}{error}", file=sys.stderr)
    else:
        ended = RESUMED if was_killed else "ended before the kill"
    print(f"round {number}, killed after {after_s:.2f} s: {ended}", file=sys.stderr)
    shutil.rmtree(folder / run)
    return ended


def wait_for(run: Path, process: "subprocess.Popen[str]") -> None:
    while not run.exists() and process.poll() is None:
        time.sleep(0.005)


def vitrine(folder: Path, arguments: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vitrine", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main()
