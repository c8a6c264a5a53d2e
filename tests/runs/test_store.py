"""The history: rows, columns of 1,024, several readers, a kill."""

import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrine.errors import RunError
from vitrine.presets import Facts, resolve
from vitrine.recording.history import History
from vitrine.runs.layout import BLOCK, Layout, Numbers
from vitrine.runs.reader import CONFIG, HISTORY, RunReader
from vitrine.runs.records import StepRecord
from vitrine.runs.store import SCHEMA_VERSION, Store

LAYOUT = Layout(every=3, tensors=("a", "b"), sample={"a": (0, 5), "b": (1,)})


RARER = replace(LAYOUT, since=(36, 9))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with no history yet."""
    (tmp_path / CONFIG).write_text(resolve({}, Facts(vocab_size=96, train_tokens=100_000)).to_toml())
    return tmp_path


def row_of(number: int, salt: int = 0) -> Numbers:
    """The statistics of the number-th recorded step: different in every place."""
    return np.random.default_rng((number, salt)).standard_normal(LAYOUT.width, dtype=np.float32)


def record_of(step: int) -> StepRecord:
    return StepRecord(step, 1 / (step + 1), 0.5, 1e-3, 64 * (step + 1), 0.01, 1_000_000)


def write_rows(store: Store, first: int, last: int, salt: int = 0) -> None:
    for number in range(first, last):
        store.write_statistics(number * LAYOUT.every, row_of(number, salt), LAYOUT)


def filled(run: Path, rows: int) -> Path:
    """The run with a history of so many recorded steps."""
    with Store(run / HISTORY) as store:
        store.set_fact("statistics", json.dumps(LAYOUT.facts()))
        write_rows(store, 0, rows)
    return run


def counts(run: Path) -> tuple[int, int]:
    """How many rows stand as rows, and how many columns there are."""
    with sqlite3.connect(run / HISTORY) as history:
        return history.execute("SELECT (SELECT count(*) FROM statistics), (SELECT count(*) FROM columns)").fetchone()


@pytest.mark.parametrize(
    ("rows", "left", "columns"),
    [(BLOCK - 1, BLOCK - 1, 0), (BLOCK, 0, LAYOUT.width), (2 * BLOCK + 5, 5, 2 * LAYOUT.width)],
)
def test_each_1024_recorded_steps_become_one_column_a_series(rows, left, columns, run):
    assert counts(filled(run, rows)) == (left, columns)


@pytest.mark.parametrize("series", range(LAYOUT.width))
def test_a_series_reads_back_equal_in_value_and_order(series, run, two_blocks_and_some):
    steps, numbers = RunReader(two_blocks_and_some).series(series)
    assert steps.tolist() == [LAYOUT.every * number for number in range(2_300)]
    assert numbers.tolist() == [row_of(number)[series] for number in range(2_300)]


@pytest.mark.parametrize("number", [0, BLOCK - 1, BLOCK, 2_047, 2_048, 2_299])
def test_a_whole_row_reads_back_from_columns_and_from_rows(number, two_blocks_and_some):
    row = RunReader(two_blocks_and_some).statistics_at(number * LAYOUT.every)
    assert row is not None
    assert row.tolist() == row_of(number).tolist()


def test_a_step_between_two_recorded_ones_has_no_row(two_blocks_and_some):
    assert RunReader(two_blocks_and_some).statistics_at(4) is None


def test_a_table_of_a_tensor_has_its_six_statistics_by_step(two_blocks_and_some):
    table = RunReader(two_blocks_and_some).statistics("b")
    assert len(table) == 2_300
    assert table[2_100].tolist() == (6_300, *row_of(2_100)[6:12].tolist())


def test_a_history_whose_rows_became_rarer_reads_back_by_step(run):
    steps = [*range(0, 36, 3), *range(36, 36 + 9 * (2_300 - 12), 9)]
    with Store(run / HISTORY) as store:
        store.set_fact("statistics", json.dumps(RARER.facts()))
        assert store.layout() == RARER
        for number, step in enumerate(steps):
            store.write_statistics(step, row_of(number), RARER)
    assert counts(run) == (2_300 - 2 * BLOCK, 2 * RARER.width)
    reader = RunReader(run)
    assert reader.series(7)[0].tolist() == steps
    assert reader.series(7)[1].tolist() == [row_of(number)[7] for number in range(2_300)]
    for number in (0, 11, 12, BLOCK - 1, BLOCK, 2_299):
        assert reader.statistics_at(steps[number]).tolist() == row_of(number).tolist()
    assert [step for step in range(50) if reader.statistics_at(step) is not None] == [*range(0, 36, 3), 36, 45]
    with Store(run / HISTORY) as store:
        store.open_blocks(steps[1_500], RARER)
        assert store.statistics_row(steps[1_500]).tolist() == row_of(1_500).tolist()
    assert counts(run) == (2_300 - BLOCK, RARER.width)
    assert reader.series(7)[0].tolist() == steps


def test_not_a_number_and_infinities_come_back_from_a_column_as_they_were(run):
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    with Store(filled(run, 0) / HISTORY) as store:
        for number in range(BLOCK):
            store.write_statistics(number * LAYOUT.every, np.resize(odd, LAYOUT.width), LAYOUT)
    back = [RunReader(run).series(i)[1][7] for i in range(5)]
    assert np.array(back).view(np.uint32).tolist() == odd.view(np.uint32).tolist()


def test_no_reader_ever_sees_half_a_block(run):
    """Another connection looks before each statement by which a block becomes columns."""
    seen = set()
    with Store(filled(run, BLOCK - 1) / HISTORY) as store:
        store.connection.set_trace_callback(lambda _: seen.add(counts(run)))
        write_rows(store, BLOCK - 1, BLOCK)
        store.connection.set_trace_callback(None)
    assert seen == {(BLOCK - 1, 0)}
    assert counts(run) == (0, LAYOUT.width)


@pytest.mark.parametrize(("number", "columns"), [(BLOCK, 1), (1_500, 1), (2_047, 1), (2_048, 2), (0, 0)])
def test_blocks_that_hold_the_step_or_later_ones_are_opened_and_no_others(number, columns, two_blocks_and_some):
    with Store(two_blocks_and_some / HISTORY) as store:
        store.open_blocks(number * LAYOUT.every, LAYOUT)
    assert counts(two_blocks_and_some) == (2_300 - columns * BLOCK, columns * LAYOUT.width)


def test_opened_blocks_read_as_before(two_blocks_and_some):
    with Store(two_blocks_and_some / HISTORY) as store:
        store.open_blocks(0, LAYOUT)
        back = store.statistics_row(1_500 * LAYOUT.every)
    assert back is not None
    assert back.tolist() == row_of(1_500).tolist()
    assert RunReader(two_blocks_and_some).series(7)[1].tolist() == [row_of(number)[7] for number in range(2_300)]


def test_a_resumed_run_rewrites_the_rows_beyond_its_keyframe_and_keeps_those_before(two_blocks_and_some):
    with Store(two_blocks_and_some / HISTORY) as store:
        store.open_blocks(1_500 * LAYOUT.every, LAYOUT)
        write_rows(store, 1_500, 2_400, salt=1)
    steps, numbers = RunReader(two_blocks_and_some).series(7)
    assert steps.tolist() == [LAYOUT.every * number for number in range(2_400)]
    assert numbers.tolist() == [row_of(number, int(number >= 1_500))[7] for number in range(2_400)]


def test_one_changed_bit_of_a_recorded_statistic_is_noticed_when_the_step_is_made_again(run):
    history, notes = History(run / HISTORY, enabled=True), []
    history.begin(LAYOUT)
    for step in range(0, 60, LAYOUT.every):
        history.record(record_of(step), row_of(step), notes.append)
    changed = row_of(42).copy()
    changed.view(np.uint32)[17] ^= 1
    history.store.write_statistics(42, changed, LAYOUT)
    history.store.close()
    history = History(run / HISTORY, enabled=True)
    history.resumed(30)
    for step in range(30, 60, LAYOUT.every):
        history.record(record_of(step), row_of(step), notes.append)
    history.store.close()
    assert notes == ["1 of 10 steps made again differ from before."]


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION - 1, "an older"), (SCHEMA_VERSION + 1, "a newer")])
@pytest.mark.parametrize("use", [lambda run: Store(run / HISTORY), lambda run: RunReader(run).steps()])
def test_another_schema_version_is_refused_by_name(version, age, use, run):
    with sqlite3.connect(filled(run, 1) / HISTORY) as history:
        history.execute(f"PRAGMA user_version = {version}")
    sentence = rf"run\.sqlite has schema version {version};.* version {SCHEMA_VERSION}\. Use {age} Vitrine"
    with pytest.raises(RunError, match=sentence):
        use(run)


def test_a_reader_in_the_midst_of_reading_does_not_hold_up_the_writer(run):
    with Store(run / HISTORY) as store:
        store.write(record_of(0))
        store.commit()
        store.connection.execute("PRAGMA busy_timeout = 0")
        reader = sqlite3.connect(run / HISTORY, isolation_level=None)
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM steps").fetchone()
        store.write(record_of(1))
        store.commit()
        assert reader.execute("SELECT count(*) FROM steps").fetchone() == before == (1,)
        reader.execute("ROLLBACK")
        assert reader.execute("SELECT count(*) FROM steps").fetchone() == (2,)
        reader.close()


COUNT_ON_DEMAND = """
import sys
from vitrine.runs.reader import RunReader
for _ in sys.stdin:
    print(RunReader(sys.argv[1]).steps_made(), flush=True)
