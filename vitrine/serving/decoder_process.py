"""The server's side of the decoding process: who waits for what, and how many may."""

import asyncio
import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from vitrine.errors import RunError
from vitrine.serving.errors import ApiError
from vitrine.serving.messages import Event, Failed, Job, Ready, Token

GOING_S = 2.0  # that the process has to leave when the server does
RETRY_AFTER_S = 1


class Decoding:
    """One process; started again if it dies. All methods but `start` belong to the event loop.

    Args:
        rows: texts that are decoded together.
        queue: texts that may wait besides.
    """

    def __init__(self, run: str, step: str, rows: int, queue: int) -> None:
        self.arguments = run, step, rows
        self.rows, self.queue = rows, queue
        self.ready: Ready | None = None
        self._connection: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._deliveries: dict[int, Callable[[Event], None]] = {}
        self._numbers = 0
        self._closed = False

    def start(self) -> Ready:
        """Start the process, and wait until it has its model. Raises what it cannot be started for."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, *self.arguments), daemon=True, name="vitrine decodes"
        )
        self._process.start()
        theirs.close()
        try:
            first = ours.recv()
        except EOFError:
            self._process.join()
            raise RunError(
                f"The process that decodes ended before it was ready (exit status {self._process.exitcode}), perhaps "
                "for want of memory. Try fewer rows: --parallel 8."
            ) from None
        if isinstance(first, Exception):
            raise first
        self._connection, self.ready = ours, first
        return self.ready

    def listen(self) -> None:
        """Pass on what the process says, from now on."""
        threading.Thread(target=self._listen, args=(asyncio.get_running_loop(),), daemon=True).start()

    @property
    def texts(self) -> int:
        """Texts that are being written, or wait."""
        return len(self._deliveries)

    def number(self) -> int:
        """For a new job."""
        self._numbers += 1
        return self._numbers

    def check_room(self, texts: int) -> None:
        """Raises ApiError if so many more texts cannot be taken, now or ever."""
        most = self.rows + self.queue
        if texts > most:
            raise ApiError(
                400, f"This request asks for {texts} texts, and {most} is the most that this server takes at once.", "n"
            )
        if self.ready is None:
            raise ApiError(503, "The model is being loaded. Ask again.", retry_after_s=5 * RETRY_AFTER_S)
        if self.texts + texts > most:
            raise ApiError(
                429,
                f"The server is busy: {self.texts} texts are being written or wait, and {most} is the most. Ask again.",
                code="rate_limit_exceeded",
                retry_after_s=RETRY_AFTER_S,
            )

    def submit(self, job: Job, deliver: Callable[[Event], None]) -> None:
        """Have a job done. Every event of it is delivered; a Failed, or a Token that ends the text, is the last."""
        self._deliveries[job.number] = deliver
        self._send(job)

    def drop(self, number: int) -> None:
        """Nobody waits for this job any more. One that is done is no longer there."""
        if self._deliveries.pop(number, None):
            self._send(number)

    async def close(self) -> None:
        """Let the process go."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.join, GOING_S)
            if self._process.exitcode is None:
                self._process.kill()

    def _send(self, message: Job | int) -> None:
        assert self._connection is not None
        with contextlib.suppress(OSError):  # if it died just now, the listener says so
            self._connection.send(message)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own."""
        while not self._closed:
            assert self._connection is not None
            try:
                events = self._connection.recv()
            except (EOFError, OSError):
                if self._closed:
                    return
                loop.call_soon_threadsafe(self._died)
                try:
                    self.start()
                except Exception:  # nothing more can be done: /health says so
                    return
                continue
            try:
                loop.call_soon_threadsafe(self._deliver, events)
            except RuntimeError:  # the loop is gone, and the server with it
                return

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            deliver = self._deliveries.get(event.number)
            if deliver is None:
                continue
            if isinstance(event, Failed) or (isinstance(event, Token) and event.end):
                del self._deliveries[event.number]
            deliver(event)

    def _died(self) -> None:
        """Everyone who waits hears of it."""
        self.ready = None
        sentence = "The process that decodes ended unexpectedly, perhaps for want of memory. It is being started anew."
        self._deliver([Failed(number, sentence) for number in [*self._deliveries]])


def _work(connection: Connection, run: str, step: str, rows: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the server says when to go
    from vitrine.serving.worker import work

    work(connection, run, step, rows)
