"""Check that a change keeps the bits of training: compare the digests of 18 small runs with another revision's.

    python -m benchmarks.digests            # prints them
    python -m benchmarks.digests 40aa924    # and compares them with that revision's, made on this machine

Each family with each optimizer in float32 and bfloat16, with dropout and accumulation. A digest covers the parameters after
the last step. The losses of all steps and evaluations are compared as well. Exit status 1 if anything differs.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FAMILIES, OPTIMIZERS, PRECISIONS = ("gpt2", "llama", "qwen3"), ("sgd", "adamw", "muon"), ("float32", "bfloat16")
SIZE = {
    "model.n_layers": 2,
    "model.d_model": 48,
    "model.n_heads": 2,
    "model.context": 32,
    "model.dropout": 0.1,
    "training.batch_size": 4,
    "training.accumulation": 2,
    "training.evaluate_every": 10,
    "training.evaluation_tokens": 512,
    "data.tokenizer": "char",
    "machine.threads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="to compare with")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(dict(train_all())))
        return
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        here = trained(root)
        there = {}
        if arguments.revision:
            subprocess.run(
                ["git", "worktree", "add", "--detach", "--quiet", folder, arguments.revision], cwd=root, check=True
            )
            try:
                there = trained(Path(folder))
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=root, check=True)
    for name, (digest, _) in here.items():
        verdict = "" if not there else "  equal" if here[name] == there[name] else "  DIFFERS"
        print(f"{name:24}{digest[:16]}{verdict}")
    sys.exit(int(bool(there) and here != there))


def trained(package: Path) -> dict[str, list[object]]:
    """The digests of the package in a folder, computed in a separate process."""
    environment = os.environ | {"PYTHONPATH": str(package)}
    command = [sys.executable, str(Path(__file__).absolute()), "--train"]
    with tempfile.TemporaryDirectory() as folder:
        environment["VITRINE_CACHE"] = folder
        return json.loads(
            subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, check=True).stdout
        )


def train_all() -> Iterator[tuple[str, list[object]]]:
    import pydoc_data.topics

    import vitrine

    topics = pydoc_data.topics.topics
    text = "".join(c for name in sorted(topics) for c in topics[name] if c.isascii())[:60_000]
    Path("text.txt").write_text(text, encoding="utf-8")
    for names in itertools.product(FAMILIES, OPTIMIZERS, PRECISIONS):
        chosen = dict(zip(("model.architecture", "optimizer.name", "training.precision"), names, strict=True))
        run = vitrine.train("text.txt", run="-".join(names), steps=25, settings=SIZE | chosen)
        result = run.result()
        yield "-".join(names), [result["digest"], [row.loss for row in [*run.steps(), *run.evaluations()]]]


if __name__ == "__main__":
    main()
