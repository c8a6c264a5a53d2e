"""Errors of the disk and of SQLite as one sentence that says what to do. Needs no torch."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrine.errors import RunError
from vitrine.runs.retention import KEYFRAMES, keyframe_steps
from vitrine.runs.store import CONFIG, HISTORY, sqlite_code

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def sentences(run: Path) -> Iterator[None]:
    """Convert errors of the disk or of SQLite to a RunError about this run."""
    try:
        yield
    except (ConnectionError, TimeoutError):  # from a pipe or another process of the training, not from the disk
        raise
    except (OSError, sqlite3.Error) as error:
        raise refusal(error, run) from None


def refusal(error: OSError | sqlite3.Error, run: Path) -> RunError:
    """The error for this run's folder. Data that was saved before stays valid, unless the folder is gone."""
    code = sqlite_code(error)
    reason = str(error) if isinstance(error, sqlite3.Error) else f"{error.strerror or error}"
    file = run / HISTORY if isinstance(error, sqlite3.Error) else Path(str(error.filename or run))
    if _is_gone(run):
        return RunError(f"{run} was deleted or moved while it was used: nothing more can be read or saved there.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RunError(
            f"{file} has been locked by another program for a minute. Close that program (its unsaved changes may be "
            f"lost), then: vitrine resume {run}."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return RunError(f"{file} cannot be read: it is damaged ({reason}). {_still_there(run)}")
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in FULL:
        return RunError(
            f"{file} could not be written: {reason}. Earlier data is safe. Free some space, then: vitrine resume {run}."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or getattr(error, "errno", None) in FORBIDDEN:
        return RunError(
            f"{file} cannot be opened or written here: {reason}. Check the permissions of {run}, or copy the run to a "
            "place where you can write."
        )
    if isinstance(error, FileNotFoundError):
        return RunError(f"{file} is missing. vitrine verify {run} lists everything that is missing.")
    return RunError(
        f"{file} could not be read or written: {reason}. Earlier data is safe. Check the disk, then: vitrine "
        f"resume {run}."
    )


def _is_gone(run: Path) -> bool:
    """Whether it is being deleted: its first file is gone, even if others are still there."""
    return not os.path.lexists(run / CONFIG)


def _still_there(run: Path) -> str:
    steps = keyframe_steps(run / KEYFRAMES)
    if not steps:
        return "It has no keyframe either."
    return (
        f"Its keyframes are separate files; the newest is of step {steps[-1]}. Continue from it in a new run: vitrine "
        f"train --from {run}@{steps[-1]}."
    )
