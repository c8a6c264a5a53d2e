"""Several processes: they wait for each other as long as it takes, and one that is lost is one sentence."""

import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.conftest import TINY
from tests.warm import Python
from vitrine import api
from vitrine.errors import ConfigError, RunError
from vitrine.runs.reader import RunReader
from vitrine.training import resume as resuming
from vitrine.training.distributed import ENDED, LOST, Processes


def start_two(arguments: Sequence[object], folder: Path, **streams: int) -> list[Python]:
    """Two Python processes, in the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Python(
            arguments,
            cwd=folder,
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
            **streams,
        )
        for rank in ("0", "1")
    ]


def test_all_wait_until_the_last_one_comes():
    store, passed = dist.HashStore(), []

    def come(rank: int) -> None:
        Processes(rank, 3, store).wait("here")
        passed.append(rank)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
    for thread in threads[:2]:
        thread.start()
    threads[0].join(0.5)  # longer than a few looks
    assert passed == []
    threads[2].start()
    for thread in threads:
        thread.join(30)
    assert sorted(passed) == [0, 1, 2]


def test_who_waits_for_one_that_has_ended_is_told():
    store = dist.HashStore()
    store.set(ENDED, "yes")
    with pytest.raises(RunError, match="Another process of this training has ended"):
        Processes(1, 2, store).wait("here")


def test_a_lost_process_is_one_sentence_for_the_other(tmp_path):
    code = (
        "import os\nfrom vitrine.errors import VitrineError\nfrom vitrine.training.distributed import joined\n"
        "try:\n  with joined('cpu') as processes:\n    processes.agree(1)\n"
        "    if processes.rank: os._exit(9)\n    processes.agree(2)\n"
        "except VitrineError as error: raise SystemExit(str(error))"
    )
    first, second = start_two(["-c", code], tmp_path)
    assert first.communicate(timeout=120)[1].splitlines()[-1] == LOST
    assert (first.returncode, second.wait(30)) == (1, 9)
    second.stderr.close()


def test_rows_that_cannot_be_shared_out_are_refused_when_a_run_goes_on(book, tmp_path, monkeypatch):
    size = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 1, "training.batch_size": 4}
    run = api.train(book, run=tmp_path / "r", steps=2, settings=size)
    with sqlite3.connect(run.path / "run.sqlite") as history:
        history.execute("DELETE FROM facts WHERE name = 'result'")  # as if it had been stopped

    @contextmanager
    def three(device_type: str):
        yield Processes(0, 3)

    monkeypatch.setattr(resuming, "joined", three)
    with pytest.raises(ConfigError, match=r"divisible by the number of processes: got 4 and 3"):
        resuming.resume(tmp_path / "r")


@pytest.mark.full
@pytest.mark.parametrize("lost", [0, 1])
def test_a_training_whose_other_process_is_killed_ends_in_a_sentence_and_goes_on_later(lost, book, tmp_path):
    command = ["-m", "vitrine", "train", str(book), *TINY, "--steps", "3000", "--run-dir", "r"]
    processes = start_two(command, tmp_path)
    while not (tmp_path / "r").exists() or RunReader(tmp_path / "r").steps_made() < 20:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    processes[lost].send_signal(signal.SIGKILL)
    said = processes[1 - lost].communicate(timeout=120)[1]
    processes[lost].communicate()
    assert processes[1 - lost].returncode == 2
    assert said.splitlines()[-1] == LOST
    assert "Traceback" not in said
    processes = start_two(["-m", "vitrine", "resume", "r"], tmp_path)
    while RunReader(tmp_path / "r").steps_made() < 60:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    for process in processes:
        process.terminate()
    assert [process.wait(60) for process in processes] == [143, 143]
    for process in processes:
        process.stderr.close()
