"""Seconds of the whole command until 1.88 nats a character on tinyshakespeare, default recording on.

    python -m benchmarks.time_to_loss [--runs 3] [--yardstick]

`--yardstick` also runs nanoGPT's published laptop recipe to its end (minutes), in turn with ours. Prints a
table on standard error, and one JSON object on standard output.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.corpora import tinyshakespeare

TARGET = 1.88
OURS = ["--target-loss", str(TARGET)]
YARDSTICK = ["--preset", "nanogpt-laptop"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--yardstick", action="store_true")
    arguments = parser.parse_args()
    corpus = tinyshakespeare()
    contestants = {"vitrine, defaults": OURS} | ({"nanogpt-laptop recipe": YARDSTICK} if arguments.yardstick else {})
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(arguments.runs):
        for name, options in contestants.items():
            results[name].append(run(corpus, options))
    for name, runs in results.items():
        walls = sorted(result["wall_s"] for result in runs)
        last = runs[-1]
        print(
            f"{name:<24} median {statistics.median(walls):6.1f} s ({walls[0]:.1f} to {walls[-1]:.1f})   "
            f"steps {last['steps']:>5}   training {last['training_s']:.1f} s   val loss {last['val_loss']:.4f}",
            file=sys.stderr,
        )
    print(json.dumps(results))


def run(corpus: Path, options: list[str]) -> dict[str, Any]:
    """Train once, in a process and a folder of its own; the command's result and its seconds from outside."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "vitrine", "train", str(corpus), *options, "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return {"wall_s": round(time.perf_counter() - start, 2)} | json.loads(done.stdout)


if __name__ == "__main__":
    main()
