"""Token files: the token ids of a corpus on disk, memory-mapped, and cached by digest."""

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vitrine._files import fsync_folder, partial, sha256
from vitrine.errors import ConfigError, CorpusError
from vitrine.text.cache import FREE_BYTES, TOKENS, cache_folder
from vitrine.text.ids import byte_counter, check_tokenizer, holds_ids, id_parts
from vitrine.text.pattern_check import check_patterns
from vitrine.text.scans import changed, check_unchanged, remembered_scan, stamps
from vitrine.text.sources import Meter, Progress, Reading, Scan, Source, digest_of, find_sources, scan, scan_all
from vitrine.text.splits import MANY, Part, Split, choose_documents, choose_split
from vitrine.text.summary import SourceSummary, Summary
from vitrine.text.tokenizer import (
    bulk_encoder,
    byte_tokenizer,
    char_tokenizer,
    end_of_text_id,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    unknown_id,
)

FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)  # 1: without index and sources
MANIFEST, TOKENIZER, VALIDATION, INDEX = "manifest.json", "tokenizer.json", "validation.bin", "index.bin"
BATCH_CHARACTERS = 4 * 2**20  # text in flight at a time
SAMPLE_CHARACTERS = 64 * 2**20  # text that BPE is learned from, at most
CHECKED_BYTES = 64 * 2**20  # token files up to this size are hashed when they are opened
USUAL_SHARE = 0.1  # BPE does not learn from the last tenth, even where less is held back: one BPE for these shares
SPELLED = 3  # characters of a special token that is looked for in the text, at least
SEARCHED = 1_000  # special tokens that are looked for, at most

