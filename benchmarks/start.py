"""Waiting times: `vitrine --help`, and from the start of `vitrine train` to the end of its first step.

    python -m benchmarks.start [--runs 5] [--preset micro]

Each measurement is a new process, imports included. The first time, the corpus (1.1 MB) is new and the cache is empty; the
second time, it is in the cache. The process that trains runs the whole command, reports the end of its first step, and exits
there. Prints a table on standard error, and one JSON object on standard output.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.corpora import tinyshakespeare

MADE = b"made"
# The command; it ends with its first step.
TRAIN = """
import os, sys
from vitrine.cli import main
from vitrine.training import loop
step = loop.step
def first(*arguments):
    step(*arguments)
    os.write(1, b"made")
    os._exit(0)
loop.step = first
main.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--preset", default="micro")
    given = parser.parse_args()
    found: dict[str, list[float]] = {"vitrine --help": [], "first step, new corpus": [], "first step, seen corpus": []}
    for _ in range(given.runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vitrine", "--help"], check=True, capture_output=True)
        found["vitrine --help"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            for name in ("first step, new corpus", "first step, seen corpus"):
                found[name].append(first_step(Path(folder), given.preset))
    for name, seconds in found.items():
        print(
            f"{name:<26} median {statistics.median(seconds):5.2f} s ({min(seconds):.2f} to {max(seconds):.2f})",
            file=sys.stderr,
        )
    print(json.dumps(found))


def first_step(folder: Path, preset: str) -> float:
    """Seconds until the end of the first step."""
    command = [sys.executable, "-c", TRAIN, "train", str(tinyshakespeare()), "--preset", preset]
    environment = os.environ | {"VITRINE_CACHE": str(folder / "cache"), "PYTHONPATH": str(Path.cwd())}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    seconds = time.perf_counter() - start
    assert done.stdout.endswith(MADE), "the command ended before its first step"
    return seconds


if __name__ == "__main__":
    main()
