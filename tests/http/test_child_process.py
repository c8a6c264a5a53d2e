"""Functions that never end, take all memory or kill their process leave the server as it was."""

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from vitrine.errors import PromptError
from vitrine.http.child_process import CallError, Child, Sandbox, UnsendableError

ODD = "a" * 40 + "!"  # `(a+)+$` tries two to the fortieth ways


def prepare(word: str) -> dict[str, Callable[..., Any]]:
    def refuse() -> None:
        raise PromptError("Not this.")

    return {
        "join": lambda *parts: word.join(parts),
        "match": lambda pattern, text: bool(re.match(pattern, text)),
        "take": lambda size: len(bytearray(size)),
        "die": os.abort,
        "pid": os.getpid,
        "refuse": refuse,
        "unknown": lambda: {}["key"],
    }


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(prepare, "-", memory_bytes=2**28)
    yield sandbox
    sandbox.close()


def call(sandbox: Sandbox, name: str, *arguments: Any, timeout_s: float = 20.0) -> Any:
    return sandbox.run(name, arguments, timeout_s)


def test_one_process_answers_all_calls(sandbox: Sandbox) -> None:
    assert call(sandbox, "join", "a", "b\ud800") == "a-b\ud800"
    assert call(sandbox, "pid") == call(sandbox, "pid") != os.getpid()


def test_a_call_that_does_not_end_is_ended_and_the_next_one_is_answered(sandbox: Sandbox) -> None:
    before = call(sandbox, "pid")
    began_s = time.monotonic()
    with pytest.raises(CallError, match=r"^took longer than 0\.3 s$"):
        call(sandbox, "match", "(a+)+$", ODD, timeout_s=0.3)
    assert time.monotonic() - began_s < 5
    assert call(sandbox, "pid") != before
    assert not Path(f"/proc/{before}").exists()


def test_a_call_that_takes_too_much_memory_is_refused(sandbox: Sandbox) -> None:
    if not Path("/proc/self/statm").is_file():
        pytest.skip("NOT CHECKED on this system: its limit of memory")
    assert call(sandbox, "take", 2**20) == 2**20
    with pytest.raises(CallError, match="needed more memory than is allowed"):
        call(sandbox, "take", 2**32)


def test_a_call_that_kills_its_process_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(CallError, match="crashed"):
        call(sandbox, "die")
    assert call(sandbox, "join", "a") == "a"


def test_errors_keep_their_sentence(sandbox: Sandbox) -> None:
    with pytest.raises(PromptError, match=r"^Not this\.$"):
        call(sandbox, "refuse")
    with pytest.raises(CallError, match=r"^raised KeyError: 'key'$"):
        call(sandbox, "unknown")


def test_what_cannot_be_pickled_is_refused_each_time(sandbox: Sandbox) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for _ in range(2):
        with pytest.raises(CallError, match="cannot be given this"):
            call(sandbox, "join", deep)
    assert call(sandbox, "join", "a") == "a"


def test_the_event_loop_goes_on_meanwhile_and_who_leaves_makes_room(sandbox: Sandbox) -> None:
    async def scenario() -> None:
        slow = asyncio.ensure_future(sandbox.call("match", "(a+)+$", ODD, timeout_s=0.5))
        waiting = [asyncio.ensure_future(sandbox.call("match", "(a+)+$", ODD, timeout_s=60)) for _ in range(3)]
        last = asyncio.ensure_future(sandbox.call("join", "a", "b", timeout_s=20))
        await asyncio.sleep(0.1)
        assert not slow.done()
        for task in waiting:
            task.cancel()
        assert await last == "a-b"
        assert isinstance(slow.exception(), CallError)

    asyncio.run(scenario())


def echo(connection: Connection) -> None:
    while True:
        message = connection.recv()
        if message == "die":
            os._exit(7)
        connection.send(message)


def test_a_child_says_what_it_has_and_that_it_died() -> None:
    async def scenario() -> None:
        heard: asyncio.Queue[Any] = asyncio.Queue()
        child = Child(echo, name="echo")
        child.listen(heard.put_nowait)
        for message in (5, "\ud800", 10**5000):
            child.send(message)
            assert await heard.get() == message
        with pytest.raises(UnsendableError, match="lambda"):
            child.send(lambda: None)
        child.send("die")
        assert await heard.get() is None
        child.send("unheard")
        assert child.exit_status() == 7
        child.close()

    asyncio.run(scenario())


def wait(connection: Connection, file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.01)
    connection.send(len(connection.recv()))


def test_a_child_that_does_not_read_makes_nobody_wait(tmp_path: Path) -> None:
    child = Child(wait, str(tmp_path / "read"), name="wait")
    sending = threading.Thread(target=child.send, args=(bytes(10_000_000),), daemon=True)  # far more than a pipe holds
    sending.start()
    sending.join(20)
    assert not sending.is_alive()
    (tmp_path / "read").touch()
    assert child.connection.recv() == 10_000_000
    child.close()


def test_a_child_leaves_at_once_when_it_is_closed_though_a_thread_reads_its_pipe() -> None:
    async def scenario() -> None:
        heard: asyncio.Queue[Any] = asyncio.Queue()
        child = Child(echo, name="echo")
        child.listen(heard.put_nowait)
        child.send(1)
        assert await heard.get() == 1
        await asyncio.to_thread(child.close)
        assert child.exit_status() == 0
        assert await heard.get() is None

    asyncio.run(scenario())
