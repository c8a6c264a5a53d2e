"""Reading a run's folder, also while it grows. Needs no torch."""

import dataclasses
import fcntl
import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.config import Config, load_toml, validate
from vitrine.errors import RunError, nearest
from vitrine.runs.records import EvaluationRecord, EventRecord, HistogramRecord, R, SampleRecord, StepRecord, record_of
from vitrine.runs.statistics import BLOCK, STATISTICS, Layout, Numbers
from vitrine.runs.store import TABLES, check_version

CONFIG, HISTORY, TOKENIZER, CHAT_TEMPLATE, TOKENS, KEYFRAMES, FILM, LIVE, LOCK = (
    "config.toml",
    "run.sqlite",
    "tokenizer.json",
    "chat_template.jinja",  # if it has one; named as in a Hugging Face folder
    "tokens",
    "keyframes",
    "film",
    "live",
    "lock",
)


class RunReader:
    """A run folder, read only.

    Args:
        path: the folder; it must hold a config.toml.
    """

    def __init__(self, path: str | Path) -> None:
        if path == "":
            raise RunError("The name of a run must not be empty: got ''. Give a run folder.")
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            what = "is not a run: it has no config.toml" if self.path.is_dir() else "does not exist"
            raise RunError(f"{self.path} {what}. {_runs_beside(self.path)}")
        self.config: Config = validate(load_toml(self.path / CONFIG))

    def steps(self) -> list[StepRecord]:
        """Every recorded step, in order."""
        return self._records(StepRecord, "SELECT * FROM steps ORDER BY step")

    def step_record(self, step: int) -> StepRecord | None:
        """What was recorded of one step, if anything."""
        found = self._records(StepRecord, "SELECT * FROM steps WHERE step = ?", step)
        return found[0] if found else None

    def step_column(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One field of every `StepRecord`: the steps, and its values; where there is none, not a number."""
        if name not in {field.name for field in dataclasses.fields(StepRecord)}:
            raise RunError(f"A step has no {name!r}. {nearest(name, [f.name for f in dataclasses.fields(StepRecord)])}")
        rows = self._rows(f"SELECT step, {name} FROM steps ORDER BY step")
        return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float64)

    def written_after(self, kind: type[R], row: int) -> list[tuple[int, R]]:
        """The records of a kind that were written after a row, in order, each with its own row number."""
        rows = self._rows(f"SELECT rowid, * FROM {TABLES[kind]} WHERE rowid > ? ORDER BY rowid", row)
        return [(number, record_of(kind, values)) for number, *values in rows]

    def steps_made(self) -> int:
        """How many steps the history knows of."""
        found = self._rows("SELECT max(step) FROM steps")[0][0]
        return 0 if found is None else int(found) + 1

    def layout(self) -> Layout | None:
        """How the statistics of the tensors are laid out; None if none are recorded."""
        rows = self._rows("SELECT value FROM facts WHERE name = 'statistics'")
        return Layout.of(json.loads(rows[0][0])) if rows else None

    def peak_memory_bytes(self) -> int | None:
        """The most that the training process held in memory, by the steps that were recorded."""
        found = self._rows("SELECT max(memory_bytes) FROM steps")[0][0]
        return None if found is None else int(found)

    def series(self, number: int) -> tuple[NDArray[np.int64], Numbers]:
        """One series of the statistics, by its place in the layout: the steps, and its numbers."""
        steps, table = self.columns([number])
        return steps, table[:, 0]

    def columns(self, numbers: Sequence[int]) -> tuple[NDArray[np.int64], Numbers]:
        """Several series of the statistics: the steps, and a table with a column for each."""
        layout = self.layout()
        if layout is None:
            raise RunError(f"{self.path} has no statistics: recording.enabled was false, or no step was made yet.")
        with self._connection() as connection, _transaction(connection):
            marks = ", ".join("?" * len(numbers))
            query = f"SELECT block, series, numbers FROM columns WHERE series IN ({marks})"
            columns = connection.execute(query, tuple(numbers)).fetchall()
            rows = connection.execute("SELECT step, numbers FROM statistics ORDER BY step").fetchall()
        places = {number: place for place, number in enumerate(numbers)}
        blocks = {block: np.empty((BLOCK, len(numbers)), np.float32) for block, _, _ in columns}
        for block, number, column in columns:
            blocks[block][:, places[number]] = np.frombuffer(column, "<f4")
        steps = [layout.step(block * BLOCK + place) for block in blocks for place in range(BLOCK)]
        steps += [step for step, _ in rows]
        whole = np.frombuffer(b"".join(row for _, row in rows), "<f4").reshape(-1, layout.width)
        every_step = np.array(steps, np.int64)
        order = np.argsort(every_step, kind="stable")
        return every_step[order], np.concatenate([*blocks.values(), whole[:, list(numbers)]])[order]

    def statistics(self, tensor: str) -> NDArray[Any]:
        """A table of one tensor over the run: a row for each recorded step.

        Fields: step (int64), and of float32: weight_norm, weight_max, gradient_norm, gradient_max (before clipping),
        update_norm, update_max. A max is the largest magnitude.
        """
        layout = self._layout_with(tensor)
        steps, columns = self.columns([layout.statistic(tensor, name) for name in STATISTICS])
        table = np.empty(len(steps), [("step", np.int64), *((name, np.float32) for name in STATISTICS)])
        table["step"] = steps
        for name, column in zip(STATISTICS, columns.T, strict=True):
            table[name] = column
        return table

    def statistics_at(self, step: int) -> Numbers | None:
        """The whole row of one step, as the layout says; None if it was not recorded."""
        layout = self.layout()
        if layout is None or not layout.has(step):
            return None
        rows = self._rows("SELECT numbers FROM statistics WHERE step = ?", step)
        if rows:
            return np.frombuffer(rows[0][0], "<f4")
        block, place = divmod(layout.row(step), BLOCK)
        query = "SELECT substr(numbers, ?, 4) FROM columns WHERE block = ? ORDER BY series"
        numbers = b"".join(number for (number,) in self._rows(query, 4 * place + 1, block))
        return np.frombuffer(numbers, "<f4") if numbers else None

    def histograms(self, tensor: str, kind: str, step: int | None = None) -> list[HistogramRecord]:
        """Counts of the weights, gradients or updates of a tensor, at the steps that have them."""
        query = "SELECT step, tensor, kind, bins, counts FROM histograms WHERE tensor = ? AND kind = ?"
        if step is None:
            return self._records(HistogramRecord, query + " ORDER BY step", tensor, kind)
        return self._records(HistogramRecord, query + " AND step = ?", tensor, kind, step)

    def evaluations(self) -> list[EvaluationRecord]:
        """Every measurement of the validation loss, in order."""
        return self._records(EvaluationRecord, "SELECT * FROM evaluations ORDER BY step, whole")

    def sampled_evaluations(self) -> list[EvaluationRecord]:
        """The measurements that can be held against each other: all by the same sample of the split."""
        limit = self.config.training.evaluation_tokens
        return [e for e in self.evaluations() if e.compares(limit)]

    def best_step(self) -> int | None:
        """The step of the best evaluation."""
        best = self.best_evaluation()
        return best.step if best else None

    def best_evaluation(self) -> EvaluationRecord | None:
        """That with the least validation loss, by the same sample of the split at every measurement; NaN is no loss."""
        measured = [e for e in self.sampled_evaluations() if math.isfinite(e.loss)]
        return min(measured, key=lambda e: e.loss, default=None)

    def samples(self) -> list[SampleRecord]:
        """Every text that the model was made to write during training."""
        return self._records(SampleRecord, "SELECT * FROM samples ORDER BY step, temperature")

    def events(self) -> list[EventRecord]:
        """What happened to the run, in order."""
        return self._records(EventRecord, "SELECT * FROM events ORDER BY rowid")

    def facts(self) -> dict[str, str]:
        """What was noted about the whole run: its fingerprint, its corpus, its result."""
        return dict(self._rows("SELECT name, value FROM facts"))

    def result(self) -> dict[str, Any]:
        """What `train --json` printed at the end; empty while the run has not ended."""
        found: dict[str, Any] = json.loads(self.facts().get("result", "{}"))
        return found

    def _layout_with(self, tensor: str) -> Layout:
        layout = self.layout()
        if layout is None:
            raise RunError(f"{self.path} has no statistics: recording.enabled was false, or no step was made yet.")
        if tensor not in layout.tensors:
            raise RunError(f"{self.path} has no tensor {tensor!r}. {nearest(tensor, list(layout.tensors))}")
        return layout

    def _records(self, kind: type[R], query: str, *values: object) -> list[R]:
        return [record_of(kind, row) for row in self._rows(query, *values)]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        history = self.path / HISTORY
        if not history.is_file():
            raise RunError(f"{self.path} has no history: {HISTORY} is missing.")
        connection = sqlite3.connect(f"{history.resolve().as_uri()}?mode=ro", uri=True)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            check_version(history, version)
            yield connection
        except sqlite3.DatabaseError as error:
            raise RunError(f"{history} cannot be read: {error}.") from None
        finally:
            connection.close()


def is_training(run: str | Path) -> bool:
    """Whether a process trains this run right now: it holds the lock."""
    try:
        with open(Path(run) / LOCK, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Several reads of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _runs_beside(path: Path) -> str:
    """A hint at the runs that do exist."""
    for folder in (path.parent, Path("runs")):
        found = sorted(p.parent for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        if found:
            return f"Runs there: {', '.join(str(p) for p in found[:5])}."
    return "Start one with: vitrine train FILE."