DOCUMENT = np.dtype(
    [
        ("offset", "<u8"),
        ("first_token", "<u8"),
        ("file", "<u4"),
        ("source", "<u2"),
        ("validation", "?"),
        ("unused", "u1"),
    ]
)

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Prepared:
    """A corpus as token ids.

    train: one memory-mapped array for each source; validation: one for all. uint16 or uint32.
    train_bytes, validation_bytes: UTF-8 bytes of the texts.
    corpus_digest: of everything that the ids depend on; source_digests: of each source's files.
    tokenizer_name: char, byte, bpe:N, or the path it was read from. manifest: what docs/run-format.md says.
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
    manifest: dict[str, Any]

    @property
    def validation_split(self) -> str:
        """How a share was held back: end or documents."""
        return str(self.manifest.get("validation_split", "end"))

    @property
    def summary(self) -> Summary | None:
        """What was read; None for token files that an earlier Vitrine wrote."""
        sources = self.manifest.get("sources")
        if sources is None:
            return None
        counts = [*map(len, self.train), *[0] * len(sources)]
        names = ("spec", "read", "left_out", "documents", "held_back", "invalid")
        return Summary(
            tuple(
                SourceSummary(train_tokens=tokens, **{name: source.get(name, {}) for name in names})
                for source, tokens in zip(sources, counts, strict=False)
            ),
            len(self.validation),
        )

    @property
    def warnings(self) -> list[str]:
        """What a user should know of this text."""
        return [*self._of_invalid_text(), *self._of_unknown_text(), *self._of_special_text()]

    def _of_invalid_text(self) -> Iterator[str]:
        for source in self.manifest.get("sources", []):
            if about := source.get("invalid"):
                count, first = about["count"], about["first"]
                files = "1 file or row is" if count == 1 else f"{count:,} files or rows are"
                more = f"; and {count - len(first)} more" if count > len(first) else ""
                what = "left out" if about["was"] == "skip" else "read with U+FFFD for what is not valid"
                yield (
                    f"{files} {what}, of {source['spec']} (data.invalid = {about['was']}): {'; '.join(first)}{more}."
                )

    def _of_unknown_text(self) -> Iterator[str]:
        if unknown := self.manifest.get("unknown_tokens", 0):
            tokens = sum(map(len, self.train)) + len(self.validation)
            yield (
                f"{unknown:,} of the {tokens:,} tokens ({unknown / tokens:.2%}) are the tokenizer's token for what it does "
                "not know: that text is not learned. A tokenizer that was made for this text knows it all, such as "
                "data.tokenizer = auto."
            )

    def _of_special_text(self) -> Iterator[str]:
        found = self.manifest.get("special_text", {})
        if found:
            most = sorted(found, key=lambda token: -found[token])
            named = ", ".join(f"{token} ({found[token]:,} times)" for token in most[:3])
            more = f" and {len(most) - 3} others" if len(most) > 3 else ""
            yield (
                f"The text spells special tokens of its tokenizer: {named}{more}. They are learned as the characters that "
                "they are spelled with, not as those tokens. A chat template that was rendered into the text does this: "
                "leave its marks out."
            )


def prepare(
    corpus: Sequence[str],
    *,
    tokenizer: str = "auto",
    validation: float | Sequence[str] = 0.1,
    validation_split: str = "auto",
    reading: Reading = Reading(),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Turn a corpus into token ids, or find them in the cache.

    Args:
        corpus: files, folders, globs, or hf:owner/name; or nanoGPT's .bin, with the tokenizer that it was made with.
        tokenizer: auto, char, byte, bpe:N, or the path of a tokenizer.json.
        validation: the share of each source that is held back; or files of its own.
        validation_split: of the share: "end", the last characters of each source; "documents", whole ones, chosen by
            their content; "auto", documents if there are more than a few.
        reading: how the files are read.
        cache: where token files are kept; see `cache_folder`.
    """
    cache = cache or cache_folder()
    sources = find_sources(corpus)
    share = float(validation) if isinstance(validation, int | float) else 0.0
    held_back = [] if isinstance(validation, int | float) else find_sources(validation)
    every = [*sources, *held_back]
    if _is_path(tokenizer) and Path(tokenizer).is_dir():
        tokenizer = str(Path(tokenizer) / TOKENIZER)
    check_tokenizer(every, tokenizer)
    before = stamps(every)
    scans = scan_all(every, lambda source: remembered_scan(source, reading, cache, progress))
    train_scans, held_scans = scans[: len(sources)], scans[len(sources) :]
    name = choose_tokenizer(train_scans) if tokenizer == "auto" else tokenizer
    if not share:
        validation_split = "end"
    elif validation_split == "auto":
        validation_split = choose_split(train_scans)
    key = _digest_of_all(name, share, validation_split, reading, train_scans, held_scans)
    splits = _splits(sources, train_scans, share, validation_split)
    splits += [Split(source, facts, 1.0) for source, facts in zip(held_back, held_scans, strict=True)]
    about = [_about(split, reading) for split in splits]
    folder = cache / TOKENS / key
    found = _open_sound(folder)
    if found:
        return _with_sources(found, about)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial(folder) as temporary:
            learned_from = _splits(sources, train_scans, max(share, USUAL_SHARE) if share else 0.0, validation_split)
            made = make_tokenizer(name, scans, _sample(learned_from, reading, progress))
            save_tokenizer(made, temporary / TOKENIZER)
            facts = _write(temporary, splits, len(sources), made, _is_path(name), reading, progress)
            facts |= {
                "version": FORMAT_VERSION,
                "tokenizer_name": name,
                "validation_split": validation_split,
                "corpus_digest": key,
                "source_digests": [facts.digest for facts in train_scans],
            }
            (temporary / MANIFEST).write_text(json.dumps(facts), encoding="utf-8")
            fsync_folder(temporary)
            check_unchanged(before, stamps(every))
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first: the ids are the same
                    raise
    except OSError as error:
        raise CorpusError(
            f"The token files cannot be written to {folder}: {error}. Set VITRINE_CACHE to a folder with room."
        ) from None
    return _with_sources(open_prepared(folder), about)


