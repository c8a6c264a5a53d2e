"""What a client, a prompt or a dying process does to a server: the others notice nothing, and it never hangs.

The server is whole and runs in this process; the process that decodes is `fake_decoder`.
"""

import asyncio
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from tests.serving.conftest import CONTEXT, Served
from tests.serving.fake_decoder import decode
from vitrine.errors import RunError
from vitrine.http.child_process import Sandbox
from vitrine.http.local_server import LocalServer
from vitrine.serving import command, decoder_process, response_models, served_model
from vitrine.serving.app import _Stream
from vitrine.serving.errors import ApiError
from vitrine.serving.messages import Job, Token
from vitrine.serving.response_models import Answer, Piece
from vitrine.serving.served_model import Model

GOOD = {"model": "small", "prompt": "ab", "max_tokens": 3}
ENDLESS = GOOD | {"max_tokens": 100_000, "stream": True}


@dataclass
class Whole:
    """The server, and how it ended."""

    broken: Path  # while this file is there, the process that decodes does not start
    port: int = 0
    server: LocalServer | None = None
    failure: list[Exception] = field(default_factory=list)

    def connect(self, body: dict[str, Any], path: str = "/v1/completions") -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def ask(self, **changes: Any) -> tuple[int, Any]:
        connection = self.connect(GOOD | changes)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    def refusal(self, **changes: Any) -> str:
        status, found = self.ask(**changes)
        assert status == 400, found
        return str(found["error"]["message"])

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/health")
        status = connection.getresponse().status
        connection.close()
        return status == 200


def make_whole(run: Path, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Whole, threading.Thread]:
    one, started = Whole(folder / "broken"), threading.Event()

    class Caught(LocalServer):
        def __init__(self, app: Any, listener: Any, end: Any) -> None:
            super().__init__(app, listener, end)
            one.server, one.port = self, listener.getsockname()[1]

    patch.setattr(decoder_process, "_work", decode)
    patch.setattr(command, "LocalServer", Caught)

    def serve() -> None:
        options = command.Options(str(run), str(one.broken), port=0, rows=20, queue=20)
        try:
            command.serve(options, lambda line: started.set(), print)
        except RunError as error:
            one.failure.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(60)
    return one, thread


