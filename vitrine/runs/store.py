"""Writes a run's history. The trainer is the only writer; anyone may read during training."""

import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vitrine._files import sha256
from vitrine.errors import RunError
from vitrine.runs.layout import BLOCK, Layout, Numbers
from vitrine.runs.records import (
    EvaluationRecord,
    EventRecord,
    HistogramRecord,
    Record,
    SampleRecord,
    StepRecord,
    record_of,
    row_of,
)

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER PRIMARY KEY, loss REAL, gradient_norm REAL, learning_rate REAL, tokens INTEGER, duration_s REAL,
    memory_bytes INTEGER);
CREATE TABLE IF NOT EXISTS evaluations (
    step INTEGER, loss REAL, tokens INTEGER, whole INTEGER, duration_s REAL, PRIMARY KEY (step, whole));
CREATE TABLE IF NOT EXISTS samples (
    step INTEGER, prompt TEXT, text TEXT, temperature REAL, seed INTEGER,
    PRIMARY KEY (step, prompt, temperature, seed));
CREATE TABLE IF NOT EXISTS statistics (step INTEGER PRIMARY KEY, numbers BLOB);
CREATE TABLE IF NOT EXISTS columns (series INTEGER, block INTEGER, numbers BLOB, PRIMARY KEY (series, block));
CREATE TABLE IF NOT EXISTS histograms (
    step INTEGER, tensor TEXT, kind TEXT, bins BLOB, counts BLOB, PRIMARY KEY (tensor, kind, step));
