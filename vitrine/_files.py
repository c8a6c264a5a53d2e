"""Files and folders that appear whole or not at all, safe against a kill. All of it raises OSError."""

import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

LEFTOVER = re.compile(r"\..+\.partial-(\d+)|[0-9a-f]{64}\.(\d+)")  # the second: scans, as they were written before


@contextmanager
def whole_file(path: Path, replace: bool = True, durable: bool = True) -> Iterator[Path]:
    """A temporary name for the body to write to; then it becomes `path`, unless the body raises.

    Args:
        replace: False: if `path` exists by then, FileExistsError is raised.
        durable: flush it to the disk first, so that it survives a power failure.
    """
    with partial(path, folder=False) as temporary:
        yield temporary
        if durable:
            fsync(temporary)
        if replace:
            temporary.replace(path)
        else:
            _rename_to_nothing(temporary, path)
        if durable:
            fsync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder for the body to fill; then it becomes `path`, which does not exist or is an empty folder."""
    with partial(path) as temporary:
        yield temporary
        fsync_folder(temporary)
        temporary.rename(path)
        fsync(path.parent)


@contextmanager
def partial(path: Path, folder: bool = True) -> Iterator[Path]:
    """A folder, or an empty file, to fill and to rename; what was not renamed is removed, whatever happens.

    It lies beside `path`, whose parent exists. What killed processes left of theirs is removed first.
    """
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.partial-{os.getpid()}")
    with ExitStack() as stack:
        stack.callback(_remove, temporary)  # before it exists: a signal may come at any time
        _remove(temporary)
        temporary.mkdir() if folder else temporary.touch(exist_ok=False)
        handle = os.open(temporary, os.O_RDONLY)
        stack.callback(os.close, handle)
        _lock(handle)  # tells other machines and containers, which do not see this process, that it is there
        yield temporary


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are gone left half-written in a folder."""
    with suppress(OSError):
        for entry in [entry for entry in folder.iterdir() if _is_left(entry)]:
            _remove(entry)


def fsync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(folder: Path) -> None:
    """Force what lies in a folder to the disk, then the folder."""
    for path in (*folder.iterdir(), folder):
        fsync(path)


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _rename_to_nothing(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a renaming, it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a disk without links: take the name first
        path.touch(exist_ok=False)
        temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_left(entry: Path) -> bool:
    """Whether it is half-written, and the process that wrote it is gone."""
    match = LEFTOVER.fullmatch(entry.name)
    if not match:
        return False
    try:
        os.kill(int(match[1] or match[2]), 0)
        return False
    except ProcessLookupError:
        pass
    except (OSError, OverflowError):
        return False
    try:
        handle = os.open(entry, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Hold a file or folder until it is closed; False if another process does, or if there are no locks here."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
