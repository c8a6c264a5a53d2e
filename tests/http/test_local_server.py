"""What a client may do to a server: nothing that it keeps for itself, or that others notice."""

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from vitrine.errors import ConfigError
from vitrine.http import local_server
from vitrine.http.guard import KeyGuard, is_local, local_hosts
from vitrine.http.local_server import LocalServer, listen

MiB = 2**20


@dataclass
class Running:
    """A server in a thread, with routes that say what happens to them."""

    port: int = 0
    ended: list[str] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def endless(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while not self.closing.is_set():
                    yield b"x" * 20_000
                    await asyncio.sleep(0.001)
                yield b"the end"
            finally:
                self.ended.append("endless")

        return StreamingResponse(chunks(), headers={"X-Kind": "endless"})

    async def plain(self, request: Request) -> Response:
        return PlainTextResponse(f"{len(await request.body())} bytes")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str = "GET", path: str = "/plain", **options: object) -> tuple[int, bytes]:
        connection = self.connect()
        connection.request(method, path, **options)  # type: ignore[arg-type]
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found


def refuse(status: int, sentence: str) -> Response:
    return PlainTextResponse(sentence, status)


@contextlib.contextmanager
def running() -> Iterator[Running]:
    one = Running()
    routes = [Route("/endless", one.endless), Route("/plain", one.plain, methods=["GET", "POST"])]
    with listen("127.0.0.1", [0]) as listener:
        one.port = listener.getsockname()[1]
        app = KeyGuard(Starlette(routes=routes), local_hosts(one.port), refuse, "")
        server = LocalServer(app, listener, one.closing.set)
        thread = threading.Thread(target=server.serve_until_stopped)
        thread.start()
        try:
            yield one
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as one:
        yield one


def sent_until_refused(client: socket.socket, data: bytes) -> int:
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 100 * MiB:
            sent += client.send(data)
    return sent


def test_headers_are_bounded(server: Running) -> None:
    # Lines that are complete, and one that never is.
    for line in (b"X-Long: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(b"GET /plain HTTP/1.1\r\nHost: a\r\nX-Long: ")
            assert sent_until_refused(client, line * 64) < 20 * MiB  # the system's own buffers hold some, too
    assert server.ask()[0] == 200


def test_long_headers_within_the_bound_are_read(server: Running) -> None:
    assert server.ask(headers={"Cookie": "a=" + "b" * 40_000})[0] == 200


def test_bodies_are_bounded_whether_they_say_their_length_or_not(server: Running) -> None:
    assert server.ask("POST", body=b" " * (8 * MiB)) == (200, b"%d bytes" % (8 * MiB))
    assert server.ask("POST", body=b" " * (8 * MiB + 1))[0] == 413
    pieces = iter([b" " * MiB] * 8 + [b" "])
    assert server.ask("POST", body=pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})[0] == 413


def test_head_is_get_without_the_body_even_of_what_never_ends(server: Running) -> None:
    connection = server.connect()
    for path, length in (("/plain", "7"), ("/endless", None), ("/plain", "7")):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read(), answer.headers["Content-Length"]) == (200, b"", length)
    assert server.ask("HEAD", "/nothing")[0] == 404
    connection.close()


def test_a_client_that_stops_reading_is_dropped(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "STALLED_S", 0.2)
    server.ended.clear()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"GET /endless HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        assert client.recv(10)
        until(lambda: server.ended)
    assert server.ask()[0] == 200


def test_a_client_that_reads_in_time_is_not(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "STALLED_S", 5.0)
    connection = server.connect()
    connection.request("GET", "/endless")
    answer = connection.getresponse()
    assert len(answer.read(2 * MiB)) == 2 * MiB
    connection.close()


def test_answers_end_before_the_server_does_and_nothing_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with running() as one:
        connection, stalled = one.connect(), one.connect()
        for client in (connection, stalled):
            client.request("GET", "/endless")
        answer = connection.getresponse()
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(answer.read()))
        reader.start()
        time.sleep(0.2)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 10
    reader.join(20)
    assert read[0].endswith(b"the end")
    assert capfd.readouterr() == ("", "")
    for client in (connection, stalled):
        client.close()


def test_the_first_free_port_is_taken() -> None:
    with listen("127.0.0.1", [0]) as taken:
        port = taken.getsockname()[1]
        with listen("127.0.0.1", [port, 0]) as other:
            assert other.getsockname()[1] != port
        with pytest.raises(ConfigError, match=f"^127.0.0.1:{port} cannot be used: Address already in use"):
            listen("127.0.0.1", [port])


def test_an_address_of_this_machine_is_one_of_its_names() -> None:
    assert is_local("127.0.0.2")
    assert is_local("::1")
    assert not is_local("0.0.0.0")
    app = KeyGuard(Starlette(), local_hosts(1, "127.0.0.2"), refuse, "")
    for host, status in (("127.0.0.2:1", None), ("localhost:1", None), ("127.0.0.3:1", 403), ("evil.example:1", 403)):
        refusal = app._check_origin({"headers": [(b"host", host.encode())]})
        assert (refusal and refusal.status_code) == status, host


def until(true: object) -> None:
    deadline_s = time.monotonic() + 20
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
