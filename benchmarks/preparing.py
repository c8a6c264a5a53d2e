"""Text to token files: megabytes per second, compared with the tokenizers library's own batches.

    python -m benchmarks.preparing [--megabytes 200] [--rounds 3] [--vocab 4096]
    python -m benchmarks.preparing --files 20000 [--rounds 3]

The text of the given size is made from the benchmarks' text, with its lines in a different order each time. BPE: the
library's `encode_batch_fast` on the same pieces, reading the ids, compared with everything from text to token files
(reading, hashing, encoding, writing, flushing; the tokenizer is made before). Both take turns in separate processes, because
the library is slower in a process that has encoded before. Characters and bytes: everything from text to token files, and
the NumPy lookup table by itself. Peak memory is that of the whole process. With --files: a folder with this many files of
400 bytes, compared with the same text in one file, from text to token files, with the tokenizer that «auto» chooses and
with characters. Prints a table on standard error, and one JSON object on standard output.
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vitrine.text import token_files
from vitrine.text.sources import find_sources, pieces
from vitrine.text.tokenizer import (
    bulk_encoder,
    byte_tokenizer,
    char_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)

from benchmarks.corpora import tinyshakespeare  # isort: skip

MEGABYTE = 10**6
FILE_BYTES = 400  # of each of many files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--files", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = given.files * FILE_BYTES if given.files else given.megabytes * MEGABYTE
        text = write_text(Path(folder) / "text.txt", size)
        result = measure_files(text, given.rounds) if given.files else measure(text, given.rounds, given.vocab)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, value in result.items():
        print(f"{name:<36}{value:12,.2f}", file=sys.stderr)
    print(json.dumps(result))


def write_text(file: Path, size: int) -> Path:
    """Real lines, in a different order each time they are repeated."""
    lines, draw, written = tinyshakespeare().read_text(encoding="utf-8").splitlines(keepends=True), random.Random(1), 0
    with open(file, "w", encoding="utf-8") as handle:
        while written < size:
            draw.shuffle(lines)
            written += handle.write("".join(lines))
    return file


def measure(text: Path, rounds: int, vocab: int) -> dict[str, Any]:
    size, folder = text.stat().st_size / MEGABYTE, text.parent
    sample = tinyshakespeare().read_text(encoding="utf-8")
    bpe = train_bpe(iter([sample]), vocab)
    save_tokenizer(bpe, folder / "tokenizer.json")
    whole, library = [], []
    for _ in range(rounds):
        library.append(size / seconds_apart(encode_by_library, text, str(folder / "tokenizer.json")))
        whole.append(size / seconds_apart(prepare, text, str(folder / "tokenizer.json")))
    result: dict[str, Any] = {
        "library, bpe, MB/s": statistics.median(library),
        "vitrine, bpe, MB/s": statistics.median(whole),
        "vitrine to library": statistics.median(ours / theirs for ours, theirs in zip(whole, library, strict=True)),
    }
    for name, tokenizer in (("char", char_tokenizer(sample)), ("byte", byte_tokenizer())):
        encode, some = bulk_encoder(tokenizer), [sample] * 20
        table = min(seconds(lambda: encode(some)) for _ in range(rounds))  # noqa: B023
        result[f"{name} table, one core, MB/s"] = 20 * len(sample) / MEGABYTE / table
        result[f"vitrine, {name}, MB/s"] = size / min(seconds(lambda: prepare(text, name)) for _ in range(rounds))  # noqa: B023
    return result


def measure_files(text: Path, rounds: int) -> dict[str, Any]:
    """One file compared with many files of the same text, in turns."""
    content, folder = text.read_bytes(), text.parent / "many"
    for number in range(0, len(content), FILE_BYTES):
        file = folder / f"{number // FILE_BYTES // 100}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content[number : number + FILE_BYTES])
    result: dict[str, Any] = {}
    for tokenizer in ("auto", "char"):
        one, many = [], []
        for _ in range(rounds):
            one.append(seconds_apart(prepare, text, tokenizer))
            many.append(seconds_apart(prepare, folder, tokenizer))
        result[f"one file, {tokenizer}, s"] = statistics.median(one)
        result[f"many files, {tokenizer}, s"] = statistics.median(many)
        result[f"many to one, {tokenizer}"] = statistics.median(m / o for m, o in zip(many, one, strict=True))
    return result


def encode_by_library(text: Path, file: str) -> None:
    """The library on the same pieces, a batch at a time, reading the ids."""
    tokenizer = load_tokenizer(Path(file))
    tokenizer.encode_special_tokens = True
    batch: list[str] = []
    held = 0
    for source in find_sources([str(text)]):
        for piece in pieces(source):
            batch.append(piece.text)
            held += len(piece.text)
            if held >= token_files.BATCH_CHARACTERS:
                [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
                batch, held = [], 0
    [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]


def prepare(text: Path, tokenizer: str) -> None:
    """From text to token files, with an empty cache."""
    with tempfile.TemporaryDirectory(dir=text.parent) as cache:
        token_files.prepare([str(text)], tokenizer=tokenizer, cache=Path(cache))


def seconds_apart(work: Callable[..., None], *arguments: Any) -> float:
    """Seconds of some work in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(seconds, (partial(work, *arguments),))


def seconds(work: Callable[[], None] | Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
