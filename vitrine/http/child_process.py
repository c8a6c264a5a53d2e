"""Child processes with a pipe: start, messages, detection of a crash, and end.

`Child` is one process and its pipe; its owner defines what the messages mean. `Sandbox` calls functions in a child,
with limits for time and memory: they may never end, or take too much memory.
"""

import asyncio
import contextlib
import multiprocessing
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from vitrine.errors import VitrineError

LEAVE_S = 2.0  # for a child to exit after its pipe is closed
START_S = 120.0  # for a sandbox to prepare its functions: other programs may use the processor


class UnsendableError(Exception):
    """A message that cannot be pickled."""


class CallError(Exception):
    """A call that failed. The text is a predicate: «took longer than 1 s»."""


class Child:
    """A spawned process and our end of its pipe. It starts at once, and exits when that end is closed.

    Args:
        target: the function that it runs, given its end of the pipe and the arguments. It makes slow imports itself.
        name: of the process, as lists of processes show it.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_begin, args=(target, theirs, *arguments), daemon=True, name=name)
        self.process.start()
        theirs.close()
        self._unsent: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def send(self, message: Any) -> None:
        """Send without waiting until the child reads. Raises UnsendableError. `listen` reports if the child has died."""
        try:
            self._unsent.put(ForkingPickler.dumps(message))
        except Exception as error:  # anything that pickling a class raises, and RecursionError
            raise UnsendableError(f"{type(error).__name__}: {error}") from None

    def listen(self, deliver: Callable[[Any], None]) -> None:
        """From now on, deliver each message in the running event loop; None when the child is gone."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            message: Any = ...
            while message is not None:
                try:
                    message = self.connection.recv()
                except (EOFError, OSError):
                    message = None
                try:
                    loop.call_soon_threadsafe(deliver, message)
                except RuntimeError:  # the event loop has ended, and the server with it
                    return

        threading.Thread(target=read, daemon=True).start()

    def exit_status(self) -> int | None:
        """The exit status; waits a while for it. None if the child does not exit."""
        self.process.join(LEAVE_S)
        return self.process.exitcode

    def close(self) -> None:
        """Close the pipe; kill the process if it does not exit."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)  # a reading thread would keep it open
        if self.exit_status() is None:
            self.process.kill()
        self._let_go()

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self._let_go()

    def _let_go(self) -> None:
        self.process.join()
        self._unsent.put(None)
        self.connection.close()

    def _write(self) -> None:
        """Runs in its own thread: a busy child may leave the pipe full for long."""
        while (message := self._unsent.get()) is not None:
            with contextlib.suppress(OSError):
                self.connection.send_bytes(message)


class Sandbox:
    """Functions in a child, called one at a time. The child is killed when a call takes too long, and started again.

    Args:
        prepare: makes the functions, by their names, in the child.
        arguments: of `prepare`.
        memory_bytes: that calls may take beyond the memory of the prepared process; only on systems that have such limits.
    """

    def __init__(
        self, prepare: Callable[..., Mapping[str, Callable[..., Any]]], *arguments: Any, memory_bytes: int = 2**30
    ) -> None:
        self._target = _answer_calls, prepare, memory_bytes, *arguments
        self._thread = ThreadPoolExecutor(1, "sandbox")  # one thread: calls run in their order
        self._child: Child | None = None
        self._prepared = False

    async def call(self, name: str, *arguments: Any, timeout_s: float) -> Any:
        """The result of a function. Raises CallError if the call failed, or the VitrineError that the function raised.

        Args:
            timeout_s: counted from when the child begins the call; the wait for earlier calls does not count.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.run, name, arguments, timeout_s)

    def start(self) -> None:
        """Start the child, unless it runs already, so that the first call need not wait for it."""
        if self._child is None or not self._child.process.is_alive():
            self._child, self._prepared = Child(*self._target, name="vitrine sandbox"), False

    def run(self, name: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
        """`call` in the calling thread, for a program without an event loop."""
        self.start()
        if not self._prepared:
            self._receive(START_S)
            self._prepared = True
        assert self._child
        try:
            self._child.send((name, arguments))
        except UnsendableError as error:
            raise CallError(f"cannot be given this ({error})") from None
        return self._receive(timeout_s)

    def close(self) -> None:
        """End the child, even in the middle of a call."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._child:
            self._child.kill()

    def _receive(self, timeout_s: float) -> Any:
        assert self._child
        try:
            if not self._child.connection.poll(timeout_s):
                raise CallError(f"took longer than {timeout_s:g} s")
            succeeded, result = self._child.connection.recv()
        except (CallError, EOFError, OSError) as error:
            self._child.kill()
            self.start()  # without waiting for it
            if isinstance(error, CallError):
                raise
            raise CallError("needed more memory than is allowed, or crashed") from None
        if succeeded:
            return result
        raise result if isinstance(result, VitrineError) else CallError(result)


def _begin(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    with contextlib.suppress(OSError):  # what `ps` and `top` show; only Linux has this file
        Path("/proc/self/comm").write_text(multiprocessing.current_process().name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal: the server decides when to end
    with contextlib.suppress(EOFError, BrokenPipeError):  # the server has ended
        target(connection, *arguments)


def _answer_calls(
    connection: Connection,
    prepare: Callable[..., Mapping[str, Callable[..., Any]]],
    memory_bytes: int,
    *arguments: Any,
) -> None:
    """The main function of a sandbox's child. The first answer says that the functions are ready."""

    def answer(function: Callable[..., Any], *arguments: Any) -> bool:
        try:
            connection.send((True, function(*arguments)))
            return True
        except VitrineError as error:
            connection.send((False, error))
        except MemoryError:
            connection.send((False, "needed more memory than is allowed"))
        except BaseException as error:  # panics of Rust code are BaseExceptions
            connection.send((False, f"raised {type(error).__name__}: {error}"[:1000]))
        return False

    functions: dict[str, Callable[..., Any]] = {}
    if not answer(lambda: functions.update(prepare(*arguments))):
        return
    _limit_memory(memory_bytes)
    while True:
        name, given = connection.recv()
        answer(functions[name], *given)


def _limit_memory(extra_bytes: int) -> None:
    """Limit address space to what the process has now plus `extra_bytes`; allocations beyond it raise or abort."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return
    import resource

    used_bytes = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + extra_bytes,) * 2)
