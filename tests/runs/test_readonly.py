"""A finished run in a place that cannot be written: everything that reads it does, to the same numbers."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import obey_permissions
from vitrine.runs.reader import HISTORY, RunReader
from vitrine.runs.store import Store

# Each line of the input is a command, or a route of the studio; each line of the output what came of it.
READ = """
import json, os, sys
from pathlib import Path
from starlette.testclient import TestClient
from typer.testing import CliRunner
from vitrine.cli.main import app
from vitrine.studio.app import make_app

folder = Path(sys.argv[1])
try:
    open(folder / "run" / "probe", "w").close()
    sys.exit("it can be written")
except OSError:
    pass
with TestClient(make_app([folder], "token", 1), "http://127.0.0.1:1", headers={"Authorization": "Bearer token"}) as client:
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "GET":
            answer = client.get(words[1])
            print(json.dumps([answer.status_code, answer.text]))
        else:
            done = CliRunner().invoke(app, words)
            print(json.dumps([done.exit_code, done.stdout + done.stderr]))
"""


def read_in(folder: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """What commands come to where the runs in this folder cannot be written."""
    root = os.geteuid() == 0
    if root and not sys.platform.startswith("linux"):
        pytest.skip("root writes wherever it likes here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(folder)],
            input="".join(json.dumps(words) + "\n" for words in commands),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=folder.parent,
            preexec_fn=obey_permissions if root else None,
        )
    except subprocess.SubprocessError:
        pytest.skip("root cannot be kept from writing here")
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def seal(run: Path) -> None:
    """Nothing in this folder, nor the folder, can be written."""
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def sealed(small: Path, tmp_path: Path) -> Iterator[Path]:
    """The small run in a folder that will be sealed."""
    run = Path(shutil.copytree(small, tmp_path / "sealed" / "run"))
    yield run
    for path in (run.parent, *run.parent.rglob("*")):
        path.chmod(0o755)


def leave_a_log(run: Path) -> None:
    """As a kill leaves it: an event that stands in run.sqlite-wal alone."""
    writer = os.fork()
    if writer == 0:
        Store(run / HISTORY).event(20, "resumed", "only in the log")
        os._exit(0)
    os.waitpid(writer, 0)
    assert (run / f"{HISTORY}-wal").stat().st_size


def test_every_command_and_the_studio_read_a_run_that_cannot_be_written(sealed, small, tmp_path):
    unended = Path(shutil.copytree(small, sealed.parent / "unended"))
    with Store(unended / HISTORY) as store:
        store.connection.execute("DELETE FROM facts WHERE name = 'result'")
    for name in ("log", "log-alone"):
        leave_a_log(Path(shutil.copytree(small, sealed.parent / name)))
    (sealed.parent / "log-alone" / f"{HISTORY}-shm").unlink()
    before = sorted(sealed.parent.rglob("*"))
    seal(sealed.parent)
    commands = [
        ["generate", str(sealed), "--max-new-tokens", "5"],
        ["evaluate", str(sealed), "--json"],
        ["inspect", str(sealed), "embedding.weight[3,7]", "--step", "12"],
        ["replay", str(sealed), "--step", "12", "--prove", "--json"],
        ["verify", str(sealed), "--count", "1"],
        ["health", str(sealed)],
        ["compare", str(sealed), str(small)],
        ["export", str(sealed), str(tmp_path / "exported")],
        ["GET", "/api/runs"],
        ["GET", "/api/runs/run"],
        ["GET", "/api/runs/run/series?name=loss"],
        ["GET", "/api/runs/run/film/3"],
        ["GET", "/api/runs/run/live"],
        ["GET", "/api/runs/run/tile?tensor=embedding.weight&step=10&mode=value"],
        ["GET", "/api/runs/log"],
        ["GET", "/api/runs/log-alone"],
    ]
    *found, (refused, sentence) = read_in(sealed.parent, *commands, ["resume", str(unended)])
    for words, (status, said) in zip(commands, found, strict=True):
        assert status in (0, 200, 204), (words, said)
    assert '"exact": true' in found[3][1]
    assert json.loads(found[9][1])["steps_made"] == 20
    for _, info in found[-2:]:
        assert json.loads(info)["events"][-1]["text"] == "only in the log"
    assert sorted(sealed.parent.rglob("*")) == before
    assert refused == 2
    assert f"{unended}/lock cannot be opened or written here: Permission denied. Check the permissions of" in sentence


def test_a_log_that_cannot_be_shared_is_read_from_a_copy_and_again_when_it_changes(sealed, monkeypatch):
    """Without a place that cannot be written: SQLite is made to refuse."""
    connect = sqlite3.connect

    def refuse(address: str | Path, **how: object) -> sqlite3.Connection:
        if "mode=ro" in str(address):
            address = f"file:{sealed}/nowhere/{HISTORY}?mode=ro"
        return connect(address, **how)

    leave_a_log(sealed)
    monkeypatch.setattr("vitrine.runs.reader.sqlite3.connect", refuse)
    reader = RunReader(sealed)
    assert reader.events()[-1].text == "only in the log"
    assert len(reader.steps()) == 20
    leave_a_log(sealed)
    assert [event.text for event in reader.events()][-2:] == ["only in the log"] * 2


def test_when_a_run_last_recorded_something_is_not_changed_by_reading_it(copy):
    reader = RunReader(copy)
    ended = reader.events()[-1]
    assert (ended.kind, reader.recorded_s()) == ("steps", ended.time_s)
    for file in (copy, *copy.glob("run.sqlite*")):
        os.utime(file)
    assert RunReader(copy).recorded_s() == ended.time_s
    with sqlite3.connect(copy / "run.sqlite") as history:
        history.execute("DELETE FROM events WHERE rowid > 1")  # as after a kill
        began_s, made_s = history.execute("SELECT time_s, (SELECT sum(duration_s) FROM steps) FROM events").fetchone()
    assert RunReader(copy).recorded_s() == began_s + made_s
