"""Files to documents: plain text, source code, .jsonl, .csv and .parquet, each plain or .gz or .zst."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from vitrine.errors import CorpusError, nearest

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

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all
Counts = Mapping[str, tuple[int, int]]  # ending -> files, bytes


@dataclass(frozen=True)
class Reading:
    """How text is read.

    text_field: of .jsonl, .csv and .parquet; empty: the usual one. max_record_bytes: of one line or row of these.
    """

    text_field: str = ""
    max_record_bytes: int = 64_000_000


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
    """One argument of the command line, and the files that it stands for.

    sizes: of the files, in bytes on disk. left_out: what a folder or a glob holds that is not read.
    """

    spec: str
    files: tuple[Path, ...] = ()
    sizes: tuple[int, ...] = ()
    left_out: Counts = field(default_factory=dict)

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
    """What one pass over a source finds.

    digest: see `digest_of`; file_digests: SHA-256 of each file. document_keys: of each document, by its text alone;
    document_bytes: its UTF-8 bytes.
    """

    digest: str
    documents: int
    characters: int
    size_bytes: int
    alphabet: str
    file_digests: tuple[str, ...] = ()
    document_keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    document_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def find_sources(corpus: Sequence[str]) -> list[Source]:
    """The files that each argument stands for: a file, a folder, a glob, or hf:owner/name."""
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
    one = len(source.files) == 1 and _ending(source.files[0]) not in ROWS  # document: nothing to tell it from
    document = _document_key()
    for piece in _pieces(source, reading, meter):
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
    if not characters:
        raise CorpusError(f"{source.spec} holds no text. Give a file with text in it.")
    return Scan(
        meter.total.hexdigest(),
        len(keys),
        characters,
        size,
        "".join(map(chr, np.flatnonzero(seen))),
        tuple(meter.file_digests),
        np.frombuffer(keys, np.uint64),
        np.frombuffer(sizes, np.int64),
    )


def digest_of(source: Source) -> str:
    """SHA-256 over the bytes and endings of the files, wherever they lie."""
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
    """

    def __init__(self) -> None:
        self.total, self.file, self.size_bytes = hashlib.sha256(), hashlib.sha256(), 0
        self.file_digests: list[str] = []

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

    def __str__(self) -> str:
        return str(self.path)


def _find(spec: str) -> Source:
    if spec.startswith("hf:"):
        return Source(spec)
    path = Path(spec).expanduser()
    if path.is_file():
        return Source(spec, (path,), (path.stat().st_size,))
    if path.is_dir():
        return _folder(spec, path)
    if any(mark in spec for mark in "*?["):
        return _matches(spec, path)
    beside = [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(str(path), beside) if beside else f"There is no folder {path.parent} either."
    raise CorpusError(f"There is no file or folder {spec}. {hint if 'Did you' in hint or not beside else ''}".rstrip())


def _folder(spec: str, path: Path) -> Source:
    found: list[tuple[Path, int]] = []
    left_out: dict[str, tuple[int, int]] = {}
    for file, size, hidden in _walk(path):
        if hidden:
            _count(left_out, "hidden", size)
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


def _walk(folder: Path, hidden: bool = False) -> Iterator[tuple[Path, int, bool]]:
    """Every file below a folder in order, its size, and whether it or a folder above it is hidden."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        below = hidden or entry.name.startswith(".")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), below)
        elif entry.is_file():
            yield Path(entry.path), entry.stat().st_size, below


def _matches(spec: str, path: Path) -> Source:
    root = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
    found = tuple(file for file in sorted(root.glob(pattern)) if file.is_file())
    if not found:
        raise CorpusError(f"No file matches {spec}. Give a file, a folder, or a glob that matches files.")
    return Source(spec, found, tuple(file.stat().st_size for file in found))


def _count(counts: dict[str, tuple[int, int]], name: str, size: int) -> None:
    files, size_bytes = counts.get(name, (0, 0))
    counts[name] = files + 1, size_bytes + size


def _ending(file: Path) -> str:
    """The ending that says what a file holds, whether or not it is packed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _pieces(source: Source, reading: Reading, meter: Meter) -> Iterator[Piece]:
    if source.spec.startswith("hf:"):
        for piece in _hub_pieces(source.spec, reading):
            meter.total.update(piece.text.encode("utf-8"))
            yield piece
    for number, path in enumerate(source.files):
        file = _File(path, number, reading, meter)
        ending = _ending(path)
        if ending == ".parquet":
            yield from _parquet_pieces(file)
        elif ending == ".jsonl":
            yield from _jsonl_pieces(file)
        elif ending == ".csv":
            yield from _csv_pieces(file)
        else:
            yield from _plain_pieces(file)
        meter.end_file(path)


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
            unpacked = _unpacked(file, _Metered(cast(BinaryIO, handle), file.meter))
            while chunk := unpacked.read(PIECE_BYTES):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(f"{file} is damaged: it cannot be unpacked ({error}).") from None
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror or error}.") from None


def _unpacked(file: _File, raw: _Metered) -> Any:
    suffix = file.path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=cast(BinaryIO, raw))
    if suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(cast(BinaryIO, raw))
    return raw