def open_prepared(folder: Path) -> Prepared:
    """Open existing token files. Raises CorpusError if they have changed since they were written."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CorpusError(f"{folder} holds no token files: {MANIFEST} is missing or unreadable.") from None
    if facts["version"] not in READ_VERSIONS:
        raise CorpusError(
            f"{folder} has format version {facts['version']}; this Vitrine reads {' and '.join(map(str, READ_VERSIONS))}."
        )
    arrays = {
        name: _map(folder / name, np.dtype(facts["dtype"]), about["tokens"], about["sha256"])
        for name, about in facts["files"].items()
    }
    prepared = Prepared(
        folder=folder,
        tokenizer=load_tokenizer(folder / TOKENIZER),
        tokenizer_name=facts["tokenizer_name"],
        train=tuple(array for name, array in arrays.items() if name != VALIDATION),
        validation=arrays[VALIDATION],
        train_bytes=facts["train_bytes"],
        validation_bytes=facts["validation_bytes"],
        corpus_digest=facts["corpus_digest"],
        source_digests=tuple(facts["source_digests"]),
        manifest=facts,
    )
    if "index" in facts:
        documents(prepared)
    return prepared


def documents(prepared: Prepared) -> NDArray[Any]:
    """Where each document begins: a row for each, and two for one that was cut.

    Fields: source and file, by their places in the manifest; offset: of the document in its unpacked file, or its row
    number; first_token: its place in train-SOURCE.bin, or in validation.bin if `validation`.
    """
    about = prepared.manifest.get("index")
    if about is None:
        raise CorpusError(
            f"{prepared.folder} has no index of documents: an earlier Vitrine wrote it. A new training of the text has one."
        )
    return _map(prepared.folder / INDEX, DOCUMENT, about["documents"], about["sha256"])


def copy_prepared(prepared: Prepared, destination: Path) -> None:
    """Copy the token files into another folder, by hard links where the file system supports them."""
    destination.mkdir()
    for file in prepared.folder.iterdir():
        if file.name == MANIFEST:  # in the cache, it says where the files lay when they were first read
            continue
        try:
            os.link(file, destination / file.name)
        except OSError:
            shutil.copyfile(file, destination / file.name)
    (destination / MANIFEST).write_text(json.dumps(prepared.manifest), encoding="utf-8")
    fsync_folder(destination)


def tokens_of(corpus: Sequence[str], tokenizer: Tokenizer, reading: Reading = Reading()) -> tuple[Tokens, int]:
    """The ids of a text that is measured only once, and its size in UTF-8 bytes."""
    ids: list[Tokens] = []
    size, encoder = 0, _Encoder(tokenizer)
    for source in find_sources(corpus):
        for encoded in _encoded(Split(source, Scan("", 0, 0, 0, ""), 1.0), encoder, reading, Meter()):
            ids.append(encoded.held)
            size += encoded.held_bytes
    found = np.concatenate(ids) if ids else np.zeros(0, np.uint32)
    if len(found) < 2:
        raise CorpusError(f"{', '.join(corpus)} has {len(found)} tokens; measuring a loss needs at least 2.")
    return found, size


def source_digests(corpus: Sequence[str], reading: Reading = Reading()) -> list[str]:
    """The digest of each source as it is now, as `prepare` computes it."""
    return [digest_of(s) if s.files else scan(s, reading).digest for s in find_sources(corpus)]


# How `prepare` chooses what is "auto".
CHOICES = {
    "tokenizer": "characters for at most 4 MB of text with at most 128 different ones, otherwise BPE, larger for longer text",
    "validation_split": f"whole documents if there are more than {MANY}, not all equal, and a share is held back; otherwise the end",
}


def choose_tokenizer(scans: Sequence[Scan]) -> str:
    """The meaning of `auto`: characters for a small text with a small alphabet, else BPE by size."""
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
    tokenizer = load_tokenizer(Path(name))
    check_patterns(Path(name))
    return tokenizer


def _is_path(name: str) -> bool:
    return name not in ("char", "byte") and not name.startswith("bpe:")


def _splits(sources: Sequence[Source], scans: Sequence[Scan], share: float, kind: str) -> list[Split]:
    """The split of each source."""
    if kind == "end":
        return [Split(source, facts, share) for source, facts in zip(sources, scans, strict=True)]
    chosen = choose_documents(scans, share)
    if all(held is None for held in chosen):
        raise CorpusError(
            f"data.validation_split = documents needs a source with two different documents: {sources[0].spec} has one. "
            "Try data.validation_split = end."
        )
    return [Split(source, facts, share, held) for source, facts, held in zip(sources, scans, chosen, strict=True)]


def _about(split: Split, reading: Reading) -> dict[str, Any]:
    """The manifest's entry for a source."""
    source, facts = split.source, split.facts
    kind = {0.0: "nothing", 1.0: "all"}.get(split.share, "end" if split.held is None else "documents")
    files = zip(source.files, source.sizes, facts.file_digests, strict=True)
    return {
        "spec": source.spec,
        "held_back": kind,
        "read": source.read,
        "left_out": source.left_out,
        "invalid": {"count": facts.n_invalid, "was": reading.invalid, "first": list(facts.invalid)}
        if facts.n_invalid
        else {},
        "files": [{"path": str(file.absolute()), "size_bytes": size, "sha256": digest} for file, size, digest in files],
    }


