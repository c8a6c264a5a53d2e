"""Python processes that start at once: each is forked from one that has imported torch and Vitrine already.

For tests in which the process is the point: its signals, its streams, its death. It is a real process with a number, a
folder, an environment and streams of its own, and what it starts of Vitrine (workers, trainings, the studio beside one)
is forked from it in turn. What the environment decides when torch or Python starts (threads, instruction sets,
encodings) is that of the tests: a test that changes it starts Python itself.
"""

import asyncio
import atexit
import contextlib
import fcntl
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
import warnings
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
_nursery: "tuple[subprocess.Popen[bytes], socket.socket] | None" = None  # the process that forks, and how it is asked


class Python(subprocess.Popen):
    """`python ARGUMENTS`, such as -m MODULE or -c CODE. As subprocess.Popen, with its streams, cwd, env, start_new_session."""

    def _execute_child(self, args: Any, *how: Any) -> None:  # type: ignore[override]
        pipes, order = _order(args, how)
        ours, theirs = socket.socketpair()
        with theirs:
            control, content = _asked(), json.dumps(order).encode()
            socket.send_fds(control, [len(content).to_bytes(4)], [*_streams(pipes), theirs.fileno()])
            control.sendall(content)
        self._close_pipe_fds(*pipes)
        self._child_created = True
        self.pid, self._ended = int.from_bytes(ours.recv(8)), ours
        self._status = b""

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if not self._status:
            self._ended.setblocking(not wait_flags & os.WNOHANG)
            try:
                self._status = self._ended.recv(8)
            except BlockingIOError:
                return 0, 0
            self._ended.close()
        return self.pid, int.from_bytes(self._status)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)
        return self.returncode


class Vitrine(Python):
    """`vitrine ARGUMENTS`."""

    def __init__(self, arguments: Sequence[object], **how: Any) -> None:
        super().__init__(["-m", "vitrine", *arguments], **how)


def vitrine(
    *arguments: object, check: bool = False, timeout_s: float = 120, stdin: str | None = None, **how: Any
) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end. how: as for subprocess.Popen."""
    with Vitrine(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    ) as process:
        try:
            output, said = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise AssertionError(f"vitrine {arguments} ended with {process.returncode}: {said}")
    return subprocess.CompletedProcess(arguments, process.returncode, output, said)


def _order(words: Sequence[object], how: Sequence[Any]) -> tuple[Sequence[int], dict[str, Any]]:
    """What subprocess.Popen._execute_child is given after the arguments: its pipes, and the rest as `_become` wants it."""
    _, preexec_fn, _, _, cwd, env, _, _, _, *rest = how
    assert preexec_fn is None
    order = {"words": [str(word) for word in words], "cwd": str(cwd or Path.cwd()), "env": {**(env or os.environ)}}
    return rest[:6], {**order, "own_session": rest[11]}


def _streams(pipes: Sequence[int]) -> list[int]:
    """The child's standard input, output and error."""
    return [own if own != -1 else number for number, own in enumerate((pipes[0], pipes[3], pipes[5]))]


def _asked() -> socket.socket:
    global _nursery
    if _nursery is None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", f"from tests.warm import serve; serve({theirs.fileno()})"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        _nursery = process, ours
        atexit.register(_leave)
    return _nursery[1]


def _leave() -> None:
    assert _nursery
    process, control = _nursery
    control.close()
    process.wait(20)


# In the process that is forked:


def serve(number: int) -> None:
    """Fork whenever this socket asks for it, until it is closed; tell each asker how its process ended."""
    import vitrine.api
    import vitrine.cli.main
    import vitrine.run
    import vitrine.studio.command  # noqa: F401 - with torch, all that takes long

    control, (woken, wakes) = socket.socket(fileno=number), socket.socketpair()
    woken.setblocking(False)
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakes.fileno())
    born: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as events:
        events.register(control, selectors.EVENT_READ)
        events.register(woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in events.select()]
            if woken in ready:
                woken.recv(4096)
                while born and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    with born.pop(ended[0]) as asker, contextlib.suppress(OSError):  # nobody asks any more
                        asker.sendall(ended[1].to_bytes(8))
            if control in ready:
                size, fds, _, _ = socket.recv_fds(control, 4, 4)
                if not size:
                    return
                order = json.loads(control.recv(int.from_bytes(size), socket.MSG_WAITALL))
                child = os.fork()
                if child == 0:
                    _become(order, fds[:3])
                for fd in fds[:3]:
                    os.close(fd)
                born[child] = socket.socket(fileno=fds[3])
                born[child].sendall(child.to_bytes(8))


def _become(order: dict[str, Any], streams: Sequence[int], passed: Sequence[int] = ()) -> NoReturn:
    """In a process that was just forked: be Python with these words, and end with it."""
    status = 1
    try:
        _forget_the_parent(streams, passed)
        if order["own_session"]:
            os.setsid()
            if os.isatty(0):
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        from vitrine.cli import main

        main.STARTED_S = time.monotonic()
        subprocess.Popen, util.spawnv_passfds = _Forked, _spawn  # type: ignore[misc]
        how, what, *words = order["words"]
        sys.argv = [what, *words] if how == "-m" else ["-c", *words]
        if how == "-c":
            exec(what, {"__name__": "__main__"})
        else:
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            runpy.run_module(what, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _forget_the_parent(streams: Sequence[int], passed: Sequence[int]) -> None:
    """These standard streams, and no open file, signal handler or event loop of the parent."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # SIGKILL, SIGSTOP
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    asyncio._set_running_loop(None)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in [int(file.name) for file in Path("/dev/fd").iterdir()]:
        if fd > 2 and fd not in passed:  # the number stays taken: an object of the parent may close it yet
            with contextlib.suppress(OSError):
                os.dup2(nothing, fd, inheritable=False)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
        for number, mode, buffering in ((0, "r", -1), (1, "w", -1), (2, "w", 1))
    )


class _Forked(subprocess.Popen):
    """In such a process: Vitrine is forked, all else is started."""

    def _execute_child(self, args: Any, *how: Any) -> None:  # type: ignore[override]
        if list(args[:2]) != [sys.executable, "-m"] or args[2] not in ("vitrine", "vitrine.studio.companion"):
            super()._execute_child(args, *how)  # type: ignore[misc]
            return
        pipes, order = _order(args[1:], how)
        self.pid = os.fork()
        if self.pid == 0:
            _become(order, _streams(pipes))
        self._child_created = True
        self._close_pipe_fds(*pipes)


def _spawn(path: bytes, words: Sequence[str], passed: Sequence[int]) -> int:
    """In such a process: what multiprocessing spawns is forked. As multiprocessing.util.spawnv_passfds."""
    order = {"words": words[words.index("-c") :], "cwd": str(Path.cwd()), "env": {**os.environ}, "own_session": False}
    child = os.fork()
    if child == 0:
        _become(order, (0, 1, 2), [int(fd) for fd in passed])
    return child
