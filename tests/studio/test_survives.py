"""What goes wrong around a studio is said in a sentence, and nothing else suffers: restarts, deletions, damage, two pages."""

import fcntl
import json
import shutil
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.conftest import vitrine_in
from tests.studio.conftest import SCHEMA, SMALL, Studio, remove, serve
from vitrine.inspection.replay import Replayer
from vitrine.runs.reader import RunReader
from vitrine.studio import worker_pool

GAIN = {"tensor": "final_norm.gain", "mode": "gradient"}


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """A folder of one's own, with a copy of the run."""
    shutil.copytree(runs / "small", tmp_path / "r" / "small")
    return tmp_path / "r"


def test_a_page_of_an_older_studio_is_told_to_open_the_new_address(own: Path):
    with serve(own) as before:
        port, headers = int(before.url.rpartition(":")[2]), before.client.headers
    with serve(own, port=port) as after:
        for path in ("/api/runs", "/api/runs/small/stream"):
            answer = after.client.get(path, headers=headers)
            assert answer.status_code == 401
            assert "was restarted, with a new token" in answer.json()["error"]
        assert after.client.get("/api/runs").status_code == 200


def test_every_route_says_that_a_run_is_gone(studio: Studio, runs: Path):
    query = {"name": "loss", "step": 1, "mode": "value", "tensor": "final_norm.gain", "every": 2}
    query |= {"statistic": "loss", "run": ["gone", "gone"]}
    bodies = {
        "next": {"prompt": "a", "step": 1},
        "generate": {"prompt": "a", "step": 1},
        "requests": {"action": "stop"},
    }
    bodies["births"] = {"seed": 2, "spread": 1.0}
    bodies["nudge"] = {"parameter": "final_norm.gain[0]", "step": 1, "sizes": [0.1]}
    shutil.copytree(runs / "small", runs / "gone")
    assert studio.cells("gone", **GAIN, step=3).size
    remove(runs / "gone")
    asked = 0
    for path, methods in SCHEMA["paths"].items():
        if "{run}" not in path and not path.endswith("/compare"):
            continue
        place = path.format(run="gone", number=0, n=1).removeprefix("/api/")
        for method in methods:
            body = bodies.get(place.rpartition("/")[2], {})
            answer = studio.get(place, **query) if method == "get" else studio.post(place, **body)
            assert answer.status_code == 404, (place, answer.text)
            assert "no run 'gone'" in answer.json()["error"]
            asked += 1
    assert asked > 20
    listed = studio.json("runs")
    assert "gone" not in [run["name"] for run in (*listed["runs"], *listed["unreadable"])]


def test_a_run_made_again_under_the_same_name_is_another_and_nothing_of_the_old_one_is_shown(
    studio: Studio, runs: Path, book_file: Path
):
    shutil.copytree(runs / "small", runs / "again")
    old = studio.json("runs/again")["identity"]
    before = studio.cells("again", **GAIN, step=37, v=old)
    remove(runs / "again")
    changed = ["--steps", 50, "--set=training.seed=2"]
    vitrine_in(runs, "train", book_file, "--run", "again", *SMALL, *changed, check=True)
    new = studio.json("runs/again")["identity"]
    assert new != old
    assert studio.get("runs/again/tile", **GAIN, step=37, v=old).status_code == 409
    after = studio.cells("again", **GAIN, step=37, v=new)
    assert not np.array_equal(after, before)
    expected = Replayer(RunReader(runs / "again")).replay(37).tensor("final_norm.gain").gradient
    assert after.tobytes() == expected.tobytes()
    remove(runs / "again")


def test_two_pages_at_different_steps_each_get_their_own(studio: Studio, runs: Path):
    steps = {"one": [141, 31, 142], "two": [33, 143, 34]}
    found: dict[str, list[httpx.Response]] = {page: [] for page in steps}

    def look(page: str) -> None:
        with httpx.Client(base_url=studio.url, headers=studio.client.headers, timeout=300, verify=False) as client:
            for step in steps[page]:
                found[page].append(client.get("/api/runs/small/tile", params=GAIN | {"step": step}))

    threads = [threading.Thread(target=look, args=(page,)) for page in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    replayer = Replayer(RunReader(runs / "small"))
    for page, answers in found.items():
        assert [int(answer.headers["x-step"]) for answer in answers] == steps[page]
        for step, answer in sorted(zip(steps[page], answers, strict=True)):
            assert answer.headers["x-exact"] == "true"
            assert answer.content == replayer.replay(step).tensor("final_norm.gain").gradient.tobytes()


def test_the_newest_job_comes_first_but_none_waits_for_ever(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(worker_pool.time, "monotonic", lambda: now[0])

    class Orders:
        def __init__(self) -> None:
            self.left = [("job", number, "cells", {}) for number in (1, 2, 3)]

        def recv(self):
            if not self.left:
                raise EOFError
            return self.left.pop(0)

    monkeypatch.setattr(worker_pool.os, "_exit", lambda status: sys.exit(status))
    queue = worker_pool.JobQueue(Orders())
    with pytest.raises(SystemExit):
        queue.listen()
    order = []
    for _ in range(3):
        queue.next()
        order.append(queue.number)
        now[0] += 2.0
    assert order == [3, 2, 1]
    queue.connection.left = [("job", number, "cells", {}) for number in (4, 5)]
    with pytest.raises(SystemExit):
        queue.listen()
    queue.next()
    assert queue.number == 5
    now[0] += worker_pool.PATIENCE_S + 1
    queue.connection.left = [("job", 6, "cells", {})]
    with pytest.raises(SystemExit):
        queue.listen()
    queue.next()
    assert queue.number == 4  # it came before 6, and has waited long enough


def test_a_run_whose_history_is_damaged_or_gone_is_listed_with_the_reason(own: Path):
    for name in ("garbage", "gone"):
        shutil.copytree(own / "small", own / name)
        for file in (own / name).glob("run.sqlite*"):
            file.unlink()
    (own / "garbage" / "run.sqlite").write_bytes(b"no database" * 1000)
    with serve(own) as studio:
        listing = studio.json("runs")
        assert [run["name"] for run in listing["runs"]] == ["small"]
        reasons = {row["name"]: row["error"] for row in listing["unreadable"]}
        assert "cannot be read" in reasons["garbage"]
        assert "has no history" in reasons["gone"]
        for name, reason in reasons.items():
            answer = studio.get(f"runs/{name}")
            assert (answer.status_code, answer.json()["error"]) == (400, reason)
        assert studio.json("runs/small")["steps_made"] == 160


def test_a_disk_that_refuses_is_named_and_the_page_goes_on(own: Path):
    (own / "small" / "requests").write_text("in the way of the mailbox")
    with serve(own) as studio, open(own / "small" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a training does
        answer = studio.post("runs/small/requests", action="stop")
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("The disk refused: ")
        assert studio.json("runs/small")["training"] is True


def test_a_page_that_may_not_ask_for_live_pictures_has_none(own: Path):
    shutil.rmtree(own / "small" / "live", ignore_errors=True)
    (own / "small" / "live").write_text("in the way of the pictures")
    with serve(own) as studio, open(own / "small" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert studio.get("runs/small/live").status_code == 204
        with studio.client.stream("GET", "/api/runs/small/stream") as answer:
            line = next(line for line in answer.iter_lines() if line.startswith("data: "))
            assert json.loads(line[6:])["live_step"] is None