def _with_sources(prepared: Prepared, about: Sequence[dict[str, Any]]) -> Prepared:
    """The same text may lie elsewhere than when its token files were written."""
    sources = [{**then, **now} for then, now in zip(prepared.manifest["sources"], about, strict=True)]
    return replace(prepared, manifest={**prepared.manifest, "sources": sources})


def _digest_of_all(
    name: str,
    share: float,
    kind: str,
    reading: Reading,
    scans: Sequence[Scan],
    held_scans: Sequence[Scan],
) -> str:
    """The digest of everything that the ids depend on. New settings are added only where they matter, so that old digests stay valid."""
    content = ""
    if _is_path(name):
        load_tokenizer(Path(name))
        content = sha256(Path(name))
    key = [
        1,
        content or name,
        share,
        reading.text_field,
        [facts.digest for facts in scans],
        [facts.digest for facts in held_scans],
    ]
    if kind != "end":
        key.append(kind)
    if any(facts.n_invalid for facts in (*scans, *held_scans)):
        key.append(f"invalid text: {reading.invalid}")
    if name.startswith("bpe:") and 0 < share < USUAL_SHARE:
        key.append("bpe of the usual share")  # it was learned from more text before
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _sample(splits: Sequence[Split], reading: Reading, progress: Progress | None) -> Iterator[str]:
    """Training text for BPE: all of it, or the same share of every piece."""
    total = sum(split.train_characters for split in splits)
    share, done = min(1.0, SAMPLE_CHARACTERS / max(1, total)), 0
    for split in splits:
        for part in split.parts(reading, Meter()):
            if not part.held:
                done += len(part.text)
                if progress:
                    progress("learning the tokenizer", done, total)
                yield part.text[: math.ceil(len(part.text) * share)]


