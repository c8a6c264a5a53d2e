"""`vitrine report`: writes a run as one HTML file that a double click opens, without a server or a network."""

import asyncio
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrine._files import whole_file
from vitrine.errors import RunError
from vitrine.runs.reader import RunReader
from vitrine.studio.app import make_app
from vitrine.studio.report.build import WARNING, Inside, Report, Say, Selection, make_report
from vitrine.studio.report.html import Shell

PORT = 1  # nothing listens there: the requests never leave the process
WORDS = ("birth", "best", "last")


@dataclass(frozen=True)
class Written:
    """A written report: its path and its contents."""

    file: Path
    report: Report
    warning: str = WARNING

    def to_json(self) -> dict[str, Any]:
        """What `report --json` prints: everything except the page."""
        parts = {name: value for name, value in vars(self.report).items() if name != "html"}
        return {"file": self.file, "warning": self.warning, "size_bytes": len(self.report.html)} | parts


def write_report(run: str, out: str, steps: str, cell: str, force: bool, say: Say) -> Written:
    """Write a report of a run, atomically.

    Args:
        out: the file; empty: named after the run, in the working folder.
        steps: to keep in full, such as "birth,300,last"; empty: a few that have keyframes.
        force: whether a file that exists already may be replaced.
        say: called with what is being done.
    """
    reader = RunReader(run)
    name = reader.path.resolve().name
    file = Path(out or f"{name}.html")
    _check(file, force)
    selection = Selection(tuple(read_steps(reader, steps)), cell)
    report = asyncio.run(_make(reader, name, selection, Shell(), say))
    _write(file, report.html, force)
    return Written(file, report)


def read_steps(reader: RunReader, text: str) -> list[int]:
    """Parse the steps of --steps: numbers and words, separated by commas."""
    made = reader.steps_made()
    best = reader.best_step()
    # The best parameters may be those after the last step: then the last step is the one to open.
    words = {"birth": 0, "best": min(best or 0, max(0, made - 1)), "last": max(0, made - 1)}
    steps = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part not in words and not part.isdecimal():
            raise RunError(f"--steps takes numbers and {', '.join(WORDS)}, separated by commas: got {part[:100]!r}.")
        steps.append(words[part] if part in words else int(part))
    return steps


async def _make(reader: RunReader, name: str, selection: Selection, shell: Shell, say: Say) -> Report:
    token = secrets.token_urlsafe(24)
    app = make_app([reader.path.resolve()], token, PORT)
    headers = {"host": f"127.0.0.1:{PORT}", "authorization": f"Bearer {token}"}
    async with app.router.lifespan_context(app):
        return await make_report(Inside(app, name, headers), reader, selection, shell, say)


def _check(file: Path, force: bool) -> None:
    """Raise RunError if no file of this name may be made."""
    if file.is_dir():
        raise RunError(f"{file} is a folder. Give --out a file, such as {file / 'report.html'}.")
    if file.exists() and not force:
        raise RunError(f"{file} exists already. Give another name with --out, or replace it with --force.")
    if not file.absolute().parent.is_dir():
        raise RunError(f"There is no folder {file.absolute().parent} to write {file.name} into. Make it first.")
    if not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise RunError(f"Nothing can be written into {file.absolute().parent}. Give another place with --out.")


def _write(file: Path, content: bytes, force: bool) -> None:
    try:
        with whole_file(file.absolute(), replace=force) as temporary:
            temporary.write_bytes(content)
            _check(file, force)  # again: building the report took a while
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}. Give another place with --out.") from None
