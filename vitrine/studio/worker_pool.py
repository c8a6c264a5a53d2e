"""Worker processes: they have torch, the server has not. One job at a time; one that nobody waits for is dropped.

A job is a method of `bench.Bench` and its arguments. Equal jobs that wait together are one. The newest is done
first: it is what the page shows now; but none waits for long while newer ones come, from another page perhaps. Between the steps of a replay, and between the tokens of a text, a job looks
whether someone still waits. A worker that dies is started again by the next job; those that it had are refused.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from starlette.requests import Request

from vitrine.studio.responses import RefusalError

NICE = 10  # a training that goes on has the processor first
GOING_S = 2.0  # that a worker has to leave when the server does
PATIENCE_S = 3.0  # after so long the oldest job comes first
PART, DONE, REFUSED, BROKEN, PROGRESS = "part", "done", "refused", "broken", "progress"


@dataclass(eq=False)
class Job:
    """What a worker does, or will do; and the queues of those who wait for it."""

    number: int
    key: str
    waiting: list["asyncio.Queue[tuple[str, Any]]"] = field(default_factory=list)
    progress: dict[str, Any] | None = None


class Worker:
    """The server's side of one worker process. All its methods belong to the event loop.

    Args:
        what: the process does, as a sentence about its end names it.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._jobs: dict[int, Job] = {}
        self._numbers = 0

    def start(self) -> Connection:
        """Start the process, if there is none."""
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True, name=f"vitrine {self.what}")
        self.process.start()
        theirs.close()
        self._connection = ours
        threading.Thread(target=self._listen, args=(ours, asyncio.get_running_loop()), daemon=True).start()
        return ours

    async def ask(self, method: str, **arguments: Any) -> Any:
        """Have a job done, and wait for its result. Raises RefusalError if it cannot be done."""
        async with contextlib.aclosing(self.follow(method, **arguments)) as messages:
            async for kind, payload in messages:
                if kind == DONE:
                    return payload
        raise AssertionError("a job ends with its result or with an error")

    async def follow(self, method: str, **arguments: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """Have a job done: its parts as they come, then its result. Whoever stops listening no longer waits for it."""
        connection = self.start()
        key = repr((method, sorted(arguments.items())))
        job = next((job for job in self._jobs.values() if job.key == key), None)
        queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        if job is None or method == "generate":  # each reader of a text wants it from its beginning
            self._numbers += 1
            job = self._jobs[self._numbers] = Job(self._numbers, key)
            job.waiting.append(queue)
            self._send(connection, ("job", job.number, method, arguments))
        else:
            job.waiting.append(queue)
        try:
            while True:
                kind, payload = await queue.get()
                if kind in (REFUSED, BROKEN):
                    raise RefusalError(*payload)
                yield kind, payload
                if kind == DONE:
                    return
        finally:
            job.waiting.remove(queue)
            if not job.waiting and job.number in self._jobs:
                del self._jobs[job.number]
                self._send(connection, ("cancel", job.number))

    @property
    def progress(self) -> dict[str, Any] | None:
        """Where the replay stands that is going on, if one is."""
        return next((job.progress for job in self._jobs.values() if job.progress), None)

    @property
    def waiting(self) -> int:
        """How many jobs are being done or wait."""
        return len(self._jobs)

    async def close(self) -> None:
        """Let the process go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.process is not None:
            await asyncio.to_thread(self.process.join, GOING_S)
            if self.process.exitcode is None:
                self.process.kill()

    def _send(self, connection: Connection, message: tuple[Any, ...]) -> None:
        # If it died just now, the listener says so to all who wait.
        with contextlib.suppress(OSError):
            connection.send(message)

    def _listen(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: pass on what the worker says, until it says no more."""
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = None
            try:
                loop.call_soon_threadsafe(self._deliver, connection, message)
            except RuntimeError:  # the loop is gone, and the server with it
                return
            if message is None:
                return

    def _deliver(self, connection: Connection, message: tuple[str, int, Any] | None) -> None:
        if connection is not self._connection:
            return
        if message is None:
            self._died()
            return
        kind, number, payload = message
        job = self._jobs.get(number)
        if job is None:
            return
        if kind == PROGRESS:
            job.progress = payload
            return
        if kind != PART:
            del self._jobs[number]
        for queue in job.waiting:
            queue.put_nowait((kind, payload))

    def _died(self) -> None:
        """Everyone who waits hears of it; the next job starts another process."""
        assert self.process is not None
        self.process.join(GOING_S)
        sentence = (
            f"The process that {self.what} ended unexpectedly (exit status {self.process.exitcode}), perhaps for want "
            "of memory. Ask again: it will be started anew."
        )
        jobs, self._jobs, self._connection = list(self._jobs.values()), {}, None
        for job in jobs:
            for queue in job.waiting:
                queue.put_nowait((BROKEN, (503, sentence)))


@dataclass(frozen=True)
class Workers:
    """The two processes: one enters steps again, the other writes text and makes plans."""

    replay: Worker
    writing: Worker

    @classmethod
    def make(cls) -> "Workers":
        """Not started yet."""
        return cls(Worker("enters steps again"), Worker("writes text"))

    async def close(self) -> None:
        """Let both go."""
        await asyncio.gather(self.replay.close(), self.writing.close())


async def while_there(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for an answer as long as the page waits for it, and no longer."""
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise RefusalError(503, "The page no longer waits for this.")
        return answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class CancelledJobError(Exception):
    """Nobody waits for this job any more."""


class Desk:
    """The worker's side: what is to be done, and whether it still is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.wanted: dict[int, tuple[str, dict[str, Any]]] = {}
        self.came_s: dict[int, float] = {}
        self.number = 0
        self.changed = threading.Condition()

    def listen(self) -> None:
        """In a thread of its own: take orders until the server is gone."""
        while True:
            try:
                kind, number, *order = self.connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            with self.changed:
                if kind == "job":
                    self.wanted[number], self.came_s[number] = (order[0], order[1]), time.monotonic()
                else:
                    self.wanted.pop(number, None)
                self.changed.notify()

    def next(self) -> tuple[str, dict[str, Any]]:
        """Wait for something to do: the newest, unless the oldest has waited long enough."""
        with self.changed:
            self.wanted.pop(self.number, None)
            self.changed.wait_for(lambda: self.wanted)
            oldest = min(self.wanted)
            impatient = time.monotonic() - self.came_s[oldest] > PATIENCE_S
            self.number = oldest if impatient else max(self.wanted)
            self.came_s = {number: came_s for number, came_s in self.came_s.items() if number in self.wanted}
            return self.wanted[self.number]

    def check(self) -> None:
        """Raise CancelledJobError if nobody waits for what is being done."""
        if self.number not in self.wanted:
            raise CancelledJobError

    def say(self, kind: str, payload: Any) -> None:
        """Tell the server about what is being done."""
        self.connection.send((kind, self.number, payload))


def work(connection: Connection) -> None:
    """What a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the server says when to go
    os.nice(NICE)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, whose threads read it when they start
    desk = Desk(connection)
    threading.Thread(target=desk.listen, daemon=True).start()
    from vitrine.errors import VitrineError
    from vitrine.studio.worker_jobs import Bench

    bench = Bench(desk)
    while True:
        method, arguments = desk.next()
        try:
            desk.say(DONE, getattr(bench, method)(**arguments))
        except CancelledJobError:
            pass
        except VitrineError as error:
            desk.say(REFUSED, (400, str(error)))
        except RefusalError as error:
            desk.say(REFUSED, (error.status, error.sentence))
        except Exception as error:
            import traceback

            traceback.print_exc()
            bench.forget()
            desk.say(REFUSED, (503, f"This could not be worked out ({type(error).__name__}: {error}). Try again."))