CREATE TABLE IF NOT EXISTS events (step INTEGER, time_s REAL, kind TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
"""
COMMIT_EVERY_S = 0.5
WAIT_S = 60.0  # longest wait for another program's lock when nothing can be done without it
TRY_EVERY_S = 0.2
CONFIG, HISTORY = "config.toml", "run.sqlite"

TABLES: dict[type[Any], str] = {
    StepRecord: "steps",
    EvaluationRecord: "evaluations",
    SampleRecord: "samples",
    HistogramRecord: "histograms",
    EventRecord: "events",
}


def digests(run: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a run, by their path in the run: the fact `files`."""
    return {name: sha256(run / name) for name in names}


def sqlite_code(error: Exception) -> int:
    """The primary error code of SQLite; 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF if isinstance(error, sqlite3.Error) else 0


def check_version(path: Path, version: int) -> None:
    """Refuse a history with another schema version, or an empty one. Raises RunError."""
    if version == 0:
        raise RunError(f"{path} is empty: the history of the run is lost. Its keyframes may still be sound.")
    if version != SCHEMA_VERSION:
        age = "a newer" if version > SCHEMA_VERSION else "an older"
        raise RunError(
            f"{path} has schema version {version}; this Vitrine reads and writes version {SCHEMA_VERSION}. "
            f"Use {age} Vitrine for this run."
        )


class Store:
    """The history of one run, open for writing.

    Records are committed every half second, and by `commit`; a kill loses at most the rest. While another program locks
    the database, they wait in memory.
    """

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version:
            check_version(path, version)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(SCHEMA)
        self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.connection.execute("PRAGMA busy_timeout = 0")  # never wait inside SQLite: see `_write_waiting`
        self.committed_s = time.monotonic()
        self.waiting: deque[Callable[[], object]] = deque()  # writes that are still to be made, in order
        self.tried_s = -TRY_EVERY_S

    def write(self, record: Record) -> None:
        """Add a record, or replace the one with the same key."""
        values = row_of(record)
        marks = ", ".join("?" * len(values))
        self._write(f"INSERT OR REPLACE INTO {TABLES[type(record)]} VALUES ({marks})", values)
        if time.monotonic() - self.committed_s > COMMIT_EVERY_S:
            self.commit()

    def write_statistics(self, step: int, numbers: Numbers, layout: Layout) -> None:
        """Add a row of statistics. When a block is complete, convert it to columns."""
        self._write("INSERT OR REPLACE INTO statistics VALUES (?, ?)", (step, numbers.astype("<f4").tobytes()))
        row = layout.row(step)
        if (row + 1) % BLOCK == 0:
            self.waiting.append(lambda: self._compact(row // BLOCK, layout))
            self._write_waiting()

    def open_blocks(self, step: int, layout: Layout) -> None:
        """Convert the blocks with this step or later ones back to rows, because they will be written again."""
        self.settle()
        first = layout.row(step) // BLOCK
        blocks = self.connection.execute("SELECT DISTINCT block FROM columns WHERE block >= ?", (first,)).fetchall()
        for (block,) in blocks:
            query = "SELECT numbers FROM columns WHERE block = ? ORDER BY series"
            columns = [np.frombuffer(numbers, "<f4") for (numbers,) in self.connection.execute(query, (block,))]
            rows = np.ascontiguousarray(np.stack(columns, axis=1))
            self._lock(WAIT_S)
            self.connection.executemany(
                "INSERT OR REPLACE INTO statistics VALUES (?, ?)",
                [(layout.step(block * BLOCK + i), row.tobytes()) for i, row in enumerate(rows)],
            )
            self.connection.execute("DELETE FROM columns WHERE block = ?", (block,))
        self.commit()

    def event(self, step: int, kind: str, text: str = "") -> None:
        """Record an event with the current time."""
        self.write(EventRecord(step, time.time(), kind, text))
        self.commit()

    def set_fact(self, name: str, value: str) -> None:
        """Store a fact about the whole run."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        self.commit()

    def fact(self, name: str) -> str:
        """A fact about the whole run; empty if there is none."""
        found = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def layout(self) -> Layout | None:
        """The layout of the statistics; None if none are recorded."""
        facts = self.fact("statistics")
        return Layout.of(json.loads(facts)) if facts else None

    def step_record(self, step: int) -> StepRecord | None:
        """The record of a step, if there is one."""
        row = self.connection.execute("SELECT * FROM steps WHERE step = ?", (step,)).fetchone()
        return record_of(StepRecord, row) if row else None

    def statistics_row(self, step: int) -> Numbers | None:
        """The recorded statistics of a step, if they are stored as a row; see `open_blocks`."""
        row = self.connection.execute("SELECT numbers FROM statistics WHERE step = ?", (step,)).fetchone()
        return np.frombuffer(row[0], "<f4") if row else None

    def commit(self) -> None:
        """Commit everything except writes that wait for another program's lock."""
        self._write_waiting()
        if self.connection.in_transaction:
            self.connection.execute("COMMIT")
        self.committed_s = time.monotonic()

    def settle(self) -> None:
        """Write everything that waits, and commit. Raises sqlite3.OperationalError if a lock stays for a minute."""
        if self.waiting:
            self._lock(WAIT_S)
            self.tried_s = -TRY_EVERY_S
        self.commit()

    def close(self) -> None:
        """Call `settle`, and close the connection."""
        try:
            self.settle()
        finally:
            self.connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, query: str, values: tuple[Any, ...]) -> None:
        self.waiting.append(lambda: self.connection.execute(query, values))
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Write what waits, or try again later if another program holds the lock."""
        if not self.waiting or time.monotonic() - self.tried_s < TRY_EVERY_S:
            return
        try:
            while self.waiting:
                self._lock(0.0)
                self.waiting[0]()
                self.waiting.popleft()
        except sqlite3.OperationalError as error:
            if sqlite_code(error) != sqlite3.SQLITE_BUSY:
                raise
            self.tried_s = time.monotonic()

    def _lock(self, wait_s: float) -> None:
        """Take the write lock until the next commit. Waits at most `wait_s` for another program's lock."""
        deadline = time.monotonic() + wait_s
        while not self.connection.in_transaction:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(TRY_EVERY_S)

    def _compact(self, block: int, layout: Layout) -> None:
        """Convert a block of rows to one column per series, so that a series can be read without the others."""
        steps = (layout.step(block * BLOCK), layout.step((block + 1) * BLOCK))
        query = "SELECT numbers FROM statistics WHERE step >= ? AND step < ? ORDER BY step"
        rows = [numbers for (numbers,) in self.connection.execute(query, steps)]
        if len(rows) < BLOCK:
            return
        table = np.frombuffer(b"".join(rows), "<f4").reshape(BLOCK, layout.width)
        columns = np.ascontiguousarray(table.T)
        self.connection.executemany(
            "INSERT OR REPLACE INTO columns VALUES (?, ?, ?)",
            [(series, block, column.tobytes()) for series, column in enumerate(columns)],
        )
        self.connection.execute("DELETE FROM statistics WHERE step >= ? AND step < ?", steps)
        self.connection.execute("COMMIT")
