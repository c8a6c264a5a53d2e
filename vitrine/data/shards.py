"""Texts to token ids on disk, memory-mapped, and kept in a cache by digest."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vitrine.data.cache import SCANS, TOKENS, cache_folder, partial, remove_leftovers
from vitrine.data.text import Progress, Reading, Scan, Source, digest_of, find_sources, pieces, scan
from vitrine.errors import ConfigError, CorpusError
from vitrine.tokenizer import (
    bulk_encoder,
    byte_tokenizer,
    char_tokenizer,
    end_of_text_id,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)

FORMAT_VERSION = 1
MANIFEST, TOKENIZER, VALIDATION = "manifest.json", "tokenizer.json", "validation.bin"
BATCH_CHARACTERS = 4 * 2**20  # text in flight at a time
SAMPLE_CHARACTERS = 64 * 2**20  # text that BPE is learned from, at most
CHECKED_BYTES = 64 * 2**20  # token files up to this size are hashed when they are opened
FREE_BYTES = 64 * 2**20  # that stay free on the disk, or a hundredth of it, if that is less
USUAL_SHARE = 0.1  # BPE does not learn from the last tenth, even where less is held back: one BPE for these shares

Tokens = NDArray[np.unsignedinteger[Any]]
Piece = tuple[str, bool, bool]  # text, whether a document ends with it, whether it is validation text


@dataclass(frozen=True)
class Prepared:
    """A corpus as token ids.

    train: one memory-mapped array for each source; validation: one for all. uint16 or uint32.
    train_bytes, validation_bytes: UTF-8 bytes of the texts.
    corpus_digest: of everything that the ids depend on; source_digests: of each source's files.
    tokenizer_name: char, byte, bpe:N, or the path it was read from.
    """

    folder: Path
    tokenizer: Tokenizer
    tokenizer_name: str
    train: tuple[Tokens, ...]
    validation: Tokens
    train_bytes: int
    validation_bytes: int
    corpus_digest: str
    source_digests: tuple[str, ...]


def prepare(
    corpus: Sequence[str],
    *,
    tokenizer: str = "auto",
    validation: float | Sequence[str] = 0.1,
    reading: Reading = Reading(),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Turn a corpus into token ids, or find them in the cache.

    Args:
        corpus: files, folders, globs, or hf:owner/name.
        tokenizer: auto, char, byte, bpe:N, or the path of a tokenizer.json.
        validation: the share of each source's characters, at its end, that is held back; or files of its own.
        reading: how the files are read.
        cache: where token files are kept; see `cache_folder`.
    """
    cache = cache or cache_folder()
    sources = find_sources(corpus)
    held_back = [] if isinstance(validation, int | float) else find_sources(validation)
    before = _stamps([*sources, *held_back])
    scans = [_scan(source, reading, cache, progress) for source in sources]
    held_scans = [_scan(source, reading, cache, progress) for source in held_back]
    fraction = float(validation) if isinstance(validation, int | float) else 0.0
    name = choose_tokenizer(scans) if tokenizer == "auto" else tokenizer
    key = _digest_of_all(name, fraction, reading, scans, held_scans)
    folder = cache / TOKENS / key
    found = _open_sound(folder)
    if found:
        return found
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with partial(folder) as temporary:
            splits = [Split(source, facts, fraction) for source, facts in zip(sources, scans, strict=True)]
            learned = max(fraction, USUAL_SHARE) if fraction else 0.0
            sample = _sample([replace(split, fraction=learned) for split in splits], reading)
            made = make_tokenizer(name, [*scans, *held_scans], sample)
            held_splits = [Split(source, facts, 1.0) for source, facts in zip(held_back, held_scans, strict=True)]
            facts = _write(temporary, splits + held_splits, len(sources), made, reading, progress)
            save_tokenizer(made, temporary / TOKENIZER)
            facts |= {
                "version": FORMAT_VERSION,
                "tokenizer_name": name,
                "corpus_digest": key,
                "source_digests": [facts.digest for facts in scans],
            }
            (temporary / MANIFEST).write_text(json.dumps(facts, indent=1), encoding="utf-8")
            _flush_all(temporary)
            _check_unchanged(before, _stamps([*sources, *held_back]))
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first: the ids are the same
                    raise
    except OSError as error:
        raise CorpusError(
            f"The token files cannot be written to {folder}: {error}. Set VITRINE_CACHE to a folder with room."
        ) from None
    return open_prepared(folder)