@pytest.fixture(scope="module")
def whole(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with pytest.MonkeyPatch.context() as patch:
        one, thread = make_whole(served.run, tmp_path_factory.mktemp("whole"), patch)
        yield one
        assert one.server
        one.server.stop()
        thread.join(30)
        assert not thread.is_alive()


def until(true: Any) -> None:
    deadline_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_text_longer_than_a_context_can_be_is_refused_by_its_length(whole: Whole) -> None:
    began_s = time.monotonic()
    for prompt in ("word " * 1_500_000, ["a", "word " * 1000]):
        sentence = whole.refusal(prompt=prompt)
        assert "bytes, and the model's context holds 48 tokens of at most 13 bytes: 624 bytes" in sentence
    assert time.monotonic() - began_s < 10  # it took 43 s, when the text was made tokens first
    assert "7500000 bytes" in whole.refusal(prompt="word " * 1_500_000)
    assert whole.refusal(prompt="x" * (CONTEXT + 1)).startswith("The prompt has 49 tokens")


def test_prompts_are_counted_before_they_are_made_tokens(whole: Whole) -> None:
    assert "asks for 1000 texts, and 40 is the most" in whole.refusal(prompt=["\ud83d"] * 1000)


def test_a_prompt_that_ended_the_process_is_refused_the_second_time(whole: Whole) -> None:
    status, found = whole.ask(prompt="!deadly")
    assert status == 500
    assert "ended unexpectedly" in found["error"]["message"]
    until(whole.ready)
    for _ in range(2):
        assert "ended while it read this prompt, so it is not tried again" in whole.refusal(prompt="!deadly", seed=3)
    assert whole.ask(prompt="ab")[0] == 200


def test_texts_beside_a_prompt_that_ends_the_process_may_be_asked_for_again(whole: Whole) -> None:
    connection = whole.connect(ENDLESS | {"prompt": "innocent"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    assert whole.ask(prompt="!another")[0] == 500
    assert b"ended unexpectedly" in answer.read()
    connection.close()
    until(whole.ready)
    assert whole.ask(prompt="innocent")[0] == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": {"0" * 12 + "9" * 5000: 1}},
        {"logit_bias": {"0" * 12 + "999": 1}},
        {"prompt": {"a": "\ud800"}},
        {"prompt": [10**4000]},
        {"prompt": ["\ud800"]},
        {"user": {"a": [[[[[[[[]]]]]]]]}},
    ],
)
def test_odd_values_are_refused_each_time_and_harm_nobody(whole: Whole, changes: dict[str, Any]) -> None:
    assert whole.refusal(**changes) == whole.refusal(**changes)
    assert whole.ask()[0] == 200


def test_head_works_where_get_does(whole: Whole) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", whole.port, timeout=30)
    for path in ("/v1/models", "/v1/models/small", "/health", "/metrics"):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 5
    connection.close()


def test_a_server_whose_process_cannot_be_started_again_ends_with_a_sentence(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_process, "RETRIES_S", (0.0, 0.1))
    one, thread = make_whole(served.run, tmp_path, monkeypatch)
    one.broken.touch()
    assert one.ask(prompt="!")[0] == 500
    assert one.ask()[0] == 503
    thread.join(60)
    assert not thread.is_alive()
    [failure] = one.failure
    assert str(failure).startswith("The process that decodes could not be restarted in 2 tries. The process that")
    assert "exit status 3" in str(failure)


def test_streams_end_with_an_error_event_when_the_server_is_stopped(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    one, thread = make_whole(served.run, tmp_path, monkeypatch)
    connections = [one.connect(ENDLESS | {"prompt": "ab", "stream": stream}) for stream in (True, False)]
    answer = connections[0].getresponse()
    assert answer.readline().startswith(b"data: ")
    assert one.server
    one.server.stop()
    *_, event, last = answer.read().split(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "The server is being stopped."
    assert last == b""
    waiting = connections[1].getresponse()
    assert (waiting.status, json.loads(waiting.read())["error"]["type"]) == (500, "server_error")
    thread.join(30)
    assert not thread.is_alive()
    assert capfd.readouterr() == ("", "")
    for connection in connections:
        connection.close()


class Decoding:
    """Takes jobs, and writes down which are dropped."""

    def __init__(self) -> None:
        self.dropped: list[int] = []

    def submit(self, jobs: list[Job], deliver: Any) -> None:
        self.deliver = deliver

    def drop(self, number: int) -> None:
        self.dropped.append(number)


@pytest.fixture(scope="module")
def model(served: Served) -> Iterator[Model]:
    model = Model.of(str(served.run), "", "")
    yield model
    model.sandbox.close()


def started(model: Model, **settings: Any) -> tuple[Answer, Decoding]:
    decoding = Decoding()
    job = Job(1, (97,), 100_000, {}, 1, **settings)
    answer = Answer(model, decoding, [(job, "", [])], ())  # type: ignore[arg-type]
    answer.start()
    return answer, decoding


async def append_all(answer: Answer, read: list[Piece]) -> None:
    async for piece in answer.pieces():
        read.append(piece)


def test_a_text_that_is_not_read_is_stopped(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_models, "UNREAD", 100)

    async def scenario(most: int, **settings: Any) -> None:
        answer, decoding = started(model, **settings)
        for _ in range(most):
            decoding.deliver(Token(1, 97))
        assert not decoding.dropped
        decoding.deliver(Token(1, 97))
        assert decoding.dropped == [1]
        read: list[Piece] = []
        with pytest.raises(ApiError, match=r"^The client reads too slowly: the text was stopped\.$"):
            await append_all(answer, read)
        assert len(read) == most

    asyncio.run(scenario(100))
    asyncio.run(scenario(25, logprobs=3))


def test_others_have_their_turn_while_what_is_there_is_sent(model: Model) -> None:
    async def scenario() -> None:
        answer, decoding = started(model)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(other())
        for _ in range(2000):
            decoding.deliver(Token(1, 97))
        decoding.deliver(Token(1, 97, end="length"))
        async for _ in answer.pieces():
            pass
        assert turns >= 2000 // response_models.TURN
        beside.cancel()

    asyncio.run(scenario())


def test_a_stream_that_nobody_begins_to_read_is_ended() -> None:
    ended = []

    async def scenario() -> None:
        async def events() -> Any:
            await asyncio.sleep(60)
            yield b""

        async def gone() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(60)

        await _Stream(events(), lambda: ended.append(True))({"type": "http"}, gone, send)  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert ended


def test_a_tokenizer_that_tries_for_ever_holds_nobody_up(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_str(model.tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?:a|a|aa)+$"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    odd = dataclasses.replace(model, sandbox=Sandbox(served_model._functions, str(tmp_path / "tokenizer.json"), None))

    async def scenario() -> None:
        # Each «a» starts a search of up to half a million ways: seconds in all, on any machine.
        for text, limit_s, reason in (
            (("a" * 15 + "!") * 38, 0.1, r"The tokenizer took longer than 0\.1"),
            ("a" * 40 + "!", 30.0, "The tokenizer .*retry-limit"),
        ):
            monkeypatch.setattr(served_model, "ENCODE_S", limit_s)
            with pytest.raises(ApiError, match=reason):
                await odd.encode(text, "prompt")
        assert await odd.encode("b", "prompt") == [98]

    asyncio.run(scenario())
    odd.sandbox.close()
