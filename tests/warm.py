"""Processes of the `vitrine` command that start at once: each is forked from one that has imported torch already.

For tests in which the process is the point: its signals, its streams, its death. It is a real process with a number, a
folder, an environment and streams of its own. What the environment decides when torch or Python starts (threads,
instruction sets, encodings) is that of the tests: a test that changes it starts Python itself.
"""

import atexit
import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_nursery: "tuple[subprocess.Popen[bytes], socket.socket] | None" = None  # the process that forks, and how it is asked


class Vitrine(subprocess.Popen):
    """`vitrine ARGUMENTS`, started. As subprocess.Popen, with its cwd, env, stdin, stdout, stderr, text and start_new_session."""

    def _execute_child(  # type: ignore[override]
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any
    ) -> None:
        assert preexec_fn is None
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[3:9]
        ours, theirs = socket.socketpair()
        streams = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        order = {
            "arguments": [str(word) for word in args],
            "cwd": str(cwd or Path.cwd()),
            "env": {**(env or os.environ)},
        }
        order["own_session"] = rest[14]
        with theirs:
            control, content = _asked(), json.dumps(order).encode()
            socket.send_fds(control, [len(content).to_bytes(4)], [*streams, theirs.fileno()])
            control.sendall(content)
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
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
    import vitrine.studio.companion  # noqa: F401 - with torch, all that takes long

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
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for held in (control, woken, wakes, *born.values()):
                        held.close()
                    _become(order, fds)
                for fd in fds[:3]:
                    os.close(fd)
                born[child] = socket.socket(fileno=fds[3])
                born[child].sendall(child.to_bytes(8))


def _become(order: dict[str, Any], fds: list[int]) -> None:
    """The command, in this process, which ends with it."""
    status = 1
    try:
        for number, fd in enumerate(fds[:3]):
            os.dup2(fd, number)
        for fd in fds:
            os.close(fd)
        if order["own_session"]:
            os.setsid()
            if os.isatty(0):
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, buffering, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
            for number, mode, buffering in ((0, "r", -1), (1, "w", -1), (2, "w", 1))
        )
        sys.argv = ["vitrine", *order["arguments"]]
        from vitrine.cli import main

        main.STARTED_S = time.monotonic()
        main.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
