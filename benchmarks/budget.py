"""Whether `--for` keeps to its time: how much of it goes to steps, and when the command ends.

    python -m benchmarks.budget [--for 20 60] [--megabytes 1] [WORDS OF vitrine train...]

Trains on Shakespeare's text (repeated, if more megabytes are asked for), whose tokens are prepared before. Wanted: at least
70% in steps, and an end within 15% of the time; the start of Python and of torch is counted too, though it comes before.
Prints a table on standard error, and one JSON object on standard output.
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
        subprocess.run([*train, "--steps", "1"], cwd=folder, check=True, capture_output=True)
        for for_s in arguments.times:
            start = time.perf_counter()
            subprocess.run(
                [*train, "--for", f"{for_s}s", "--run", f"{for_s}"], cwd=folder, check=True, stdout=sys.stderr
            )
            whole = (time.perf_counter() - start) / for_s
            results.append({"for_s": for_s, "whole": whole, **RunReader(Path(folder, f"{for_s}")).result()})
    for result in results:
        print(
            f"--for {result['for_s']:g}s   {result['steps']:,} steps in {result['training_s'] / result['for_s']:.0%} of the "
            f"time, the whole {result['whole']:.0%}   {result['val_tokens']:,} of {result['val_split_tokens']:,} "
            f"validation tokens at the end   {result['stopped']}",
            file=sys.stderr,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
