"""Files to documents: plain text, source code, .jsonl, .csv and .parquet, each plain or .gz or .zst."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import zstandard

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


@dataclass(frozen=True)
class Source:
    """One argument of the command line, and the files that it stands for."""

    spec: str
    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Scan:
    """What one pass over a source finds. digest: see `digest_of`."""

    digest: str
    documents: int
    characters: int
    size_bytes: int
    alphabet: str


def find_sources(corpus: Sequence[str]) -> list[Source]:
    """The files that each argument stands for: a file, a folder, a glob, or hf:owner/name."""
    return [Source(spec, _files(spec)) for spec in corpus]


def pieces(source: Source, text_field: str = "") -> Iterator[tuple[str, bool]]:
    """The text of a source, a bounded piece at a time, and whether a document ends with the piece.

    A piece ends before white space wherever there is some: a place where GPT-2's pre-tokenization parts
    words anyway, so that the ids of the pieces are those of the whole.
    """
    if source.spec.startswith("hf:"):
        for row in _hub_rows(source.spec):
            yield from _cut(_field(row, text_field, source.spec), source.spec)
    for file in source.files:
        ending = _ending(file)
        if ending == ".parquet":
            yield from _parquet_pieces(file, text_field)
        elif ending == ".jsonl":
            for number, line in enumerate(_lines(file), start=1):
                yield from _cut(_field(_json_row(line, file, number), text_field, f"{file}, line {number}"), str(file))
        elif ending == ".csv":
            yield from _csv_pieces(file, text_field)
        else:
            yield from _plain_pieces(file)


def scan(source: Source, text_field: str = "", progress: Progress | None = None) -> Scan:
    """Read a source once: digest, counts, alphabet. Raises CorpusError if there is no text in it."""
    seen = np.zeros(sys.maxunicode + 1, bool)  # by code point: a set of characters takes three times as long
    documents = characters = size = 0
    content = hashlib.sha256()
    for text, ends in pieces(source, text_field):
        seen[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
        raw = text.encode("utf-8")
        documents, characters, size = documents + ends, characters + len(text), size + len(raw)
        if not source.files:
            content.update(raw)
        if progress:
            progress("reading", size, max(size, source.size_bytes))
    if not characters:
        raise CorpusError(f"{source.spec} holds no text. Give a file with text in it.")
    digest = digest_of(source) if source.files else content.hexdigest()
    return Scan(digest, documents, characters, size, "".join(map(chr, np.flatnonzero(seen))))


def digest_of(source: Source) -> str:
    """SHA-256 over the bytes and endings of the files, wherever they lie."""
    total = hashlib.sha256()
    for file in source.files:
        with open(file, "rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{_ending(file)} {content}\n".encode())
    return total.hexdigest()


def _files(spec: str) -> tuple[Path, ...]:
    if spec.startswith("hf:"):
        return ()
    path = Path(spec).expanduser()
    if path.is_file():
        return (path,)
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _wanted(file, path)]
        if not found:
            raise CorpusError(
                f"The folder {spec} holds no file that can be read as text. Known endings: "
                f"{' '.join(sorted(PLAIN | ROWS))}, each also with .gz or .zst."
            )
        return tuple(found)
    if any(mark in spec for mark in "*?["):
        root = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
        found = [file for file in sorted(root.glob(pattern)) if file.is_file()]
        if found:
            return tuple(found)
        raise CorpusError(f"No file matches {spec}. Give a file, a folder, or a glob that matches files.")
    beside = [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(str(path), beside) if beside else f"There is no folder {path.parent} either."
    raise CorpusError(f"There is no file or folder {spec}. {hint if 'Did you' in hint or not beside else ''}".rstrip())


def _wanted(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and _ending(file) in PLAIN | ROWS


def _ending(file: Path) -> str:
    """The ending that says what a file holds, whether or not it is packed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open(file: Path) -> BinaryIO:
    if file.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix.lower() == ".zst":
        return cast(BinaryIO, zstandard.open(file, "rb"))
    return open(file, "rb")


def _chunks(file: Path) -> Iterator[bytes]:
    """The unpacked bytes of a file, piece by piece."""
    try:
        with _open(file) as handle:
            while chunk := handle.read(PIECE_BYTES):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(f"{file} is damaged: it cannot be unpacked ({error}).") from None
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror or error}.") from None


def _text(file: Path) -> Iterator[str]:
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


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, file: Path, offset: int, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        at = offset - pending + error.start
        raise CorpusError(
            f"{file} is not UTF-8: the byte at offset {at} is 0x{error.object[error.start]:02x}. If you "
            f"know its encoding, convert it: iconv -f ENCODING -t UTF-8 '{file}' > new.txt."
        ) from None


def _check_encoding(file: Path, start: bytes) -> None:
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


def _plain_pieces(file: Path) -> Iterator[tuple[str, bool]]:
    """One document, in pieces that end before white space."""
    held = ""
    for text in _text(file):
        held += text
        cut = _last_cut(held) if len(held) >= PIECE_BYTES // 2 else 0
        if not cut and len(held) > 2 * PIECE_BYTES:  # text without white space: memory stays bounded all the same
            cut = PIECE_BYTES
        if cut:
            yield held[:cut], False
            held = held[cut:]
    if held:
        yield held, True


def _last_cut(text: str) -> int:
    """The last place, not before the middle, between a character and white space after it; else 0."""
    for place in range(len(text) - 1, len(text) // 2, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return 0


def _cut(text: str, where: str) -> Iterator[tuple[str, bool]]:
    """One document that is in memory already."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where} holds half of a character (U+{ord(text[error.start]):04X}, a surrogate): not valid Unicode."
        ) from None
    while len(text) > 2 * PIECE_BYTES:
        place = _last_cut(text[:PIECE_BYTES]) or PIECE_BYTES
        yield text[:place], False
        text = text[place:]
    if text:
        yield text, True


def _lines(file: Path) -> Iterator[str]:
    held = ""
    for text in _text(file):
        *lines, held = (held + text).split("\n")
        yield from lines
    if held:
        yield held


def _json_row(line: str, file: Path, number: int) -> Any:
    if not line.strip():
        return ""
    try:
        return json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{file}, line {number} is not JSON: {error}.") from None


def _csv_pieces(file: Path, text_field: str) -> Iterator[tuple[str, bool]]:
    csv.field_size_limit(sys.maxsize)
    # csv wants lines that keep their ends: a quoted field may hold some.
    rows = csv.DictReader(line + "\n" for line in _lines(file))
    try:
        for row in rows:
            if None in row:
                raise CorpusError(f"{file}, line {rows.line_num} has more fields than the header.")
            text = _field(row, text_field, f"{file}, line {rows.line_num}")
            yield from _cut(text, str(file))
    except csv.Error as error:
        raise CorpusError(f"{file}, line {rows.line_num} is not CSV: {error}.") from None


def _parquet_pieces(file: Path, text_field: str) -> Iterator[tuple[str, bool]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CorpusError(f"Reading {file} needs pyarrow: pip install 'vitrine[parquet]'.") from None
    try:
        handle = file if file.suffix == ".parquet" else io.BytesIO(b"".join(_chunks(file)))
        table = pyarrow.parquet.ParquetFile(handle)
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield from _cut(_field(row, text_field, str(file)), str(file))
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file} cannot be read as parquet: {str(error).rstrip('.')}.") from None


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