def _text(file: _File) -> Iterator[str]:
    """The text of a file, piece by piece; line ends stay as they are, a byte-order mark goes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, first = 0, True
    for chunk in _chunks(file):
        if first:
            _check_encoding(file, chunk)
            chunk_text = chunk.removeprefix(codecs.BOM_UTF8)
            offset += len(chunk) - len(chunk_text)
            chunk, first = chunk_text, False
        yield _decode(decoder, chunk, file, offset)
        offset += len(chunk)
    _decode(decoder, b"", file, offset, final=True)


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, file: _File, offset: int, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, offset - pending, error) from None


def _not_utf8(file: _File, offset: int, error: UnicodeDecodeError) -> CorpusError:
    return CorpusError(
        f"{file} is not UTF-8: the byte at offset {offset + error.start} is 0x{error.object[error.start]:02x}. If you "
        f"know its encoding, convert it: iconv -f ENCODING -t UTF-8 '{file}' > new.txt."
    )


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
        raise CorpusError(f"{file} is {name}, not UTF-8. Convert it: iconv -f {name} -t UTF-8 '{file}' > new.txt.")


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
    for place in range(len(text) - 1, len(text) // 2, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return 0


def _cut(text: str, where: str, number: int, offset: int) -> Iterator[Piece]:
    """One document that is in memory already."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where} holds half of a character (U+{ord(text[error.start]):04X}, a surrogate): not valid Unicode."
        ) from None
    while len(text) > 2 * PIECE_BYTES:
        place = _last_cut(text[:PIECE_BYTES]) or PIECE_BYTES
        yield Piece(text[:place], False, number, offset)
        text = text[place:]
    if text:
        yield Piece(text, True, number, offset)


def _lines(file: _File) -> Iterator[tuple[str, int]]:
    """The lines of a file without their ends, and the offset at which each starts."""
    held: list[bytes] = []
    offset = 0
    for chunk in _chunks(file):
        if not offset and not held:
            _check_encoding(file, chunk)
        first, *rest = chunk.split(b"\n")
        held.append(first)
        if not rest:
            continue
        *whole, last = b"".join(held), *rest
        for line in whole:
            yield _decoded(line, file, offset)
            offset += len(line) + 1
        held = [last]
    if line := b"".join(held):
        yield _decoded(line, file, offset)


def _decoded(line: bytes, file: _File, offset: int) -> tuple[str, int]:
    start = len(codecs.BOM_UTF8) if not offset and line.startswith(codecs.BOM_UTF8) else 0
    try:
        return line[start:].decode("utf-8"), offset + start
    except UnicodeDecodeError as error:
        raise _not_utf8(file, offset + start, error) from None


def _jsonl_pieces(file: _File) -> Iterator[Piece]:
    for number, (line, offset) in enumerate(_lines(file), start=1):
        where = f"{file}, line {number}"
        text = _field(_json_row(line, where), file.reading.text_field, where)
        yield from _cut(text, where, file.number, offset)


def _json_row(line: str, where: str) -> Any:
    if not line.strip():
        return ""
    try:
        return json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where} is not JSON: {error}.") from None


def _csv_pieces(file: _File) -> Iterator[Piece]:
    csv.field_size_limit(sys.maxsize)
    taken: list[int] = []  # where the lines of a row start

    def lines() -> Iterator[str]:
        for line, offset in _lines(file):
            taken.append(offset)
            yield line + "\n"  # csv wants lines that keep their ends: a quoted field may hold some

    rows = csv.reader(lines())
    header: list[str] = []
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
            yield from _cut(_field(row, file.reading.text_field, where), where, file.number, offset)
    except csv.Error as error:
        raise CorpusError(f"{file}, line {rows.line_num} is not CSV: {error}.") from None


def _parquet_pieces(file: _File) -> Iterator[Piece]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CorpusError(f"Reading {file} needs pyarrow: pip install 'vitrine[parquet]'.") from None
    if file.path.suffix == ".parquet":
        file.meter.read_whole(file.path)  # parquet is read at many places: its digest takes a pass of its own
    handle = file.path if file.path.suffix == ".parquet" else io.BytesIO(b"".join(_chunks(file)))
    try:
        table = pyarrow.parquet.ParquetFile(handle)
        rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            where = f"{file}, row {number + 1}"
            yield from _cut(_field(row, file.reading.text_field, where), where, file.number, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file} cannot be read as parquet: {str(error).rstrip('.')}.") from None


def _hub_pieces(spec: str, reading: Reading) -> Iterator[Piece]:
    for number, row in enumerate(_hub_rows(spec)):
        where = f"{spec}, row {number + 1}"
        yield from _cut(_field(row, reading.text_field, where), where, 0, number)


def _hub_rows(spec: str) -> Iterator[Any]:
    """The rows of a dataset on the Hub, or of a local folder that the datasets library can load."""
    try:
        import datasets
    except ImportError:
        raise CorpusError(f"Reading {spec} needs the datasets library: pip install 'vitrine[hub]'.") from None
    try:
        loaded = datasets.load_dataset(spec.removeprefix("hf:"), split="train")
    except Exception as error:  # whatever the network, the Hub or the files say
        raise CorpusError(
            f"{spec} cannot be loaded: {error}. It needs the network, and a dataset with a train split."
        ) from None
    yield from loaded


def _field(row: Any, text_field: str, where: str) -> str:
    """The text of a row: the named field, or the usual one, or the only one that is text."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise CorpusError(f"{where} is neither text nor an object with a text field: {str(row)[:40]!r}.")
    names = [text_field] if text_field else [name for name in USUAL_FIELDS if name in row]
    if not names:
        names = [name for name, value in row.items() if isinstance(value, str)]
    if (len(names) != 1 and not set(names) & set(USUAL_FIELDS)) or names[0] not in row:
        raise CorpusError(
            f"{where}: which field holds the text? There are {', '.join(map(str, row))}. "
            "Say so with --set data.text_field=NAME."
        )
    value = row[names[0]]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{where}: the field {names[0]} is not text: {str(value)[:40]!r}. "
            "Name another with --set data.text_field=NAME."
        )
    return value