def _write(
    folder: Path,
    splits: Sequence[Split],
    n_train: int,
    tokenizer: Tokenizer,
    look_for_special: bool,
    reading: Reading,
    progress: Progress | None,
) -> dict[str, Any]:
    """Encode every source and write its token files; returns their part of the manifest."""
    dtype = np.dtype("<u2" if tokenizer.get_vocab_size() <= 2**16 else "<u4")
    total = sum(split.facts.size_bytes for split in splits)
    encoder = _Encoder(tokenizer, look_for_special)
    done = train_bytes = validation_bytes = 0
    files, sources = {}, []
    with open(folder / VALIDATION, "wb") as held_back, open(folder / INDEX, "wb") as rows:
        validation, index = _Numbers(held_back, dtype), _Numbers(rows, DOCUMENT)
        for number, split in enumerate(splits):
            meter, begun = Meter(), 0
            with open(folder / f"train-{number}.bin", "wb") as handle:
                train = _Numbers(handle, dtype)
                for encoded in _encoded(split, encoder, reading, meter):
                    _check_room(folder, encoded, split.source.spec, train.count + validation.count)
                    found = encoded.documents
                    found["source"] = number
                    found["first_token"] += np.where(found["validation"], validation.count, train.count).astype("<u8")
                    index.write(found)
                    train.write(encoded.train)
                    validation.write(encoded.held)
                    begun += encoded.begun
                    train_bytes += encoded.train_bytes
                    validation_bytes += encoded.held_bytes
                    done += encoded.read_bytes
                    if progress:
                        progress("tokens", done, total)
            _check_digest(split, meter)
            sources.append({**_about(split, reading), "documents": begun})
            if number < n_train:
                files[f"train-{number}.bin"] = {"tokens": train.count, "sha256": train.hash.hexdigest()}
            else:
                (folder / f"train-{number}.bin").unlink()
    files[VALIDATION] = {"tokens": validation.count, "sha256": validation.hash.hexdigest()}
    return {
        "dtype": dtype.str,
        "files": files,
        "index": {"documents": index.count, "sha256": index.hash.hexdigest()},
        "sources": sources,
        "special_text": dict(encoder.special_text),
        "unknown_tokens": encoder.unknown_tokens,
        "train_bytes": train_bytes,
        "validation_bytes": validation_bytes,
    }


def _check_digest(split: Split, meter: Meter) -> None:
    """Raises CorpusError if the bytes that were encoded are not those of the scan."""
    if meter.total.hexdigest() == split.facts.digest:
        return
    for file, then, now in zip(split.source.files, split.facts.file_digests, meter.file_digests, strict=True):
        if then != now:
            raise changed(str(file))
    raise changed(split.source.spec)


