"""The uvicorn server of both commands: its socket, its limits, and its shutdown."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitrine.errors import ConfigError

HEAD_BYTES = 64 * 2**10  # limit of a request's first line and headers
UNREAD_BYTES = 256 * 2**10  # send buffer of a socket: one of megabytes would hide that the client does not read
STALLED_S = 30.0  # that a client may read nothing although data waits for it
END_S = 1.0  # for answers to end after the server is stopped


def listen(host: str, ports: Sequence[int]) -> socket.socket:
    """A socket on the first of these ports that is free; 0: any."""
    for port in ports:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)  # accepted sockets inherit it
        try:
            listener.bind((host, port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            reason = error.strerror
        else:
            return listener
    raise ConfigError(f"{host}:{port} cannot be used: {reason}. Try another --port, or 0.")


class LocalServer(uvicorn.Server):
    """Serves one application on one socket until a signal comes, or `stop` is called.

    Args:
        end: called when the server is to end, while answers are still being sent: ends them with an error text.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, end: Callable[[], None]) -> None:
        settings = uvicorn.Config(
            app,
            # h11 bounds headers before they are read; httptools, which uvicorn prefers where it is installed, does not.
            http=_Connection,
            h11_max_incomplete_event_size=HEAD_BYTES,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
        )
        super().__init__(settings)
        self.listener, self.end = listener, end

    def serve_until_stopped(self) -> None:
        """Raises KeyboardInterrupt after Ctrl-C, and SystemExit after SIGTERM if the command's handler does."""
        self.run(sockets=[self.listener])

    def stop(self) -> None:
        """End soon."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait END_S for answers to end, then close their connections: their tasks see a disconnect."""
        for server in self.servers:
            server.close()
        self.end()
        deadline_s = time.monotonic() + END_S
        while self.server_state.tasks and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        for connection in self.server_state.connections:
            if isinstance(connection, _Connection) and connection.cycle and not connection.cycle.response_complete:
                connection.transport.abort()
        await super().shutdown(sockets)


class _Connection(H11Protocol):
    """A connection that is dropped when its client no longer reads."""

    _stalled: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        if self._stalled:
            self._stalled.cancel()
        super().connection_lost(error)
