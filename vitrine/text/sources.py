"""Files to documents: plain text, source code, .jsonl, .csv and .parquet, each plain or .gz or .zst."""

import codecs
import csv
import gzip
import hashlib
import json
import os
import re
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from vitrine.config import DataConfig
from vitrine.errors import CorpusError, nearest
from vitrine.text.cache import cache_folder, free_bytes

PLAIN = frozenset(
    [
        ".txt",
        ".md",
        ".rst",
        ".tex",
        ".html",
        ".xml",
        ".yaml",
        ".yml",
        ".toml",
        ".json",
        ".py",
        ".js",
        ".ts",
        ".jsx",
        ".tsx",
        ".svelte",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cs",
        ".go",
        ".rs",
        ".java",
        ".kt",
        ".scala",
        ".swift",
        ".rb",
        ".php",
        ".pl",
        ".lua",
        ".r",
        ".jl",
        ".sh",
        ".sql",
        ".hs",
        ".ml",
        ".ex",
        ".exs",
        ".clj",
        ".lisp",
        ".el",
        ".vim",
        ".css",
    ]
)
ROWS = frozenset({".jsonl", ".csv", ".parquet"})
PACKED = frozenset({".gz", ".zst"})
USUAL_FIELDS = ("text", "content")
PIECE_BYTES = 2**18
ZST_BYTES = 2**10  # read at a time: unpacked they may be 2**15 times as much
WORD_ENDS = re.compile(r"\S(?=\s)")
SURROGATES = re.compile("[\ud800-\udfff]")
SAVED_STATE, SAVED_INFO, SAVED_SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
PARQUET_BYTES = 2**24  # of rows in memory at a time, about
NAMED = 10  # files that are not UTF-8 are named up to so many

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all
Counts = Mapping[str, tuple[int, int]]  # ending -> files, bytes


@dataclass(frozen=True)
class Reading:
    """How text is read.

    text_field: of .jsonl, .csv and .parquet; empty: the usual one. max_record_bytes: of one line or row of these.
    invalid: what becomes of a file that is not UTF-8, and of a row with half of a character.
    """

    text_field: str = ""
    max_record_bytes: int = 64_000_000
    invalid: Literal["refuse", "skip", "replace"] = "refuse"

    @classmethod
    def of(cls, data: DataConfig) -> "Reading":
        """From the hyperparameters."""
        return cls(data.text_field, data.max_record_bytes, data.invalid)


class Piece(NamedTuple):
    """A part of a document that is small enough for memory.

    ends: whether a document ends with this piece. file: index into the source's files; 0 for a data set of the Hub.
    offset: where the document starts: unpacked bytes of the file before it, or its row number (parquet, data sets).
    """

    text: str
    ends: bool
    file: int
    offset: int


@dataclass(frozen=True)
class Source:
    """One argument of the command line, and its files.

    sizes: of the files, in bytes on disk. left_out: what a folder or a glob holds that is not read.
    saved: the folder of a data set that Hugging Face's datasets saved; then files are its tables.
    """

    spec: str
    files: tuple[Path, ...] = ()
    sizes: tuple[int, ...] = ()
    left_out: Counts = field(default_factory=dict)
    saved: Path | None = None

    @cached_property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.sizes)

    @property
    def read(self) -> Counts:
        """Files and bytes that are read, by ending."""
        counts: dict[str, tuple[int, int]] = {}
        for file, size in zip(self.files, self.sizes, strict=True):
            _count(counts, _ending(file) or file.name, size)
        return counts


@dataclass(frozen=True)
class Scan:
    """The result of one pass over a source.

    digest: see `digest_of`; file_digests: SHA-256 of each file. document_keys: of each document, by its text alone;
    document_bytes: its UTF-8 bytes. invalid: the first files and rows that are not valid text, each with the reason;
    n_invalid: how many there are.
    """

    digest: str
    documents: int
    characters: int
    size_bytes: int
    alphabet: str
    file_digests: tuple[str, ...] = ()
    document_keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    document_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    invalid: tuple[str, ...] = ()
    n_invalid: int = 0


