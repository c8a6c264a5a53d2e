"""The cache: token files, scans of sources, and texts. What it holds, and how it is emptied."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrine._files import remove_leftovers
from vitrine.errors import CorpusError

TOKENS, SCANS, TEXTS = "tokens", "scans", "corpora"
# So begin texts that were sent to the studio, or came through a pipe: perhaps there is no other copy.
PASTED, PIPED = "text-", "stdin."
FREE_BYTES = 64 * 2**20  # that stay free on the disk, or a hundredth of it, if that is less


@dataclass(frozen=True)
class Part:
    """A folder of the cache. size_bytes: of all its files; shared_bytes: of those that run folders have as well."""

    count: int = 0
    size_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Contents:
    """What the cache holds, or held before it was cleared. kept_texts: those that stay, since they may be the only copies."""

    folder: Path
    parts: dict[str, Part]
    cleared: bool
    kept_texts: int

    @property
    def own_bytes(self) -> int:
        """What clearing frees: a file that a run folder has as well stays there."""
        return sum(part.size_bytes - part.shared_bytes for part in self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """What `cache --json` prints."""
        return vars(self) | {"freed_bytes": self.own_bytes if self.cleared else 0}


def cache_folder() -> Path:
    """$VITRINE_CACHE, else vitrine/ below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("VITRINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitrine"


def free_bytes(folder: Path) -> int:
    """What can be written to the disk of a folder, which need not be there yet, before that is nearly full."""
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    return disk.free - min(FREE_BYTES, disk.total // 100)


def contents(clear: bool = False) -> Contents:
    """What the cache holds; with `clear`, it is removed. What another process is writing is left alone."""
    folder, parts, kept = cache_folder(), {}, 0
    try:
        for name in (TOKENS, SCANS, TEXTS):
            remove_leftovers(folder / name)
            entries = list((folder / name).iterdir()) if (folder / name).is_dir() else []
            kept += sum(entry.name.startswith((PASTED, PIPED)) for entry in entries)
            wanted = [entry for entry in entries if not entry.name.startswith((".", PASTED, PIPED))]
            parts[name] = _sum(wanted)
            for entry in wanted if clear else ():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        raise CorpusError(
            f"The cache {folder} cannot be {'cleared' if clear else 'read'}: {error}. VITRINE_CACHE names another folder."
        ) from None
    return Contents(folder, parts, clear, kept)


def _sum(entries: list[Path]) -> Part:
    files = [file for entry in entries for file in (entry.rglob("*") if entry.is_dir() else [entry])]
    stats = [file.stat() for file in files if file.is_file()]
    shared = sum(stat.st_size for stat in stats if stat.st_nlink > 1)
    return Part(len(entries), sum(stat.st_size for stat in stats), shared)