"""


def test_a_reader_in_another_process_sees_what_is_committed_while_the_writer_goes_on(run):
    command = [sys.executable, "-c", COUNT_ON_DEMAND, str(run)]
    with (
        Store(run / HISTORY) as store,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader,
    ):
        assert reader.stdin
        assert reader.stdout

        def read() -> int:
            reader.stdin.write("\n")
            reader.stdin.flush()
            return int(reader.stdout.readline())

        seen = []
        for step in range(3):
            store.write(record_of(step))
            store.commit()
            store.connection.execute("BEGIN")
            store.connection.execute("INSERT INTO steps (step) VALUES (100)")  # under way
            seen.append(read())
            store.connection.execute("ROLLBACK")
        reader.stdin.close()
    assert seen == [1, 2, 3]


WRITE_UNTIL_KILLED = """
import itertools, sys, time
import numpy as np
from vitrine.runs.records import StepRecord
from vitrine.runs.layout import Layout
from vitrine.runs.store import Store

layout = Layout(1, ("a",), {"a": ()})
store = Store(sys.argv[1])
for step in itertools.count():
    store.write(StepRecord(step, 1.0, 1.0, 1.0, step, 0.0, 0))
    store.write_statistics(step, np.full(layout.width, step, np.float32), layout)
    print(step, time.monotonic(), flush=True)
    time.sleep(0.004)  # too few for a block: that would be committed at once
"""


def test_after_a_kill_the_history_opens_and_nothing_older_than_a_second_is_missing(tmp_path):
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(tmp_path / HISTORY)]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log) as writer:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").read_text():
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1.8)
        killed_s = time.monotonic()
        writer.kill()
    lines = (tmp_path / "log").read_text().splitlines()[:-1]
    old = {int(step) for step, time_s in map(str.split, lines) if float(time_s) < killed_s - 1}
    with Store(tmp_path / HISTORY) as store:
        steps = {step for (step,) in store.connection.execute("SELECT step FROM steps")}
        rows = {step for (step,) in store.connection.execute("SELECT step FROM statistics")}
    assert len(old) > 20
    assert old <= steps
    assert old <= rows


@pytest.fixture
def two_blocks_and_some(run: Path) -> Path:
    """A history of 2,300 recorded steps."""
    return filled(run, 2_300)
