"""Why the disk, or SQLite, refused, in one sentence, with what to do. Needs no torch."""

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
    """An error of the disk, or of SQLite, becomes a RunError about this run."""
    try:
        yield
    except (ConnectionError, TimeoutError):  # a pipe, or another process of the training: no disk
        raise
    except (OSError, sqlite3.Error) as error:
        raise refusal(error, run) from None


def refusal(error: OSError | sqlite3.Error, run: Path) -> RunError:
    """What went wrong in this run's folder. What was made safe before stays safe, unless the folder is gone."""
    code = sqlite_code(error)
    reason = str(error) if isinstance(error, sqlite3.Error) else f"{error.strerror or error}"
    file = run / HISTORY if isinstance(error, sqlite3.Error) else Path(str(error.filename or run))
    if _is_gone(run):
        return RunError(f"{run} was deleted or moved while it was used: nothing more can be read or saved there.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RunError(
            f"{file} is locked by another program, which did not let go of it for a minute. Close that program (what is "
            f"open in it is at risk), then: vitrine resume {run}."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return RunError(f"{file} cannot be read: it is damaged ({reason}). {_still_there(run)}")
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in FULL:
        return RunError(
            f"{file} could not be written: {reason}. What came before is safe. Free some space, then: vitrine resume {run}."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or getattr(error, "errno", None) in FORBIDDEN:
        return RunError(
            f"{file} cannot be opened or written here: {reason}. Look at who may write in {run}, or copy the run to a "
            "place where you may."
        )
    if isinstance(error, FileNotFoundError):
        return RunError(f"{file} is missing. vitrine verify {run} says what else is.")
    return RunError(
        f"{file} could not be read or written: {reason}. What came before is safe. Look at the disk, then: vitrine "
        f"resume {run}."
    )


def _is_gone(run: Path) -> bool:
    """Whether someone deletes it: its first file is not there, and perhaps others still are."""
    return not os.path.lexists(run / CONFIG)


def _still_there(run: Path) -> str:
    steps = keyframe_steps(run / KEYFRAMES)
    if not steps:
        return "It has no keyframe either."
    return (
        f"Its keyframes are files of their own, the newest of step {steps[-1]}: go on from it in a new run, with vitrine "
        f"train --from {run}@{steps[-1]}."
    )
