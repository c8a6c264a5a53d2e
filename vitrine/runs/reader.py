"""Reading a run's folder, also while it grows. Needs no torch."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrine.config import Config, load_toml, validate
from vitrine.errors import RunError
from vitrine.runs.records import EvaluationRecord, EventRecord, SampleRecord, StepRecord
from vitrine.runs.store import SCHEMA_VERSION

CONFIG, HISTORY, TOKENIZER, TOKENS, KEYFRAMES = (
    "config.toml",
    "run.sqlite",
    "tokenizer.json",
    "tokens",
    "keyframes",
)


class RunReader:
    """A run folder, read only.

    Args:
        path: the folder; it must hold a config.toml.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            what = "is not a run: it has no config.toml" if self.path.is_dir() else "does not exist"
            raise RunError(f"{self.path} {what}. {_runs_beside(self.path)}")
        self.config: Config = validate(load_toml(self.path / CONFIG))

    def steps(self) -> list[StepRecord]:
        """Every recorded step, in order."""
        return [StepRecord(*row) for row in self._rows("SELECT * FROM steps ORDER BY step")]

    def evaluations(self) -> list[EvaluationRecord]:
        """Every measurement of the validation loss, in order."""
        rows = self._rows("SELECT * FROM evaluations ORDER BY step, whole")
        return [EvaluationRecord(step, loss, tokens, bool(whole), s) for step, loss, tokens, whole, s in rows]

    def best_step(self) -> int | None:
        """The step with the least validation loss, by the same sample of the split at every measurement."""
        limit = self.config.training.evaluation_tokens
        samples = [e for e in self.evaluations() if not (e.whole and e.tokens > limit)]
        return min(samples, key=lambda e: e.loss).step if samples else None

    def samples(self) -> list[SampleRecord]:
        """Every text that the model was made to write during training."""
        return [SampleRecord(*row) for row in self._rows("SELECT * FROM samples ORDER BY step, temperature")]

    def events(self) -> list[EventRecord]:
        """What happened to the run, in order."""
        return [EventRecord(*row) for row in self._rows("SELECT * FROM events ORDER BY rowid")]

    def facts(self) -> dict[str, str]:
        """What was noted about the whole run: its fingerprint, its corpus, its result."""
        return dict(self._rows("SELECT name, value FROM facts"))

    def result(self) -> dict[str, Any]:
        """What `train --json` printed at the end; empty while the run has not ended."""
        found: dict[str, Any] = json.loads(self.facts().get("result", "{}"))
        return found

    def _rows(self, query: str) -> list[Any]:
        with self._connection() as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        history = self.path / HISTORY
        if not history.is_file():
            raise RunError(f"{self.path} has no history: {HISTORY} is missing.")
        connection = sqlite3.connect(f"{history.resolve().as_uri()}?mode=ro", uri=True)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise RunError(
                    f"{history} has schema version {version}; this Vitrine reads up to version "
                    f"{SCHEMA_VERSION}. Use a newer Vitrine."
                )
            yield connection
        except sqlite3.DatabaseError as error:
            raise RunError(f"{history} cannot be read: {error}.") from None
        finally:
            connection.close()


def _runs_beside(path: Path) -> str:
    """A hint at the runs that do exist."""
    for folder in (path.parent, Path("runs")):
        found = sorted(p.parent for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        if found:
            return f"Runs there: {', '.join(str(p) for p in found[:5])}."
    return "Start one with: vitrine train FILE."