class InvalidTextError(CorpusError):
    """Files that are not UTF-8, or rows that are not valid Unicode.

    found: the first of them, each with the reason. encoding: of a single file, if it could be told.
    """

    def __init__(self, found: Sequence[str], count: int, encoding: str = "") -> None:
        self.found, self.count, self.encoding = tuple(found[:NAMED]), count, encoding
        it = "it" if count == 1 else "them"
        self.advice = f"Convert {it}: iconv -f {encoding or 'ENCODING'} -t UTF-8 OLD > NEW."
        more = f"; and {count - len(self.found)} more" if count > len(self.found) else ""
        said = f"{count} files or rows are not valid text: " if count > 1 else ""
        super().__init__(
            f"{said}{'; '.join(self.found)}{more}. {self.advice} Or leave {it} out: --set data.invalid=skip; or read U+FFFD "
            "for what is not valid: --set data.invalid=replace."
        )


def find_sources(corpus: Sequence[str]) -> list[Source]:
    """Find the files of each argument: a file, a folder, a glob, or hf:owner/name."""
    return [_find(spec) for spec in corpus]


def pieces(source: Source, reading: Reading = Reading(), meter: "Meter | None" = None) -> Iterator[Piece]:
    """The text of a source, a bounded piece at a time. meter: hashes all that is read.

    A piece ends before white space wherever there is some: a place where GPT-2's pre-tokenization parts
    words anyway, so that the ids of the pieces are those of the whole.
    """
    return _pieces(source, reading, meter or Meter())


def scan(source: Source, reading: Reading = Reading(), progress: Progress | None = None) -> Scan:
    """Read a source once: digest, counts, alphabet. Raises CorpusError if there is no text in it."""
    seen = np.zeros(sys.maxunicode + 1, bool)  # by code point: a set of characters takes three times as long
    characters = size = document_bytes = 0
    meter, keys, sizes = Meter(), array("Q"), array("q")
    one = (
        len(source.files) == 1 and not source.saved and _ending(source.files[0]) not in ROWS
    )  # document: nothing to tell it from
    document = _document_key()
    for piece in _pieces(source, reading, meter, listing=True):
        seen[np.frombuffer(piece.text.encode("utf-32-le"), np.uint32)] = True
        raw = piece.text.encode("utf-8")
        characters, size, document_bytes = characters + len(piece.text), size + len(raw), document_bytes + len(raw)
        if not one:
            document.update(raw)
        if piece.ends:
            keys.append(int.from_bytes(document.digest(), "little"))
            sizes.append(document_bytes)
            document, document_bytes = _document_key(), 0
        if progress and source.files:
            progress("reading", meter.size_bytes, source.size_bytes)
        elif progress:
            progress("reading", size, size)
    if meter.n_invalid and reading.invalid == "refuse":
        raise InvalidTextError(meter.invalid, meter.n_invalid, meter.encoding)
    if not characters:
        left = f" that is valid ({'; '.join(meter.invalid)})" if meter.n_invalid else ""
        raise CorpusError(f"{source.spec} holds no text{left}. Give a file with text in it.")
    return Scan(
        meter.total.hexdigest(),
        len(keys),
        characters,
        size,
        "".join(map(chr, np.flatnonzero(seen))),
        tuple(meter.file_digests),
        np.frombuffer(keys, np.uint64),
        np.frombuffer(sizes, np.int64),
        tuple(meter.invalid),
        meter.n_invalid,
    )


def scan_all(
    sources: Sequence[Source],
    scan_one: Callable[[Source], Scan],
) -> list[Scan]:
    """Scan each source. One error names everything that is not valid text."""
    scans, refused = [], []
    for source in sources:
        try:
            scans.append(scan_one(source))
        except InvalidTextError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise InvalidTextError(
            [what for error in refused for what in error.found], sum(error.count for error in refused)
        )
    return scans


def digest_of(source: Source) -> str:
    """SHA-256 over the bytes and endings of the files; their paths do not matter."""
    meter = Meter()
    for file in source.files:
        meter.read_whole(file)
        meter.end_file(file)
    return meter.total.hexdigest()


def _document_key() -> "hashlib.blake2b":
    """The hash whose first 8 bytes are the key of a document: of its UTF-8 text, with a fixed key, never a run's seed."""
    return hashlib.blake2b(key=b"vitrine: documents", digest_size=8)


