"""Worker processes, which have torch, while the server has not. Each runs one job at a time.

A job is a method of `worker_jobs.WorkerJobs` and its arguments. Equal waiting jobs are merged. The newest runs first,
because the page shows it now; but after PATIENCE_S the oldest runs first, so that none waits for long. Between the steps
of a replay, and between the tokens of a text, a job ends if its client no longer waits. If a worker dies, its jobs are
refused, and the next job starts it again.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from vitrine.http.child_process import Child, UnsendableError
from vitrine.studio.responses import RefusalError

NICE = 10  # a running training has priority
PATIENCE_S = 3.0  # after which the oldest job runs first
PART, DONE, REFUSED, BROKEN, PROGRESS = "part", "done", "refused", "broken", "progress"


@dataclass(eq=False)
class Job:
    """A job that runs or waits, and the queues of its clients."""

    number: int
    key: str
    waiting: list["asyncio.Queue[tuple[str, Any]]"] = field(default_factory=list)
    progress: dict[str, Any] | None = None


class Worker:
    """The server's side of one worker process. All its methods run in the event loop.

    Args:
        what: what the process does, for an error text.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._child: Child | None = None
        self._jobs: dict[int, Job] = {}
        self._numbers = 0

    def start(self) -> Child:
        """The process; started if there is none."""
        if self._child is None:
            self._child = child = Child(work, name=f"vitrine {self.what}")
            child.listen(lambda message: self._deliver(child, message))
        return self._child

    async def ask(self, method: str, **arguments: Any) -> Any:
        """Run a job, and wait for its result. Raises RefusalError if it fails."""
        async with contextlib.aclosing(self.follow(method, **arguments)) as messages:
            async for kind, payload in messages:
                if kind == DONE:
                    return payload
        raise AssertionError("a job ends with its result or with an error")

    async def follow(self, method: str, **arguments: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """Run a job: yields its parts as they come, then its result. A closed generator no longer waits for it."""
        child = self.start()
        queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        try:
            key = repr((method, sorted(arguments.items())))
            job = next((job for job in self._jobs.values() if job.key == key), None)
            if job is None or method == "generate":  # each client needs a text from its beginning
                job = Job(self._numbers + 1, key)
                child.send(("job", job.number, method, arguments))
                self._numbers, self._jobs[job.number] = job.number, job
        except (
            UnsendableError,
            RecursionError,
            ValueError,
        ) as error:  # Python refuses to print integers of 5000 digits
            raise RefusalError(400, f"This cannot be handed to a worker process ({error}). Send less of it.") from None
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
            if not job.waiting and self._jobs.pop(job.number, None) is not None:
                child.send(("cancel", job.number))

    @property
    def progress(self) -> dict[str, Any] | None:
        """The progress of the running replay, if any."""
        return next((job.progress for job in self._jobs.values() if job.progress), None)

    @property
    def waiting(self) -> int:
        """How many jobs run or wait."""
        return len(self._jobs)

    def end_jobs(self, sentence: str) -> None:
        """End all jobs with this error."""
        jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            for queue in job.waiting:
                queue.put_nowait((BROKEN, (503, sentence)))

    async def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.close)

    def _deliver(self, child: Child, message: tuple[str, int, Any] | None) -> None:
        if child is not self._child:
            return
        if message is None:
            self._child = None  # the next job starts another
            self.end_jobs(
                f"The process that {self.what} ended unexpectedly (exit status {child.exit_status()}), perhaps "
                "because memory ran out. Ask again: it will be started again."
            )
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


@dataclass(frozen=True)
class Workers:
    """The two processes: one replays steps, the other writes text and makes plans."""

    replay: Worker
    writing: Worker

    @classmethod
    def make(cls) -> "Workers":
        """Two workers that are not started yet."""
        return cls(Worker("replays steps"), Worker("writes text"))

    def end_jobs(self) -> None:
        """End all jobs because the studio is being closed."""
        for worker in (self.replay, self.writing):
            worker.end_jobs("The studio was closed.")

    async def close(self) -> None:
        """End both processes."""
        await asyncio.gather(self.replay.close(), self.writing.close())


class CancelledJobError(Exception):
    """No client waits for this job any more."""


class JobQueue:
    """The worker's side: the waiting jobs, and whether the current one is still wanted."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.wanted: dict[int, tuple[str, dict[str, Any]]] = {}
        self.came_s: dict[int, float] = {}
        self.number = 0
        self.changed = threading.Condition()

    def listen(self) -> None:
        """Runs in its own thread: receive jobs until the server ends."""
        while True:
            try:
                kind, number, *job = self.connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            with self.changed:
                if kind == "job":
                    self.wanted[number], self.came_s[number] = (job[0], job[1]), time.monotonic()
                else:
                    self.wanted.pop(number, None)
                self.changed.notify()

    def next(self) -> tuple[str, dict[str, Any]]:
        """Wait for a job: the newest, unless the oldest has waited PATIENCE_S."""
        with self.changed:
            self.wanted.pop(self.number, None)
            self.changed.wait_for(lambda: self.wanted)
            oldest = min(self.wanted)
            impatient = time.monotonic() - self.came_s[oldest] > PATIENCE_S
            self.number = oldest if impatient else max(self.wanted)
            self.came_s = {number: came_s for number, came_s in self.came_s.items() if number in self.wanted}
            return self.wanted[self.number]

    def check(self) -> None:
        """Raise CancelledJobError if no client waits for the current job."""
        if self.number not in self.wanted:
            raise CancelledJobError

    def say(self, kind: str, payload: Any) -> None:
        """Send a message about the current job to the server."""
        self.connection.send((kind, self.number, payload))


def work(connection: Connection) -> None:
    """The main function of a worker process."""
    os.nice(NICE)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, whose threads read it when they start
    queue = JobQueue(connection)
    threading.Thread(target=queue.listen, daemon=True).start()
    from vitrine.errors import VitrineError
    from vitrine.studio.worker_jobs import WorkerJobs

    jobs = WorkerJobs(queue)
    while True:
        method, arguments = queue.next()
        try:
            queue.say(DONE, getattr(jobs, method)(**arguments))
        except CancelledJobError:
            pass
        except VitrineError as error:
            queue.say(REFUSED, (400, str(error)))
        except RefusalError as error:
            queue.say(REFUSED, (error.status, error.sentence))
        except Exception as error:
            import traceback

            traceback.print_exc()
            jobs.forget()
            queue.say(REFUSED, (503, f"This could not be computed ({type(error).__name__}: {error}). Try again."))
