"""Writing a run's history. There is one writer, the trainer; anyone may read while it grows."""

import dataclasses
import sqlite3
import time
from pathlib import Path
from types import TracebackType

from vitrine.errors import RunError
from vitrine.runs.records import EvaluationRecord, EventRecord, SampleRecord, StepRecord

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER PRIMARY KEY, loss REAL, gradient_norm REAL, learning_rate REAL, tokens INTEGER, duration_s REAL);
CREATE TABLE IF NOT EXISTS evaluations (
    step INTEGER, loss REAL, tokens INTEGER, whole INTEGER, duration_s REAL, PRIMARY KEY (step, whole));
CREATE TABLE IF NOT EXISTS samples (
    step INTEGER, prompt TEXT, text TEXT, temperature REAL, seed INTEGER,
    PRIMARY KEY (step, prompt, temperature, seed));
CREATE TABLE IF NOT EXISTS events (step INTEGER, time_s REAL, kind TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
"""
COMMIT_EVERY_S = 0.5

Record = StepRecord | EvaluationRecord | SampleRecord | EventRecord
TABLES: dict[type[Record], str] = {
    StepRecord: "steps",
    EvaluationRecord: "evaluations",
    SampleRecord: "samples",
    EventRecord: "events",
}


class Store:
    """The history of one run, open for writing.

    Records are committed every half second, and when `commit` is called: a kill loses no more than that.
    """

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise RunError(
                f"{path} has schema version {version}; this Vitrine writes version {SCHEMA_VERSION}. "
                "Use a newer Vitrine."
            )
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(SCHEMA)
        self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.committed_s = time.monotonic()

    def write(self, record: Record) -> None:
        """Add a record, or put it in the place of the one that was there."""
        values = dataclasses.astuple(record)
        marks = ", ".join("?" * len(values))
        self._begin()
        self.connection.execute(f"INSERT OR REPLACE INTO {TABLES[type(record)]} VALUES ({marks})", values)
        if time.monotonic() - self.committed_s > COMMIT_EVERY_S:
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

    def step_record(self, step: int) -> StepRecord | None:
        """What was recorded of a step before, if anything."""
        row = self.connection.execute("SELECT * FROM steps WHERE step = ?", (step,)).fetchone()
        return StepRecord(*row) if row else None

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