class Meter:
    """Counts and hashes the bytes of files as they lie on disk, while they are read; of a data set of the Hub, the text.

    total: gives the digest of the source. file_digests: of the files that were read to their ends.
    invalid, n_invalid: what was met that is not valid text: the first of it, and how often.
    encoding: what all these files are, if it is one and could be told.
    """

    def __init__(self) -> None:
        self.total, self.file, self.size_bytes = hashlib.sha256(), hashlib.sha256(), 0
        self.file_digests: list[str] = []
        self.invalid: list[str] = []
        self.n_invalid, self.encoding = 0, ""

    def note_invalid(self, what: str, encoding: str = "") -> None:
        """A file or a row is not valid text."""
        self.encoding = encoding if encoding == self.encoding or not self.n_invalid else ""
        self.n_invalid += 1
        if self.n_invalid <= NAMED:
            self.invalid.append(what)

    def add(self, raw: bytes) -> None:
        """Bytes of the file that is being read."""
        self.file.update(raw)
        self.size_bytes += len(raw)

    def read_whole(self, file: Path) -> None:
        """All bytes of a file."""
        try:
            with open(file, "rb", buffering=0) as handle:
                while raw := handle.read(PIECE_BYTES):
                    self.add(raw)
        except OSError as error:
            raise CorpusError(f"{file} cannot be read: {error.strerror or error}.") from None

    def end_file(self, file: Path) -> None:
        """The file that is being read has ended."""
        self.file_digests.append(self.file.hexdigest())
        self.total.update(f"{_ending(file)} {self.file_digests[-1]}\n".encode())
        self.file = hashlib.sha256()


@dataclass(frozen=True)
class _File:
    """One file of a source, while it is read."""

    path: Path
    number: int
    reading: Reading
    meter: Meter

    @property
    def errors(self) -> str:
        """The decoder's `errors` argument for bytes that are not text."""
        return "replace" if self.reading.invalid == "replace" else "strict"

    def __str__(self) -> str:
        return str(self.path)


