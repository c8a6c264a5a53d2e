"""Exact cells and the insides of a step: to the bit what the library says; and workers that come and go."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from starlette.requests import ClientDisconnect

from tests.studio.conftest import Studio, plainly, serve, until
from vitrine.http.child_process import UnsendableError
from vitrine.http.requests import while_there
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.inspection.step_report import report_step
from vitrine.inspection.views import inspect
from vitrine.runs.reader import RunReader
from vitrine.studio.responses import RefusalError
from vitrine.studio.worker_pool import CancelledJobError, Worker

STEP = 153
CELL = "blocks.0.attention.query.weight[3,7]"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


@pytest.fixture(scope="module")
def opened(reader: RunReader) -> ReplayedStep:
    """The step as the library opens it, in this process."""
    return Replayer(reader).replay(STEP)


def whole(studio: Studio, name: str, **query: object) -> np.ndarray:
    return studio.cells("small", tensor=name, rows=1000, columns=1000, **query)


@pytest.mark.parametrize("step", [0, 150, 160])
def test_values_of_a_keyframe_are_those_of_its_file(studio: Studio, reader: RunReader, step: int):
    for name, tensor in load_file(reader.path / f"keyframes/step-{step:08d}/model.safetensors").items():
        cells = whole(studio, name, step=step, mode="value")
        assert cells.tobytes() == tensor.tobytes()
        assert cells.shape == (tensor.shape if tensor.ndim == 2 else (1, *tensor.shape))


def test_a_tile_is_its_rectangle_and_is_cut_at_the_edge(studio: Studio, reader: RunReader):
    tensor = load_file(reader.path / "keyframes/step-00000150/model.safetensors")["blocks.0.mlp.expand.weight"]
    assert tensor.shape == (96, 24)
    place = {"tensor": "blocks.0.mlp.expand.weight", "step": 150, "mode": "value"}
    tile = studio.cells("small", **place, row=5, column=7, rows=3, columns=2)
    assert np.array_equal(tile, tensor[5:8, 7:9])
    assert np.array_equal(studio.cells("small", **place, row=95, column=20, rows=10, columns=10), tensor[95:, 20:])
    assert studio.get("runs/small/tile", **place, row=96).status_code == 404
    bias = load_file(reader.path / "keyframes/step-00000150/model.safetensors")["blocks.0.mlp.expand.bias"]
    place["tensor"] = "blocks.0.mlp.expand.bias"
    assert np.array_equal(studio.cells("small", **place, column=90, columns=3), bias[None, 90:93])


@pytest.mark.parametrize("mode", ["value", "gradient", "update", "birth", "learned", "memory:second_moment"])
def test_every_cell_of_a_step_is_the_library_s_to_the_bit(
    studio: Studio, reader: RunReader, opened: ReplayedStep, mode: str
):
    born = load_file(reader.path / "keyframes/step-00000000/model.safetensors")
    for name, tensor in opened.tensors.items():
        expected = {
            "value": tensor.before,
            "gradient": tensor.gradient,
            "update": tensor.update,
            "birth": born[name],
            "learned": tensor.before - born[name],
            "memory:second_moment": tensor.memory_before["second_moment"],
        }[mode]
        assert whole(studio, name, step=STEP, mode=mode).tobytes() == expected.tobytes()
    answer = studio.get("runs/small/tile", tensor="final_norm.gain", step=STEP, mode=mode)
    assert (answer.headers["x-step"], answer.headers["x-exact"]) == ("0" if mode == "birth" else str(STEP), "true")


def test_a_damaged_keyframe_is_not_shown_and_the_step_is_entered_from_the_one_before(
    studio: Studio, runs: Path, tmp_path: Path, reader: RunReader
):
    true = load_file(reader.path / "keyframes/step-00000150/model.safetensors")["final_norm.gain"]
    shutil.copytree(runs / "small", runs / "damaged")
    try:
        file = runs / "damaged/keyframes/step-00000150/model.safetensors"
        tensors = load_file(file)
        tensors["final_norm.gain"][3] += 1
        save_file(tensors, file)
        cells = studio.cells("damaged", tensor="final_norm.gain", step=150, mode="value")
        assert cells.tobytes() == true.tobytes()
    finally:
        shutil.rmtree(runs / "damaged")


def test_what_differs_from_the_record_is_never_called_exact(studio: Studio, runs: Path):
    shutil.copytree(runs / "small", runs / "altered")
    try:
        with contextlib.closing(sqlite3.connect(runs / "altered/run.sqlite")) as history:
            history.execute("UPDATE steps SET loss = loss + 1e-6 WHERE step = 152")
            history.commit()
        answer = studio.get("runs/altered/tile", tensor="final_norm.gain", step=STEP, mode="gradient")
        assert (answer.headers["x-exact"], answer.headers["cache-control"]) == ("false", "no-store")
        found = studio.json(f"runs/altered/step/{STEP}")
        assert found["exact"] is False
        assert "loss of step 152" in found["differs"][0]
    finally:
        shutil.rmtree(runs / "altered")


def test_a_step_in_its_four_phases_is_what_replay_prints(studio: Studio, opened: ReplayedStep):
    found, expected = studio.json(f"runs/small/step/{STEP}", row=1, token=5), report_step(opened, 1, 5).to_json()
    for part in ("step", "exact", "loss", "backward", "update", "tensors"):
        assert found[part] == expected[part]
    assert found["exact"] is True
    assert found["forward"]["batch"] == expected["forward"]["batch"]
    assert found["forward"]["target"] == expected["forward"]["target"]


def test_a_biography_is_what_inspect_prints(studio: Studio, reader: RunReader):
    found = studio.json("runs/small/parameter", name=CELL, step=STEP)
    assert found == inspect(reader, CELL, STEP).to_json()
    replayed = range(150, STEP + 2)  # from the keyframe before
    assert [point[0] for point in found["history"] if point[0] in replayed and point[2]] == list(replayed)


def test_a_biography_tells_the_same_whatever_was_replayed_before(studio: Studio, reader: RunReader):
    for step in (119, 122):  # the replay goes on from the first to the second, over a keyframe
        whole(studio, "final_norm.gain", step=step, mode="gradient")
    assert 120 in studio.json("runs/small")["keyframes"]
    assert studio.json("runs/small/parameter", name=CELL, step=122) == inspect(reader, CELL, 122).to_json()


def test_a_neuron_a_tensor_and_a_nudge_are_what_inspect_prints(studio: Studio, reader: RunReader, opened: ReplayedStep):
    name = "blocks.1.mlp.expand[5]"
    assert studio.json("runs/small/neuron", name=name, step=STEP, row=2, token=4) == (
        inspect(reader, name, STEP, row=2, token=4).to_json()
    )
    for step, prompt in ((STEP, "The lion"), (160, "")):  # no step was made at the end
        assert studio.json("runs/small/neuron", name=name, step=step, prompt=prompt) == (
            inspect(reader, name, step, prompt=prompt).to_json()
        )
    tensor = studio.json("runs/small/tensor", name="blocks.1.mlp.expand.weight", step=STEP)
    pairs = np.array(tensor.pop("scatter"), np.float32)
    assert tensor == inspect(reader, "blocks.1.mlp.expand.weight", STEP).to_json()
    numbers = opened.tensor("blocks.1.mlp.expand.weight")
    cells = set(zip(numbers.gradient.ravel().tolist(), numbers.update.ravel().tolist(), strict=True))
    assert len(pairs) == 2000
    assert {tuple(pair) for pair in pairs.tolist()} <= cells
    nudged = studio.post("runs/small/nudge", parameter=CELL, step=STEP, sizes=[0.01, -0.02]).json()
    assert nudged == {"step": STEP} | inspect(reader, CELL, STEP, [0.01, -0.02]).to_json()["nudge"]


@pytest.mark.parametrize("body", [
    {"parameter": CELL, "step": 1, "sizes": []},
    {"parameter": CELL, "step": 1, "sizes": [0.1] * 33},
    {"parameter": CELL, "step": -1, "sizes": [0.1]},
    {"parameter": 7, "step": 1, "sizes": [0.1]},
])  # fmt: skip
def test_a_nudge_that_is_none_is_refused(studio: Studio, body: dict):
    assert studio.post("runs/small/nudge", **body).status_code == 422


def test_what_is_not_there_is_said_in_a_sentence(studio: Studio):
    for path, words in (
        ("parameter?name=blocks.0.attention.query.weight[99,7]&step=3", "has shape (24, 24)"),
        ("parameter?name=blocks.0.attention.query.weight&step=3", "named with its place"),
        ("parameter?name=blocks.9.attention.query.weight[0,0]&step=3", "Did you mean"),
        ("neuron?name=embedding[3]&step=3", "no neurons"),
        ("neuron?name=blocks.0.mlp.expand[3]&step=3&row=99", "must be 0 to 3"),
        ("neuron?name=blocks.0.mlp.expand[3]&step=160", "cannot be replayed"),
        ("neuron?name=blocks.0.mlp.expand[3]&step=160&prompt=a&token=9", "must be 0 to 0 in this prompt"),
        ("step/3?token=99", "--token must be"),
        ("step/160", "has made 160 steps"),
        ("step/-1", "has made 160 steps"),
        ("tile?tensor=embedding.weight&step=161&mode=value", "has made 160 steps"),
        ("tile?tensor=embedding.weight&step=160&mode=gradient", "cannot be replayed"),
        ("tile?tensor=embedding.weight&step=3&mode=colour", "mode is one of"),
        ("tile?tensor=embedding.weight&step=3&mode=memory:momentum", "It keeps: first_moment, second_moment"),
        ("tile?tensor=embedding.wait&step=3&mode=value", "Did you mean embedding.weight?"),
    ):
        answer = studio.client.get(f"/api/runs/small/{path}")
        assert answer.status_code in (400, 404), path
        assert words in answer.json()["error"]


def test_health_is_what_the_command_prints(studio: Studio, reader: RunReader):
    from vitrine.inspection.health import examine

    found, expected = studio.json("runs/small/health"), examine(reader).to_json()
    assert [v["name"] for v in found["verdicts"]] == [v["name"] for v in expected["verdicts"]]
    assert [v["level"] for v in found["verdicts"]] == [v["level"] for v in expected["verdicts"]]
    assert found["headline"] == expected["headline"]


def begin(studio: Studio, step: int) -> "tuple[threading.Thread, list[httpx.Response], httpx.Client]":
    """Ask for a step whose replay takes a while, and wait until it is under way."""
    answers: list[httpx.Response] = []
    client = httpx.Client(base_url=studio.url, headers=studio.client.headers, timeout=300, verify=False)

    def ask():
        with contextlib.suppress(httpx.HTTPError):
            query = {"tensor": "final_norm.gain", "step": step, "mode": "gradient"}
            answers.append(client.get("/api/runs/small/tile", params=query))

    thread = threading.Thread(target=ask)
    thread.start()
    until(
        lambda: (
            (stands := studio.json("runs/small/progress", step=step))["step"] == step
            and 0 < stands["made"] < stands["of"]
        )
    )
    return thread, answers, client


def test_a_worker_that_is_killed_in_a_replay_is_told_of_and_started_again(studio: Studio, opened: ReplayedStep):
    whole(studio, "final_norm.gain", step=1, mode="gradient")
    thread, answers, client = begin(studio, 119)
    for pid in studio.workers():
        os.kill(pid, signal.SIGKILL)
    thread.join(30)
    client.close()
    assert answers[0].status_code == 503
    assert "ended unexpectedly" in answers[0].json()["error"]
    gradient = whole(studio, "final_norm.gain", step=STEP, mode="gradient")
    assert gradient.tobytes() == opened.tensor("final_norm.gain").gradient.tobytes()
    assert studio.json("runs/small/progress", step=1)["working"] is False


def test_two_pages_that_ask_for_the_same_share_one_replay_and_a_third_step_is_right_too(studio: Studio):
    whole(studio, "final_norm.gain", step=1, mode="gradient")
    first, one, client1 = begin(studio, 118)
    second, two, client2 = begin(studio, 118)
    first.join(30)
    second.join(30)
    client1.close()
    client2.close()
    assert one[0].content == two[0].content
    assert one[0].headers["x-step"] == "118"


def test_a_replay_that_nobody_waits_for_is_dropped(reader: RunReader):
    from vitrine.studio.worker_jobs import WorkerJobs

    said = []

    class Impatient:
        number = 1

        def check(self):
            if len(said) == 3:
                raise CancelledJobError

        def say(self, kind, payload):
            said.append((kind, payload["made"]))

    jobs = WorkerJobs(Impatient())
    with pytest.raises(CancelledJobError):
        jobs.phases(str(reader.path), "", 20, 0, -1)
    assert [made for _, made in said] == [0, 1, 2]
    (replayer,) = jobs.replayers.values()
    assert replayer.state.step == 2
    assert jobs.phases(str(reader.path), "", 5, 0, -1)["exact"] is True  # it goes on from there, and holds


class Ordered(Worker):
    """A worker without a process: what it is told is written down, and it never answers."""

    def __init__(self):
        super().__init__("does nothing")
        self.told = []

    def start(self):
        return self

    def send(self, message):
        self.told.append(message[:3])


def test_equal_requests_are_one_job_and_it_is_cancelled_when_the_last_has_gone():
    async def scenario(worker):
        first, second = (asyncio.ensure_future(worker.ask("cells", step=5)) for _ in range(2))
        other = asyncio.ensure_future(worker.ask("cells", step=6))
        await asyncio.sleep(0)
        for task in (first, second, other):
            told = len(worker.told)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            yield worker.told[told:]

    async def run():
        worker = Ordered()
        seen = [told async for told in scenario(worker)]
        assert worker.told[:2] == [("job", 1, "cells"), ("job", 2, "cells")]
        assert seen == [[], [("cancel", 1)], [("cancel", 2)]]
        assert worker.waiting == 0

    asyncio.run(run())


def test_what_cannot_be_handed_to_a_worker_is_refused_each_time():
    deep = {}
    for _ in range(100_000):
        deep = {"settings": deep}

    class Picky(Ordered):
        def send(self, message):
            raise UnsendableError("no")

    async def run():
        worker = Picky()
        for value in (deep, 10**5000, "unlike"):
            for _ in range(2):
                with pytest.raises(RefusalError) as caught:
                    await asyncio.wait_for(worker.ask("plan", settings=value), 20)
                assert caught.value.status == 400
                assert caught.value.sentence.startswith("This cannot be handed to a worker process (")
        assert worker.waiting == 0

    asyncio.run(run())


def test_a_page_that_goes_no_longer_waits():
    class Gone:
        async def receive(self):
            return {"type": "http.disconnect"}

    async def run():
        worker = Ordered()
        with pytest.raises(ClientDisconnect):
            await while_there(Gone(), worker.ask("cells", step=5))
        assert worker.told == [("job", 1, "cells"), ("cancel", 1)]

    asyncio.run(run())


def test_a_page_that_goes_takes_its_replay_with_it(studio: Studio):
    whole(studio, "final_norm.gain", step=1, mode="gradient")
    address = f"{studio.url}/api/runs/small/tile?tensor=final_norm.gain&step=117&mode=gradient"
    code = "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], headers={'Authorization': sys.argv[2]}))"
    impatient = subprocess.Popen(
        [sys.executable, "-c", code, address, f"Bearer {studio.token}"], stderr=subprocess.DEVNULL
    )
    until(lambda: studio.json("runs/small/progress", step=117)["step"] == 117)
    impatient.kill()
    impatient.wait()
    stands = until(lambda: not (found := studio.json("runs/small/progress", step=117))["working"] and found, 5)
    assert stands["wanted"] == 0


def test_the_server_has_no_torch(runs: Path):
    imported = "import sys, vitrine.studio.command, vitrine.studio.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", imported], check=True)
    with serve(runs, start=plainly) as studio:
        whole(studio, "final_norm.gain", step=2, mode="gradient")
        maps = Path(f"/proc/{studio.process.pid}/maps")
        if not maps.is_file():
            pytest.skip("NOT CHECKED on this system: what a process has loaded is read from /proc")
        assert [
            pid for pid in studio.workers() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()
        ]  # the check would notice
        assert "libtorch" not in maps.read_text()


def test_the_workers_go_when_the_server_is_killed(runs: Path):
    with serve(runs) as studio:
        studio.cells("small", tensor="final_norm.gain", step=1, mode="gradient")
        workers = studio.workers()
        studio.process.kill()

    def running(pid: int) -> bool:
        listed = subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, text=True, check=False)
        return listed.stdout.strip()[:1] not in ("", "Z")

    assert workers
    until(lambda: not any(map(running, workers)), 10)