def _check_room(folder: Path, encoded: "Encoded", spec: str, tokens: int) -> None:
    """Raises CorpusError before the disk is full: other programs need it, too."""
    disk, wanted_bytes = shutil.disk_usage(folder), encoded.train.nbytes + encoded.held.nbytes
    if disk.free - wanted_bytes < min(FREE_BYTES, disk.total // 100):
        raise CorpusError(
            f"The token files of {spec} do not fit on the disk of {folder.parent}: {tokens:,} tokens are written, "
            f"more follow, and {disk.free / 1e6:,.1f} MB are free. Set VITRINE_CACHE to a folder with more room."
        )


class _Numbers:
    """A file of numbers while it is written: ids, or rows of the index."""

    def __init__(self, handle: IO[bytes], dtype: np.dtype[Any]) -> None:
        self.handle, self.dtype = handle, dtype
        self.count, self.hash = 0, hashlib.sha256()

    def write(self, numbers: NDArray[Any]) -> None:
        raw = numbers.astype(self.dtype).tobytes()
        self.count += len(numbers)
        self.hash.update(raw)
        self.handle.write(raw)


class Encoded(NamedTuple):
    """A stretch of a source as ids, those to learn from and those that are held back.

    documents: rows of the index, whose first_token counts from here. begun: documents that start here.
    train_bytes, held_bytes: UTF-8 bytes of the text; read_bytes: of what was read.
    """

    train: Tokens
    held: Tokens
    documents: NDArray[Any]
    begun: int
    train_bytes: int
    held_bytes: int
    read_bytes: int


def _encoded(split: Split, encoder: "_Encoder", reading: Reading, meter: Meter) -> Iterator[Encoded]:
    """A source as ids, a stretch of bounded size at a time. meter: hashes all that is read."""
    if not holds_ids(split.source):
        yield from map(encoder.encode, _batches(split.parts(reading, meter)))
        return
    count_bytes = byte_counter(encoder.tokenizer)
    for part in id_parts(split.source, meter, encoder.tokenizer, split.train_characters):
        documents = np.zeros(len(part.starts), DOCUMENT)
        documents["file"], documents["validation"] = part.file, part.held
        documents["offset"], documents["first_token"] = part.offset + 2 * part.starts, part.starts
        begun, size, none = len(part.starts) - part.goes_on, count_bytes(part.ids), part.ids[:0]
        if part.held:
            yield Encoded(none, part.ids, documents, begun, 0, size, part.ids.nbytes)
        else:
            yield Encoded(part.ids, none, documents, begun, size, 0, part.ids.nbytes)


def _batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    """Parts in lists of bounded size."""
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += len(part.text) + 64
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Encoder:
    """Text to ids, with an end-of-text token after each document, where the tokenizer has one.

    look_for_special: count in `special_text` the special tokens that the text spells.
    """

    def __init__(self, tokenizer: Tokenizer, look_for_special: bool = False) -> None:
        self.tokenizer, self.end_id = tokenizer, end_of_text_id(tokenizer)
        self.encode_texts = bulk_encoder(tokenizer)
        self.special_text: Counter[str] = Counter()
        self.unknown_id, self.unknown_tokens = unknown_id(tokenizer), 0
        added = tokenizer.get_added_tokens_decoder().values() if look_for_special else ()
        names = [token.content for token in added if token.special and len(token.content) >= SPELLED][:SEARCHED]
        self.beginnings = {name[:2] for name in names}  # most text has none of them, which is seen at once
        self.special = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def encode(self, batch: Sequence[Part]) -> Encoded:
        """The ids of both sides, and where the documents start in them."""
        ids, ends = self.encode_texts([part.text for part in batch])
        if self.unknown_id is not None:
            self.unknown_tokens += int(np.count_nonzero(ids == self.unknown_id))
        closed = np.array([part.ends for part in batch])
        if self.end_id is not None:
            ids, ends = np.insert(ids, ends[closed], self.end_id), ends + np.cumsum(closed)
        for part in batch:
            if any(beginning in part.text for beginning in self.beginnings):
                self.special_text.update(self.special.findall(part.text))
        counts, held = np.diff(ends, prepend=0), np.array([part.held for part in batch])
        mask = np.repeat(held, counts) if held.any() else None  # most text is all of one side
        first = np.where(held, np.cumsum(counts * held), np.cumsum(counts * ~held)) - counts
        starts = [place for place, part in enumerate(batch) if part.starts]
        documents = np.zeros(len(starts), DOCUMENT)
        documents["file"], documents["offset"] = [batch[n].file for n in starts], [batch[n].offset for n in starts]
        documents["first_token"], documents["validation"] = first[starts], held[starts]
        train_bytes, held_bytes = (_size_bytes(part.text for part in batch if part.held == side) for side in (0, 1))
        train, held_ids = (ids, ids[:0]) if mask is None else (ids[~mask], ids[mask])
        return Encoded(train, held_ids, documents, int(closed.sum()), train_bytes, held_bytes, train_bytes + held_bytes)


def _size_bytes(texts: Iterable[str]) -> int:
    return len("".join(texts).encode("utf-8"))


def _open_sound(folder: Path) -> Prepared | None:
    """The token files in the cache, if they are complete and have an index."""
    if not folder.is_dir():
        return None
    try:
        found = open_prepared(folder)
    except (CorpusError, ConfigError, KeyError, TypeError):
        return None
    return found if found.manifest["version"] == FORMAT_VERSION else None


def _map(file: Path, dtype: np.dtype[Any], count: int, digest: str) -> NDArray[Any]:
    size = file.stat().st_size if file.is_file() else -1
    expected = count * dtype.itemsize
    if size != expected:
        raise CorpusError(f"{file} has {max(size, 0)} bytes; {expected} were written. The token file is damaged.")
    if not size:
        return np.zeros(0, dtype)
    array = np.memmap(file, dtype, mode="r")
    if size <= CHECKED_BYTES and hashlib.sha256(array.view(np.uint8).data).hexdigest() != digest:
        raise CorpusError(f"{file} is not as it was written: its SHA-256 differs. The token file is damaged.")
    return array