def _find(spec: str) -> Source:
    if spec.startswith("hf:"):
        return Source(spec)
    if not spec.strip():
        raise CorpusError("An argument is empty, and names no text. Give a file, a folder or a glob.")
    path = Path(spec).expanduser()
    try:
        if path.is_file():
            return Source(spec, (path,), (path.stat().st_size,))
        if path.is_dir():
            readable = os.access(path, os.R_OK | os.X_OK)
            return (_saved(spec, path) if readable else None) or _folder(spec, path)
        if any(mark in spec for mark in "*?["):
            return _matches(spec, path)
        beside = [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:
        raise CorpusError(f"{error.filename or spec} cannot be searched: {error.strerror or error}.") from None
    hint = nearest(str(path), beside) if beside else f"There is no folder {path.parent} either."
    raise CorpusError(f"There is no file or folder {spec}. {hint if 'Did you' in hint or not beside else ''}".rstrip())


def _folder(spec: str, path: Path) -> Source:
    found: list[tuple[Path, int]] = []
    left_out: dict[str, tuple[int, int]] = {}
    for file, size, kind in _walk(path):
        if kind:
            _count(left_out, kind, size)
        elif (ending := _ending(file)) in PLAIN or ending in ROWS:
            found.append((file, size))
        else:
            _count(left_out, ending or "without an ending", size)
    if not found:
        raise CorpusError(
            f"The folder {spec} holds no file that can be read as text. Known endings: "
            f"{' '.join(sorted(PLAIN | ROWS))}, each also with .gz or .zst."
        )
    return Source(spec, tuple(file for file, _ in found), tuple(size for _, size in found), left_out)


def _walk(folder: Path, hidden: bool = False) -> Iterator[tuple[Path, int, str]]:
    """Every file below a folder in order, its size, and why it is not read: "", hidden, linked folder, special file."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if hidden:
            return
        raise CorpusError(
            f"The folder {folder} cannot be searched: {error.strerror}. Its text would be missing: make it readable, or "
            "name the files and folders that are."
        ) from None
    for entry in entries:
        below = hidden or entry.name.startswith(".")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), below)
        elif entry.is_file():
            if entry.name == SAVED_STATE and (folder / SAVED_INFO).is_file() and not hidden:
                raise CorpusError(
                    f"{folder} was saved by the datasets library, and lies within another folder. Name it by itself."
                )
            yield Path(entry.path), entry.stat().st_size, "hidden" if below else ""
        else:
            yield Path(entry.path), 0, "hidden" if below else "linked folder" if entry.is_dir() else "special file"


def _saved(spec: str, path: Path) -> Source | None:
    """A folder that `save_to_disk` of Hugging Face's datasets wrote; of several splits, the one for training."""
    left_out: dict[str, tuple[int, int]] = {}
    try:
        if (path / SAVED_SPLITS).is_file():
            splits = json.loads((path / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
            if "train" not in splits:
                raise CorpusError(f"{spec} has no split train. Name one that it has: {path / splits[0]}.")
            for split in splits:
                for table in (path / split).glob("*.arrow") if split != "train" else ():
                    _count(left_out, f"split {split}", table.stat().st_size)
            path = path / "train"
        if not ((path / SAVED_STATE).is_file() and (path / SAVED_INFO).is_file()):
            return None
        state = json.loads((path / SAVED_STATE).read_text(encoding="utf-8"))
        files = tuple(path / table["filename"] for table in state["_data_files"])
        return Source(spec, files, tuple(file.stat().st_size for file in files), left_out, path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CorpusError(f"{path} was saved by the datasets library, but is not whole: {error}.") from None


def _matches(spec: str, path: Path) -> Source:
    root = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
    found = sorted(root.glob(pattern))
    files = tuple(file for file in found if file.is_file())
    if not files:
        raise CorpusError(f"No file matches {spec}. Give a file, a folder, or a glob that matches files.")
    left_out = {"folder": (len(found) - len(files), 0)} if len(found) > len(files) and "**" not in spec else {}
    return Source(spec, files, tuple(file.stat().st_size for file in files), left_out)


def _count(counts: dict[str, tuple[int, int]], name: str, size: int) -> None:
    files, size_bytes = counts.get(name, (0, 0))
    counts[name] = files + 1, size_bytes + size


def _ending(file: Path) -> str:
    """The ending that tells the format of a file, without .gz or .zst."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _pieces(source: Source, reading: Reading, meter: Meter, listing: bool = False) -> Iterator[Piece]:
    """listing: what is not valid text is noted in the meter, and the next file read, where it would be refused."""
    for found in _files_of(source, reading, meter):
        try:
            yield from found
        except InvalidTextError as error:
            if not listing:
                raise
            meter.note_invalid(error.found[0], error.encoding)


def _files_of(source: Source, reading: Reading, meter: Meter) -> Iterator[Iterator[Piece]]:
    """The pieces of each file."""
    if source.spec.startswith("hf:"):
        yield _hub_pieces(_File(Path(source.spec), 0, reading, meter))
    elif source.saved:
        for path in source.files:
            meter.read_whole(path)
            meter.end_file(path)
        yield _row_pieces(_File(source.saved, 0, reading, meter), _saved_rows(source.saved))
    else:
        for number, path in enumerate(source.files):
            yield _file_pieces(_File(path, number, reading, meter))
            meter.end_file(path)


def _file_pieces(file: _File) -> Iterator[Piece]:
    ending = _ending(file.path)
    if file.reading.invalid != "refuse" and ending != ".parquet" and (error := _first_invalid(file)):
        file.meter.note_invalid(error.found[0])
        if file.reading.invalid == "skip":
            file.meter.read_whole(file.path)
            return
    if ending == ".parquet":
        yield from _parquet_pieces(file)
    elif ending == ".jsonl":
        yield from _jsonl_pieces(file)
    elif ending == ".csv":
        yield from _csv_pieces(file)
    else:
        yield from _plain_pieces(file)


def _first_invalid(file: _File) -> InvalidTextError | None:
    """Why a file is not UTF-8, if it is not; this reads it to its end."""
    try:
        for _ in _text(replace(file, reading=Reading(), meter=Meter())):
            pass
    except InvalidTextError as error:
        if file.reading.invalid == "replace" and error.encoding:
            raise CorpusError(
                f"{error.found[0]}: data.invalid=replace would leave nothing of its text. {error.advice}"
            ) from None
        return error
    return None


class _Metered:
    """A file on disk whose bytes are counted and hashed as they are read."""

    def __init__(self, handle: BinaryIO, meter: Meter) -> None:
        self.handle, self.meter = handle, meter

    def read(self, size: int = -1) -> bytes:
        raw = self.handle.read(size)
        self.meter.add(raw)
        return raw


def _chunks(file: _File) -> Iterator[bytes]:
    """The unpacked bytes of a file, piece by piece."""
    try:
        with open(file.path, "rb", buffering=0) as handle:
            raw = cast(BinaryIO, _Metered(cast(BinaryIO, handle), file.meter))
            suffix = file.path.suffix.lower()
            if suffix == ".gz":
                yield from _within_free_disk(file, _read(cast(BinaryIO, gzip.GzipFile(fileobj=raw))))
            elif suffix == ".zst":
                yield from _within_free_disk(file, _unpack_zst(raw))
            else:
                yield from _read(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(f"{file} is damaged: it cannot be unpacked ({error}).") from None
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror or error}.") from None


def _read(handle: BinaryIO) -> Iterator[bytes]:
    while chunk := handle.read(PIECE_BYTES):
        yield chunk


def _unpack_zst(raw: BinaryIO) -> Iterator[bytes]:
    """All frames of a file. The stream reader of the library does not tell a file that was cut from a whole one."""
    frame, held = zstandard.ZstdDecompressor().decompressobj(), bytearray()
    while packed := raw.read(ZST_BYTES):
        while packed:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            held += frame.decompress(packed)
            packed = frame.unused_data if frame.eof else b""
            while len(held) >= PIECE_BYTES:
                yield bytes(held[:PIECE_BYTES])
                del held[:PIECE_BYTES]
    if not frame.eof:
        raise EOFError("it ends in the middle of a frame")
    if held:
        yield bytes(held)


def _within_free_disk(file: _File, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Raises CorpusError if a file unpacks to more than the disk can take: a few bytes can become terabytes."""
    folder = cache_folder()
    size, free = 0, free_bytes(folder)
    for chunk in chunks:
        size += len(chunk)
        if size > free:
            raise CorpusError(
                f"{file} holds more text than the disk of {folder} has room for: {size:,} bytes are unpacked, and it goes "
                f"on. Set VITRINE_CACHE to a folder with more than {free:,} bytes."
            )
        yield chunk


def _text(file: _File) -> Iterator[str]:
    """The text of a file, piece by piece; line ends stay as they are, a byte-order mark goes."""
    decoder = codecs.getincrementaldecoder("utf-8")(file.errors)
    offset, first = 0, True
    for chunk in _chunks(file):
        if first:
            _check_encoding(file, chunk)
            chunk_text = chunk.removeprefix(codecs.BOM_UTF8)
            offset += len(chunk) - len(chunk_text)
            chunk, first = chunk_text, False
        yield _decode(decoder, chunk, file, offset)
        offset += len(chunk)
    if rest := _decode(decoder, b"", file, offset, final=True):  # half a character, replaced
        yield rest


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, file: _File, offset: int, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, offset - pending, error) from None


def _not_utf8(file: _File, offset: int, error: UnicodeDecodeError) -> InvalidTextError:
    at, byte = offset + error.start, error.object[error.start]
    return InvalidTextError([f"{file} is not UTF-8: the byte at offset {at} is 0x{byte:02x}"], 1)


def _check_encoding(file: _File, start: bytes) -> None:
    """Recognise UTF-16 and UTF-32 by their marks, or by the zeros that they put into plain text."""
    name = ""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        name = "UTF-32"
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "UTF-16"
    elif len(head := start[:512]) >= 8 and head.count(0) >= len(head) // 4:
        even, odd = head[::2].count(0), head[1::2].count(0)
        name = "UTF-16LE" if odd > 4 * even else "UTF-16BE" if even > 4 * odd else ""
    if name:
        raise InvalidTextError([f"{file} is {name}, not UTF-8"], 1, name)


def _plain_pieces(file: _File) -> Iterator[Piece]:
    """One document, in pieces that end before white space."""
    held = ""
    for text in _text(file):
        held += text
        cut = _last_cut(held) if len(held) >= PIECE_BYTES // 2 else 0
        if not cut and len(held) > 2 * PIECE_BYTES:  # text without white space: memory stays bounded all the same
            cut = PIECE_BYTES
        if cut:
            yield Piece(held[:cut], False, file.number, 0)
            held = held[cut:]
    if held:
        yield Piece(held, True, file.number, 0)


def _last_cut(text: str) -> int:
    """The last place, not before the middle, between a character and white space after it; else 0."""
    middle, end = len(text) // 2, len(text)
    while end - 1 > middle:
        start = max(middle, end - 256)
        for match in reversed([*WORD_ENDS.finditer(text, start, end)]):
            return match.end()
        end = start + 1
    return 0


def _cut(text: str, where: str, file: _File, offset: int) -> Iterator[Piece]:
    """One document that is already in memory, in pieces."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        what = f"{where} holds half of a character (U+{ord(text[error.start]):04X}, a surrogate), which is not valid Unicode"
        if file.reading.invalid == "refuse":
            raise InvalidTextError([what], 1) from None
        file.meter.note_invalid(what)
        if file.reading.invalid == "skip":
            return
        text = SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        size = len(text.encode("utf-8"))
    if size > file.reading.max_record_bytes:
        raise _too_long(where, size, file)
    start = 0
    while len(text) - start > 2 * PIECE_BYTES:
        place = start + (_last_cut(text[start : start + PIECE_BYTES]) or PIECE_BYTES)
        yield Piece(text[start:place], False, file.number, offset)
        start = place
    if text:
        yield Piece(text[start:], True, file.number, offset)


def _too_long(where: str, size: int, file: _File, perhaps: str = "") -> CorpusError:
    limit = file.reading.max_record_bytes
    return CorpusError(
        f"{where} is one record of {size:,} bytes or more; data.max_record_bytes allows {limit:,}. {perhaps}If it is one "
        f"document all the same, raise that: --set data.max_record_bytes={10 * limit}."
    )


def _lines(file: _File) -> Iterator[tuple[str, int]]:
    """The lines of a file without their ends, and the offset at which each starts."""
    held: list[bytes] = []  # of the line that has not ended; put together once, at its end
    number = offset = size = 0
    for chunk in _chunks(file):
        if not offset and not held:
            _check_encoding(file, chunk)
        first, *rest = chunk.split(b"\n")
        held.append(first)
        size += len(first)
        if size > file.reading.max_record_bytes:
            raise _too_long(f"{file}, line {number + 1}", size, file)
        if not rest:
            continue
        *whole, last = b"".join(held), *rest
        for line in whole:
            yield _decoded(line, file, offset)
            number, offset = number + 1, offset + len(line) + 1
        held, size = [last], len(last)
    if line := b"".join(held):
        yield _decoded(line, file, offset)


def _decoded(line: bytes, file: _File, offset: int) -> tuple[str, int]:
    start = len(codecs.BOM_UTF8) if not offset and line.startswith(codecs.BOM_UTF8) else 0
    try:
        return line[start:].decode("utf-8", file.errors), offset + start
    except UnicodeDecodeError as error:
        raise _not_utf8(file, offset + start, error) from None


def _jsonl_pieces(file: _File) -> Iterator[Piece]:
    text_field = _TextField(file.reading.text_field)
    for number, (line, offset) in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where} is not JSON: {error}.") from None
        yield from _cut(text_field.text(row, where), where, file, offset)


def _csv_pieces(file: _File) -> Iterator[Piece]:
    csv.field_size_limit(sys.maxsize)
    taken: list[int] = []  # where the lines of a row start

    def lines() -> Iterator[str]:
        for line, offset in _lines(file):
            taken.append(offset)
            if (size := offset - taken[0] + len(line)) > file.reading.max_record_bytes:
                first = rows.line_num + 2 - len(taken)
                raise _too_long(f"{file}, the row from line {first} on", size, file, "Is a quote not closed? ")
            yield line + "\n"  # csv wants lines that keep their ends: a quoted field may hold some

    rows = csv.reader(lines())
    header: list[str] = []
    text_field = _TextField(file.reading.text_field)
    try:
        for values in rows:
            offset, where = taken[0], f"{file}, line {rows.line_num}"
            taken.clear()
            if not header or not values:  # an empty line is no row
                header = header or values
                continue
            if len(values) > len(header):
                raise CorpusError(f"{where} has more fields than the header.")
            row = dict.fromkeys(header) | dict(zip(header, values, strict=False))
            yield from _cut(text_field.text(row, where), where, file, offset)
    except csv.Error as error:
        raise CorpusError(f"{file}, line {rows.line_num} is not CSV: {error}.") from None


def _parquet_pieces(file: _File) -> Iterator[Piece]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CorpusError(f"Reading {file} needs pyarrow: pip install 'vitrine[parquet]'.") from None
    packed = file.path.suffix.lower() != ".parquet"
    try:
        with tempfile.TemporaryFile() if packed else open(file.path, "rb") as handle:
            if packed:
                handle.writelines(_chunks(file))
            else:
                file.meter.read_whole(file.path)  # parquet is read at many places: its digest takes a pass of its own
            table = pyarrow.parquet.ParquetFile(handle)
            about = table.metadata
            size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            at_once = max(1, min(1024, PARQUET_BYTES * about.num_rows // max(1, size)))
            batches = table.iter_batches(batch_size=at_once)
            yield from _row_pieces(file, (row for batch in batches for row in batch.to_pylist()))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{file} cannot be read as parquet: {str(error).rstrip('.')}.") from None


def _hub_pieces(file: _File) -> Iterator[Piece]:
    for piece in _row_pieces(file, _hub_rows(str(file))):
        file.meter.total.update(piece.text.encode("utf-8"))
        yield piece


def _row_pieces(file: _File, rows: Iterable[Any]) -> Iterator[Piece]:
    text_field = _TextField(file.reading.text_field)
    for number, row in enumerate(rows):
        where = f"{file}, row {number + 1}"
        yield from _cut(text_field.text(row, where), where, file, number)


def _saved_rows(folder: Path) -> Iterable[Any]:
    datasets = _datasets_library(str(folder))
    try:
        return cast(Iterable[Any], datasets.load_from_disk(str(folder)))
    except Exception as error:  # whatever the library says of the files
        raise CorpusError(f"{folder} cannot be loaded by the datasets library: {error}.") from None


def _hub_rows(spec: str) -> Iterable[Any]:
    """The rows of a dataset on the Hub, or of a local folder that the datasets library can load."""
    datasets = _datasets_library(spec)
    try:
        return cast(Iterable[Any], datasets.load_dataset(spec.removeprefix("hf:"), split="train"))
    except Exception as error:  # whatever the network, the Hub or the files say
        raise CorpusError(
            f"{spec} cannot be loaded: {error}. It needs the network, and a dataset with a train split."
        ) from None


def _datasets_library(spec: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise CorpusError(f"Reading {spec} needs the datasets library: pip install 'vitrine[hub]'.") from None
    return datasets


class _TextField:
    """Which field of the rows of a file holds the text: the named one, or the usual one, or the only one that is text.

    The first row decides for all.
    """

    def __init__(self, text_field: str) -> None:
        self.name, self.named, self.kind = text_field, bool(text_field), ""

    def text(self, row: Any, where: str) -> str:
        """The text of a row; of null, none."""
        if not isinstance(row, str | dict):
            raise CorpusError(f"{where} is neither text nor an object with a text field: {str(row)[:40]!r}.")
        kind = "text" if isinstance(row, str) else "an object"
        if kind != (self.kind or kind):
            raise CorpusError(f"{where} is {kind}; what comes before it in the file is {self.kind}. Write all alike.")
        self.kind = kind
        if isinstance(row, str):
            return row
        if not self.name:
            self.name = self._usual(row, where)
        if self.name not in row:
            there = ", ".join(map(str, row)) or "none"
            why = "as data.text_field says" if self.named else "as all before it in the file have"
            raise CorpusError(
                f"{where} has no field {self.name}, {why}; its fields are: {there}. Call the text by one name in all, or "
                "name another with --set data.text_field=NAME."
            )
        value = row[self.name]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise CorpusError(
                f"{where}: the field {self.name} is not text: {str(value)[:40]!r}. "
                "Name another with --set data.text_field=NAME."
            )
        return value

    @staticmethod
    def _usual(row: dict[str, Any], where: str) -> str:
        usual = [name for name in USUAL_FIELDS if name in row]
        texts = [name for name, value in row.items() if isinstance(value, str)]
        if not usual and len(texts) != 1:
            raise CorpusError(
                f"{where}: which field holds the text? There are {', '.join(map(str, row))}. "
                "Say so with --set data.text_field=NAME."
            )
        return (usual or texts)[0]
