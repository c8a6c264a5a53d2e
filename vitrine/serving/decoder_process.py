"""The server's side of the decoding process: starts it, submits jobs, delivers events, limits the queue."""

import asyncio
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from vitrine.errors import RunError, VitrineError
from vitrine.http.child_process import Child, UnsendableError
from vitrine.serving.errors import ApiError
from vitrine.serving.messages import Event, Failed, Job, Reading, Ready, Token

RETRIES_S = (0.0, 1.0, 2.0, 4.0, 8.0)  # pauses before each try to start it again
RETRY_AFTER_S = 1
REMEMBERED = 1000  # of the prompts that crashed the process


class Decoding:
    """One decoding process; restarted if it dies. All methods except `start` run in the event loop.

    Args:
        rows: texts decoded together.
        queue: further texts that may wait.

    Attributes:
        failure: why the process cannot be restarted; empty as long as it can. on_failure: called then.
    """

    def __init__(self, run: str, step: str, rows: int, queue: int) -> None:
        self.arguments = run, step, rows
        self.rows, self.queue = rows, queue
        self.ready: Ready | None = None
        self.failure = ""
        self.on_failure: Callable[[], None] = lambda: None
        self._child: Child | None = None
        self._deliveries: dict[int, Callable[[Event], None]] = {}
        self._numbers = 0
        self._reading = ""  # the prompt that it reads now
        self._deadly: dict[str, None] = {}  # the prompts that crashed it
        self._restarting: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> Ready:
        """Start the process, and wait until its model is loaded. Raises the error if it cannot."""
        self._child = Child(_work, *self.arguments, name="vitrine decodes")
        try:
            first = self._child.connection.recv()
        except (EOFError, OSError):
            raise RunError(
                f"The process that decodes ended before it was ready (exit status {self._child.exit_status()}), "
                "perhaps because memory ran out. Try fewer rows: --parallel 8."
            ) from None
        if isinstance(first, Exception):
            raise first
        assert isinstance(first, Ready)
        self.ready = first
        return first

    def listen(self) -> None:
        """From now on, deliver the messages of the process."""
        assert self._child
        self._child.listen(self._hear)

    @property
    def texts(self) -> int:
        """The number of texts being written or waiting."""
        return len(self._deliveries)

    def number(self) -> int:
        """A number for a new job."""
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

    def submit(self, jobs: Sequence[Job], deliver: Callable[[Event], None]) -> None:
        """Submit jobs. Every event is delivered; the last of a job is a Failed, or a Token that ends the text.

        Raises ApiError if there is no room for them, or if one has a prompt that crashed the process before.
        """
        self.check_room(len(jobs))
        if self._deadly and any(job.digest in self._deadly for job in jobs):
            raise ApiError(
                400,
                "The process that decodes ended while it read this prompt, so it is not tried again. Give a shorter "
                "one, or ask for less of it: no echo, fewer logprobs.",
                "prompt",
            )
        assert self._child
        try:
            for job in jobs:
                self._child.send(job)
                self._deliveries[job.number] = deliver
        except UnsendableError as error:
            for job in jobs:
                self.drop(job.number)
            raise ApiError(400, f"This request cannot be handed to the process that decodes: {error}.") from None

    def drop(self, number: int) -> None:
        """Drop a job whose client no longer waits. Does nothing if the job has ended."""
        if self._deliveries.pop(number, None):
            assert self._child
            self._child.send(number)

    def end_jobs(self, sentence: str) -> None:
        """End all jobs with this error."""
        self._deliver([Failed(number, sentence) for number in [*self._deliveries]])

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        if self._restarting:
            self._restarting.cancel()
        if self._child:
            await asyncio.to_thread(self._child.close)

    def _hear(self, message: list[Event] | Reading | None) -> None:
        if isinstance(message, list):
            self._reading = ""
            self._deliver(message)
        elif message is not None:
            self._reading = message.digest
        elif not self._closed:
            self.ready = None
            if self._reading:
                self._deadly = dict.fromkeys([*self._deadly, self._reading][-REMEMBERED:])
                self._reading = ""
            self.end_jobs(
                "The process that decodes ended unexpectedly, perhaps because memory ran out. It is being restarted."
            )
            self._restarting = asyncio.ensure_future(self._restart())

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            deliver = self._deliveries.get(event.number)
            if deliver is None:
                continue
            if isinstance(event, Failed) or (isinstance(event, Token) and event.end):
                del self._deliveries[event.number]
            deliver(event)

    async def _restart(self) -> None:
        """Retry with pauses, since the cause may be temporary; if all retries fail, the server ends."""
        reason = ""
        for pause_s in RETRIES_S:
            await asyncio.sleep(pause_s)
            try:
                await asyncio.to_thread(self.start)
            except VitrineError as error:
                reason = str(error)
            else:
                self.listen()
                return
        self.failure = f"The process that decodes could not be restarted in {len(RETRIES_S)} tries. {reason}"
        self.on_failure()


def _work(connection: Connection, run: str, step: str, rows: int) -> None:
    from vitrine.serving.worker import work

    work(connection, run, step, rows)
