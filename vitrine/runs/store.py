"""Writing a run's history. There is one writer, the trainer; anyone may read while it grows."""

import json
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vitrine.errors import RunError
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
from vitrine.runs.statistics import BLOCK, Layout, Numbers

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

TABLES: dict[type[Any], str] = {
    StepRecord: "steps",
    EvaluationRecord: "evaluations",
    SampleRecord: "samples",
    HistogramRecord: "histograms",
    EventRecord: "events",
}


def check_version(path: Path, version: int) -> None:
    """Refuse a history that was written by another Vitrine than this one, or not at all."""
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

    Records are committed every half second, and when `commit` is called: a kill loses no more than that.
    """

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version:
            check_version(path, version)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(SCHEMA)
        self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.committed_s = time.monotonic()

    def write(self, record: Record) -> None:
        """Add a record, or put it in the place of the one that was there."""
        values = row_of(record)
        marks = ", ".join("?" * len(values))
        self._begin()
        self.connection.execute(f"INSERT OR REPLACE INTO {TABLES[type(record)]} VALUES ({marks})", values)
        if time.monotonic() - self.committed_s > COMMIT_EVERY_S:
            self.commit()

    def write_statistics(self, step: int, numbers: Numbers, layout: Layout) -> None:
        """Add a row of statistics; the row that completes a block turns the whole block into columns."""
        self._begin()
        self.connection.execute(
            "INSERT OR REPLACE INTO statistics VALUES (?, ?)", (step, numbers.astype("<f4").tobytes())
        )
        row = layout.row(step)
        if (row + 1) % BLOCK == 0:
            self._compact(row // BLOCK, layout)

    def open_blocks(self, step: int, layout: Layout) -> None:
        """Turn the blocks that hold this step or later ones back into rows: they will be written again."""
        first = layout.row(step) // BLOCK
        blocks = self.connection.execute("SELECT DISTINCT block FROM columns WHERE block >= ?", (first,)).fetchall()
        for (block,) in blocks:
            query = "SELECT numbers FROM columns WHERE block = ? ORDER BY series"
            columns = [np.frombuffer(numbers, "<f4") for (numbers,) in self.connection.execute(query, (block,))]
            rows = np.ascontiguousarray(np.stack(columns, axis=1))
            self._begin()
            self.connection.executemany(
                "INSERT OR REPLACE INTO statistics VALUES (?, ?)",
                [(layout.step(block * BLOCK + i), row.tobytes()) for i, row in enumerate(rows)],
            )
            self.connection.execute("DELETE FROM columns WHERE block = ?", (block,))
        self.commit()

    def event(self, step: int, kind: str, text: str = "") -> None:
        """Note that something happened, now."""
        self.write(EventRecord(step, time.time(), kind, text))
        self.commit()

    def set_fact(self, name: str, value: str) -> None:
        """Remember something about the whole run."""
        self._begin()
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        self.commit()

    def layout(self) -> Layout | None:
        """How rows of statistics are laid out; None if none are recorded."""
        found = self.connection.execute("SELECT value FROM facts WHERE name = 'statistics'").fetchone()
        return Layout.of(json.loads(found[0])) if found else None

    def step_record(self, step: int) -> StepRecord | None:
        """What was recorded of a step before, if anything."""
        row = self.connection.execute("SELECT * FROM steps WHERE step = ?", (step,)).fetchone()
        return record_of(StepRecord, row) if row else None

    def statistics_row(self, step: int) -> Numbers | None:
        """The statistics that were recorded of a step before, if they stand as a row; see `open_blocks`."""
        row = self.connection.execute("SELECT numbers FROM statistics WHERE step = ?", (step,)).fetchone()
        return np.frombuffer(row[0], "<f4") if row else None

    def commit(self) -> None:
        """Make everything written so far safe against a kill."""
        if self.connection.in_transaction:
            self.connection.execute("COMMIT")
        self.committed_s = time.monotonic()

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self.connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        if not self.connection.in_transaction:
            self.connection.execute("BEGIN")

    def _compact(self, block: int, layout: Layout) -> None:
        """The rows of a block as one column for each series: a series is then read without the others."""
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
        self.commit()
