"""Seconds of the whole command until a validation loss, with default recording, compared with a plain reference.

    python -m benchmarks.time_to_loss [--runs 3] [--reference] [--text FILE] [--target 1.88]

Without --text: tinyshakespeare, 1.88 nats per character. With --reference, the fixed recipe of benchmarks/reference.py
(nanoGPT's laptop recipe in eager float32) runs to its end before each of ours (this takes minutes). Then, without --target,
its last loss is the target. Every process is new and has its own folder. Prints a table on standard error, and one JSON
object on standard output.
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

TARGET = 1.88  # nats per character on tinyshakespeare
CHARACTERS = [
    "--set",
    "data.tokenizer=char",
]  # with the characters that the reference uses, so that both losses are in nats per character


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--target", type=float)
    given = parser.parse_args()
    text = given.text.resolve() if given.text else tinyshakespeare()
    target = given.target or (None if given.text else TARGET)
    if target is None and not given.reference:
        parser.error("--text needs --target, or --reference, whose loss is then the target")
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(given.runs):
        if given.reference:
            theirs.append(run(["-m", "benchmarks.reference", str(text)], Path.cwd()))
        wanted = target if target is not None else theirs[-1]["val_loss"]
        with tempfile.TemporaryDirectory() as folder:
            options = ["--preset", "sprint", "--target-loss", str(wanted), *CHARACTERS, "--json"]
            ours.append(run(["-m", "vitrine", "train", str(text), *options], Path(folder)) | {"target": wanted})
        if ours[-1]["val_loss"] > wanted:
            sys.exit(f"The sprint ended at {ours[-1]['val_loss']:.4f}, above {wanted:.4f}.")
    show("vitrine, sprint", ours)
    result: dict[str, Any] = {"text": text.name, "vitrine": ours}
    if theirs:
        show("reference", theirs)
        ratios = [their["wall_s"] / our["wall_s"] for their, our in zip(theirs, ours, strict=True)]
        print(
            f"ratio    median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})", file=sys.stderr
        )
        result |= {"reference": theirs, "ratio": statistics.median(ratios)}
    print(json.dumps(result))


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Run one process: the JSON that it prints, and its seconds, measured from outside."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return {"wall_s": round(time.perf_counter() - start, 2)} | result


def show(name: str, runs: list[dict[str, Any]]) -> None:
    walls = sorted(result["wall_s"] for result in runs)
    losses = ", ".join(f"{result['val_loss']:.4f}" for result in runs)
    middle = statistics.median(walls)
    print(
        f"{name:<16} median {middle:6.1f} s ({walls[0]:.1f} to {walls[-1]:.1f})   steps {runs[-1]['steps']:>5}   "
        f"validation loss {losses}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