def open_prepared(folder: Path) -> Prepared:
    """Open token files that were written before. Raises CorpusError if they are not as they were written."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CorpusError(f"{folder} holds no token files: {MANIFEST} is missing or unreadable.") from None
    if facts["version"] != FORMAT_VERSION:
        raise CorpusError(f"{folder} has format version {facts['version']}; this Vitrine reads {FORMAT_VERSION}.")
    arrays = {name: _map(folder / name, facts["dtype"], about) for name, about in facts["files"].items()}
    return Prepared(
        folder=folder,
        tokenizer=load_tokenizer(folder / TOKENIZER),
        tokenizer_name=facts["tokenizer_name"],
        train=tuple(array for name, array in arrays.items() if name != VALIDATION),
        validation=arrays[VALIDATION],
        train_bytes=facts["train_bytes"],
        validation_bytes=facts["validation_bytes"],
        corpus_digest=facts["corpus_digest"],
        source_digests=tuple(facts["source_digests"]),
    )


def copy_prepared(prepared: Prepared, destination: Path) -> None:
    """Put the token files into another folder: by hard links where the file system has them."""
    destination.mkdir()
    for file in prepared.folder.iterdir():
        try:
            os.link(file, destination / file.name)
        except OSError:
            shutil.copyfile(file, destination / file.name)
    _flush_all(destination)


def tokens_of(corpus: Sequence[str], tokenizer: Tokenizer, reading: Reading = Reading()) -> tuple[Tokens, int]:
    """The ids of a text that is measured once, and its UTF-8 bytes."""
    ids, size, encoder = [], 0, _Encoder(tokenizer)
    for batch in _batches(
        (piece.text, piece.ends, False) for source in find_sources(corpus) for piece in pieces(source, reading)
    ):
        size += _size_bytes(batch)
        ids.append(encoder.encode(batch)[0])
    found = np.concatenate(ids) if ids else np.zeros(0, np.uint32)
    if len(found) < 2:
        raise CorpusError(f"{', '.join(corpus)} has {len(found)} tokens; measuring a loss needs at least 2.")
    return found, size


def source_digests(corpus: Sequence[str], reading: Reading = Reading()) -> list[str]:
    """The digest of each source as it is now, as `prepare` computes it."""
    return [digest_of(s) if s.files else scan(s, reading).digest for s in find_sources(corpus)]


def choose_tokenizer(scans: Sequence[Scan]) -> str:
    """What `auto` stands for: characters for a small text with a small alphabet, else BPE by size."""
    size = sum(facts.size_bytes for facts in scans)
    alphabet = set().union(*(facts.alphabet for facts in scans))
    if len(alphabet) <= 128 and size <= 4_000_000:
        return "char"
    power = round(math.log2(512) + 1.5 * math.log10(max(1.0, size / 200_000)))
    return f"bpe:{2 ** min(14, max(9, power))}"


def make_tokenizer(name: str, scans: Sequence[Scan], sample: Iterator[str]) -> Tokenizer:
    """The tokenizer of that name, made for a corpus; `sample` is drawn from for BPE alone."""
    if name == "char":
        return char_tokenizer("".join(facts.alphabet for facts in scans))
    if name == "byte":
        return byte_tokenizer()
    kind, _, number = name.partition(":")
    if kind == "bpe":
        if not number.isdigit():
            raise ConfigError(f"data.tokenizer = {name} needs a vocabulary size. Try bpe:4096.")
        return train_bpe(sample, int(number))
    return load_tokenizer(Path(name))


@dataclass(frozen=True)
class Split:
    """A source, and the share of its characters, at its end, that is validation text."""

    source: Source
    facts: Scan
    fraction: float

    @property
    def train_characters(self) -> int:
        """Characters before the cut."""
        return math.floor(self.facts.characters * (1 - self.fraction) + 1e-9)

    def pieces(self, reading: Reading) -> Iterator[Piece]:
        """All of its text, in order."""
        left = self.train_characters
        for text, ends, _, _ in pieces(self.source, reading):
            if left >= len(text):
                yield text, ends, False
            elif left <= 0:
                yield text, ends, True
            else:
                yield text[:left], False, False
                yield text[left:], ends, True
            left -= len(text)


Stamp = tuple[str, int, int, int, int]  # path, size, when it was changed (mtime, ctime, ns), inode


def _stamps(sources: Sequence[Source]) -> list[Stamp]:
    """What tells whether a file changed, at no cost. ctime: a file's mtime can be set back, its ctime cannot."""
    found = []
    for file in (file for source in sources for file in source.files):
        try:
            stat = file.stat()
        except OSError as error:
            raise CorpusError(f"{file} cannot be read: {error.strerror or error}.") from None
        found.append((str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return found


def _check_unchanged(before: Sequence[Stamp], after: Sequence[Stamp]) -> None:
    """The text is read twice or more; token ids of another text must not come under its digest."""
    for then, now in zip(before, after, strict=True):
        if then != now:
            size = (
                f"from {then[1]:,} to {now[1]:,} bytes" if then[1] != now[1] else f"{now[1]:,} bytes before and after"
            )
            raise CorpusError(
                f"{then[0]} changed while it was read ({size}). Wait until nothing writes to it, or give a copy."
            )


def _scan(source: Source, reading: Reading, cache: Path, progress: Progress | None) -> Scan:
    """A scan, remembered for as long as no file of the source changes."""
    if not source.files:
        return scan(source, reading, progress)
    stamps = _stamps([source])
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, reading.text_field, stamps]).encode()).hexdigest()
    remembered = cache / SCANS / f"{key}.json"
    try:
        return Scan(**json.loads(remembered.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    facts = scan(source, reading, progress)
    _check_unchanged(stamps, _stamps([source]))
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(remembered.parent)
        temporary = remembered.with_name(f".{key}.partial-{os.getpid()}")
        temporary.write_text(json.dumps(asdict(facts)), encoding="utf-8")
        temporary.rename(remembered)
    except OSError:
        pass  # a cache that cannot be written costs time, not the run
    return facts


def _digest_of_all(
    name: str, fraction: float, reading: Reading, scans: Sequence[Scan], held_scans: Sequence[Scan]
) -> str:
    content = ""
    if name not in ("char", "byte") and not name.startswith("bpe:"):
        load_tokenizer(Path(name))
        content = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    key = [
        FORMAT_VERSION,
        content or name,
        fraction,
        reading.text_field,
        [facts.digest for facts in scans],
        [facts.digest for facts in held_scans],
    ]
    if name.startswith("bpe:") and 0 < fraction < USUAL_SHARE:
        key.append("bpe of the usual share")  # it was learned from more text before
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _sample(splits: Sequence[Split], reading: Reading) -> Iterator[str]:
    """Training text for BPE: all of it, or the same share of every piece."""
    total = sum(split.train_characters for split in splits)
    share = min(1.0, SAMPLE_CHARACTERS / max(1, total))
    for split in splits:
        for text, _, held_back in split.pieces(reading):
            if not held_back:
                yield text[: math.ceil(len(text) * share)]


def _write(
    folder: Path,
    splits: Sequence[Split],
    n_train: int,
    tokenizer: Tokenizer,
    reading: Reading,
    progress: Progress | None,
) -> dict[str, Any]:
    """Encode every source and write its token files; returns their part of the manifest."""
    dtype = np.dtype("<u2" if tokenizer.get_vocab_size() <= 2**16 else "<u4")
    total = sum(split.facts.size_bytes for split in splits)
    encoder, train_bytes, validation_bytes = _Encoder(tokenizer), 0, 0
    files: dict[str, dict[str, Any]] = {}
    with open(folder / VALIDATION, "wb") as held_back:
        validation = _TokenFile(held_back, dtype)
        for number, split in enumerate(splits):
            with open(folder / f"train-{number}.bin", "wb") as handle:
                train = _TokenFile(handle, dtype)
                for batch in _batches(split.pieces(reading)):
                    first_held = next((n for n, (_, _, held) in enumerate(batch) if held), len(batch))
                    ids, ends = encoder.encode(batch)
                    cut = int(ends[first_held - 1]) if first_held else 0
                    _check_room(folder, ids.nbytes, split.source.spec, train.tokens + validation.tokens)
                    train.write(ids[:cut])
                    validation.write(ids[cut:])
                    train_bytes += _size_bytes(batch[:first_held])
                    validation_bytes += _size_bytes(batch[first_held:])
                    if progress:
                        progress("tokens", train_bytes + validation_bytes, total)
            if number < n_train:
                files[f"train-{number}.bin"] = train.facts()
            else:
                (folder / f"train-{number}.bin").unlink()
    files[VALIDATION] = validation.facts()
    return {"dtype": dtype.str, "files": files, "train_bytes": train_bytes, "validation_bytes": validation_bytes}


def _check_room(folder: Path, wanted_bytes: int, spec: str, tokens: int) -> None:
    """Refuse before the disk is full: what else runs on this machine needs it, too."""
    disk = shutil.disk_usage(folder)
    if disk.free - wanted_bytes < min(FREE_BYTES, disk.total // 100):
        raise CorpusError(
            f"The token files of {spec} do not fit on the disk of {folder.parent}: {tokens:,} tokens are written, "
            f"more follow, and {disk.free / 1e6:,.1f} MB are free. Set VITRINE_CACHE to a folder with more room."
        )


class _TokenFile:
    """A file of ids that is being written."""

    def __init__(self, handle: IO[bytes], dtype: np.dtype[Any]) -> None:
        self.handle, self.dtype = handle, dtype
        self.tokens, self.hash = 0, hashlib.sha256()

    def write(self, ids: Tokens) -> None:
        raw = ids.astype(self.dtype).tobytes()
        self.tokens += len(ids)
        self.hash.update(raw)
        self.handle.write(raw)

    def facts(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "sha256": self.hash.hexdigest()}


def _batches(marked: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of bounded size."""
    batch, size = [], 0
    for piece in marked:
        batch.append(piece)
        size += len(piece[0]) + 64
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size_bytes(batch: Sequence[Piece]) -> int:
    return len("".join(text for text, _, _ in batch).encode("utf-8"))


class _Encoder:
    """Pieces to ids, with an end-of-text token after each document, where the tokenizer has one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.end_id = end_of_text_id(tokenizer)
        self.encode_texts = bulk_encoder(tokenizer)

    def encode(self, batch: Sequence[Piece]) -> tuple[Tokens, NDArray[np.int64]]:
        """All ids, one piece after the other, and where those of each piece end."""
        ids, ends = self.encode_texts([text for text, _, _ in batch])
        if self.end_id is None:
            return ids, ends
        closed = np.array([closes for _, closes, _ in batch])
        return np.insert(ids, ends[closed], self.end_id), ends + np.cumsum(closed)


def _open_sound(folder: Path) -> Prepared | None:
    """What the cache holds, if it is whole."""
    if not folder.is_dir():
        return None
    try:
        return open_prepared(folder)
    except (CorpusError, ConfigError, KeyError, TypeError):
        return None


def _map(file: Path, dtype: str, about: dict[str, Any]) -> Tokens:
    size = file.stat().st_size if file.is_file() else -1
    expected = about["tokens"] * np.dtype(dtype).itemsize
    if size != expected:
        raise CorpusError(f"{file} has {max(size, 0)} bytes; {expected} were written. The token file is damaged.")
    if not size:
        return np.zeros(0, dtype)
    array = np.memmap(file, dtype, mode="r")
    if size <= CHECKED_BYTES and hashlib.sha256(array.data).hexdigest() != about["sha256"]:
        raise CorpusError(f"{file} is not as it was written: its SHA-256 differs. The token file is damaged.")
    return array


def _flush_all(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
