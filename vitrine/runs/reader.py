"""Reads a run's folder, also during training. Needs no torch."""

import dataclasses
import fcntl
import json
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrine.config import Config, load_toml, validate
from vitrine.errors import RunError, nearest
from vitrine.model.inventory import TensorSpec, inventory, read_tensors, tensor_fact
from vitrine.runs.chosen import Chosen, read_chosen
from vitrine.runs.layout import BLOCK, STATISTICS, Layout, Numbers
from vitrine.runs.records import EvaluationRecord, EventRecord, HistogramRecord, R, SampleRecord, StepRecord, record_of
from vitrine.runs.refusals import sentences
from vitrine.runs.retention import KEYFRAMES as KEYFRAMES
from vitrine.runs.retention import keyframe_steps
from vitrine.runs.store import CONFIG as CONFIG
from vitrine.runs.store import HISTORY as HISTORY
from vitrine.runs.store import TABLES, check_version, sqlite_code

TOKENIZER, CHAT_TEMPLATE, TOKENS, FILM, LIVE, LOCK = (
    "tokenizer.json",
    "chat_template.jinja",  # if it has one; named as in a Hugging Face folder
    "tokens",
    "film",
    "live",
    "lock",
)


class RunReader:
    """A run folder, read only.

    Args:
        path: the folder; it must contain a config.toml.

    Raises:
        RunError: there is no run in this folder.
        ConfigError: its config.toml is invalid.
    """

    def __init__(self, path: str | Path) -> None:
        if path == "":
            raise RunError("The name of a run must not be empty: got ''. Give a run folder.")
        self.path = Path(path)
        try:
            (self.path / CONFIG).stat()
        except (FileNotFoundError, NotADirectoryError):
            what = "is not a run: it has no config.toml" if self.path.is_dir() else "does not exist"
            raise RunError(f"{self.path} {what}. {_runs_beside(self.path)}") from None
        except OSError as error:
            raise RunError(f"{self.path} cannot be opened: {error.strerror}. Is it the name of a run?") from None
        self._copied: tuple[list[tuple[int, int]], bytes] = [], b""
        self.config: Config = validate(load_toml(self.path / CONFIG))

    @cached_property
    def every_tensor(self) -> tuple[TensorSpec, ...]:
        """The tensors of the model in reading order, tied ones too; where there is no such fact, by the hyperparameters."""
        try:
            fact = self.facts().get("tensors", "")
        except RunError:  # the history is lost or damaged: other commands say so
            fact = ""
        try:
            return read_tensors(fact or tensor_fact(self.config.model))
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{self.path}: the fact `tensors` in {HISTORY} is damaged: {error!r}.") from None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Those that have their own numbers: a tied one is counted once."""
        return tuple(tensor for tensor in self.every_tensor if not tensor.owner)

    def check_model(self) -> None:
        """Raise RunError if its tensors are not those of Vitrine's own model: it cannot be run again."""
        own = {tensor.name: tensor.shape for tensor in inventory(self.config.model)}
        for tensor in self.tensors:
            if own.pop(tensor.name, None) != tensor.shape:
                raise RunError(
                    f"{self.path} is not of Vitrine's own model, which has no tensor {tensor.name} of shape {tensor.shape}: "
                    "it cannot be run again. What was recorded and kept of it can be looked at."
                )
        if own:
            raise RunError(
                f"{self.path} lacks a tensor of Vitrine's own model, {next(iter(own))}: it cannot be run again."
            )

    def steps(self) -> list[StepRecord]:
        """Every recorded step, in order."""
        return self._records(StepRecord, "SELECT * FROM steps ORDER BY step")

    def step_record(self, step: int) -> StepRecord | None:
        """The record of one step, if there is one."""
        found = self._records(StepRecord, "SELECT * FROM steps WHERE step = ?", step)
        return found[0] if found else None

    def step_column(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One field of every `StepRecord`: the steps and the values; a missing value is NaN."""
        table = self.step_table(name)
        return table[:, 0].astype(np.int64), table[:, 1]

    def step_table(self, *names: str) -> NDArray[np.float64]:
        """Fields of every `StepRecord`, after the steps: (rows, 1 + fields). A missing value is NaN."""
        for name in names:
            if name not in (known := [field.name for field in dataclasses.fields(StepRecord)]):
                raise RunError(f"A step has no {name!r}. {nearest(name, known)}")
        rows = self._rows(f"SELECT {', '.join(('step', *names))} FROM steps ORDER BY step")
        return np.array(rows, np.float64).reshape(-1, 1 + len(names))

    def last_durations_s(self, count: int) -> list[float]:
        """How long each of the last steps took, in order."""
        rows = self._rows("SELECT duration_s FROM steps ORDER BY step DESC LIMIT ?", count)
        return [duration_s for (duration_s,) in reversed(rows)]

    def written_after(self, kind: type[R], row: int) -> list[tuple[int, R]]:
        """The records of a kind that were written after a row, in order, each with its row number."""
        rows = self._rows(f"SELECT rowid, * FROM {TABLES[kind]} WHERE rowid > ? ORDER BY rowid", row)
        return [(number, record_of(kind, values)) for number, *values in rows]

    def steps_made(self) -> int:
        """How many steps the history has."""
        found = self._rows("SELECT max(step) FROM steps")[0][0]
        return 0 if found is None else int(found) + 1

    def recorded_s(self) -> float:
        """When the run last recorded something, in Unix time: the time of its last event, plus the steps made since.

        File times would not do: reading a write-ahead log changes them.
        """
        last = self._rows("SELECT time_s, step FROM events ORDER BY rowid DESC LIMIT 1")
        if not last:
            return (self.path / CONFIG).stat().st_mtime
        since_s = self._rows("SELECT total(duration_s) FROM steps WHERE step >= ?", last[0][1])[0][0]
        return float(last[0][0] + since_s)

    def check_step(self, step: int, to: Literal["replay", "start from"] = "replay") -> None:
        """Raise RunError if there is no such step. A step that was made can be replayed; one can also start from the one after."""
        made = max([self.steps_made(), *keyframe_steps(self.path / KEYFRAMES)])
        last = made - 1 if to == "replay" else made
        if not 0 <= step <= last:
            known = f"Name one from 0 to {last}." if last >= 0 else "It has to make one first."
            raise RunError(f"{self.path} has made {made} steps: there is no step {step} to {to}. {known}")

    def missing_steps(self) -> list[tuple[int, int, int]]:
        """Steps that the history lost: first and last step of each gap, and the keyframe that proves that they were made."""
        keyframes = keyframe_steps(self.path / KEYFRAMES)
        if not (self.config.recording.enabled and keyframes):
            return []
        recorded = [step for (step,) in self._rows("SELECT step FROM steps")]
        missing = np.setdiff1d(np.arange(keyframes[-1]), recorded)
        gaps = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else []
        return [(int(gap[0]), int(gap[-1]), min(k for k in keyframes if k > gap[-1])) for gap in gaps]

    def changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """The hyperparameters in config.toml that changed since the run began: old and new values.

        Empty if the history has no `identity`. The path of the corpus may change, because its digest is compared.
        """
        noted = self.facts().get("identity")
        if noted is None:
            return {}
        now = self.config.model_dump(mode="json")
        # For keys that were added later, both sides get the default.
        complete = json.loads(noted) | {section: now[section] for section in ("machine", "recording")}
        then = validate(complete).model_dump(mode="json")
        if len(then["data"]["corpus"]) == len(now["data"]["corpus"]):
            then["data"]["corpus"] = now["data"]["corpus"]
        return {
            f"{section}.{key}": (value, now[section][key])
            for section, keys in then.items()
            for key, value in keys.items()
            if now[section][key] != value
        }

    def chosen(self) -> dict[str, Chosen] | None:
        """Who chose each hyperparameter, and how, by `section.key`; None: this was not recorded."""
        return read_chosen(self.facts().get("chosen", ""), self.config)

    def layout(self) -> Layout | None:
        """The layout of the statistics; None if none are recorded."""
        rows = self._rows("SELECT value FROM facts WHERE name = 'statistics'")
        return Layout.of(json.loads(rows[0][0])) if rows else None

    def peak_memory_bytes(self) -> int | None:
        """The most memory that the training process used, in the recorded steps."""
        found = self._rows("SELECT max(memory_bytes) FROM steps")[0][0]
        return None if found is None else int(found)

    def series(self, number: int) -> tuple[NDArray[np.int64], Numbers]:
        """One series of the statistics, by its place in the layout: the steps and the numbers."""
        steps, table = self.columns([number])
        return steps, table[:, 0]

    def columns(self, numbers: Sequence[int]) -> tuple[NDArray[np.int64], Numbers]:
        """Several series of the statistics: the steps (rows,), and a table (rows, series)."""
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
        """A table of one tensor over the run, with a row for each recorded step.

        Fields: step (int64); in float32 weight_norm, weight_max, gradient_norm, gradient_max (before clipping),
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
        """The whole row of one step, in the order of the layout; None if it was not recorded."""
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
        """Histograms of the weights, gradients or updates of a tensor, at the steps that have them."""
        query = "SELECT step, tensor, kind, bins, counts FROM histograms WHERE tensor = ? AND kind = ?"
        if step is None:
            return self._records(HistogramRecord, query + " ORDER BY step", tensor, kind)
        return self._records(HistogramRecord, query + " AND step = ?", tensor, kind, step)

    def evaluations(self) -> list[EvaluationRecord]:
        """Every measurement of the validation loss, in order."""
        return self._records(EvaluationRecord, "SELECT * FROM evaluations ORDER BY step, whole")

    def sampled_evaluations(self) -> list[EvaluationRecord]:
        """The measurements that can be compared, because all use the same sample of the split."""
        limit = self.config.training.evaluation_tokens
        return [e for e in self.evaluations() if e.compares(limit)]

    def best_step(self) -> int | None:
        """The step of the best evaluation."""
        best = self.best_evaluation()
        return best.step if best else None

    def best_evaluation(self) -> EvaluationRecord | None:
        """The evaluation with the lowest validation loss, among `sampled_evaluations`; NaN does not count."""
        measured = [e for e in self.sampled_evaluations() if math.isfinite(e.loss)]
        return min(measured, key=lambda e: e.loss, default=None)

    def samples(self) -> list[SampleRecord]:
        """Every text that the model generated during training."""
        return self._records(SampleRecord, "SELECT * FROM samples ORDER BY step, temperature")

    def events(self) -> list[EventRecord]:
        """What happened to the run, in order."""
        return self._records(EventRecord, "SELECT * FROM events ORDER BY rowid")

    def facts(self) -> dict[str, str]:
        """The facts about the whole run: its fingerprint, its corpus, its result."""
        return dict(self._rows("SELECT name, value FROM facts"))

    def result(self) -> dict[str, Any]:
        """What `train --json` printed at the end; empty while the run has not ended."""
        found: dict[str, Any] = json.loads(self.facts().get("result", "{}"))
        return found

    def damage(self) -> str:
        """What SQLite finds wrong in the history's file; empty if nothing."""
        try:
            found = str(self._rows("PRAGMA quick_check(1)")[0][0])
        except RunError as error:
            return str(error)
        return "" if found == "ok" else found

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
        if not (self.path / HISTORY).is_file():
            raise RunError(f"{self.path} has no history: {HISTORY} is missing.")
        with sentences(self.path), closing(self._open(self.path / HISTORY)) as connection:
            yield connection

    def _open(self, history: Path) -> sqlite3.Connection:
        """A read-only connection, also if SQLite cannot write the files that it needs to share a database."""
        address = history.resolve().as_uri()
        try:
            return _checked(sqlite3.connect(f"{address}?mode=ro", uri=True), history)
        except sqlite3.OperationalError as error:
            if sqlite_code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
        log = history.with_name(f"{HISTORY}-wal")
        if is_training(self.path) or (log.is_file() and log.stat().st_size):
            connection = sqlite3.connect(":memory:")
            connection.deserialize(self._with_log(history, log))
        else:
            connection = sqlite3.connect(f"{address}?immutable=1", uri=True)
        return _checked(connection, history)

    def _with_log(self, history: Path, log: Path) -> bytes:
        """The database merged with its log, in a copy that is renewed whenever the files change."""
        files = [file for file in (log, history) if file.is_file()]
        stamp = [(file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        if stamp != self._copied[0]:
            with tempfile.TemporaryDirectory() as folder:
                for file in files:
                    shutil.copyfile(file, Path(folder) / file.name)
                with closing(sqlite3.connect(Path(folder) / HISTORY)) as connection:
                    connection.execute("PRAGMA journal_mode = DELETE")
                    self._copied = stamp, connection.serialize()
        return self._copied[1]


def is_training(run: str | Path) -> bool:
    """Whether a process is training this run: it then holds the lock."""
    try:
        with open(Path(run) / LOCK, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock file, or it cannot be opened
        return False
    return False


def _checked(connection: sqlite3.Connection, history: Path) -> sqlite3.Connection:
    """Return the connection if it reads a history of this version; otherwise close it and raise."""
    try:
        check_version(history, connection.execute("PRAGMA user_version").fetchone()[0])
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make several reads see the same state."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _runs_beside(path: Path) -> str:
    """A hint with the runs that exist."""
    for folder in (path.parent, Path("runs")):
        found = sorted(p.parent for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        if found:
            return f"Runs there: {', '.join(str(p) for p in found[:5])}."
    return "Start one with: vitrine train FILE."
