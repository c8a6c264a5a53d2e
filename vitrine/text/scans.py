"""Scans of sources, remembered for as long as no file changes; and whether one did."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitrine._files import whole_file
from vitrine.errors import CorpusError
from vitrine.text.cache import SCANS
from vitrine.text.ids import holds_ids, scan_ids
from vitrine.text.sources import Progress, Reading, Scan, Source, scan

VERSION = 2  # of what is remembered
ARRAYS = ("document_keys", "document_bytes")


class Stamp(NamedTuple):
    """A stamp that changes when a file changes, and costs nothing. Its mtime can be set back, its ctime cannot."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamps(sources: Sequence[Source]) -> list[Stamp]:
    """The stamp of each file of each source, now."""
    found = []
    for file in (file for source in sources for file in source.files):
        try:
            stat = file.stat()
        except OSError as error:
            raise CorpusError(f"{file} cannot be read: {error.strerror or error}.") from None
        found.append(Stamp(str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return found


def check_unchanged(before: Sequence[Stamp], after: Sequence[Stamp]) -> None:
    """Raises CorpusError if a text has changed since it was first read."""
    for then, now in zip(before, after, strict=True):
        if then != now:
            sizes = f" ({then.size_bytes:,} bytes before, {now.size_bytes:,} now)"
            raise changed(then.path, sizes if then.size_bytes != now.size_bytes else "")


def changed(what: str, how: str = "") -> CorpusError:
    """The error for a text that changed between two readings: its token ids must not get the digest of the first."""
    return CorpusError(f"{what} changed while it was read{how}. Wait until nothing writes to it, or give a copy.")


def remembered_scan(source: Source, reading: Reading, cache: Path, progress: Progress | None) -> Scan:
    """Scan a source; if its files are unchanged, take the scan from the cache."""
    if not source.files:
        return scan(source, reading, progress)
    before = stamps([source])
    key = hashlib.sha256(json.dumps([VERSION, asdict(reading), before]).encode()).hexdigest()
    file = cache / SCANS / f"{key}.npz"
    try:
        return _read(file)
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        pass
    facts = scan_ids(source) if holds_ids(source) else scan(source, reading, progress)
    check_unchanged(before, stamps([source]))
    with suppress(OSError):  # a cache that cannot be written costs time, not the run
        _write(file, facts)
    return facts


def _read(file: Path) -> Scan:
    with np.load(file, allow_pickle=False) as kept:
        facts = json.loads(kept["facts"].tobytes())
        facts["file_digests"] = tuple(facts["file_digests"])
        return Scan(**facts, **{name: kept[name] for name in ARRAYS})


def _write(file: Path, facts: Scan) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(facts, name) for name in ARRAYS}
    rest = {name: value for name, value in vars(facts).items() if name not in ARRAYS}
    with whole_file(file, durable=False) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, facts=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)
