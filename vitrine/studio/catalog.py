"""The runs that the page may open. Names in requests are looked up here, and never joined to a path."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vitrine.errors import VitrineError, nearest
from vitrine.runs.reader import CONFIG, RunReader
from vitrine.studio.responses import RefusalError


class Listing:
    """The runs in some folders, read again at each call.

    Args:
        folders: run folders, or folders of run folders. The first of the latter is where new runs go.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder.absolute() for folder in folders]
        self._readers: dict[Path, tuple[int, RunReader]] = {}

    @property
    def home(self) -> Path:
        """The folder for new runs."""
        return next((folder for folder in self.folders if not _is_run(folder)), self.folders[0].parent)

    def paths(self) -> dict[str, Path]:
        """Every run by the name of its folder; a second one with the same name is NAME~2."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for path in [folder] if _is_run(folder) else sorted(_runs_in(folder)):
                name, number = path.name, 1
                while name in found and found[name] != path:
                    number += 1
                    name = f"{path.name}~{number}"
                found[name] = path
        return found

    def open(self, name: str) -> RunReader:
        """The run of this name. Raises RefusalError if there is none, VitrineError if it cannot be read."""
        paths = self.paths()
        if name not in paths:
            hint = nearest(name, paths) if paths else "There are no runs yet."
            raise RefusalError(404, f"There is no run {name!r} here. {hint}")
        return self.reader(paths[name])

    def reader(self, path: Path) -> RunReader:
        """A run by its path, which must come from `paths`; read again if its hyperparameters changed."""
        try:
            changed = (path / CONFIG).stat().st_mtime_ns
        except OSError:
            raise RefusalError(404, f"The run {path.name!r} is gone: its folder was moved or deleted.") from None
        known = self._readers.get(path)
        if known and known[0] == changed:
            return known[1]
        reader = RunReader(path)
        self._readers[path] = changed, reader
        return reader

    def all(self) -> tuple[dict[str, RunReader], dict[str, str]]:
        """Every readable run by name; and the reason for each unreadable one."""
        readers, unreadable = {}, {}
        for name, path in self.paths().items():
            try:
                readers[name] = self.reader(path)
            except (VitrineError, RefusalError) as error:
                unreadable[name] = str(error)
        return readers, unreadable


def identity(reader: RunReader) -> str:
    """Identifies a run: differs from another run of the same name, and from the same run before a resume. A key of caches."""
    events = reader.events()
    born, resumed = [e.time_s for e in events if e.kind == "born"], sum(e.kind == "resumed" for e in events)
    config = (reader.path / CONFIG).read_bytes()
    return hashlib.sha256(config + repr((born, resumed)).encode()).hexdigest()[:16]


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _runs_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and _is_run(path)]
    except OSError:
        return []
