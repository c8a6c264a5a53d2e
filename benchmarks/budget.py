"""Check that `--for` keeps its time: how much of it goes to steps, and when the command ends.

    python -m benchmarks.budget [--for 20 60] [--megabytes 1] [WORDS OF vitrine train...]

Trains on Shakespeare's text (repeated to reach --megabytes), with tokens prepared in advance. The goals are at least 70% in
steps, and an end within 15% of the time. The start of Python and torch is measured separately and not included. Prints a
table on standard error, and one JSON object on standard output.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vitrine.runs.reader import RunReader

from benchmarks.corpora import tinyshakespeare  # isort: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="times", type=float, nargs="+", default=[20.0, 60.0], metavar="SECONDS")
    parser.add_argument("--megabytes", type=int, default=1)
    arguments, words = parser.parse_known_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text(tinyshakespeare().read_text(encoding="utf-8") * arguments.megabytes, encoding="utf-8")
        train = [sys.executable, "-m", "vitrine", "train", str(text), *words]
        seconds([*train, "--steps", "1"], folder)
        for for_s in arguments.times:
            start_s = seconds([sys.executable, "-c", "import vitrine.training.create"], folder)
            whole_s = seconds([*train, "--for", f"{for_s}s", "--run", f"{for_s}"], folder)
            result = RunReader(Path(folder, f"{for_s}")).result()
            results.append({"for_s": for_s, "whole": (whole_s - start_s) / for_s, **result})
    for result in results:
        print(
            f"--for {result['for_s']:g}s   {result['steps']:,} steps in {result['training_s'] / result['for_s']:.0%} of the "
            f"time, the whole {result['whole']:.0%}   {result['val_tokens']:,} of {result['val_split_tokens']:,} "
            f"validation tokens at the end   {result['stopped']}",
            file=sys.stderr,
        )
    print(json.dumps(results))


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
